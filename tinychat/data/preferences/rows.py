"""The canonical row of a preference: one prompt, a reply that was chosen and one that was rejected."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from tinychat.data.chats.rows import BadRow, Message, chat_row, prompt_key
from tinychat.data.files.tables import not_text


@dataclass(frozen=True)
class Labels:
    """What a data set says of a pair beside which reply was chosen; None: it does not."""

    category: str = ""  # of harm; tinyworld: or of the benign request; "": unknown
    harmful: bool | None = None  # whether the prompt asks for harm
    chosen_safe: bool | None = None
    rejected_safe: bool | None = None
    chosen_severity: int | None = None  # of the harm in the reply: 0 none to 3 severe
    rejected_severity: int | None = None
    request: Any = None  # of tinyworld: what its oracle needs to score any reply


@dataclass(frozen=True)
class PreferenceRow:
    """One pair of replies. The two differ in more than outer blanks, and neither is blank."""

    prompt: list[Message]  # [system,] user, assistant, ..., user
    chosen: str
    rejected: str
    place: str  # names the row in messages: "FILE, line 7", "tinyworld train 12"
    category: str = ""  # as in Labels, and so on
    harmful: bool | None = None
    chosen_safe: bool | None = None
    rejected_safe: bool | None = None
    chosen_severity: int | None = None
    rejected_severity: int | None = None
    request: Any = None
    unused: tuple[str, ...] = field(default=(), compare=False)  # columns, and keys of messages, that were left out

    def key(self) -> str:
        """The first user message and its input: rows with the same one belong on the same side of every
        split."""
        return prompt_key(self.prompt)

    def content(self) -> str:
        """What the choice of max_rows goes by: the same whichever reply was chosen."""
        return json.dumps([self.prompt, *sorted((self.chosen, self.rejected))])

    def conversations(self) -> tuple[list[Message], list[Message]]:
        """The prompt with the chosen reply, and with the rejected one."""
        chosen, rejected = ({"role": "assistant", "content": text} for text in (self.chosen, self.rejected))
        return [*self.prompt, chosen], [*self.prompt, rejected]


def preference_row(
    prompt: Iterable[Any], chosen: Any, rejected: Any, place: str, labels: Labels | None = None
) -> PreferenceRow:
    """The row of a prompt (messages as chat_row takes them, the last one the user's) and two replies.

    Raises BadRow for a prompt that is no conversation, a reply that is blank or not a string, and replies that
    are the same.
    """
    for name, reply in (("chosen", chosen), ("rejected", rejected)):
        if wrong := not_text(reply):
            raise BadRow(place, f"{name} {wrong}")
        if not reply.strip():
            raise BadRow(place, f"empty reply ({name})")
    if chosen.strip() == rejected.strip():
        raise BadRow(place, "chosen and rejected are the same text")
    whole = chat_row([*prompt, {"role": "assistant", "content": chosen}], place)
    return PreferenceRow(whole.messages[:-1], chosen, rejected, place, **vars(labels or Labels()), unused=whole.unused)


def paired_row(chosen: list[Any], rejected: list[Any], place: str, labels: Labels | None = None) -> PreferenceRow:
    """The row of two whole conversations that differ in their last message, the assistant's. Raises BadRow,
    also where they part before that."""
    sides: list[list[Message]] = []
    unused: dict[str, None] = {}
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        try:
            whole = chat_row(messages, place)
        except BadRow as bad:
            raise BadRow(place, f"{name}: {bad.why}") from None
        sides.append(whole.messages)
        unused |= dict.fromkeys(whole.unused)
    if sides[0][:-1] != sides[1][:-1]:
        common = zip(sides[0][:-1], sides[1][:-1], strict=False)
        shorter = min(map(len, sides))
        number = next((n for n, (one, other) in enumerate(common, start=1) if one != other), shorter)
        raise BadRow(
            place,
            f"chosen and rejected must share all but their last message, and part at message {number} "
            f"(of {len(sides[0])} and {len(sides[1])})",
        )
    row = preference_row(sides[0][:-1], sides[0][-1]["content"], sides[1][-1]["content"], place, labels)
    return replace(row, unused=tuple(unused)) if unused else row
