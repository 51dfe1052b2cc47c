"""Writing a model as transformers and peft read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict

from tinychat.models.adapters.adapter_files import is_adapter, save_adapter


def save_weights(model: Any, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """config.json, generation_config.json and model.safetensors, as transformers lays them out; of an adapter its own
    weights alone, as peft does.

    A model of several parts writes them itself. Not model.save_pretrained: that imports DeepSpeed wherever it is
    installed.
    """
    if hasattr(model, "save_parts"):
        model.save_parts(weights, folder, save_weights)
        return
    if is_adapter(model):
        save_adapter(model, weights, folder)
        return
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    tied = list(getattr(model, "_tied_weights_keys", None) or [])
    save_torch_state_dict(weights, str(folder), shared_tensors_to_discard=tied)


def saved_parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters that a checkpoint holds, by name, a tied one once: all, or of an adapter those it trains."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad or not is_adapter(model)}


def saved_buffers(model: Any) -> dict[str, torch.Tensor]:
    """The part of a model's state_dict that is no parameter; nothing of an adapter, whose base brings them."""
    if is_adapter(model):
        return {}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {name: value for name, value in model.state_dict().items() if name not in parameters}
