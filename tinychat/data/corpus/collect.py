"""Documents of several sources to the chunks of a corpus: read in their order, cleaned by several processes, compared
with all that were kept before, written chunk by chunk.

In memory are one chunk's text, and of every document kept a hash and a signature. What comes out depends on the
documents and the rules alone: not on the number of processes, nor on kills. After each chunk the state is written; who
goes on reads the documents before it again, which is quick, and takes hashes and signatures from the disk.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import multiprocessing
import os
import shutil
import signal
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tinychat.config.corpus_stage import CorpusRules
from tinychat.data.corpus.chunks import FOLDER, Chunk, Held, write_chunk, write_corpus
from tinychat.data.corpus.cleaning import EXCERPT, Cleaned, Cleaner
from tinychat.data.corpus.similar import Contamination, NearDuplicates
from tinychat.data.corpus.sources import Source
from tinychat.data.files.caches import LINE_EVERY
from tinychat.errors import UserError
from tinychat.runtime import process, run_files

log = logging.getLogger(__name__)

WORK = "corpus-unfinished"  # below the run folder, until all is there
STATE = "state.json"
VERSION = 2  # raise it when the same documents and rules would give other chunks
BATCH = 1 << 18  # characters cleaned by a process at once,
BATCH_DOCUMENTS = 256  # and documents at most
EXAMPLES = 3  # of each rule
EXACT, NEAR = "exact", "near"


@dataclass
class Tally:
    """What became of the documents of one source."""

    read: int = 0  # documents
    read_bytes: int = 0  # of UTF-8
    done: bool = False
    held: Held = field(default_factory=Held)
    left_out: dict[str, list[int]] = field(default_factory=dict)  # rule -> [documents, bytes]
    taken_out: dict[str, list[int]] = field(default_factory=dict)  # what -> [times, documents that stayed]


@dataclass
class Found:
    """What there is so far, and what became of the rest: what a resume starts from, and what the report says."""

    identity: str
    tallies: dict[str, Tally] = field(default_factory=dict)
    # rule -> [order, id, why, text]: those with the least hash of their id, so that they come from everywhere
    examples: dict[str, list[list[Any]]] = field(default_factory=dict)
    chunks: list[str] = field(default_factory=list)  # in the order in which they were written

    @classmethod
    def read(cls, path: Path) -> Found | None:
        """Raises Unreadable, TypeError."""
        content = run_files.read_json(path)
        if content is None:
            return None
        tallies = {}
        for name, tally in content.pop("tallies").items():
            held = tally.pop("held")
            chunks = [Chunk(**chunk) for chunk in held.pop("chunks")]
            tallies[name] = Tally(**tally, held=Held(**held, chunks=chunks))
        return cls(tallies=tallies, **content)

    def write(self, path: Path) -> None:
        run_files.write_text_atomic(path, json.dumps(asdict(self), ensure_ascii=False))

    def note(self, rule: str, place: str, why: str, text: str) -> None:
        """An example, where it is one of the few that are kept."""
        order = int.from_bytes(hashlib.blake2b(place.encode(), digest_size=6).digest(), "big")
        kept = self.examples.setdefault(rule, [])
        if len(kept) < EXAMPLES or order < kept[-1][0]:
            kept.append([order, place, why, text[:EXCERPT]])
            kept.sort(key=lambda one: one[:2])
            del kept[EXAMPLES:]


class Collector:
    """Makes a corpus in a run folder, or goes on making it."""

    def __init__(
        self,
        run_dir: Path,
        stage: CorpusRules,
        sources: dict[str, Source],
        contamination: Contamination | None,
        identity: list[Any],
        count_tokens: Callable[[list[str]], int] | None,
    ) -> None:
        """identity: all that the result depends on. count_tokens: of the texts of a chunk. Raises UserError where what
        is there was made of other data or with other rules."""
        self._run_dir, self._stage, self._sources = run_dir, stage, sources
        self._contamination, self._count_tokens = contamination, count_tokens
        self._work = run_dir / WORK
        self._digests: set[bytes] = set()
        self._near = NearDuplicates(stage.near) if stage.near.use else None
        # Of each document kept, in order: its source and its number there; and of the chunk that is not yet written
        # its row, hash and signature.
        self._kept_source, self._kept_number = array("H"), array("Q")
        self._rows: list[tuple[str, str, str, str]] = []
        self._row_digests: list[bytes] = []
        self._row_signatures: list[np.ndarray] = []
        self._row_bytes = 0
        self._begin = self._said = time.monotonic()
        self._new_bytes = 0
        self.found = self._start(hashlib.sha256(json.dumps([VERSION, *identity]).encode()).hexdigest())

    def run(self, should_stop: Callable[[], bool]) -> bool:
        """Collect what is not there yet. False where it was told to stop: the chunks that are whole stay. Raises
        UserError as reading does, and where nothing is left of a source."""
        if self._is_whole():
            return True
        workers = self._stage.workers
        workers = len(os.sched_getaffinity(0)) if workers is None else workers
        with _Cleaning(self._stage, list(self._sources), self._contamination, workers) as cleaning:
            for source in self._sources.values():
                if self._tally(source).done:
                    continue
                if not self._collect(source, cleaning, should_stop):
                    return False
        write_corpus(self._work / FOLDER, {name: tally.held for name, tally in self.found.tallies.items()})
        shutil.rmtree(self.folder, ignore_errors=True)
        os.replace(self._work / FOLDER, self.folder)
        return True

    def tidy(self) -> None:
        """Remove what only a resume would need."""
        shutil.rmtree(self._work, ignore_errors=True)

    @property
    def folder(self) -> Path:
        return self._run_dir / FOLDER

    @property
    def speed(self) -> float:
        """Megabytes of text a second, of those that were read since this process began."""
        return self._new_bytes / 1e6 / max(1e-9, time.monotonic() - self._begin)

    def _is_whole(self) -> bool:
        """Whether an earlier start came to its end, but for its last lines."""
        done = all(tally.done for tally in self.found.tallies.values()) and bool(self.found.tallies)
        return done and self.folder.is_dir() and not (self._work / FOLDER).is_dir()

    def _tally(self, source: Source) -> Tally:
        return self.found.tallies[source.name]

    def _collect(self, source: Source, cleaning: _Cleaning, should_stop: Callable[[], bool]) -> bool:
        tally, title = self._tally(source), source.texts.description
        log.info("%s: %s%s", source.name, title, f", from document {tally.read:,} on" if tally.read else "")
        documents = itertools.islice(source.texts.documents(), tally.read, None)
        for cleaned in cleaning.of(documents, source.name):
            for one in cleaned:
                self._take(source, tally, one)
            if should_stop():
                return False
            self._tell(source, tally)
        if not tally.held.documents and not self._rows:
            raise UserError(nothing_left(self._stage, source.name, tally, self.found.examples))
        tally.done = True
        self._write()
        kept, read = tally.held.documents, tally.read
        log.info("%s: kept %s of %s documents (%.1f%%)", source.name, f"{kept:,}", f"{read:,}", 100 * kept / read)
        return True

    def _take(self, source: Source, tally: Tally, one: Cleaned) -> None:
        number = tally.read
        tally.read += 1
        tally.read_bytes += one.size
        self._new_bytes += one.size
        rule, why = one.rule, one.why
        if not rule and self._stage.exact and one.digest in self._digests:
            rule, why = EXACT, "came before, letter for letter"
        if not rule and (like := self._like(one.signature)):
            rule, why = NEAR, f"{like[1]:.0%} like {self._id(like[0])}"
        if rule:
            out = tally.left_out.setdefault(rule, [0, 0])
            out[0] += 1
            out[1] += one.size
            self.found.note(rule, f"{source.name}:{number}", why, one.text)
            return
        for what, times in one.taken_out.items():
            count = tally.taken_out.setdefault(what, [0, 0])
            count[0] += times
            count[1] += 1
        self._keep(one.digest, one.signature, list(self._sources).index(source.name), number)
        size = len(one.text.encode())
        self._rows.append((one.text, source.name, one.language, f"{source.name}:{number}"))
        self._row_digests.append(one.digest)
        if one.signature is not None:
            self._row_signatures.append(one.signature)
        self._row_bytes += size
        held = tally.held
        held.documents += 1
        held.bytes += size
        held.characters += len(one.text)
        held.languages[one.language] = held.languages.get(one.language, 0) + 1
        if self._row_bytes >= self._stage.chunk_mb * 1e6:
            self._write()

    def _keep(self, digest: bytes, signature: np.ndarray | None, source: int, number: int) -> None:
        self._kept_source.append(source)
        self._kept_number.append(number)
        if self._stage.exact:
            self._digests.add(digest)
        if self._near is not None and signature is not None:
            self._near.add(signature)

    def _like(self, signature: np.ndarray | None) -> tuple[int, float] | None:
        return None if self._near is None or signature is None else self._near.like(signature)

    def _id(self, kept: int) -> str:
        return f"{list(self._sources)[self._kept_source[kept]]}:{self._kept_number[kept]}"

    def _write(self) -> None:
        """Write the rows as a chunk, what a resume needs of it, and the state."""
        if self._rows:
            name = self._rows[0][1]
            held = self.found.tallies[name].held
            if self._count_tokens is not None:
                held.tokens = (held.tokens or 0) + self._count_tokens([row[0] for row in self._rows])
            file = f"{name}-{len(held.chunks):05d}.parquet"
            write_chunk(self._work / FOLDER / file, self._rows)
            self._write_signatures(file)
            held.chunks.append(Chunk(file, len(self._rows), self._row_bytes))
            self.found.chunks.append(file)
            self._rows, self._row_digests, self._row_signatures, self._row_bytes = [], [], [], 0
        self.found.write(self._work / STATE)

    def _write_signatures(self, file: str) -> None:
        count = len(self._rows)
        arrays = {
            "digests": np.frombuffer(b"".join(self._row_digests), np.uint8).reshape(count, -1),
            "sources": np.array(self._kept_source[-count:], np.uint16),
            "numbers": np.array(self._kept_number[-count:], np.uint64),
        }
        if self._row_signatures:
            arrays["signatures"] = np.stack(self._row_signatures)
        with open(self._work / f"{file}.npz", "wb") as out:
            np.savez(out, **arrays)
            out.flush()
            os.fsync(out.fileno())

    def _start(self, identity: str) -> Found:
        """The state of an earlier start, or a new one."""
        try:
            found = Found.read(self._work / STATE)
        except (run_files.Unreadable, TypeError, KeyError) as error:
            raise UserError(f"{self._work / STATE}: cannot be read ({error}); begin anew: resume=never") from None
        if found is None:
            shutil.rmtree(self._work, ignore_errors=True)
            (self._work / FOLDER).mkdir(parents=True)
            return Found(identity, {name: Tally(held=Held(weight=one.weight)) for name, one in self._sources.items()})
        if found.identity != identity:
            raise UserError(
                f"{self._work}: was begun with other documents or rules (a file changed since then); put them back, or "
                "begin a run of its own: resume=never"
            )
        for file in found.chunks:
            with np.load(self._work / f"{file}.npz") as kept:
                signatures = kept.get("signatures")
                for row, digest in enumerate(kept["digests"]):
                    signature = signatures[row] if signatures is not None else None
                    self._keep(digest.tobytes(), signature, int(kept["sources"][row]), int(kept["numbers"][row]))
        if found.chunks:
            log.info("goes on after %d chunks, %s documents", len(found.chunks), f"{len(self._kept_number):,}")
        return found

    def _tell(self, source: Source, tally: Tally) -> None:
        now = time.monotonic()
        if now - self._said < LINE_EVERY:
            return
        self._said = now
        size, read = source.texts.size_bytes, source.texts.meter.bytes_read
        share = f"{min(1.0, read / size):.0%}, " if size else ""
        kept = tally.held.documents / max(1, tally.read)
        log.info(
            "%s: %s%s documents, %.0f MB, %.0f%% kept, %.2f MB/s",
            source.name, share, f"{tally.read:,}", tally.read_bytes / 1e6, 100 * kept, self.speed,
        )  # fmt: skip


def nothing_left(stage: CorpusRules, name: str, tally: Tally, examples: dict[str, list[list[Any]]]) -> str:
    """The message where every document of a source was left out: by which rules, and an example of the first."""
    rules = sorted(tally.left_out.items(), key=lambda item: -item[1][0])
    shown = ", ".join(f"stage.{rule} {count:,}" for rule, (count, _) in rules[:5])
    _, place, why, text = examples[rules[0][0]][0]
    return (
        f"nothing is left of {name}: all {tally.read:,} documents were left out ({shown}); as {place}: {why}: "
        f"{json.dumps(text[:60], ensure_ascii=False)}; loosen {stage.key_of(name, rules[0][0])}"
    )


_cleaners: dict[str, Cleaner] = {}  # by source, of a process that cleans


def _begin_cleaning(stage: CorpusRules, sources: list[str], contamination: Contamination | None) -> None:
    process.end_with_parent(signal.SIGKILL)
    for number in process.STOPPING:  # the process that reads saves, and ends this one
        signal.signal(number, signal.SIG_IGN)
    _cleaners.update({name: Cleaner(stage, name, contamination) for name in sources})


def _clean(texts: list[str], source: str) -> list[Cleaned]:
    return _cleaners[source].all(texts)


class _Cleaning:
    """Cleans documents in other processes, or with none of them in this one; what comes out is in their order."""

    def __init__(
        self, stage: CorpusRules, sources: list[str], contamination: Contamination | None, workers: int
    ) -> None:
        self._workers = workers
        self._own = {} if workers else {name: Cleaner(stage, name, contamination) for name in sources}
        begin = (stage, sources, contamination)
        self._pool = (
            ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _begin_cleaning, begin)
            if workers
            else None
        )

    def __enter__(self) -> _Cleaning:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def of(self, documents: Iterator[str], source: str) -> Iterator[list[Cleaned]]:
        """Batch by batch. Raises UserError where a process died."""
        if self._pool is None:
            for texts in _batches(documents):
                yield self._own[source].all(texts)
            return
        waiting: deque[Future[list[Cleaned]]] = deque()
        try:
            for texts in _batches(documents):
                waiting.append(self._pool.submit(_clean, texts, source))
                if len(waiting) > 2 * self._workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise UserError(
                f"a process of stage.workers={self._workers} was killed, as the system does where memory is short; use "
                "fewer, then resume=auto"
            ) from None


def _batches(documents: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in documents:
        batch.append(text)
        size += len(text)
        if size >= BATCH or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def totals(found: Found) -> tuple[Counter[str], Counter[str]]:
    """(documents, bytes) left out by each rule, over all sources."""
    documents, sizes = Counter[str](), Counter[str]()
    for tally in found.tallies.values():
        for rule, (count, size) in tally.left_out.items():
            documents[rule] += count
            sizes[rule] += size
    return documents, sizes
