"""The canonical row of a conversation, and what makes a row unusable."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tinychat.config.schema import OnBadRow
from tinychat.data.files.tables import UNREAD, Unreadable, not_text, short
from tinychat.errors import UserError

log = logging.getLogger(__name__)
# {"role": "system" | "user" | "assistant", "content": str}; a user message may have "input": str beside them
Message = dict[str, str]
# What data sets call the three roles.
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
}
# What they call calls of tools (a role, or keys of the assistant's messages) and their results (a role).
CALL_ROLES = ("function_call", "tool_call")
CALLS = ("tool_calls", "function_call")
RESULT_ROLES = ("tool", "function", "observation", "tool_response")
# Keys that say whether a message is learnt from (OpenAI's weight, Axolotl's train, SWIFT's loss), and their values.
WEIGHTS = ("weight", "train", "training", "loss")
WEIGHT = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
READ_KEYS = ("role", "content", "input", *WEIGHTS)  # of a message
TEXT_PARTS = ("text", "input_text", "output_text")
AS_TEXT = "to show calls and results as text: data.tool_calls=text"
ORDER = "a conversation goes [system,] user, assistant, user, assistant, ..."


class BadRow(UserError):
    """A row that cannot be used; the message names it and says why. data.on_bad_row decides what follows."""

    def __init__(self, place: str, why: str) -> None:
        super().__init__(f"{place}: {why}; mend or remove this row, or leave such rows out: data.on_bad_row=skip")
        self.place, self.why = place, why


@dataclass
class LeftOut:
    """Rows that were read and then could not be used, as a chat template refuses them: with data.on_bad_row=fail the
    first ends the job, else they are counted."""

    on_bad_row: OnBadRow
    count: int = 0
    first: BadRow | None = None

    def add(self, bad: BadRow) -> None:
        """Raises it with on_bad_row=fail."""
        if self.on_bad_row is OnBadRow.fail:
            raise bad
        self.count += 1
        self.first = self.first or bad

    def warn(self, name: str) -> None:
        """Say how many rows of `name` were left out, where there are any."""
        if self.first:
            log.warning("%s: %s; left out", name, self.reason())

    def reason(self) -> str:
        """How many and why, as the end of a sentence; "" where no row was left out."""
        if not self.first:
            return ""
        return f"{self.count} rows that cannot be used, the first at {self.first.place}: {self.first.why}"


class Columns(dict[str, Any]):
    """A row that remembers which of its columns were asked for, so that the others can be told of."""

    def __init__(self, row: dict[str, Any], place: str) -> None:
        super().__init__(row)
        self._place = place
        self._asked: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        """Raises BadRow for a value that is Unreadable."""
        self._asked.add(name)
        value = super().__getitem__(name)
        if isinstance(value, Unreadable):
            raise BadRow(self._place, f"{name} {value.why}")
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """As [name]."""
        return self[name] if name in self else default  # noqa: SIM401 - is what this method is

    def unused(self) -> tuple[str, ...]:
        """Names of the columns with a value that nobody asked for."""
        return tuple(str(name) for name, value in self.items() if name not in self._asked and not is_empty(value))

    def names(self) -> str:
        """For a message: which columns there are."""
        shown = list(map(str, self))
        return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "") or "none"


def as_columns(row: Any, place: str) -> Columns:
    """A row as read_rows gives it, by column. Raises BadRow for one that is none."""
    if isinstance(row, Unreadable):
        raise BadRow(place, row.why)
    if not isinstance(row, dict):
        raise BadRow(place, f"{short(row)} is not an object")
    return Columns(row, place)


def is_empty(value: Any) -> bool:
    """Whether nothing is said: null, a blank text, an empty list."""
    if value is UNREAD:
        return False
    return value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, list) and not value)


@dataclass(frozen=True)
class ChatRow:
    """One conversation."""

    messages: list[Message]  # [system,] user, assistant, user, assistant, ...; the last is the assistant's
    place: str  # names the row in messages: "FILE, line 7", "tinyworld train 12"
    family: str = ""  # of the task; "": unknown
    answer: str = ""  # how the last reply is checked: a kind in tinychat.evaluation.answers; "": it cannot be
    untrained: tuple[int, ...] = ()  # indices in `messages` of replies that are context alone
    unused: tuple[str, ...] = field(default=(), compare=False)  # columns, and keys of messages, that were left out

    def key(self) -> str:
        """The first user message and its input: rows with the same prompt belong on the same side of a
        hold-out."""
        return prompt_key(self.messages)

    def content(self) -> str:
        """What the choice of max_rows goes by."""
        return json.dumps(self.messages)


def prompt_key(messages: list[Message]) -> str:
    first = next(message for message in messages if message["role"] == "user")
    return f"{first['content'].strip()}\0{first.get('input', '').strip()}"


def chat_row(messages: Iterable[Any], place: str, family: str = "", answer: str = "") -> ChatRow:
    """The row of `messages`, each a dict with role, content and perhaps input, roles by any name in ROLES.

    A blank system message is left out; contents stay as they stand. A reply with one of WEIGHTS at 0 or false is
    read but not learnt from. Raises BadRow for what is no conversation: an unknown role or one out of order, a
    content that is blank or not a string, an end without a reply.
    """
    checked: list[Message] = []
    untrained: list[int] = []
    unused: dict[str, None] = {}
    for number, message in enumerate(messages, start=1):
        one = _message(message, number, place)
        if one["role"] == "system" and number == 1 and not one["content"].strip():
            continue
        _check_order(checked, one, number, place)
        trained = _is_trained(message, number, place)
        if one["role"] == "assistant" and trained is False:
            untrained.append(len(checked))
        elif one["role"] != "assistant" and trained:
            unused[f"weight of the {one['role']}'s messages"] = None
        for key, value in message.items():
            if key not in READ_KEYS and not is_empty(value):
                unused[f"{key} of messages"] = None
        checked.append(one)
    if not any(message["role"] == "assistant" for message in checked):
        raise BadRow(place, "no message of the assistant" if checked else "no messages")
    if checked[-1]["role"] == "user":
        raise BadRow(place, f"message {len(checked)}, the last, is the user's: it has no reply")
    return ChatRow(checked, place, family, answer, tuple(untrained), tuple(unused))


def _is_trained(message: Any, number: int, place: str) -> bool | None:
    """What the first of WEIGHTS that a message has says; None where it has none."""
    for key in WEIGHTS:
        value = message.get(key)
        if value is not None:
            found = WEIGHT.get(str(value).lower())
            if found is None:
                raise BadRow(place, f"{key} of message {number} is {short(value)}, neither 0 (not learnt from) nor 1")
            return found
    return None


def _message(message: Any, number: int, place: str) -> Message:
    if not isinstance(message, dict):
        raise BadRow(place, f'message {number} is {short(message)}, not {{"role": ..., "content": ...}}')
    for key in ("role", "content"):
        if key not in message:
            has = ", ".join(map(str, message)) or "nothing"
            raise BadRow(place, f"message {number} has no {key!r}; it has {has}")
    role, content = message["role"], parts_as_text(message["content"])
    name = ROLES.get(role) if isinstance(role, str) else None
    if isinstance(role, str) and role in (*CALL_ROLES, *RESULT_ROLES):
        raise BadRow(place, f"message {number} has the role {role}, of a tool; {AS_TEXT}")
    if any(not is_empty(message.get(key)) for key in CALLS):
        raise BadRow(place, f"message {number} calls a tool; {AS_TEXT}")
    if name is None:
        raise BadRow(place, f"message {number} has the unknown role {short(role)}; the roles are {', '.join(ROLES)}")
    if isinstance(content, list) and (other := next((part for part in content if not _is_text(part)), None)):
        raise BadRow(place, f"the content of message {number} ({name}) has a part that is no text: {short(other)}")
    if wrong := not_text(content):
        raise BadRow(place, f"the content of message {number} ({name}) {wrong}")
    checked = {"role": name, "content": content}
    if name == "user" and message.get("input") is not None:
        if wrong := not_text(message["input"]):
            raise BadRow(place, f"the input of message {number} {wrong}")
        if message["input"].strip():
            checked["input"] = message["input"]
    return checked


def parts_as_text(content: Any) -> Any:
    """A content that is a list of parts (OpenAI's {"type": "text", "text": ...}) as one text, a line for each part, as
    vLLM writes it; anything else, also a list with another part, as it is."""
    if not isinstance(content, list) or not content or not all(map(_is_text, content)):
        return content
    return "\n".join(part if isinstance(part, str) else part["text"] for part in content)


def _is_text(part: Any) -> bool:
    if not isinstance(part, dict):
        return isinstance(part, str)
    return isinstance(part.get("text"), str) and part.get("type", "text") in TEXT_PARTS


def _check_order(before: list[Message], message: Message, number: int, place: str) -> None:
    role = message["role"]
    last = before[-1]["role"] if before else ""
    fits = {"system": not before, "user": last != "user", "assistant": last == "user"}[role]
    if not fits:
        follows = f"follows the {last}'s" if last else "is the first"
        raise BadRow(place, f"roles out of order: message {number}, the {role}'s, {follows}; {ORDER}")
    if not message["content"].strip():
        what = "empty reply" if role == "assistant" else "empty user message" if role == "user" else "empty content"
        raise BadRow(place, f"{what} (message {number})")
