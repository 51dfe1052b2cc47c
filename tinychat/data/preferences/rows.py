"""The canonical row of a preference: one prompt, a reply that was chosen and one that was rejected; and how
it comes out of the rows of a table: PKU-SafeRLHF's, HH's and MiniMind's columns, or one's own."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from tinychat.config.schema import Preference
from tinychat.data.chats.files import READ, as_list, listed, only_reply, opening, prompt_column, prompt_messages
from tinychat.data.chats.rows import BadRow, Columns, Message, as_columns, chat_row, is_empty, prompt_key
from tinychat.data.files.tables import not_text, short


class Verdict(Protocol):
    """What an exact judge says of a reply."""

    @property
    def reward(self) -> float:
        """From -1 to 1."""

    @property
    def safe(self) -> bool: ...

    @property
    def refused(self) -> bool: ...


class Request(Protocol):
    """A prompt that knows what a reply to it is worth, as tinyworld's do."""

    def judge(self, reply: str) -> Verdict: ...


@dataclass(frozen=True)
class Labels:
    """What a data set says of a pair beside which reply was chosen; None: it does not."""

    category: str = ""  # of harm; tinyworld: or of the benign request; "": unknown
    harmful: bool | None = None  # whether the prompt asks for harm
    chosen_safe: bool | None = None
    rejected_safe: bool | None = None
    chosen_severity: int | None = None  # of the harm in the reply: 0 none to 3 severe
    rejected_severity: int | None = None
    request: Request | None = None  # knows what any reply to it is worth


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
    request: Request | None = None
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


Reader = Callable[[Columns, str], PreferenceRow]  # a row and its place; raises BadRow
# Which of PKU-SafeRLHF's columns says which reply is preferred, and what it means.
PREFERRED = {
    Preference.safer: ("safer_response_id", "the safer reply"),
    Preference.better: ("better_response_id", "the more helpful reply"),
}
# A turn of HH's transcripts. Some texts speak of "Human:" within a line, which begins no turn.
TURN = re.compile(r"\n\n(Human|Assistant):")
TURN_ROLES = {"Human": "user", "Assistant": "assistant"}
LABELS = ("category", "harmful", "chosen_safe", "rejected_safe")
SCORES = ("score_chosen", "score_rejected")  # of UltraFeedback's binarized rows
COMPLETIONS = "completions"  # UltraFeedback's: several replies, each with a score in the first of these that it has
COMPLETION_SCORES = ("overall_score", "fine-grained_score")
# All that is asked for in rows of preferences.
COLUMNS = READ.union(
    ("chosen", "rejected", *SCORES, COMPLETIONS, *LABELS, *(column for column, _ in PREFERRED.values())),
    (f"response_{side}{end}" for side in (0, 1) for end in ("", "_severity_level", "_harm_category")),
    (f"is_response_{side}_safe" for side in (0, 1)),
)
TRUTH = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
OWN_COLUMNS = (
    "prompt (a text or messages), chosen and rejected; chosen and rejected alone, each a list of messages or a "
    "transcript of Human: and Assistant: turns; or instruction and completions, each with response and overall_score"
)


def read_preferences(rows: Iterable[tuple[str, Any]], read: Reader) -> Iterator[PreferenceRow | BadRow]:
    """Each row's preference, or why it has none."""
    for place, row in rows:
        try:
            columns = as_columns(row, place)
            found = read(columns, place)
            unused = columns.unused()
            yield replace(found, unused=(*unused, *found.unused)) if unused else found
        except BadRow as bad:
            yield bad


def pku_row(row: Columns, place: str, preference: Preference) -> PreferenceRow:
    """PKU-SafeRLHF: prompt, response_0 and _1, which of them is safer and which better, whether each is safe;
    in newer revisions also each one's kinds of harm and their severity.

    The category is the first kind marked on the rejected reply, or else on the chosen one. Files without the
    columns on safety give rows without those labels; a row that has the column but no answer in it is bad.
    """
    _need(row, ("prompt", "response_0", "response_1"), place)
    column, meaning = PREFERRED[preference]
    for other, _ in PREFERRED.values():
        row.get(other)  # which of them is not used is the user's choice, and need not be told
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
    labels = Labels(
        category=harms[1] or harms[0],
        chosen_safe=safe[0],
        rejected_safe=safe[1],
        chosen_severity=severity[0],
        rejected_severity=severity[1],
    )
    prompt = prompt_messages(row, place)
    return preference_row(prompt, row[f"response_{first}"], row[f"response_{1 - first}"], place, labels)


def hh_row(row: Columns, place: str) -> PreferenceRow:
    """HH: two transcripts of "\\n\\nHuman: ... \\n\\nAssistant: ..." turns that share all but the last."""
    _need(row, ("chosen", "rejected"), place)
    chosen, rejected = (transcript(row[name], name, place) for name in ("chosen", "rejected"))
    return _paired(row, chosen, rejected, place)


def minimind_row(row: Columns, place: str) -> PreferenceRow:
    """MiniMind: two lists of messages that share all but the last."""
    _need(row, ("chosen", "rejected"), place)
    chosen, rejected = (_messages(row[name], name, place) for name in ("chosen", "rejected"))
    return _paired(row, chosen, rejected, place)


def own_row(row: Columns, place: str) -> PreferenceRow:
    """OWN_COLUMNS, and where there are any LABELS. The prompt may stand in any column that prompts alone may.

    Messages beside a prompt may be replies alone ([assistant], or the message itself) or whole conversations.
    """
    if COMPLETIONS in row and not {"chosen", "rejected"} <= set(row):
        return ultrafeedback_row(row, place)
    if "chosen" not in row or "rejected" not in row:
        raise BadRow(place, f"no preference in the columns {row.names()}; known are {OWN_COLUMNS}")
    _check_scores(row, place)
    chosen, rejected = (_side(row[name], name, place) for name in ("chosen", "rejected"))
    has_prompt = prompt_column(row) is not None
    if isinstance(chosen, list) and isinstance(rejected, list):
        replies = only_reply(chosen), only_reply(rejected)
        if not has_prompt or None in replies:
            return _paired(row, chosen, rejected, place)
        chosen, rejected = replies
    if has_prompt:
        return preference_row(prompt_messages(row, place), chosen, rejected, place, _labels(row, place))
    if isinstance(chosen, str) and TURN.match(begun(chosen)):
        return hh_row(row, place)
    raise BadRow(place, f"no column 'prompt'; it has {row.names()}; known are {OWN_COLUMNS}")


def ultrafeedback_row(row: Columns, place: str) -> PreferenceRow:
    """UltraFeedback: an instruction with several completions, of which the one with the highest score is chosen and
    the one with the lowest rejected (of equal ones the first)."""
    completions = [one for one in listed(row[COMPLETIONS], place, COMPLETIONS) if isinstance(one, dict)]
    scored = [(score, one) for one in completions if (score := _score(one, place)) is not None]
    if len(scored) < 2:
        raise BadRow(place, f"{len(scored)} of {len(completions)} completions have a score; a pair takes two")
    best, worst = (pick(scored, key=lambda item: item[0]) for pick in (max, min))
    if best[0] == worst[0]:
        raise BadRow(place, f"all {len(scored)} completions have the score {best[0]:g}: none is preferred")
    prompt = prompt_messages(row, place)
    found = preference_row(prompt, best[1].get("response"), worst[1].get("response"), place, _labels(row, place))
    keys = dict.fromkeys(key for _, one in scored for key, value in one.items() if not is_empty(value))
    unused = [f"{key} of completions" for key in keys if key not in ("response", *COMPLETION_SCORES)]
    return replace(found, unused=(*found.unused, *unused))


def _score(completion: dict[str, Any], place: str) -> float | None:
    value = next((value for key in COMPLETION_SCORES if (value := completion.get(key)) is not None), None)
    return None if value is None else _number(value, "score of a completion", place)


def _number(value: Any, name: str, place: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or isinstance(value, bool):
        raise BadRow(place, f"{name} is {short(value)}, not a number")
    return number


def _check_scores(row: Columns, place: str) -> None:
    """Raises BadRow where the scores beside a pair say that the rejected reply is the better one."""
    given = [None if is_empty(row.get(name)) else _number(row[name], name, place) for name in SCORES]
    chosen, rejected = given
    if chosen is not None and rejected is not None and chosen < rejected:
        raise BadRow(place, f"score_chosen is {chosen:g}, below score_rejected, {rejected:g}")


def _side(value: Any, name: str, place: str) -> Any:
    """A reply: messages as a list (one message: a list of it), anything else as it is."""
    value = as_list(value)
    if isinstance(value, dict) and not all(isinstance(column, list) for column in value.values()):
        value = [value]
    return listed(value, place, name) if isinstance(value, (list, dict)) else value


def _paired(row: Columns, chosen: list[Any], rejected: list[Any], place: str) -> PreferenceRow:
    """The row of two whole conversations, after what `opening` finds beside them."""
    begun = opening(row, place)
    return paired_row([*begun, *chosen], [*begun, *rejected], place, _labels(row, place))


def transcript(text: Any, name: str, place: str) -> list[Message]:
    """The messages of a transcript; blanks around a turn's text go."""
    if not isinstance(text, str):
        raise BadRow(place, f"{name} is {short(text)}, not a transcript")
    before, *parts = TURN.split(begun(text))
    if before.strip() or not parts:
        raise BadRow(place, f'{name} is {short(text)}, which does not begin with "\\n\\nHuman:"')
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": TURN_ROLES[who], "content": said.strip()} for who, said in turns]


def begun(text: str) -> str:
    """A transcript whose leading blank line was lost has it again."""
    return f"\n\n{text.lstrip()}"


def _labels(row: Columns, place: str) -> Labels:
    category = row.get("category") or ""
    if not isinstance(category, str):
        raise BadRow(place, f"category is {short(category)}, not a string")
    known = {name: truth(row, name, place, needed=False) for name in LABELS[1:]}
    return Labels(category.strip(), known["harmful"], known["chosen_safe"], known["rejected_safe"])


def truth(row: Columns, column: str, place: str, needed: bool) -> bool | None:
    """True or false, also as text or number; None where the row lacks the column or (not needed) a value."""
    value = row.get(column)
    if column not in row or (not needed and value in (None, "")):
        return None
    found = TRUTH.get(str(value).strip().lower())
    if found is None:
        raise BadRow(place, f"{column} is {short(value)}, neither true nor false")
    return found


def _severity(row: Columns, column: str, place: str) -> int | None:
    value = row.get(column)
    if value is None:
        return None
    if not (isinstance(value, int) and 0 <= value <= 3):
        raise BadRow(place, f"{column} is {short(value)}, not 0 (none) to 3 (severe)")
    return value


def _first_harm(marks: Any) -> str:
    return next((str(name) for name, marked in marks.items() if marked), "") if isinstance(marks, dict) else ""


def _messages(value: Any, name: str, place: str) -> list[Any]:
    value = as_list(value)
    if not isinstance(value, (list, dict)):
        raise BadRow(place, f"{name} is {short(value)}, not a list of messages")
    return listed(value, place, name)


def _need(row: Columns, columns: tuple[str, ...], place: str) -> None:
    for column in columns:
        if column not in row:
            raise BadRow(place, f"no column {column!r}; it has {row.names()}")
