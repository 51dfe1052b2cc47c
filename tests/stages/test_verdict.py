"""A stage that taught nothing says so."""

from __future__ import annotations

import math

import pytest

from tinychat.stages.loop import verdict


@pytest.mark.parametrize(
    ("objective", "first", "last", "chance", "expected"),
    [
        ("eval/loss", 8.88, 9.48, (math.log(4096), "guessing among 4,096 tokens"), "4,096 tokens gives 8.318"),
        ("eval/loss", 8.88, 4.2, (math.log(4096), "guessing"), ""),
        ("eval/loss", 8.3, float("nan"), (math.log(4096), "guessing"), "nothing useful"),
        ("eval/response_loss", 2.0, 2.2, None, "ends at 2.2 and was 2 when"),
        ("eval/response_loss", 2.0, 2.01, None, ""),  # within the noise
        ("eval/response_loss", 2.0, 0.5, None, ""),
        ("eval/objective", 0.4, 0.1, None, "ends at 0.1 and was 0.4"),  # of which more is better
        ("eval/objective", -0.4, 0.1, None, ""),
        ("eval/objective", -0.1, -0.4, None, "has become worse"),
    ],
)  # fmt: skip
def test_it_compares_with_chance_and_with_the_start(
    objective: str, first: float, last: float, chance: tuple[float, str] | None, expected: str
) -> None:
    said = verdict(objective, {objective: first}, {objective: last}, chance)
    assert (expected in said) if expected else not said


def test_nothing_measured_is_nothing_said() -> None:
    assert verdict("eval/loss", {}, {}) == ""
    assert verdict("eval/loss", {}, {"eval/loss": 1.0}) == ""
