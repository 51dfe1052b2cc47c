"""From `data=...` to the documents of one split: which files, which hold-out, how many;
and text out of one file, document by document, without holding the file in memory."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinychat.config.plugins import source_of
from tinychat.config.schema import DataConfig, OnBadRow
from tinychat.data.chats.rows import BadRow, as_columns
from tinychat.data.files import splits
from tinychat.data.files.row_sources import Found, Hub, named, no_path
from tinychat.data.files.splits import (
    HoldOut,
    Split,
    SplitFiles,
    format_of,
    nothing_left,
    readable,
    seeded_hold_out,
)
from tinychat.data.files.tables import UNREAD, Line, Meter, Unreadable, not_text, read_lines, read_rows, short
from tinychat.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerFast

SEPARATOR = "<|endoftext|>"  # on a line of its own in a .txt file, as in TinyStories' dumps
LOOK_AHEAD = 1 << 24  # characters of a .txt file searched for the first separator
WHOLE_FILE = 1 << 16  # characters: a .txt file without separators is one document up to this length
PIECE = 1 << 13  # characters: a longer one is cut at the first blank line after so many
LONGEST = 1 << 22  # characters: a longer document is cut into parts, each a document of its own
BREAKS = ("\n\n", "\n", " ")  # where it is cut, the best first; without any of them anywhere


def read_documents(path: Path, text_column: str, meter: Meter | None = None, skip: bool = False) -> Iterator[str]:
    """The documents of one file, in its order; blank ones are counted in `meter` and left out, as are with
    `skip` rows that cannot be used.

    - txt: the stretches between lines that hold nothing but `<|endoftext|>`. Without such a line the file is
      one document if it has up to 65,536 characters, else running text, cut at the first blank line after
      every 8,192 characters. Line ends become `\\n`, and those around a document are dropped.
    - jsonl, json, csv, tsv, parquet: as read_rows does; the document is what `text_column` holds, as it stands.

    A document of more than 4,194,304 characters is cut into parts, and so is a line of running text without an end;
    `meter` counts both.

    Raises UserError, naming file and line or row, for what read_rows does, and without `skip` for a row that
    is Unreadable or lacks the column (with those that are there), and a text that is not a string.
    """
    meter = meter or Meter()
    if format_of(path) == "txt":
        yield from _txt(path, meter)
        return
    for place, row in read_rows(path, meter, (text_column,)):
        try:
            text = text_of(f"{path}, {place}", row, text_column, meter)
        except BadRow as bad:
            if not skip:
                raise
            meter.bad += 1
            meter.first_bad = meter.first_bad or f"{bad.place}: {bad.why}"
            continue
        if text.isspace() or not text:
            meter.skipped += 1
            meter.first_skipped = meter.first_skipped or f"{path}, {place}"
        else:
            yield from _parts(text, f"{path}, {place}", meter)


def _parts(document: str, place: str, meter: Meter) -> Iterator[str]:
    """The document in stretches of at most LONGEST characters, blank ones left out."""
    if len(document) > LONGEST:
        _count_cut(meter, place)
    start = 0
    while len(document) - start > LONGEST:
        half, most = start + LONGEST // 2, start + LONGEST
        found = (document.rfind(mark, half, most) + len(mark) for mark in BREAKS)
        stop = next((stop for stop in found if stop > half), most)
        yield document[start:stop]
        start = stop
    if (rest := document[start:]) and not rest.isspace():
        yield rest


def _count_cut(meter: Meter, place: str) -> None:
    meter.cut += 1
    meter.first_cut = meter.first_cut or place


def text_of(place: str, row: Any, column: str, meter: Meter) -> str:
    """The document in a row's column; which others had values is counted in `meter`. Raises BadRow."""
    if not isinstance(row, (dict, Unreadable)):
        raise BadRow(place, f'{short(row)} is not an object such as {{"{column}": "..."}}')
    columns = as_columns(row, place)
    if column not in columns:
        texts = [name for name, value in columns.items() if isinstance(value, str) or value is UNREAD]
        works = f"; choose one with data.text_column={texts[0]}" if texts else ""
        raise BadRow(place, f"no column {column!r} (data.text_column); it has {columns.names()}{works}")
    text = columns[column]
    if wrong := not_text(text):
        raise BadRow(place, f"{column} {wrong}")
    meter.unused.update(columns.unused())
    return text


def _txt(path: Path, meter: Meter) -> Iterator[str]:
    lines = (Line(line.number, line.text.replace("\r\n", "\n")) for line in read_lines(path, meter, long_lines="cut"))
    head: list[Line] = []
    seen, separated = 0, False
    for line in lines:
        head.append(line)
        seen += len(line.text)
        separated = separated or line.text.strip() == SEPARATOR
        if separated or seen > LOOK_AHEAD:
            break
    limit = LOOK_AHEAD if separated else WHOLE_FILE if seen <= WHOLE_FILE else PIECE
    parts: list[str] = []
    size, first, cut_line = 0, 1, 0
    for line in itertools.chain(head, lines):
        is_separator = line.text.strip() == SEPARATOR
        if not is_separator:
            first = first if parts else line.number
            parts.append(line.text)
            size += len(line.text)
        # a blank line past the limit ends a piece; text without blank lines ends at any line, four times as
        # late
        if is_separator or (size >= limit and line.text.isspace()) or size >= 4 * limit:
            if not is_separator and not line.text.endswith("\n"):
                if line.number != cut_line:
                    _count_cut(meter, f"{path}, line {line.number}")
                cut_line = line.number
            yield from _joined(parts, f"{path}, line {first}", meter)
            parts, size = [], 0
    yield from _joined(parts, f"{path}, line {first}", meter)


def _joined(parts: list[str], place: str, meter: Meter) -> Iterator[str]:
    text = "".join(parts).strip("\n")
    if text and not text.isspace():
        yield from _parts(text, place, meter)


ALONE = 2000  # characters: from this length on a single document can be parted into training and validation
READING_VERSION = 2  # raise it when the same files would give other documents
log = logging.getLogger(__name__)


@dataclass
class TextSource:
    """The documents of one split.

    `read` and `identify` are how: documents from a meter that they advance, and a hash of all bytes that they
    come from (hashes of large files are remembered under the folder it is given).
    """

    name: str  # data.name-split
    description: str  # what was taken, for the log
    size_bytes: int | None  # of the files as they lie on disk; None where the source is generated or on the hub
    read: Callable[[Meter], Iterator[str]]
    identify: Callable[[Path | None], str]
    hold_out: HoldOut | None
    max_docs: int | None
    peek: bool = False  # as Found.peek
    meter: Meter = field(default_factory=Meter)  # of the latest documents()

    def documents(self) -> Iterator[str]:
        """Documents in their order. Raises UserError where there are none, and as read_documents does."""
        self.meter = Meter()
        seen = kept = 0

        def counted() -> Iterator[str]:
            nonlocal seen
            for seen, text in enumerate(self.read(self.meter), start=1):  # noqa: B007 - their number
                yield text

        for kept, text in enumerate(self._kept(counted()), start=1):
            yield text
            if kept == self.max_docs:
                break
        if self.meter.skipped:
            log.warning(
                "%s: %d blank rows left out, the first at %s",
                self.name,
                self.meter.skipped,
                self.meter.first_skipped,
            )
        if self.meter.bad:
            log.warning(
                "%s: %d rows that cannot be used left out, the first at %s",
                self.name,
                self.meter.bad,
                self.meter.first_bad,
            )
        if self.meter.unused and (self.split == "train" or self.hold_out is None):  # of shared files once
            log.info("%s: only data.text_column is read, not used: %s", self.name, named(self.meter.unused))
        if self.meter.cut:
            log.warning(
                "%s: %d texts too long for one document, cut into parts that are documents too; the first at %s",
                self.name,
                self.meter.cut,
                self.meter.first_cut,
            )
        if not kept:
            raise UserError(self._nothing(seen))

    def _kept(self, texts: Iterator[str]) -> Iterator[str]:
        """Those on the split's side of the hold-out. Of a single document its end is held out."""
        if self.hold_out is None:
            return texts
        first = list(itertools.islice(texts, 2))
        if len(first) == 1 and len(first[0]) >= ALONE:
            start, end = cut_end(first[0], self.hold_out.fraction)
            if self.split == "train":
                log.warning("%s: one document alone: its last %d characters are held out", self.name, len(end))
            return iter([start if self.split == "train" else end])
        return self.hold_out.kept(itertools.chain(first, texts), str, self.name)

    def fingerprint(self, memo_dir: Path | None = None) -> str:
        """A hash of what documents() yields: of the bytes behind it and of all that chooses among them."""
        hold_out = self.hold_out.key() if self.hold_out else None
        parts = [READING_VERSION, self.identify(memo_dir), hold_out, self.max_docs]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def split(self) -> Split:
        return "validation" if self.name.endswith("validation") else "train"

    def _nothing(self, seen: int) -> str:
        if seen:
            return nothing_left(self.hold_out, self.split, seen, "document", self.description)
        first = f"none of {self.meter.bad} rows can be used, the first at {self.meter.first_bad}"
        why = first if self.meter.bad else "every file or row is blank"
        return f"no documents in {self.description}: {why}"


def cut_end(text: str, fraction: float) -> tuple[str, str]:
    """A text without about the last `fraction` of its characters, and these; parted at a line's end, else at a blank,
    where there is one in the half before."""
    target = round(len(text) * (1 - fraction))
    place = next((at for mark in ("\n", " ") if (at := text.rfind(mark, target // 2, target)) > 0), target - 1) + 1
    return text[:place], text[place:]


def text_source(config: DataConfig, split: Split, whole: bool = False) -> TextSource:
    """The documents of one split, found but not yet read.

    Validation is, in this order: data.val_path; the source's own split (files named for it, the hub's, the
    generator's); a seeded hold-out of data.val_fraction of the documents, which training then lacks (`whole`: does
    not lack). Raises UserError where the files or the hub are missing.
    """
    source = source_of(config)
    if found := source.files(config, split):
        return _from_files(config, split, replace(found, hold_out=None) if whole else found)
    if made := source.made(config, split, "documents"):
        if whole and made.hold_out:
            made = replace(made, hold_out=None, description=made.description.partition(";")[0])
        return _made(config, split, made)
    if source.hub:
        found_there = _from_hub(config, split, source.hub)
        return replace(found_there, hold_out=None) if whole else found_there
    raise no_path(config, splits.USABLE)


def _max_docs(config: DataConfig, split: Split) -> int | None:
    return config.max_docs if split == "train" else config.max_val_docs


def _from_files(config: DataConfig, split: Split, found: SplitFiles) -> TextSource:
    column, skip = config.text_column, config.on_bad_row is OnBadRow.skip

    def read(meter: Meter) -> Iterator[str]:
        for path in found.taken:
            with readable(path):
                yield from read_documents(path, column, meter, skip)

    def identify(memo_dir: Path | None) -> str:
        return json.dumps([column, found.hashes(memo_dir), *(["skip"] if skip else [])])

    name, description = f"{config.name}-{split}", found.describe("documents")
    return TextSource(name, description, found.size, read, identify, found.hold_out, _max_docs(config, split))


def _made(config: DataConfig, split: Split, found: Found[Any]) -> TextSource:
    """What the source makes itself."""

    def read(meter: Meter) -> Iterator[str]:
        for text in found.read():
            if isinstance(text, BadRow):
                if config.on_bad_row is OnBadRow.fail:
                    raise text
                meter.bad += 1
                meter.first_bad = meter.first_bad or f"{text.place}: {text.why}"
            elif text.isspace() or not text:
                meter.skipped += 1
                meter.first_skipped = meter.first_skipped or found.description
            else:
                yield from _parts(text, found.description, meter)

    most = _max_docs(config, split) if found.count is None else found.count
    name = f"{config.name}-{split}"
    return TextSource(name, found.description, None, read, found.identify, found.hold_out, most, peek=found.peek)


def _from_hub(config: DataConfig, split: Split, place: Hub) -> TextSource:
    max_docs = _max_docs(config, split)
    hub = place.rows(split)

    def read(meter: Meter) -> Iterator[str]:
        for row, values in enumerate(hub.rows(stream=max_docs is not None)):
            if config.text_column not in values:
                has = ", ".join(values)
                raise UserError(
                    f"{place.repository}: no column {config.text_column!r} (data.text_column); it has {has}"
                )
            text = values[config.text_column]
            if isinstance(text, str) and text.strip():
                yield text
            else:
                meter.skipped += 1
                meter.first_skipped = meter.first_skipped or f"row {row + 1}"

    description = f"{place.repository} ({hub.split} split of the hub)"
    name = f"{config.name}-{split}"
    hold_out = None if place.validation else seeded_hold_out(config, split)
    return TextSource(name, description, None, read, lambda memo_dir: hub.fingerprint(), hold_out, max_docs)


def leading_tokens(config: DataConfig, tokens: np.ndarray, tokenizer: PreTrainedTokenizerFast) -> int:
    """How many of the training split's tokens (N,) stand before everything else, as a curriculum's first part: the
    lessons of copying of data=tinyworld. 0 where there is none."""
    n = source_of(config).leading(config)
    if not n:
        return 0
    ends = (tokens == tokenizer.eos_token_id).nonzero()[0]
    return int(ends[n - 1]) + 1 if n <= len(ends) else 0
