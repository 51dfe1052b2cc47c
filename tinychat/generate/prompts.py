"""What is replied to: a file or a pipe of prompts, and what the line of a reply begins with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinychat.errors import UserError
from tinychat.runtime.run_files import at_home

PIPE = "standard input"
TEXT = "text"  # column of texts to continue, beside those of prompts


@dataclass(frozen=True)
class Prompt:
    """What is replied to, and what its line begins with."""

    place: str
    messages: list[dict[str, str]]  # ends with the user's; of a text to continue: that one alone
    head: dict[str, Any] = field(default_factory=dict)  # id, prompt and the row's other columns


def read(file: str, raw: bool, system: str) -> list[Prompt]:
    """The prompts of a file, or of standard input for "-". Raises UserError, naming file and line."""
    from tinychat.data.chats.rows import BadRow
    from tinychat.data.files.splits import USABLE, format_of
    from tinychat.data.files.tables import pipe_as_file

    path, name = at_home(file), file
    if file == "-":
        path, name = pipe_as_file(texts=True), PIPE
    elif not path.is_file():
        raise UserError(
            f"--prompts {file}: {'is a folder' if path.is_dir() else 'no such file'}; give a file of prompts"
        )
    elif format_of(path) is None:
        raise UserError(f"--prompts {file}: cannot read a file of this name; use {USABLE}")
    found: list[Prompt] = []
    try:
        for place, row in _rows(path, raw):
            place = f"{name}, {place}"
            found.append(_text(row, place, len(found)) if raw else _chat(row, place, len(found), system))
    except BadRow as bad:
        raise UserError(f"{bad.place}: {bad.why}; mend or remove this row") from None
    except UserError as error:
        raise UserError(str(error).replace(str(path), name)) from None
    finally:
        if file == "-":
            path.unlink()
    if not found:
        raise UserError(f"{name}: holds no prompts")
    return found


def _rows(path: Path, raw: bool) -> Iterator[tuple[str, Any]]:
    """Of a txt file the lines that are not blank, of another its rows."""
    from tinychat.data.files.splits import format_of
    from tinychat.data.files.tables import Meter, read_lines, read_rows

    if format_of(path) != "txt":
        yield from read_rows(path, Meter())
        return
    for line in read_lines(path, Meter(), long_lines="refuse"):
        if line.text.strip():
            yield f"line {line.number}", line.text.rstrip("\r\n") if raw else line.text.strip()


def _text(row: Any, place: str, number: int) -> Prompt:
    """A text to continue. Raises BadRow."""
    from tinychat.data.chats.files import TEXTS
    from tinychat.data.chats.rows import BadRow, as_columns

    row = as_columns({"prompt": row} if isinstance(row, str) else row, place)
    column = next((name for name in (TEXT, *TEXTS) if name in row), None)
    if column is None:
        raise BadRow(place, f"no text to continue in the columns {row.names()}; known are {', '.join((TEXT, *TEXTS))}")
    if not isinstance(row[column], str):
        raise BadRow(place, f"{column} is no text, which --raw continues")
    head = {"id": row.get("id", number), "prompt": row[column]}
    return Prompt(place, [{"role": "user", "content": row[column]}], head | {name: row[name] for name in row.unused()})


def _chat(row: Any, place: str, number: int, system: str) -> Prompt:
    """A prompt, as reinforcement learning reads it. Raises BadRow."""
    from tinychat.data.chats.rows import as_columns
    from tinychat.data.preferences.prompts import prompt_row

    columns = as_columns({"prompt": row} if isinstance(row, str) else row, place)
    found = prompt_row(columns, place)
    messages = found.messages
    if system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    head: dict[str, Any] = {"id": columns.get("id", number)}
    begun, last = messages[:-1], messages[-1]
    if [message["role"] for message in begun] in ([], ["system"]):
        head |= {message["role"]: message["content"] for message in begun}
        head |= {"prompt": last["content"]} | ({"input": last["input"]} if last.get("input") else {})
    else:
        head["prompt"] = messages
    known = {name: getattr(found, name) for name in ("category", "harmful", "answer", "reference")}
    head |= {name: value for name, value in known.items() if value not in (None, "")}
    others = {name: columns[name] for name in found.unused if name in columns and name not in head}
    return Prompt(place, messages, head | others)
