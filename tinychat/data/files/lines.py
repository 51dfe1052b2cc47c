"""Lines of a UTF-8 text file, plain or gzip: where it breaks, the error says at which line and byte."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal, NamedTuple, Protocol

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
        reason = str(error)[:80]
        raise UserError(f"{path}: not a sound gzip file ({reason}) after line {number - 1}; copy it again") from None
    if not chunk and number == 1 and isinstance(stream, gzip.GzipFile) and path.stat().st_size == 0:
        raise UserError(f"{path}: compressed file cut short (0 bytes); copy it again")
    return chunk


def _decode(decoder: codecs.IncrementalDecoder, chunk: bytes, path: Path, number: int, offset: int) -> str:
    pending = len(decoder.getstate()[0])  # bytes of a character begun in the chunk before
    try:
        return decoder.decode(chunk, final=not chunk)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        works = "convert it with: iconv -f LATIN1 -t UTF-8 (or whatever it is written in)"
        if offset == 0 and chunk[:2] in (b"\xff\xfe", b"\xfe\xff"):
            works = "it looks like UTF-16; convert it with: iconv -f UTF-16 -t UTF-8"
        place = f"line {number}, byte {offset - pending + error.start} (0x{byte:02x})"
        raise UserError(f"{path}, {place}: not valid UTF-8; {works}") from None
