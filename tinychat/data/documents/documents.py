"""Text out of one file, document by document, without holding the file in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinychat.data.chats.rows import BadRow, as_columns
from tinychat.data.files.files import format_of
from tinychat.data.files.lines import Line, read_lines
from tinychat.data.files.tables import UNREAD, Meter, Unreadable, not_text, read_rows, short

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
            text = _text_of(f"{path}, {place}", row, text_column, meter)
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


def _text_of(place: str, row: Any, column: str, meter: Meter) -> str:
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
