"""All rows of some files, read once as a stream: what can be used, what not and why, what comes twice; and a sample
that is held for what takes longer. Memory stays the same whatever the files' size, but for a number for each different
row, up to MOST."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinychat.data.chats.rows import AS_TEXT, BadRow, ChatRow
from tinychat.data.chats.tools import shown_as_text
from tinychat.data.corpus.chunks import FOLDER, open_corpus
from tinychat.data.documents.sources import SEPARATOR, read_documents
from tinychat.data.files import foreign
from tinychat.data.files.splits import USABLE, find_files, find_splits, format_of, readable
from tinychat.data.files.tables import Meter, NotJson, read_lines, read_rows
from tinychat.data.preferences.rows import PreferenceRow
from tinychat.errors import UserError
from tinychat.inspect.layouts import CHUNKS, PLAIN, Known, layout_of, prompt_of, reader_of, texts_of, whole_of
from tinychat.runs.parents import CORPUS
from tinychat.runtime.run_files import at_home

LOOKED_AT = 100  # first rows, until one has a layout that is known
SHOWN = 10  # broken rows that are named
SAMPLE = 2000  # rows held for lengths and languages
LONGEST = 20_000  # characters of a document that are held
MOST = 1_000_000  # different rows that are remembered, to tell those that come twice
SAFETY = {
    (side, safe): f"{side} replies labelled {'safe' if safe else 'unsafe'}"
    for side in ("chosen", "rejected")
    for safe in (True, False)
}
SPLIT_NAMES = ("train", "validation", "left out")


@dataclass
class Seen:
    """One file."""

    path: Path
    split: str  # one of SPLIT_NAMES
    size: int  # bytes
    known: Known | None = None  # its layout
    rows: int = 0
    columns: str = ""  # of the first row
    problem: str = ""  # that ends a training, in words; "": none
    cut: bool = False  # not read to its end, as no more rows were asked for


class Once:
    """Which texts came before, and in which splits. Beyond MOST different ones no more are remembered."""

    def __init__(self) -> None:
        self.splits: dict[int, int] = {}  # hash -> a bit for each of SPLIT_NAMES
        self.again = 0
        self.first = ""  # place of the first that came again

    def add(self, text: str, place: str, split: str) -> None:
        number, bit = hash(text), 1 << SPLIT_NAMES.index(split)
        if number in self.splits:
            self.again += 1
            self.first = self.first or place
            self.splits[number] |= bit
        elif len(self.splits) < MOST:
            self.splits[number] = bit

    @property
    def full(self) -> bool:
        return len(self.splits) == MOST

    @property
    def shared(self) -> int:
        """How many different ones training has as well as validation or files that training leaves out."""
        return sum(bits & 1 and bits > 1 for bits in self.splits.values())


@dataclass
class Group:
    """The rows of all files of one layout."""

    known: Known
    files: list[Seen] = field(default_factory=list)
    usable: int = 0
    blank: int = 0
    with_tools: int = 0  # usable with data.tool_calls=text alone
    broken: int = 0
    first_broken: list[str] = field(default_factory=list)  # place and reason
    reasons: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)
    roles: Counter[str] = field(default_factory=Counter)
    replies: Counter[int] = field(default_factory=Counter)  # conversations by their number of replies
    labels: Counter[str] = field(default_factory=Counter)
    characters: int = 0
    longest: int = 0  # characters
    sample: list[Any] = field(default_factory=list)
    rows_once: Once = field(default_factory=Once)
    prompts_once: Once = field(default_factory=Once)
    _random: random.Random = field(default_factory=lambda: random.Random(0))

    @property
    def rows(self) -> int:
        return sum(seen.rows for seen in self.files)

    @property
    def labelled(self) -> bool:
        """Whether a reply of a pair is known to be safe or unsafe."""
        return any(self.labels[label] for label in SAFETY.values())

    @property
    def shared(self) -> int:
        """Different prompts (of documents: texts) that training and validation or test files have both."""
        return (self.rows_once if self.known.shape == "documents" else self.prompts_once).shared

    def add(self, row: Any, place: str, split: str) -> None:
        """Count a row that can be used."""
        self.usable += 1
        parts = texts_of(row)
        size = sum(len(text) for _, text in parts)
        self.characters += size
        self.longest = max(self.longest, size)
        whole, prompt = whole_of(row), prompt_of(row)
        self.rows_once.add(whole, place, split)
        if prompt is not None:
            self.prompts_once.add(prompt, place, split)
        self._describe(row, parts)
        if len(self.sample) < SAMPLE:
            self.sample.append(_held(row))
        elif (number := self._random.randrange(self.usable)) < SAMPLE:
            self.sample[number] = _held(row)

    def _describe(self, row: Any, parts: list[tuple[str, str]]) -> None:
        if isinstance(row, str):
            return
        self.roles.update(role for role, _ in parts)
        self.unused.update(row.unused)
        if isinstance(row, ChatRow):
            self.replies[sum(role == "assistant" for role, _ in parts)] += 1
            self.labels["replies that are not learnt from (weight 0)"] += len(row.untrained)
        elif isinstance(row, PreferenceRow):
            for side in ("chosen", "rejected"):
                safe = getattr(row, f"{side}_safe")
                if safe is not None:
                    self.labels[SAFETY[side, safe]] += 1
        else:
            if row.harmful is not None:
                self.labels["harmful" if row.harmful else "not harmful"] += 1
            self.labels[f"checked as {row.answer}" if row.answer else "without a checkable answer"] += 1

    def refuse(self, place: str, why: str) -> None:
        """Count a row that cannot be used."""
        self.broken += 1
        self.reasons[kind_of(why)] += 1
        if len(self.first_broken) < SHOWN:
            self.first_broken.append(f"{place}: {why}")


def _held(row: Any) -> Any:
    """A row as the sample holds it: of a document its beginning, with how much longer it is."""
    return (row[:LONGEST], len(row) / min(len(row), LONGEST)) if isinstance(row, str) else row


def kind_of(why: str) -> str:
    """A reason without what differs from row to row."""
    why = re.sub(r'"(?:[^"\\]|\\.)*(?:"|\.\.\.)', '"..."', why)
    why = re.sub(r"\{.*(?:\}|\.\.\.)", "{...}", re.sub(r"\[.*(?:\]|\.\.\.)", "[...]", why))
    return re.sub(r"\b\d[\d,.]*\b", "N", why)


def found_files(path: str) -> list[Seen]:
    """The files of a path, with the split that training would take each for. Raises UserError where none is usable."""
    root = at_home(path)
    if root.is_file() and format_of(root) is None:
        found = foreign.told(root)
        names = " or ".join(f"{root.name}.{kind}" for kind in ("jsonl", "txt"))
        works = f"the file {found}" if found else f"its name says nothing that is known: use {USABLE}, such as {names}"
        raise UserError(f"{path}: cannot be read; {works}")
    if chunks := _chunks(root):
        return [Seen(file, SPLIT_NAMES[0], file.stat().st_size) for file in chunks]
    files = find_files(path, "PATH")
    splits = find_splits(path, "PATH")
    by_file = dict.fromkeys(splits.validation, "validation") | dict.fromkeys(splits.train, "train")
    return [Seen(file, by_file.get(file, "left out"), file.stat().st_size) for file in files]


def _chunks(root: Path) -> list[Path]:
    """Those of a corpus or of the run that made it; []: it is none. Raises UserError for one that is damaged."""
    if not any((folder / CORPUS).is_file() for folder in (root, root / FOLDER)):
        return []
    corpus = open_corpus(str(root), "PATH")
    return [corpus.folder / chunk.file for held in corpus.sources.values() for chunk in held.chunks]


def survey(files: list[Seen], rows: int | None, progress: Callable[[str, int], None]) -> list[Group]:
    """The files' rows by layout, at most `rows` of each file. progress: called with a file's name and the bytes read of
    all files. What stops the reading of a file is its `problem`."""
    groups: dict[Known, Group] = {}
    before = 0
    for seen in files:
        meter = Meter()
        try:
            with readable(seen.path):
                seen.problem = foreign.told(seen.path) and f"{seen.path}: {foreign.told(seen.path)}"
                if seen.size == 0:
                    seen.problem = f"{seen.path}: is empty (0 bytes)"
                if not seen.problem:
                    for number, _ in enumerate(_read(seen, rows, meter, groups)):
                        if number % 256 == 0:
                            progress(seen.path.name, before + meter.bytes_read)
        except UserError as error:
            seen.problem = str(error)
        if seen.known:
            groups[seen.known].unused.update(meter.unused)
        before += seen.size
        progress(seen.path.name, before)
    return list(groups.values())


def _read(seen: Seen, rows: int | None, meter: Meter, groups: dict[Known, Group]) -> Iterator[None]:
    """Count the file's rows, and give way after each."""
    if format_of(seen.path) == "txt":
        seen.known = PLAIN
        group = _group(seen, PLAIN, groups)
        for number, text in enumerate(read_documents(seen.path, "", meter), start=1):
            if rows is not None and number > rows:
                seen.cut = True
                return
            seen.rows += 1
            group.add(text, f"{seen.path}, document {number}", seen.split)
            yield
        return
    table = read_rows(seen.path, meter, on_broken="give")
    head = list(itertools.islice(table, LOOKED_AT))
    if not head:
        seen.problem = f"{seen.path}: holds no rows"
        return
    first = next((row for _, row in head if layout_of(row)), None)
    is_chunk = format_of(seen.path) == "parquet" and (seen.path.parent / CORPUS).is_file()
    seen.known = CHUNKS if is_chunk else layout_of(first)
    named = next((row for _, row in head if isinstance(row, dict)), None)
    seen.columns = ", ".join(map(str, list(named)[:12])) if named else ""
    if seen.known is None:
        seen.problem = _no_layout(seen, named, head)
        return
    group, read = _group(seen, seen.known, groups), reader_of(seen.known, first, meter)
    for place, row in itertools.chain(head, table):
        if rows is not None and seen.rows >= rows:
            seen.cut = True
            return
        seen.rows += 1
        place = f"{seen.path}, {place}"
        if isinstance(row, NotJson):
            seen.problem = seen.problem or f"{place}: {row.why}"
        _count(group, read, row, place, seen.split)
        yield


def _group(seen: Seen, known: Known, groups: dict[Known, Group]) -> Group:
    group = groups.setdefault(known, Group(known))
    group.files.append(seen)
    return group


def _count(group: Group, read: Callable[[Any, str], Any], row: Any, place: str, split: str) -> None:
    try:
        try:
            found = read(row, place)
        except BadRow as bad:
            if AS_TEXT not in bad.why:
                raise
            found = read(shown_as_text(row), place)
            group.with_tools += 1
    except BadRow as bad:
        group.refuse(place, bad.why)
        return
    if isinstance(found, str) and not found.strip():
        group.blank += 1
        return
    group.add(found, place, split)


def _no_layout(seen: Seen, row: Any, head: list[tuple[str, Any]]) -> str:
    if row is None:
        place, first = head[0]
        why = first.why if isinstance(first, NotJson) else "no row of the first is an object with columns"
        return f"{seen.path}, {place}: {why}"
    texts = [str(name) for name, value in row.items() if isinstance(value, str) and " " in value.strip()]
    longest = max(texts, key=lambda name: len(row[name]), default="")
    works = f"as documents: data=text data.text_column={longest}; or " if longest else ""
    return (
        f"{seen.path}: no layout that is known; its columns are {seen.columns}; {works}rename them as in the table of "
        "docs/data.md (text; messages; prompt and response; prompt, chosen and rejected; prompt and reference)"
    )


def may_be_prompts(files: list[Seen]) -> bool:
    """Whether txt files look like a prompt a line, and not like text: no blank lines, none that part documents, and
    most lines short."""
    for seen in files:
        lines = [line.text.strip() for line in itertools.islice(read_lines(seen.path, Meter(), "cut"), 1000)]
        while lines and not lines[-1]:
            lines.pop()
        if not lines or not all(lines) or SEPARATOR in lines or sum(map(len, lines)) > 200 * len(lines):
            return False
    return True
