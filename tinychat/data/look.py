"""A look at the data of a job before it begins: what its reading would refuse is refused while nothing is made yet."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinychat.config.plugins import makes_replies, prompts_of, reward_kind
from tinychat.config.rollout_stages import RolloutStage
from tinychat.config.schema import BestOfNConfig, Config, OnBadRow
from tinychat.config.shapes import shape_of
from tinychat.config.specs import Made, Rows, spec_of
from tinychat.data.chats.rows import BadRow
from tinychat.data.chats.sources import ChatSource, chat_source, held_out_data, of_beside, ptx_data
from tinychat.data.corpus.sources import corpus_sources
from tinychat.data.documents.sources import TextSource, text_source
from tinychat.data.files.row_sources import RowSource, hashed
from tinychat.data.files.splits import Split, hash_file
from tinychat.data.files.tables import Meter
from tinychat.data.preferences.prompts import PromptSource, check_answers, prompt_shape, prompt_source
from tinychat.data.preferences.sources import PreferenceSource, preference_source
from tinychat.errors import about
from tinychat.runtime import user_code

WHOLE = 4 << 20  # bytes: files up to this size are read as a whole,
FIRST = 1000  # of larger ones so many rows
SPLITS: tuple[Split, ...] = ("train", "validation")


def fingerprints(config: Config, rows: Rows) -> dict[str, str]:
    """Of the splits that are files (of a corpus that is made: of its sources), as a stage writes them into its lineage.
    Raises UserError as finding them does."""
    if spec_of(config).makes is Made.corpus:
        memo_dir = Path(config.paths.cache)
        sources = corpus_sources(config).values()
        return {one.name: one.texts.fingerprint(memo_dir) for one in sources if one.texts.size_bytes is not None}
    found: dict[str, str] = {}
    for split in SPLITS:
        source = _find(config, rows, split)
        memo_dir = Path(config.paths.cache)
        if _size(source) is None and not _peek(source):
            continue
        if isinstance(source, PreferenceSource):
            part = spec_of(config).part if split == "train" else None
            found[split] = source.fingerprint(memo_dir, part)
        else:
            found[split] = source.fingerprint(memo_dir)
    return found


def code_hashes(config: Config) -> dict[str, str]:
    """By address, of the code of the user's that a job learns by and no fingerprint of its data has: rewards, kinds of
    answer, an architecture. Of a file also what it imports from beside it. Raises UserError as loading it does."""
    parts = config.reward.parts.items() if spec_of(config).rewards else ()
    addresses = [str(part.path) for name, part in parts if reward_kind(name, part).takes_code]
    addresses += config.data.verifiers
    addresses += [str(config.model.path)] if shape_of(config.model).own_code else []
    return {
        address: hashed([hash_file(path, None) for path in user_code.sources(address)])
        for address in dict.fromkeys(addresses)
    }


def look(config: Config, rows: Rows) -> None:
    """Find both splits of the job's data, and read those that are files: whole where they are small, else the first
    rows. `rows`: documents, conversations, preferences or prompts. Raises UserError as the reading does, and for
    prompts that a verifier could not judge. Says nothing else: the job itself will."""
    if isinstance(config.data, BestOfNConfig) and makes_replies(config):  # its rows are made of these
        config, rows = replace(config, data=prompts_of(config.data)), "prompts"
    with _quiet():
        if spec_of(config).makes is Made.corpus:
            _look_at_sources(config)
            return
        for split in SPLITS:
            source = _find(config, rows, split)
            if isinstance(source, PromptSource):
                _read(source.rows_of, config)
                _check_answers(source, config)
            else:
                _read(source, config)


def look_at_sets(config: Config) -> None:
    """Likewise read the sets of stage.held_out, and what stage.ptx learns from. Raises UserError as reading does."""
    with _quiet():
        for name, one in config.stage.held_out.items():
            with of_beside(f"stage.held_out.{name}"):
                _read(chat_source(held_out_data(name, one, config.data), "validation"), config)
        if isinstance(config.stage, RolloutStage) and config.stage.ptx.coef:
            with of_beside("stage.ptx"):
                _read(chat_source(ptx_data(config.stage.ptx, config.data), "train"), config)


def _look_at_sources(config: Config) -> None:
    """Of a corpus that is to be made: its sources, what it is decontaminated against, and its rules' files and code."""
    from tinychat.data.corpus.cleaning import check_languages, read_blocklist, read_function
    from tinychat.data.corpus.evaluation_sets import settings_of, texts_of

    stage = config.stage
    check_languages(stage)
    for name in stage.sources or [config.data.name]:
        read_function(stage, name)
        read_blocklist(stage, name)
    for source in corpus_sources(config).values():
        _read(source.texts, config)
    for name, one in stage.decontaminate.sets.items():
        with about(f"stage.decontaminate.sets.{name}"):
            _exhaust(itertools.islice(texts_of(settings_of(name, one, config.data)), FIRST))


def _find(config: Config, rows: Rows, split: Split) -> TextSource | RowSource[Any] | PromptSource:
    if rows == "documents":
        return text_source(config.data, split)
    if rows == "conversations":
        return chat_source(config.data, split)
    if rows == "preferences":
        return preference_source(config.data, split)
    return prompt_source(config.data, split, prompt_shape(config.reward))


def _size(source: TextSource | RowSource[Any] | PromptSource) -> int | None:
    """Bytes of a source's files; None where it is generated or on the hub."""
    if isinstance(source, TextSource):
        return source.size_bytes
    return source.rows_of.found.size if isinstance(source, PromptSource) else source.found.size


def _peek(source: TextSource | RowSource[Any] | PromptSource) -> bool:
    """Whether the first rows are read although they are in no files."""
    if isinstance(source, TextSource):
        return source.peek
    return (source.rows_of if isinstance(source, PromptSource) else source).found.peek


def _read(source: TextSource | RowSource[Any], config: Config) -> None:
    if isinstance(source, ChatSource):
        for part in source.added.values():
            _read(part, config)
    size = _size(source)
    if size is None:
        if _peek(source):
            _exhaust(itertools.islice(source.documents() if isinstance(source, TextSource) else source.rows(), FIRST))
        return
    if isinstance(source, TextSource):
        _exhaust(source.documents() if size <= WHOLE else itertools.islice(source.read(Meter()), FIRST))
    elif size > WHOLE:
        first_rows = itertools.islice(source.found.read(), FIRST)
        if source.on_bad_row is OnBadRow.fail and (bad := next((r for r in first_rows if isinstance(r, BadRow)), None)):
            raise bad
    elif isinstance(source, PreferenceSource) and (share := spec_of(config).part):
        _exhaust(source.rows(share))
    else:
        _exhaust(RowSource.rows(source))


def _check_answers(source: PromptSource, config: Config) -> None:
    """Of prompts that are files, where a verifier judges the replies."""
    size = _size(source)
    for name, part in config.reward.parts.items():
        if (size is not None or source.rows_of.found.peek) and reward_kind(name, part).needs_answers:
            rows = itertools.islice(source.rows(), FIRST if size is None or size > WHOLE else None)
            check_answers(rows, f"reward.parts.{name}", part.options.get("answer"))


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
