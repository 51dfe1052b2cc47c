"""The small protocol that stages train through, what its implementations share, and the first of them: plain PyTorch on
one rank, or DistributedDataParallel over several.
"""

from __future__ import annotations

import contextlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tinychat.config.schema import Precision
from tinychat.errors import UserError
from tinychat.models.adapters import is_adapter
from tinychat.models.checkpoints import saved_buffers, saved_parameters
from tinychat.models.kernels.in_place import GradientsInPlace, scratch
from tinychat.runtime.process import give_back_freed_memory
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
    def in_fp32(self) -> contextlib.AbstractContextManager[None]:
        """Inside, `dtype` is fp32: the same weights compute without the rounding of another type. Every rank enters
        together; nothing is trained inside."""

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

    def rest(self) -> None:
        """Give back memory that steps alone use, before other work that needs as much. The next step takes it anew."""
        scratch.clear()
        give_back_freed_memory()

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


STATE_FILE = "engine.pt"


class PlainEngine(Engine):
    """fp32 weights and optimizer state; the arithmetic runs under autocast in `dtype`."""

    def __init__(
        self, model: Any, optimizer: torch.optim.Optimizer, world: World, dtype: torch.dtype, grad_clip: float
    ):
        self.model, self.optimizer, self.world, self.dtype = model, optimizer, world, dtype
        self.grad_clip = grad_clip or math.inf
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=dtype is torch.float16)
        self.wrapped = model
        self._in_place = GradientsInPlace(model if world.size == 1 else torch.nn.Module())
        # A model that is only measured has no gradients to average, and DDP refuses it.
        if world.size > 1 and any(p.requires_grad for p in model.parameters()):
            ids = [world.local_rank] if world.device.type == "cuda" else None
            # The buckets of gradients are the gradients: no second copy of them.
            self.wrapped = torch.nn.parallel.DistributedDataParallel(model, ids, gradient_as_bucket_view=True)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.world.device.type, self.dtype, enabled=self.dtype is not torch.float32)

    def train_step(self, micro_batches: Sequence[Batch], loss_fn: LossFn) -> StepStats:
        self.model.train()
        total = torch.zeros((), dtype=torch.float64, device=self.world.device)
        with self._in_place.active():
            for index, batch in enumerate(micro_batches):
                last = index == len(micro_batches) - 1
                with contextlib.nullcontext() if last or self.world.size == 1 else self.wrapped.no_sync():
                    with self.autocast():
                        loss = loss_fn(self.wrapped, batch)
                    # DDP averages gradients over the ranks where the loss is a sum.
                    self.scaler.scale(loss * self.world.size).backward()
                total += loss.detach()
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.grad_clip)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._in_place.zero_grad(self.optimizer)
        return StepStats(self.world.sum(total.item())[0], norm.item(), self.scaler.get_scale() < scale)

    @contextlib.contextmanager
    def inference(self) -> Iterator[Any]:
        with eval_mode(self.model), torch.no_grad(), self.autocast():
            yield self.model

    @contextlib.contextmanager
    def in_fp32(self) -> Iterator[None]:
        own, self.dtype = self.dtype, torch.float32
        try:
            yield
        finally:
            self.dtype = own

    def rest(self) -> None:
        self._in_place.release()
        super().rest()

    def save_state(self, folder: Path) -> None:
        if self.world.is_main:
            state = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
            # The weights again, beside model.safetensors: a resume then depends on nothing that export may round.
            with trained_state(self.model):
                torch.save({"model": self.model.state_dict(), **state}, folder / STATE_FILE)

    def load_state(self, folder: Path) -> None:
        state = torch.load(folder / STATE_FILE, map_location=self.world.device, weights_only=True, mmap=True)
        self.model.load_state_dict(state["model"], strict=not is_adapter(self.model))
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

    def full_state_dict(self) -> dict[str, torch.Tensor]:
        weights = {name: p.detach() for name, p in saved_parameters(self.model).items()}
        return weights | saved_buffers(self.model) if self.world.is_main else {}
