"""Which files a `data.path` means, which of them a split is read from, which of their rows, and hashes of their bytes,
remembered, so that a large corpus is read for its fingerprint once."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import itertools
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

from tinychat.config.schema import DataConfig
from tinychat.errors import UserError
from tinychat.runtime.run_files import at_home

FORMATS = ("txt", "jsonl", "json", "csv", "tsv", "parquet")
USABLE = "txt, jsonl, json, csv or tsv (each also .gz) and parquet"
USABLE_TABLES = USABLE.removeprefix("txt, ")
TRAIN, VALIDATION, TEST = {"train", "training"}, {"val", "valid", "validation", "dev"}, {"test"}
# what may stand beside the split's name in a file that is the split itself: nothing, or a shard number and a
# hash
_SHARD = re.compile(r"([-_.]?\d+([-_.]of[-_.]\d+)?([-_.][0-9a-f]{8,})?)?")


@dataclass(frozen=True)
class Splits:
    """The files of one path. `validation` is empty where the path brings no validation split of its own."""

    train: list[Path]
    validation: list[Path]
    left_out: list[Path]


def format_of(path: Path) -> str | None:
    """'txt', 'jsonl', 'json', 'csv', 'tsv' or 'parquet', or None for a file that cannot be read."""
    suffixes = [suffix.lstrip(".").lower() for suffix in path.suffixes]
    if suffixes[-1:] == ["gz"] and suffixes[-2:-1] != ["parquet"]:
        suffixes.pop()
    last = suffixes[-1] if suffixes else None
    return "jsonl" if last == "ndjson" else last if last in FORMATS else None


def find_files(path: str, key: str = "data.path") -> list[Path]:
    """The usable files of a file, folder (with its subfolders, hidden ones left out) or glob, sorted by name.

    Raises UserError, naming `key`, where nothing is there, nothing is usable or every file is empty.
    """
    root = at_home(path)
    if root.is_file():
        if format_of(root) is None:
            raise UserError(f"{key}={path}: cannot read a file named {root.name}; use {USABLE}")
        found = [root]
    elif root.is_dir():
        found = [file for file in _walk(root) if format_of(file)]
        if not found:
            raise UserError(f"{key}={path}: no usable file in this folder ({_contents(root)}); use {USABLE}")
    else:
        matches = sorted(Path(match) for match in glob.glob(str(root), recursive=True))
        found = [match for match in matches if match.is_file() and format_of(match)]
        if not matches:
            raise UserError(f"{key}={path}: no such file or folder (looked from {Path.cwd()})")
        if not found:
            raise UserError(f"{key}={path}: none of the {len(matches)} matches is a usable file; use {USABLE}")
    if not any(file.stat().st_size for file in found):
        raise UserError(f"{key}={path}: {'the file is' if len(found) == 1 else 'all files are'} empty (0 bytes)")
    return found


def find_splits(path: str, key: str = "data.path") -> Splits:
    """The files of `path`, divided by their names.

    One file is training data whatever its name. In a folder or glob, a file (or subfolder) named for a split
    belongs to it: train, training; val, valid, validation, dev; test; alone or joined by `-`, `_`, `.` or
    digits to other words, as in `wiki.valid.txt`. Where a file is exactly the split (`train.jsonl.gz`,
    `train-00000-of-00004.parquet`), others that only mention it (`train_sample.jsonl`) are left out. Where
    some files are named for training, unnamed ones are left out; otherwise the unnamed ones are the training
    data. A glob whose files all name one split is taken as it stands.
    """
    files = find_files(path, key)
    root = at_home(path)
    if root.is_file():
        return Splits(files, [], [])
    base = _base(root)
    by_split: dict[str | None, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split_of(file, base), []).append(file)
    if not root.is_dir() and len(by_split) == 1:
        return Splits(files, [], [])
    train = _exact(by_split.get("train", []), TRAIN) or by_split.get(None, [])
    validation = _exact(by_split.get("validation", []), VALIDATION)
    return Splits(train, validation, sorted(set(files) - set(train) - set(validation)))


def _walk(root: Path) -> list[Path]:
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found += [Path(folder) / name for name in names if not name.startswith(".")]
    return sorted(found)


def _contents(root: Path) -> str:
    suffixes = sorted({file.suffix or file.name for file in _walk(root)})
    return f"it has {', '.join(suffixes[:6])}" if suffixes else "it is empty"


def _stem(file: Path) -> str:
    return re.sub(r"\.(gz|ndjson|" + "|".join(FORMATS) + r")\b", "", file.name.lower())


def _split_of(file: Path, base: Path) -> str | None:
    """The split that the file's own name speaks of, else the one that the nearest of its folders below `base`
    does."""
    for name in (_stem(file), *reversed([part.lower() for part in file.parent.relative_to(base).parts])):
        words = set(re.split(r"[-_.\d]+", name))
        for names, split in ((TEST, "test"), (VALIDATION, "validation"), (TRAIN, "train")):
            if words & names:
                return split
    return None


def _base(root: Path) -> Path:
    """The part of a folder or glob before its first wildcard."""
    if root.is_dir():
        return root
    plain = itertools.takewhile(lambda part: not glob.has_magic(part), root.parent.parts)
    return Path(*plain)


def _exact(files: list[Path], names: set[str]) -> list[Path]:
    def is_exact(file: Path) -> bool:
        return any(_stem(file).startswith(name) and _SHARD.fullmatch(_stem(file)[len(name) :]) for name in names)

    return [file for file in files if is_exact(file)] or files


def hash_file(path: Path, memo_dir: Path | None) -> str:
    """Hex BLAKE2b of the file's bytes. Under `memo_dir` it is remembered for the file's path, size and times
    of change (both: a copy may keep the one, none keeps the other); None remembers nothing."""
    stat = path.stat()
    state = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    name = hashlib.blake2b(os.fsencode(path.resolve()), digest_size=16).hexdigest()
    memo = memo_dir / "hashes" / f"{name}.json" if memo_dir else None
    if memo:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            remembered = json.loads(memo.read_text("utf-8"))
            if remembered["state"] == state:
                return remembered["hash"]
    with open(path, "rb") as file:
        digest = _digest(file)
    if memo:
        with contextlib.suppress(OSError):  # forgetting costs time only
            _remember(memo, {"state": state, "hash": digest})
    return digest


def _digest(file: BinaryIO) -> str:
    hasher = hashlib.blake2b(digest_size=20)
    while chunk := file.read(1 << 22):
        hasher.update(chunk)
    return hasher.hexdigest()


def _remember(memo: Path, record: dict[str, Any]) -> None:
    memo.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=memo.parent, suffix=".tmp")
    with open(handle, "w", encoding="utf-8") as file:
        json.dump(record, file)
    os.replace(temporary, memo)


Split = Literal["train", "validation"]
RowT = TypeVar("RowT")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HoldOut:
    """A seeded choice of the rows held out, by a text of each alone: equal ones land on the same side. Where there are
    rows with different texts, at least one of these is held out and one is not (`kept`)."""

    seed: int
    fraction: float  # of rows, in (0, 0.5]
    side: Split  # which of the two sides is kept

    def keeps(self, text: str) -> bool:
        return self._is_mine(self._number(text), self.fraction * 2**64)

    def kept(self, rows: Iterable[RowT], text_of: Callable[[RowT], str], name: str) -> Iterator[RowT]:
        """The rows on the side. Where the fraction of few rows would leave one of the sides without any, though they
        differ, the text nearest to it changes over, which is said of training (`name`). Rows are held back only until
        both sides have one."""
        limit: float = self.fraction * 2**64
        first: list[tuple[int, RowT]] = []
        coming = iter(rows)
        least, most = 2**64, -1
        for row in coming:
            number = self._number(text_of(row))
            first.append((number, row))
            least, most = min(least, number), max(most, number)
            if least < limit <= most:
                break
        else:
            if least < most:
                limit = least + 1 if least >= limit else most
                if self.side == "train":
                    held = sum(number < limit for number, _ in first)
                    share = f"data.val_fraction={self.fraction:g} of {len(first)} rows"
                    log.warning("%s: %s would leave one side empty: %d held out", name, share, held)
        yield from (row for number, row in first if self._is_mine(number, limit))
        first.clear()
        yield from (row for row in coming if self._is_mine(self._number(text_of(row)), limit))

    def _is_mine(self, number: int, limit: float) -> bool:
        return (number < limit) == (self.side == "validation")

    def _number(self, text: str) -> int:
        digest = hashlib.blake2b(f"{self.seed}\0{text.strip()}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big")

    def key(self) -> tuple[int, float, Split]:
        """All that the choice depends on, for a fingerprint."""
        return self.seed, self.fraction, self.side


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split; `hold_out` chooses among their rows where the other split has the same files."""

    taken: list[Path]
    left_out: list[Path]
    hold_out: HoldOut | None

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return sum(path.stat().st_size for path in self.taken)

    def hashes(self, memo_dir: Path | None) -> list[tuple[str | None, str]]:
        """Format and hash of each file's bytes, as hash_file does."""
        found = []
        for path in self.taken:
            with readable(path):
                found.append((format_of(path), hash_file(path, memo_dir)))
        return found

    def describe(self, unit: str) -> str:
        """Names, size and hold-out, for the log; `unit` is what a row is called, in the plural."""
        held_out = ""
        if self.hold_out:
            share = f"{self.hold_out.fraction:.3g} of the {unit}"
            training = self.hold_out.side == "train"
            held_out = f"; {share} held out" if training else f"; the {share} held out of training"
        description = f"{_names(self.taken)} ({_megabytes(self.size)}{held_out})"
        return description + (f", left out: {_names(self.left_out)}" if self.left_out else "")


def split_files(config: DataConfig, split: Split) -> SplitFiles | None:
    """The files of one split of data.path and data.val_path, or None where neither is given for it.

    Validation is, in this order: data.val_path; the files of data.path named for it; a seeded hold-out of
    data.val_fraction of the rows, which training then lacks. Raises UserError where the files are missing.
    """
    if split == "validation" and config.val_path:
        found = find_splits(config.val_path, "data.val_path")
        return SplitFiles(found.validation or found.train, found.left_out, None)
    if config.path is None:
        return None
    found = find_splits(config.path)
    if split == "validation" and found.validation:
        return SplitFiles(found.validation, found.left_out, None)
    if not found.train:
        other = (found.validation + found.left_out)[0]
        raise UserError(
            f"data.path={config.path}: no training files, only such as {other.name}; to use it, data.path={other}"
        )
    hold_out = None if found.validation else seeded_hold_out(config, split)
    return SplitFiles(found.train, found.left_out, hold_out)


def with_own_test(found: SplitFiles, split: Split) -> SplitFiles:
    """Of a source whose validation data are called test: those, where no others are."""
    test = [path for path in found.left_out if "test" in re.split(r"[-_.\d]+", path.name.lower())]
    if not test or found.hold_out is None:
        return found
    return SplitFiles(found.taken if split == "train" else test, sorted(set(found.left_out) - set(test)), None)


def seeded_hold_out(config: DataConfig, split: Split) -> HoldOut | None:
    """The configured hold-out, None where data.val_path makes it needless. Raises UserError for a fraction
    out of range."""
    if config.val_path:
        return None
    if not 0 < config.val_fraction <= 0.5:
        raise UserError(f"data.val_fraction={config.val_fraction}: must be over 0 and at most 0.5, such as 0.05")
    return HoldOut(config.seed, config.val_fraction, split)


def nothing_left(hold_out: HoldOut | None, split: Split, seen: int, unit: str, description: str) -> str:
    """The message where a hold-out leaves one side without rows; `unit` is what a row is called."""
    fraction = hold_out.fraction if hold_out else 0
    side = "validation" if split == "validation" else "training"
    return (
        f"data.val_fraction={fraction} leaves no {side} {unit} out of {seen} in {description}, as all have one text or "
        "prompt; give more, or what is held out: data.val_path=FILE"
    )


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """What the system says against reading the file, as a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def _names(paths: list[Path]) -> str:
    """`a.txt`, or the folder that all are in and the first few: `my_texts: a.txt, b.txt and 7 more`."""
    if len(paths) == 1:
        return str(paths[0])
    folder = os.path.commonpath([path.parent for path in paths])
    shown = ", ".join(os.path.relpath(path, folder) for path in paths[:4])
    return f"{folder or '.'}: {shown}" + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size:,} bytes"
