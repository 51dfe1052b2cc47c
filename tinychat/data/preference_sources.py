"""From `data=...` to the preferences of one split: which files, which hold-out, which part, which choice."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tinychat.data import files
from tinychat.data.chat_rows import BadRow
from tinychat.data.filehash import hash_file
from tinychat.data.hub_rows import HubRows
from tinychat.data.preference_files import read_preferences, reader
from tinychat.data.preference_rows import Labels, PreferenceRow, choose_pairs, preference_row
from tinychat.data.sources import tinyworld_code
from tinychat.data.splits import HoldOut, Split, SplitFiles, nothing_left, readable, seeded_hold_out, split_files
from tinychat.data.tables import Meter, read_rows
from tinychat.errors import UserError
from tinychat.schema import DataConfig, OnBadRow, Source

READING_VERSION = 1  # raise it when the same files would give other preferences
Part = Literal["reward", "judge"]  # of the training rows
SOURCES = (Source.tinyworld, Source.pku_saferlhf, Source.hh_rlhf, Source.minimind_dpo, Source.preference)
OWN_TEST = (Source.pku_saferlhf, Source.hh_rlhf)  # their split for validation is named test
# Where the hub keeps them: repository, file, and what the columns are called in a file to pass instead.
HUB = {
    Source.pku_saferlhf: (
        "PKU-Alignment/PKU-SafeRLHF",
        None,
        "prompt, response_0, response_1, is_response_0_safe, is_response_1_safe, better_response_id, safer_response_id",
    ),
    Source.hh_rlhf: ("Anthropic/hh-rlhf", None, "chosen and rejected, each a transcript"),
    Source.minimind_dpo: ("jingyaogong/minimind_dataset", "dpo.jsonl", "chosen and rejected, each [{role, content}]"),
}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """Where the rows of one split are: how to read them, and a hash of all that they come from."""

    description: str  # what was taken, for the log
    read: Callable[[], Iterator[PreferenceRow | BadRow]]
    identify: Callable[[Path | None], str]
    hold_out: HoldOut | None = None


@dataclass
class PreferenceSource:
    """The preferences of one split.

    Training rows whose prompt (the first user message) validation has too are left out. `part` takes a seeded
    share of the training prompts: "judge" `judge_fraction` of them, "reward" the others; validation has no
    parts, as neither model learned from it.
    """

    name: str  # data.name-split
    split: Split
    found: Found
    validation: Found | None  # of training rows, where it does not come from the same files
    on_bad_row: OnBadRow
    max_rows: int | None  # chosen by a hash of `seed` and the row; None: all
    judge_fraction: float
    seed: int
    n_bad: int = 0  # rows left out by the latest rows(), whole after its end

    @property
    def description(self) -> str:
        return self.found.description

    def rows(self, part: Part | None = None) -> Iterator[PreferenceRow]:
        """Preferences in their order; the choice of max_rows comes before the part. Raises BadRow for a row
        that cannot be used, or warns of how many were left out (on_bad_row); UserError where none remains, and
        as read_rows does."""
        share = self._share(part)
        kept = self._usable()
        if self.max_rows is not None:
            kept = iter(choose_pairs(kept, self.max_rows, self.seed))
        taken = 0
        for row in kept:
            if share is None or share.keeps(_part_key(row)):
                taken += 1
                yield row
        if not taken:
            raise UserError(
                f"data.judge_fraction={self.judge_fraction} leaves no {part} rows in {self.description}; take another "
                "share, more rows (data.max_rows) or another data.seed"
            )

    def fingerprint(self, memo_dir: Path | None = None, part: Part | None = None) -> str:
        """A hash of what rows(part) yields: of what is behind it and of all that chooses among it."""
        hold_out, share = (choice.key() if choice else None for choice in (self.found.hold_out, self._share(part)))
        choice = None if self.max_rows is None else (self.max_rows, self.seed)
        lacking = self.validation.identify(memo_dir) if self.validation else None
        parts = [
            READING_VERSION,
            self.found.identify(memo_dir),
            lacking,
            hold_out,
            choice,
            share,
            self.on_bad_row.value,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _share(self, part: Part | None) -> HoldOut | None:
        """Which of the training rows are the part's; None: all."""
        if part is None or self.split == "validation":
            return None
        if not 0 <= self.judge_fraction < 1:
            raise UserError(f"data.judge_fraction={self.judge_fraction}: at least 0 and below 1, such as 0.3")
        if not self.judge_fraction:
            if part == "reward":
                return None
            raise UserError("data.judge_fraction=0: no training rows are kept for a judge; set it, such as 0.3")
        return HoldOut(self.seed, self.judge_fraction, "validation" if part == "judge" else "train")

    def _usable(self) -> Iterator[PreferenceRow]:
        self.n_bad = seen = kept = shared = 0
        first: BadRow | None = None
        held_out = self._held_out_prompts()
        for row in self.found.read():
            if isinstance(row, BadRow):
                if self.on_bad_row is OnBadRow.fail:
                    raise row
                self.n_bad += 1
                first = first or row
                continue
            seen += 1
            if row.key() in held_out:
                shared += 1
            elif self.found.hold_out is None or self.found.hold_out.keeps(row.key()):
                kept += 1
                yield row
        if first:
            where = f"{first.place}: {first.why}"
            log.warning("%s: %d rows that cannot be used left out, the first at %s", self.name, self.n_bad, where)
        if shared:
            log.warning("%s: %d rows left out whose prompts are in the validation data", self.name, shared)
        if not kept:
            raise UserError(self._nothing(seen, shared, first))

    def _held_out_prompts(self) -> frozenset[str]:
        if self.validation is None:
            return frozenset()
        return frozenset(row.key() for row in self.validation.read() if not isinstance(row, BadRow))

    def _nothing(self, seen: int, shared: int, first: BadRow | None) -> str:
        if shared:
            return f"{self.description}: all {shared} prompts are in the validation data too; pass other data.val_path"
        if seen:
            return nothing_left(self.found.hold_out, self.split, seen, "row", self.description)
        why = f": none of {self.n_bad} rows can be used, the first at {first.place}: {first.why}" if first else ""
        return f"no preferences in {self.description}{why}"


def preference_source(config: DataConfig, split: Split) -> PreferenceSource:
    """The preferences of one split, found but not yet read.

    Validation is, in this order: data.val_path; the source's own split (files named for it, or the hub's; for
    PKU-SafeRLHF and HH the one named test; the generator's); a seeded hold-out of data.val_fraction of the
    prompts, which training then lacks. Raises UserError where the files or the hub are missing.
    """
    if config.source not in SOURCES:
        works = ", ".join(source.value for source in SOURCES)
        raise UserError(f"data={config.name} has no preferences (a prompt, a chosen and a rejected reply); use {works}")
    key, count = ("max_rows", config.max_rows) if split == "train" else ("max_val_rows", config.max_val_rows)
    if count is not None and count < 1:
        raise UserError(f"data.{key}={count}: must be at least 1, or null for all")
    found, validation = _find(config, split), None
    generated = config.source is Source.tinyworld and config.path is None
    if split == "train" and found.hold_out is None and not generated:
        validation = _find(config, "validation")
    return PreferenceSource(
        name=f"{config.name}-{split}",
        split=split,
        found=found,
        validation=validation,
        on_bad_row=config.on_bad_row,
        max_rows=count,
        judge_fraction=config.judge_fraction,
        seed=config.seed,
    )


def _part_key(row: PreferenceRow) -> str:
    """Another text than the hold-out goes by, so that the two choices have nothing to do with each other."""
    return f"judge\0{row.key()}"


def _find(config: DataConfig, split: Split) -> Found:
    if found := split_files(config, split):
        return _from_files(config, split, found)
    if config.source is Source.tinyworld:
        return _generated(config, split)
    if config.source in HUB:
        return _from_hub(config, split)
    raise UserError(
        f"data.path is null: data={config.name} needs a file, folder or glob ({files.USABLE_TABLES}): data.path=..."
    )


def _from_files(config: DataConfig, split: Split, found: SplitFiles) -> Found:
    found = _with_own_test(config, split, found)
    tables = [path for path in found.taken if files.format_of(path) != "txt"]
    if not tables:
        raise UserError(f"{found.taken[0]}: a txt file has no preferences; use {files.USABLE_TABLES}")
    found = replace(found, taken=tables, left_out=[*found.left_out, *(set(found.taken) - set(tables))])
    source = Source.preference if config.source is Source.tinyworld else config.source

    def read() -> Iterator[PreferenceRow | BadRow]:
        for path in found.taken:
            with readable(path):
                placed = ((f"{path}, {place}", row) for place, row in read_rows(path, Meter()))
                yield from read_preferences(placed, reader(source, config.preference))

    def identify(memo_dir: Path | None) -> str:
        return json.dumps([source.value, _preferred(config), found.hashes(memo_dir)])

    return Found(found.describe("prompts"), read, identify, found.hold_out)


def _with_own_test(config: DataConfig, split: Split, found: SplitFiles) -> SplitFiles:
    """Of a source whose validation data are called test: those, where no others are."""
    if config.source not in OWN_TEST or found.hold_out is None:
        return found
    test = [path for path in found.left_out if "test" in re.split(r"[-_.\d]+", path.name.lower())]
    if not test:
        return found
    return SplitFiles(found.taken if split == "train" else test, sorted(set(found.left_out) - set(test)), None)


def _from_hub(config: DataConfig, split: Split) -> Found:
    repository, file, columns = HUB[config.source]
    own = split == "validation" and config.source in OWN_TEST
    instead = f"pass data.path=FILE, jsonl or another table with {columns}"
    hub = HubRows(repository, "test" if own else "train", instead, file)

    def read() -> Iterator[PreferenceRow | BadRow]:
        rows = ((f"{repository}, row {number}", row) for number, row in enumerate(hub.rows(stream=False), start=1))
        return read_preferences(rows, reader(config.source, config.preference))

    def identify(memo_dir: Path | None) -> str:
        return json.dumps([config.source.value, _preferred(config), hub.fingerprint()])

    description = f"{repository}{f', {file}' if file else ''} ({hub.split} split of the hub)"
    hold_out = None if config.source in OWN_TEST else seeded_hold_out(config, split)
    return Found(description, read, identify, hold_out)


def _generated(config: DataConfig, split: Split) -> Found:
    count, key = (config.max_rows, "max_rows") if split == "train" else (config.max_val_rows, "max_val_rows")
    if count is None:
        raise UserError(
            f"data.{key}=null: the generator of data={config.name} never ends; say how many, data.{key}=1000"
        )

    def read() -> Iterator[PreferenceRow | BadRow]:
        from tinychat.data.tinyworld.preferences import preferences

        for index, pair in enumerate(preferences(config.seed, split, count)):
            request = pair.request
            labels = Labels(
                category=request.category,
                harmful=request.harmful,
                chosen_safe=pair.chosen_score.safe,
                rejected_safe=pair.rejected_score.safe,
                request=request,
            )
            yield preference_row(request.messages, pair.chosen, pair.rejected, f"tinyworld {split} {index}", labels)

    def identify(memo_dir: Path | None) -> str:
        code = tinyworld_code(with_tasks=True)
        return json.dumps([config.seed, split, count, [hash_file(path, None) for path in code]])

    return Found(f"{count:,} generated preferences ({split}, seed {config.seed})", read, identify)


def _preferred(config: DataConfig) -> str | None:
    return config.preference.value if config.source is Source.pku_saferlhf else None
