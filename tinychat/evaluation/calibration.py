"""Whether predicted probabilities are what happens: bins, expected calibration error, a picture."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinychat.evaluation.intervals import Interval, wilson

logger = logging.getLogger(__name__)


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
    edges = np.linspace(low, 1.0, bins + 1)
    numbers = np.clip(np.digitize(probabilities, edges) - 1, 0, bins - 1)
    found = []
    for number in range(bins):
        inside = numbers == number
        if count := int(inside.sum()):
            means = float(probabilities[inside].mean()), float(outcomes[inside].mean())
            found.append(Bin(float(edges[number]), float(edges[number + 1]), count, *means))
    return found


def expected_calibration_error(found: list[Bin]) -> float:
    """Σ share of a bin · |predicted - observed| (Naeini et al. 2015; Guo et al. 2017, eq. 3)."""
    total = sum(one.count for one in found)
    return sum(one.count * abs(one.predicted - one.observed) for one in found) / total


def draw_calibration(found: list[Bin], what: str, path: Path) -> bool:
    """A picture of observed against predicted with 95 % intervals, and how many predictions there are; False where
    matplotlib does not work."""
    try:
        _draw(found, what, path)
    except Exception as error:  # a broken matplotlib costs the picture, not the run
        logger.warning("no %s: %s: %s", path.name, type(error).__name__, str(error).partition("\n")[0])
        return False
    return True


def _draw(found: list[Bin], what: str, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
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
    figure.savefig(path, facecolor="white")
