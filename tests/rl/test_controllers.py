"""The controllers of the KL penalty, by hand."""

from __future__ import annotations

import math

import pytest

from tinychat.errors import UserError
from tinychat.rl.kl import AdaptiveKL, FixedKL


def test_fixed_stays() -> None:
    controller = FixedKL(0.05)
    assert controller.update(1000.0, 64) == 0.05
    assert controller.beta == 0.05
    controller.load_state_dict({"beta": 3.0})
    assert controller.beta == 0.05
    assert controller.state_dict() == {}


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        (6.6, 1 + 0.1 * 0.05),  # 10 % above the target
        (5.4, 1 - 0.1 * 0.05),
        (6.0, 1.0),
        (60.0, 1 + 0.2 * 0.05),  # clipped above
        (math.inf, 1 + 0.2 * 0.05),
        (0.0, 1 - 0.2 * 0.05),  # clipped below
        (-3.0, 1 - 0.2 * 0.05),
    ],
)
def test_adaptive_follows_the_formula(kl: float, factor: float) -> None:
    controller = AdaptiveKL(beta=0.1, target=6.0, horizon=1000)
    assert controller.update(kl, 50) == pytest.approx(0.1 * factor, rel=1e-12)
    assert controller.beta == pytest.approx(0.1 * factor, rel=1e-12)


def test_updates_compound_and_settle_on_the_target() -> None:
    controller = AdaptiveKL(beta=0.01, target=2.0, horizon=100)
    for _ in range(400):
        controller.update(0.4 / controller.beta, 50)  # a policy whose KL falls as the penalty rises
    assert controller.beta == pytest.approx(0.2, rel=1e-3)


def test_beta_stays_positive_when_the_rollout_is_larger_than_the_horizon() -> None:
    controller = AdaptiveKL(beta=1.0, target=1.0, horizon=1)
    assert controller.update(0.0, 1000) == pytest.approx(0.8)


def test_state_comes_back_as_plain_numbers() -> None:
    first = AdaptiveKL(beta=0.1, target=1.0, horizon=10)
    first.update(3.0, 5)
    state = first.state_dict()
    assert state == {"beta": first.beta}
    assert type(state["beta"]) is float
    second = AdaptiveKL(beta=0.7, target=1.0, horizon=10)
    second.load_state_dict(state)
    assert second.update(0.5, 2) == first.update(0.5, 2)
    second.load_state_dict(FixedKL(0.3).state_dict())
    assert second.beta == first.beta


def test_not_a_number_is_refused() -> None:
    controller = AdaptiveKL(beta=0.1, target=1.0, horizon=10)
    with pytest.raises(ValueError, match="not a number"):
        controller.update(math.nan, 4)
    assert controller.beta == 0.1


@pytest.mark.parametrize("name", ["beta", "target", "horizon"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_settings_that_cannot_work_are_named(name: str, value: float) -> None:
    settings = {"beta": 0.1, "target": 1.0, "horizon": 10.0, name: value}
    with pytest.raises(UserError, match=f"{name}={value}"):
        AdaptiveKL(**settings)


def test_a_fixed_beta_may_be_zero_but_not_below() -> None:
    assert FixedKL(0.0).beta == 0
    with pytest.raises(UserError, match=r"beta=-0\.1"):
        FixedKL(-0.1)
