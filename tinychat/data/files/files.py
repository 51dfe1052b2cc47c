"""Which files a `data.path` means, and which of them are for training and which for validation."""

from __future__ import annotations

import glob
import itertools
import os
import re
from dataclasses import dataclass
from pathlib import Path

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
