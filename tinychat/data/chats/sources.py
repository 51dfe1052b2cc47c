"""From `data=...` to the conversations of one split: which files, which hold-out, which choice of rows.
Preferences give their chosen replies, of which none is known to be unsafe."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from tinychat.config.plugins import gives, source_of, sources_of
from tinychat.config.rollout_stages import Ptx
from tinychat.config.schema import DataConfig, OnBadRow
from tinychat.config.stages import HeldOutSet
from tinychat.data.chats.files import READ, Layout, read_chats
from tinychat.data.chats.rows import BadRow, ChatRow
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
from tinychat.data.files.splits import Split, SplitFiles, readable, seeded_hold_out
from tinychat.data.files.tables import Meter, read_rows
from tinychat.data.preferences.rows import PreferenceRow
from tinychat.data.preferences.sources import preference_source
from tinychat.errors import UserError

log = logging.getLogger(__name__)


def chosen_replies(
    config: DataConfig, found: Found[PreferenceRow], validation: Found[PreferenceRow] | None
) -> tuple[Found[ChatRow], Found[ChatRow] | None]:
    """The conversations of preferences, each once although their prompt may have several pairs, and for the
    prompts that training lacks those of their validation.

    Left out are replies labelled unsafe and, of PKU-SafeRLHF, where the safer of two replies may be unsafe too,
    those without a label. Reading raises UserError where that leaves none.
    """
    needs_label = source_of(config).needs_safe_label

    def read() -> Iterator[ChatRow | BadRow]:
        seen: set[str] = set()
        unsafe = 0
        for row in found.read():
            if isinstance(row, BadRow):
                yield row
            elif row.chosen_safe is False or (needs_label and row.chosen_safe is None):
                unsafe += 1
            elif (chat := _chosen(row)).content() not in seen:
                seen.add(chat.content())
                yield chat
        if unsafe and not seen:
            raise UserError(
                f"{found.description}: none of {unsafe} chosen replies is labelled safe (chosen_safe; of "
                "pku_saferlhf is_response_0_safe and is_response_1_safe), so that no conversation is left"
            )
        if unsafe:
            log.info("%s: %d chosen replies that are not labelled safe left out", config.name, unsafe)

    def read_all() -> Iterator[ChatRow | BadRow]:
        assert validation is not None
        return (row if isinstance(row, BadRow) else _chosen(row) for row in validation.read())

    def identify(memo_dir: Path | None) -> str:
        return hashed(["chosen", found.identify(memo_dir)])

    chosen = Found(f"the chosen replies of {found.description}", read, identify, found.hold_out, found.size)
    return chosen, Found(validation.description, read_all, validation.identify) if validation else None


def _chosen(row: PreferenceRow) -> ChatRow:
    return ChatRow(row.conversations()[0], row.place, unused=row.unused)


@dataclass
class ChatSource(RowSource[ChatRow]):
    """The conversations of one split, and for training after them those that data.mix adds."""

    added: dict[str, ChatSource] = field(default_factory=dict)  # by their names in data.mix
    unit: ClassVar[str] = "conversations"

    def rows(self) -> Iterator[ChatRow]:
        """As RowSource.rows, then each added source's."""
        own = 0
        for own, row in enumerate(super().rows(), start=1):  # noqa: B007 - the last number is their count
            yield row
        counts = [f"{own:,} conversations of {self.name}"]
        for name, source in self.added.items():
            with of_part(name):
                for count, row in enumerate(source.rows(), start=1):  # noqa: B007
                    yield row
            counts.append(f"{count:,} of {name}")
            self.n_bad += source.n_bad
        if self.added:
            log.info("mixed: %s", ", ".join(counts))

    def fingerprint(self, memo_dir: Path | None = None) -> str:
        """A hash of what rows() yields."""
        return hashed([*self.identity(memo_dir), *(source.fingerprint(memo_dir) for source in self.added.values())])

    @property
    def most_rows(self) -> int | None:
        """Rows there are at most; None: unknown."""
        numbers = [source.max_rows for source in (self, *self.added.values())]
        return None if None in numbers else sum(number or 0 for number in numbers)


def chat_source(config: DataConfig, split: Split) -> ChatSource:
    """The conversations of one split, found but not yet read; of a source of preferences: the chosen replies.

    Validation is, in this order: data.val_path; the source's own split (files named for it, the generator's);
    a seeded hold-out of data.val_fraction of the rows by their prompts, which training then lacks. data.mix adds
    to training alone. Raises UserError where the files or the hub are missing.
    """
    source = source_of(config)
    if not gives(config, "conversations"):
        raise UserError(
            f"data={config.name} has {' and '.join(source.has)}, not conversations; use data="
            f"{', '.join(sources_of('conversations'))}, with data.path=FILE where it is your own"
        )
    validation, count = None, max_rows(config, split)
    if "conversations" not in source.has:
        pairs = preference_source(config, split)
        found, validation = chosen_replies(config, pairs.found, pairs.validation)
    else:
        found = _find(config, split)
    return ChatSource(
        name=f"{config.name}-{split}",
        split=split,
        found=found,
        on_bad_row=config.on_bad_row,
        max_rows=count if found.count is None else None,
        seed=config.seed,
        validation=validation,
        added={} if split == "validation" or source.of_parts else _added(config),
    )


def held_out_data(name: str, one: HeldOutSet, base: DataConfig) -> DataConfig:
    """What a set of stage.held_out is as data=, whose validation counts; rows that cannot be used are left out."""
    own = _beside(name, one, base) | {"val_path": one.val_path, "max_val_rows": one.max_rows}
    return DataConfig(**{**own, "val_fraction": one.val_fraction or base.val_fraction})


def ptx_data(one: Ptx, base: DataConfig) -> DataConfig:
    """What stage.ptx is as data=, whose training rows count; rows that cannot be used are left out."""
    return DataConfig(**_beside("ptx", one, base) | {"val_path": None, "max_rows": one.max_rows, "mix": one.mix})


def _beside(name: str, one: HeldOutSet | Ptx, base: DataConfig) -> dict[str, Any]:
    """The settings of a source beside data=, whose own choices among rows are not this one's."""
    own = {field.name: getattr(base, field.name) for field in fields(DataConfig)}
    own |= {"name": name, "source": one.source, "path": one.path, "options": one.options}
    return own | {"families": [], "weights": {}, "mix": {}, "on_bad_row": OnBadRow.skip, "answer": None}


class Measured(Protocol):
    """Rows that something is measured on."""

    def rows(self) -> Iterator[Any]:
        """Each with a key()."""

    def fingerprint(self, memo_dir: Path | None = None) -> str:
        """A hash of what rows() yields."""


def without_prompts(source: ChatSource, measured: Sequence[Measured]) -> ChatSource:
    """The training rows, added ones too, without the prompts of others, and without those of their own validation."""
    own = source.validation

    def read() -> Iterator[Any]:
        yield from own.read() if own else ()
        for other in measured:
            yield from other.rows()

    def identify(memo_dir: Path | None) -> str:
        return hashed([own and own.identify(memo_dir), *(other.fingerprint(memo_dir) for other in measured)])

    added = {name: without_prompts(part, measured) for name, part in source.added.items()}
    return replace(source, validation=Found("the rows that are measured on", read, identify), added=added)


@contextlib.contextmanager
def of_beside(key: str) -> Iterator[None]:
    """An error about a source beside data= begins with its setting, whose path or part it names."""
    try:
        yield
    except UserError as error:
        said = str(error).replace("data.path", f"{key}.path").replace("data.mix", f"{key}.mix")
        raise UserError(f"{key}: {said}") from None


def _added(config: DataConfig) -> dict[str, ChatSource]:
    sources = {}
    for name, part in config.mix.items():
        its = replace(
            config, name=name, source=part.source, path=part.path, max_rows=part.max_rows, options=part.options
        )
        with of_part(name):
            sources[name] = chat_source(replace(its, val_path=None, mix={}), "train")
    return sources


@contextlib.contextmanager
def of_part(name: str) -> Iterator[None]:
    """An error about a source that was added says so; that of a row names its file."""
    try:
        yield
    except BadRow:
        raise
    except UserError as error:
        raise UserError(f"data.mix.{name}: {error}") from None


def _find(config: DataConfig, split: Split) -> Found[ChatRow]:
    source = source_of(config)
    if files := source.files(config, split):
        return _from_files(config, files)
    if made := source.made(config, split, "conversations"):
        return made
    if source.hub:
        return _from_hub(config, split, source.hub)
    raise no_path(config)


def _from_files(config: DataConfig, found: SplitFiles) -> Found[ChatRow]:
    tables = tables_of(found, "conversations")
    source, layout = source_of(config), source_of(config).layout()
    told: set[Layout] = set()

    def read_all() -> Iterator[ChatRow | BadRow]:
        for path in tables.taken:
            with readable(path):
                placed = ((f"{path}, {place}", row) for place, row in read_rows(path, Meter(), READ))
                for used, row in read_chats(with_tools(placed, config.tool_calls), layout):
                    if used and used not in told:
                        log.info("%s: %s (%s)", config.name, used.describe(), path)
                        told.add(used)
                    yield row

    def identify(memo_dir: Path | None) -> str:
        return json.dumps(
            [layout.columns() if layout else None, tables.hashes(memo_dir), *as_text(config), *source.selection()]
        )

    return Found(tables.describe("rows"), lambda: source.selected(read_all()), identify, tables.hold_out, tables.size)


def _from_hub(config: DataConfig, split: Split, place: Hub) -> Found[ChatRow]:
    hub, source = place.rows(split), source_of(config)

    def read() -> Iterator[ChatRow | BadRow]:
        rows = (
            (f"{place.repository}, row {number}", row) for number, row in enumerate(hub.rows(stream=False), start=1)
        )
        chats = read_chats(with_tools(rows, config.tool_calls), source.layout())
        return source.selected(row for _, row in chats)

    description = f"{place.repository}{f', {place.file}' if place.file else ''} (of the hub)"
    return Found(
        description,
        read,
        lambda memo_dir: "".join([hub.fingerprint(), *as_text(config), *source.selection()]),
        None if place.validation else seeded_hold_out(config, split),
    )
