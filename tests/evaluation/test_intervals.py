"""Intervals against published values, other formulas and simulated samples."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tinychat.evaluation.statistics import Z, mean_interval, pass_at_k, ratio_interval, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe 1998, table I, method 3 (score), and the closed forms at the ends: z²/(n + z²)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 1 - 0.1611, 1.0),
    ],
)
def test_wilson(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_of_nothing_is_everything() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_mean_interval_by_hand() -> None:
    # mean 3, variance (4 + 1 + 0 + 1 + 4) / 4 = 2.5, standard error sqrt(2.5 / 5)
    low, high = mean_interval([1, 2, 3, 4, 5])
    assert (low + high) / 2 == pytest.approx(3)
    assert high - low == pytest.approx(2 * Z * math.sqrt(0.5))
    assert mean_interval([2.0, 2.0]) == (2.0, 2.0)


@pytest.mark.parametrize("values", [[], [1.0]])
def test_fewer_than_two_values_have_no_interval(values: list[float]) -> None:
    assert all(math.isnan(bound) for bound in mean_interval(values))


def test_ratio_interval_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        tokens = random.integers(1, 40, 200)
        nats = tokens * (2 + random.normal(0, 0.5, 200))  # tokens of one row share their difficulty
        low, high = ratio_interval(nats, tokens)
        covered += low < 2 < high
    assert 0.925 < covered / 1000 < 0.97


def test_pass_at_k_against_all_draws() -> None:
    for n, c in ((5, 0), (5, 2), (6, 3), (4, 4)):
        answers = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            draws = list(itertools.combinations(answers, k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)
    assert pass_at_k(10_000, 1, 10) == pytest.approx(1e-3)
    for n, c, k in ((4, 2, 5), (4, 5, 1), (4, -1, 1), (4, 2, 0)):
        with pytest.raises(ValueError, match=f"pass@{k} of {n} answers with {c} right"):
            pass_at_k(n, c, k)
