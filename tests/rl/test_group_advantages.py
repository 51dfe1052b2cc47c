"""From the scores of a group to advantages: by hand, with scores missing, equal, or nearly so."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from tinychat.errors import UserError
from tinychat.rl.advantages import (
    group_advantages,
    part_advantages,
    sampler_correction,
    soft_length_penalty,
    with_kl_penalty,
)


def test_group_advantages_against_the_statistics_module() -> None:
    scores = [1.0, 2.0, 4.0, 0.0, 0.0, 9.0]
    advantages, spread = group_advantages(torch.tensor(scores), 3, True, "grpo")
    plain, _ = group_advantages(torch.tensor(scores), 3, False, "dr_grpo")
    others, _ = group_advantages(torch.tensor(scores), 3, False, "rloo")
    for start in (0, 3):
        group = scores[start : start + 3]
        centred = [score - statistics.mean(group) for score in group]
        expected = [value / statistics.stdev(group) for value in centred]
        assert advantages[start : start + 3].tolist() == pytest.approx(expected, rel=1e-5)
        assert plain[start : start + 3].tolist() == pytest.approx(centred, rel=1e-6)
        left_out = [own - (sum(group) - own) / 2 for own in group]
        assert others[start : start + 3].tolist() == pytest.approx(left_out, rel=1e-5)
    assert spread.tolist() == [True] * 6


def test_in_a_group_of_two_each_is_compared_with_the_other() -> None:
    scores = torch.tensor([1.0, 0.0, -3.0, 5.0])
    scaled, _ = group_advantages(scores, 2, True, "grpo")
    assert scaled.tolist() == pytest.approx([math.sqrt(0.5), -math.sqrt(0.5), -math.sqrt(0.5), math.sqrt(0.5)])
    assert group_advantages(scores, 2, False, "dr_grpo")[0].tolist() == [0.5, -0.5, -4.0, 4.0]
    assert group_advantages(scores, 2, False, "rloo")[0].tolist() == [1.0, -1.0, -8.0, 8.0]


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
@pytest.mark.parametrize("divide_by_std", [True, False])
def test_the_advantages_of_equal_scores_are_exactly_0(divide_by_std: bool, kind: str) -> None:
    scores = torch.tensor([0.1] * 7 + [1.0] * 3 + [0.0] * 4)
    assert (scores[:7] - scores[:7].mean()).abs().max() > 0, "the mean is rounded"
    advantages, spread = group_advantages(scores, 7, divide_by_std, kind)
    assert advantages[:7].tolist() == [0.0] * 7
    assert spread.tolist() == [False] * 7 + [True] * 7
    assert advantages[7:].sum().item() == pytest.approx(0, abs=1e-5)


def test_nearly_equal_scores_have_no_large_advantages() -> None:
    near, spread = group_advantages(torch.tensor([0.5, 0.5, 0.5, 0.502]), 4, True, "grpo")
    assert near.tolist() == pytest.approx([-0.05, -0.05, -0.05, 0.15], rel=1e-3)
    assert spread.all()
    for apart in (1e-6, 1e-4, 1e-3, 1e-2, 0.03, 0.1):
        for size in (2, 4, 16, 64):
            scores = torch.full((size,), 0.5)
            scores[0] += apart
            found, _ = group_advantages(scores, size, True, "grpo")
            assert found.abs().max() <= 1.0001
    # Rewards of 0 and 1 are divided by their own std, also where one in many is right.
    for size in (2, 8, 64):
        scores = torch.zeros(size)
        scores[0] = 1
        found, _ = group_advantages(scores, size, True, "grpo")
        assert found[0].item() == pytest.approx((1 - 1 / size) * math.sqrt(size), rel=1e-5)


def test_there_is_no_step_where_the_bound_begins() -> None:
    """Larger differences never give a smaller advantage, and the largest grows without a jump."""
    scale = torch.linspace(0, 1.5, 3001, dtype=torch.float64)[1:]
    shape = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.3, 0.0, 1.0], dtype=torch.float64)
    found, _ = group_advantages((scale[:, None] * shape).flatten(), 8, True, "grpo")
    best = found.view(-1, 8)[:, 7]
    assert (best.diff() > -1e-12).all()
    assert best.diff().max() < 0.05


def test_a_missing_score_is_no_score_of_the_group() -> None:
    scores = torch.tensor([1.0, math.nan, 0.0, 5.0, math.nan, math.nan, 7.0, math.inf])
    known = torch.tensor([True, False, True, True, False, False, True, False])
    for kind, factor in (("dapo", 1.0), ("rloo", 1.5)):
        advantages, spread = group_advantages(scores, 4, False, kind, known)
        assert advantages.tolist() == pytest.approx([-factor, 0, -2 * factor, 3 * factor, 0, 0, 0, 0])
        assert spread.tolist() == [True] * 4 + [False] * 4, "one score is no spread"
    scaled, _ = group_advantages(scores, 4, True, "grpo", known)
    assert scaled[:4].tolist() == pytest.approx([x / statistics.stdev([1, 0, 5]) for x in (-1, 0, -2, 3)])
    nothing, spread = group_advantages(scores, 4, True, "grpo", torch.zeros(8, dtype=torch.bool))
    assert nothing.abs().sum() == 0 and not spread.any()
    with pytest.raises(ValueError, match="NaN or infinity"):
        group_advantages(scores, 4, True, "grpo")


def test_groups_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(7,\) are not made of groups of 3"):
        group_advantages(torch.zeros(7), 3, True, "grpo")
    with pytest.raises(UserError, match="group_size=1: "):
        group_advantages(torch.zeros(7), 1, True, "grpo")
    with pytest.raises(UserError, match=r"loss=rlo: .* Did you mean rloo"):
        group_advantages(torch.zeros(4), 2, True, "rlo")


def test_each_part_counts_by_its_weight_whatever_its_scale() -> None:
    parts = torch.tensor([[0.0, 300.0], [1.0, 100.0], [0.0, 200.0], [1.0, 200.0], *[[1.0, 5.0]] * 3, [1.0, 6.0]])
    found = part_advantages(parts, torch.tensor([1.0, 0.5]), 4)
    first, second = (group_advantages(part, 4, True, "grpo")[0] for part in parts.T)
    assert found.tolist() == pytest.approx((first + 0.5 * second).tolist())
    assert first[4:].tolist() == [0.0] * 4, "a part without spread adds nothing"
    assert found.tolist() == pytest.approx(part_advantages(parts * torch.tensor([1.0, 9.0]), torch.tensor([1, 0.5]), 4))
    summed, _ = group_advantages(parts.sum(1), 4, True, "grpo")
    assert summed[3] < 0.1 < found[3], "added first, the second part drowns the first"


def test_a_reply_without_one_of_its_parts_is_left_out() -> None:
    parts = torch.tensor([[1.0, 2.0], [0.0, math.nan], [0.0, 3.0]])
    found = part_advantages(parts, torch.ones(2), 3)
    assert found.tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)  # ±0.707 and -±0.707 of the two others
    found = part_advantages(parts, torch.tensor([1.0, 0.0]), 3)
    assert found.tolist() == pytest.approx([math.sqrt(0.5), 0.0, -math.sqrt(0.5)])


def test_the_kl_in_the_reward_is_what_is_still_to_come_against_the_group() -> None:
    kl = torch.tensor([[1.0, 2.0, 4.0], [3.0, math.nan, math.nan]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    advantages = torch.tensor([10.0, -10.0])
    # still to come: 7 6 4 and 3 (0 0); means 5 3 2
    found = with_kl_penalty(advantages, kl, 0.5, mask, 2, "grpo")
    assert found.tolist() == [[9.0, 8.5, 9.0], [-9.0, 0.0, 0.0]]
    found = with_kl_penalty(advantages, kl, 0.5, mask, 2, "rloo")
    assert found.tolist() == [[8.0, 7.0, 8.0], [-8.0, 0.0, 0.0]]


def test_corrections_of_the_sampler_by_hand() -> None:
    ratios = torch.tensor([[0.1, 0.5, 1.0, 3.0, 50.0]])
    sampled = torch.full((1, 6), -2.0)
    old = torch.cat([sampled[:, :5] + ratios.log(), torch.tensor([[math.nan]])], 1)
    mask = torch.tensor([[1, 1, 1, 1, 1, 0]])
    for kind, expected in {
        "none": [1, 1, 1, 1, 1, 0],
        "tis": [0.1, 0.5, 1, 2, 2, 0],
        "icepop": [0, 0.5, 1, 3, 0, 0],
    }.items():
        found = sampler_correction(old.requires_grad_(), sampled, mask, kind, 2.0, 0.4, 5.0)
        assert found.tolist()[0] == pytest.approx(expected, rel=1e-5), kind
        assert not found.requires_grad
    huge = sampler_correction(sampled + 500, sampled, mask, "icepop", 2.0, 0.4, 5.0)
    assert huge.abs().sum() == 0
    for bad, message in {
        ("tiss", 2.0, 0.5, 5.0): r"correction=tiss: .* Did you mean tis",
        ("tis", 0.5, 0.5, 5.0): r"correction_cap=0\.5",
        ("icepop", 2.0, 1.5, 5.0): r"correction_low=1\.5",
        ("icepop", 2.0, 0.5, 0.9): r"correction_high=0\.9",
        ("sequence_mask", 2.0, 0.5, 0.9): r"correction_high=0\.9",
    }.items():
        with pytest.raises(UserError, match=message):
            sampler_correction(sampled, sampled, mask, *bad)


def test_replies_whose_mean_quotient_leaves_the_band_are_left_out() -> None:
    sampled = torch.full((3, 4), -1.0)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    quotients = torch.tensor([[4.0, 0.25, 1.0, 99.0], [9.0, 1.0, 0.001, 0.0], [0.3, 0.3, 0.5, 0.3]])
    # Means: 1 in the first row, whose single tokens icepop would leave out; 3 in the second, 0.34 in the third.
    found = sampler_correction(sampled + quotients.log(), sampled, mask, "sequence_mask", 2.0, 0.5, 2.5)
    assert found.tolist() == [[1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    wider = sampler_correction(sampled + quotients.log(), sampled, mask, "sequence_mask", 2.0, 0.5, 3.5)
    assert wider[1].tolist() == [1, 1, 0, 0]


def test_the_soft_penalty_falls_evenly_over_the_last_tokens() -> None:
    found = soft_length_penalty(torch.tensor([0, 60, 65, 70, 80, 90]), limit=80, buffer=20)
    assert found.tolist() == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]
    assert soft_length_penalty(torch.tensor([1, 3, 4]), 4, 4).tolist() == [-0.25, -0.75, -1.0]
    for buffer in (0, 5):
        with pytest.raises(UserError, match=f"soft_length={buffer}"):
            soft_length_penalty(torch.tensor([1]), 4, buffer)
