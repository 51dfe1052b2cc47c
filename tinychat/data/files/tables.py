"""Rows out of a table file, one by one, each with the place where it stands. Lines are UTF-8, plain or gzip: where
one breaks, the error says at which line and byte."""

from __future__ import annotations

import codecs
import csv
import gzip
import itertools
import json
import re
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Protocol

from tinychat.data.files import foreign
from tinychat.data.files.splits import format_of
from tinychat.errors import UserError

CUT = 1 << 16  # bytes: with long_lines="cut" a longer line comes in parts
MAX_LINE = 1 << 28  # bytes: with long_lines="refuse" a longer one is an error
METER_EVERY = 256  # lines


class Line(NamedTuple):
    number: int  # 1-based
    text: str  # with its line end


class Counts(Protocol):
    bytes_read: int


def read_lines(path: Path, meter: Counts, long_lines: Literal["cut", "refuse"]) -> Iterator[Line]:
    """The file's lines, split at `\\n` alone; a byte order mark is dropped. `meter.bytes_read` grows with the
    bytes taken from the disk. Raises UserError for broken UTF-8 and a compressed file that is damaged or cut
    short."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    number, offset, counted = 1, 0, 0
    with open(path, "rb") as raw:
        stream: IO[bytes] = gzip.GzipFile(fileobj=raw) if path.suffix.lower() == ".gz" else raw  # type: ignore[assignment]
        while chunk := _read(stream, path, number, CUT if long_lines == "cut" else MAX_LINE):
            if len(chunk) >= MAX_LINE:
                raise UserError(f"{path}, line {number}: longer than {MAX_LINE >> 20} MB; split the file into rows")
            text = _decode(decoder, chunk, path, number, offset)
            if offset == 0:
                text = text.removeprefix("\ufeff")
            offset += len(chunk)
            yield Line(number, text)
            number += chunk.endswith(b"\n")
            if number % METER_EVERY == 0 or len(chunk) >= CUT:
                meter.bytes_read += raw.tell() - counted
                counted = raw.tell()
        _decode(decoder, b"", path, number, offset)
        meter.bytes_read += raw.tell() - counted


def _read(stream: IO[bytes], path: Path, number: int, limit: int) -> bytes:
    try:
        chunk = stream.readline(limit)
    except EOFError:
        raise UserError(f"{path}: compressed file cut short after line {number - 1}; copy it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        reason, found = str(error)[:80], foreign.told(path)
        works = f"the file {found}" if found else "copy it again"
        raise UserError(f"{path}: not a sound gzip file ({reason}) after line {number - 1}; {works}") from None
    if not chunk and number == 1 and isinstance(stream, gzip.GzipFile) and path.stat().st_size == 0:
        raise UserError(f"{path}: compressed file cut short (0 bytes); copy it again")
    return chunk


def _decode(decoder: codecs.IncrementalDecoder, chunk: bytes, path: Path, number: int, offset: int) -> str:
    pending = len(decoder.getstate()[0])  # bytes of a character begun in the chunk before
    try:
        return decoder.decode(chunk, final=not chunk)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        found = foreign.told(path)
        works = (
            f"the file {found}" if found else "convert it: iconv -f WINDOWS-1252 -t UTF-8 (or what it is written in)"
        )
        place = f"line {number}, byte {offset - pending + error.start} (0x{byte:02x})"
        raise UserError(f"{path}, {place}: not valid UTF-8; {works}") from None


PARQUET_ROWS = 1024  # read at once


@dataclass
class Meter:
    """What reading has come to: `bytes_read` of the files as they lie on disk, rows `skipped` because they
    are blank, `bad` ones that were left out, and documents `cut` into parts because they are too long."""

    bytes_read: int = 0
    skipped: int = 0
    first_skipped: str = ""  # where the first of them stands
    bad: int = 0
    first_bad: str = ""  # where, and what is wrong with it
    unused: Counter[str] = field(default_factory=Counter)  # columns that nothing was taken from, by their rows
    cut: int = 0
    first_cut: str = ""


@dataclass(frozen=True)
class Unreadable:
    """In place of a row, or a value of one, that its file holds but that cannot be read."""

    why: str


class NotJson(Unreadable):
    """In place of a line of a jsonl file that is no JSON."""


class Unread:
    """In place of a value that was left in its file, as nobody asked for its column."""

    def __repr__(self) -> str:
        return "(not read)"


UNREAD = Unread()


def read_rows(
    path: Path, meter: Meter, columns: Collection[str] | None = None, on_broken: Literal["raise", "give"] = "raise"
) -> Iterator[tuple[str, Any]]:
    """The rows of a jsonl, json, csv, tsv or parquet file in their order, each with its place ("line 7").

    - jsonl: one object a line, blank lines left out. json: a list of objects, or objects one after the other.
      csv, tsv: a header, then rows (in a csv file parted by commas, or by semicolons where the header has no comma).
      parquet: rows; where `columns` are given, the others are not read (UNREAD).
    - A row is a dict, but for a jsonl line that holds another value, and for one that is Unreadable: an object with
      a key twice, a csv row with more fields than the header. Of a parquet row a value is Unreadable that Python
      cannot hold (a text that is not UTF-8, a date after the year 9999). With on_broken=give a jsonl line that is no
      JSON is NotJson, and reading goes on.

    Raises UserError, naming file and line or row, for broken UTF-8, a compressed file cut short, a name that two
    columns have, and what is not valid JSON, CSV or Parquet.
    """
    kind = format_of(path)
    if kind == "parquet":
        return _parquet_rows(path, columns, meter)
    if kind == "jsonl":
        return _jsonl_rows(path, meter, on_broken)
    if kind == "json":
        return _json_rows(path, meter)
    return _csv_rows(path, "\t" if kind == "tsv" else None, meter)


_ROWS_BEGIN = {"json": re.compile(rb'\s*\[\s*[\[{"\]]'), "jsonl": re.compile(rb'\s*\{\s*["}]')}


def pipe_as_file(texts: bool) -> Path:
    """Standard input as a temporary file, as what it holds must be known before it is read: a JSON list, JSON lines,
    or with `texts` also lines of text, which are all that begins like neither. The caller removes it."""
    content = sys.stdin.buffer.read()
    found = next((kind for kind, begins in _ROWS_BEGIN.items() if begins.match(content)), None)
    suffix = found or ("txt" if texts else "jsonl")
    with tempfile.NamedTemporaryFile(prefix="tinychat-", suffix=f".{suffix}", delete=False) as kept:
        kept.write(content)
    return Path(kept.name)


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


class _Decoder:
    """JSON, of which an object that has a key twice is Unreadable: the first of the two values would be lost."""

    def __init__(self) -> None:
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)
        self._twice: str | None = None

    def whole(self, text: str) -> Any:
        """The value that a text is. Raises ValueError or RecursionError."""
        self._twice = None
        return self._told(self._decoder.decode(text))

    def first(self, text: str, start: int) -> tuple[Any, int]:
        """The value that begins at `start`, and where it ends. Raises ValueError or RecursionError."""
        self._twice = None
        value, end = self._decoder.raw_decode(text, start)
        return self._told(value), end

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            self._twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return found

    def _told(self, value: Any) -> Any:
        return value if self._twice is None else Unreadable(f"an object has the key {short(self._twice)} twice")


def _jsonl_rows(path: Path, meter: Meter, on_broken: str) -> Iterator[tuple[str, Any]]:
    decoder = _Decoder()
    for line in read_lines(path, meter, long_lines="refuse"):
        if line.text.isspace():
            continue
        try:
            yield f"line {line.number}", decoder.whole(line.text)
        except (ValueError, RecursionError) as error:
            wrong = f"not valid JSON ({getattr(error, 'msg', str(error))}): {short(line.text.strip())}"
            if on_broken == "give":
                yield f"line {line.number}", NotJson(wrong)
                continue
            found = foreign.told(path)
            works = f"the file {found}" if found else "a jsonl file has one object on each line"
            raise UserError(f"{path}, line {line.number}: {wrong}; {works}") from None


def _json_rows(path: Path, meter: Meter) -> Iterator[tuple[str, Any]]:
    """Objects of a list, or one after the other, decoded from a buffer that grows only as far as one object
    needs."""
    pieces = (line.text for line in read_lines(path, meter, long_lines="cut"))
    scan = _Decoder().first
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


def _csv_rows(path: Path, delimiter: str | None, meter: Meter) -> Iterator[tuple[str, Any]]:
    """delimiter: None: the one that the header has, a comma, or where there is none a semicolon."""
    csv.field_size_limit(MAX_LINE)
    lines: Iterator[str] = (line.text for line in read_lines(path, meter, long_lines="refuse"))
    if delimiter is None:
        header = list(itertools.islice(lines, 1))
        lines, delimiter = itertools.chain(header, lines), ";" if header and _by_semicolons(header[0]) else ","
    reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
    start = 1
    try:
        columns = reader.fieldnames or ()  # reads the header
        _check_different(path, [name for name in columns if name.strip()])
        while True:
            start = reader.line_num + 1
            yield f"line {start}", _csv_row(next(reader), columns)
    except StopIteration:
        return
    except csv.Error as error:
        raise UserError(f"{path}: the row that starts at line {start} is not valid CSV ({error})") from None


def _by_semicolons(header: str) -> bool:
    """Whether a csv file is Excel's of a country whose decimal point is a comma."""
    return "," not in header and len(next(csv.reader([header], delimiter=";"), [])) > 1


def _csv_row(row: dict[Any, Any], columns: Sequence[str]) -> dict[str, Any] | Unreadable:
    """A row by column; what stands beyond them, or under a header that ends with nameless columns, is lost text of a
    field that should be in quotes. A nameless first column is an index, as pandas writes it."""
    surplus = [*(row.get(None) or ()), *(row[name] or "" for name in columns[1:] if not name.strip())]
    if any(field.strip() for field in surplus):
        named = sum(1 for name in columns if name.strip())
        shown = short(next(field for field in surplus if field.strip()))
        return Unreadable(
            f"more fields than the header's {named} ({shown} has no column); a text with the delimiter in it stands in "
            'double quotes ("one, two")'
        )
    return {name: row[name] for name in columns if name.strip() or name == columns[0]}


def _check_different(path: Path, columns: Sequence[str]) -> None:
    """Raises UserError for a name that several columns have: one of them would be lost."""
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise UserError(f"{path}: {Counter(columns)[twice[0]]} columns are named {short(twice[0])}; rename all but one")


def _parquet_rows(path: Path, columns: Collection[str] | None, meter: Meter) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    size, row = path.stat().st_size, 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _check_different(path, names)
            left = {name: UNREAD for name in names if columns is not None and name not in columns}
            leaves = None if columns is None else _leaves(file, set(names) - set(left))
            for batch in file.iter_batches(PARQUET_ROWS, columns=leaves):
                for values in _parquet_values(batch):
                    row += 1
                    yield f"row {row}", values | left
                meter.bytes_read += size * batch.num_rows // max(1, file.metadata.num_rows)
    except (pyarrow.ArrowException, OSError) as error:
        reason, found = str(error).split("\n")[0][:120], foreign.told(path)
        what = f"; the file {found}" if found else ""
        raise UserError(f"{path}: not a whole Parquet file ({reason}); it broke after row {row}{what}") from None


def _leaves(file: Any, columns: Collection[str]) -> list[str]:
    """Paths of the file's columns below `columns`. Times inside of lists and structs are left out: no reader asks
    for them, and Arrow's may have no Python value (a year above 9999)."""
    found = []
    for index in range(len(file.schema)):
        leaf = file.schema.column(index)
        top = next((name for name in columns if leaf.path == name or leaf.path.startswith(f"{name}.")), None)
        if top is not None and (leaf.path == top or leaf.logical_type.type not in ("TIMESTAMP", "DATE", "TIME")):
            found.append(leaf.path)
    return found


def _parquet_values(batch: Any) -> list[dict[str, Any]]:
    """The rows of a batch; a value that Python cannot hold is Unreadable."""
    try:
        return batch.to_pylist()
    except (ArithmeticError, ValueError):  # OverflowError, UnicodeDecodeError, and Arrow's own ArrowInvalid
        columns = {
            name: [_parquet_value(value) for value in column]
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        }
        return [{name: values[index] for name, values in columns.items()} for index in range(batch.num_rows)]


def _parquet_value(value: Any) -> Any:
    try:
        return value.as_py()
    except (ArithmeticError, ValueError) as error:
        return Unreadable(f"cannot be read ({error})")
