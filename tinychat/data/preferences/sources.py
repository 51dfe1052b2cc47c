"""From `data=...` to the preferences of one split: which files, which hold-out, which part, which choice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from tinychat.config.plugins import gives, source_of, sources_of
from tinychat.config.schema import DataConfig
from tinychat.data.chats.rows import BadRow
from tinychat.data.chats.tools import as_text, with_tools
from tinychat.data.files.row_sources import (
    Found,
    Hub,
    RowSource,
    hashed,
    max_rows,
    no_path,
    tables_of,
)
from tinychat.data.files.splits import HoldOut, Split, SplitFiles, readable, seeded_hold_out
from tinychat.data.files.tables import Meter, read_rows
from tinychat.data.preferences.rows import COLUMNS, PreferenceRow, read_preferences
from tinychat.errors import UserError

Part = Literal["reward", "judge"]  # of the training rows


@dataclass
class PreferenceSource(RowSource[PreferenceRow]):
    """The preferences of one split.

    `part` takes a seeded share of the training prompts: "judge" `judge_fraction` of them, "reward" the others;
    validation has no parts, as neither model learned from it.
    """

    judge_fraction: float = 0.0
    unit: ClassVar[str] = "preferences"

    def rows(self, part: Part | None = None) -> Iterator[PreferenceRow]:
        """As RowSource.rows; the choice of max_rows comes before the part. Raises UserError where the part has
        none."""
        share = self._share(part)
        taken = 0
        for row in super().rows():
            # Another text than the hold-out goes by, so that the two choices have nothing to do with each other.
            if share is None or share.keeps(f"judge\0{row.key()}"):
                taken += 1
                yield row
        if not taken:
            raise UserError(
                f"data.judge_fraction={self.judge_fraction} leaves no {part} rows in {self.description}; take another "
                "share, more rows (data.max_rows) or another data.seed"
            )

    def fingerprint(self, memo_dir: Path | None = None, part: Part | None = None) -> str:
        """A hash of what rows(part) yields: of what is behind it and of all that chooses among it."""
        share = self._share(part)
        return hashed([*self.identity(memo_dir), share.key() if share else None])

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


def preference_source(config: DataConfig, split: Split) -> PreferenceSource:
    """The preferences of one split, found but not yet read.

    Validation is, in this order: data.val_path; the source's own split (files named for it, or the hub's; for
    PKU-SafeRLHF and HH the one named test; the generator's); a seeded hold-out of data.val_fraction of the
    prompts, which training then lacks. Raises UserError where the files or the hub are missing.
    """
    if not gives(config, "preferences"):
        works = ", ".join(sources_of("preferences"))
        raise UserError(f"data={config.name} has no preferences (a prompt, a chosen and a rejected reply); use {works}")
    count = max_rows(config, split)
    found, validation = _find(config, split), None
    if split == "train" and found.hold_out is None and found.count is None:
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


def _find(config: DataConfig, split: Split) -> Found[PreferenceRow]:
    source = source_of(config)
    if files := source.files(config, split):
        return _from_files(config, files)
    if made := source.made(config, split, "preferences"):
        return made
    if source.hub:
        return _from_hub(config, split, source.hub)
    raise no_path(config)


def _from_files(config: DataConfig, found: SplitFiles) -> Found[PreferenceRow]:
    found = tables_of(found, "preferences")
    source = source_of(config)

    def read() -> Iterator[PreferenceRow | BadRow]:
        for path in found.taken:
            with readable(path):
                placed = ((f"{path}, {place}", row) for place, row in read_rows(path, Meter(), COLUMNS))
                yield from read_preferences(with_tools(placed, config.tool_calls), source.reader(config))

    def identify(memo_dir: Path | None) -> str:
        return json.dumps([*source.reading(config), found.hashes(memo_dir), *as_text(config)])

    return Found(found.describe("prompts"), read, identify, found.hold_out, found.size)


def _from_hub(config: DataConfig, split: Split, place: Hub) -> Found[PreferenceRow]:
    source, hub = source_of(config), place.rows(split)

    def read() -> Iterator[PreferenceRow | BadRow]:
        rows = ((f"{place.repository}, row {number}", row) for number, row in enumerate(hub.rows(stream=False), 1))
        return read_preferences(with_tools(rows, config.tool_calls), source.reader(config))

    def identify(memo_dir: Path | None) -> str:
        return json.dumps([*source.reading(config), hub.fingerprint(), *as_text(config)])

    description = f"{place.repository}{f', {place.file}' if place.file else ''} ({hub.split} split of the hub)"
    hold_out = None if place.validation else seeded_hold_out(config, split)
    return Found(description, read, identify, hold_out)
