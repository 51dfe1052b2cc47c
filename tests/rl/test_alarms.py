"""Alarms: one sentence when something begins to go wrong, none while all is well."""

from __future__ import annotations

import pytest

from tinychat.rl.alarms import GOLD_WINDOW, Alarms
from tinychat.sweeps.prepare import ALARMS

WELL = {
    "rl/kl": 2.0, "rl/entropy": 1.0, "rl/response_length": 20.0, "rl/eos_rate": 0.9, "rl/clip_frac": 0.1,
    "rl/reward": 0.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "value", "says"),
    [
        ("rl/kl", 60.0, "KL blow-up: 60.0 nats"),
        ("rl/entropy", 0.05, "entropy collapse"),
        ("rl/eos_rate", 0.2, "no longer end: 20%"),
        ("rl/response_length", 50.0, "length explosion: 50 tokens"),
        ("rl/clip_frac", 0.7, "70% of the tokens are clipped"),
    ],
)
def test_each_alarm_is_told_once_while_it_lasts(metric: str, value: float, says: str) -> None:
    alarms = Alarms()
    assert alarms.check(WELL) == []
    (text,) = alarms.check(WELL | {metric: value})
    assert says in text
    assert alarms.check(WELL | {metric: value}) == []
    assert alarms.check(WELL) == []
    assert len(alarms.check(WELL | {metric: value})) == 1


def test_sampling_that_leaves_the_policy_is_an_alarm() -> None:
    alarms = Alarms(sampler_gap=0.03)
    assert alarms.check(WELL | {"rl/sampler_gap": 0.01}) == []
    for gap in (0.04, float("nan")):
        (text,) = Alarms(sampler_gap=0.03).check(WELL | {"rl/sampler_gap": gap})
        assert "sampling and update disagree" in text
    assert "sampler" in ALARMS


def test_the_kl_alarm_follows_the_target() -> None:
    alarms = Alarms(kl_target=3.0)
    assert alarms.check(WELL | {"rl/kl": 11.0}) == []
    assert "KL blow-up" in alarms.check(WELL | {"rl/kl": 13.0})[0]


def test_reward_up_while_gold_falls() -> None:
    alarms, told = Alarms(), []
    for step in range(3 * GOLD_WINDOW):
        told += alarms.check(WELL | {"rl/reward": step * 0.1, "rl/gold_reward": 0.5 - step * 0.02})
    assert len(told) == 1
    assert "gold reward falls" in told[0]
    both_rise = Alarms()
    for step in range(3 * GOLD_WINDOW):
        assert both_rise.check(WELL | {"rl/reward": step * 0.1, "rl/gold_reward": step * 0.05}) == []


def test_a_resumed_run_compares_with_the_first_rollout() -> None:
    alarms = Alarms()
    alarms.check(WELL)
    again = Alarms(state=dict(alarms.state))
    assert "entropy collapse" in again.check(WELL | {"rl/entropy": 0.05})[0]
