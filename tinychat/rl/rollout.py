"""A rollout: replies that the policy samples for a step's prompts, and what is measured on them before learning.

Every rank samples and measures its share of the replies, then all hold all of them: which replies share an update then
depends on the seed and the step alone, not on the number of ranks.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinychat.data.preferences.prompts import PromptBatch, PromptRow
from tinychat.models.generation.decode import Decoded, DecodeOptions, decode
from tinychat.models.logprobs import IGNORED, OutputHead
from tinychat.rl.kl import kl_estimate, logit_measures
from tinychat.runtime.run_files import write_text_atomic
from tinychat.runtime.world import World

MEASURES = ("logprobs", "ref_logprobs", "entropy", "full_kl")  # of each response token
ALONE = ("logprobs", "entropy")  # those of them that there are without a reference
VALUES = "values"  # and this, where there is a value function


@torch.no_grad()
def token_measures(
    hidden: Tensor,
    head: OutputHead,
    ref_hidden: Tensor | None,
    ref_head: OutputHead | None,
    targets: Tensor,
    temperature: float = 1.0,
    full_kl: bool = True,
    as_reference: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> dict[str, Tensor]:
    """MEASURES of each target: its log-probability under both, the policy's entropy before it was chosen, and the exact
    KL(policy || reference), 0 unless `full_kl` asks for it.

    The log-probabilities are those that an update computes, bit by bit where it works on as many tokens at a time. The
    logits of `tokens_at_once` tokens live at a time, and only where there is a target: no (B, T, V) tensor exists.

    Args:
        hidden, ref_hidden: (B, T, D), (B, T, D') last hidden states, from which the heads make logits; None for both
            of the reference: what is ALONE is measured.
        targets: (B, T), IGNORED where nothing is asked.
        temperature: divides both logits.
        as_reference: entered for each call of ref_head, which may be the policy's own without its adapter.

    Returns:
        (B, T) fp32 each, in nats, without gradient; 0 where the target is IGNORED.
    """
    kept = targets != IGNORED
    own, wanted = hidden[kept], targets[kept]
    reference = None if ref_hidden is None else ref_hidden[kept]
    names = ALONE if reference is None else MEASURES
    found = {name: torch.zeros(len(wanted), device=hidden.device) for name in names}
    size = min(head.tokens_at_once for head in (head, ref_head) if head is not None)
    for start in range(0, len(wanted), size):
        part = slice(start, start + size)
        logits, ref_logits = head.logits(own[part]), None
        if reference is not None and ref_head is not None:
            with as_reference():
                ref_logits = ref_head.logits(reference[part])
        for name, values in logit_measures(logits, wanted[part], temperature, ref_logits, full_kl).items():
            found[name][part] = values
    return {name: torch.zeros(targets.shape, device=x.device).masked_scatter(kept, x) for name, x in found.items()}


WIDTH_MULTIPLE = 8  # rows are padded to a multiple of it


@dataclass
class Rollout:
    """N replies, the same on every rank, in the order of the step's prompts; several to one stand side by side."""

    rows: list[PromptRow]
    prompts: list[list[int]]
    responses: list[list[int]]  # cut after the first end token
    sampled: list[list[float]]  # log-probabilities recorded while sampling
    ended: list[bool]  # by an end token
    rewards: Tensor = field(default_factory=lambda: torch.zeros(0))  # (N,) fp32, without penalties
    known: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))  # (N,) whether no part is missing
    parts: dict[str, list[float]] = field(default_factory=dict)  # what each part of the reward says, before its weight
    scores: Tensor = field(default_factory=lambda: torch.zeros(0))  # (N,) fp32: the rewards, penalties included
    group: int = 1  # so many to each prompt

    def __len__(self) -> int:
        return len(self.responses)

    def replace(self, places: Sequence[int], other: Rollout, taken: Sequence[int]) -> None:
        """Put replies of another rollout, with their rewards, into places of this one."""
        for place, index in zip(places, taken, strict=True):
            for name in ("rows", "prompts", "responses", "sampled", "ended"):
                getattr(self, name)[place] = getattr(other, name)[index]
            self.rewards[place], self.known[place] = other.rewards[index], other.known[index]
            for name, values in self.parts.items():
                values[place] = other.parts[name][index]

    @property
    def sequences(self) -> list[list[int]]:
        return [prompt + response for prompt, response in zip(self.prompts, self.responses, strict=True)]

    @property
    def n_tokens(self) -> int:
        """Response tokens."""
        return sum(map(len, self.responses))


@dataclass
class Experience:
    """A rollout as tensors on the CPU: N rows of prompt and response, padded on the right to one width T + 1.

    targets[n, t] follows input_ids[n, t]; mask is true where the target belongs to the response, so that there
    logprobs[n, t] is its log-probability and values[n, t], where there is a value function, the value before it was
    chosen. All (N, T).
    """

    input_ids: Tensor  # int64
    targets: Tensor  # int64, IGNORED outside the response
    mask: Tensor  # bool
    # MEASURES, VALUES where there are any, and what is computed from them: fp32, 0 outside the response. What is one
    # number a reply stands at each of its tokens.
    fields: dict[str, Tensor] = field(default_factory=dict)
    group: int = 1  # so many rows, side by side, have one prompt

    @property
    def compared(self) -> bool:
        """Whether a reference has measured it."""
        return "ref_logprobs" in self.fields

    def per_token(self, numbers: Sequence[list[float]]) -> Tensor:
        """(N, T) of a number for each response token, 0 elsewhere."""
        flat = torch.tensor([number for row in numbers for number in row])
        return torch.zeros(self.mask.shape).masked_scatter(self.mask, flat)

    def kl(self, estimator: str = "k1") -> Tensor:
        """KL(policy || reference) of each response token as tinychat.rl.kl.kl_estimate has it, 0 elsewhere."""
        return kl_estimate(self.fields["logprobs"], self.fields["ref_logprobs"], estimator) * self.mask

    def rows(self, indices: np.ndarray) -> dict[str, Tensor]:
        """Some rows, as wide as the longest of them needs; every field. `group` (n,) numbers prompts, where several
        rows have one."""
        chosen = torch.as_tensor(indices)
        width = used_width(self.targets[chosen])
        parts = {"input_ids": self.input_ids, "targets": self.targets, "mask": self.mask, **self.fields}
        found = {name: part[chosen, :width] for name, part in parts.items()}
        return found if self.group == 1 else found | {"group": chosen // self.group}


def used_width(targets: Tensor) -> int:
    """Columns up to the last target, rounded up to a multiple of WIDTH_MULTIPLE (at most all)."""
    used = (targets != IGNORED).any(0).nonzero()
    last = int(used[-1]) + 1 if len(used) else 1
    return min(targets.shape[1], -(-last // WIDTH_MULTIPLE) * WIDTH_MULTIPLE)


def sample_replies(
    model: Any, batch: PromptBatch, options: DecodeOptions, pad_id: int, batch_size: int, world: World, dtype: Any
) -> Rollout:
    """Let the policy reply options.group times to all prompts of a global batch, each rank to its share, as `decode`
    does it.

    The draws belong to a reply's place in the global batch of replies, of which there are a multiple of the ranks.
    model: with whole weights on every rank.
    """
    group = options.group
    share = len(batch.ids) * group // world.size
    together = math.gcd(share, group)  # of a group that ranks share, each computes the prompt for its own part
    first = world.rank * share
    ids = [prompt for prompt in batch.ids for _ in range(group // together)]
    own = ids[first // together : (first + share) // together]
    done = decode(model, own, replace(options, group=together, first=first), pad_id, batch_size, dtype)
    rows = [row for row in batch.rows for _ in range(group)]
    prompts = [prompt for prompt in batch.ids for _ in range(group)]
    return Rollout(rows, prompts, *_of_all_ranks(done, options.max_new_tokens, world), group=group)


def _of_all_ranks(done: Decoded, width: int, world: World) -> tuple[list[list[int]], list[list[float]], list[bool]]:
    """Responses of up to `width` tokens, their log-probabilities and whether they ended, of every rank. As tensors:
    text of so many numbers would take longer than the network."""
    if world.size == 1:
        return done.responses, done.logprobs, done.ended
    lengths = [len(response) for response in done.responses]
    ids = torch.zeros(len(lengths), 2 + width, dtype=torch.int64)
    ids[:, 0], ids[:, 1] = torch.tensor(lengths), torch.tensor(done.ended)
    logprobs = torch.zeros(len(lengths), width)  # in fp32, as they were recorded
    for row, length in enumerate(lengths):
        ids[row, 2 : 2 + length] = torch.tensor(done.responses[row])
        logprobs[row, :length] = torch.tensor(done.logprobs[row])
    found = world.gather(ids.to(world.device)).tolist()
    scores = world.gather(logprobs.to(world.device)).tolist()
    responses = [row[2 : 2 + row[0]] for row in found]
    return responses, [own[: row[0]] for own, row in zip(scores, found, strict=True)], [bool(row[1]) for row in found]


def to_experience(
    prompts: Sequence[list[int]], responses: Sequence[list[int]], pad_id: int, group: int = 1
) -> Experience:
    """Tokens as rows. Prompts are not empty; `group` of them, side by side, are the same."""
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    width = -(-max(lengths) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
    ids = torch.full((len(prompts), width + 1), pad_id, dtype=torch.int64)
    targets = torch.full((len(prompts), width), IGNORED, dtype=torch.int64)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        both = torch.tensor(prompt + response)
        ids[row, : len(both)] = both
        targets[row, len(prompt) - 1 : len(both) - 1] = both[len(prompt) :]
    return Experience(ids[:, :-1], targets, targets != IGNORED, group=group)


def measure(
    experience: Experience,
    forward: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    names: Sequence[str],
    batch_size: int,
    world: World,
) -> None:
    """Add to the experience what `forward` says of it, each rank measuring its share of the rows, alike by length and
    groups together.

    forward: batch of input_ids, targets, mask (b, t) and group (b,) on the world's device -> each of `names` as (b, t).
    Every rank calls it equally often.
    """
    rows, width = experience.targets.shape
    share = rows // world.size
    own = np.arange(world.rank * share, (world.rank + 1) * share)
    lengths = experience.mask.int().argmax(1) + experience.mask.sum(1)
    longest = lengths.view(-1, experience.group).amax(1).repeat_interleave(experience.group)[own]
    order = own[torch.argsort(longest, descending=True, stable=True).numpy()]
    found = {name: torch.zeros(rows, width) for name in names}
    for start in range(0, share, batch_size):
        part = order[start : start + batch_size]
        batch = experience.rows(part)
        inputs = {"input_ids", "targets", "mask", "group"} & batch.keys()
        said = forward({name: batch[name].to(world.device) for name in inputs})
        for name in names:
            values = said[name].detach().float().cpu().masked_fill(~batch["mask"], 0.0)
            found[name][torch.as_tensor(part), : values.shape[1]] = values
    for name in names:
        shared = world.gather(found[name][torch.as_tensor(own)].to(world.device)).cpu()
        experience.fields[name] = shared


def minibatches(
    rollout_size: int, batch_size: int, seed: int, step: int, epoch: int, group: int = 1
) -> list[np.ndarray]:
    """Which replies each update of an epoch learns from: a seeded permutation, of whole groups, in equal parts."""
    random = np.random.Generator(np.random.PCG64([seed % 2**64, step, epoch]))
    groups = random.permutation(rollout_size // group)
    order = (groups[:, None] * group + np.arange(group)).ravel()
    return [order[start : start + batch_size] for start in range(0, rollout_size - batch_size + 1, batch_size)]


def write_rollout(path: Path, rollout: Rollout, experience: Experience, facts: dict[str, Any]) -> None:
    """Everything that a step learnt from, to replay it: one line of JSON for the step's facts, then one a reply. The
    file is there as a whole or not at all."""
    lines = [json.dumps(facts)]
    for index in range(len(rollout)):
        own = experience.mask[index]
        facts_of_reply = {
            "place": rollout.rows[index].place,
            "prompt": rollout.prompts[index],
            "response": rollout.responses[index],
            "ended": rollout.ended[index],
            **({"kind": kind} if (kind := rollout.rows[index].kind) else {}),
            "score": round(rollout.scores[index].item(), 6),
            "parts": {name: round(float(values[index]), 6) for name, values in rollout.parts.items()},
        }
        numbers = {"sampled": rollout.sampled[index]}
        numbers |= {name: part[index][own].tolist() for name, part in experience.fields.items()}
        lists = "".join(f', "{name}": {_json_list(values)}' for name, values in numbers.items())
        lines.append(f"{json.dumps(facts_of_reply)[:-1]}{lists}}}")
    path.parent.mkdir(exist_ok=True)
    write_text_atomic(path, "\n".join(lines) + "\n")


def _json_list(values: list[float]) -> str:
    """Numbers to the seven digits that fp32 has, written by one format string: a fifth of the time that rounding each
    and json.dumps take, which at 512 replies of 256 tokens is seconds."""
    if not all(map(math.isfinite, values)):
        return json.dumps(values)
    return f"[{', '.join(['%.7g'] * len(values)) % tuple(values)}]"
