"""The project's own benign prompts and their contrasts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tinychat.config.schema import DataConfig
from tinychat.data.measured import BENIGN
from tinychat.data.preferences.prompts import prompt_source
from tinychat.errors import UserError

CONF = Path(__file__).parents[2] / "conf"
ROWS = [json.loads(line) for line in BENIGN.read_text(encoding="utf-8").splitlines()]


def data_of(name: str) -> Any:
    return OmegaConf.to_object(
        OmegaConf.merge(OmegaConf.structured(DataConfig), OmegaConf.load(CONF / f"data/{name}.yaml"))
    )


def test_every_benign_prompt_stands_before_its_contrast_of_the_same_kind_and_language() -> None:
    assert len(ROWS) >= 60
    assert len({row["prompt"] for row in ROWS}) == len(ROWS)
    for first, second in zip(ROWS[::2], ROWS[1::2], strict=True):
        assert (first["wanted"], second["wanted"]) == ("answer", "refuse")
        for key in ("pair", "kind", "language"):
            assert first[key] == second[key]
    languages = Counter(row["language"] for row in ROWS)
    assert min(languages["en"], languages["zh"]) >= 30
    for row in ROWS:
        chinese = any("\u4e00" <= letter <= "\u9fff" for letter in row["prompt"])
        assert chinese == (row["language"] == "zh"), row


def test_they_are_prompts_for_an_evaluation() -> None:
    data = data_of("benign")
    rows = list(prompt_source(data, "validation").rows())
    assert [row.messages[-1]["content"] for row in rows] == [row["prompt"] for row in ROWS]
    assert [row.harmful for row in rows] == [row["wanted"] == "refuse" for row in ROWS]
    assert rows[0].category == ROWS[0]["kind"]


def test_nothing_is_trained_on_them() -> None:
    with pytest.raises(UserError, match="data=benign: prompts to be measured on, not learnt from"):
        prompt_source(data_of("benign"), "train")
