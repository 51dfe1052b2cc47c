"""What a file really is that is not what its name says, or not in UTF-8, and what makes it readable."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from tinychat.data.files.splits import format_of

HEAD = 1 << 16  # bytes that are looked at
# What a file begins with, what it is then, and what works.
BEGINNINGS = (
    (b"\x1f\x8b", "is compressed with gzip", "end its name in .gz"),
    (b"PAR1", "is a Parquet file", "end its name in .parquet"),
    (b"BZh", "is compressed with bzip2", "unpack it: bunzip2"),
    (b"\xfd7zXZ", "is compressed with xz", "unpack it: unxz"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd", "unpack it: unzstd"),
    (b"7z\xbc\xaf", "is a 7z archive", "unpack it: 7z x"),
    (b"Rar!", "is a rar archive", "unpack it: unrar x"),
    (b"SQLite format 3", "is an SQLite database", "export a table as csv or jsonl"),
    (b"%PDF", "is a PDF", "take its text out: pdftotext"),
    (b"ARROW1", "is an Arrow file", "write it as Parquet: datasets.Dataset.from_file(FILE).to_parquet(...)"),
    (b"\x89PNG", "is a picture", "give texts"),
    (b"version https://git-lfs", "is a pointer of Git LFS, not the file itself", "fetch it: git lfs pull"),
    (b"<!doctype html", "is a web page, perhaps of an error or a login", "download the file itself"),
    (b"<html", "is a web page, perhaps of an error or a login", "download the file itself"),
)
BY_NAME = {b"\x1f\x8b": ".gz", b"PAR1": ".parquet"}  # right where the name says so


def told(path: Path) -> str:
    """What is wrong with a file and what works, as a sentence about it: "is a zip archive; unpack it: unzip"; "" where
    nothing is found that speaks against its name."""
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError:
        return ""
    if head.startswith(b"PK\x03\x04"):
        return _zip(head)
    for begins, what, works in BEGINNINGS:
        if head[: len(begins)].lower() == begins.lower() and not _named(path, begins):
            return f"{what}; {works}"
    kind = format_of(path)
    if path.suffix.lower() == ".gz":
        text = not head.startswith(b"\x1f\x8b") and b"\0" not in head
        return "is a text that is not compressed; take .gz from its name" if head and text else ""
    if kind == "parquet":
        return ""
    if encoding := _encoding(head):
        return f"is written in {encoding}; convert it: iconv -f {encoding} -t UTF-8 {path.name} > NEW.{kind or 'txt'}"
    return _other_text(head.removeprefix(b"\xef\xbb\xbf").lstrip(), kind)


def _named(path: Path, begins: bytes) -> bool:
    return path.suffix.lower() == BY_NAME.get(begins, "-")


def _zip(head: bytes) -> str:
    if b"xl/" in head or b"[Content_Types].xml" in head:
        return "is a document of Excel or Word; save it as csv (UTF-8) or txt"
    return "is a zip archive; unpack it: unzip"


def _encoding(head: bytes) -> str:
    """What a text is written in, where it is not UTF-8; "": it is."""
    if head[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff"):
        return "UTF-32"
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "UTF-16"
    half = len(head) // 2
    for start, name in ((1, "UTF-16LE"), (0, "UTF-16BE")):
        if half > 8 and head[start::2].count(0) > half // 2 and head[1 - start :: 2].count(0) < half // 10:
            return name
    try:
        head.decode()
        return ""
    except UnicodeDecodeError as error:
        if error.start > len(head) - 4 and len(head) == HEAD:  # a character lies across the end
            return ""
    # Chinese is written in runs of letters of two bytes; among Latin letters those with an accent stand alone.
    runs = [len(run) for run in re.findall(rb"[\x80-\xff]+", head)]
    if sum(runs) / len(runs) >= 3:
        for end in range(len(head), len(head) - 4, -1):  # a letter may lie across the end
            with contextlib.suppress(UnicodeDecodeError):
                head[:end].decode("gb18030")
                return "GB18030"
    return "WINDOWS-1252"


def _other_text(head: bytes, kind: str | None) -> str:
    """Of a text in UTF-8 whose name says another kind than what stands in it."""
    first = head.split(b"\n", 1)[0]
    if kind == "jsonl" and head.startswith(b"[") and b"{" in head[:64]:
        return "is one list of JSON objects, not an object a line; end its name in .json"
    if kind in ("txt", "csv", "tsv") and head.startswith((b'{"', b"[{")):
        return f"holds JSON; end its name in {'.jsonl' if head.startswith(b'{') else '.json'}"
    if kind == "csv" and b"\t" in first and b"," not in first and b";" not in first:
        return "is parted by tabs; end its name in .tsv"
    if kind == "tsv" and b"\t" not in first and (b"," in first or b";" in first):
        return "is parted by commas or semicolons; end its name in .csv"
    return ""
