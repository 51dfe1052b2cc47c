"""Whether two results differ by more than chance, where their parts belong together in pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000  # sign flips drawn where all 2^n are more
EXACT_UP_TO = 13  # pairs: 2^13 = 8192


@dataclass(frozen=True)
class PairedResult:
    """Of n pairs of values, first minus second."""

    n: int
    difference: float  # mean
    low: float  # 95 % interval of the mean difference by Student's t; nan without spread
    high: float
    p_t: float  # paired t-test, two-sided; nan where the differences have no spread
    p_flip: float  # sign-flip permutation test of the mean, two-sided

    @property
    def exact(self) -> bool:
        """Whether p_flip is from all sign flips."""
        return self.n <= EXACT_UP_TO

    @property
    def smallest_p_flip(self) -> float:
        """The least that p_flip can be with so few pairs: all differences have one sign, 2 of 2^n flips."""
        return 2.0 ** (1 - self.n)


def paired(first: Sequence[float], second: Sequence[float]) -> PairedResult:
    """Paired t-test (Student 1908) and sign-flip permutation test (Fisher 1935, section 21) of two series (n,), (n,).

    Raises ValueError for fewer than two pairs: one difference tells nothing of chance.
    """
    from scipy import stats

    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"{len(a)} and {len(b)} values: at least two pairs are needed")
    gap = a - b
    mean = float(gap.mean())
    low = high = p_t = math.nan
    # Rounding leaves a spread of some 1e-16 of the values where there is none.
    if gap.std() > 1e-12 * max(np.abs(a).max(), np.abs(b).max()):
        test = stats.ttest_rel(a, b)
        interval = test.confidence_interval(0.95)
        low, high, p_t = float(interval.low), float(interval.high), float(test.pvalue)
    elif not np.abs(gap).max() > 0:
        return PairedResult(len(a), 0.0, low, high, p_t, 1.0)
    draws = np.inf if len(a) <= EXACT_UP_TO else RESAMPLES
    flips = stats.permutation_test(
        (a, b),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=draws,
        rng=np.random.default_rng(0),
    )
    return PairedResult(len(a), mean, low, high, p_t, float(flips.pvalue))


@dataclass(frozen=True)
class McNemarResult:
    """Of n items that two runs each met or did not."""

    n: int
    first_only: int  # items that the first met and the second did not
    second_only: int
    p: float  # exact, two-sided

    @property
    def difference(self) -> float:
        """Share that the first meets minus that of the second."""
        return (self.first_only - self.second_only) / self.n


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemarResult:
    """McNemar's test (1947) in its exact form: of the items on which the two differ, is each side's share a half?

    Raises ValueError without items or where the lengths differ.
    """
    from scipy import stats

    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} items: as many of both are needed, and at least one")
    first_only = sum(a and not b for a, b in zip(first, second, strict=True))
    second_only = sum(b and not a for a, b in zip(first, second, strict=True))
    split = first_only + second_only
    p = float(stats.binomtest(first_only, split).pvalue) if split else 1.0
    return McNemarResult(len(first), first_only, second_only, p)
