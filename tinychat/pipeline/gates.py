"""Gates of a pipeline: what its stages have to reach, one line each in the recipe.

    perplexity: pretrain eval/ppl <= 12
    gain in safe rate: ppo - ppo:start eval/safe_rate >= 0.20
    KL to the SFT policy: ppo rl/kl                                (only reported)

`STAGE` is the last value that a stage measured, `STAGE:start` its first one, which a stage with stage.eval_first takes
of the checkpoint it starts from.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from tinychat.errors import UserError
from tinychat.tracking.vocabulary import METRICS

START = ":start"
_COMPARE: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le}
_GATE = re.compile(
    r"^(?P<of>\w+(?::start)?)(?:\s+-\s+(?P<less>\w+(?::start)?))?\s+(?P<metric>[\w/]+)"
    r"(?:\s+(?P<sign>>=|<=)\s+(?P<bound>\S+))?$"
)

Measured = Mapping[str, Mapping[str, float]]  # {"ppo": {metric: last value}, "ppo:start": {metric: first value}}


@dataclass(frozen=True)
class Gate:
    """`of - less` of a metric, compared with a bound."""

    name: str
    metric: str
    of: str  # STAGE or STAGE:start
    less: str | None = None  # subtracted from it
    sign: str | None = None  # >= or <=; None: nothing is compared
    bound: float | None = None

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(place.removesuffix(START) for place in (self.of, self.less) if place))

    @property
    def wanted(self) -> str:
        return "" if self.sign is None else f"{self.sign} {self.bound:g}"

    @property
    def measures(self) -> str:
        return f"{self.metric} of {self.of}" + (f" minus that of {self.less}" if self.less else "")

    def with_bound(self, bound: float | None) -> Gate:
        """The same with another bound; None: only reported. Raises UserError where there is nothing to compare."""
        if bound is None:
            return replace(self, sign=None, bound=None)
        if self.sign is None:
            raise UserError(f"gates.{self.name}={bound:g}: this one has no bound in the recipe, it is only reported")
        return replace(self, bound=bound)


@dataclass(frozen=True)
class Verdict:
    """A gate and what was found."""

    gate: Gate
    value: float | None  # None: not measured
    low: float | None = None  # 95 % bounds, where the stage gives them
    high: float | None = None

    @property
    def word(self) -> str:
        """pass, fail, not measured, or reported (a gate without a bound)."""
        if self.value is None:
            return "not measured"
        if self.gate.sign is None or self.gate.bound is None:
            return "reported"
        return "pass" if _COMPARE[self.gate.sign](self.value, self.gate.bound) else "fail"

    @property
    def failed(self) -> bool:
        """Whether something was wanted and it is not so, or not known to be so."""
        return self.word == "fail" or (self.word == "not measured" and self.gate.sign is not None)


def asking(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Those of gates that want something; the others only report."""
    return [verdict for verdict in verdicts if verdict.gate.sign is not None]


def parse_gate(name: str, text: str, stages: tuple[str, ...]) -> Gate:
    """The gate that a recipe's line means.

    Raises UserError for a line of another form, an unknown metric, or a stage that is none of `stages`.
    """
    match = _GATE.match(str(text).strip())
    if match is None:
        raise UserError(
            f"gates: {name}: {text!r}: must be STAGE METRIC, then >= or <= and a number, "
            "as 'ppo eval/safe_rate >= 0.95'"
        )
    of, less, metric, sign, bound = match.group("of", "less", "metric", "sign", "bound")
    if metric not in METRICS:
        raise UserError(f"gates: {name}: {metric} is no metric; tinychat/tracking/vocabulary.py lists them")
    gate = Gate(name, metric, of, less, sign, None if bound is None else _number(name, bound))
    for stage in gate.stages:
        if stage not in stages:
            raise UserError(f"gates: {name}: {stage} is no stage of this recipe; it has {', '.join(stages)}")
    return gate


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"gates: {name}: the bound {text} is not a number")
    return value


def judge(gate: Gate, measured: Measured) -> Verdict:
    """Compare what was measured with what is wanted. A value that is not a number passes no gate."""
    values = measured.get(gate.of, {})
    value = values.get(gate.metric)
    if gate.less is None:
        low, high = (values.get(f"{gate.metric}_{end}") for end in ("low", "high"))
        return Verdict(gate, value, low, high)
    other = measured.get(gate.less, {}).get(gate.metric)
    return Verdict(gate, None if value is None or other is None else value - other)
