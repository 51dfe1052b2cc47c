"""Rows out of a table file, one by one, each with the place where it stands."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinychat.data.files import format_of
from tinychat.data.lines import MAX_LINE, read_lines
from tinychat.errors import UserError

PARQUET_ROWS = 1024  # read at once


@dataclass
class Meter:
    """What reading has come to: `bytes_read` of the files as they lie on disk, rows `skipped` because they
    are blank."""

    bytes_read: int = 0
    skipped: int = 0
    first_skipped: str = ""  # where the first of them stands


def read_rows(path: Path, meter: Meter, column: str | None = None) -> Iterator[tuple[str, Any]]:
    """The rows of a jsonl, json, csv, tsv or parquet file in their order, each with its place ("line 7").

    - jsonl: one object a line, blank lines left out. json: a list of objects, or objects one after the other.
      csv, tsv: a header, then rows. parquet: rows, of which only `column` is read where it is given and there.
    - A row is a dict, but for a jsonl line that holds another value.

    Raises UserError, naming file and line or row, for broken UTF-8, a compressed file cut short and what is
    not valid JSON, CSV or Parquet.
    """
    kind = format_of(path)
    if kind == "parquet":
        return _parquet_rows(path, column, meter)
    if kind == "jsonl":
        return _jsonl_rows(path, meter)
    if kind == "json":
        return _json_rows(path, meter)
    return _csv_rows(path, "\t" if kind == "tsv" else ",", meter)


def short(value: Any) -> str:
    """A value as one line of JSON, cut to 60 characters, for a message."""
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def not_text(value: Any) -> str:
    """What is wrong with a value that should be text, as the end of a sentence about it; "" for text."""
    if not isinstance(value, str):
        return f"is {short(value)}, not a string"
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return f"has half a surrogate pair (\\u{ord(value[error.start]):04x}), which is no character"
    return ""


def _jsonl_rows(path: Path, meter: Meter) -> Iterator[tuple[str, Any]]:
    for line in read_lines(path, meter, long_lines="refuse"):
        if line.text.isspace():
            continue
        try:
            yield f"line {line.number}", json.loads(line.text)
        except (ValueError, RecursionError) as error:
            what = getattr(error, "msg", str(error))
            raise UserError(
                f"{path}, line {line.number}: not valid JSON ({what}): {short(line.text.strip())}; "
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
                found = short(buffer[position : position + 60])
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


def _parquet_rows(path: Path, column: str | None, meter: Meter) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    size, row = path.stat().st_size, 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = [column] if column in file.schema_arrow.names else None
            for batch in file.iter_batches(PARQUET_ROWS, columns=columns):
                for values in batch.to_pylist():
                    row += 1
                    yield f"row {row}", values
                meter.bytes_read += size * batch.num_rows // max(1, file.metadata.num_rows)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0][:120]
        raise UserError(f"{path}: not a whole Parquet file ({reason}); it broke after row {row}") from None
