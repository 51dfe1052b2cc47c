"""Batched generation for evaluation and for rollouts: the full distribution, log-probabilities recorded on the way.

The log-probability of a token is that of the distribution it was drawn from, which RL needs. Without a Filter, which
leaves tokens out or reweighs them and is for programs alone, it is the one that tinychat.models.logprobs.token_nll
computes at the same temperature.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

from tinychat.models.kernels.attention import name_of
from tinychat.models.kernels.head_loss import tempered
from tinychat.models.kernels.kv_cache import CACHE, BatchCache
from tinychat.models.kernels.lean import LeanModel, Unsupported
from tinychat.models.vocabulary import WHOLE, Vocabulary
from tinychat.runtime.run_files import tell_once

COMPACT_BELOW = 0.75  # rows still running, as a share of those in the batch, at which the others are dropped
BLOCK = 64  # tokens whose probabilities are summed before one of them is searched


@dataclass(frozen=True)
class Filter:
    """What makes the distribution another one than the model's, in transformers' order: the penalty, the temperature,
    top-k, top-p."""

    top_k: int = 0  # only so many of the likeliest tokens; 0: all
    top_p: float = 1.0  # only the likeliest tokens that together have this probability; 1: all
    repetition_penalty: float = 1.0  # divides logits above 0 of tokens already there, and multiplies those below
    # Whether a reply ends with the last of its tokens so far, beside end_ids.
    stopped: Callable[[list[int]], bool] | None = None

    def __post_init__(self) -> None:
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k}: must be at least 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: must be above 0 and at most 1")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(f"repetition_penalty={self.repetition_penalty}: must be above 0")

    def likeliest(self, logits: Tensor) -> Tensor:
        """(B, V) tempered logits, -inf where a token is left out."""
        unused: Any = None  # the warpers look at no tokens
        if self.top_k:
            logits = TopKLogitsWarper(self.top_k)(unused, logits)
        if self.top_p < 1:
            logits = TopPLogitsWarper(self.top_p)(unused, logits)
        return logits

    def penalised(self, logits: Tensor, seen: Tensor) -> Tensor:
        """(B, V) logits with the penalty where `seen` (B, >= V) is true (Keskar et al. 2019, section 4.1)."""
        less = torch.where(logits < 0, logits * self.repetition_penalty, logits / self.repetition_penalty)
        return torch.where(seen[:, : logits.shape[1]], less, logits)


WHOLE_DISTRIBUTION = Filter()


@dataclass(frozen=True)
class DecodeOptions:
    max_new_tokens: int
    end_ids: tuple[int, ...]  # a row ends with the first of these; (): at max_new_tokens
    temperature: float = 1.0  # divides the logits; 0: always the likeliest token
    seed: int | None = None  # of the draws; None: others each time
    vocabulary: Vocabulary = WHOLE  # only its tokens are drawn, and their probabilities sum to 1
    group: int = 1  # replies to each prompt, which is computed once for them
    first: int = 0  # place of the first reply in a longer list decoded in parts: reply i has the draws of first + i
    filter: Filter = WHOLE_DISTRIBUTION

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens}: must be at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}: must be 0 (greedy) or more")
        if self.group < 1:
            raise ValueError(f"group={self.group}: must be at least 1")
        if self.first < 0:
            raise ValueError(f"first={self.first}: must be at least 0")


@dataclass(frozen=True)
class Decoded:
    """In the order of the prompts; options.group replies to one stand side by side."""

    responses: list[list[int]]  # up to and with the first end token
    logprobs: list[list[float]]  # of each token of the response, in nats, at the temperature (at 1 when greedy)
    ended: list[bool]  # by an end token; else by max_new_tokens or the model's context


def decode(
    model: Any,
    prompts: list[list[int]],
    options: DecodeOptions,
    pad_id: int,
    batch_size: int,
    dtype: torch.dtype | None = None,
    draws: Tensor | None = None,
    tell: Callable[[int], None] = lambda _: None,
) -> Decoded:
    """Continue each prompt options.group times, batch_size replies at a time (those to prompts of like length
    together), without gradients or dropout.

    model: a transformers causal language model, a PeftModel, or a wrapper with `.module`; its mode is kept. `pad_id`
    fills the left of shorter prompts and may lie beyond the embedding. dtype=torch.bfloat16 takes that type for matrix
    products, as autocast does (weights are copied once a call). draws: (replies, max_new_tokens) float64, uniform in
    [0, 1), in place of those of options.seed. tell: called after each batch with the number of replies so far.

    Every reply has draws of its own: they depend on the seed, its place (from options.first) and max_new_tokens, not
    on batch_size or the other prompts, nor on whether a prompt has a group or is repeated. Batches hold whole groups
    where one fits; else a prompt is computed once for each part of its group. torch's global random state is neither
    read nor changed. A response ends early where the context is full. Raises ValueError for an empty prompt and for
    one that leaves no room for a token.
    """
    forward, group = prepare(model, dtype), options.group
    _check_prompts(prompts, forward.config.max_position_embeddings)
    replies = len(prompts) * group
    draws = _draws(replies, options) if draws is None else draws
    longest_first = sorted(range(replies), key=lambda reply: -len(prompts[reply // group]))
    at_once = batch_size // group * group or batch_size
    decoded = Decoded([[]] * replies, [[]] * replies, [False] * replies)
    for start in range(0, replies, at_once):
        rows = longest_first[start : start + at_once]
        asked, of = torch.tensor([row // group for row in rows]).unique_consecutive(return_inverse=True)
        own = [prompts[index] for index in asked.tolist()]
        # A caller's autocast would cast what is meant to stay fp32; `dtype` says it all.
        with torch.no_grad(), torch.autocast(forward.device.type, enabled=False):
            batch = _decode_batch(forward, own, of, options, pad_id, draws[rows])
        for row, response, logprobs, ended in zip(rows, *batch, strict=True):
            decoded.responses[row], decoded.logprobs[row], decoded.ended[row] = response, logprobs, ended
        tell(min(start + at_once, replies))
    return decoded


class Forward(Protocol):
    """(input_ids (B, T), cache) -> logits (B, V) of the last position."""

    config: Any
    device: torch.device

    def new_cache(self, padding: Tensor, capacity: int) -> BatchCache: ...

    def __call__(self, input_ids: Tensor, cache: BatchCache) -> Tensor: ...


def prepare(model: Any, dtype: torch.dtype | None = None) -> Forward:
    """The lean arithmetic where it knows the model, else the model's own."""
    inner = getattr(model, "module", model)
    device = inner.get_input_embeddings().weight.device
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        try:
            return LeanModel(inner, dtype)
        except Unsupported as why:
            tell_once(
                f"{name_of(inner)}: generation calls its own forward; tinychat's faster arithmetic does not know {why}"
            )
            return _OwnForward(inner, dtype, device)


class _OwnForward:
    """Any transformers model whose cache is one of keys and values."""

    def __init__(self, model: Any, dtype: torch.dtype | None, device: torch.device):
        self.config, self.device, self._model = model.config, device, model
        self._autocast = dtype if dtype in (torch.bfloat16, torch.float16) else None

    def new_cache(self, padding: Tensor, capacity: int) -> BatchCache:
        shape = self.config
        return BatchCache(shape.num_hidden_layers, padding, capacity, shape.max_position_embeddings)

    def __call__(self, input_ids: Tensor, cache: BatchCache) -> Tensor:
        tokens = input_ids.shape[1]
        with (
            _evaluating(self._model),
            torch.autocast(self.device.type, self._autocast, enabled=self._autocast is not None),
        ):
            return self._model(
                input_ids=input_ids,
                attention_mask=cache.attended(tokens).long(),
                position_ids=cache.positions(tokens),
                use_cache=True,
                logits_to_keep=1,
                **{CACHE: cache},
            ).logits[:, -1]


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    was_training = model.training
    if was_training:
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()


def _check_prompts(prompts: list[list[int]], context: int) -> None:
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {index} is empty: a model needs a token to start from")
        if len(prompt) >= context:
            raise ValueError(
                f"prompt {index} has {len(prompt)} tokens, which leaves no room for a response in the model's context "
                f"of {context}: shorten it to {context - 1} or fewer"
            )


def _draws(replies: int, options: DecodeOptions) -> Tensor:
    """(replies, max_new_tokens) uniform in [0, 1); one token takes one of them. Empty when greedy."""
    generator = torch.Generator()
    if options.seed is None:
        generator.seed()
    else:
        generator.manual_seed(options.seed)
    width = options.max_new_tokens if options.temperature else 0
    return torch.rand(options.first + replies, width, generator=generator, dtype=torch.float64)[options.first :]


def chance(seed: int, prompt: int, sample: int) -> np.random.Generator:
    """Of one reply, by the place of its prompt and its own number among those to it."""
    return np.random.Generator(np.random.Philox(key=[seed % 2**64, 0], counter=[0, 0, sample, prompt]))


def own_draws(prompts: int, first: int, options: DecodeOptions, seed: int) -> Tensor:
    """(prompts * options.group, options.max_new_tokens) float64, uniform in [0, 1): draws that depend on the seed, the
    prompt's place (from `first`) and the reply's own among those to it alone, so that a list may be decoded in any
    parts, and each prompt get more replies."""
    width = options.max_new_tokens if options.temperature else 0
    rows = [
        chance(seed, first + prompt, sample).random(width)
        for prompt in range(prompts)
        for sample in range(options.group)
    ]
    return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, width, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------ one batch


def _decode_batch(
    forward: Forward, prompts: list[list[int]], of: Tensor, options: DecodeOptions, pad_id: int, draws: Tensor
) -> tuple[list[list[int]], list[list[float]], list[bool]]:
    """Replies to prompts[of[0]], prompts[of[1]], ..., each prompt computed once. of: (B,); draws: (B, steps)."""
    config, device = forward.config, forward.device
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    room = (config.max_position_embeddings - lengths).clamp(max=options.max_new_tokens)
    longest, steps = int(lengths.max()), int(room.max())
    cache = forward.new_cache((longest - lengths).to(device), longest + steps - 1)
    ends = torch.tensor(options.end_ids, dtype=torch.int64, device=device)
    rows, running = torch.arange(len(of)), torch.ones(len(of), dtype=torch.bool, device=device)
    draws, room = draws.to(device), room[of].to(device)
    logits = forward(left_padded(prompts, longest, pad_id if pad_id < config.vocab_size else 0).to(device), cache)
    if len(of) > len(prompts):
        of = of.to(device)
        logits = logits[of]
        cache.keep_rows(of)
    own = _History(prompts, of, options.filter, logits)
    taken = []  # of each step: rows, tokens, log-probabilities, whether the row was still running
    for step in range(steps):
        chosen, logprobs = choose(logits, draws[:, step] if options.temperature else None, options, own.seen)
        taken.append((rows, chosen, logprobs, running))
        running = running & ~torch.isin(chosen, ends) & (room > step + 1)
        if own.kept:
            running = running & ~own.add(chosen)
        left = int(running.sum())
        if left == 0:
            break
        if left <= COMPACT_BELOW * len(rows):
            kept = running.nonzero()[:, 0]
            cache.keep_rows(kept)
            own.keep_rows(kept)
            rows, chosen, draws, room, running = rows[kept.cpu()], chosen[kept], draws[kept], room[kept], running[kept]
        logits = forward(chosen[:, None], cache)
    responses: list[list[int]] = [[] for _ in of]
    scores: list[list[float]] = [[] for _ in of]
    for parts in taken:
        for row, token, logprob, meant in zip(*(part.tolist() for part in parts), strict=True):
            if meant:
                responses[row].append(token)
                scores[row].append(logprob)
    return responses, scores, [response[-1] in options.end_ids for response in responses]


class _History:
    """What a Filter asks of the tokens of each row so far; nothing where it asks for nothing."""

    def __init__(self, prompts: list[list[int]], of: Tensor, wanted: Filter, logits: Tensor):
        """of: (B,); logits: (B, V) of the first step."""
        self.seen: Tensor | None = None  # (B, V) bool: the token is in prompt or response
        self._stopped = wanted.stopped
        self._responses: list[list[int]] = [[] for _ in range(len(of))]
        if wanted.repetition_penalty != 1:
            self.seen = torch.zeros_like(logits, dtype=torch.bool)
            for row, index in enumerate(of.tolist()):
                ids = torch.tensor(prompts[index], device=logits.device)
                self.seen[row, ids[ids < logits.shape[1]]] = True
        self.kept = self.seen is not None or self._stopped is not None

    def add(self, chosen: Tensor) -> Tensor:
        """The rows' next tokens (B,) -> which of them stop with these, (B,) bool."""
        if self.seen is not None:
            self.seen.scatter_(1, chosen[:, None], True)
        if self._stopped is None:
            return torch.zeros_like(chosen, dtype=torch.bool)
        for response, token in zip(self._responses, chosen.tolist(), strict=True):
            response.append(token)
        return torch.tensor([self._stopped(response) for response in self._responses], device=chosen.device)

    def keep_rows(self, rows: Tensor) -> None:
        if self.seen is not None:
            self.seen = self.seen[rows]
        self._responses = [self._responses[row] for row in rows.tolist()] if self._stopped else []


def left_padded(prompts: list[list[int]], longest: int, pad_id: int) -> Tensor:
    return torch.tensor([[pad_id] * (longest - len(prompt)) + prompt for prompt in prompts])


def choose(
    logits: Tensor, draws: Tensor | None, options: DecodeOptions, seen: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The next tokens (B,) int64 and their log-probabilities (B,) fp32 from logits (B, V).

    draws: (B,) float64, uniform in [0, 1); None: the likeliest token. seen: (B, V) bool, the tokens that a repetition
    penalty is for.
    """
    logits = options.vocabulary.of_logits(logits.float())
    if seen is not None:
        logits = options.filter.penalised(logits, seen)
    if draws is None:
        chosen = logits.argmax(-1)
        return chosen, logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(-1)
    probabilities = torch.softmax(options.filter.likeliest(tempered(logits, options.temperature)), -1)
    chosen = sample(probabilities, draws)
    return chosen, probabilities.gather(1, chosen[:, None])[:, 0].log()


def sample(probabilities: Tensor, draws: Tensor) -> Tensor:
    """Tokens (B,) at which the cumulative probability (B, V) first exceeds the draw (B,): the inverse of the
    distribution function.

    Found in two steps, the block of BLOCK tokens and then the token in it. Only the sums of blocks are accumulated, in
    float64, so that a long tail of unlikely tokens is not lost to rounding.
    """
    size = probabilities.shape[1]
    whole = size // BLOCK * BLOCK
    sums = probabilities[:, :whole].unflatten(1, (-1, BLOCK)).sum(-1)
    if whole < size:
        sums = torch.cat([sums, probabilities[:, whole:].sum(-1, keepdim=True)], 1)
    block, rest = _search(sums, draws[:, None])
    inside = block * BLOCK + torch.arange(BLOCK, device=block.device)
    own = probabilities.gather(1, inside.clamp(max=size - 1)).masked_fill_(inside >= size, 0)
    return (block * BLOCK + _search(own, rest)[0])[:, 0]


def _search(weights: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """(index (B, 1) where the cumulative share of the weights (B, N) first exceeds the draw (B, 1), what is left of the
    draw as a new uniform number within that index). A weight of 0 is never found."""
    edges = weights.double().cumsum(-1)
    target = draws * edges[:, -1:]
    index = torch.searchsorted(edges, target, right=True)
    width = weights.gather(1, index).double()
    rest = (target - edges.gather(1, index) + width) / width
    return index, rest.clamp_(0, 1 - 2**-53)
