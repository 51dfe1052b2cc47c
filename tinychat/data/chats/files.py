"""Conversations out of the rows of a table, whose layout is found out from the first of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from tinychat.data.chats.rows import ROLES, BadRow, ChatRow, Columns, as_columns, chat_row, is_empty
from tinychat.data.files.tables import short

Row = dict[str, Any]
LISTS = ("messages", "conversations", "conversation")
TEXTS = ("prompt", "question", "instruction", "query")  # columns that a prompt alone may stand in
SYSTEMS = ("system", "system_prompt")  # a message before all others
HISTORY = "history"  # earlier turns: pairs of user and assistant (LLaMA-Factory), or messages
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
# All that is asked for in rows of conversations and of prompts.
READ = frozenset(
    (*LISTS, *TEXTS, *SYSTEMS, HISTORY, "tools", *(name for columns in COLUMNS for name in columns if name is not None))
)


@dataclass(frozen=True)
class Layout:
    """Where a row keeps its conversation: a list of messages in column `listed`, or one turn in columns."""

    listed: str = ""
    user: str = ""
    reply: str = ""
    second: str | None = None  # that the first row has; others may have it too
    answer: str = ""  # how replies are checked against the row's own, as ChatRow.answer

    def describe(self) -> str:
        if self.listed:
            return f"conversations from the column {self.listed}"
        second = f" and {self.second}" if self.second else ""
        return f"one turn a row, user from {self.user}{second}, assistant from {self.reply}"

    def columns(self) -> tuple[str, ...]:
        """The columns a row must have."""
        return (self.listed,) if self.listed else (self.user, self.reply)

    def row(self, row: Any, place: str) -> ChatRow:
        """The conversation of one row, after what `opening` finds in it. Raises BadRow."""
        row = as_columns(row, place)
        for column in self.columns():
            if column not in row:
                raise BadRow(place, f"no column {column!r}; it has {row.names()}")
        messages = listed(row[self.listed], place, self.listed) if self.listed else self._turn(row, place)
        found = chat_row([*opening(row, place), *messages], place)
        if len(found.untrained) == sum(message["role"] == "assistant" for message in found.messages):
            raise BadRow(place, "no reply is learnt from: each has weight 0 (or train, loss: false)")
        unused = row.unused()
        return replace(found, answer=self.answer, unused=(*unused, *found.unused))

    def _turn(self, row: Columns, place: str) -> list[Row]:
        """The messages of one turn; user and reply may be lists of messages (TRL's prompt and completion)."""
        user, reply = (as_list(row[column]) for column in self.columns())
        if isinstance(reply, list):
            reply = only_reply(listed(reply, place, self.reply))
            if reply is None:
                raise BadRow(place, f"{self.reply} is {short(row[self.reply])}, not one message of the assistant")
        if not isinstance(user, list):
            for column, value in ((self.user, user), (self.reply, reply)):
                if not isinstance(value, str):
                    raise BadRow(place, f"{column} is {short(value)}, not a string")
                if not value.strip():
                    raise BadRow(place, f"empty {'reply' if column == self.reply else 'user message'} ({column})")
            return [user_message(row, self.user), {"role": "assistant", "content": reply}]
        return [*listed(user, place, self.user), {"role": "assistant", "content": reply}]


ALPACA = Layout(user="instruction", reply="output", second="input")
GSM8K = Layout(user="question", reply="answer", answer="math")
MINIMIND = Layout(listed="conversations")


def find_layout(row: Any, place: str) -> Layout:
    """The layout of a row. Raises BadRow, which lists its columns, where it has none that is known."""
    row = as_columns(row, place)
    for column in LISTS:
        if column in row:
            return Layout(listed=column)
    for user, reply, second in COLUMNS:
        if user in row and reply in row:
            return Layout(user=user, reply=reply, second=second if second in row else None)
    raise BadRow(place, f"no conversation in the columns {row.names()}; known are {KNOWN}")


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


def opening(row: Columns, place: str) -> list[Row]:
    """What stands before a row's own messages: the system message of one of SYSTEMS, the turns of HISTORY."""
    system = next((row[name] for name in SYSTEMS if not is_empty(row.get(name))), None)
    begun = [] if system is None else [{"role": "system", "content": system}]
    history = _from_json(row.get(HISTORY), place, HISTORY)
    if is_empty(history):
        return begun
    if isinstance(history, list) and all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        return begun + [
            {"role": role, "content": said}
            for turn in history
            for role, said in zip(("user", "assistant"), turn, strict=True)
        ]
    if isinstance(history, list) and all(isinstance(turn, dict) for turn in history):
        return begun + [_renamed(message) for message in history]
    raise BadRow(place, f"{HISTORY} is {short(history)}, neither pairs of texts (user, assistant) nor messages")


def user_message(row: Columns, column: str) -> Row:
    """The user's message of a one-turn row with its second field: `input`, or what an instruction has as `context`."""
    names = [name for name in ("input", "context") if name != column and (name == "input" or column == "instruction")]
    second = next((row[name] for name in names if not is_empty(row.get(name))), None)
    return {"role": "user", "content": row[column], "input": second}


def prompt_messages(row: Columns, place: str) -> list[Row]:
    """The messages of a row with one of LISTS or TEXTS, after what `opening` finds in it. Raises BadRow."""
    column = prompt_column(row)
    if column is None:
        known = f"{', '.join(TEXTS)} or {', '.join(LISTS)}"
        raise BadRow(place, f"no prompt in the columns {row.names()}; known are {known}")
    value = as_list(row[column])
    if column in LISTS or isinstance(value, list):
        return [*opening(row, place), *listed(value, place, column)]
    return [*opening(row, place), user_message(row, column)]


def prompt_column(row: Columns) -> str | None:
    """The column that a row's prompt stands in."""
    return next((name for name in (*LISTS, *TEXTS) if name in row), None)


def listed(value: Any, place: str, column: str) -> list[Any]:
    """A list of messages, also as JSON text (in a csv file) or as one list for each key (a Sequence of `datasets`),
    with ShareGPT's keys (from, value) renamed."""
    value = _from_json(value, place, column)
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        if len({len(column) for column in value.values()}) > 1:
            raise BadRow(place, f"{column} is {short(value)}, whose lists differ in length")
        value = [dict(zip(value, message, strict=True)) for message in zip(*value.values(), strict=True)]
    if not isinstance(value, list):
        raise BadRow(place, f"{column} is {short(value)}, not a list of messages")
    return [_renamed(message) for message in value]


def only_reply(messages: list[Any]) -> Any:
    """The text of a list that is one message of the assistant; None for another."""
    role = messages[0].get("role") if len(messages) == 1 and isinstance(messages[0], dict) else None
    is_reply = isinstance(role, str) and ROLES.get(role) == "assistant"
    return messages[0].get("content") if is_reply else None


def _from_json(value: Any, place: str, column: str) -> Any:
    if not isinstance(value, str) or not value.strip():
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise BadRow(place, f"{column} is {short(value)}, not a list of messages") from None


def as_list(value: Any) -> Any:
    """A list of messages also out of its JSON, as a csv file has it."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _renamed(message: Any) -> Any:
    if isinstance(message, dict) and "from" in message and "value" in message and "role" not in message:
        others = {key: value for key, value in message.items() if key not in ("from", "value")}
        return {"role": message["from"], "content": message["value"], **others}
    return message
