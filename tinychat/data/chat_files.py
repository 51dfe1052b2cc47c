"""Conversations out of the rows of a table, whose layout is found out from the first of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tinychat.data.chat_rows import BadRow, ChatRow, chat_row
from tinychat.data.tables import short

Row = dict[str, Any]
LISTS = ("messages", "conversations", "conversation")
# Columns of one-turn rows: user message, reply, and where there may be one the message's second field. The
# first that a row has are taken.
COLUMNS = (
    ("instruction", "output", "input"),
    ("instruction", "response", "context"),
    ("prompt", "response", None),
    ("prompt", "completion", None),
    ("prompt", "output", None),
    ("prompt", "answer", None),
    ("question", "answer", None),
    ("question", "response", None),
    ("query", "response", None),
    ("input", "output", None),
)
KNOWN = f"{', '.join(LISTS)}, or {', '.join(f'{user} and {reply}' for user, reply, _ in COLUMNS)}"


@dataclass(frozen=True)
class Layout:
    """Where a row keeps its conversation: a list of messages in column `listed`, or one turn in columns."""

    listed: str = ""
    user: str = ""
    reply: str = ""
    second: str | None = None

    def describe(self) -> str:
        if self.listed:
            return f"conversations from the column {self.listed}"
        second = f" and {self.second}" if self.second else ""
        return f"one turn a row, user from {self.user}{second}, assistant from {self.reply}"

    def columns(self) -> tuple[str, ...]:
        """The columns a row must have."""
        return (self.listed,) if self.listed else (self.user, self.reply)

    def row(self, row: Any, place: str) -> ChatRow:
        """The conversation of one row. A column `system` gives it a system message. Raises BadRow."""
        if not isinstance(row, dict):
            raise BadRow(place, f"{short(row)} is not an object")
        for column in self.columns():
            if column not in row:
                raise BadRow(place, f"no column {column!r}; it has {_has(row)}")
        messages = listed(row[self.listed], place, self.listed) if self.listed else self._turn(row, place)
        if row.get("system") is not None:
            if isinstance(row["system"], str) and not row["system"].strip():
                return chat_row(messages, place)
            messages = [{"role": "system", "content": row["system"]}, *messages]
        return chat_row(messages, place)

    def _turn(self, row: Row, place: str) -> list[Row]:
        for column in self.columns():
            if not isinstance(row[column], str):
                raise BadRow(place, f"{column} is {short(row[column])}, not a string")
            if not row[column].strip():
                raise BadRow(place, f"empty {'reply' if column == self.reply else 'user message'} ({column})")
        user = {"role": "user", "content": row[self.user], "input": row.get(self.second) if self.second else None}
        return [user, {"role": "assistant", "content": row[self.reply]}]


ALPACA = Layout(user="instruction", reply="output", second="input")
MINIMIND = Layout(listed="conversations")


def find_layout(row: Any, place: str) -> Layout:
    """The layout of a row. Raises BadRow, which lists its columns, where it has none that is known."""
    if not isinstance(row, dict):
        raise BadRow(place, f"{short(row)} is not an object")
    for column in LISTS:
        if column in row:
            return Layout(listed=column)
    for user, reply, second in COLUMNS:
        if user in row and reply in row:
            return Layout(user=user, reply=reply, second=second if second in row else None)
    raise BadRow(place, f"no conversation in the columns {_has(row)}; known are {KNOWN}")


def read_chats(
    rows: Iterable[tuple[str, Any]], layout: Layout | None
) -> Iterator[tuple[Layout | None, ChatRow | BadRow]]:
    """Each row's conversation, or why it has none, and the layout it was read by: the given one, or the one of
    the first row that has any."""
    for place, row in rows:
        try:
            layout = layout or find_layout(row, place)
            yield layout, layout.row(row, place)
        except BadRow as bad:
            yield layout, bad


def listed(value: Any, place: str, column: str) -> list[Any]:
    """A list of messages, also as JSON text (in a csv file), with ShareGPT's keys (from, value) renamed."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadRow(place, f"{column} is {short(value)}, not a list of messages") from None
    if not isinstance(value, list):
        raise BadRow(place, f"{column} is {short(value)}, not a list of messages")
    return [_renamed(message) for message in value]


def _renamed(message: Any) -> Any:
    if isinstance(message, dict) and "from" in message and "value" in message and "role" not in message:
        return {"role": message["from"], "content": message["value"]}
    return message


def _has(row: Row) -> str:
    names = list(map(str, row))
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "none"
