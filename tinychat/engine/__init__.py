"""Training engines: plain PyTorch and DeepSpeed behind one protocol."""

from __future__ import annotations

from typing import Any

import torch

from tinychat.config.schema import DsConfig, OptimConfig, Precision
from tinychat.config.stages import TrainLoop
from tinychat.engine.base import Batch, Engine, LossFn, PlainEngine, StepStats, resolve_precision
from tinychat.engine.optim import build_optimizer
from tinychat.errors import UserError
from tinychat.models.kernels.attention import name_of, use_blocked_attention
from tinychat.models.kernels.layers import use_fused_norms, use_fused_rotary
from tinychat.runtime.world import World

__all__ = ["Batch", "Engine", "LossFn", "StepStats", "build_engine", "evaluation_engine", "resolve_precision"]


def build_engine(
    model: Any, optim: OptimConfig, ds: DsConfig, loop: TrainLoop, precision: Precision, world: World
) -> Engine:
    """Put a model (fp32, on the CPU) on its device and make it trainable as the configuration says.

    Raises UserError for a precision that the device does not have, and where the model's activations cannot be
    computed anew.
    """
    dtype = resolve_precision(precision, world.device)
    _place(model, world.device)
    if loop.activation_checkpointing:
        for part in getattr(model, "parts", [model]):
            if not part.supports_gradient_checkpointing:
                raise UserError(
                    f"stage.activation_checkpointing=true: {name_of(part)} does not support it (transformers' models "
                    "do by GradientCheckpointingLayer and supports_gradient_checkpointing); use false"
                )
        model.activation_checkpointing_enable({"use_reentrant": False})
    optimizer = build_optimizer(model, optim, loop.lr, dtype)
    if not ds.enabled:
        return PlainEngine(model, optimizer, world, dtype, loop.grad_clip)
    from tinychat.engine.deepspeed_engine import DeepSpeedEngine  # DeepSpeed takes seconds to import

    passes = loop.per_forward(world.size), loop.grad_accum_steps(world.size)
    return DeepSpeedEngine(model, optimizer, world, dtype, loop.grad_clip, ds.config, *passes)


def evaluation_engine(model: Any, precision: Precision, world: World) -> Engine:
    """An engine that only measures, with frozen weights; its optimizer is never stepped."""
    model.requires_grad_(False)
    _place(model, world.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return PlainEngine(model, optimizer, world, resolve_precision(precision, world.device), grad_clip=0.0)


def _place(model: Any, device: torch.device) -> None:
    """Move the model, and on a CPU take the forms of attention and norms that are fast there."""
    model.to(device)
    for part in getattr(model, "parts", [model]):
        use_blocked_attention(part, device)
        use_fused_norms(part, device)
        use_fused_rotary(part, device)
