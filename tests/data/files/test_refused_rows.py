"""What a chat template, or the tokenizer itself, refuses of some rows: named, or left out with on_bad_row=skip."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from tests.data.chats.test_cache import conversation
from tests.data.chats.test_cache import source as chat_source
from tests.data.preferences.test_cache import pair
from tests.data.preferences.test_cache import source as preference_source
from tinychat.config.plugins import OWN_TEMPLATE
from tinychat.config.schema import OnBadRow
from tinychat.data.chats.rows import BadRow, LeftOut, chat_row
from tinychat.data.chats.tokens import chat_cache
from tinychat.data.preferences.prompts import PromptBatches, PromptRow, with_prompts
from tinychat.data.preferences.tokens import preference_cache
from tinychat.errors import UserError
from tinychat.models.generation.generate import prompt_ids
from tinychat.text.chat_template import encode_chats, end_token_id, set_template
from tinychat.text.tokenizer import encode_documents, load_saved_tokenizer

SYSTEM = {"role": "system", "content": "Be kind."}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)
# The same fault where its author did not think of it.
NO_SYSTEM_BY_ACCIDENT = "{% if messages[0].role == 'system' %}{{ messages[0].content + 1 }}{% endif %}" + CHATML
GOOD, BAD = conversation("Who has the ball?", "Tom has it."), [SYSTEM, *conversation("Say it.", "It.")]
WHY = "roles system, user"


@pytest.fixture(params=[NO_SYSTEM, NO_SYSTEM_BY_ACCIDENT], ids=["refuses", "fails"])
def tokenizer(request: pytest.FixtureRequest, tokenizer_folder: Path) -> PreTrainedTokenizerFast:
    found = load_saved_tokenizer(str(tokenizer_folder))
    found.chat_template = request.param
    return found


def chats(tokenizer: Any, rows: str, skip: OnBadRow, folder: Path) -> Any:
    source = chat_source([{"g": GOOD, "b": BAD}[row] for row in rows], on_bad_row=skip)
    return chat_cache(source, tokenizer, 128, folder, progress=False)


def preferences(tokenizer: Any, rows: str, skip: OnBadRow, folder: Path) -> Any:
    bad = pair("Who?")
    bad.prompt.insert(0, SYSTEM)
    source = preference_source([{"g": pair(f"{n}?"), "b": bad}[row] for n, row in enumerate(rows)], on_bad_row=skip)
    return preference_cache(source, tokenizer, 128, folder, progress=False)


def prompts(tokenizer: Any, rows: str, skip: OnBadRow, folder: Path) -> Any:
    contents = {"g": GOOD[:1], "b": BAD[:2]}
    made = [PromptRow(contents[row], f"a.jsonl, line {number}") for number, row in enumerate(rows, 1)]
    return PromptBatches(made, tokenizer, 128, 16, 1, skip)


def held_out(tokenizer: Any, rows: str, skip: OnBadRow, folder: Path) -> Any:
    made = [chat_row({"g": GOOD, "b": BAD}[row], f"a.jsonl, line {number}") for number, row in enumerate(rows, 1)]
    left_out = LeftOut(skip)
    kept, ids = with_prompts(tokenizer, made, [row.messages[:-1] for row in made], left_out)
    if not kept:
        raise UserError(f"none: {left_out.reason()}")
    left_out.warn("held out")
    assert len(kept) == len(ids)
    return kept


READERS = pytest.mark.parametrize("read", [chats, preferences, prompts, held_out])
Reader = Callable[[Any, str, OnBadRow, Path], Any]


@READERS
def test_a_row_that_the_template_refuses_is_named(read: Reader, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(BadRow) as error:
        read(tokenizer, "gbg", OnBadRow.fail, tmp_path)
    message = str(error.value)
    assert message.startswith("a.jsonl, ")
    assert WHY in message
    assert "data.on_bad_row=skip" in message
    assert "\n" not in message


@READERS
def test_such_rows_are_left_out_where_that_is_asked_for(
    read: Reader, tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING"):
        kept = read(tokenizer, "gbgb", OnBadRow.skip, tmp_path)
    assert len(kept) == 2
    (warned,) = [record.message for record in caplog.records]
    assert "2 rows that cannot be used, the first at a.jsonl, " in warned
    assert WHY in warned
    assert getattr(kept, "n_bad", 2) == 2


@READERS
def test_where_none_is_left_the_reason_is_told(read: Reader, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"(left|none).* 2 rows that cannot be used, the first at .*{WHY}"):
        read(tokenizer, "bb", OnBadRow.skip, tmp_path)


def test_a_row_of_which_nothing_is_trained_is_a_bad_row(tokenizer_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_saved_tokenizer(str(tokenizer_folder))
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' and messages[0].role != 'system' %}"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    with pytest.raises(BadRow, match=r"a.jsonl, line 2: no token would be trained"):
        chats(tokenizer, "gb", OnBadRow.fail, tmp_path / "fail")
    assert chats(tokenizer, "gb", OnBadRow.skip, tmp_path / "skip").n_bad == 1


# --- several named templates


def named(folder: Path, templates: dict[str, str]) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder with the templates as published ones have them, in tokenizer_config.json."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8"))
    config["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    path.write_text(json.dumps(config), "utf-8")
    return load_saved_tokenizer(str(folder))


def test_of_several_templates_the_default_one_is_used(tokenizer_folder: Path, tmp_path: Path) -> None:
    plain = load_saved_tokenizer(str(tokenizer_folder))
    plain.save_pretrained(tmp_path)
    tokenizer = named(tmp_path, {"tool_use": "{{ raise_exception('no tools') }}", "default": CHATML})
    set_template(tokenizer, OWN_TEMPLATE)
    plain.chat_template = CHATML
    assert encode_chats(tokenizer, [GOOD])[0].ids.tolist() == encode_chats(plain, [GOOD])[0].ids.tolist()
    assert end_token_id(tokenizer) == end_token_id(plain)
    assert len(chats(tokenizer, "g", OnBadRow.fail, tmp_path / "cache")) == 1
    tokenizer.save_pretrained(tmp_path / "again")
    assert set(load_saved_tokenizer(str(tmp_path / "again")).chat_template) == {"tool_use", "default"}


def test_several_templates_without_a_default_are_one_line(tokenizer_folder: Path, tmp_path: Path) -> None:
    load_saved_tokenizer(str(tokenizer_folder)).save_pretrained(tmp_path)
    tokenizer = named(tmp_path, {"tool_use": CHATML, "rag": CHATML})
    for call in (lambda: set_template(tokenizer, OWN_TEMPLATE), lambda: encode_chats(tokenizer, [GOOD])):
        with pytest.raises(UserError, match=r"has tool_use, rag, and none named default; use template=instruct"):
            call()
    set_template(tokenizer, "chatml")
    assert encode_chats(tokenizer, [GOOD])


# --- tokenizers that fail on a text


class Panic(BaseException):
    """As pyo3_runtime.PanicException, which nobody can import."""


Panic.__name__ = "PanicException"


def failing(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Have it fail on texts with "it" in them."""
    encode = type(tokenizer).__call__

    def call(self: Any, texts: Any, **options: Any) -> Any:
        if any("ball" in text for text in texts):
            raise error
        return encode(self, texts, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", call)


@pytest.mark.parametrize("error", [Panic("Onig: retry limit"), Exception("WordPiece error: no unknown token")])
def test_a_text_that_the_tokenizer_fails_on(
    tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    tokenizer = load_saved_tokenizer(str(tokenizer_folder))
    set_template(tokenizer, "chatml")
    failing(tokenizer, monkeypatch, error)
    with pytest.raises(UserError, match=rf"{tokenizer_folder}: fails on a text.*{error}") as caught:
        encode_documents(tokenizer, ["a", "the ball"])
    assert "\n" not in str(caught.value)
    other = [SYSTEM, *conversation("Say it.", "It.")]
    source = chat_source([other, GOOD, other], on_bad_row=OnBadRow.skip)
    made = chat_cache(source, tokenizer, 128, tmp_path, progress=False)
    assert (len(made), made.n_bad) == (2, 1)
    with pytest.raises(BadRow, match=rf"^a.jsonl, line 2: tokenizer .*{error}"):
        chat_cache(chat_source([other, GOOD], on_bad_row=OnBadRow.fail), tokenizer, 128, tmp_path, progress=False)


def test_a_pattern_that_panics_is_one_line(tokenizer_folder: Path, tmp_path: Path) -> None:
    """Oniguruma gives up on it; the tokenizers library panics then."""
    load_saved_tokenizer(str(tokenizer_folder)).save_pretrained(tmp_path)
    state = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    split = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
    state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, state["pre_tokenizer"]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(state), "utf-8")
    tokenizer = load_saved_tokenizer(str(tmp_path))
    set_template(tokenizer, "chatml")
    bad = "x" * 300
    for call in (
        lambda: encode_documents(tokenizer, ["fine", bad]),
        lambda: prompt_ids(tokenizer, bad),
        lambda: encode_chats(tokenizer, [conversation(bad, "It.")]),
    ):
        with pytest.raises(UserError, match=rf"tokenizer {tmp_path}: fails on a text.*retry-limit") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert encode_chats(tokenizer, [GOOD])


def test_ctrl_c_in_the_tokenizer_is_no_fault_of_it(tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_saved_tokenizer(str(tokenizer_folder))
    failing(tokenizer, monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        encode_documents(tokenizer, ["the ball"])
