"""The learning rate of every step, by hand."""

from __future__ import annotations

import math

import pytest

from tinychat.config.stages import Schedule, TrainLoop
from tinychat.engine.optim import lr_factor


def factors(
    schedule: Schedule, steps: int = 10, warmup: int = 0, decay: float = 0.4, floor: float = 0.0
) -> list[float]:
    loop = TrainLoop(max_steps=steps, schedule=schedule, warmup_steps=warmup, decay_fraction=decay, min_lr_ratio=floor)
    return [lr_factor(step, loop) for step in range(steps)]


@pytest.mark.parametrize("schedule", list(Schedule))
def test_it_rises_in_a_line_to_the_peak_and_the_first_step_moves(schedule: Schedule) -> None:
    found = factors(schedule, warmup=3)
    assert found[:3] == pytest.approx([1 / 4, 2 / 4, 3 / 4])
    assert found[3] > found[2]
    assert max(found) <= 1


def test_constant_stays() -> None:
    assert factors(Schedule.constant, warmup=2)[2:] == [1.0] * 8


def test_linear_falls_evenly_and_no_step_is_wasted_on_a_rate_of_zero() -> None:
    assert factors(Schedule.linear, steps=4) == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert factors(Schedule.linear, steps=4, floor=0.5) == pytest.approx([0.9, 0.8, 0.7, 0.6])


def test_cosine_is_half_a_wave() -> None:
    found = factors(Schedule.cosine, steps=3)
    assert found == pytest.approx([(1 + math.cos(math.pi * part)) / 2 for part in (0.25, 0.5, 0.75)])
    assert factors(Schedule.cosine, steps=3, floor=0.2)[1] == pytest.approx(0.6)


def test_wsd_stays_and_falls_over_the_last_share() -> None:
    found = factors(Schedule.wsd, steps=10, warmup=2, decay=0.4)
    assert found[2:6] == [1.0] * 4
    assert found[6:] == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert factors(Schedule.wsd, decay=0.0) == [1.0] * 10
    assert factors(Schedule.wsd, decay=1.0) == factors(Schedule.linear)


@pytest.mark.parametrize("schedule", list(Schedule))
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (5, 5), (7, 6)])
def test_short_runs_have_rates_above_zero(schedule: Schedule, steps: int, warmup: int) -> None:
    assert all(0 < value <= 1 for value in factors(schedule, steps, warmup))


def test_a_run_shorter_than_its_warm_up_has_half_of_it() -> None:
    found = factors(Schedule.linear, steps=6, warmup=50)
    assert found[:3] == pytest.approx([1 / 4, 2 / 4, 3 / 4])
    assert found == factors(Schedule.linear, steps=6, warmup=3)
    assert factors(Schedule.constant, steps=1, warmup=10) == [1.0]
