"""From the scores of a reward's parts to one reward: their weighted sum, each by its own scale where that is wanted, or
under a constraint as much help as there is where the mean cost stays within a limit (PPO-Lagrangian).

    max over the policy, min over λ ≥ 0:   E[R] - λ (E[C] - limit)                        (Dai et al. 2023, Safe RLHF)

R is the sum of the parts that are no costs. C is that of the others with the sign turned: a model of safety says how
safe a reply is, so that C is above 0 for harm. Both players move a little at each step: the policy learns from
(R - λ C) / (1 + λ), whose size does not grow with λ, and λ climbs where replies cost more than the limit and sinks
where they cost less. So nobody has to guess what a harm is worth in help.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tinychat.config.schema import RewardConfig
from tinychat.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("tinychat")


class Multiplier:
    """λ, learnt by ascent in its logarithm ξ, as Safe RLHF does it, so that it stays above 0:

    ξ ← min(ξ + rate · λ · (mean C - limit), ln most),   λ = e^ξ
    """

    def __init__(self, limit: float, start: float, rate: float, most: float) -> None:
        """start, rate, most: above 0, start at most `most`."""
        self.limit, self.start, self.rate, self.most = limit, start, rate, most
        self._log = math.log(start)

    @property
    def value(self) -> float:
        return math.exp(self._log)

    def update(self, mean_cost: float) -> float:
        """Move λ after a step and return it. mean_cost: over the replies of the step, all ranks. Raises ValueError for
        one that is no number."""
        if not math.isfinite(mean_cost):
            raise ValueError(f"the mean cost of the step is {mean_cost}")
        self._log = min(self._log + self.rate * self.value * (mean_cost - self.limit), math.log(self.most))
        return self.value

    def state_dict(self) -> dict[str, float]:
        return {"log": self._log}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self._log = float(state.get("log", self._log))


def constrained_reward(helpfulness: Tensor, cost: Tensor, multiplier: float) -> Tensor:
    """(R - λ C) / (1 + λ) of replies; all (N,)."""
    return (helpfulness - multiplier * cost) / (1 + multiplier)


class Weighing:
    """What the parts of a reward weigh, now. The same on every rank, as it learns from the replies of all.

    Scores are {part: one of each reply}, NaN where a part has none to give.
    """

    def __init__(self, config: RewardConfig) -> None:
        self.weights = {name: part.weight for name, part in config.parts.items()}
        self._kinds = {name: set(part.kinds) for name, part in config.parts.items() if part.kinds}
        self._costs = {name for name, part in config.parts.items() if part.cost}
        self.multiplier: Multiplier | None = None
        if config.cost_limit is not None and config.multiplier is not None:
            its = config.multiplier
            self.multiplier = Multiplier(config.cost_limit, its.start, its.rate, its.max)
        self._scales: dict[str, float] = {}  # what each part's scores are divided by; {}: by nothing
        self.uncalibrated = config.normalise  # whether the scales are still to be found

    def asks(self, name: str, kind: str) -> bool:
        """Whether a part scores replies to prompts of a kind."""
        return name not in self._kinds or kind in self._kinds[name]

    def total(self, scores: Mapping[str, Sequence[float]], held_out: bool = False) -> Tensor:
        """The reward (N,) fp32 of replies; a score that is missing counts as 0. held_out: with the multiplier that the
        job began with, so that rewards of several evaluations compare."""
        helpfulness = self._sum(scores, costs=False)
        if self.multiplier is None:
            return helpfulness
        now = self.multiplier.start if held_out else self.multiplier.value
        return constrained_reward(helpfulness, self._sum(scores, costs=True), now)

    def _sum(self, scores: Mapping[str, Sequence[float]], costs: bool, scaled: bool = True) -> Tensor:
        """Over the parts that are costs, or those that are none: weight times score. A part says how good a reply is,
        so that its cost is that with the sign turned."""
        import torch

        total = torch.zeros(max(map(len, scores.values()), default=0))
        for name, weight in self.weights.items():
            if (name in self._costs) == costs:
                scale = self._scales.get(name, 1.0) if scaled else 1.0
                total += (
                    (-weight if costs else weight)
                    / scale
                    * torch.tensor(scores[name], dtype=torch.float32).nan_to_num(nan=0.0)
                )
        return total

    def calibrate(self, scores: Mapping[str, Sequence[float]], kinds: Sequence[str]) -> None:
        """Find the scales: the standard deviation of each part's scores of the starting policy's replies, to prompts
        that it scores. Their mean is kept, so that what is good stays above 0, and harm too. kinds: of each reply's
        prompt. Raises UserError for a part all of whose scores are equal."""
        for name in self.weights:
            asked = zip(scores[name], kinds, strict=True)
            own = [score for score, kind in asked if self.asks(name, kind) and not math.isnan(score)]
            spread = statistics.pstdev(own) if own else 0.0
            if not spread:
                said = (
                    f"gives all {len(own)} replies of the starting policy one score" if own else "has no reply to score"
                )
                raise UserError(
                    f"reward.normalise=true: reward.parts.{name} {said}, so that it has no scale; take more replies "
                    "(stage.rollout_size), or reward.normalise=false"
                )
            self._scales[name] = spread
        self.uncalibrated = False
        told = ", ".join(f"{name} by {scale:.3g}" for name, scale in self._scales.items())
        log.info("reward.normalise: scores are divided by their spread at the start: %s", told)

    def cost_and_help(self, scores: Mapping[str, Sequence[float]], known: Sequence[bool]) -> dict[str, float]:
        """Mean C and R of the replies whose reward is known, in the parts' own units; {} where nothing is a cost."""
        if self.multiplier is None:
            return {}
        sums = {"cost": self._sum(scores, True, scaled=False), "helpfulness": self._sum(scores, False, scaled=False)}
        return {name: statistics.fmean(values[list(known)].tolist()) for name, values in sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs; {} where nothing is learnt."""
        found: dict[str, Any] = {} if self.multiplier is None else {"multiplier": self.multiplier.state_dict()}
        return found | ({"scales": dict(self._scales)} if self._scales else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.multiplier is not None:
            self.multiplier.load_state_dict(state.get("multiplier", {}))
        if scales := state.get("scales"):
            self._scales, self.uncalibrated = dict(scales), False
