"""Plain PyTorch: one rank, or DistributedDataParallel over several."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tinychat.engine.base import Batch, Engine, LossFn, StepStats, eval_mode, trained_state
from tinychat.models.adapters.adapter_files import is_adapter
from tinychat.models.checkpoints import saved_buffers, saved_parameters
from tinychat.models.kernels.in_place import GradientsInPlace
from tinychat.runtime.world import World

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
