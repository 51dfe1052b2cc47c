"""From `data=...` to the documents of one split: which files, which hold-out, how many."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tinychat.data import files
from tinychat.data.documents import Meter, read_documents
from tinychat.data.filehash import hash_file
from tinychat.data.hub_texts import HubTexts
from tinychat.errors import UserError
from tinychat.schema import DataConfig, Source

Split = Literal["train", "validation"]
READING_VERSION = 1  # raise it when the same files would give other documents
TINYSTORIES = "roneneldan/TinyStories"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HoldOut:
    """A seeded choice of the documents held out, by their text alone: equal ones land on the same side."""

    seed: int
    fraction: float  # of documents, in (0, 0.5]
    side: Split  # which of the two sides is kept

    def keeps(self, text: str) -> bool:
        digest = hashlib.blake2b(f"{self.seed}\0{text.strip()}".encode(), digest_size=8).digest()
        is_held_out = int.from_bytes(digest, "big") < self.fraction * 2**64
        return is_held_out == (self.side == "validation")


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
    meter: Meter = field(default_factory=Meter)  # of the latest documents()

    def documents(self) -> Iterator[str]:
        """Documents in their order. Raises UserError where there are none, and as read_documents does."""
        self.meter = Meter()
        seen = kept = 0
        for text in self.read(self.meter):
            seen += 1
            if self.hold_out and not self.hold_out.keeps(text):
                continue
            kept += 1
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
        if not kept:
            raise UserError(self._nothing(seen))

    def fingerprint(self, memo_dir: Path | None = None) -> str:
        """A hash of what documents() yields: of the bytes behind it and of all that chooses among them."""
        hold_out = (self.hold_out.seed, self.hold_out.fraction, self.hold_out.side) if self.hold_out else None
        parts = [READING_VERSION, self.identify(memo_dir), hold_out, self.max_docs]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _nothing(self, seen: int) -> str:
        if not seen:
            return f"no documents in {self.description}: every file or row is blank"
        fraction = self.hold_out.fraction if self.hold_out else 0
        side = "validation" if self.name.endswith("validation") else "training"
        works = "more" if side == "validation" else "less"
        return (
            f"data.val_fraction={fraction} leaves no {side} document out of {seen} in {self.description}; "
            f"hold out {works}, pass data.val_path=FILE, or another data.seed"
        )


def text_source(config: DataConfig, split: Split) -> TextSource:
    """The documents of one split, found but not yet read.

    Validation is, in this order: data.val_path; the source's own split (files named for it, the hub's, the
    generator's); a seeded hold-out of data.val_fraction of the documents, which training then lacks. Raises
    UserError where the files or the hub are missing.
    """
    if config.path is None and config.source is Source.tinyworld:
        return _generated(config, split)
    if split == "validation" and config.val_path:
        found = files.find_splits(config.val_path, "data.val_path")
        return _from_files(config, split, found.validation or found.train, found.left_out, None)
    if config.path is not None:
        return _own(config, split, config.path)
    if config.source is Source.tinystories:
        return _from_hub(config, split)
    raise UserError(
        f"data.path is null: data={config.name} needs a file, folder or glob ({files.USABLE}): data.path=..."
    )


def _own(config: DataConfig, split: Split, path: str) -> TextSource:
    found = files.find_splits(path)
    if split == "validation" and found.validation:
        return _from_files(config, split, found.validation, found.left_out, None)
    if not found.train:
        other = (found.validation + found.left_out)[0]
        raise UserError(f"data.path={path}: no training files, only such as {other.name}; to use it, data.path={other}")
    hold_out = None if found.validation or config.val_path else _hold_out(config, split)
    return _from_files(config, split, found.train, found.left_out, hold_out)


def _hold_out(config: DataConfig, split: Split) -> HoldOut:
    if not 0 < config.val_fraction <= 0.5:
        raise UserError(f"data.val_fraction={config.val_fraction}: must be over 0 and at most 0.5, such as 0.05")
    return HoldOut(config.seed, config.val_fraction, split)


def _max_docs(config: DataConfig, split: Split) -> int | None:
    return config.max_docs if split == "train" else config.max_val_docs


def _from_files(
    config: DataConfig, split: Split, taken: list[Path], left_out: list[Path], hold_out: HoldOut | None
) -> TextSource:
    column = config.text_column

    def read(meter: Meter) -> Iterator[str]:
        for path in taken:
            with _readable(path):
                yield from read_documents(path, column, meter)

    def identify(memo_dir: Path | None) -> str:
        content = []
        for path in taken:
            with _readable(path):
                content.append((files.format_of(path), hash_file(path, memo_dir)))
        return json.dumps([column, content])

    size = sum(path.stat().st_size for path in taken)
    description = f"{_names(taken)} ({_megabytes(size)}{_held_out_in_words(hold_out)})"
    if left_out:
        description += f", left out: {_names(left_out)}"
    return TextSource(f"{config.name}-{split}", description, size, read, identify, hold_out, _max_docs(config, split))


def _from_hub(config: DataConfig, split: Split) -> TextSource:
    max_docs = _max_docs(config, split)
    instead = "pass data.path=FOLDER with train.jsonl.gz and validation.jsonl.gz, or another file of stories"
    hub = HubTexts(TINYSTORIES, split, config.text_column, instead)

    def read(meter: Meter) -> Iterator[str]:
        for row, text in enumerate(hub.rows(stream=max_docs is not None)):
            if isinstance(text, str) and text.strip():
                yield text
            else:
                meter.skipped += 1
                meter.first_skipped = meter.first_skipped or f"row {row + 1}"

    description = f"{TINYSTORIES} ({split} split of the hub)"
    name = f"{config.name}-{split}"
    return TextSource(name, description, None, read, lambda memo_dir: hub.fingerprint(), None, max_docs)


def _generated(config: DataConfig, split: Split) -> TextSource:
    count, key = _max_docs(config, split), "max_docs" if split == "train" else "max_val_docs"
    if count is None:
        raise UserError(
            f"data.{key}=null: the generator of data={config.name} never ends; say how many, data.{key}=1000"
        )

    def read(meter: Meter) -> Iterator[str]:
        from tinychat.data.tinyworld import stories

        return stories(config.seed, split, count)

    def identify(memo_dir: Path | None) -> str:
        folder = Path(__file__).parent / "tinyworld"
        code = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
        return json.dumps([config.seed, split, count, [hash_file(path, None) for path in code]])

    description = f"{count:,} generated stories ({split}, seed {config.seed})"
    return TextSource(f"{config.name}-{split}", description, None, read, identify, None, count)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
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


def _held_out_in_words(hold_out: HoldOut | None) -> str:
    if hold_out is None:
        return ""
    share = f"{hold_out.fraction:.3g} of the documents"
    return f"; {share} held out" if hold_out.side == "train" else f"; the {share} held out of training"
