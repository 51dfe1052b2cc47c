from __future__ import annotations

import logging
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from tests.data.preferences.test_sources import SHARED, config, needs_samples, world, write
from tinychat.config.schema import OnBadRow
from tinychat.data.preferences.prompts import PromptBatches, PromptRow, prompt_source
from tinychat.errors import UserError
from tinychat.text.chat_template import encode_prompts, set_template
from tinychat.text.tokenizer import load_saved_tokenizer

__all__ = ["world"]  # a fixture


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> PreTrainedTokenizerFast:
    tokenizer = load_saved_tokenizer(str(tokenizer_folder))
    set_template(tokenizer, "instruct")
    return tokenizer


def row(text: str) -> PromptRow:
    return PromptRow([{"role": "user", "content": text}], f"a.jsonl, {text[:9]}")


ROWS = [row(f"Say {i}.") for i in range(10)]


def test_prompts_of_preferences_come_once(tmp_path: Path) -> None:
    labelled = {"chosen": "a", "rejected": "b", "category": "drugs", "harmful": True}
    rows = [
        {"prompt": "One", **labelled},
        {"prompt": "Two", "chosen": "a", "rejected": "b"},
        {"prompt": "One", "chosen": "c", "rejected": "d"},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    val = write(tmp_path / "val.jsonl", [{"prompt": "Three", **labelled}])
    source = prompt_source(config(path, val_path=str(val)), "train")
    found = list(source.rows())
    assert [one.messages[0]["content"] for one in found] == ["One", "Two"]
    assert (found[0].category, found[0].harmful, found[0].place) == ("drugs", True, f"{path}, line 1")
    assert (found[1].category, found[1].harmful) == ("", None)
    assert source.n_duplicates == 1
    assert source.name == "own-train"
    assert source.description.startswith(f"the prompts of {path}")
    assert source.fingerprint() == prompt_source(config(path, val_path=str(val)), "train").fingerprint()
    assert source.fingerprint() != source.rows_of.fingerprint()


def test_prompts_of_conversations_lack_the_last_reply(tmp_path: Path) -> None:
    said = ["a", "b", "c", "d"]
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    path = write(tmp_path / "a.jsonl", [{"messages": messages}, {"messages": [*messages[:3], messages[1]]}])
    source = prompt_source(config(path, source="chat", val_path=str(path)), "train")
    (found,) = source.rows()
    assert found == PromptRow(messages[:3], f"{path}, line 1", reference="d")
    assert source.n_duplicates == 1


@pytest.mark.usefixtures("world")
def test_tinyworlds_requests_are_its_prompts() -> None:
    data = config(source="tinyworld", name="tinyworld", max_rows=4)
    rows = list(prompt_source(data, "train").rows())
    assert [one.harmful for one in rows] == [False, True, False, True]
    assert rows[1].request.category == rows[1].category == "fire"


def test_tinyworlds_instructions_are_prompts_where_they_are_asked_for() -> None:
    data = config(source="tinyworld", name="tinyworld", max_val_rows=2)
    tasks = list(prompt_source(data, "validation", "conversations").rows())
    assert len(tasks) == 2
    assert all(one.family and one.reference and one.messages[-1]["role"] == "user" for one in tasks)


def test_batches_are_the_same_for_any_number_of_ranks(tokenizer: PreTrainedTokenizerFast) -> None:
    batches = PromptBatches(ROWS, tokenizer, 64, 16, seed=1)
    assert (len(batches), batches.epoch_of(5, 4)) == (10, 2)
    seen: list[int] = []
    for step in range(5):
        whole = batches.batch(step, 4)
        parts = [PromptBatches(ROWS, tokenizer, 64, 16, seed=1).batch(step, 4, rank, 2) for rank in range(2)]
        assert [part.indices for part in parts] == [whole.indices[:2], whole.indices[2:]]
        assert whole.ids == encode_prompts(tokenizer, [one.messages for one in whole.rows])
        assert whole.rows == [ROWS[index] for index in whole.indices]
        seen += whole.indices
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]
    assert batches.longest == max(map(len, encode_prompts(tokenizer, [one.messages for one in ROWS])))


def test_prompts_longer_than_the_room_are_refused(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    longest = row("z y x " * 20)
    rows = [ROWS[0], row("a b c " * 12), longest, ROWS[1]]
    size = len(encode_prompts(tokenizer, [longest.messages])[0])
    want = (
        "2 of 4 prompts are longer than the 24 tokens that a context of 40 leaves beside stage.response_length=16; "
        f"the longest has {size} tokens (a.jsonl, z y x z y)"
    )
    with pytest.raises(UserError) as caught:
        PromptBatches(rows, tokenizer, 40, 16, seed=1)
    assert str(caught.value) == (
        f"{want}; lower stage.response_length, take a model with a longer context, or leave them out: "
        "data.on_bad_row=skip"
    )
    with caplog.at_level(logging.WARNING):
        kept = PromptBatches(rows, tokenizer, 40, 16, seed=1, on_long=OnBadRow.skip)
    assert (kept.rows, kept.n_dropped) == ([ROWS[0], ROWS[1]], 2)
    assert f"{want}; left out" in caplog.text
    with pytest.raises(UserError, match=r"^2 of 2 prompts are longer .* take a model with a longer context$"):
        PromptBatches(rows[1:3], tokenizer, 40, 16, seed=1, on_long=OnBadRow.skip)
    # exactly as long as the room
    assert len(PromptBatches([longest], tokenizer, size + 16, 16, seed=1)) == 1


def test_nothing_to_ask_and_no_room(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="the prompt set is empty"):
        PromptBatches([], tokenizer, 64, 16, seed=1)
    for context, response in ((16, 16), (16, 17), (16, 0)):
        with pytest.raises(UserError, match=f"stage.response_length={response}: at least 1, and less than"):
            PromptBatches(ROWS, tokenizer, context, response, seed=1)
    with pytest.raises(UserError, match="does not divide over 2 ranks"):
        PromptBatches(ROWS, tokenizer, 64, 16, seed=1).batch(0, 3, 0, 2)


@needs_samples
def test_samples(tokenizer: PreTrainedTokenizerFast) -> None:
    source = prompt_source(config(SHARED / "pku_saferlhf", source="pku_saferlhf"), "validation")
    rows = list(source.rows())
    assert (len(rows), source.n_duplicates) == (82, 333 - 82)
    assert len(PromptBatches(rows, tokenizer, 1024, 64, seed=1)) == 82
