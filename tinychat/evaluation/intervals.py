"""95 % confidence intervals of what is measured on a sample of rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z = 1.959963984540054  # two-sided 95 % of the normal distribution
Interval = tuple[float, float]
UNKNOWN: Interval = (math.nan, math.nan)


def wilson(successes: int, n: int) -> Interval:
    """Of a share (Wilson 1927): inside [0, 1], and sensible where all or none succeed. (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    middle = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
    return (0.0 if successes == 0 else middle - half), (1.0 if successes == n else middle + half)


def mean_interval(values: Sequence[float]) -> Interval:
    """Of a mean: mean ± 1.96 standard errors.

    The normal interval and not the bootstrap's: it needs no random numbers, and over the hundreds of rows of an
    evaluation the two agree. (nan, nan) for fewer than two values, whose spread is not known.
    """
    return ratio_interval(values, np.ones(len(values)))


def ratio_interval(numerators: Sequence[float] | np.ndarray, denominators: Sequence[float] | np.ndarray) -> Interval:
    """Of sum(numerators) / sum(denominators), both given per row (Cochran 1977, section 2.11).

    For a loss per token the rows are the sample, not the tokens: tokens of one reply are not independent.
    """
    above, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    n, total = len(above), below.sum()
    if n < 2 or total <= 0:
        return UNKNOWN
    ratio = above.sum() / total
    half = Z * math.sqrt(n / (n - 1) * ((above - ratio * below) ** 2).sum()) / total
    return float(ratio - half), float(ratio + half)
