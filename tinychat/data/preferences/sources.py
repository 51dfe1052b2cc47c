"""From `data=...` to the preferences of one split: which files, which hold-out, which part, which choice."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from tinychat.config.schema import DataConfig, Source
from tinychat.data.chats.rows import BadRow
from tinychat.data.documents.sources import tinyworld_code
from tinychat.data.files.caches import hash_file
from tinychat.data.files.row_sources import (
    Found,
    HubRows,
    RowSource,
    generated_rows,
    hashed,
    max_rows,
    no_path,
    tables_of,
)
from tinychat.data.files.splits import HoldOut, Split, SplitFiles, readable, seeded_hold_out, split_files
from tinychat.data.files.tables import Meter, read_rows
from tinychat.data.preferences.rows import COLUMNS, Labels, PreferenceRow, preference_row, read_preferences, reader
from tinychat.errors import UserError

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
    if config.source not in SOURCES:
        works = ", ".join(source.value for source in SOURCES)
        raise UserError(f"data={config.name} has no preferences (a prompt, a chosen and a rejected reply); use {works}")
    count = max_rows(config, split)
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


def _find(config: DataConfig, split: Split) -> Found[PreferenceRow]:
    if found := split_files(config, split):
        return _from_files(config, split, found)
    if config.source is Source.tinyworld:
        return _generated(config, split)
    if config.source in HUB:
        return _from_hub(config, split)
    raise no_path(config)


def _from_files(config: DataConfig, split: Split, found: SplitFiles) -> Found[PreferenceRow]:
    found = tables_of(_with_own_test(config, split, found), "preferences")
    source = Source.preference if config.source is Source.tinyworld else config.source

    def read() -> Iterator[PreferenceRow | BadRow]:
        for path in found.taken:
            with readable(path):
                placed = ((f"{path}, {place}", row) for place, row in read_rows(path, Meter(), COLUMNS))
                yield from read_preferences(placed, reader(source, config.preference))

    def identify(memo_dir: Path | None) -> str:
        return json.dumps([source.value, _preferred(config), found.hashes(memo_dir)])

    return Found(found.describe("prompts"), read, identify, found.hold_out, found.size)


def _with_own_test(config: DataConfig, split: Split, found: SplitFiles) -> SplitFiles:
    """Of a source whose validation data are called test: those, where no others are."""
    if config.source not in OWN_TEST or found.hold_out is None:
        return found
    test = [path for path in found.left_out if "test" in re.split(r"[-_.\d]+", path.name.lower())]
    if not test:
        return found
    return SplitFiles(found.taken if split == "train" else test, sorted(set(found.left_out) - set(test)), None)


def _from_hub(config: DataConfig, split: Split) -> Found[PreferenceRow]:
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


def _generated(config: DataConfig, split: Split) -> Found[PreferenceRow]:
    count = generated_rows(config, split)

    def read() -> Iterator[PreferenceRow | BadRow]:
        from tinychat.tinyworld.preferences import preferences

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
