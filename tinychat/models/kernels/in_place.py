"""Gradients of embeddings and output heads, added where they belong.

Autograd makes the gradient of a (V, D) weight anew for each micro-batch, of an embedding mostly zeros and once more for
the head that shares the weight, and then adds them up. On a CPU the memory for that costs more time than the sums.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from tinychat.runtime.process import LARGE

ROUNDING = 1 << 24  # bytes


class Scratch:
    """Lends memory. What is not given back is freed as any other tensor is, and never lent again."""

    def __init__(self) -> None:
        self._free: list[torch.UntypedStorage] = []

    def take(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor of any content, contiguous, without gradient."""
        size = math.prod(shape) * dtype.itemsize
        if device.type != "cpu" or size < LARGE:
            return torch.empty(shape, dtype=dtype, device=device)
        fitting = [storage for storage in self._free if storage.nbytes() >= size]
        if fitting:
            storage = min(fitting, key=lambda storage: storage.nbytes())
            self._free.remove(storage)
        else:
            if self._free:  # too small: it goes, so that there are never more than were once lent at a time
                self._free.remove(max(self._free, key=lambda storage: storage.nbytes()))
            storage = torch.UntypedStorage(-(-size // ROUNDING) * ROUNDING)
        return torch.empty(0, dtype=dtype).set_(storage, 0, shape)  # type: ignore[call-overload]

    def give(self, tensor: Tensor) -> None:
        """Take back what was lent; nothing may read it any more."""
        if tensor.device.type == "cpu" and tensor.numel() * tensor.dtype.itemsize >= LARGE:
            self._free.append(tensor.untyped_storage())

    def clear(self) -> None:
        """Free what is not lent."""
        self._free.clear()


scratch = Scratch()


_ACTIVE = WeakTensorKeyDictionary()  # weight -> its copies by type


class GradientsInPlace:
    """For a model on a CPU that one process trains: no hook waits for these gradients, as those of DDP and DeepSpeed
    would."""

    def __init__(self, model: nn.Module):
        self._embeddings = [module for module in model.modules() if _fits(module)]
        self._weights = list({id(module.weight): module.weight for module in self._embeddings}.values())

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Inside, forward and backward passes add to `.grad` of these weights; autograd is told of no gradient."""
        for weight in self._weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            _ACTIVE[weight] = {}
        for module in self._embeddings:
            module.forward = _Embedding(module)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for module in self._embeddings:
                del module.forward  # the class's own again
            for weight in self._weights:
                del _ACTIVE[weight]

    def zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """optimizer.zero_grad(), but the memory of these gradients stays."""
        kept = [weight.grad for weight in self._weights]
        optimizer.zero_grad(set_to_none=True)
        for weight, grad in zip(self._weights, kept, strict=True):
            weight.grad = None if grad is None else grad.zero_()

    def release(self) -> None:
        """Free the memory of these gradients, which are 0 between steps; the next step takes it anew."""
        for weight in self._weights:
            weight.grad = None


def adds_in_place(weight: Tensor) -> bool:
    """Whether whoever computes a gradient of this weight has to add it to `.grad`."""
    return weight in _ACTIVE


def cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight in another type; the same copy until GradientsInPlace.active ends, within which it does not change."""
    if weight.dtype == dtype or weight not in _ACTIVE:
        return weight.detach().to(dtype)
    copies = _ACTIVE[weight]
    if dtype not in copies:
        copies[dtype] = weight.detach().to(dtype)
    return copies[dtype]


def _fits(module: Any) -> bool:
    plain = type(module) is nn.Embedding and module.max_norm is None
    if not plain or module.scale_grad_by_freq or module.sparse or not module.weight.requires_grad:
        return False
    weight = module.weight
    return weight.device.type == "cpu" and weight.numel() * weight.element_size() >= LARGE


class _Embedding:
    """The forward pass of an nn.Embedding."""

    def __init__(self, module: nn.Embedding):
        self._module = module

    def __call__(self, ids: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return F.embedding(ids, self._module.weight, self._module.padding_idx)
        return _Rows.apply(self._module.weight, ids, self._module.padding_idx)


class _Rows(torch.autograd.Function):
    """(V, D), (...) -> (..., D)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, padding: int | None) -> Tensor:
        ctx.weight, ctx.padding = weight, padding
        ctx.save_for_backward(ids)
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:  # type: ignore[override]
        (ids,) = ctx.saved_tensors
        ids, grad = ids.flatten(), grad.flatten(0, -2)
        if ctx.padding is not None:
            kept = ids != ctx.padding
            ids, grad = ids[kept], grad[kept]
        rows, places = ids.unique(return_inverse=True)
        sums = torch.ops.aten.embedding_dense_backward(grad, places, len(rows), -1, False)
        ctx.weight.grad.index_add_(0, rows, sums.to(ctx.weight.dtype))
        return None, None, None
