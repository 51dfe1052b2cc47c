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


def test_refusals_refuse_and_what_only_sounds_like_harm_is_answered() -> None:
    rows = [json.loads(line) for line in REFUSALS.read_text(encoding="utf-8").splitlines()]
    assert len(rows) >= 60 and len({row["reply"] for row in rows}) == len(rows)
    for row in rows:
        assert refuses(row["reply"]) is (row["wanted"] == "refuse"), row["reply"]
        assert row["wanted"] == "answer" or harm_rules.judge(row["prompt"], row["reply"]).safe, row["reply"]
    wanted = Counter((row["wanted"], row["category"]) for row in rows)
    assert {category for want, category in wanted if want == "answer"} == {row["category"] for row in rows}
    measured = {row["prompt"] for row in ROWS}
    asked = set(OmegaConf.load(CONF / "pipeline/real.yaml").samples)
    assert not {row["prompt"] for row in rows} & (measured | asked), "what is learnt from is not measured on"


def test_refusals_are_part_of_a_mixture_and_measured_nowhere(tmp_path: Path) -> None:
    mine = tmp_path / "own.jsonl"
    write_rows(mine, [{"instruction": f"Say {n}.", "input": "", "output": f"{n}"} for n in range(40)])
    mixed = composed("stage=sft", "data=alpaca_refusals", f"data.path={mine}", "data.val_fraction=0.5").data
    replies = [row.messages[-1]["content"] for row in chat_source(mixed, "train").rows()]
    written = [json.loads(line)["reply"] for line in REFUSALS.read_text(encoding="utf-8").splitlines()]
    assert replies[-len(written) :] == written and len(replies) < len(written) + 40
    assert all(row.messages[0]["content"].startswith("Say") for row in chat_source(mixed, "validation").rows())
    with pytest.raises(UserError, match=r"to be learnt from, not measured on.*data=alpaca_refusals"):
        chat_source(replace(mixed, source="refusals", path=None, mix={}), "validation")


def test_look_alikes_are_new_prompts_of_both_kinds_without_any_that_is_measured() -> None:
    rows = [json.loads(line) for line in LOOK_ALIKES.read_text(encoding="utf-8").splitlines()]
    prompts = {row["prompt"] for row in rows}
    assert len(prompts) == len(rows) > 200
    assert Counter(row["harmful"] for row in rows)[True] > 30
    assert not [row for row in rows if row["category"] == "none" and harm_rules.category(row["prompt"], "")]
    learnt = {json.loads(line)["prompt"] for line in REFUSALS.read_text(encoding="utf-8").splitlines()}
    asked = set(OmegaConf.load(CONF / "pipeline/real.yaml").samples)
    assert not prompts & ({row["prompt"] for row in ROWS} | asked | learnt)
