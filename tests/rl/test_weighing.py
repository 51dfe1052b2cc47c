"""From the scores of parts to the reward: multiplier, scales and kinds of prompt, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from tinychat.config.schema import MultiplierConfig, RewardConfig, RewardPart
from tinychat.errors import UserError
from tinychat.rl.weighing import Multiplier, Weighing, constrained_reward


def weighing(limit: float | None = 0.5, normalise: bool = False, **kinds: list[str]) -> Weighing:
    """Of two parts, `help` with the weight 2 and `cost`."""
    parts = {"help": RewardPart("model", 2.0, None), "cost": RewardPart("model", 1.0, None, cost=True)}
    for name, own in kinds.items():
        parts[name].kinds = own
    its = None if limit is None else MultiplierConfig(1.0, 0.1, 5.0)
    return Weighing(RewardConfig("test", parts, False, normalise, limit, its))


def test_the_multiplier_takes_the_steps_of_the_formula() -> None:
    multiplier = Multiplier(limit=0.5, start=2.0, rate=0.1, most=5.0)
    assert multiplier.update(1.5) == pytest.approx(2 * math.exp(0.1 * 2 * 1.0), rel=1e-12)  # ln λ + rate · λ · gap
    assert multiplier.value == pytest.approx(2.442805516, rel=1e-9)
    assert multiplier.update(-0.5) == pytest.approx(2.442805516 * math.exp(-0.1 * 2.442805516), rel=1e-9)


def test_a_cost_above_the_limit_raises_it_one_below_lowers_it_and_one_at_the_limit_leaves_it() -> None:
    for limit in (-1.0, 0.0, 2.0):
        assert Multiplier(limit, 1.0, 0.1, 5.0).update(limit + 0.3) > 1.0
        assert 0 < Multiplier(limit, 1.0, 0.1, 5.0).update(limit - 0.3) < 1.0
        assert Multiplier(limit, 1.0, 0.1, 5.0).update(limit) == 1.0


def test_it_ends_at_its_maximum_and_never_below_0() -> None:
    high, low = Multiplier(0.0, 1.0, 1.0, 3.0), Multiplier(0.0, 1.0, 1.0, 3.0)
    assert [high.update(100.0) for _ in range(3)][-1] == pytest.approx(3.0)
    assert high.update(-0.1) < 3.0, "and comes back from there"
    assert all(low.update(-5.0) > 0 for _ in range(50))
    with pytest.raises(ValueError, match="nan"):
        low.update(math.nan)


def test_it_goes_on_from_its_state_exactly() -> None:
    whole, first, second = (Multiplier(0.2, 1.0, 0.3, 5.0) for _ in range(3))
    costs = [0.7, 0.1, 1.3, -0.4]
    wanted = [whole.update(cost) for cost in costs]
    assert [first.update(cost) for cost in costs[:2]] == wanted[:2]
    second.load_state_dict(first.state_dict())
    assert [second.update(cost) for cost in costs[2:]] == wanted[2:], "bit for bit"


def test_the_reward_under_a_constraint() -> None:
    help_, cost = torch.tensor([1.0, 3.0]), torch.tensor([2.0, -1.0])
    assert constrained_reward(help_, cost, 0.0).tolist() == [1.0, 3.0]
    assert constrained_reward(help_, cost, 3.0).tolist() == [(1 - 6) / 4, (3 + 3) / 4]


def test_parts_are_summed_by_what_they_are_and_evaluations_keep_the_first_multiplier() -> None:
    reward = weighing()
    scores = {"help": [1.0, 0.5], "cost": [-3.0, 1.0]}  # how safe: a cost of 3 and of -1
    assert reward.total(scores).tolist() == [(2 - 3) / 2, (1 + 1) / 2]
    assert reward.multiplier is not None
    reward.multiplier.load_state_dict({"log": math.log(3.0)})
    assert reward.total(scores).tolist() == pytest.approx([(2 - 9) / 4, (1 + 3) / 4])
    assert reward.total(scores, held_out=True).tolist() == [(2 - 3) / 2, (1 + 1) / 2]
    assert reward.cost_and_help(scores, [True, True]) == {"cost": 1.0, "helpfulness": 1.5}
    assert reward.cost_and_help(scores, [False, True]) == {"cost": -1.0, "helpfulness": 1.0}


def test_without_a_limit_nothing_is_learnt_and_nothing_saved() -> None:
    parts = {"a": RewardPart("model", 2.0, None), "b": RewardPart("oracle", -1.0, None)}
    reward = Weighing(RewardConfig("test", parts, False, False, None, None))
    assert reward.total({"a": [1.0, math.nan], "b": [0.5, 2.0]}).tolist() == [1.5, -2.0]
    assert reward.state_dict() == {}
    assert reward.cost_and_help({"a": [1.0], "b": [0.5]}, [True]) == {}


def test_scales_are_the_spread_of_each_part_over_the_prompts_that_it_scores_and_keep_the_mean() -> None:
    reward = weighing(None, normalise=True, help=["benign"])
    kinds = ["benign", "harmful", "benign", "harmful"]
    assert reward.uncalibrated
    reward.calibrate({"help": [10.0, 0.0, 30.0, 0.0], "cost": [1.0, 3.0, 1.0, 3.0]}, kinds)
    assert reward.state_dict() == {"scales": {"help": 10.0, "cost": 1.0}}
    assert reward.total({"help": [5.0], "cost": [9.0]}).tolist() == [2 * 5.0 / 10.0], (
        "a cost without a limit is left out"
    )
    other = weighing(None, normalise=True)
    other.load_state_dict(reward.state_dict())
    assert not other.uncalibrated and other.state_dict() == reward.state_dict()
    assert [reward.asks("help", kind) for kind in ("benign", "harmful")] == [True, False]
    assert reward.asks("cost", "benign") and reward.asks("cost", "")


def test_a_part_that_says_the_same_of_all_has_no_scale() -> None:
    reward = weighing(None, normalise=True)
    with pytest.raises(UserError, match=r"reward.parts.cost gives all 2 replies .* one score.*reward.normalise=false"):
        reward.calibrate({"help": [1.0, 2.0], "cost": [1.0, 1.0]}, ["", ""])


def test_the_mean_cost_is_in_the_cost_models_unit_whatever_the_scales() -> None:
    reward = weighing(0.5, normalise=True)
    reward.load_state_dict({"scales": {"help": 10.0, "cost": 4.0}, "multiplier": {"log": 0.0}})
    scores = {"help": [5.0], "cost": [-8.0]}
    assert reward.total(scores).tolist() == [(1.0 - 2.0) / 2]
    assert reward.cost_and_help(scores, [True]) == {"cost": 8.0, "helpfulness": 10.0}
