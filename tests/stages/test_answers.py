"""Answers to held-out prompts: accuracy and pass@k from replies that are given, and what is refused."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.chat_models import babbler
from tests.data.chats.test_sources import config as data_config
from tests.data.chats.test_sources import write
from tinychat.config.schema import RewardPart
from tinychat.config.stages import PASS_K, AnswerEvaluation
from tinychat.engine.base import Engine
from tinychat.errors import UserError
from tinychat.runtime.world import World
from tinychat.stages import answers
from tinychat.stages.answers import HeldOutAnswers
from tinychat.stages.policy import thought_lengths
from tinychat.text.chat_template import set_template
from tinychat.tracking import vocabulary

ALONE = World(0, 0, 1, torch.device("cpu"))
# Whether each prompt's greedy reply is right, and its four sampled ones.
RIGHT = {"1": (True, [1, 1, 1, 1]), "2": (False, [1, 0, 0, 0]), "3": (True, [0, 0, 0, 0]), "4": (False, [1, 1, 0, 0])}


def held_out(tmp_path: Path, rows: list[dict[str, Any]], kind: str | None = None, **changes: Any) -> HeldOutAnswers:
    write(tmp_path / "train.jsonl", rows[:1])
    write(tmp_path / "validation.jsonl", rows)
    tokenizer = babbler()[1]
    set_template(tokenizer, "instruct")
    stage = {"pass_k": [1, 2, 4], "pass_samples": None, "pass_prompts": 9, "temperature": 1.0, "generate_tokens": 4}
    stage |= {"generate_batch_size": 8, "name": "rlvr", **changes}
    part = RewardPart(kind="verifier", weight=1.0, options={} if kind is None else {"answer": kind})
    reward = SimpleNamespace(parts={"verifier": part})
    data = data_config(tmp_path, source="prompts")
    config = SimpleNamespace(data=data, reward=reward, stage=SimpleNamespace(**stage), seed=1)
    tracker = SimpleNamespace(log_table=lambda *_: None)
    context = SimpleNamespace(world=ALONE, run_dir=tmp_path, tracker=tracker)
    return HeldOutAnswers(tokenizer, 64, config, context)  # type: ignore[arg-type]


def test_accuracy_and_pass_at_k_are_those_of_the_replies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"{number}?", "reference": number, "answer": "math"} for number in RIGHT]
    own = held_out(tmp_path, [*rows, {"prompt": "open?"}, {"prompt": "stated?", "reference": "so"}])
    assert [row.reference for row in own.prompts.rows] == list(RIGHT)

    def greedy(_model: Any, _tokenizer: Any, ids: list[Any], *_more: Any) -> list[tuple[str, bool]]:
        return [(row.reference if RIGHT[row.reference][0] else "0", True) for row in own.prompts.rows]

    def sample(_model: Any, batch: Any, options: Any, *_more: Any) -> Any:
        assert (options.group, options.temperature) == (4, 1.0)
        rows = [row for row in batch.rows for _ in range(4)]
        return SimpleNamespace(rows=rows, responses=[(row.reference, place % 4) for place, row in enumerate(rows)])

    monkeypatch.setattr(answers, "shared_replies", greedy)
    monkeypatch.setattr(answers, "sample_replies", sample)
    monkeypatch.setattr(answers, "reply_text", lambda _tokenizer, said: said[0] if RIGHT[said[0]][1][said[1]] else "0")

    @contextlib.contextmanager
    def generation() -> Iterator[None]:
        yield None

    found = own.measure(SimpleNamespace(generation=generation, dtype=torch.float32))  # type: ignore[arg-type]
    vocabulary.check_names(found)
    assert found["eval/accuracy"] == 0.5
    assert found["eval/pass_at_1"] == pytest.approx((1 + 1 / 4 + 0 + 1 / 2) / 4)
    assert found["eval/pass_at_2"] == pytest.approx((1 + 1 / 2 + 0 + 5 / 6) / 4)
    assert found["eval/pass_at_4"] == pytest.approx((1 + 1 + 0 + 1) / 4)
    assert found["eval/pass_at_4_low"] < found["eval/pass_at_4"] <= found["eval/pass_at_4_high"] <= 1
    own.write_tables()
    table = json.loads((tmp_path / "tables" / "pass_at_k.json").read_text())
    assert table["columns"] == ["task family", "prompts", "accuracy", "pass@1", "pass@2", "pass@4"]
    assert table["rows"] == [["all", 4, 0.5, *(pytest.approx(found[f"eval/pass_at_{k}"]) for k in (1, 2, 4))]]


def test_answers_are_checked_as_the_reward_does(tmp_path: Path) -> None:
    """reward.parts.NAME.options.answer says how, also of rows that say another kind, or none."""
    rows = [{"prompt": "1?", "reference": "3", "answer": "exact"}, {"prompt": "2?", "reference": "3"}]
    rows += [{"prompt": "open?"}]
    assert [row.answer for row in held_out(tmp_path, rows).prompts.rows] == ["exact"]
    own = held_out(tmp_path, rows, kind="number")
    assert [row.answer for row in own.prompts.rows] == ["number", "number"]
    assert own._right(["It is 3.", "4"], own.prompts.rows) == [True, False]
    measured = held_out(tmp_path, rows, kind="number", name="eval")
    assert [row.answer for row in measured.prompts.rows] == ["exact"], "which has no reward"


def test_without_k_greedy_replies_alone_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"{number}?", "reference": number, "answer": "math"} for number in RIGHT]
    own = held_out(tmp_path, rows, pass_k=[])

    def greedy(*_: Any) -> list[tuple[str, bool]]:
        return [(row.reference if row.reference == "2" else "0", True) for row in own.prompts.rows]

    monkeypatch.setattr(answers, "shared_replies", greedy)
    monkeypatch.setattr(answers, "sample_replies", None)
    engine = SimpleNamespace(generation=contextlib.nullcontext, dtype=torch.float32)
    found = own.measure(engine)  # type: ignore[arg-type]
    assert found["eval/accuracy"] == 0.25 and set(found) == {f"eval/accuracy{end}" for end in ("", "_low", "_high")}
    own.write_tables()
    table = json.loads((tmp_path / "tables" / "pass_at_k.json").read_text())
    assert (table["columns"], table["rows"]) == (["task family", "prompts", "accuracy"], [["all", 4, 0.25]])
    table = json.loads((tmp_path / "tables" / "answers.json").read_text())
    assert table["columns"] == ["prompt", "reference", "greedy reply", "right"]
    assert ["2?", "2", "2", "yes"] in table["rows"] and ["1?", "1", "0", "no"] in table["rows"]


def test_the_same_replies_are_drawn_every_time(tmp_path: Path) -> None:
    rows = [{"prompt": f"{number}?", "reference": number, "answer": "math"} for number in RIGHT]
    own = held_out(tmp_path, rows, pass_samples=5)

    def engine() -> Engine:
        @contextlib.contextmanager
        def generation() -> Iterator[Any]:
            yield babbler()[0]

        return SimpleNamespace(generation=generation, dtype=torch.float32)  # type: ignore[return-value]

    seen = []
    for _ in range(2):
        own.measure(engine())
        seen.append(own._found)
    assert seen[0] == seen[1]
    assert len({drawn for _, _, drawn, _ in seen[0]}) > 1


def test_prompts_without_answers_have_no_pass_at_k(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"stage.pass_k=\[1, 2, 4\]: no held-out prompt of data=own has a checkable"):
        held_out(tmp_path, [{"prompt": "open?"}, {"prompt": "stated?", "reference": "so"}])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pass_k": [3]}, f"stage.pass_k=[3]: 3 is none of {', '.join(map(str, PASS_K))}"),
        ({"pass_samples": 4}, "stage.pass_samples=4: at least the largest of stage.pass_k=[1, 8], or null"),
        ({"pass_prompts": 0}, "stage.pass_prompts=0: must be at least 1"),
        ({"temperature": 0.0}, "stage.temperature=0.0: above 0; pass@k is of sampled replies"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], says: str) -> None:
    settings = {"pass_k": [1, 8], "pass_samples": None, "pass_prompts": 9, "temperature": 1.0, **changes}
    assert list(AnswerEvaluation(**settings).problems(1)) == [says]
    assert not list(AnswerEvaluation([], None, 9, 0.0).problems(1))


def test_thoughts_and_answers_are_measured_where_replies_mark_them() -> None:
    tokenizer = babbler()[1]

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False).input_ids)

    found = thought_lengths(tokenizer, ["<think>the cat sat</think>on", "the mat\n#### the dog", "the\ndog"])
    vocabulary.check_names(found)
    assert found == {
        "rl/thought_length": pytest.approx((count("the cat sat") + count("the mat")) / 3),
        "rl/answer_length": pytest.approx((count("on") + count("the dog") + count("the\ndog")) / 3),
    }
    assert thought_lengths(tokenizer, ["the cat", "the\ndog"]) == {}
