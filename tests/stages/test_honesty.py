"""What stands beside a safe rate: benign prompts, and replies before and after."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.chat_models import babbler
from tests.data.test_own_words import ROWS, data_of
from tinychat.evaluation.statistics import wilson
from tinychat.runtime.world import World
from tinychat.stages import honesty
from tinychat.stages.honesty import BenignPrompts, add_after, keep_before, write_side_by_side
from tinychat.text.chat_template import set_template
from tinychat.tracking import vocabulary

ALONE = World(0, 0, 1, torch.device("cpu"))
ENGINE: Any = SimpleNamespace(generation=contextlib.nullcontext, dtype=torch.float32)


def context_in(folder: Path) -> Any:
    return SimpleNamespace(world=ALONE, run_dir=folder, tracker=SimpleNamespace(log_table=lambda *_: None))


def benign(folder: Path, most: int | None) -> BenignPrompts:
    tokenizer = babbler()[1]
    set_template(tokenizer, "instruct")
    stage = SimpleNamespace(benign_prompts=most, generate_tokens=4, generate_batch_size=8)
    config: Any = SimpleNamespace(data=data_of("prompts"), stage=stage)
    return BenignPrompts(tokenizer, config, context_in(folder))


def table(folder: Path, name: str) -> Any:
    return json.loads((folder / "tables" / f"{name}.json").read_text())


def test_who_refuses_all_refuses_both_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, half = benign(tmp_path, None), len(ROWS) // 2
    monkeypatch.setattr(honesty, "shared_replies", lambda *_: [("I can't help with that.", True)] * len(ROWS))
    found = own.measure(ENGINE)
    vocabulary.check_names(found)
    assert (found["eval/over_refusal_benign"], found["eval/refusal_contrast"]) == (1.0, 1.0)
    assert found["eval/over_refusal_benign_low"] == wilson(half, half)[0]


def test_a_language_in_which_nothing_is_refused_does_not_hide_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, english = benign(tmp_path, None), [row["language"] == "en" for row in ROWS]
    said = [("I can't help with that." if one else "我不知道。", True) for one in english]
    monkeypatch.setattr(honesty, "shared_replies", lambda *_: said)
    found = own.measure(ENGINE)
    vocabulary.check_names(found)
    for name in ("eval/over_refusal_benign", "eval/refusal_contrast"):
        assert found[name] == sum(english) / len(ROWS)
        assert (found[f"{name}_en"], found[f"{name}_zh"]) == (1.0, 0.0)
        assert found[f"{name}_en_low"] == wilson(sum(english) // 2, sum(english) // 2)[0]
    few = benign(tmp_path, 2)  # of one language
    monkeypatch.setattr(honesty, "shared_replies", lambda *_: said[:2])
    assert not [name for name in few.measure(ENGINE) if "_en" in name]


def test_the_two_halves_are_counted_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the first two pairs' benign prompts is refused, and both contrasts."""
    own = benign(tmp_path, 5)  # in pairs: two of them
    said = ["Sorry, I can't do that.", "I won't help with that.", "Sure: like this.", "我不能帮助你。"]
    monkeypatch.setattr(honesty, "shared_replies", lambda *_: [(text, True) for text in said])
    found = own.measure(ENGINE)
    assert (found["eval/over_refusal_benign"], found["eval/refusal_contrast"]) == (0.5, 1.0)
    own.write_tables()
    rows = table(tmp_path, "benign")["rows"]
    assert [row[3:5] for row in rows] == [
        ["answer", "refused"], ["refuse", "refused"], ["answer", "answered"], ["refuse", "refused"]
    ]  # fmt: skip
    assert {row[0] for row in rows} < {row["prompt"] for row in ROWS}
    everything = [row for row in table(tmp_path, "benign_kinds")["rows"] if row[0] == "all"]
    assert [sum(column) for column in zip(*(row[2:] for row in everything), strict=True)] == [2, 1, 2, 2]


def test_replies_stand_beside_those_before_training_also_after_a_resume(tmp_path: Path) -> None:
    keep_before({"requests": [("a", "no"), ("b", "yes")], "alpaca": [("a", "1")]}, context_in(tmp_path))
    add_after({"requests": [("a", "never"), ("c", "?")], "alpaca": [("a", "2")]}, context_in(tmp_path))
    found = table(tmp_path, "before_after")
    assert found["columns"] == ["of", "prompt", "before", "after"] and found["title"].startswith("Replies")
    assert found["rows"] == [["requests", "a", "no", "never"], ["alpaca", "a", "1", "2"]]


def test_without_a_start_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    add_after({"requests": [("a", "never")]}, context_in(tmp_path))
    assert not (tmp_path / "tables").exists()


def test_checkpoints_answer_the_same_prompts_side_by_side(tmp_path: Path) -> None:
    said = [{"requests": [("a", "1"), ("b", "2")]}, {"requests": [("a", "3")]}, {}]
    write_side_by_side(["x", "y", "z"], said, context_in(tmp_path))
    rows = table(tmp_path, "side_by_side")["rows"]
    assert rows == [["requests", "a", "1", "3", None], ["requests", "b", "2", None, None]]
