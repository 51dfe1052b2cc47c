"""Before the first rollout: does this policy compute what PPO takes for granted? If not, training is refused.

A ratio of probabilities that is not 1 before any update, dropout that is left on, a mask that hides the end token, or
padding that changes what a model says would each spoil training without an error message.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinychat.errors import UserError
from tinychat.models.logprobs import IGNORED, token_nll
from tinychat.models.vocabulary import Vocabulary
from tinychat.rl.rollout import Rollout, to_experience

log = logging.getLogger(__name__)
ROWS = 4  # replies looked at
# Of a score, in standard deviations. Measured on gpt2 and llama, 20 seeds each: right ones differ by at most 3.3e-6 in
# fp32 and 0.033 in bf16, ones that read padding by 0.36 or more.
SCORE_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
NOISE_TIMES = 4  # or by so many times what the same sequence differs among equals, where no padding is
# Nats at temperature 1, on any one token: logits between 32 and 64 are a quarter apart in bf16.
TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 0.4, torch.float16: 0.05}
MEAN_TOLERANCE = {torch.float32: 5e-5, torch.bfloat16: 0.03, torch.float16: 0.01}  # on the mean
# Or by so many times what the forward pass differs from itself in fp32, which grows with the model's depth. Two passes
# that round by chance are sqrt(2) times that apart. SmolLM2 of 30 layers in bf16: 0.022 and 0.036 nats from fp32 in two
# rollouts, sampling 0.025 and 0.040 from the forward pass; at a temperature of 0.95 in place of 1 0.06 and 0.09.
ROUNDING_TIMES = 2.0
MAX_FIRST_KL = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}  # k3 per token, where it must be 0
MOST_SIGMAS = 6.0  # of a sum of draws: once in 500 million
MOST_MISSING = 20.0  # tokens: once in 500 million
SHARE_ROUNDING = 1e-5  # of sums of probabilities
MOST_IN_A_ROW = 5  # steps beyond it


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


class PolicyChecks:
    """The ways in which the same few replies get their probabilities, compared two by two. What is allowed is for
    rounded logits, which a temperature below 1 spreads, and more where the model's own rounding is more (`looser`):
    then the same is to be asked in fp32 too, where no fault hides behind rounding. Each method returns the largest
    distance in nats, and raises UserError where it, or the mean one, is beyond rounding."""

    def __init__(
        self,
        rollout: Rollout,
        pad_id: int,
        temperature: float,
        vocabulary: Vocabulary,
        forward: Callable[[dict[str, Tensor]], Tensor],
        update: Callable[[dict[str, Tensor]], Tensor],
        dtype: torch.dtype,
        device: torch.device,
        exact: Callable[[dict[str, Tensor]], Tensor] | None = None,
    ):
        """forward, update: batch -> log-probabilities (b, t), as a rollout is measured and as an update begins; exact:
        as forward, in fp32; None: it is in fp32."""
        self._prompts, self._responses = rollout.prompts[:ROWS], rollout.responses[:ROWS]
        self._sampled = torch.cat([torch.tensor(sampled) for sampled in rollout.sampled[:ROWS]])
        self._forward, self._update = forward, update
        self._pad_id, self._temperature, self._vocabulary = pad_id, temperature, vocabulary
        self._dtype, self._device = dtype, device
        experience = to_experience(self._prompts, self._responses, pad_id, rollout.group)
        batch = experience.rows(np.arange(len(self._prompts)))
        self._mask = batch["mask"]
        self._batch = {name: part.to(device) for name, part in batch.items()}
        self._exact = exact

    @functools.cached_property
    def looser(self) -> float:
        """What is allowed / what is allowed where a model rounds little; 1 or more."""
        if self._exact is None:
            return 1.0
        rounding = (self._exact(self._batch).float().cpu()[self._mask] - self._old).abs().mean().item()
        return max(1.0, ROUNDING_TIMES * rounding / mean_tolerance(self._dtype, self._temperature))

    @functools.cached_property
    def _old(self) -> Tensor:
        return self._forward(self._batch).float().cpu()[self._mask]

    def ratio(self) -> float:
        """Of log-probabilities in the update's forward pass from those of the rollout's."""
        return _compare(
            self._update(self._batch).float().cpu()[self._mask],
            self._old,
            self._dtype,
            self._temperature,
            self.looser,
            "the ratio of new to old probability is not 1 before the first update",
            "something in the model is random or differs between training and evaluation mode",
        )

    def sampler(self) -> float:
        """Of the rollout's from the ones recorded while sampling, with left padding and a cache."""
        return _compare(
            self._sampled,
            self._old,
            self._dtype,
            self._temperature,
            self.looser,
            "log-probabilities recorded while sampling are not those of the forward pass",
            "temperature, positions under left padding, or the cache are treated differently",
        )

    def padding(self, policy: Any) -> float:
        """As check_padding. policy: called as it is (in evaluation mode, under the engine's autocast)."""
        return check_padding(
            policy,
            self._prompts,
            self._responses,
            self._pad_id,
            self._temperature,
            self._vocabulary,
            self._dtype,
            self._device,
            self.looser,
        )


def check_padding(
    policy: Any,
    prompts: list[list[int]],
    responses: list[list[int]],
    pad_id: int,
    temperature: float,
    vocabulary: Vocabulary,
    dtype: torch.dtype,
    device: torch.device,
    looser: float = 1.0,
) -> float:
    """The largest distance in nats of a row alone from the row among longer ones, padded on the left. looser: as
    PolicyChecks. Raises UserError where it, or the mean one, is beyond rounding."""
    return _compare(
        _left_padded(policy, prompts, responses, pad_id, temperature, vocabulary, device),
        _alone(policy, prompts, responses, temperature, vocabulary, device),
        dtype,
        temperature,
        looser,
        "padding on the left changes log-probabilities",
        "the model does not heed attention_mask and position_ids",
    )


def check_first_kl(logprobs: Tensor, ref_logprobs: Tensor, dtype: torch.dtype, temperature: float) -> float:
    """The largest distance in nats of sampled tokens' log-probabilities (n,) from the reference's, where the policy is
    its reference still. Raises UserError where it, or the mean one, is beyond rounding."""
    return _compare(
        ref_logprobs,
        logprobs,
        dtype,
        temperature,
        1.0,
        "the KL from the reference is not 0 before the first update",
        "the reference is another model than the policy's start, or random",
    )


def check_draws(probabilities: Tensor, chosen: Tensor) -> tuple[float, float]:
    """Whether tokens were drawn from the whole of these distributions, whatever was recorded beside them.

    probabilities: (n, V) fp32 that the policy gives; chosen: (n,) the tokens drawn. Returns how many standard errors
    the sum of log p(chosen) lies from minus the sum of entropies, which it is in expectation; and how many tokens
    should have come from beyond the least likely place at which any did, by rank or by the probability of all that are
    likelier: under top-k and top-p these never come. That number is exponentially distributed with mean 1 where all is
    well. Raises UserError where either is beyond chance.
    """
    own = probabilities.gather(1, chosen[:, None])
    likelier = probabilities > own
    places, above = likelier.sum(1), (probabilities * likelier).sum(1)
    logs = probabilities.clamp(min=torch.finfo(torch.float32).tiny).log()
    expected = (probabilities * logs).sum(1)
    variance = ((probabilities * logs.square()).sum(1) - expected.square()).clamp(min=0).sum()
    excess = float((own[:, 0].log() - expected).double().sum())
    sigmas = excess / max(float(variance), 1e-12) ** 0.5
    ordered = probabilities.sort(1, descending=True).values
    beyond_rank = float(ordered[:, int(places.max()) + 1 :].double().sum())
    before = (ordered.cumsum(1) - ordered).double()  # probability of all that are likelier
    beyond_share = float((ordered * (before > float(above.max()) + SHARE_ROUNDING)).double().sum())
    missing = max(beyond_rank, beyond_share)
    if not (abs(sigmas) <= MOST_SIGMAS and missing <= MOST_MISSING):
        raise UserError(
            f"self-check: replies are not drawn from the policy's own distribution: their log-probabilities are "
            f"{sigmas:+.1f} standard errors from what it expects, and {missing:.1f} tokens are missing that its tail "
            "should have given (top-k, top-p, or another temperature while sampling)"
        )
    return sigmas, missing


def check_scores(
    name: str,
    outputs: Callable[[list[list[int]]], list[float]],
    sequences: list[list[int]],
    spread: float | None,
    dtype: torch.dtype,
) -> float:
    """How far a sequence's score among longer ones is from its score alone, in standard deviations, at most.

    name: of the reward, for the message; outputs: sequences -> what the reward model's head gives; spread: the standard
    deviation of these, None: that of the ones found here. Raises UserError where padding changes scores by more than
    rounding does.
    """
    whole = sequences[:ROWS]
    # Replies may all be of a length: with beginnings of them there is padding in any case.
    whole = whole + [sequence[: max(1, len(sequence) // 2)] for sequence in whole]
    together, alone = outputs(whole), [outputs([sequence])[0] for sequence in whole]
    among_equals = [outputs([sequence] * ROWS)[0] for sequence in whole[:ROWS]]
    unit = torch.tensor(alone).double().std().item() if spread is None else spread
    unit = max(unit, torch.finfo(torch.float32).eps * max(map(abs, alone)), torch.finfo(torch.float32).tiny)
    gap = max(abs(a - b) for a, b in zip(together, alone, strict=True)) / unit
    noise = max(abs(a - b) for a, b in zip(among_equals, alone, strict=False)) / unit
    if not gap <= max(SCORE_TOLERANCE[dtype], NOISE_TIMES * noise):
        raise UserError(
            f"self-check: {name}: a reply's score among longer ones differs by {gap:.3g} standard deviations from its "
            "score alone: the reward model does not read the last real token, but padding"
        )
    return gap


def mean_tolerance(dtype: torch.dtype, temperature: float) -> float:
    """How far log-probabilities may be apart on average, in nats a token: a temperature below 1 spreads what is
    rounded."""
    return MEAN_TOLERANCE[dtype] / min(1.0, temperature)


class FirstRatios:
    """The first minibatch of a rollout is learnt from by the policy that wrote it: whether that shows, step by step.

    One step beyond rounding is told and counted, MOST_IN_A_ROW of them, or the first that a run makes, end it. `state`
    is plain numbers, saved with a checkpoint.
    """

    def __init__(self, dtype: torch.dtype, state: dict[str, int]):
        self._bound = MAX_FIRST_KL[dtype]
        self.state = {"count": 0, "in_a_row": 0, **state}

    @property
    def count(self) -> int:
        """Steps beyond the bound up to now."""
        return self.state["count"]

    def check(self, step: int, first_kl: float) -> None:
        """first_kl: estimate k3 over the first minibatch, in nats per token. Raises UserError."""
        if first_kl <= self._bound:
            self.state["in_a_row"] = 0
            return
        self.state = {name: number + 1 for name, number in self.state.items()}
        what = (
            f"step {step}: the ratio of new to old probability is not 1 before the rollout's first update (KL "
            f"{first_kl:.2g} nats per token, at most {self._bound:g} is rounding)"
        )
        row = self.state["in_a_row"]
        if step == 1 or row >= MOST_IN_A_ROW:
            again = f", for the {row}th step in a row" if step > 1 else ""
            raise UserError(
                f"{what}{again}: the update computes other probabilities than the rollout; training is refused. "
                "precision=fp32 tells whether rounding is the reason"
            )
        log.warning("%s; training goes on unless that lasts for %d steps", what, MOST_IN_A_ROW)


def _compare(
    found: Tensor, wanted: Tensor, dtype: torch.dtype, temperature: float, looser: float, what: str, why: str
) -> float:
    """The largest distance; UserError where it, or the mean distance, is beyond rounding."""
    distance = (found - wanted).abs()
    largest, mean = distance.max().item(), distance.mean().item()
    most = looser * TOLERANCE[dtype] / min(1.0, temperature)
    if not (largest <= most and mean <= looser * mean_tolerance(dtype, temperature)):
        raise UserError(
            f"self-check: {what} (up to {largest:.3g} nats a token, {mean:.3g} on average): {why}; training is refused"
        )
    return largest


@torch.no_grad()
def _left_padded(
    policy: Any,
    prompts: list[list[int]],
    responses: list[list[int]],
    pad_id: int,
    temperature: float,
    vocabulary: Vocabulary,
    device: Any,
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
    places = {"position_ids": positions[:, :-1], "attention_mask": seen[:, :-1]}
    nll = token_nll(policy, ids[:, :-1], targets, **places, temperature=temperature, exact=True, vocabulary=vocabulary)
    return -nll[targets != IGNORED].float().cpu()


@torch.no_grad()
def _alone(
    policy: Any,
    prompts: list[list[int]],
    responses: list[list[int]],
    temperature: float,
    vocabulary: Vocabulary,
    device: Any,
) -> Tensor:
    """The same from rows without any padding, one at a time."""
    found = []
    for prompt, response in zip(prompts, responses, strict=True):
        ids = torch.tensor([prompt + response], device=device)
        targets = ids[:, 1:].clone()
        targets[:, : len(prompt) - 1] = IGNORED
        nll = token_nll(policy, ids[:, :-1], targets, temperature=temperature, exact=True, vocabulary=vocabulary)
        found.append(-nll[targets != IGNORED].float().cpu())
    return torch.cat(found)
