"""Whether a stage has taught its model anything: told by its objective at the end, at the start, and by chance."""

from __future__ import annotations

from collections.abc import Mapping

from tinychat.tracking.vocabulary import goal_of

NOISE = 0.01  # of the value at the start: the first measurement reads fewer rows than the last


def verdict(
    objective: str, first: Mapping[str, float], last: Mapping[str, float], chance: tuple[float, str] | None = None
) -> str:
    """A sentence where the objective is no better than chance or worse than at the start; "" where all is well.

    first, last: metrics as measured first and last, by name. chance: the objective of a model that knows nothing, in
    its unit, and what such a model does.
    """
    if objective not in last:
        return ""
    value, sign = last[objective], -1 if goal_of(objective) == "minimize" else 1
    if chance is not None and not sign * value > sign * chance[0]:
        return (
            f"{objective} is {value:.4g}, and {chance[1]} gives {chance[0]:.4g}: nothing useful was learnt; "
            "try more steps, or another stage.lr"
        )
    start = first.get(objective, value)
    if sign * (value - start) < -NOISE * abs(start):
        return (
            f"{objective} ends at {value:.4g} and was {start:.4g} when it was measured first: the model has become "
            "worse; try a lower stage.lr, or other data"
        )
    return ""
