"""Before the first rollout: does this policy compute what PPO takes for granted? If not, training is refused.

A ratio of probabilities that is not 1 before any update, dropout that is left on, a mask that hides the end token, or
padding that changes what a model says would each spoil training without an error message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tinychat.errors import UserError
from tinychat.models.logprobs import IGNORED, token_nll
from tinychat.rl.rollout import Rollout, to_experience

ROWS = 4  # replies looked at
SCORE_TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 1.5, torch.float16: 0.5}  # in the reward model's unit
# Nats at temperature 1, on any one token: logits between 32 and 64 are a quarter apart in bf16.
TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 0.4, torch.float16: 0.05}
MEAN_TOLERANCE = {torch.float32: 5e-5, torch.bfloat16: 0.03, torch.float16: 0.01}  # on the mean


@dataclass(frozen=True)
class SelfCheck:
    """Largest distances found, in nats (scores: in the reward model's unit)."""

    ratio: float  # of log-probabilities in the update's forward pass from those of the rollout's
    sampler: float  # of those from the ones recorded while sampling, with left padding and a cache
    padding: float  # of a row alone from the row among longer ones, padded on the left
    score: float  # of a reply's score alone from its score among longer ones

    def describe(self) -> str:
        return (
            f"self-check passed: ratio 1 within {self.ratio:.1e}, sampling within {self.sampler:.1e}, padding within "
            f"{self.padding:.1e} nats, scores within {self.score:.1e}"
        )


def check_tokens(tokenizer: Any, end_ids: Sequence[int]) -> None:
    """Raise UserError where padding is an end token: a mask made from one would then never train stopping."""
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in end_ids:
        raise UserError(
            f"self-check: the tokenizer's padding is {tokenizer.pad_token!r}, which also ends replies; the end of a "
            "reply would never be learnt. Use a tokenizer with a pad token of its own (as stage=tokenizer makes it)"
        )


def check_dropout(model: Any) -> None:
    """Raise UserError where a forward pass in training mode would drop something at random."""
    for name, module in model.named_modules():
        rate = getattr(module, "p", 0.0) if isinstance(module, torch.nn.modules.dropout._DropoutNd) else 0.0
        if rate > 0:
            raise UserError(
                f"self-check: dropout of {rate} is on in {name}; probabilities would differ between rollout and "
                "update before anything is learnt. It must be 0 in reinforcement learning"
            )


def check_replies(rollout: Rollout, end_ids: Sequence[int]) -> None:
    """Raise UserError where a reply goes on behind its end token."""
    for row, response, ended in zip(rollout.rows, rollout.responses, rollout.ended, strict=True):
        ends = [index for index, token in enumerate(response) if token in end_ids]
        if ends and (ends[0] != len(response) - 1 or not ended):
            raise UserError(f"self-check: the reply to {row.place} goes on behind its end token; it must be cut there")


def self_check(
    rollout: Rollout,
    pad_id: int,
    temperature: float,
    forward: Callable[[dict[str, Tensor]], Tensor],
    update: Callable[[dict[str, Tensor]], Tensor],
    policy: Any,
    score: Callable[[list[list[int]]], list[float]] | None,
    dtype: torch.dtype,
    device: torch.device,
) -> SelfCheck:
    """Compare the ways in which the same few replies get their probabilities and scores. What is allowed is for rounded
    logits, which a temperature below 1 spreads.

    forward, update: batch -> log-probabilities (b, t), as a rollout is measured and as an update begins. policy: called
    as it is (in evaluation mode, under the engine's autocast). Raises UserError with the first that disagrees.
    """
    prompts, responses = rollout.prompts[:ROWS], rollout.responses[:ROWS]
    experience = to_experience(prompts, responses, pad_id)
    mask = experience.mask
    parts = {"input_ids": experience.input_ids, "targets": experience.targets, "mask": mask}
    batch = {name: part.to(device) for name, part in parts.items()}
    old = forward(batch).float().cpu()
    ratio = _compare(
        update(batch).float().cpu()[mask],
        old[mask],
        dtype,
        temperature,
        "the ratio of new to old probability is not 1 before the first update",
        "something in the model is random or differs between training and evaluation mode",
    )
    recorded = torch.cat([torch.tensor(sampled) for sampled in rollout.sampled[:ROWS]])
    sampler = _compare(
        recorded,
        old[mask],
        dtype,
        temperature,
        "log-probabilities recorded while sampling are not those of the forward pass",
        "temperature, positions under left padding, or the cache are treated differently",
    )
    padding = _compare(
        _left_padded(policy, prompts, responses, pad_id, temperature, device),
        _alone(policy, prompts, responses, pad_id, temperature, device),
        dtype,
        temperature,
        "padding on the left changes log-probabilities",
        "the model does not heed attention_mask and position_ids",
    )
    gap = 0.0
    if score is not None:
        sequences = rollout.sequences[:ROWS]
        together, alone = score(sequences), [score([sequence])[0] for sequence in sequences]
        gap = max(abs(a - b) for a, b in zip(together, alone, strict=True))
        if gap > SCORE_TOLERANCE[dtype]:
            raise UserError(
                f"self-check: a reply's score among longer ones differs by {gap:.3g} from its score alone: the reward "
                "model does not read the last real token"
            )
    return SelfCheck(ratio, sampler, padding, gap)


def _compare(found: Tensor, wanted: Tensor, dtype: torch.dtype, temperature: float, what: str, why: str) -> float:
    """The largest distance; UserError where it, or the mean distance, is beyond rounding."""
    distance = (found - wanted).abs()
    largest, mean = distance.max().item(), distance.mean().item()
    wider = 1 / min(1.0, temperature)
    if not (largest <= wider * TOLERANCE[dtype] and mean <= wider * MEAN_TOLERANCE[dtype]):
        raise UserError(
            f"self-check: {what} (up to {largest:.3g} nats a token, {mean:.3g} on average): {why}; training is refused"
        )
    return largest


@torch.no_grad()
def _left_padded(
    policy: Any, prompts: list[list[int]], responses: list[list[int]], pad_id: int, temperature: float, device: Any
) -> Tensor:
    """Log-probabilities of all responses, one behind the other, from rows padded on the left."""
    rows = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (width - len(row)) + row for row in rows], device=device)
    seen = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    targets = torch.full_like(ids, IGNORED)[:, 1:]
    for index, response in enumerate(responses):
        targets[index, width - 1 - len(response) :] = torch.tensor(response, device=device)
    positions = (seen.cumsum(1) - 1).clamp(min=0)
    nll = token_nll(policy, ids[:, :-1], targets, positions[:, :-1], seen[:, :-1], temperature, exact=True)
    return -nll[targets != IGNORED].float().cpu()


@torch.no_grad()
def _alone(
    policy: Any, prompts: list[list[int]], responses: list[list[int]], pad_id: int, temperature: float, device: Any
) -> Tensor:
    """The same from rows without any padding, one at a time."""
    found = []
    for prompt, response in zip(prompts, responses, strict=True):
        ids = torch.tensor([prompt + response], device=device)
        targets = ids[:, 1:].clone()
        targets[:, : len(prompt) - 1] = IGNORED
        nll = token_nll(policy, ids[:, :-1], targets, temperature=temperature, exact=True)
        found.append(-nll[targets != IGNORED].float().cpu())
    return torch.cat(found)
