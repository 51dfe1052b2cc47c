"""Which of the layouts of docs/data.md a row has, which `data=` reads it, and one row read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinychat.config.plugins import MADE_OF, VERIFIERS
from tinychat.config.schema import DataConfig, Preference
from tinychat.config.specs import JUDGES, SPECS, Made, Rows, StageSpec, recipe_order
from tinychat.config.words import for_shell
from tinychat.data.chats.files import COLUMNS, LISTS, TEXTS, as_list, find_layout, listed
from tinychat.data.chats.rows import ROLES, BadRow, ChatRow, is_empty
from tinychat.data.documents.sources import text_of
from tinychat.data.files.splits import find_splits
from tinychat.data.files.tables import Meter
from tinychat.data.preferences.rows import COMPLETIONS, SCORES, TURN, PreferenceRow, begun, read_preferences
from tinychat.data.sources import SOURCES
from tinychat.errors import UserError

# Columns that a document may stand in, the likeliest first.
TEXT_COLUMNS = ("text", "content", "document", "body", "article", "story", "passage", "code", "raw_content", "markdown")


@dataclass(frozen=True)
class Known:
    """A layout as a file has it."""

    name: str  # as in docs/data.md
    shape: Rows
    data: str  # the source that reads it
    settings: tuple[str, ...] = ()  # beside data.path
    column: str = ""  # of documents
    checkable: bool = False  # replies can be checked: stage=rlvr learns from it too

    def stages(self, labelled: bool = False) -> tuple[str, ...]:
        """Those that can learn from its rows: first what trains on rows of this shape, last what makes its own of them.
        labelled: whether some replies are labelled safe or unsafe, which a judge learns from."""
        able = [SPECS[name] for name in recipe_order() if self.shape in MADE_OF.get(SPECS[name].reads or "", ())]
        able = [spec for spec in able if self.checkable or not spec.checks]
        if SOURCES[self.data].of_corpus:
            able = [spec for spec in able if spec.makes is not Made.corpus]
        if not labelled:
            able = [spec for spec in able if spec.makes not in JUDGES.values()]

        def rank(spec: StageSpec) -> tuple[bool, bool, bool]:
            return spec.reads != self.shape, not spec.trains, self.checkable and not spec.checks

        return tuple(spec.name for spec in sorted(able, key=rank))

    def command(self, stage: str, path: str, *more: str) -> str:
        words = [f"stage={stage}", f"data={self.data}", f"data.path={path}", *self.settings, *more]
        return f"python -m tinychat.train {for_shell(words)}"


PLAIN = Known("plain text", "documents", "text")  # of every txt file
CHUNKS = Known("a corpus", "documents", "corpus", column="text")  # of stage=corpus
PROMPT_LINES = Known("prompts", "prompts", "prompts")  # what a txt file may be too: a prompt a line


def layout_of(row: Any) -> Known | None:
    """Of a row of a table; None: none that is known."""
    if not isinstance(row, dict):
        return None
    prompt = next((name for name in (*LISTS, *TEXTS) if isinstance(row.get(name), (str, list, dict))), None)
    if {"prompt", "response_0", "response_1"} <= row.keys():
        better = "better_response_id" in row and "safer_response_id" not in row
        settings = (f"data.preference={Preference.better.value}",) if better else ()
        return Known("PKU-SafeRLHF", "preferences", "pku_saferlhf", settings)
    if {"chosen", "rejected"} <= row.keys():
        return _pair(row, prompt)
    if COMPLETIONS in row and prompt:
        return Known("UltraFeedback", "preferences", "preference")
    if prompt in LISTS:
        return _messages(row[prompt], prompt)
    if isinstance(row.get("answer"), str) and "####" in row["answer"] and isinstance(row.get("question"), str):
        return Known("GSM8K", "conversations", "gsm8k", checkable=True)
    is_kind = row.get("answer") in VERIFIERS.names()
    if prompt and ("reference" in row or is_kind):
        return Known("prompts", "prompts", "prompts", checkable=is_kind and not is_empty(row.get("reference")))
    if {"instruction", "output"} <= row.keys():
        return Known("Alpaca", "conversations", "alpaca")
    if any(user in row and reply in row and prompt for user, reply, _ in COLUMNS) or {"input", "output"} <= row.keys():
        return Known("prompt and completion", "conversations", "chat")
    column = next((name for name in TEXT_COLUMNS if isinstance(row.get(name), str)), None)
    if prompt:
        return Known("prompts", "prompts", "prompts")
    if column is None:
        return None
    name = "text column" if column == "text" else f"documents in the column {column}"
    settings = () if column == "text" else (f"data.text_column={column}",)
    return Known(name, "documents", "text", settings, column)


def _pair(row: dict[str, Any], prompt: str | None) -> Known:
    if any(name in row for name in SCORES):
        return Known("UltraFeedback binarized", "preferences", "preference")
    chosen = as_list(row["chosen"])
    if isinstance(chosen, str) and prompt is None and TURN.match(begun(chosen)):
        return Known("HH", "preferences", "hh_rlhf")
    if isinstance(chosen, list) and prompt is None:
        return Known("MiniMind DPO", "preferences", "minimind_dpo")
    return Known("prompt, chosen, rejected", "preferences", "preference")


def _messages(value: Any, column: str) -> Known:
    raw = as_list(value)
    first = raw[0] if isinstance(raw, list) and raw else raw
    shared = isinstance(first, Mapping) and "from" in first
    try:
        last = listed(value, "", column)[-1]
    except (BadRow, IndexError):
        last = None
    role = last.get("role") if isinstance(last, dict) else None
    if isinstance(role, str) and ROLES.get(role) == "user":
        return Known("prompts", "prompts", "prompts")
    if shared:
        return Known("ShareGPT", "conversations", "chat")
    if column == "conversations":
        return Known("MiniMind SFT", "conversations", "minimind_sft")
    return Known("OpenAI messages", "conversations", "chat")


Reader = Callable[[Any, str], Any]  # a row and its place: a text, ChatRow, PreferenceRow or PromptRow; raises BadRow


def reader_of(known: Known, first: Any, meter: Meter) -> Reader:
    """What the source does with each row. first: a row that has the layout. meter: where columns beside a document's
    are counted."""
    if known == CHUNKS:
        return lambda row, place: text_of(place, {known.column: row.get(known.column)}, known.column, meter)
    if known.shape == "documents":
        return lambda row, place: text_of(place, row, known.column, meter)
    if known.shape == "prompts":
        from tinychat.data.preferences.prompts import prompt_row  # transformers loads here

        return prompt_row
    source = SOURCES[known.data]
    if known.shape == "preferences":
        preference = Preference.better if known.settings else Preference.safer
        read = source.reader(DataConfig(preference=preference))
        return lambda row, place: _found(next(read_preferences([(place, row)], read)))
    layout = source.layout() or find_layout(first, "")
    return layout.row


def _found(row: PreferenceRow | BadRow) -> PreferenceRow:
    if isinstance(row, BadRow):
        raise row
    return row


def path_for(known: Known, files: list[Path], others: list[Path], asked: str) -> tuple[str, str]:
    """What data.path= of some of the files is, and what has to be done before, where it needs anything; "": nothing.
    known: their layout. asked: the path that all of them and the others came from."""
    if known == CHUNKS:
        folders = sorted({file.parent for file in files})
        return str(folders[0]), f"{len(folders)} corpora; a command reads one of them" if len(folders) > 1 else ""
    if len(files) == 1:
        return str(files[0]) if others or not _has_training(asked) else asked, ""
    if not others and _has_training(asked):
        return asked, ""
    folder = files[0].parent
    for pattern in (str(folder), f"{folder}/*{''.join(files[0].suffixes[-2:])}"):
        try:
            splits = find_splits(pattern)
        except UserError:
            continue
        if {*splits.train, *splits.validation, *splits.left_out} == {*files} and splits.train:
            return pattern, ""
    return str(files[0]), f"the {len(files)} files of this layout lie among others; give them a folder of their own"


def _has_training(path: str) -> bool:
    try:
        return bool(find_splits(path).train)
    except UserError:
        return False


def prompt_of(row: Any) -> str | None:
    """What two rows with the same prompt have in common; None of a document."""
    return None if isinstance(row, str) else row.key()


def whole_of(row: Any) -> str:
    """All that a row says, to find it again."""
    if isinstance(row, str):
        return row
    if isinstance(row, PreferenceRow):
        return f"{row.prompt}\0{row.chosen}\0{row.rejected}"
    return row.content() if isinstance(row, ChatRow) else f"{row.content()}\0{row.answer}\0{row.reference}"


def texts_of(row: Any) -> list[tuple[str, str]]:
    """(role, text) of each part of a row: a document is one of no role, the sides of a pair are chosen and rejected."""
    if isinstance(row, str):
        return [("", row)]
    messages = row.messages if hasattr(row, "messages") else row.prompt
    said = [(one["role"], "\n".join([one["content"], *([one["input"]] if "input" in one else [])])) for one in messages]
    if isinstance(row, PreferenceRow):
        said += [("chosen", row.chosen), ("rejected", row.rejected)]
    return said
