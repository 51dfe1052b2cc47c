"""A corpus on the disk: parquet chunks of one source each, corpus.json that says what they hold, and manifest.json with
size and checksum of every file.

    corpus/web-00000.parquet  corpus/web-00001.parquet ...  corpus/corpus.json  corpus/manifest.json

Columns of a chunk: text, source, language (as py3langid has it, und: not asked for), id (SOURCE:NUMBER, the number of
the document among those read).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tinychat.data.files.tables import Meter, read_rows
from tinychat.errors import UserError
from tinychat.runs.parents import CORPUS, find_corpus
from tinychat.runtime import manifest
from tinychat.runtime.run_files import Unreadable, read_json, write_text_atomic

FOLDER = "corpus"  # below a run's
FORMAT = 1
COLUMNS = ("text", "source", "language", "id")
ROW_GROUP = 4096


@dataclass
class Chunk:
    """One file."""

    file: str
    documents: int
    bytes: int  # of UTF-8


@dataclass
class Held:
    """What a corpus holds of one source."""

    weight: float | None = None
    documents: int = 0
    bytes: int = 0  # of UTF-8
    characters: int = 0
    tokens: int | None = None  # None: not counted
    languages: dict[str, int] = field(default_factory=dict)  # documents of each
    chunks: list[Chunk] = field(default_factory=list)


@dataclass(frozen=True)
class Corpus:
    """A corpus folder, opened."""

    folder: Path
    sources: dict[str, Held]
    checksums: dict[str, str]

    def fingerprint(self, source: str) -> str:
        """A hash of what the chunks of a source hold; nothing is read for it."""
        sums = [self.checksums.get(chunk.file) for chunk in self.sources[source].chunks]
        return hashlib.sha256(json.dumps([FORMAT, sums]).encode()).hexdigest()

    def texts(self, source: str, meter: Meter) -> Iterator[str]:
        """The documents of a source in their order. Raises UserError for a chunk that is not as it was written."""
        for chunk in self.sources[source].chunks:
            if manifest.changed_file(self.folder, {chunk.file: self.checksums.get(chunk.file, "")}):
                raise UserError(_damaged(self.folder, f"{chunk.file} is not as it was written"))
            for _, row in read_rows(self.folder / chunk.file, meter, ("text",)):
                yield row["text"]


def write_chunk(path: Path, rows: Sequence[tuple[str, str, str, str]]) -> None:
    """rows: (text, source, language, id). The same rows give the same bytes. On the disk when it returns."""
    import pyarrow
    import pyarrow.parquet

    columns = dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
    table = pyarrow.table({name: pyarrow.array(values, pyarrow.string()) for name, values in columns.items()})
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        pyarrow.parquet.write_table(table, file, compression="zstd", row_group_size=ROW_GROUP)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_corpus(folder: Path, sources: dict[str, Held]) -> None:
    """corpus.json and manifest.json beside the chunks that are there."""
    content = {"format": FORMAT, "sources": {name: asdict(held) for name, held in sources.items()}}
    write_text_atomic(folder / CORPUS, json.dumps(content, indent=1, ensure_ascii=False))
    manifest.write_manifest(folder, score=None)


def open_corpus(path: str, key: str = "data.path") -> Corpus:
    """Raises UserError as find_corpus, and for a corpus.json that is damaged."""
    folder = find_corpus(path, key)
    try:
        found = read_json(folder / CORPUS, {"format": int, "sources": dict})
        sums = read_json(folder / manifest.MANIFEST, {"checksums": dict})
        if found is None or sums is None:
            raise Unreadable(f"{folder / manifest.MANIFEST}: is missing")
        if found["format"] != FORMAT:
            raise UserError(f"{folder / CORPUS}: format {found['format']}, this version reads {FORMAT}; make it anew")
        if manifest.changed_file(folder, {CORPUS: sums["checksums"].get(CORPUS, "")}):
            raise Unreadable(f"{CORPUS} is not as it was written")
        sources = {name: _held(content) for name, content in found["sources"].items()}
    except (Unreadable, TypeError, KeyError) as error:
        raise UserError(_damaged(folder, str(error))) from None
    return Corpus(folder, sources, sums["checksums"])


def _held(content: dict[str, Any]) -> Held:
    return Held(**{**content, "chunks": [Chunk(**chunk) for chunk in content["chunks"]]})


def _damaged(folder: Path, what: str) -> str:
    return f"corpus {folder} is damaged: {what}; copy it again, or make it anew: python -m tinychat.train stage=corpus"
