"""Low-rank adapters (Hu et al. 2021, LoRA) by peft: added, loaded on their base, merged into it.

What an adapter computes is W x + (alpha / r) B A x with W frozen. The folder of an adapter's checkpoint has peft's own
files, and says which base weights they belong to:

    adapter_model.safetensors  adapter_config.json   what PeftModel.from_pretrained loads, names the base
    adapter_base.json                                fingerprint of the base's weights, its place seen from here
    generation_config.json                           the base's, with what training changed
    reward.json                                      of a reward model: how its head is read (tinychat.models.reward)
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.pytorch_utils import Conv1D

from tinychat.config.schema import PeftConfig, PeftKind
from tinychat.config.shapes import SHAPES
from tinychat.errors import UserError
from tinychat.models.load import (
    check_finite,
    check_safetensors,
    model_folder,
    one_line,
    read_config,
    read_language_model,
    weight_files,
)
from tinychat.models.quantized import quiet_bitsandbytes
from tinychat.runs import folders
from tinychat.runtime import gguf, hub, manifest
from tinychat.runtime.run_files import at_home

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_BASE = "adapter_base.json"
REWARD_SETTINGS = "reward.json"
HEAD = "base_model.model.score.weight"  # peft's name for the head of a classifier
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
    """Folder, GGUF file or hub id of the adapter's base: where adapter_config.json says, else where it lay seen from
    the adapter, so that a folder of runs may be moved as a whole. Raises UserError where neither is there."""
    file = folder / ADAPTER_CONFIG
    said = read_adapter_config(folder).get("base_model_name_or_path")
    if not said:
        raise UserError(f"adapter {file}: base_model_name_or_path is {said!r}; write its base's folder or hub id there")
    if hub.is_hub_id(said) or gguf.in_package(said):
        return said
    places = [at_home(said)]
    if (folder / ADAPTER_BASE).is_file() and (relative := _read(folder / ADAPTER_BASE).get("relative")):
        places.append((folder.resolve() / relative).resolve())
    for place in places:
        is_file = gguf.is_gguf(str(place)) and place.is_file()
        if is_file or (place / "config.json").is_file() or is_adapter_folder(place):
            return str(place.resolve())
    nor = f", nor at {places[1]}" if len(places) > 1 and places[1] != places[0] else ""
    raise UserError(
        f"adapter {folder}: its base {said} is not there{nor}; put it back, or write where it is as "
        f"base_model_name_or_path into {file}{_and_manifest(folder)}"
    )


def check_base(folder: Path, base: str, files: list[Path], named: bool = False) -> None:
    """Raise UserError when the base's weights (in `files`) are not those the adapter was trained on. named: the user
    says that this is its base, not the adapter."""
    record = read_adapter_base(folder)
    if record is not None and record.fingerprint and record.fingerprint != weights_fingerprint(files):
        if named:
            own = f"; its own is {record.address}" if record.address else ""
            raise UserError(f"adapter {folder}: trained on other weights than those in {base}{own}")
        raise UserError(
            f"adapter {folder}: trained on other weights than those now in its base {base}; put the old weights back, "
            f"or write their folder as base_model_name_or_path into {folder / ADAPTER_CONFIG}{_and_manifest(folder)}"
        )


def _and_manifest(folder: Path) -> str:
    """For a message that asks to change a file: what else is to be done where its checksum is kept."""
    return f" and delete {folder / manifest.MANIFEST}" if (folder / manifest.MANIFEST).is_file() else ""


def save_adapter(
    model: Any,
    weights: dict[str, torch.Tensor],
    folder: Path,
    name: str | None = None,
    head: torch.Tensor | None = None,
) -> None:
    """Write the adapter's files. `weights`: by the model's parameter names; those of the base are left out.

    name: of one of several adapters; None: the one in use. head (1, D): what reads that one's hidden states; it is then
    saved as a reward model."""
    from peft import get_peft_model_state_dict

    name = name or model.active_adapter
    state = get_peft_model_state_dict(model, weights, name, save_embedding_layers=False)
    config = copy.copy(model.peft_config[name])
    if head is not None:
        state, config.task_type = state | {HEAD: head}, "SEQ_CLS"
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in sorted(state.items())}
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    base: AdapterBase = model.adapter_base
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
    elif head is None:
        model.generation_config.save_pretrained(folder)


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"adapter {file}: unreadable ({' '.join(str(error).split())})") from None
    if not isinstance(found, dict):
        raise UserError(f"adapter {file}: holds no JSON object")
    return found


ALL_LINEAR = "all-linear"  # peft's word for every linear layer but the output head
log = logging.getLogger("tinychat")


def add_adapter(model: Any, config: PeftConfig, task: str = "CAUSAL_LM") -> Any:
    """The model (which is changed) as a peft.PeftModel whose new adapter alone is trainable; its output is the same
    as before until it is trained. task: peft's name for it; with SEQ_CLS the head `score` is trained too.

    Raises UserError for targets that are no linear layers of the model, naming those that are, and for a model whose
    vocabulary was changed since it was loaded.
    """
    quiet_bitsandbytes()
    base = _base_of(model)
    found = _with_adapter(model, _new_adapter(model, config, task))
    found.adapter_base = base
    return found


def _new_adapter(model: Any, config: PeftConfig, task: str) -> Any:
    """peft's configuration of what `config` asks for on this model."""
    from peft import LoraConfig

    targets = adapter_targets(model, config.targets)
    return LoraConfig(
        task_type=task,
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout or 0.0,
        target_modules=targets if isinstance(targets, str) else list(targets),
        fan_in_fan_out=model.config.model_type == "gpt2",  # its Conv1D layers hold (in, out) matrices
    )


def put_adapter_beside(model: Any, name: str, config: PeftConfig) -> None:
    """A second adapter, new, on the base of a model that has one; not in use, and not trained."""
    base = model.get_base_model()
    with _quiet_peft():
        model.add_adapter(name, _new_adapter(base, config, "CAUSAL_LM"))


def put_saved_adapter_beside(model: Any, name: str, folder: Path, layers: int | None = None) -> torch.Tensor | None:
    """The adapter in a folder on the base of a model that has one already, which is the same base; not in use, not
    trained, without dropout. layers: it is on so many of the first blocks alone; None: on all. Returns the head saved
    with it (1, D), None where there is none. Raises UserError as load_adapter."""
    from peft import PeftConfig as AdapterConfig
    from peft import set_peft_model_state_dict

    check_safetensors(folder, ADAPTER_WEIGHTS)
    folders.verify_contents(folder)
    weights = {key: tensor.float().clone() for key, tensor in load_file(folder / ADAPTER_WEIGHTS).items()}
    head = weights.pop(HEAD, None)
    try:
        config = AdapterConfig.from_pretrained(str(folder))
        config.inference_mode, config.modules_to_save, config.lora_dropout = True, None, 0.0
        config.task_type = "CAUSAL_LM"  # its head is not peft's
        if layers is not None:
            config.layers_to_transform = list(range(layers))
        # On the meta device first: no random numbers are drawn for weights that are read from the file.
        with _quiet_peft():
            model.add_adapter(name, config, low_cpu_mem_usage=True)
        _, unexpected = set_peft_model_state_dict(model, weights, name, low_cpu_mem_usage=True)
    except Exception as error:  # peft raises nearly anything on a malformed or foreign adapter
        raise UserError(f"adapter {folder}: does not fit the policy's base: {one_line(error)}") from None
    own = {key: p for key, p in model.named_parameters() if f".{name}." in key}
    left_out = sorted({*unexpected, *(key for key, p in own.items() if p.is_meta)})
    if left_out:
        raise UserError(f"adapter {folder}: {ADAPTER_WEIGHTS} and {ADAPTER_CONFIG} disagree about {left_out[0]}")
    for p in own.values():
        p.data = p.data.to(model.get_input_embeddings().weight.device)
        p.requires_grad_(False)
    check_finite(model, f"adapter {folder}")
    return head


def adapter_layers(model: Any) -> list[Any]:
    """The layers that hold the adapters of a model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def used_adapter(model: Any) -> str | None:
    """The adapter that computes now, None where the base does alone."""
    first = adapter_layers(model)[0]
    return None if first.disable_adapters else first.active_adapters[0]


@contextlib.contextmanager
def adapter_in_use(model: Any, name: str | None) -> Iterator[None]:
    """Inside, this adapter of a model computes, or the base alone (None). What is trained stays as it is: peft's
    disable_adapter and set_adapter freeze what they switch off, and afterwards know of one trained adapter alone."""
    layers = adapter_layers(model)
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    for layer in layers:
        layer._disable_adapters = name is None
        if name is not None:
            layer._active_adapter = [name]
    try:
        yield
    finally:
        for layer, (active, disabled) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled


def adapter_targets(model: Any, wanted: list[str] | None) -> tuple[str, ...] | str:
    """Names of the layers that get an adapter: those wanted, or by architecture. Raises UserError as add_adapter."""
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    if wanted is None:
        shape = SHAPES.get(model.config.model_type)
        return (shape and shape.targets) or ALL_LINEAR
    unknown = [target for target in wanted if not any(f".{name}".endswith(f".{target}") for name in layers)]
    if unknown or not wanted:
        there = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
        raise UserError(
            f"peft.targets={list(wanted)}: {f'{unknown[0]} is no linear layer' if unknown else 'names no layer'} of "
            f"this model; it has {there}; null takes the usual ones"
        )
    return tuple(wanted)


def trainable_parameters(model: Any) -> tuple[int, int]:
    """(trainable, all) parameters; one held in 4 bits counts as one."""
    if is_adapter(model):
        return model.get_nb_trainable_parameters()
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def load_adapter(
    folder: Path,
    dropout: float | None,
    quantize: bool,
    is_trainable: bool,
    load_base: Callable[[str, float | None, bool], Any] = read_language_model,
    base_address: str | None = None,
) -> Any:
    """What checkpoints.load_model does for an adapter's folder. load_base(address, dropout, quantize): the model it is
    put on; base_address: where that is, None: where the adapter says."""
    quiet_bitsandbytes()
    from peft import PeftConfig as AdapterConfig
    from peft import set_peft_model_state_dict

    address = base_address or find_base(folder)
    check_safetensors(folder, ADAPTER_WEIGHTS)
    folders.verify_contents(folder)
    base_folder = model_folder(address)
    if is_adapter_folder(base_folder):
        raise UserError(f"adapter {folder}: its base {address} is an adapter itself; merge that one first")
    check_base(folder, address, weight_files(base_folder), named=base_address is not None)
    base = load_base(address, dropout, quantize)
    try:
        config = AdapterConfig.from_pretrained(str(folder))
        config.inference_mode = not is_trainable
        config.base_model_name_or_path = address
        if config.task_type == "SEQ_CLS":
            config.modules_to_save = None  # peft adds the heads that there may be, again each time
        # On the meta device first: no random numbers are drawn for weights that are read from the file.
        model = _with_adapter(base, config, low_cpu_mem_usage=True)
        weights = {name: tensor.float() for name, tensor in load_file(folder / ADAPTER_WEIGHTS).items()}
        _, unexpected = set_peft_model_state_dict(model, weights, low_cpu_mem_usage=True)
    except Exception as error:  # peft raises nearly anything on a malformed or foreign adapter
        raise UserError(f"adapter {folder}: does not fit its base {address}: {one_line(error)}") from None
    left_out = sorted({*unexpected, *(name for name, p in model.named_parameters() if p.is_meta)})
    if left_out:
        raise UserError(f"adapter {folder}: {ADAPTER_WEIGHTS} and {ADAPTER_CONFIG} disagree about {left_out[0]}")
    check_finite(model, f"adapter {folder}")
    model.adapter_base = _base_of(base)
    if (folder / "generation_config.json").is_file():
        model.generation_config = base.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()


def merge_adapter(model: Any) -> Any:
    """The base with the adapter's product added to its weights, all of them trainable: a plain transformers model that
    computes what the adapter on its base does.

    Where the base's input embedding and output head are one matrix and the adapter changes one of the two alone, they
    are two matrices afterwards (config.tie_word_embeddings is false): as one, the product would change both.
    """
    base = model.get_base_model()
    tied = base.config.tie_word_embeddings
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    if None not in ends and any(hasattr(end, "base_layer") for end in ends):
        embedding, head = (getattr(end, "base_layer", end) for end in ends)
        if head.weight is embedding.weight:
            head.weight = nn.Parameter(head.weight.detach().clone())
    with _quiet_peft():
        merged = model.merge_and_unload()
    ends = (merged.get_input_embeddings(), merged.get_output_embeddings())
    if tied and None not in ends and ends[0].weight is not ends[1].weight:
        merged.config.tie_word_embeddings = False
        log.info("the adapter changes one end of tied embeddings: in the merged model they are two matrices")
    return merged.requires_grad_(True)


def _with_adapter(model: Any, config: Any, **options: Any) -> Any:
    from peft import get_peft_model

    with _quiet_peft():
        return get_peft_model(model, config, **options)


@contextlib.contextmanager
def _quiet_peft() -> Iterator[None]:
    """Without peft's warnings of what is right here: merge_adapter unties embeddings, a head is never a Conv1D, and
    peft itself asks transformers for something by its old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*is_gradient_checkpointing")
        warnings.filterwarnings("ignore", message="Model (has|with) `tie_word_embeddings=True`")
        warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied after merging")
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to True but the target module is `torch.nn.L")
        yield


def _base_of(model: Any) -> AdapterBase:
    """The saved checkpoint that a model in memory is; without an address for one that was built here."""
    if not model.name_or_path:
        return AdapterBase("", "", False)
    folder = model_folder(model.name_or_path)
    saved, now = read_config(folder).vocab_size, model.get_input_embeddings().num_embeddings
    if saved != now:
        raise UserError(
            f"{folder}: its vocabulary was changed from {saved} to {now} entries, which an adapter does not hold; "
            "train all weights (peft=none), or use a tokenizer that fits"
        )
    quantized = bool(getattr(model, "is_loaded_in_4bit", False))
    return AdapterBase(model.name_or_path, weights_fingerprint(weight_files(folder)), quantized)


def adapter_is_as(folder: Path, peft: PeftConfig) -> bool:
    """Whether the adapter in a folder has the shape and the scale that the configuration asks for."""
    found = read_adapter_config(folder)
    record = read_adapter_base(folder)
    if record is not None and record.quantized != (peft.kind is PeftKind.qlora):
        return False
    if (found.get("peft_type"), found.get("r"), found.get("lora_alpha")) != ("LORA", peft.r, peft.alpha):
        return False
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(read_config(model_folder(find_base(folder))))
    wanted = adapter_targets(model, peft.targets)
    return wanted == ALL_LINEAR or set(found.get("target_modules") or ()) == set(wanted)


def set_adapter_dropout(model: Any, rate: float) -> None:
    for module in model.modules():
        for name in getattr(module, "lora_dropout", {}):
            module.lora_dropout[name] = nn.Dropout(rate) if rate else nn.Identity()
    model.peft_config[model.active_adapter].lora_dropout = rate
