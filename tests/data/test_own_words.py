"""The project's own benign prompts and their contrasts, and its own refusals."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.config.test_compose import composed
from tests.conftest import write_rows
from tinychat.config.schema import DataConfig
from tinychat.data.chats.sources import chat_source
from tinychat.data.own_words import BENIGN, LOOK_ALIKES, REFUSALS
from tinychat.data.preferences.prompts import prompt_source
from tinychat.errors import UserError
from tinychat.evaluation import harm_rules
from tinychat.evaluation.refusals import refuses

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


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_refusals_refuse_and_what_only_sounds_like_harm_is_answered() -> None:
    refusals, look_alikes = rows_of(REFUSALS), rows_of(LOOK_ALIKES)
    assert len(refusals) >= 60 and len(look_alikes) >= 200
    for row in refusals:
        assert refuses(row["reply"]) and harm_rules.judge(row["prompt"], row["reply"]).safe, row["reply"]
    for row in look_alikes:
        assert ("reply" not in row) if row["harmful"] else not refuses(row.get("reply", "")), row
    assert Counter(row["harmful"] for row in look_alikes)[True] > 30
    assert {row["category"] for row in refusals} <= {row["category"] for row in look_alikes if "reply" in row}
    assert not [row for row in look_alikes if row["category"] == "none" and harm_rules.category(row["prompt"], "")]


def test_nothing_that_is_learnt_from_is_measured_and_nothing_stands_twice() -> None:
    rows = [*rows_of(REFUSALS), *rows_of(LOOK_ALIKES)]
    prompts = {row["prompt"] for row in rows}
    replies = [row["reply"] for row in rows if "reply" in row]
    assert len(prompts) == len(rows) and len(set(replies)) == len(replies)
    asked = set(OmegaConf.load(CONF / "pipeline/real.yaml").samples)
    assert not prompts & ({row["prompt"] for row in ROWS} | asked)


def test_they_are_part_of_a_mixture_and_measured_nowhere(tmp_path: Path) -> None:
    mine = tmp_path / "own.jsonl"
    write_rows(mine, [{"instruction": f"Say {n}.", "input": "", "output": f"{n}"} for n in range(40)])
    mixed = composed("stage=sft", "data=alpaca_refusals", f"data.path={mine}", "data.val_fraction=0.5").data
    replies = [row.messages[-1]["content"] for row in chat_source(mixed, "train").rows()]
    written = [row["reply"] for row in [*rows_of(REFUSALS), *rows_of(LOOK_ALIKES)] if "reply" in row]
    assert replies[-len(written) :] == written and len(replies) < len(written) + 40
    assert all(row.messages[0]["content"].startswith("Say") for row in chat_source(mixed, "validation").rows())
    for source in ("refusals", "look_alikes"):
        with pytest.raises(UserError, match=r"to be learnt from, not measured on.*data=alpaca_refusals"):
            chat_source(replace(mixed, source=source, path=None, mix={}), "validation")
