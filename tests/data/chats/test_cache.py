from __future__ import annotations

import dataclasses
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from tinychat.config.schema import OnBadRow
from tinychat.data.chats import tokens as module
from tinychat.data.chats.rows import BadRow, ChatRow, chat_row
from tinychat.data.chats.sources import ChatSource
from tinychat.data.chats.tokens import chat_cache, fit
from tinychat.data.files.row_sources import Found
from tinychat.errors import UserError
from tinychat.text.chat_template import EncodedChat, encode_chats, set_template
from tinychat.text.tokenizer import load_saved_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> PreTrainedTokenizerFast:
    return with_template(tokenizer_folder, "instruct")


def with_template(folder: Path, name: str) -> PreTrainedTokenizerFast:
    tokenizer = load_saved_tokenizer(str(folder))
    set_template(tokenizer, name)
    return tokenizer


def conversation(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


CHATS = [
    conversation("Who has the ball?", "Tom has it."),
    conversation("Say it.", "It."),
    conversation("One?", "Two.", "Three?", "Four, five and six."),
]


def source(chats: list[Any] = CHATS, name: str = "own-train", **changes: Any) -> ChatSource:
    def read() -> Iterator[ChatRow | BadRow]:
        for number, chat in enumerate(chats, 1):
            yield (
                chat_row(chat, f"a.jsonl, line {number}") if chat else BadRow(f"a.jsonl, line {number}", "no messages")
            )

    values = {
        "name": name,
        "split": "train",
        "found": Found("a.jsonl", read, lambda memo_dir: json.dumps(chats)),
        "on_bad_row": OnBadRow.skip,
        "max_rows": None,
        "seed": 1,
    }
    return ChatSource(**{**values, **changes})


def encoded(trained: str) -> EncodedChat:
    """Tokens 0, 1, 2, ...; trained where the pattern has an x."""
    mask = np.array([mark == "x" for mark in trained])
    return EncodedChat(np.arange(len(mask)), mask, 0)


@pytest.mark.parametrize(
    ("trained", "length", "kept"),
    [
        ("..xxx", 5, 5),
        ("..xxx", 9, 5),
        ("..xxx", 4, 4),  # the reply loses its end
        ("..xxx", 3, 3),
        ("..xxx", 2, 0),  # no room for a token of it
        ("..xxx", 1, 0),
        ("..xxx.", 5, 5),  # what follows the last reply is not needed
        ("..xxx...xx", 9, 5),  # the second turn goes as a whole
        ("..xxx...xx", 10, 10),
        ("..xxx...xx", 5, 5),
        ("..xxx...xx", 4, 4),
        ("..xxx...xx..x", 12, 10),
        ("..xxx...xx..x", 2, 0),
        ("xx..x", 3, 2),
    ],
)
def test_what_fits(trained: str, length: int, kept: int) -> None:
    assert fit(encoded(trained), length) == kept


def test_arrays_are_the_encoded_conversations(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    made = chat_cache(source(), tokenizer, 64, tmp_path, progress=False)
    want = encode_chats(tokenizer, CHATS)
    assert len(made) == 3
    for index, chat in enumerate(want):
        assert made.ids(index).tolist() == chat.ids.tolist()
        assert made.trained(index).tolist() == chat.trained.tolist()
    assert made.all_ids.dtype == np.uint16
    assert made.trained(0).dtype == bool
    assert made.lengths.tolist() == [len(chat.ids) for chat in want]
    assert made.n_tokens == sum(len(chat.ids) for chat in want)
    assert made.n_trained == sum(int(chat.trained.sum()) for chat in want) == int(made.row_trained.sum())
    assert (made.n_cut, made.n_dropped, made.n_bad) == (0, 0, 0)
    assert made.fingerprint == source().fingerprint()
    assert made.pad_id == tokenizer.pad_token_id
    assert tokenizer.decode(made.ids(1)) == "Instruction: Say it.\nResponse: It.<|endoftext|>"
    share = made.n_trained / made.n_tokens
    assert made.describe() == f"3 conversations, {made.n_tokens:,} tokens, {share:.0%} of them trained"
    with pytest.raises(ValueError, match="read-only"):
        made.ids(0)[0] = 1


def test_chunks_change_nothing(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chats = [*CHATS, *CHATS[:2]]
    whole = chat_cache(source(chats), tokenizer, 30, tmp_path / "a", progress=False)
    monkeypatch.setattr(module, "CHATS", dataclasses.replace(module.CHATS, chunk=2))
    parts = chat_cache(source(chats), tokenizer, 30, tmp_path / "b", progress=False)
    for name in ("all_ids", "all_trained", "starts", "row_trained"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name)), name
    assert whole.n_cut == parts.n_cut == 3


def test_a_reply_of_weight_0_is_read_and_not_learnt_from(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    whole = CHATS[2]
    first, last = ([*whole[:1], {**whole[1], "weight": 0}, *whole[2:]], [*whole[:3], {**whole[3], "weight": 0}])
    cache = chat_cache(source([whole, first, last]), tokenizer, 64, tmp_path, progress=False)
    assert [cache.ids(i).tolist() for i in (1, 2)] == [cache.ids(0).tolist()] * 2
    both, second, one = (cache.trained(i) for i in range(3))
    assert tokenizer.decode(cache.ids(0)[one]).startswith(" Two.")
    assert tokenizer.decode(cache.ids(0)[second]).startswith(" Four, five and six.")
    assert (both == (one | second)).all()
    assert not (one & second).any()
    assert cache.row_trained[0] == cache.row_trained[1] + cache.row_trained[2]


def test_cutting_is_counted_and_keeps_prompts(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    first, second, third = encode_chats(tokenizer, CHATS)
    # room for the second conversation whole, for the third's first turn, and for all but the end of the first
    length = len(first.ids) - 1
    assert len(second.ids) <= length < len(third.ids)
    made = chat_cache(source([*CHATS, conversation("a b c " * 50, "d")]), tokenizer, length, tmp_path, progress=False)
    assert (len(made), made.n_cut, made.n_dropped) == (3, 2, 1)
    assert made.ids(0).tolist() == first.ids[:-1].tolist()
    assert made.ids(1).tolist() == second.ids.tolist()
    assert tokenizer.decode(made.ids(2)) == "Instruction: One?\nResponse: Two.<|endoftext|>"
    assert ", 2 cut to the context, 1 too long" in made.describe()


def test_prompt_without_room_for_a_reply(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chats = [CHATS[1], conversation("a b c " * 50, "d")]
    strict = source(chats, on_bad_row=OnBadRow.fail)
    with pytest.raises(
        UserError, match=r"a\.jsonl, line 2: its prompt has \d+ tokens, too many for stage\.context_len"
    ):
        chat_cache(strict, tokenizer, 40, tmp_path, progress=False)
    assert len(chat_cache(source(chats), tokenizer, 40, tmp_path, progress=False)) == 1
    assert (
        "1 conversations (50.0 %) left out, whose prompts leave no room for a reply in stage.context_length=40"
        in caplog.text
    )
    with pytest.raises(UserError, match=r"no conversations left of a\.jsonl: 2 left out, whose .*context_length=3; ra"):
        chat_cache(source(chats), tokenizer, 3, tmp_path, progress=False)
    assert {path.suffix for path in (tmp_path / "chats").iterdir() if not (path / "meta.json").exists()} == {".lock"}


def test_bad_rows_are_counted(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    made = chat_cache(source([CHATS[0], None, CHATS[1]]), tokenizer, 64, tmp_path, progress=False)
    assert (len(made), made.n_bad) == (2, 1)
    assert made.describe().endswith(", 1 unusable")


def test_template_that_trains_nothing_names_the_row(tokenizer_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_saved_tokenizer(str(tokenizer_folder))
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% generation %}{% endgeneration %}{% endfor %}"
    with pytest.raises(UserError, match=r" at a\.jsonl, line 1: no token would be trained"):
        chat_cache(source(), tokenizer, 64, tmp_path, progress=False)


def test_made_once_then_loaded(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = chat_cache(source([CHATS[0], None]), tokenizer, 64, tmp_path, progress=False)
    monkeypatch.setattr(module, "try_chats", lambda *args: pytest.fail("encoded again"))
    second = chat_cache(source([CHATS[0], None]), tokenizer, 64, tmp_path, progress=False)
    assert second.path == first.path
    assert second.ids(0).tolist() == first.ids(0).tolist()
    assert second.describe() == first.describe()


def test_made_again_when_anything_changes(
    tokenizer: PreTrainedTokenizerFast, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(rows: ChatSource | None = None, using: PreTrainedTokenizerFast = tokenizer, length: int = 64) -> Path:
        return chat_cache(rows or source(), using, length, tmp_path, progress=False).path

    paths = [made(), made(source(CHATS[:2])), made(source(on_bad_row=OnBadRow.fail)), made(length=65)]
    paths += [made(using=with_template(tokenizer_folder, "chatml")), made(source(max_rows=2))]
    wider = with_template(tokenizer_folder, "instruct")
    wider.add_tokens(["ball"])
    paths.append(made(using=wider))
    monkeypatch.setattr(module, "CHATS", dataclasses.replace(module.CHATS, version=module.CHATS.version + 1))
    paths.append(made())
    assert len(set(paths)) == len(paths)
    assert paths[0].parent == tmp_path / "chats"
    assert paths[0].name.startswith("own-train-")


@pytest.mark.parametrize("name", ["ids.bin", "trained.bin", "ends.bin", "n_trained.bin", "meta.json"])
def test_damaged_cache_is_made_again(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = chat_cache(source(), tokenizer, 64, tmp_path, progress=False)
    want = made.all_ids.tolist()
    os.truncate(made.path / name, (made.path / name).stat().st_size - 1)
    again = chat_cache(source(), tokenizer, 64, tmp_path, progress=False)
    assert again.all_ids.tolist() == want
    assert "damaged" in caplog.text


def test_wide_vocabulary_and_no_padding_token(tokenizer_folder: Path, tmp_path: Path) -> None:
    wide = with_template(tokenizer_folder, "instruct")
    wide.add_tokens([f"<new{i}>" for i in range(1 << 16)])
    made = chat_cache(source([conversation("a", "<new65535>")]), wide, 64, tmp_path, progress=False)
    assert made.all_ids.dtype == np.uint32
    assert "<new65535>" in wide.decode(made.ids(0))
    wide.pad_token = None
    with pytest.raises(UserError, match="no padding token"):
        chat_cache(source(), wide, 64, tmp_path, progress=False)


def test_progress_in_plain_lines(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "tinychat"):
        chat_cache(source(), tokenizer, 64, tmp_path, progress=True)
    assert "tokenizing own-train: a.jsonl" in caplog.text
    assert "conversations/s" in caplog.text


def test_of_two_at_once_one_makes_it(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Threads stand in for processes: the lock belongs to the open file, and each opens its own."""
    reading, waited = threading.Event(), threading.Event()
    reads: list[str] = []

    def gated(name: str) -> ChatSource:
        rows = source()
        read = rows.found.read

        def recorded() -> Iterator[ChatRow | BadRow]:
            reads.append(name)
            reading.set()
            assert waited.wait(30)
            return read()

        rows.found = dataclasses.replace(rows.found, read=recorded)
        return rows

    with ThreadPoolExecutor() as pool:
        first = pool.submit(chat_cache, gated("first"), tokenizer, 64, tmp_path, False)
        assert reading.wait(30)
        second = pool.submit(chat_cache, gated("second"), tokenizer, 64, tmp_path, False)
        for _ in range(3000):
            if "another process is tokenizing own-train; waiting" in caplog.text:
                break
            time.sleep(0.01)
        waited.set()
        assert first.result().path == second.result().path
    assert reads == ["first"]
    assert "another process is tokenizing own-train; waiting" in caplog.text
