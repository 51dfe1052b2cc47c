"""Keys and values of a left-padded batch in buffers allocated once.

transformers' own growing cache copies all of it at every token (torch.cat in each layer), its static one makes every
step attend over the whole capacity.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.cache_utils import Cache, CacheLayerMixin

# What models and generate() call their keys and values: from transformers 5.24 on the first, which before was unknown.
# The old name is a warning a reply there, and attention modules are called with the new one alone.
_NAMES = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
CACHE = "cache" if "cache" in _NAMES else "past_key_values"


def slots_read(length: int) -> int:
    """How many slots a query reads that sees `length` of them: up to an eighth more, or 15, so that few sizes occur.
    For each new one oneDNN compiles its products in 16 bits, which takes as long as half a step of a small model, and
    keeps the code, 0.7 MB."""
    step = 1 << max(4, (length - 1).bit_length() - 4)
    return -(-length // step) * step


class BatchCache(Cache):
    """The cache of one batch, for transformers models and for tinychat.models.kernels.lean alike.

    Slots are columns of the left-padded batch: slot s holds position s - padding[b] of row b.
    """

    def __init__(self, n_layers: int, padding: Tensor, capacity: int, context: int, keys_last: bool = False):
        """padding: (B,) int64, padding slots at the left of each row. capacity: slots in all; memory of slots never
        written is not touched on a CPU. context: positions the model has. keys_last: lay the keys out as (B, H, D, S),
        which a CPU multiplies with single queries up to three times as fast; their shape stays (B, H, S, D)."""
        super().__init__(layers=[_Layer(slots_read(capacity), keys_last) for _ in range(n_layers)])
        self.padding = padding
        self.padded = bool((padding > 0).any())
        self.capacity = capacity
        self._context = context
        self._attended = torch.arange(capacity, device=padding.device) >= padding[:, None]

    def positions(self, tokens: int) -> Tensor:
        """(B, tokens): positions of the next tokens, 0 in the padding. A row that has ended and is still fed stays
        inside the model's context."""
        length = self.get_seq_length()
        slots = torch.arange(length, length + tokens, device=self.padding.device)
        return (slots - self.padding[:, None]).clamp_(0, self._context - 1)

    def attended(self, tokens: int) -> Tensor:
        """(B, length + tokens) bool: slots that are no padding, once the next tokens are there."""
        return self._attended[:, : self.get_seq_length() + tokens]

    def step_bias(self, dtype: torch.dtype) -> Tensor:
        """(B, 1, S) or (1, 1, S), to be added to the scores of one next token a row with what `append` gives: -inf for
        padding and for slots that are not filled yet, else 0."""
        length, device = self.get_seq_length() + 1, self.padding.device
        seen = self.attended(1) if self.padded else self._attended[:1, :length].new_ones(1, length)
        bias = torch.full((len(seen), 1, slots_read(length)), float("-inf"), dtype=dtype, device=device)
        bias[:, 0, :length].masked_fill_(seen, 0.0)
        return bias

    def keep_rows(self, rows: Tensor) -> None:
        """Go on with these rows alone; a row that is named several times becomes as many."""
        self.padding, self._attended = self.padding[rows], self._attended[rows]
        self.padded = bool((self.padding > 0).any())
        self.batch_select_indices(rows)


class _Layer(CacheLayerMixin):
    """(B, H, capacity, D) keys and as many values; what `update` and `append` return are views."""

    is_sliding = False  # sliding windows are left to the mask that the model makes

    def __init__(self, capacity: int, keys_last: bool):
        super().__init__()
        self._capacity, self._keys_last, self._length = capacity, keys_last, 0
        self._read = 0  # slots that append shows: beyond the filled ones they hold zeros

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = self._buffer(key_states, self._keys_last), self._buffer(value_states, False)
        self._flat_keys, self._flat_values = self.keys.transpose(2, 3).flatten(0, 1), self.values.flatten(0, 1)
        self.is_initialized = True

    def _buffer(self, states: Tensor, last: bool) -> Tensor:
        rows, heads, _, width = states.shape
        if last:
            return states.new_empty(rows, heads, width, self._capacity).transpose(2, 3)
        return states.new_empty(rows, heads, self._capacity, width)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """transformers' way: (B, H, T, D) keys and values of the next tokens; all of them up to now, (B, H, S, D)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin, end = self._length, self._length + key_states.shape[2]
        self.keys[:, :, begin:end] = key_states
        self.values[:, :, begin:end] = value_states
        self._length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The same for one token, with fewer operators: key and value (B, H, D); the keys of slots_read slots as
        (B · H, D, S), their values as (B · H, S, D)."""
        self.keys.select(2, self._length).copy_(key)
        self.values.select(2, self._length).copy_(value)
        self._length += 1
        if self._length > self._read:
            self._read = slots_read(self._length)
            for part in (self.keys, self.values):  # whatever stands there times 0 is to be 0
                part[:, :, self._length : self._read] = 0
        return self._flat_keys.narrow(2, 0, self._read), self._flat_values.narrow(1, 0, self._read)

    def batch_select_indices(self, indices: Tensor) -> None:
        keys, values = self.keys[indices, :, : self._length], self.values[indices, :, : self._length]
        self.lazy_initialization(keys, values)
        self._read = 0
        self.keys[:, :, : self._length], self.values[:, :, : self._length] = keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._length + query_length, 0

    def get_seq_length(self) -> int:
        return self._length

    def get_max_length(self) -> int:
        return self._capacity
