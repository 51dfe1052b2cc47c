"""What a measured figure is worth: 95 % intervals of what is measured on a sample of rows, tests of two results
whose parts belong together in pairs, and whether predicted probabilities are what happens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tinychat.report.curves import save_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Z = 1.959963984540054  # two-sided 95 % of the normal distribution
Interval = tuple[float, float]
UNKNOWN: Interval = (math.nan, math.nan)


def wilson(successes: int, n: int) -> Interval:
    """Of a share (Wilson 1927): inside [0, 1], and sensible where all or none succeed. (0, 1) for n = 0."""
    from scipy import stats

    if n == 0:
        return 0.0, 1.0
    found = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


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


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that at least one of k answers to a prompt is right, from n of which c are (Chen et al. 2021, eq. 1):
    1 - C(n - c, k) / C(n, k). Unbiased, unlike 1 - (1 - c/n)^k.

    Raises ValueError unless 1 ≤ k ≤ n and 0 ≤ c ≤ n.
    """
    if not (1 <= k <= n and 0 <= c <= n):
        raise ValueError(f"pass@{k} of {n} answers with {c} right: 1 <= k <= n and 0 <= c <= n are needed")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


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


@dataclass(frozen=True)
class Bin:
    """Predictions in [low, high)."""

    low: float
    high: float
    count: int
    predicted: float  # their mean
    observed: float  # share of them that came true

    @property
    def interval(self) -> Interval:
        """95 % of the share."""
        return wilson(round(self.observed * self.count), self.count)


def calibration(probabilities: np.ndarray, outcomes: np.ndarray, low: float = 0.0, bins: int = 10) -> list[Bin]:
    """Equally wide bins of [low, 1], those without a prediction left out.

    probabilities (N,) in [low, 1]; outcomes (N,): 1 where it came true, 0 where not, 0.5 where it was a tie.
    """
    from scipy import stats  # scikit-learn's calibration_curve knows neither ties nor how many there are in a bin

    where = np.clip(probabilities, low, 1.0)  # rounded a little beyond
    means, edges, numbers = stats.binned_statistic(where, [probabilities, outcomes], "mean", bins, (low, 1.0))
    counts = np.bincount(numbers, minlength=bins + 1)[1:].tolist()
    rows = zip(edges[:-1].tolist(), edges[1:].tolist(), counts, *means.tolist(), strict=True)
    return [Bin(*row) for row in rows if row[2]]


def expected_calibration_error(found: list[Bin]) -> float:
    """Σ share of a bin · |predicted - observed| (Naeini et al. 2015; Guo et al. 2017, eq. 3)."""
    total = sum(one.count for one in found)
    return sum(one.count * abs(one.predicted - one.observed) for one in found) / total


def draw_calibration(found: list[Bin], what: str, path: Path) -> bool:
    """A picture of observed against predicted with 95 % intervals, and how many predictions there are; False where
    matplotlib does not work."""
    return save_picture(path, lambda: _draw(found, what))


def _draw(found: list[Bin], what: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.6), dpi=130, layout="constrained")
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    low = min(0.5, found[0].low) if found[0].low >= 0.5 else 0.0
    axes.plot([low, 1], [low, 1], color="#b0b0b0", linewidth=1, linestyle="--", label="perfect")
    predicted, observed = [one.predicted for one in found], [one.observed for one in found]
    bounds = np.array([one.interval for one in found]).T
    reach = np.abs(bounds - observed)  # below and above; a share of 0 or 1 has its bound there
    axes.errorbar(predicted, observed, reach, color="#3b76af", marker="o", markersize=4, linewidth=1, label="held out")
    axes.set_ylabel("observed share", fontsize=9)
    axes.set_title(what, fontsize=10, loc="left")
    axes.set_ylim(min(low, *observed) - 0.03, 1.03)
    axes.legend(fontsize=8, frameon=False)
    centres, widths = [(one.low + one.high) / 2 for one in found], [0.9 * (one.high - one.low) for one in found]
    counts.bar(centres, [one.count for one in found], widths, color="#8fb3d3")
    counts.set_ylabel("number", fontsize=9)
    counts.set_xlabel("predicted probability", fontsize=9)
    for each in (axes, counts):
        each.tick_params(labelsize=8)
        each.grid(True, color="#e4e4e4", linewidth=0.6)
        each.set_axisbelow(True)
        each.spines[["top", "right"]].set_visible(False)
    return figure
