"""What a reply is worth: a weighted sum of parts, each a reward model, tinyworld's oracle, the prompt's own answer, or
a function of the user's.

Every rank scores its share of the replies, then all have all scores.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tinychat.config.schema import RewardConfig, RewardKind, RewardPart
from tinychat.config.stages import ScoreRange
from tinychat.data.preferences.prompts import PromptRow, check_answers
from tinychat.errors import UserError
from tinychat.evaluation.answers import is_correct
from tinychat.models.scorer import Scorer
from tinychat.runtime import user_code
from tinychat.runtime.user_code import UserCodeError
from tinychat.runtime.world import World
from tinychat.tinyworld import preferences

# (rows, replies as text, sequences of prompt and response tokens) -> a score each
Part = Callable[[Sequence[PromptRow], list[str], list[list[int]]], list[float]]
log = logging.getLogger("tinychat")


class Rewards:
    """The configured reward."""

    def __init__(
        self,
        config: RewardConfig,
        parents: dict[str, str | None],
        tokenizer: Any,
        world: World,
        dtype: torch.dtype,
        batch_size: int,
    ):
        """Raises UserError for a reward model of another tokenizer or chat template, and for a function that cannot
        be found."""
        self.weights = {name: part.weight for name, part in config.parts.items()}
        self.kinds = {name: part.kind for name, part in config.parts.items()}
        self._world = world
        self._parts: dict[str, Part] = {}
        self.scorers: dict[str, Scorer] = {}
        for name, part in config.parts.items():
            if part.kind is RewardKind.model:
                scorer = Scorer(str(parents[f"reward.{name}"]), world.device, dtype, batch_size)
                scorer.check_tokenizer(tokenizer, f"reward.parts.{name}.path={parents[f'reward.{name}']}")
                scorer.check_template(tokenizer, "the policy", config.any_template)
                if scorer.score_range == ScoreRange.raw.value:
                    log.warning(
                        "reward.parts.%s: the scores of %s are its raw output, with the mean and spread that training "
                        "left it: the weight of the KL penalty means another thing with every such model. One of "
                        "stage.score_range=standard has mean 0 and standard deviation 1",
                        *(name, scorer.path),
                    )
                self.scorers[name] = scorer
                self._parts[name] = lambda _rows, _replies, sequences, s=scorer: s.score_ids(sequences)  # type: ignore
            else:
                self._parts[name] = _part(name, part)

    def check_rows(self, rows: Sequence[PromptRow]) -> None:
        """Raise UserError where prompts lack what a part needs."""
        for name, kind in self.kinds.items():
            if kind is RewardKind.verifier:
                check_answers(rows, f"reward.parts.{name}")
            if kind is RewardKind.oracle and (bad := next((row for row in rows if row.request is None), None)):
                raise UserError(f"reward.parts.{name}: the oracle knows tinyworld's requests alone, not {bad.place}")

    def check_lengths(self, length: int) -> None:
        """Raise UserError where a reward model cannot read prompt and reply of `length` tokens."""
        for name, scorer in self.scorers.items():
            most = scorer.model.config.max_position_embeddings
            if most < length:
                raise UserError(
                    f"reward.parts.{name}: this reward model reads {most} tokens at most, prompt and reply may have "
                    f"{length}; set stage.context_length={most}"
                )

    def score(
        self, rows: Sequence[PromptRow], replies: list[str], sequences: list[list[int]]
    ) -> tuple[torch.Tensor, dict[str, list[float]]]:
        """The reward (N,) fp32 of N replies, N a multiple of the ranks, and the scores of each part before its weight.

        Raises UserError for a function that fails, or whose scores are too few or not finite; it names the reply.
        """
        share = len(rows) // self._world.size
        own = slice(self._world.rank * share, (self._world.rank + 1) * share)
        found: dict[str, list[float]] = {name: [] for name in self._parts}
        problem = ""
        scores: dict[str, list[float]] = {}
        try:
            for name, part in self._parts.items():
                scores[name] = part(rows[own], replies[own], sequences[own])
                _check_finite(name, scores[name], rows[own], replies[own])
        except UserError as error:  # told to all ranks: none may be left waiting
            problem = str(error)
        for trouble, more in self._world.gather_objects((problem, scores)):
            if trouble:
                raise UserError(trouble)
            for name, values in more.items():
                found[name] += values
        total = torch.zeros(len(rows))
        for name, values in found.items():
            total += self.weights[name] * torch.tensor(values, dtype=torch.float32)
        return total, found


def gold_rewards(rows: Sequence[PromptRow], replies: Sequence[str]) -> list[float] | None:
    """tinyworld's exact reward of each reply, from -1 to 1; None where the prompts are not its requests."""
    if any(row.request is None for row in rows):
        return None
    return [preferences.judge(row.request, reply).reward for row, reply in zip(rows, replies, strict=True)]


def _part(name: str, part: RewardPart) -> Part:
    if part.kind is RewardKind.oracle:
        return lambda rows, replies, _sequences: gold_rewards(rows, replies) or []
    if part.kind is RewardKind.verifier:
        return lambda rows, replies, _sequences: [
            float(is_correct(row.answer, reply, row.reference)) for row, reply in zip(rows, replies, strict=True)
        ]
    return _python_part(name, str(part.path))


def _python_part(name: str, path: str) -> Part:
    """A function score(prompts, replies) -> numbers of the user's; prompts as text, the last user message."""
    file, _, function = path.rpartition(":")
    key = f"reward.parts.{name}.path={path}"
    try:
        module = user_code.load(file)
    except UserCodeError as error:
        raise UserError(f"{key}: {error}") from error
    score = getattr(module, function, None)
    if not callable(score):
        there = ", ".join(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise UserError(f"{key}: the file has no function {function!r}; it has {there or 'none'}")

    def ask(rows: Sequence[PromptRow], replies: list[str]) -> list[Any]:
        with user_code.running():
            return list(score([row.messages[-1]["content"] for row in rows], list(replies)))

    def part(rows: Sequence[PromptRow], replies: list[str], _sequences: list[list[int]]) -> list[float]:
        try:
            given = ask(rows, replies)
        except UserCodeError as error:
            raise UserError(_raised(key, ask, rows, replies, error)) from error
        if len(given) != len(replies):
            raise UserError(f"{key}: gave {len(given)} scores for {len(replies)} replies; one for each is needed")
        return [_number(key, value) for value in given]

    return part


def _number(key: str, value: Any) -> float:
    try:
        return float(value)
    except Exception:  # a tensor of several numbers, an integer beyond floats, a word
        raise UserError(f"{key}: gave {repr(value)[:80]} where a number is needed") from None


def _raised(key: str, ask: Any, rows: Sequence[PromptRow], replies: list[str], error: UserCodeError) -> str:
    """Which reply the function fails on, found by giving it one at a time."""
    for row, reply in zip(rows, replies, strict=True):
        try:
            ask([row], [reply])
        except UserCodeError as alone:
            return f"{key}: {alone}, for the reply {reply[:80]!r} to {row.place}"
    return f"{key}: {error}, for {len(replies)} replies together, not for one alone"


def _check_finite(name: str, scores: list[float], rows: Sequence[PromptRow], replies: list[str]) -> None:
    if len(scores) != len(replies):
        raise UserError(f"reward.parts.{name}: {len(scores)} scores for {len(replies)} replies")
    for score, row, reply in zip(scores, rows, replies, strict=True):
        if not math.isfinite(score):
            raise UserError(f"reward.parts.{name}: the score is {score} for the reply {reply[:80]!r} to {row.place}")
