"""Prompts alone: their row, and a user's own files of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from tinychat.config.schema import DataConfig
from tinychat.data.chats.files import READ, prompt_column, prompt_messages
from tinychat.data.chats.rows import ROLES, BadRow, Columns, Message, as_columns, chat_row, prompt_key
from tinychat.data.files import files
from tinychat.data.files.lines import read_lines
from tinychat.data.files.row_sources import Found, RowSource, max_rows, no_path
from tinychat.data.files.splits import Split, readable, split_files
from tinychat.data.files.tables import Meter, read_rows, short
from tinychat.data.preferences.files import truth
from tinychat.errors import UserError

COLUMNS = READ | {"category", "harmful", "reference", "answer"}  # all that is asked for in rows of prompts
ANSWERS = ("exact", "word", "number", "yes_no", "list")  # how a reply can be checked (tinychat.evaluation.answers)


@dataclass(frozen=True)
class PromptRow:
    """What a reply is asked for, and what is known for judging it."""

    messages: list[Message]  # [system,] user, assistant, ..., user
    place: str  # of the first row that has it
    category: str = ""  # of harm; tinyworld: or of the benign request; "": unknown
    harmful: bool | None = None  # whether it asks for harm; None: unknown
    family: str = ""  # of a conversation's task; "": unknown
    answer: str = ""  # how a reply is checked against `reference`, as ChatRow.answer; "": it cannot be
    reference: str = ""  # the conversation's own last reply
    request: Any = None  # of tinyworld: what its oracle needs to score any reply
    unused: tuple[str, ...] = field(default=(), compare=False)  # columns, and keys of messages, that were left out

    def key(self) -> str:
        """As ChatRow.key."""
        return prompt_key(self.messages)

    def content(self) -> str:
        """What the choice of max_rows goes by."""
        return json.dumps(self.messages)


@dataclass
class PromptFiles(RowSource[PromptRow]):
    """The prompts of one split of data=prompts."""

    unit: ClassVar[str] = "prompts"


def prompt_files(config: DataConfig, split: Split) -> PromptFiles:
    """The prompts of a user's files, found but not yet read.

    Validation is data.val_path, else the files named for it, else a seeded hold-out of data.val_fraction of the
    prompts; training lacks its prompts. Raises UserError where the files are missing.
    """
    count, found, validation = max_rows(config, split), _find(config, split), None
    if split == "train" and found.hold_out is None:
        validation = _find(config, "validation")
    name = f"{config.name}-{split}"
    return PromptFiles(name, split, found, config.on_bad_row, count, config.seed, validation)


def prompt_row(row: Any, place: str) -> PromptRow:
    """The prompt of one row: a text, or an object as prompt_messages reads it.

    A conversation that ends with the assistant gives its last reply as the reference. Columns that may be there
    too: category; harmful; `reference`, the right reply; `answer`, how a reply is checked against it (one of
    ANSWERS), or without a reference the right reply itself. Raises BadRow.
    """
    row = as_columns({"prompt": row} if isinstance(row, str) else row, place)
    column = prompt_column(row)
    if column is not None and isinstance(row[column], str) and not row[column].strip():
        raise BadRow(place, f"empty prompt ({column})")
    messages = prompt_messages(row, place)
    if not messages:
        raise BadRow(place, "no messages")
    role = messages[-1].get("role") if isinstance(messages[-1], dict) else None
    last = messages.pop() if isinstance(role, str) and ROLES.get(role) == "assistant" else None
    # What makes a prompt is what comes before a reply.
    whole = chat_row([*messages, last or {"role": "assistant", "content": "reply"}], place)
    reference = whole.messages[-1]["content"] if last else ""
    reference, answer = _reference(row, reference, place)
    category = _text(row, "category", place)
    harmful = truth(row, "harmful", place, needed=False)
    unused = (*row.unused(), *whole.unused)
    return PromptRow(whole.messages[:-1], place, category, harmful, answer=answer, reference=reference, unused=unused)


def _reference(row: Columns, reference: str, place: str) -> tuple[str, str]:
    """The right reply and how one is checked against it; "" for what is unknown."""
    reference, answer = _text(row, "reference", place) or reference, _text(row, "answer", place)
    if answer in ("", *ANSWERS):
        if answer and not reference:
            raise BadRow(place, f"answer is {short(answer)}, how a reply is checked, but no column 'reference' says it")
        return reference, answer
    if reference:
        raise BadRow(place, f"answer is {short(answer)}; beside a reference it is one of {', '.join(ANSWERS)}")
    return answer, ""


def _text(row: Columns, column: str, place: str) -> str:
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRow(place, f"{column} is {short(value)}, not a string")
    return value.strip()


def _find(config: DataConfig, split: Split) -> Found[PromptRow]:
    found = split_files(config, split)
    if found is None:
        raise no_path(config, files.USABLE)

    def read() -> Iterator[PromptRow | BadRow]:
        for path in found.taken:
            with readable(path):
                for place, row in _rows(path):
                    try:
                        yield prompt_row(row, f"{path}, {place}")
                    except BadRow as bad:
                        yield bad

    def identify(memo_dir: Path | None) -> str:
        return json.dumps(found.hashes(memo_dir))

    return Found(found.describe("prompts"), read, identify, found.hold_out, found.size)


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Of a txt file the lines that are not blank, of another its rows."""
    if files.format_of(path) != "txt":
        return read_rows(path, Meter(), COLUMNS)
    lines = read_lines(path, Meter(), long_lines="refuse")
    return ((f"line {line.number}", line.text.strip()) for line in lines if line.text.strip())


def check_answers(rows: Iterable[PromptRow], key: str) -> None:
    """Raise UserError where one of the prompts cannot be verified; `key` names what wants to."""
    if bad := next((row for row in rows if not row.answer), None):
        has = "the right reply alone, not how another is checked against it" if bad.reference else "none"
        raise UserError(
            f"{key}: the verifier needs prompts with a checkable answer, and {bad.place} has {has}; give its row "
            f"reference, the right reply, and answer, one of {', '.join(ANSWERS)} (data=prompts), use data=tinyworld "
            "alone with reward=verifier, or another reward"
        )
