"""Whatever checkpoint this is: opened, gone on from, written. A folder or hub repository holds a full model, or an
adapter, which stands for its base with the adapter.

Below this, tinychat.models.load knows full models alone, tinychat.models.adapters what is put on them.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedConfig

from tinychat.config.schema import ModelConfig, PeftConfig, PeftKind
from tinychat.errors import UserError
from tinychat.models.adapters import (
    ADAPTER_CONFIG,
    adapter_is_as,
    adapter_targets,
    add_adapter,
    find_base,
    is_adapter,
    is_adapter_folder,
    load_adapter,
    merge_adapter,
    read_adapter_config,
    save_adapter,
    set_adapter_dropout,
)
from tinychat.models.build import grow_vocabulary
from tinychat.models.load import (
    model_folder,
    no_language_model,
    one_line,
    other_than_parameters,
    read_config,
    read_language_model,
    write_weights,
)
from tinychat.runs import folders
from tinychat.runtime import manifest
from tinychat.text.tokenizer import load_saved_tokenizer

log = logging.getLogger("tinychat")


def load_config(path: str) -> PreTrainedConfig:
    """The transformers configuration in a model's folder or hub repository; an adapter has its base's. Raises UserError
    as load.read_config."""
    folder = model_folder(path)
    return read_config(model_folder(find_base(folder)) if is_adapter_folder(folder) else folder)


def pretrained_path(config: ModelConfig) -> str:
    """What arch=pretrained starts from. Raises UserError where it is not said."""
    if config.path is None:
        raise UserError("model.path=null: model=pretrained needs a folder, GGUF file or hub id, as model.path=FOLDER")
    return config.path


def load_model(
    path: str,
    dropout: float | None = None,
    quantize: bool = False,
    is_trainable: bool = False,
    adapter: str | None = None,
) -> Any:
    """The model in a folder or hub repository: fp32, scaled-dot-product attention, in evaluation mode.

    An adapter's folder gives a peft.PeftModel on its base, all of it frozen, or with `is_trainable` all but the
    adapter; other folders give a PreTrainedModel. `dropout` replaces every dropout rate of the architecture; None keeps
    them. `quantize` holds the linear layers of the blocks in 4 bits (see tinychat.models.quantized). `adapter`: the
    folder of one to be put on the full model at `path`, wherever it says that its base is.

    Raises UserError for a folder that is missing, is no model, is cut short or changed since tinychat wrote it, or does
    not hold exactly the model's weights; for an adapter also when its base is missing or another one.
    """
    folder = model_folder(path)
    if adapter is not None:
        return _with_adapter(path, folder, adapter, dropout, quantize, is_trainable)
    if is_adapter_folder(folder):
        if read_adapter_config(folder).get("task_type") == "SEQ_CLS":
            raise no_language_model(path)
        return load_adapter(folder, dropout, quantize, is_trainable)
    return read_language_model(path, dropout, quantize)


def _with_adapter(
    path: str, folder: Path, adapter: str, dropout: float | None, quantize: bool, is_trainable: bool
) -> Any:
    its = model_folder(adapter)
    if not is_adapter_folder(its):
        raise UserError(f"adapter {adapter}: holds no {ADAPTER_CONFIG}, so it is no adapter")
    if is_adapter_folder(folder):
        raise UserError(
            f"{path} is an adapter itself, on which no other can be put; merge it first: python -m tinychat.merge "
            f"{path} FOLDER"
        )
    if read_adapter_config(its).get("task_type") == "SEQ_CLS":
        raise no_language_model(adapter)
    return load_adapter(its, dropout, quantize, is_trainable, base_address=str(folder.resolve()))


def start_model(
    path: str,
    peft: PeftConfig,
    dropout: float | None = None,
    merged: Path | None = None,
    entries: int | None = None,
    new_adapter: bool = False,
    load: Callable[..., Any] = load_model,
    finish: Callable[[Any], Any] | None = None,
    task: str = "CAUSAL_LM",
) -> Any:
    """The model a stage trains, from a checkpoint folder or hub id. In evaluation mode, on the CPU.

    peft=none trains all weights; an adapter at `path` is merged first. Else the base is frozen (and 4-bit for qlora):
    an adapter at `path` that is as `peft` asks goes on being trained, any other is merged into its base and a new one
    is put on that; with `new_adapter` always, so that without it the model is the one at `path`. A vocabulary smaller
    than `entries` (the tokenizer's) grows by the few that chat tokens need. An adapter's base must be a folder: where
    it is merged or grown it is written to `merged`, and kept if it is there.

    load: reads the model or adapter, as load_model does. finish: what is made of a model before it is trained or gets
    an adapter (a reward model's backbone gets its head). task: as for add_adapter.

    New adapters take torch's global generator, which the caller seeds. Several processes may call this together.
    Raises UserError.
    """
    folder = model_folder(path)
    adapter = is_adapter_folder(folder)
    if peft.kind is PeftKind.none:
        model = load(path, dropout)
        model = merge_adapter(model) if adapter else model
        grow_vocabulary(model, entries or 0)
        return model if finish is None else finish(model)
    quantize = peft.kind is PeftKind.qlora
    grows = (entries or 0) > load_config(path).vocab_size
    if adapter and not grows and not new_adapter and adapter_is_as(folder, peft):
        model = load(path, dropout, quantize, is_trainable=True)
        set_adapter_dropout(model, peft.dropout or 0.0)
        log.info("the adapter of %s is trained further", path)
        return model
    if adapter or grows:
        path = _write_base(path, merged, peft, entries or 0, adapter)
    _check_targets(path, peft)
    model = load(path, dropout, quantize)
    return add_adapter(model if finish is None else finish(model), peft, task)


def _check_targets(path: str, peft: PeftConfig) -> None:
    """Refuse unknown targets as adapter_targets does, before any weight is read."""
    with torch.device("meta"):
        adapter_targets(AutoModelForCausalLM.from_config(load_config(path)), peft.targets)


def _write_base(path: str, out: Path | None, peft: PeftConfig, entries: int, adapter: bool) -> str:
    """The folder of a new adapter's base where `path` itself cannot be it; written once, by whoever comes first."""
    if out is None:
        raise UserError(
            f"{path} is an adapter, and not as peft={peft.name} asks; merge it first: "
            f"python -m tinychat.merge {path} FOLDER, then start from FOLDER"
            if adapter
            else f"{path}: its vocabulary is smaller than the tokenizer's {entries} entries; train with peft=none"
        )
    with FileLock(f"{out}.lock"):
        if not out.exists():
            with torch.random.fork_rng(devices=[]):  # only one process gets here; all are to go on alike
                model = load_model(path)
                model = merge_adapter(model) if adapter else model
                grow_vocabulary(model, entries)
            _write_full(model, path, out)
    log.info(
        "a new adapter is put on %s, which is %s with %s", out, path, "its adapter merged" if adapter else "more rows"
    )
    return str(out)


def save_weights(model: Any, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """The files of a checkpoint's model: of a full one as load.write_weights, of an adapter its own weights alone, as
    peft does. A model of several parts writes them itself."""
    if hasattr(model, "save_parts"):
        model.save_parts(weights, folder, save_weights)
        return
    if is_adapter(model):
        save_adapter(model, weights, folder)
        return
    write_weights(model, weights, folder)


def saved_parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters that a checkpoint holds, by name, a tied one once: all, or of an adapter those it trains."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad or not is_adapter(model)}


def saved_buffers(model: Any) -> dict[str, torch.Tensor]:
    """The part of a model's state_dict that is no parameter; nothing of an adapter, whose base brings them."""
    return {} if is_adapter(model) else other_than_parameters(model)


def merge_checkpoint(path: str, out: Path, load: Callable[[str], Any] = load_model) -> None:
    """Write an adapter's checkpoint as a full one, on the fp32 base also where it was trained on a 4-bit one. load:
    reads it; that of a reward model is another one.

    Raises UserError when `path` is no adapter or `out` is a folder with something in it. `out` appears whole or not at
    all.
    """
    folder = model_folder(path)
    if not is_adapter_folder(folder):
        raise UserError(f"{path}: holds no {ADAPTER_CONFIG}, so there is nothing to merge; it is a full checkpoint")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"{out}: exists and is not empty; give a new folder")
    _write_full(merge_adapter(load(path)), path, out)


def _write_full(model: Any, path: str, out: Path) -> None:
    """The model as a full checkpoint with tokenizer and lineage of the one at `path`."""
    tokenizer = load_saved_tokenizer(path)
    temporary = out.with_name(f".saving-{out.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        weights = {name: p.detach() for name, p in model.named_parameters()}
        write_weights(model, weights | other_than_parameters(model), temporary)
        tokenizer.save_pretrained(temporary)
        lineage = model_folder(path) / folders.LINEAGE
        if lineage.is_file():
            shutil.copyfile(lineage, temporary / folders.LINEAGE)
        manifest.write_manifest(temporary, None)
        os.replace(temporary, out)
    except (OSError, SafetensorError) as error:
        raise UserError(f"could not write {out}: {one_line(error)}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
