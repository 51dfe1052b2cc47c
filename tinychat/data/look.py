"""A look at the data of a job before it begins: what its reading would refuse is refused while nothing is made yet."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterable, Iterator
from typing import Any

from tinychat.data.chat_rows import BadRow
from tinychat.data.chat_sources import ChatSource, chat_source
from tinychat.data.preference_sources import PreferenceSource, preference_source
from tinychat.data.prompt_files import check_answers
from tinychat.data.prompt_sources import PromptSource, prompt_shape, prompt_source
from tinychat.data.row_sources import RowSource
from tinychat.data.sources import TextSource, text_source
from tinychat.data.splits import Split
from tinychat.data.tables import Meter
from tinychat.schema import Config, OnBadRow, RewardKind

WHOLE = 4 << 20  # bytes: files up to this size are read as a whole,
FIRST = 1000  # of larger ones so many rows


def look(config: Config, rows: str) -> None:
    """Find both splits of the job's data, and read those that are files: whole where they are small, else the first
    rows. `rows`: documents, conversations, preferences or prompts. Raises UserError as the reading does, and for
    prompts that a verifier could not judge. Says nothing else: the job itself will."""
    splits: tuple[Split, ...] = ("train", "validation")
    with _quiet():
        for split in splits:
            if rows == "documents":
                _read(text_source(config.data, split))
            elif rows == "conversations":
                _read(chat_source(config.data, split))
            elif rows == "preferences":
                _read(preference_source(config.data, split), config.stage.name)
            else:
                _read_prompts(config, prompt_source(config.data, split, prompt_shape(config.reward)))


def _read(source: TextSource | RowSource[Any], stage: str = "") -> None:
    size = source.size_bytes if isinstance(source, TextSource) else source.found.size
    if isinstance(source, ChatSource):
        for part in source.added.values():
            _read(part)
    if size is None:
        return
    if isinstance(source, TextSource):
        _exhaust(source.documents() if size <= WHOLE else itertools.islice(source.read(Meter()), FIRST))
    elif size > WHOLE:
        first_rows = itertools.islice(source.found.read(), FIRST)
        if source.on_bad_row is OnBadRow.fail and (bad := next((r for r in first_rows if isinstance(r, BadRow)), None)):
            raise bad
    elif isinstance(source, PreferenceSource):
        _exhaust(source.rows("judge" if stage == "judge" else "reward"))
    else:
        _exhaust(RowSource.rows(source))


def _read_prompts(config: Config, source: PromptSource) -> None:
    size = source.rows_of.found.size
    if size is None:
        return
    _read(source.rows_of)
    for name, part in config.reward.parts.items():
        if part.kind is RewardKind.verifier:
            check_answers(itertools.islice(source.rows(), FIRST if size > WHOLE else None), f"reward.parts.{name}")


def _exhaust(rows: Iterable[Any]) -> None:
    for _ in rows:
        pass


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Warnings about the data are for the job's own log."""
    logger = logging.getLogger("tinychat.data")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
