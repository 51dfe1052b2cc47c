"""Text out of one file, document by document, without holding the file in memory."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinychat.data.files import format_of
from tinychat.data.lines import MAX_LINE, Line, read_lines
from tinychat.errors import UserError

SEPARATOR = "<|endoftext|>"  # on a line of its own in a .txt file, as in TinyStories' dumps
LOOK_AHEAD = 1 << 24  # characters of a .txt file searched for the first separator
WHOLE_FILE = 1 << 16  # characters: a .txt file without separators is one document up to this length
PIECE = 1 << 13  # characters: a longer one is cut at the first blank line after so many
PARQUET_ROWS = 1024  # read at once


@dataclass
class Meter:
    """What reading has come to: `bytes_read` of the files as they lie on disk, rows `skipped` because they
    are blank."""

    bytes_read: int = 0
    skipped: int = 0
    first_skipped: str = ""  # where the first of them stands


def read_documents(path: Path, text_column: str, meter: Meter | None = None) -> Iterator[str]:
    """The documents of one file, in its order; blank ones are counted in `meter` and left out.

    - txt: the stretches between lines that hold nothing but `<|endoftext|>`. Without such a line the file is
      one document if it has up to 65,536 characters, else running text, cut at the first blank line after
      every 8,192 characters. Line ends become `\\n`, and those around a document are dropped.
    - jsonl: one object a line. json: a list of objects, or objects one after the other. csv, tsv: a header,
      then rows. parquet: rows. The document is what `text_column` holds, as it stands.

    Raises UserError, naming file and line or row, for broken UTF-8, a compressed file cut short, what is not
    valid JSON, CSV or Parquet, a missing column (with those that are there) and a text that is not a string.
    """
    meter = meter or Meter()
    kind = format_of(path)
    if kind == "txt":
        yield from _txt(path, meter)
        return
    if kind == "parquet":
        rows: Iterable[tuple[str, Any]] = _parquet_rows(path, text_column, meter)
    elif kind == "jsonl":
        rows = _jsonl_rows(path, meter)
    elif kind == "json":
        rows = _json_rows(path, meter)
    else:
        rows = _csv_rows(path, "\t" if kind == "tsv" else ",", meter)
    for place, row in rows:
        text = _text_of(path, place, row, text_column)
        if text.isspace() or not text:
            meter.skipped += 1
            meter.first_skipped = meter.first_skipped or f"{path}, {place}"
        else:
            yield text


def _text_of(path: Path, place: str, row: Any, column: str) -> str:
    if not isinstance(row, dict):
        raise UserError(f'{path}, {place}: {_short(row)} is not an object such as {{"{column}": "..."}}')
    if column not in row:
        raise no_column(path, place, column, list(row))
    text = row[column]
    if not isinstance(text, str):
        raise UserError(f"{path}, {place}: {column} is {_short(text)}, not a string; mend or remove this row")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"half a surrogate pair (\\u{ord(text[error.start]):04x})"
            raise UserError(f"{path}, {place}: {column} has {half}, which is no character; mend or remove it") from None
    return text


def no_column(path: Path, place: str, column: str, has: list[Any]) -> UserError:
    names = ", ".join(map(str, has[:8])) + (", ..." if len(has) > 8 else "")
    works = f"; choose one with data.text_column={has[0]}" if has else ""
    return UserError(f"{path}, {place}: no column {column!r} (data.text_column); it has {names or 'none'}{works}")


def _short(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


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
    size = 0
    for line in itertools.chain(head, lines):
        is_separator = line.text.strip() == SEPARATOR
        if not is_separator:
            parts.append(line.text)
            size += len(line.text)
        # a blank line past the limit ends a piece; text without blank lines ends at any line, four times as
        # late
        if is_separator or (size >= limit and line.text.isspace()) or size >= 4 * limit:
            yield from _joined(parts)
            parts, size = [], 0
    yield from _joined(parts)


def _joined(parts: list[str]) -> Iterator[str]:
    text = "".join(parts).strip("\n")
    if text and not text.isspace():
        yield text


def _jsonl_rows(path: Path, meter: Meter) -> Iterator[tuple[str, Any]]:
    for line in read_lines(path, meter, long_lines="refuse"):
        if line.text.isspace():
            continue
        try:
            yield f"line {line.number}", json.loads(line.text)
        except (ValueError, RecursionError) as error:
            what = getattr(error, "msg", str(error))
            raise UserError(
                f"{path}, line {line.number}: not valid JSON ({what}): {_short(line.text.strip())}; "
                "a jsonl file has one object on each line (name a file with one list of objects .json)"
            ) from None


def _json_rows(path: Path, meter: Meter) -> Iterator[tuple[str, Any]]:
    """Objects of a list, or one after the other, decoded from a buffer that grows only as far as one object
    needs."""
    pieces = (line.text for line in read_lines(path, meter, long_lines="cut"))
    scan = json.JSONDecoder().raw_decode
    buffer, position, counted, line, row = "", 0, 0, 1, 0
    in_list, closed, at_end = False, False, False
    while True:
        while position < len(buffer) and (buffer[position].isspace() or (in_list and buffer[position] == ",")):
            position += 1
        if position < len(buffer):
            symbol = buffer[position]
            if symbol == "[" and not row and not in_list:
                in_list, position = True, position + 1
                continue
            if symbol == "]" and in_list:
                in_list, closed, position = False, True, position + 1
                continue
            line += buffer.count("\n", counted, position)
            counted = position
            place = f"row {row + 1} (line {line})"
            if symbol != "{" or closed:
                found = _short(buffer[position : position + 60])
                raise UserError(f"{path}, {place}: not an object of a list of objects but {found}")
            try:
                value, position = scan(buffer, position)
                row += 1
                yield place, value
                continue
            except (ValueError, RecursionError) as error:
                if at_end or len(buffer) - position > MAX_LINE:
                    what = getattr(error, "msg", str(error))
                    raise UserError(f"{path}, {place}: not valid JSON ({what}), or cut short") from None
        elif at_end:
            if in_list:
                raise UserError(f"{path}: cut short: the list of objects has no closing ] after row {row}")
            return
        line += buffer.count("\n", counted, position)
        buffer, position, counted = buffer[position:], 0, 0
        more = _take(pieces, max(len(buffer), 1 << 20))
        at_end = not more
        buffer += more


def _take(pieces: Iterator[str], characters: int) -> str:
    taken: list[str] = []
    size = 0
    while size < characters and (piece := next(pieces, None)) is not None:
        taken.append(piece)
        size += len(piece)
    return "".join(taken)


def _csv_rows(path: Path, delimiter: str, meter: Meter) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(MAX_LINE)
    lines = (line.text for line in read_lines(path, meter, long_lines="refuse"))
    reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
    start = 1
    try:
        columns = reader.fieldnames  # reads the header
        while True:
            start = reader.line_num + 1
            row = next(reader)
            yield f"line {start}", {name: row[name] for name in columns or ()}
    except StopIteration:
        return
    except csv.Error as error:
        raise UserError(f"{path}: the row that starts at line {start} is not valid CSV ({error})") from None


def _parquet_rows(path: Path, column: str, meter: Meter) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    size, row = path.stat().st_size, 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                raise no_column(path, "schema", column, file.schema_arrow.names)
            for batch in file.iter_batches(PARQUET_ROWS, columns=[column]):
                for text in batch.column(0).to_pylist():
                    row += 1
                    yield f"row {row}", {column: text}
                meter.bytes_read += size * batch.num_rows // max(1, file.metadata.num_rows)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0][:120]
        raise UserError(f"{path}: not a whole Parquet file ({reason}); it broke after row {row}") from None
