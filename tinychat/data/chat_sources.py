"""From `data=...` to the conversations of one split: which files, which hold-out, which choice of rows."""

from __future__ import annotations

import hashlib
import heapq
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tinychat.data import files
from tinychat.data.chat_files import ALPACA, MINIMIND, Layout, read_chats
from tinychat.data.chat_rows import BadRow, ChatRow, chat_row
from tinychat.data.filehash import hash_file
from tinychat.data.hub_rows import HubRows
from tinychat.data.sources import tinyworld_code
from tinychat.data.splits import HoldOut, Split, SplitFiles, nothing_left, readable, seeded_hold_out, split_files
from tinychat.data.tables import Meter, read_rows
from tinychat.errors import UserError
from tinychat.schema import DataConfig, OnBadRow, Source

READING_VERSION = 1  # raise it when the same files would give other conversations
LAYOUTS = {Source.alpaca: ALPACA, Source.minimind_sft: MINIMIND}  # the other sources' files: found out
# Where the hub keeps them: repository, file, and what the columns are called in a file to pass instead.
HUB = {
    Source.alpaca: ("tatsu-lab/alpaca", None, "instruction, input and output"),
    Source.minimind_sft: ("jingyaogong/minimind_dataset", "sft_mini_512.jsonl", "conversations [{role, content}]"),
}
log = logging.getLogger(__name__)


@dataclass
class ChatSource:
    """The conversations of one split.

    `read` and `identify` are how: each row's conversation, or why it has none; and a hash of all that they
    come from (hashes of large files are remembered under the folder it is given).
    """

    name: str  # data.name-split
    description: str  # what was taken, for the log
    split: Split
    read: Callable[[], Iterator[ChatRow | BadRow]]
    identify: Callable[[Path | None], str]
    on_bad_row: OnBadRow
    hold_out: HoldOut | None
    max_rows: int | None  # chosen by a hash of `seed` and the row; None: all
    seed: int
    n_bad: int = 0  # rows left out by the latest rows(), whole after its end

    def rows(self) -> Iterator[ChatRow]:
        """Conversations in their order. Raises BadRow for one that cannot be used, or warns of how many were
        left out (on_bad_row); UserError where none remains, and as read_rows does."""
        kept = self._usable()
        if self.max_rows is not None:
            kept = iter(choose(kept, self.max_rows, self.seed))
        yield from kept

    def fingerprint(self, memo_dir: Path | None = None) -> str:
        """A hash of what rows() yields: of what is behind it and of all that chooses among it."""
        hold_out = self.hold_out.key() if self.hold_out else None
        choice = None if self.max_rows is None else (self.max_rows, self.seed)
        parts = [READING_VERSION, self.identify(memo_dir), hold_out, choice, self.on_bad_row.value]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _usable(self) -> Iterator[ChatRow]:
        self.n_bad = seen = kept = 0
        first: BadRow | None = None
        for row in self.read():
            if isinstance(row, BadRow):
                if self.on_bad_row is OnBadRow.fail:
                    raise row
                self.n_bad += 1
                first = first or row
                continue
            seen += 1
            if self.hold_out is None or self.hold_out.keeps(row.prompt()):
                kept += 1
                yield row
        if first:
            where = f"{first.place}: {first.why}"
            log.warning("%s: %d rows that cannot be used left out, the first at %s", self.name, self.n_bad, where)
        if not kept:
            raise UserError(self._nothing(seen, first))

    def _nothing(self, seen: int, first: BadRow | None) -> str:
        if seen:
            return nothing_left(self.hold_out, self.split, seen, "row", self.description)
        why = f": none of {self.n_bad} rows can be used, the first at {first.place}: {first.why}" if first else ""
        return f"no conversations in {self.description}{why}"


def choose(rows: Iterable[ChatRow], count: int, seed: int) -> list[ChatRow]:
    """`count` of the rows (all where there are fewer), in their order: those with the least hash of seed and
    messages. So it is always the same ones, wherever they stand, and more of them when `count` grows."""

    def hashed() -> Iterator[tuple[int, int, ChatRow]]:
        for index, row in enumerate(rows):
            content = f"{seed}\0{json.dumps(row.messages)}".encode()
            digest = hashlib.blake2b(content, digest_size=8, person=b"max_rows").digest()
            yield int.from_bytes(digest, "big"), index, row

    chosen = heapq.nsmallest(count, hashed(), key=lambda item: item[:2])
    return [row for _, _, row in sorted(chosen, key=lambda item: item[1])]


def chat_source(config: DataConfig, split: Split) -> ChatSource:
    """The conversations of one split, found but not yet read.

    Validation is, in this order: data.val_path; the source's own split (files named for it, the generator's);
    a seeded hold-out of data.val_fraction of the rows by their prompts, which training then lacks. Raises
    UserError where the files or the hub are missing.
    """
    if config.source in (Source.text, Source.tinystories):
        raise UserError(
            f"data={config.name} has documents, not conversations; use data=tinyworld, alpaca, minimind_sft, "
            "or data=chat data.path=FILE"
        )
    if found := split_files(config, split):
        return _from_files(config, split, found)
    if config.source is Source.tinyworld:
        return _generated(config, split)
    if config.source in HUB:
        return _from_hub(config, split)
    raise UserError(
        f"data.path is null: data={config.name} needs a file, folder or glob ({files.USABLE_TABLES}): data.path=..."
    )


def _max_rows(config: DataConfig, split: Split) -> int | None:
    key, count = ("max_rows", config.max_rows) if split == "train" else ("max_val_rows", config.max_val_rows)
    if count is not None and count < 1:
        raise UserError(f"data.{key}={count}: must be at least 1, or null for all")
    return count


def _from_files(config: DataConfig, split: Split, found: SplitFiles) -> ChatSource:
    tables = [path for path in found.taken if files.format_of(path) != "txt"]
    if not tables:
        raise UserError(f"{found.taken[0]}: a txt file has no conversations; use {files.USABLE_TABLES}")
    found = replace(found, taken=tables, left_out=[*found.left_out, *(set(found.taken) - set(tables))])
    layout = LAYOUTS.get(config.source)
    told: set[Layout] = set()

    def read() -> Iterator[ChatRow | BadRow]:
        for path in found.taken:
            with readable(path):
                placed = ((f"{path}, {place}", row) for place, row in read_rows(path, Meter()))
                for used, row in read_chats(placed, layout):
                    if used and used not in told:
                        log.info("%s: %s (%s)", config.name, used.describe(), path)
                        told.add(used)
                    yield row

    def identify(memo_dir: Path | None) -> str:
        return json.dumps([layout.columns() if layout else None, found.hashes(memo_dir)])

    return _source(config, split, found.describe("rows"), read, identify, found.hold_out, _max_rows(config, split))


def _from_hub(config: DataConfig, split: Split) -> ChatSource:
    repository, file, columns = HUB[config.source]
    hub = HubRows(repository, "train", f"pass data.path=FILE, jsonl or another table with {columns}", file)
    layout = LAYOUTS[config.source]

    def read() -> Iterator[ChatRow | BadRow]:
        rows = ((f"{repository}, row {number}", row) for number, row in enumerate(hub.rows(stream=False), start=1))
        return (row for _, row in read_chats(rows, layout))

    description = f"{repository}{f', {file}' if file else ''} (of the hub)"
    hold_out, count = seeded_hold_out(config, split), _max_rows(config, split)
    return _source(config, split, description, read, lambda memo_dir: hub.fingerprint(), hold_out, count)


def _generated(config: DataConfig, split: Split) -> ChatSource:
    count, key = _max_rows(config, split), "max_rows" if split == "train" else "max_val_rows"
    if count is None:
        raise UserError(
            f"data.{key}=null: the generator of data={config.name} never ends; say how many, data.{key}=1000"
        )

    def read() -> Iterator[ChatRow | BadRow]:
        from tinychat.data.tinyworld.tasks import instructions

        for index, task in enumerate(instructions(config.seed, split, count)):
            yield chat_row(task.messages, f"tinyworld {split} {index}", task.family, task.answer)

    def identify(memo_dir: Path | None) -> str:
        code = tinyworld_code(with_tasks=True)
        return json.dumps([config.seed, split, count, [hash_file(path, None) for path in code]])

    description = f"{count:,} generated instructions ({split}, seed {config.seed})"
    return _source(config, split, description, read, identify, None, None)


def _source(
    config: DataConfig,
    split: Split,
    description: str,
    read: Callable[[], Iterator[ChatRow | BadRow]],
    identify: Callable[[Path | None], str],
    hold_out: HoldOut | None,
    max_rows: int | None,
) -> ChatSource:
    name = f"{config.name}-{split}"
    return ChatSource(name, description, split, read, identify, config.on_bad_row, hold_out, max_rows, config.seed)
