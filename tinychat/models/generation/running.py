"""A batch that replies join and leave at any step: continuous batching (Yu et al. 2022, Orca), for a server.

The arithmetic and the choice of tokens are those of tinychat.models.generation.decode. Its batches are padded on the
left and end together; here every row keeps its own length, so that a new one takes the place of one that has ended
without anything being moved but its own keys and values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from tinychat.models.generation.decode import WHOLE_DISTRIBUTION, DecodeOptions, Filter, choose, left_padded, prepare
from tinychat.models.kernels.kv_cache import BatchCache, slots_read
from tinychat.models.vocabulary import WHOLE, Vocabulary

FEW = 8  # rows for which memory is taken at first


@dataclass(eq=False)
class Row:
    """One reply."""

    prompt: list[int]
    draw: Callable[[], float]  # uniform in [0, 1): the chance of the next token, this reply's own
    temperature: float = 1.0  # 0: always the likeliest token
    filter: Filter = WHOLE_DISTRIBUTION  # its `stopped` is not looked at
    alternatives: int | None = None  # of each token its log-probability, and so many of the likeliest; None: neither
    response: list[int] = field(default_factory=list)  # grows by a token a step


@dataclass(frozen=True)
class Drawn:
    """The next token of a row."""

    row: Row
    token: int
    logprob: float | None = None  # in nats, of the model's own distribution, whatever the row's temperature and filter
    likeliest: tuple[tuple[int, float], ...] = ()  # (token, log-probability), the likeliest first


class RunningBatch:
    """Rows of one model. Not for several threads at once.

    `join` computes prompts and gives their first tokens; each `step` gives every row its next one; whoever reads them
    says which rows `leave`. A row must leave before its prompt and response are longer than the model's context.

    A row's tokens depend on its prompt, its options and its draws, not on who shares the batch, but for what rounding
    does where a draw falls on an edge.
    """

    def __init__(
        self, model: Any, pad_id: int, vocabulary: Vocabulary = WHOLE, dtype: torch.dtype | None = None
    ) -> None:
        """model, pad_id and dtype as for decode.decode. The weights are read here; later changes may not be seen."""
        self.rows: list[Row] = []
        self._forward = prepare(model, dtype)
        self.context = int(self._forward.config.max_position_embeddings)
        self._pad_id = pad_id if pad_id < self._forward.config.vocab_size else 0
        self._vocabulary = vocabulary
        self._cache: RunningCache | None = None

    def join(self, rows: Sequence[Row]) -> list[Drawn]:
        """Their first tokens. The prompts are computed side by side, the same one once. Each must leave room for a
        token in the context."""
        prompts = list({tuple(row.prompt): row.prompt for row in rows}.values())
        place = {tuple(prompt): index for index, prompt in enumerate(prompts)}
        of = [place[tuple(row.prompt)] for row in rows]
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        longest = int(lengths.max())
        device = self._forward.device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            computed = self._forward.new_cache((longest - lengths).to(device), longest)
            logits = self._forward(left_padded(prompts, longest, self._pad_id).to(device), computed)
            self._cache = self._cache or RunningCache(self.context)
            self._cache.add(computed, of, [len(prompt) for prompt in prompts])
            self.rows += rows
            return self._draw(list(rows), logits[torch.tensor(of, device=device)])

    def step(self) -> list[Drawn]:
        """The next token of every row."""
        if not self.rows:
            return []
        assert self._cache is not None
        device = self._forward.device
        last = torch.tensor([[row.response[-1]] for row in self.rows], device=device)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            # the one layout or the other: both have what a forward pass asks of its cache
            logits = self._forward(last, self._cache)  # type: ignore[arg-type]
            self._cache.grow()
            return self._draw(self.rows, logits)

    def leave(self, rows: Sequence[Row]) -> None:
        """Their places are free."""
        gone = set(map(id, rows))
        while gone and self.rows:
            last = len(self.rows) - 1
            index = next((index for index, row in enumerate(self.rows) if id(row) in gone), None)
            if index is None:
                return
            gone.discard(id(self.rows[index]))
            assert self._cache is not None
            self._cache.move_last_to(index)
            self.rows[index] = self.rows[last]
            self.rows.pop()
        if not self.rows:
            self._cache = None  # its memory was for the longest of those that were here

    def _draw(self, rows: list[Row], logits: Tensor) -> list[Drawn]:
        """One token for each row from its logits (B, V); rows that want the same of them together."""
        alike: dict[tuple[float, Filter], list[int]] = {}
        for index, row in enumerate(rows):
            alike.setdefault((row.temperature, row.filter), []).append(index)
        tokens = [0] * len(rows)
        for (temperature, wanted), places in alike.items():
            own = logits if len(places) == len(rows) else logits[places]
            options = DecodeOptions(1, (), temperature, vocabulary=self._vocabulary, filter=wanted)
            draws = None
            if temperature:
                chance = [rows[place].draw() for place in places]
                draws = torch.tensor(chance, dtype=torch.float64, device=logits.device)
            seen = self._seen([rows[place] for place in places], own) if wanted.repetition_penalty != 1 else None
            for place, token in zip(places, choose(own, draws, options, seen)[0].tolist(), strict=True):
                tokens[place] = token
        drawn = [Drawn(row, token) for row, token in zip(rows, tokens, strict=True)]
        self._tell_probabilities(drawn, logits)
        for row, token in zip(rows, tokens, strict=True):
            row.response.append(token)
        return drawn

    def _seen(self, rows: list[Row], logits: Tensor) -> Tensor:
        """(B, V) bool: the token is in the row's prompt or response."""
        seen = torch.zeros_like(logits, dtype=torch.bool)
        for index, row in enumerate(rows):
            ids = torch.tensor([*row.prompt, *row.response], device=logits.device)
            seen[index, ids[ids < logits.shape[1]]] = True
        return seen

    def _tell_probabilities(self, drawn: list[Drawn], logits: Tensor) -> None:
        """Put them where they are wanted, in place."""
        places = [index for index, one in enumerate(drawn) if one.row.alternatives is not None]
        if not places:
            return
        logprobs = self._vocabulary.of_logits(logits[places].float()).log_softmax(-1)
        most = min(max(drawn[place].row.alternatives or 0 for place in places), logprobs.shape[1])
        values, ids = (part.tolist() for part in logprobs.topk(most, -1))
        for index, place in enumerate(places):
            one = drawn[place]
            wanted = one.row.alternatives or 0
            likeliest = tuple(zip(ids[index][:wanted], values[index][:wanted], strict=True))
            drawn[place] = dataclasses.replace(one, logprob=float(logprobs[index, one.token]), likeliest=likeliest)


class RunningCache(Cache):
    """Keys and values of rows of different lengths, each from slot 0 on, for the forward passes that
    tinychat.models.kernels.kv_cache.BatchCache serves."""

    padded = True  # rows end at different slots
    layers: list[Any]

    def __init__(self, context: int):
        """context: positions the model has."""
        super().__init__(layers=[])
        self._context = context
        self._lengths: list[int] = []  # tokens of each row
        self._filled = torch.empty(0, dtype=torch.int64)  # the same on the device
        self.places = self._filled, self._filled  # (B,), (B,): each row, and the slot of its next token

    @property
    def capacity(self) -> int:
        """Positions that may occur."""
        return self._context

    def add(self, computed: BatchCache, of: list[int], lengths: list[int]) -> None:
        """New rows behind the others: row i is of[i] of `computed`, whose rows end with their `lengths` tokens."""
        if not self.layers:
            self.layers = [_Layer(self) for _ in computed.layers]
        first, end = len(self._lengths), computed.get_seq_length()
        slots = max([*self._lengths, *lengths])
        for mine, theirs in zip(self.layers, computed.layers, strict=True):
            mine.make_room(first + len(of), slots + 1, theirs.keys, theirs.values)
            for row, index in enumerate(of, first):
                length = lengths[index]
                mine.keys[row, :, :length] = theirs.keys[index, :, end - length : end]
                mine.values[row, :, :length] = theirs.values[index, :, end - length : end]
        self._lengths += [lengths[index] for index in of]
        self._told(computed.padding.device)

    def grow(self) -> None:
        """Every row has got a token more."""
        self._lengths = [length + 1 for length in self._lengths]
        self._filled += 1  # in place: the second of the places too

    def move_last_to(self, row: int) -> None:
        """The last row takes the place of another, or of itself, and is the last no more."""
        last, length = len(self._lengths) - 1, self._lengths[-1]
        if row != last:
            for layer in self.layers:
                layer.keys[row, :, :length] = layer.keys[last, :, :length]
                layer.values[row, :, :length] = layer.values[last, :, :length]
        self._lengths[row] = length
        self._lengths.pop()
        self._told(self._filled.device)

    def _told(self, device: torch.device) -> None:
        self._filled = torch.tensor(self._lengths, dtype=torch.int64, device=device)
        self.places = torch.arange(len(self._lengths), device=device), self._filled

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Of the longest row."""
        return max(self._lengths, default=0)

    def positions(self, tokens: int) -> Tensor:
        """(B, 1) of the next token of each row."""
        return self._filled[:, None].clamp(max=self._context - 1)

    def attended(self, tokens: int) -> Tensor:
        """(B, S) bool: slots that are filled, once the next token is there."""
        slots = torch.arange(self.get_seq_length() + tokens, device=self._filled.device)
        return slots <= self._filled[:, None]

    def step_bias(self, dtype: torch.dtype) -> Tensor:
        """(B, 1, S) for what `append` gives, as BatchCache.step_bias."""
        slots = torch.arange(slots_read(self.get_seq_length() + 1), device=self._filled.device)
        bias = torch.zeros(len(self._lengths), 1, len(slots), dtype=dtype, device=slots.device)
        return bias.masked_fill_((slots > self._filled[:, None])[:, None], float("-inf"))


class _Layer(CacheLayerMixin):
    """(R, H, S, D) keys and values, of which the first rows are in use. What is in no row's tokens is finite: it is
    multiplied with 0."""

    is_sliding = False
    is_initialized: bool
    keys: Any
    values: Any

    def __init__(self, cache: RunningCache):
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise RuntimeError("rows come with their prompts")  # never called: `add` comes first

    def make_room(self, rows: int, slots: int, keys: Tensor, values: Tensor) -> None:
        """For so many rows and slots, of the kind of these keys and values (n, H, T, D), twice what there was at
        least."""
        has_rows, has_slots = (self.keys.shape[0], self.keys.shape[2]) if self.is_initialized else (0, 0)
        if rows <= has_rows and slots <= has_slots:
            return
        rows = has_rows if rows <= has_rows else max(rows, 2 * has_rows, FEW)
        most = slots_read(self._cache.capacity)
        slots = has_slots if slots <= has_slots else min(max(slots_read(slots), 2 * has_slots), most)
        old = (self.keys, self.values) if self.is_initialized else (None, None)
        keys_last = keys.stride(3) != 1  # as kv_cache lays them out on a CPU
        heads, width = keys.shape[1], keys.shape[3]
        self.keys = (
            keys.new_zeros(rows, heads, width, slots).transpose(2, 3)
            if keys_last
            else keys.new_zeros(rows, heads, slots, width)
        )
        self.values = values.new_zeros(rows, heads, slots, values.shape[3])
        self.is_initialized = True
        for new, before in zip((self.keys, self.values), old, strict=True):
            if before is not None:
                new[:has_rows, :, :has_slots] = before
        self._flat_keys, self._flat_values = self.keys.transpose(2, 3).flatten(0, 1), self.values.flatten(0, 1)

    def _put(self, key: Tensor, value: Tensor) -> None:
        """key and value (B, H, D) of the next token of each row."""
        rows, slots = self._cache.places
        need = self._cache.get_seq_length() + 1
        if need > self.keys.shape[2] or slots_read(need) > self.keys.shape[2]:
            self.make_room(len(key), slots_read(need), self.keys, self.values)
        self.keys[rows, :, slots] = key
        self.values[rows, :, slots] = value

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """transformers' way: (B, H, 1, D) of the next tokens; all of them up to the longest row's, (B, H, S, D)."""
        self._put(key_states[:, :, 0], value_states[:, :, 0])
        rows, end = len(key_states), self._cache.get_seq_length() + 1
        return self.keys[:rows, :, :end], self.values[:rows, :, :end]

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """As kv_cache's: keys (B · H, D, S), values (B · H, S, D) of slots_read slots."""
        self._put(key, value)
        many, slots = len(key) * key.shape[1], slots_read(self._cache.get_seq_length() + 1)
        return self._flat_keys[:many].narrow(2, 0, slots), self._flat_values[:many].narrow(1, 0, slots)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self._cache.get_seq_length()

    def get_max_length(self) -> int:
        return self._cache.capacity
