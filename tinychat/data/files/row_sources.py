"""What all sources of rows have in common: where a split's rows are, which are held out, which are chosen.
Rows of the hub come at once or are refused at once: `datasets` alone would try for half a minute."""

from __future__ import annotations

import hashlib
import heapq
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from tinychat.config.schema import DataConfig, OnBadRow
from tinychat.data.chats.files import Layout
from tinychat.data.chats.rows import BadRow, ChatRow
from tinychat.data.files import splits
from tinychat.data.files.splits import HoldOut, Split, SplitFiles, nothing_left
from tinychat.data.preferences.rows import Reader, own_row
from tinychat.errors import UserError
from tinychat.runtime import hub

if TYPE_CHECKING:
    from tinychat.data.documents.sources import TextSource


class HubRows:
    """One split of a hub data set. Making it asks for the revision and downloads no rows."""

    def __init__(
        self, repository: str, split: str, instead: str, file: str | None = None, config: str | None = None
    ) -> None:
        """`instead` ends every error: what to pass when the hub cannot be read. `file`: the one file of the
        repository that is meant, its rows being the split. `config`: which of its data sets."""
        self.repository, self.split, self.instead = repository, split, instead
        self._files: dict[str, Any] = {"data_files": {split: file}} if file else {}
        self._files |= {"name": config} if config else {}
        self._builder = self._open()

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.repository}\0{self.split}\0{self._builder.hash}".encode()).hexdigest()

    def rows(self, stream: bool) -> Iterator[dict[str, Any]]:
        """The rows by column; `stream` reads over the network instead of downloading the data set first."""
        try:
            if stream and not hub.is_offline():
                rows = self._builder.as_streaming_dataset(split=self.split)
            else:
                self._builder.download_and_prepare()
                rows = self._builder.as_dataset(split=self.split)
            yield from rows
        except Exception as error:  # of datasets, the hub's client and its HTTP library, which share no base
            raise self._refused(error) from error

    def _open(self) -> Any:
        if not hub.is_offline() and not hub.is_reachable():
            raise UserError(
                f"the hub does not answer, so {self.repository} cannot be read; {self.instead}, "
                "or set HF_HUB_OFFLINE=1 to use a copy downloaded before"
            )
        import datasets

        try:
            return datasets.load_dataset_builder(self.repository, **self._files)
        except Exception as error:  # as in rows()
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> UserError:
        why = "HF_HUB_OFFLINE is set and no copy was downloaded before"
        if not hub.is_offline():
            why = _first_line(error)
        return UserError(f"{self.repository} cannot be read from the hub ({why}); {self.instead}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


READING_VERSION = 4  # raise it when the same files would give other rows
log = logging.getLogger(__name__)


class Row(Protocol):
    @property
    def place(self) -> str:
        """Names the row in messages."""

    @property
    def unused(self) -> tuple[str, ...]:
        """Columns, and keys of messages, that had a value and were left out."""

    def key(self) -> str:
        """Rows with the same one belong on the same side of every split."""

    def content(self) -> str:
        """What the choice of max_rows goes by."""


RowT = TypeVar("RowT", bound=Row)
OneRow = TypeVar("OneRow", bound=Row, covariant=True)


@dataclass(frozen=True)
class Found(Generic[OneRow]):
    """Where the rows of one split are: how to read them, and a hash of all that they come from (hashes of large
    files are remembered under the folder it is given)."""

    description: str  # what was taken, for the log
    read: Callable[[], Iterator[OneRow | BadRow]]  # each row, or why it cannot be used
    identify: Callable[[Path | None], str]
    hold_out: HoldOut | None = None
    size: int | None = None  # bytes of the files on the disk; None where it is generated or on the hub
    count: int | None = None  # rows that a generator makes: as many as were asked for; None: they end by themselves
    peek: bool = False  # the first rows are read before a job begins, although they are in no files


@dataclass(frozen=True)
class Hub:
    """Where the hub keeps a source."""

    repository: str
    columns: str  # what to pass instead of it, as the end of "pass data.path="
    file: str | None = None  # the one that is meant, its rows being the split train
    validation: str | None = None  # the name of its split for validation; None: it has none
    config: str | None = None  # which of the repository's data sets; None: it has one

    def rows(self, split: Split) -> HubRows:
        name = self.validation if split == "validation" and self.validation else "train"
        return HubRows(self.repository, name, f"pass data.path={self.columns}", self.file, self.config)


class DataSource:
    """What is to be known of a source of rows: tinychat's own are in tinychat.data.sources.

    Rows come, in this order, from `files` (data.path, data.val_path), from what the source makes itself (`made`), and
    from the hub.
    """

    has: tuple[str, ...] = ()  # documents, conversations, preferences, prompts: the rows that it has itself
    needs_path = False  # it is nothing but the user's files
    endless = False  # it makes as many rows as it is asked for
    has_oracle = False  # its requests know an exact judge
    test_validates = False  # files named test are for validation where no others are
    of_corpus = False  # data.path is a corpus; null: the newest of the experiment
    of_parts = False  # data.mix is what it consists of, not what is added to it,
    wants = "conversations"  # and these are the rows that it takes of its parts
    needs_safe_label = False  # a reply of its pairs may be unsafe unless it is labelled safe
    hub: Hub | None = None

    def problems(self, config: DataConfig) -> Iterator[str]:
        """A line for each setting of its own that cannot be, before a job begins."""
        yield from ()

    def files(self, config: DataConfig, split: Split) -> SplitFiles | None:
        found = splits.split_files(config, split)
        return splits.with_own_test(found, split) if found and self.test_validates else found

    def made(self, config: DataConfig, split: Split, rows: str) -> Found[Any] | None:
        """Rows that it makes, of one of `has`: texts, ChatRow, PreferenceRow or PromptRow, and BadRow; None: none."""

    def parts(self, config: DataConfig, split: Split) -> dict[str, tuple[TextSource, float | None]]:
        """Of documents that are a mixture: each source of it and its weight, None: as much as there is. {}: of one."""
        return {}

    def leading(self, config: DataConfig) -> int:
        """How many training documents stand before all others, as a curriculum's first part."""
        return 0

    def layout(self) -> Layout | None:
        """Of conversations in its files; None: found out from each file's first row."""

    def selected(self, rows: Iterator[ChatRow | BadRow]) -> Iterator[ChatRow | BadRow]:
        """Of the conversations in its files or on the hub those that it has, and how they are checked."""
        return rows

    def selection(self) -> list[str]:
        """What selected() depends on, for the fingerprint."""
        return []

    def reader(self, config: DataConfig) -> Reader:
        """What makes a preference of a row in its files."""
        return own_row

    def reading(self, config: DataConfig) -> list[str | None]:
        """What reader() depends on, for the fingerprint."""
        return ["preference", None]


@dataclass
class RowSource(Generic[RowT]):
    """The rows of one split. Those whose key a row of `validation` has too are left out."""

    name: str  # data.name-split
    split: Split
    found: Found[RowT]
    on_bad_row: OnBadRow
    max_rows: int | None  # chosen by a hash of `seed` and the row; None: all
    seed: int
    validation: Found[RowT] | None = None  # of training rows, where it does not come from the same files
    n_bad: int = 0  # rows left out by the latest rows(), whole after its end
    unit: ClassVar[str] = "rows"  # what they are called

    @property
    def description(self) -> str:
        return self.found.description

    def rows(self) -> Iterator[RowT]:
        """Rows in their order. Raises BadRow for one that cannot be used, or warns of how many were left out
        (on_bad_row); UserError where none remains, and as read_rows does."""
        kept = self._usable()
        yield from kept if self.max_rows is None else choose(kept, self.max_rows, self.seed)

    def fingerprint(self, memo_dir: Path | None = None) -> str:
        """A hash of what rows() yields: of what is behind it and of all that chooses among it."""
        return hashed(self.identity(memo_dir))

    def identity(self, memo_dir: Path | None) -> list[Any]:
        """What the fingerprint is of."""
        choice = None if self.max_rows is None else (self.max_rows, self.seed)
        hold_out = self.found.hold_out.key() if self.found.hold_out else None
        lacking = self.validation.identify(memo_dir) if self.validation else None
        behind = self.found.identify(memo_dir)
        return [READING_VERSION, self.unit, behind, lacking, hold_out, choice, self.on_bad_row.value]

    def _usable(self) -> Iterator[RowT]:
        counts = _Counts()
        rows, hold_out = self._candidates(counts), self.found.hold_out
        for row in rows if hold_out is None else hold_out.kept(rows, lambda row: row.key(), self.name):
            counts.kept += 1
            yield row
        self.n_bad = counts.bad
        if counts.first_bad:
            where = f"{counts.first_bad.place}: {counts.first_bad.why}"
            log.warning("%s: %d rows that cannot be used left out, the first at %s", self.name, counts.bad, where)
        if counts.unused and (self.split == "train" or hold_out is None):  # of shared files once
            log.warning("%s: not used: %s; the first at %s", self.name, named(counts.unused), counts.first_unused)
        if counts.shared:
            log.warning("%s: %d rows left out whose prompts are in the validation data", self.name, counts.shared)
        if not counts.kept:
            raise UserError(self._nothing(counts))

    def _candidates(self, counts: _Counts) -> Iterator[RowT]:
        """Rows before the hold-out, the others counted. Raises BadRow."""
        held_out = self._held_out_keys()
        for row in self.found.read():
            if isinstance(row, BadRow):
                if self.on_bad_row is OnBadRow.fail:
                    raise row
                counts.bad += 1
                counts.first_bad = counts.first_bad or row
                continue
            counts.seen += 1
            if row.unused:
                counts.unused.update(row.unused)
                counts.first_unused = counts.first_unused or row.place
            if row.key() in held_out:
                counts.shared += 1
            else:
                yield row

    def _held_out_keys(self) -> frozenset[str]:
        if self.validation is None:
            return frozenset()
        return frozenset(row.key() for row in self.validation.read() if not isinstance(row, BadRow))

    def _nothing(self, counts: _Counts) -> str:
        if counts.shared:
            both = f"all {counts.shared} prompts are in the validation data too"
            return f"{self.description}: {both}; pass other data.val_path"
        if counts.seen:
            return nothing_left(self.found.hold_out, self.split, counts.seen, "row", self.description)
        first = counts.first_bad
        why = f": none of {counts.bad} rows can be used, the first at {first.place}: {first.why}" if first else ""
        return f"no {self.unit} in {self.description}{why}"


@dataclass
class _Counts:
    """What became of the rows of one reading."""

    seen: int = 0  # that can be used
    kept: int = 0
    shared: int = 0  # left out, as validation has their prompts
    bad: int = 0
    first_bad: BadRow | None = None
    unused: Counter[str] = field(default_factory=Counter)  # columns by their rows
    first_unused: str = ""  # place


def named(unused: Counter[str]) -> str:
    """What was left out, for the log: `notes (12 rows), name of messages (3 rows)`."""
    shown = [f"{name} ({rows:,} rows)" for name, rows in unused.most_common(8)]
    return ", ".join(shown) + (f" and {len(unused) - 8} more" if len(unused) > 8 else "")


def hashed(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def choose(rows: Iterable[RowT], count: int, seed: int) -> list[RowT]:
    """`count` of the rows (all where there are fewer), in their order: those with the least hash of seed and
    content. So it is always the same ones, wherever they stand, and more of them when `count` grows."""

    def placed() -> Iterator[tuple[int, int, RowT]]:
        for index, row in enumerate(rows):
            content = f"{seed}\0{row.content()}".encode()
            digest = hashlib.blake2b(content, digest_size=8, person=b"max_rows").digest()
            yield int.from_bytes(digest, "big"), index, row

    chosen = heapq.nsmallest(count, placed(), key=lambda item: item[:2])
    return [row for _, _, row in sorted(chosen, key=lambda item: item[1])]


def max_rows(config: DataConfig, split: Split) -> int | None:
    """How many rows of the split are taken; None: all. Raises UserError for less than one."""
    key, count = ("max_rows", config.max_rows) if split == "train" else ("max_val_rows", config.max_val_rows)
    if count is not None and count < 1:
        raise UserError(f"data.{key}={count}: must be at least 1, or null for all")
    return count


def generated_rows(config: DataConfig, split: Split) -> int:
    """How many rows the generator gives. Raises UserError where that is not said."""
    count, key = max_rows(config, split), "max_rows" if split == "train" else "max_val_rows"
    if count is None:
        raise UserError(
            f"data.{key}=null: the generator of data={config.name} never ends; say how many, data.{key}=1000"
        )
    return count


def tables_of(found: SplitFiles, unit: str) -> SplitFiles:
    """The files but for txt, which have no `unit`. Raises UserError where no other is there."""
    tables = [path for path in found.taken if splits.format_of(path) != "txt"]
    if not tables:
        raise UserError(f"{found.taken[0]}: a txt file has no {unit}; use {splits.USABLE_TABLES}")
    return replace(found, taken=tables, left_out=[*found.left_out, *(set(found.taken) - set(tables))])


def no_path(config: DataConfig, usable: str = splits.USABLE_TABLES) -> UserError:
    return UserError(f"data.path is null: data={config.name} needs a file, folder or glob ({usable}): data.path=...")
