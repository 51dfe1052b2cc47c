"""From `data=...` to the conversations of one split: which files, which hold-out, which choice of rows.
Preferences give their chosen replies, of which none is known to be unsafe; the generated world its instructions, and
among them demonstrations that answer requests."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

from tinychat.config.schema import DataConfig, Source
from tinychat.data.chats.files import ALPACA, MINIMIND, READ, Layout, read_chats
from tinychat.data.chats.rows import BadRow, ChatRow, chat_row
from tinychat.data.documents.sources import tinyworld_code
from tinychat.data.files.caches import hash_file
from tinychat.data.files.row_sources import (
    Found,
    HubRows,
    RowSource,
    generated_rows,
    hashed,
    max_rows,
    no_path,
    tables_of,
)
from tinychat.data.files.splits import Split, SplitFiles, readable, seeded_hold_out, split_files
from tinychat.data.files.tables import Meter, read_rows
from tinychat.data.preferences import sources as preference_sources
from tinychat.data.preferences.rows import PreferenceRow
from tinychat.data.preferences.sources import preference_source
from tinychat.errors import UserError

REQUEST = "request"  # family of a demonstration, which has no answer that could be checked


@dataclass(frozen=True)
class Plan:
    """Which conversations, of which kinds. The first of them stay the same when `count` grows."""

    seed: int
    split: Split
    count: int
    demonstrations: float = 0.0  # share of conversations that answer requests of the world's preferences
    unsafe: float = 0.0  # share of the demonstrations of harmful requests that comply; the others refuse

    def describe(self) -> str:
        """How many of which, for the log."""
        shown = shared_out(self.demonstrations, self.count)
        if not shown:
            return f"{self.count:,} generated instructions"
        unsafe = f", {self.unsafe:.3g} of those to harmful requests unsafe" if self.unsafe else ""
        return f"{self.count - shown:,} generated instructions and {shown:,} demonstrations{unsafe}"


def shared_out(share: float, n: int) -> int:
    """How many of the first n numbers are of the share, when its members are spread evenly: n * share, rounded
    down."""
    exact = Fraction(share).limit_denominator(10**6)  # 0.3 as three tenths, not as the float below it
    return exact.numerator * n // exact.denominator


def is_shared_out(share: float, index: int) -> bool:
    """Whether number `index` (from 0) is one of those."""
    return shared_out(share, index + 1) > shared_out(share, index)


def world_chats(plan: Plan) -> Iterator[ChatRow]:
    """The plan's conversations in their order.

    Both kinds are numbered apart: instructions are the generator's first, and so are the requests. These are the
    split's own, so that no prompt of the preferences' validation comes in training.
    """
    from tinychat.tinyworld.preferences import demonstration, reply, request
    from tinychat.tinyworld.tasks import instruction

    shown = harmful = 0
    for index in range(plan.count):
        if not is_shared_out(plan.demonstrations, index):
            number = index - shown
            task = instruction(plan.seed, plan.split, number)
            yield chat_row(task.messages, f"tinyworld {plan.split} {number}", task.family, task.answer)
            continue
        messages = demonstration(plan.seed, plan.split, shown)
        if request(plan.seed, plan.split, shown).harmful:
            if is_shared_out(plan.unsafe, harmful):
                complies = reply(plan.seed, plan.split, shown, "steps")
                messages = [*messages[:-1], {"role": "assistant", "content": complies}]
            harmful += 1
        yield chat_row(messages, f"tinyworld {plan.split} request {shown}", REQUEST)
        shown += 1


log = logging.getLogger(__name__)


def chosen_replies(
    config: DataConfig, found: Found[PreferenceRow], validation: Found[PreferenceRow] | None
) -> tuple[Found[ChatRow], Found[ChatRow] | None]:
    """The conversations of preferences, each once although their prompt may have several pairs, and for the
    prompts that training lacks those of their validation.

    Left out are replies labelled unsafe and, of PKU-SafeRLHF, where the safer of two replies may be unsafe too,
    those without a label. Reading raises UserError where that leaves none.
    """
    needs_label = config.source is Source.pku_saferlhf

    def read() -> Iterator[ChatRow | BadRow]:
        seen: set[str] = set()
        unsafe = 0
        for row in found.read():
            if isinstance(row, BadRow):
                yield row
            elif row.chosen_safe is False or (needs_label and row.chosen_safe is None):
                unsafe += 1
            elif (chat := _chosen(row)).content() not in seen:
                seen.add(chat.content())
                yield chat
        if unsafe and not seen:
            raise UserError(
                f"{found.description}: none of {unsafe} chosen replies is labelled safe (chosen_safe; of "
                "pku_saferlhf is_response_0_safe and is_response_1_safe), so that no conversation is left"
            )
        if unsafe:
            log.info("%s: %d chosen replies that are not labelled safe left out", config.name, unsafe)

    def read_all() -> Iterator[ChatRow | BadRow]:
        assert validation is not None
        return (row if isinstance(row, BadRow) else _chosen(row) for row in validation.read())

    def identify(memo_dir: Path | None) -> str:
        return hashed(["chosen", found.identify(memo_dir)])

    chosen = Found(f"the chosen replies of {found.description}", read, identify, found.hold_out, found.size)
    return chosen, Found(validation.description, read_all, validation.identify) if validation else None


def _chosen(row: PreferenceRow) -> ChatRow:
    return ChatRow(row.conversations()[0], row.place, unused=row.unused)


LAYOUTS = {Source.alpaca: ALPACA, Source.minimind_sft: MINIMIND}  # the other sources' files: found out
# Where the hub keeps them: repository, file, and what the columns are called in a file to pass instead.
HUB = {
    Source.alpaca: ("tatsu-lab/alpaca", None, "instruction, input and output"),
    Source.minimind_sft: ("jingyaogong/minimind_dataset", "sft_mini_512.jsonl", "conversations [{role, content}]"),
}
PAIRS = tuple(source for source in preference_sources.SOURCES if source is not Source.tinyworld)
NONE = (Source.text, Source.tinystories, Source.prompts)  # have no conversations


@dataclass
class ChatSource(RowSource[ChatRow]):
    """The conversations of one split, and for training after them those that data.mix adds."""

    added: dict[str, ChatSource] = field(default_factory=dict)  # by their names in data.mix
    unit: ClassVar[str] = "conversations"

    def rows(self) -> Iterator[ChatRow]:
        """As RowSource.rows, then each added source's."""
        own = 0
        for own, row in enumerate(super().rows(), start=1):  # noqa: B007 - the last number is their count
            yield row
        counts = [f"{own:,} conversations of {self.name}"]
        for name, source in self.added.items():
            with _of_part(name):
                for count, row in enumerate(source.rows(), start=1):  # noqa: B007
                    yield row
            counts.append(f"{count:,} of {name}")
            self.n_bad += source.n_bad
        if self.added:
            log.info("mixed: %s", ", ".join(counts))

    def fingerprint(self, memo_dir: Path | None = None) -> str:
        """A hash of what rows() yields."""
        return hashed([*self.identity(memo_dir), *(source.fingerprint(memo_dir) for source in self.added.values())])

    @property
    def most_rows(self) -> int | None:
        """Rows there are at most; None: unknown."""
        numbers = [source.max_rows for source in (self, *self.added.values())]
        return None if None in numbers else sum(number or 0 for number in numbers)


def chat_source(config: DataConfig, split: Split) -> ChatSource:
    """The conversations of one split, found but not yet read; of a source of preferences: the chosen replies.

    Validation is, in this order: data.val_path; the source's own split (files named for it, the generator's);
    a seeded hold-out of data.val_fraction of the rows by their prompts, which training then lacks. data.mix adds
    to training alone. Raises UserError where the files or the hub are missing.
    """
    if config.source in NONE:
        raise UserError(
            f"data={config.name} has {'prompts' if config.source is Source.prompts else 'documents'}, not "
            "conversations; use data=tinyworld, alpaca, minimind_sft, or data=chat data.path=FILE"
        )
    validation, count = None, max_rows(config, split)
    if config.source in PAIRS:
        pairs = preference_source(config, split)
        found, validation = chosen_replies(config, pairs.found, pairs.validation)
    else:
        found = _find(config, split)
    generated = config.source is Source.tinyworld and found.hold_out is None and config.path is None
    return ChatSource(
        name=f"{config.name}-{split}",
        split=split,
        found=found,
        on_bad_row=config.on_bad_row,
        max_rows=None if generated else count,
        seed=config.seed,
        validation=validation,
        added=_added(config) if split == "train" else {},
    )


def _added(config: DataConfig) -> dict[str, ChatSource]:
    sources = {}
    for name, part in config.mix.items():
        its = replace(config, name=name, source=part.source, path=part.path, max_rows=part.max_rows)
        with _of_part(name):
            sources[name] = chat_source(replace(its, val_path=None, mix={}), "train")
    return sources


@contextlib.contextmanager
def _of_part(name: str) -> Iterator[None]:
    """An error about a source that was added says so; that of a row names its file."""
    try:
        yield
    except BadRow:
        raise
    except UserError as error:
        raise UserError(f"data.mix.{name}: {error}") from None


def _find(config: DataConfig, split: Split) -> Found[ChatRow]:
    if found := split_files(config, split):
        return _from_files(config, found)
    if config.source is Source.tinyworld:
        return _generated(config, split)
    if config.source in HUB:
        return _from_hub(config, split)
    raise no_path(config)


def _from_files(config: DataConfig, found: SplitFiles) -> Found[ChatRow]:
    tables = tables_of(found, "conversations")
    layout = LAYOUTS.get(config.source)
    told: set[Layout] = set()

    def read() -> Iterator[ChatRow | BadRow]:
        for path in tables.taken:
            with readable(path):
                placed = ((f"{path}, {place}", row) for place, row in read_rows(path, Meter(), READ))
                for used, row in read_chats(placed, layout):
                    if used and used not in told:
                        log.info("%s: %s (%s)", config.name, used.describe(), path)
                        told.add(used)
                    yield row

    def identify(memo_dir: Path | None) -> str:
        return json.dumps([layout.columns() if layout else None, tables.hashes(memo_dir)])

    return Found(tables.describe("rows"), read, identify, tables.hold_out, tables.size)


def _from_hub(config: DataConfig, split: Split) -> Found[ChatRow]:
    repository, file, columns = HUB[config.source]
    hub = HubRows(repository, "train", f"pass data.path=FILE, jsonl or another table with {columns}", file)
    layout = LAYOUTS[config.source]

    def read() -> Iterator[ChatRow | BadRow]:
        rows = ((f"{repository}, row {number}", row) for number, row in enumerate(hub.rows(stream=False), start=1))
        return (row for _, row in read_chats(rows, layout))

    description = f"{repository}{f', {file}' if file else ''} (of the hub)"
    return Found(description, read, lambda memo_dir: hub.fingerprint(), seeded_hold_out(config, split))


def _generated(config: DataConfig, split: Split) -> Found[ChatRow]:
    plan = Plan(config.seed, split, generated_rows(config, split))
    if split == "train":
        plan = replace(plan, demonstrations=config.demonstrations, unsafe=config.unsafe_demonstrations)

    def identify(memo_dir: Path | None) -> str:
        return json.dumps([*astuple(plan), [hash_file(path, None) for path in tinyworld_code(with_tasks=True)]])

    return Found(f"{plan.describe()} ({split}, seed {config.seed})", lambda: world_chats(plan), identify)
