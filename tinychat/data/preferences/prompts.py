"""Prompts of one split as batches for rollouts: those of any source of preferences or conversations, or a user's own
file."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from transformers import PreTrainedTokenizerFast

from tinychat.config.plugins import VERIFIERS, reward_kind, source_of
from tinychat.config.schema import DataConfig, OnBadRow, RewardConfig
from tinychat.data.batching import SeededOrder
from tinychat.data.chats.files import READ, prompt_column, prompt_messages
from tinychat.data.chats.rows import ROLES, BadRow, ChatRow, Columns, LeftOut, Message, as_columns, chat_row, prompt_key
from tinychat.data.chats.sources import ChatSource, chat_source
from tinychat.data.chats.tools import as_text, with_tools
from tinychat.data.files import splits
from tinychat.data.files.row_sources import Found, RowSource, max_rows, no_path
from tinychat.data.files.splits import Split, readable
from tinychat.data.files.tables import Meter, read_lines, read_rows, short
from tinychat.data.preferences.rows import PreferenceRow, Request, truth
from tinychat.data.preferences.sources import PreferenceSource, preference_source
from tinychat.errors import UserError
from tinychat.text.chat_render import Refused
from tinychat.text.chat_template import try_prompts

CODE = re.compile(r"\S+\.py:\w+")  # FILE.py:NAME
COLUMNS = READ | {"category", "harmful", "reference", "answer"}  # all that is asked for in rows of prompts


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
    request: Request | None = None  # knows what any reply to it is worth
    kind: str = ""  # harmful or benign, where both are mixed; "": they are not
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


def prompt_row(row: Any, place: str, kind: str | None = None) -> PromptRow:
    """The prompt of one row: a text, or an object as prompt_messages reads it.

    A conversation that ends with the assistant gives its last reply as the reference. Columns that may be there
    too: category; harmful; `reference`, the right reply; `answer`, how a reply is checked against it (a kind of
    answer, by its name in VERIFIERS), or without a reference the right reply itself. kind: of a row with a reference
    that names none. Raises BadRow, also for an `answer` that names code: that is for data.verifiers alone.
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
    answer = answer or (kind if kind and reference else "")
    category = _text(row, "category", place)
    harmful = truth(row, "harmful", place, needed=False)
    unused = (*row.unused(), *whole.unused)
    return PromptRow(whole.messages[:-1], place, category, harmful, answer=answer, reference=reference, unused=unused)


def _reference(row: Columns, reference: str, place: str) -> tuple[str, str]:
    """The right reply and how one is checked against it; "" for what is unknown."""
    reference, answer = _text(row, "reference", place) or reference, _text(row, "answer", place)
    if CODE.fullmatch(answer):
        yours = f"data.verifiers=[{answer}] with answer {answer.rpartition(':')[2]!r}"
        raise BadRow(place, f"answer is {short(answer)}: a file of data names no code; if you trust it, say {yours}")
    if answer in ("", *VERIFIERS.names()):
        if answer and not reference:
            raise BadRow(place, f"answer is {short(answer)}, how a reply is checked, but no column 'reference' says it")
        return reference, answer
    if reference:
        raise BadRow(
            place, f"answer is {short(answer)}; beside a reference it is one of {', '.join(VERIFIERS.names())}"
        )
    return answer, ""


def _text(row: Columns, column: str, place: str) -> str:
    value = row.get(column)
    if value is None:
        return ""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and column in ("reference", "answer"):
        value = str(value)
    if not isinstance(value, str):
        raise BadRow(place, f"{column} is {short(value)}, not a string")
    return value.strip()


def _find(config: DataConfig, split: Split) -> Found[PromptRow]:
    source = source_of(config)
    found = source.files(config, split)
    if found is None:
        if made := source.made(config, split, "prompts"):
            return made
        raise no_path(config, splits.USABLE)

    def read() -> Iterator[PromptRow | BadRow]:
        for path in found.taken:
            with readable(path):
                for place, row in with_tools(_rows(path), config.tool_calls):
                    try:
                        yield prompt_row(row, f"{path}, {place}", config.answer)
                    except BadRow as bad:
                        yield bad

    def identify(memo_dir: Path | None) -> str:
        return json.dumps([*found.hashes(memo_dir), *([config.answer] if config.answer else []), *as_text(config)])

    return Found(found.describe("prompts"), read, identify, found.hold_out, found.size)


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Of a txt file the lines that are not blank, of another its rows."""
    if splits.format_of(path) != "txt":
        return read_rows(path, Meter(), COLUMNS)
    lines = read_lines(path, Meter(), long_lines="refuse")
    return ((f"line {line.number}", line.text.strip()) for line in lines if line.text.strip())


def check_answers(rows: Iterable[PromptRow], key: str, kind: str | None = None) -> None:
    """Raise UserError where one of the prompts cannot be verified; `key` names what wants to. kind: of answer, where
    that is not for the prompts to say."""
    if bad := next((row for row in rows if not (row.reference if kind else row.answer)), None):
        has = "the right reply alone, not how another is checked against it" if bad.reference else "none"
        raise UserError(
            f"{key}: the verifier needs prompts with a checkable answer, and {bad.place} has {has}; give its row "
            f"reference, the right reply, and answer, one of {', '.join(VERIFIERS.names())} (data=prompts; data.answer "
            "for all of them), use "
            "data=tinyworld without the oracle's reward, or another reward"
        )


Shape = Literal["preferences", "conversations"]
READING_VERSION = 2  # raise it when the same rows would give other prompts
log = logging.getLogger(__name__)


@dataclass
class PromptSource:
    """The different prompts of one split."""

    rows_of: PreferenceSource | ChatSource | PromptFiles
    n_duplicates: int = 0  # rows left out by the latest rows(), whole after its end
    first_duplicate: str = ""  # where the first of them stands

    @property
    def name(self) -> str:
        return self.rows_of.name

    @property
    def description(self) -> str:
        return f"the prompts of {self.rows_of.description}"

    @property
    def on_bad_row(self) -> OnBadRow:
        return self.rows_of.on_bad_row

    def rows(self) -> Iterator[PromptRow]:
        """Each prompt once for all that a reply to it is judged by, in the order of the first row that has it. Raises
        what the source's rows() do."""
        self.n_duplicates, self.first_duplicate = 0, ""
        seen: set[bytes] = set()
        for row in self.rows_of.rows():
            prompt = _prompt(row)
            key = hashlib.blake2b(json.dumps(_identity(row, prompt)).encode(), digest_size=16).digest()
            if key in seen:
                self.n_duplicates += 1
                self.first_duplicate = self.first_duplicate or row.place
                continue
            seen.add(key)
            yield prompt
        if self.n_duplicates:
            what = "rows left out, whose prompt an earlier row has"
            log.info("%s: %d %s; the first at %s", self.name, self.n_duplicates, what, self.first_duplicate)

    def fingerprint(self, memo_dir: Path | None = None) -> str:
        """A hash of what rows() yields."""
        return hashlib.sha256(f"prompts {READING_VERSION}\0{self.rows_of.fingerprint(memo_dir)}".encode()).hexdigest()


def prompt_source(config: DataConfig, split: Split, shape: Shape | None = None) -> PromptSource:
    """The prompts of one split, found but not yet read: of preferences, of conversations (without their last
    reply) or of a user's own files. `shape` matters where a source has several (tinyworld, safe_and_helpful); None
    takes its own prompts, else its preferences. Raises UserError as preference_source, chat_source and prompt_files
    do."""
    has = source_of(config).has
    if "prompts" in has and shape not in has:
        return PromptSource(prompt_files(config, split))
    if shape is None:
        shape = "preferences" if "preferences" in has else "conversations"
    find: Callable[[DataConfig, Split], PreferenceSource | ChatSource]
    find = preference_source if shape == "preferences" else chat_source
    return PromptSource(find(config, split))


def prompt_shape(reward: RewardConfig) -> Shape | None:
    """Prompts with checkable answers where one part needs those and none an exact judge, else those of preferences."""
    kinds = [reward_kind(name, part) for name, part in reward.parts.items()]
    answers, oracle = (any(getattr(kind, need) for kind in kinds) for need in ("needs_answers", "needs_oracle"))
    return "conversations" if answers and not oracle else None


def _prompt(row: PreferenceRow | ChatRow | PromptRow) -> PromptRow:
    if isinstance(row, PromptRow):
        return row
    if isinstance(row, PreferenceRow):
        return PromptRow(row.prompt, row.place, row.category, row.harmful, request=row.request)
    reference = row.messages[-1]["content"]
    return PromptRow(row.messages[:-1], row.place, family=row.family, answer=row.answer, reference=reference)


def _identity(row: PreferenceRow | ChatRow | PromptRow, prompt: PromptRow) -> list[Any]:
    """What makes two rows one prompt. All that a user's own row of prompts says counts; of others what a verifier
    reads: that two pairs have other replies, or two conversations without a checkable answer, changes nothing."""
    if isinstance(row, PromptRow):
        return [prompt.messages, prompt.answer, prompt.reference, prompt.category, prompt.harmful]
    return [prompt.messages, prompt.answer, prompt.reference if prompt.answer else ""]


__all__ = ["PromptBatch", "PromptBatches", "PromptRow", "PromptSource", "prompt_source"]
OneRow = TypeVar("OneRow", PromptRow, ChatRow)


@dataclass(frozen=True)
class PromptBatch:
    """B prompts of one step, in order."""

    rows: list[PromptRow]
    ids: list[list[int]]  # the tokens of each, ending where the reply begins
    indices: list[int]  # of each in PromptBatches.rows


class PromptBatches:
    """Prompts for rollouts as a pure function of the step: each once an epoch, in a seeded order, the same for
    any number of ranks."""

    def __init__(
        self,
        rows: Iterable[PromptRow],
        tokenizer: PreTrainedTokenizerFast,
        context_length: int,
        response_length: int,
        seed: int,
        on_long: OnBadRow = OnBadRow.fail,
    ) -> None:
        """`on_long`: whether prompts that leave less than `response_length` tokens of the context, and those that the
        template refuses, end the job or are left out with a warning (the source's on_bad_row). Raises UserError for
        those, which counts them and names the longest, where no prompt is left, and for a response as long as the
        context."""
        room = context_length - response_length
        if response_length < 1 or room < 1:
            raise UserError(
                f"stage.response_length={response_length}: at least 1, and less than the context of {context_length} "
                "tokens, which prompt and response share"
            )
        rows = list(rows)
        if not rows:
            raise UserError(
                "there are no prompts: the prompt set is empty; give data with at least one (data.path=...)"
            )
        left_out = LeftOut(on_long)
        rows, ids = with_prompts(tokenizer, rows, [row.messages for row in rows], left_out)
        if not rows:
            raise UserError(f"there are no prompts left: {left_out.reason()}")
        left_out.warn("prompts")
        fitting = [index for index, prompt in enumerate(ids) if len(prompt) <= room]
        if len(fitting) < len(rows):
            what = _too_long(rows, ids, context_length, response_length)
            if on_long is OnBadRow.fail or not fitting:
                skip = "" if not fitting else ", or leave them out: data.on_bad_row=skip"
                raise UserError(f"{what}; lower stage.response_length, take a model with a longer context{skip}")
            log.warning("%s; left out", what)
        self.rows, self.ids = [rows[index] for index in fitting], [ids[index] for index in fitting]
        self.n_dropped = len(rows) - len(fitting)
        self._order = SeededOrder(len(self.rows), seed)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, self.ids))

    def epoch_of(self, step: int, batch_size: int) -> float:
        """Epochs gone through before `step` (0-based), with the fraction."""
        return self._order.epoch_of(step, batch_size)

    def batch(self, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> PromptBatch:
        """Prompts [rank * B / world_size, (rank + 1) * B / world_size) of the step's B = batch_size."""
        return self._at(self._order.items(step, batch_size, rank, world_size).tolist())

    def after(self, drawn: int, count: int) -> PromptBatch:
        """The next `count` prompts of the same order once `drawn` are through."""
        return self._at([int(self._order.items(drawn + place, 1)[0]) for place in range(count)])

    def _at(self, indices: list[int]) -> PromptBatch:
        return PromptBatch([self.rows[index] for index in indices], [self.ids[index] for index in indices], indices)


def with_prompts(
    tokenizer: PreTrainedTokenizerFast, rows: Sequence[OneRow], prompts: list[list[Message]], left_out: LeftOut
) -> tuple[list[OneRow], list[list[int]]]:
    """The rows whose prompts (messages that a reply is to follow) the template can write, and the tokens of those; the
    others go to `left_out`."""
    kept, ids = [], []
    for row, prompt in zip(rows, try_prompts(tokenizer, prompts), strict=True):
        if isinstance(prompt, Refused):
            left_out.add(BadRow(row.place, str(prompt)))
        else:
            kept.append(row)
            ids.append(prompt)
    return kept, ids


def _too_long(rows: list[PromptRow], ids: list[list[int]], context_length: int, response_length: int) -> str:
    room = context_length - response_length
    count, longest = sum(len(prompt) > room for prompt in ids), max(range(len(ids)), key=lambda index: len(ids[index]))
    return (
        f"{count:,} of {len(rows):,} prompts are longer than the {room} tokens that a context of {context_length} "
        f"leaves beside stage.response_length={response_length}; the longest has "
        f"{len(ids[longest]):,} tokens ({rows[longest].place})"
    )
