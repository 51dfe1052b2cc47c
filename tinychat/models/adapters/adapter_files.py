"""The folder of an adapter checkpoint: peft's own files, and which base weights they belong to.

adapter_model.safetensors  adapter_config.json   what PeftModel.from_pretrained loads, names the base
adapter_base.json                                fingerprint of the base's weights, its place seen from here
generation_config.json                           the base's, with what training changed
reward.json                                      of a reward model: how its head is read (see tinychat.models.reward)
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tinychat.errors import UserError
from tinychat.runtime import hub, manifest
from tinychat.runtime.run_files import at_home

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_BASE = "adapter_base.json"
REWARD_SETTINGS = "reward.json"
SAMPLED_BYTES = 1024  # of every tensor, from its middle


@dataclass(frozen=True)
class AdapterBase:
    """The model an adapter was made for."""

    address: str  # absolute folder or hub id; "" for one that was never saved
    fingerprint: str
    quantized: bool  # it was held in 4 bits while the adapter was trained


def is_adapter(model: Any) -> bool:
    """Whether a model is a base with an adapter (peft's PeftModel). Does not import peft."""
    return hasattr(model, "peft_config")


def is_adapter_folder(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file()


def weights_fingerprint(files: list[Path]) -> str:
    """A hash of names, shapes, types and 1 KiB of every tensor in safetensors files, however many files they are in."""
    found = {}
    for path in files:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
            header.pop("__metadata__", None)
            for name, tensor in header.items():
                begin, end = tensor["data_offsets"]
                file.seek(8 + size + max(begin, (begin + end - SAMPLED_BYTES) // 2))
                sample = file.read(min(SAMPLED_BYTES, end - begin))
                found[name] = [tensor["dtype"], tensor["shape"], hashlib.blake2b(sample).hexdigest()]
    return hashlib.blake2b(json.dumps(found, sort_keys=True).encode(), digest_size=16).hexdigest()


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json; raises UserError where it is unreadable."""
    return _read(folder / ADAPTER_CONFIG)


def read_adapter_base(folder: Path) -> AdapterBase | None:
    """What adapter_base.json says; None where another tool wrote the adapter."""
    if not (folder / ADAPTER_BASE).is_file():
        return None
    found = _read(folder / ADAPTER_BASE)
    return AdapterBase(found.get("address", ""), found.get("fingerprint", ""), bool(found.get("quantized")))


def read_reward_settings(folder: Path) -> dict[str, Any] | None:
    """What reward.json says; None where another tool wrote the adapter."""
    return _read(folder / REWARD_SETTINGS) if (folder / REWARD_SETTINGS).is_file() else None


def find_base(folder: Path) -> str:
    """Folder or hub id of the adapter's base: where adapter_config.json says, else where it lay seen from the adapter,
    so that a folder of runs may be moved as a whole. Raises UserError where neither is there."""
    file = folder / ADAPTER_CONFIG
    said = read_adapter_config(folder).get("base_model_name_or_path")
    if not said:
        raise UserError(f"adapter {file}: base_model_name_or_path is {said!r}; write its base's folder or hub id there")
    if hub.is_hub_id(said):
        return said
    places = [at_home(said)]
    if (folder / ADAPTER_BASE).is_file() and (relative := _read(folder / ADAPTER_BASE).get("relative")):
        places.append((folder.resolve() / relative).resolve())
    for place in places:
        if (place / "config.json").is_file() or is_adapter_folder(place):
            return str(place.resolve())
    nor = f", nor at {places[1]}" if len(places) > 1 and places[1] != places[0] else ""
    raise UserError(
        f"adapter {folder}: its base {said} is not there{nor}; put it back, or write where it is as "
        f"base_model_name_or_path into {file}{_and_manifest(folder)}"
    )


def check_base(folder: Path, base: str, files: list[Path]) -> None:
    """Raise UserError when the base's weights (in `files`) are not those the adapter was trained on."""
    record = read_adapter_base(folder)
    if record is not None and record.fingerprint and record.fingerprint != weights_fingerprint(files):
        raise UserError(
            f"adapter {folder}: trained on other weights than those now in its base {base}; put the old weights back, "
            f"or write their folder as base_model_name_or_path into {folder / ADAPTER_CONFIG}{_and_manifest(folder)}"
        )


def _and_manifest(folder: Path) -> str:
    """For a message that asks to change a file: what else is to be done where its checksum is kept."""
    return f" and delete {folder / manifest.MANIFEST}" if (folder / manifest.MANIFEST).is_file() else ""


def save_adapter(model: Any, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Write the adapter's files. `weights`: by the model's parameter names; those of the base are left out."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, weights, save_embedding_layers=False)
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in sorted(state.items())}
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    base: AdapterBase = model.adapter_base
    config = copy.copy(model.peft_config[model.active_adapter])
    config.inference_mode = True
    if isinstance(config.target_modules, set):  # whose order would change from run to run
        config.target_modules = sorted(config.target_modules)
    config.base_model_name_or_path = base.address or None
    config.save_pretrained(str(folder))
    record = {"address": base.address, "fingerprint": base.fingerprint, "quantized": base.quantized}
    if Path(base.address).is_absolute():
        record["relative"] = os.path.relpath(base.address, folder.resolve())
    (folder / ADAPTER_BASE).write_text(json.dumps(record, indent=1), encoding="utf-8")
    if settings := getattr(model.config, "tinychat_reward", None):
        (folder / REWARD_SETTINGS).write_text(json.dumps(settings, indent=1), encoding="utf-8")
    else:
        model.generation_config.save_pretrained(folder)


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"adapter {file}: unreadable ({' '.join(str(error).split())})") from None
    if not isinstance(found, dict):
        raise UserError(f"adapter {file}: holds no JSON object")
    return found
