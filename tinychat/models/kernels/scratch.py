"""Large buffers of the CPU, kept from one use to the next.

The C library gives a large block back to the system as soon as it is freed, and the system clears every page of the
next one: for logits of 50 MB that takes longer than to write them. Of a GPU torch keeps the memory itself.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tinychat.runtime.malloc import LARGE

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


scratch = Scratch()
