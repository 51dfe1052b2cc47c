"""Preferences out of the rows of a table: PKU-SafeRLHF's, HH's and MiniMind's columns, or one's own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tinychat.data.chat_rows import BadRow, Message
from tinychat.data.preference_rows import Labels, PreferenceRow, paired_row, preference_row
from tinychat.data.tables import short
from tinychat.schema import Preference, Source

Row = dict[str, Any]
Reader = Callable[[Row, str], PreferenceRow]  # a row and its place; raises BadRow
# Which of PKU-SafeRLHF's columns says which reply is preferred, and what it means.
PREFERRED = {
    Preference.safer: ("safer_response_id", "the safer reply"),
    Preference.better: ("better_response_id", "the more helpful reply"),
}
# A turn of HH's transcripts. Some texts speak of "Human:" within a line, which begins no turn.
TURN = re.compile(r"\n\n(Human|Assistant):")
TURN_ROLES = {"Human": "user", "Assistant": "assistant"}
TRUTH = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
OWN_COLUMNS = (
    "prompt (a text or messages), chosen and rejected; or chosen and rejected alone, each a list of messages or a "
    "transcript of Human: and Assistant: turns"
)


def reader(source: Source, preference: Preference) -> Reader:
    """What makes a preference of one row of the source's files."""
    if source is Source.pku_saferlhf:
        return lambda row, place: pku_row(row, place, preference)
    return {Source.hh_rlhf: hh_row, Source.minimind_dpo: minimind_row, Source.preference: own_row}[source]


def read_preferences(rows: Iterable[tuple[str, Any]], read: Reader) -> Iterator[PreferenceRow | BadRow]:
    """Each row's preference, or why it has none."""
    for place, row in rows:
        try:
            if not isinstance(row, dict):
                raise BadRow(place, f"{short(row)} is not an object")
            yield read(row, place)
        except BadRow as bad:
            yield bad


def pku_row(row: Row, place: str, preference: Preference) -> PreferenceRow:
    """PKU-SafeRLHF: prompt, response_0 and _1, which of them is safer and which better, whether each is safe;
    in newer revisions also each one's kinds of harm and their severity.

    The category is the first kind marked on the rejected reply, or else on the chosen one. Files without the
    columns on safety give rows without those labels; a row that has the column but no answer in it is bad.
    """
    _need(row, ("prompt", "response_0", "response_1"), place)
    column, meaning = PREFERRED[preference]
    if column not in row:
        others = [other for other, (name, _) in PREFERRED.items() if name in row]
        instead = f"; it has {PREFERRED[others[0]][0]}: data.preference={others[0].value}" if others else ""
        raise BadRow(
            place, f"no column {column!r} ({meaning}), which data.preference={preference.value} takes{instead}"
        )
    first = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}.get(str(row[column]))
    if first is None:
        raise BadRow(place, f"{column} ({meaning}) is {short(row[column])}, neither 0 nor 1")
    order = (first, 1 - first)  # chosen, rejected
    safe = [truth(row, f"is_response_{side}_safe", place, needed=True) for side in order]
    severity = [_severity(row, f"response_{side}_severity_level", place) for side in order]
    harms = [_first_harm(row.get(f"response_{side}_harm_category")) for side in order]
    labels = Labels(harms[1] or harms[0], None, *safe, *severity)
    prompt = [{"role": "user", "content": row["prompt"]}]
    return preference_row(prompt, row[f"response_{first}"], row[f"response_{1 - first}"], place, labels)


def hh_row(row: Row, place: str) -> PreferenceRow:
    """HH: two transcripts of "\\n\\nHuman: ... \\n\\nAssistant: ..." turns that share all but the last."""
    _need(row, ("chosen", "rejected"), place)
    chosen, rejected = (transcript(row[name], name, place) for name in ("chosen", "rejected"))
    return paired_row(chosen, rejected, place, _labels(row, place))


def minimind_row(row: Row, place: str) -> PreferenceRow:
    """MiniMind: two lists of messages that share all but the last."""
    _need(row, ("chosen", "rejected"), place)
    chosen, rejected = (_messages(row[name], name, place) for name in ("chosen", "rejected"))
    return paired_row(chosen, rejected, place, _labels(row, place))


def own_row(row: Row, place: str) -> PreferenceRow:
    """OWN_COLUMNS, and where there are any the columns category, harmful, chosen_safe and rejected_safe.

    Lists of messages beside a prompt may be replies alone ([assistant]) or whole conversations.
    """
    if "chosen" not in row or "rejected" not in row:
        raise BadRow(place, f"no preference in the columns {_has(row)}; known are {OWN_COLUMNS}")
    chosen, rejected = (_if_list(row[name]) for name in ("chosen", "rejected"))
    labels = _labels(row, place)
    if isinstance(chosen, list) and isinstance(rejected, list):
        replies = _only_reply(chosen), _only_reply(rejected)
        if "prompt" not in row or None in replies:
            return paired_row(chosen, rejected, place, labels)
        chosen, rejected = replies
    if "prompt" in row:
        prompt = _if_list(row["prompt"])
        messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        return preference_row(messages, chosen, rejected, place, labels)
    if isinstance(chosen, str) and TURN.match(_begun(chosen)):
        return hh_row(row, place)
    raise BadRow(place, f"no column 'prompt'; it has {_has(row)}; known are {OWN_COLUMNS}")


def transcript(text: Any, name: str, place: str) -> list[Message]:
    """The messages of a transcript; blanks around a turn's text go."""
    if not isinstance(text, str):
        raise BadRow(place, f"{name} is {short(text)}, not a transcript")
    before, *parts = TURN.split(_begun(text))
    if before.strip() or not parts:
        raise BadRow(place, f'{name} is {short(text)}, which does not begin with "\\n\\nHuman:"')
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": TURN_ROLES[who], "content": said.strip()} for who, said in turns]


def _begun(text: str) -> str:
    """A transcript whose leading blank line was lost has it again."""
    return f"\n\n{text.lstrip()}"


def _labels(row: Row, place: str) -> Labels:
    category = row.get("category") or ""
    if not isinstance(category, str):
        raise BadRow(place, f"category is {short(category)}, not a string")
    return Labels(
        category.strip(),
        *(truth(row, name, place, needed=False) for name in ("harmful", "chosen_safe", "rejected_safe")),
    )


def truth(row: Row, column: str, place: str, needed: bool) -> bool | None:
    """True or false, also as text or number; None where the row lacks the column or (not needed) a value."""
    value = row.get(column)
    if column not in row or (not needed and value in (None, "")):
        return None
    found = TRUTH.get(str(value).strip().lower())
    if found is None:
        raise BadRow(place, f"{column} is {short(value)}, neither true nor false")
    return found


def _severity(row: Row, column: str, place: str) -> int | None:
    value = row.get(column)
    if value is None:
        return None
    if not (isinstance(value, int) and 0 <= value <= 3):
        raise BadRow(place, f"{column} is {short(value)}, not 0 (none) to 3 (severe)")
    return value


def _first_harm(marks: Any) -> str:
    return next((str(name) for name, marked in marks.items() if marked), "") if isinstance(marks, dict) else ""


def _messages(value: Any, name: str, place: str) -> list[Any]:
    value = _if_list(value)
    if not isinstance(value, list):
        raise BadRow(place, f"{name} is {short(value)}, not a list of messages")
    return value


def _if_list(value: Any) -> Any:
    """A list also out of its JSON, as a csv file has it."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _only_reply(side: list[Any]) -> Any:
    """The text of a side that is one message of the assistant; None for another."""
    is_reply = len(side) == 1 and isinstance(side[0], dict) and side[0].get("role") == "assistant"
    return side[0].get("content") if is_reply else None


def _need(row: Row, columns: tuple[str, ...], place: str) -> None:
    for column in columns:
        if column not in row:
            raise BadRow(place, f"no column {column!r}; it has {_has(row)}")


def _has(row: Row) -> str:
    names = list(map(str, row))
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "none"
