"""The story cloze: plots of our own, each with two turns, and to each turn its ending. A story is a start and a turn;
the endings to choose from are those of both turns. So each ending is right as often as it is wrong, and what an ending
is worth without its story (its length, its words) tells nothing. After the idea of the story cloze test (Mostafazadeh
et al. 2016)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PLOTS = Path(__file__).with_name("plots.jsonl")


def items() -> list[dict[str, Any]]:
    """{"story", "endings": [2], "right": 0 or 1}, two of each plot."""
    plots = [json.loads(line) for line in PLOTS.read_text("utf-8").splitlines()]
    return [
        {
            "story": f"{plot['start']} {turn['then']}",
            "endings": [other["end"] for other in plot["turns"]],
            "right": right,
        }
        for plot in plots
        for right, turn in enumerate(plot["turns"])
    ]


def load(**_: Any) -> dict[str, Any]:
    """As lm-eval's custom_dataset."""
    from datasets import Dataset

    return {"test": Dataset.from_list(items())}
