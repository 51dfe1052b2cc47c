"""data=safe_and_helpful: prompts that ask for harm and such that do not, mixed by a share, each with its kind.

A policy that is rewarded for harmless replies alone need only refuse. Here a reward can ask for harmlessness where a
prompt is harmful and for help where it is not, as in Safe RLHF (Dai et al. 2023); evaluations see both.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinychat.config.plugins import source_of
from tinychat.config.schema import BENIGN, HARMFUL, PROMPT_KINDS, DataConfig
from tinychat.data.chats.rows import BadRow
from tinychat.data.chats.sources import chat_source, of_part
from tinychat.data.files.row_sources import DataSource, Found, RowSource, choose
from tinychat.data.files.splits import Split, SplitFiles
from tinychat.data.preferences.sources import preference_source
from tinychat.errors import UserError

if TYPE_CHECKING:
    from tinychat.data.preferences.prompts import PromptRow, PromptSource

log = logging.getLogger(__name__)


class MixedSource(DataSource):
    """A source that consists of two of data.mix, `harmful` and `benign`, by the shares of data.weights."""

    of_parts = True
    wants = "prompts"  # rows that it takes of both
    others = False  # whether it takes parts by other names too

    def problems(self, config: DataConfig) -> Iterator[str]:
        names = {*PROMPT_KINDS, *(config.mix if self.others else ())}
        for key, given in (("mix", config.mix), ("weights", config.weights)):
            for name in [name for name in given if name not in names]:
                what = "no part of data.mix" if self.others else "no kind of prompt"
                yield f"data.{key}.{name}: {what}; there are {' and '.join(sorted(names, reverse=True))}"
        for name in [name for name in config.mix if name not in PROMPT_KINDS]:
            if config.weights and not config.weights.get(name):
                works = f"give it a share, as +data.weights.{name}=0.2, or leave it out: ~data.mix.{name}"
                yield f"data.weights.{name}={config.weights.get(name, 0):g}: none of data.mix.{name}; {works}"
        for missing in [kind for kind in PROMPT_KINDS if kind not in config.mix]:
            yield f"data.mix has no part {missing}: data={config.name} is made of two; give data.mix.{missing}"
        for key in ("path", "val_path"):
            if getattr(config, key):
                keys = ", ".join(f"data.mix.{kind}.path" for kind in PROMPT_KINDS)
                yield f"data.{key}={getattr(config, key)}: data={config.name} reads two sources: data.root=, or {keys}"

    def files(self, config: DataConfig, split: Split) -> SplitFiles | None:
        return None  # its parts have files of their own


class SafeAndHelpful(MixedSource):
    """It has the prompts of both parts, the conversations of those that are conversations themselves (instructions) and
    the pairs of those that are preferences. Further parts, by any name, add training prompts whose rows say themselves
    whether they are harmful."""

    has = ("prompts", "conversations", "preferences")
    others = True

    def problems(self, config: DataConfig) -> Iterator[str]:
        yield from super().problems(config)
        alone = {HARMFUL: "pku_saferlhf", BENIGN: "alpaca"}
        for missing, there in (PROMPT_KINDS, reversed(PROMPT_KINDS)):
            if config.weights and not config.weights.get(missing):
                said = f"data.weights.{missing}={config.weights.get(missing, 0):g}: no {missing} prompts"
                yield f"{said}; for {there} ones alone: data={alone[there]}"

    def made(self, config: DataConfig, split: Split, rows: str) -> Found[Any] | None:
        if rows == "prompts":
            return _prompts(config, split)
        find = chat_source if rows == "conversations" else preference_source
        parts = {name: part for name, part in parts_of(config, split).items() if rows in source_of(part).has}
        if not parts:
            return None
        sources: dict[str, RowSource[Any]] = {}
        for name, part in parts.items():
            with of_part(name):
                sources[name] = find(part, split)

        def read() -> Iterator[Any]:
            for name, source in sources.items():
                with of_part(name):
                    yield from source.rows()

        return found_in(
            sources, read, lambda memo_dir: json.dumps([one.fingerprint(memo_dir) for one in sources.values()])
        )


def parts_of(config: DataConfig, split: Split) -> dict[str, DataConfig]:
    """The settings of each part's source, harmful first, then benign; its hold-out is its own, and parts by other names
    have training rows alone."""
    others = [name for name in config.mix if name not in PROMPT_KINDS] if split == "train" else []
    return {name: _part_of(config, name) for name in (*PROMPT_KINDS, *others)}


def _part_of(config: DataConfig, name: str) -> DataConfig:
    part = config.mix[name]
    return replace(
        config,
        name=f"{config.name}-{name}",
        source=part.source,
        path=part.path,
        max_rows=part.max_rows,
        options=part.options,
        val_path=None,
        max_val_rows=None,
        mix={},
        weights={},
    )


def _prompts(config: DataConfig, split: Split) -> Found[PromptRow]:
    from tinychat.data.preferences.prompts import prompt_source  # which loads transformers

    sources: dict[str, PromptSource] = {}
    for name, part in parts_of(config, split).items():
        with of_part(name):
            sources[name] = prompt_source(part, split)
    weights = {name: share for name, share in config.weights.items() if name in sources}

    def read() -> Iterator[PromptRow | BadRow]:
        found: dict[str, list[PromptRow]] = {}
        seen: set[str] = set()
        for name, source in sources.items():
            found[name], shared = [], []
            with of_part(name):
                for row in source.rows():
                    if row.key() in seen:
                        shared.append(row.place)
                    else:
                        found[name].append(_as(name, row))
            if shared:
                what = f"{len(shared)} prompts of {name} stand in {' or '.join(list(found)[:-1])} too, and are its"
                log.warning("%s-%s: %s; the first at %s", config.name, split, what, shared[0])
            seen |= {row.key() for row in found[name]}
        taken = shares(found, weights, config.seed)
        told = ", ".join(f"{len(rows):,} of {len(found[name]):,} {name}" for name, rows in taken.items())
        log.info("%s-%s: prompts mixed: %s", config.name, split, told)
        yield from shuffled([row for rows in taken.values() for row in rows], config.seed)

    def identify(memo_dir: Path | None) -> str:
        return json.dumps([[one.fingerprint(memo_dir) for one in sources.values()], weights, config.seed])

    return found_in({name: source.rows_of for name, source in sources.items()}, read, identify)


def found_in(sources: Mapping[str, RowSource[Any]], read: Callable[[], Iterator[Any]], identify: Any) -> Found[Any]:
    sizes = [source.found.size for source in sources.values()]
    size = None if None in sizes else sum(size or 0 for size in sizes)
    description = " and ".join(f"{name}: {source.description}" for name, source in sources.items())
    return Found(description, read, identify, size=size)


def _as(name: str, row: PromptRow) -> PromptRow:
    """The row of a part with its kind: the part's, else what the row says. That nothing harmful is asked is what
    calling a part benign means; of the others some may be harmless too, which only their data can say. Raises UserError
    for a row that would have to say its kind and does not."""
    if name not in PROMPT_KINDS:
        if row.harmful is None:
            raise UserError(
                f"{row.place}: data.mix.{name} is called neither {' nor '.join(PROMPT_KINDS)}, so each of its prompts "
                "says which it is: harmful: true or false"
            )
        return replace(row, kind=HARMFUL if row.harmful else BENIGN)
    known = False if name == BENIGN and row.harmful is None else row.harmful
    return replace(row, kind=name, harmful=known)


def shares(rows: dict[str, list[PromptRow]], weights: dict[str, float], seed: int) -> dict[str, list[PromptRow]]:
    """Of each part so many rows that they stand in the proportion of the weights, as many as there are for that (a
    seeded choice, no row twice); without weights all. Raises UserError where a part is left without any."""
    if not weights:
        return rows
    whole = min(len(rows[name]) / weights[name] for name in rows)
    # Not by the seed that max_rows chooses by among all of them: that would take those again which this has taken.
    taken = {name: choose(own, round(whole * weights[name]), ~seed) for name, own in rows.items()}
    for name, own in taken.items():
        if not own:
            counts = ", ".join(f"{len(there):,} {part}" for part, there in rows.items())
            raise UserError(
                f"data.weights={weights}: of {counts} prompts that leaves no {name} ones; take a larger share, or more "
                "prompts"
            )
    return taken


def shuffled(rows: list[PromptRow], seed: int) -> list[PromptRow]:
    """In a seeded order of their own. Not in turn: what takes every second row would then see one kind alone."""
    key = functools.partial(hashlib.blake2b, digest_size=8, person=b"mixture")
    return sorted(rows, key=lambda row: key(f"{seed}\0{row.key()}".encode()).digest())
