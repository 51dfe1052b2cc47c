"""The small protocol that stages train through, and what its implementations share."""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tinychat.config.schema import Precision
from tinychat.errors import UserError
from tinychat.models.adapters.adapter_files import is_adapter
from tinychat.models.checkpoints import saved_parameters
from tinychat.runtime.world import World

Batch = dict[str, torch.Tensor]
LossFn = Callable[[Any, Batch], torch.Tensor]

DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}


@dataclass(frozen=True)
class StepStats:
    """One optimizer step, the same on every rank."""

    loss: float  # summed over micro-batches and ranks
    grad_norm: float  # global, before clipping
    skipped: bool = False  # fp16 overflow: the loss scale was lowered and no weight changed


class Engine(ABC):
    """A model being trained.

    The loss of a step is the SUM of what `loss_fn` returns over all micro-batches and ranks, so a loss function that
    divides by the global count (of tokens, sequences, ...) makes a step independent of how the batch was split into
    micro-batches and ranks.
    """

    model: Any  # the transformers model, never wrapped
    optimizer: torch.optim.Optimizer  # the base optimizer: its param_groups carry the learning rates
    world: World
    dtype: torch.dtype  # of the arithmetic

    @abstractmethod
    def train_step(self, micro_batches: Sequence[Batch], loss_fn: LossFn) -> StepStats:
        """One optimizer step. Every rank calls it with as many micro-batches."""

    @abstractmethod
    def inference(self) -> contextlib.AbstractContextManager[Any]:
        """Inside: the model in eval mode, without gradients, ready to be called. Every rank enters together."""

    @contextlib.contextmanager
    def generation(self) -> Iterator[Any]:
        """As inference(), with whole weights on every rank: inside, ranks may call the model differently often."""
        with self.inference() as model, self.whole(model):
            yield model

    def whole(self, module: Any) -> contextlib.AbstractContextManager[None]:
        """Inside, the weights of this part of the model are whole on every rank, and calling it is no collective: ranks
        may do so differently often, as their own data ask for. Nothing else of the model may be called. Every rank
        enters together; not to be nested."""
        return contextlib.nullcontext()

    @abstractmethod
    def save_state(self, folder: Path) -> None:
        """Write everything `load_state` needs for a bit-identical continuation. Every rank calls it."""

    @abstractmethod
    def load_state(self, folder: Path) -> None:
        """Read what `save_state` wrote."""

    @abstractmethod
    def full_state_dict(self) -> dict[str, torch.Tensor]:
        """fp32 weights and buffers by name on rank 0 (others may get {}); a tied weight comes once. Of a model with an
        adapter what it trains alone."""

    def set_lr(self, factor: float) -> None:
        """Set every group's learning rate to `factor` times its peak."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor

    def set_weight_decay(self, factor: float) -> None:
        """Set every group's weight decay to `factor` times what it was built with."""
        for group in self.optimizer.param_groups:
            group.setdefault("full_weight_decay", group["weight_decay"])
            group["weight_decay"] = group["full_weight_decay"] * factor

    def close(self) -> None:
        """Free what the engine holds beside the model."""
        return


@contextlib.contextmanager
def eval_mode(model: Any) -> Iterator[Any]:
    """The model in eval mode inside, as it was afterwards."""
    training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(training)


@contextlib.contextmanager
def trained_state(model: Any) -> Iterator[None]:
    """Inside, the state_dict of a model with an adapter holds what it trains alone; that of any other holds all."""
    if not is_adapter(model):
        yield
        return
    kept = set(saved_parameters(model))

    def leave_out(_module: Any, state: dict[str, Any], _prefix: str, _metadata: Any) -> None:
        for name in [name for name in state if name not in kept]:
            del state[name]

    handle = model.register_state_dict_post_hook(leave_out)
    try:
        yield
    finally:
        handle.remove()


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype of the arithmetic; `auto` is bf16 where the device has instructions for it, else fp16 (GPU) or fp32.

    Raises UserError for fp16 on the CPU.
    """
    if precision is Precision.auto:
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        return torch.bfloat16 if cpu_has_bf16() else torch.float32
    if precision is Precision.fp16 and device.type == "cpu":
        raise UserError("precision=fp16 does not work on the CPU; use precision=bf16 or fp32")
    return DTYPES[precision]


def cpu_has_bf16() -> bool:
    """Whether bf16 is multiplied in hardware (AVX512-BF16 or AMX) on this CPU; elsewhere it is slower than fp32.

    ONEDNN_MAX_CPU_ISA may forbid the library that multiplies these instructions, as on a CPU that lacks them.
    """
    most = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if most not in ("", "ALL", "DEFAULT") and not any(name in most for name in ("BF16", "FP16", "AMX", "AVX10")):
        return False
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in probes)
