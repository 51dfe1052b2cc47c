"""The texts of evaluation data, whose n-grams no document may share."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tinychat.config.corpus_stage import DecontaminationRules, EvaluationSet
from tinychat.config.plugins import source_of
from tinychat.config.schema import DataConfig
from tinychat.data.chats.sources import chat_source
from tinychat.data.corpus.similar import Contamination
from tinychat.data.documents.sources import text_source
from tinychat.data.preferences.prompts import prompt_source
from tinychat.data.preferences.sources import preference_source
from tinychat.errors import UserError

log = logging.getLogger(__name__)


def contamination(rules: DecontaminationRules, base: DataConfig) -> Contamination | None:
    """The n-grams of all sets; None where there are none. Raises UserError, which names the set."""
    if not rules.sets:
        return None
    found = Contamination(rules)
    for name, one in rules.sets.items():
        try:
            for text in texts_of(settings_of(name, one, base)):
                found.add(name, text)
        except UserError as error:
            raise UserError(f"stage.decontaminate.sets.{name}: {error}") from None
        short = found.too_short.get(name, 0)
        left = f", {short:,} of them too short to be looked for" if short else ""
        log.info("decontaminating against %s: %s texts%s", name, f"{found.texts.get(name, 0):,}", left)
    found.ready()
    return found


def fingerprints(rules: DecontaminationRules, base: DataConfig, memo_dir: Path) -> list[str]:
    """Of each set: its name, settings, and of its files their bytes."""
    found = []
    for name, one in rules.sets.items():
        own = settings_of(name, one, base)
        files = source_of(own).files(own, "validation")
        hashes = files.hashes(memo_dir) if files else None
        found.append(json.dumps([name, one.source, one.options, one.max_rows, hashes]))
    return found


def settings_of(name: str, one: EvaluationSet, base: DataConfig) -> DataConfig:
    """As of data=: all rows of the set's files are its validation."""
    return replace(
        base,
        name=name,
        source=one.source,
        path=None,
        val_path=one.path,
        text_column=one.text_column or base.text_column,
        options=one.options,
        max_rows=one.max_rows,
        max_val_rows=one.max_rows,
        max_docs=one.max_rows,
        max_val_docs=one.max_rows,
        mix={},
    )


def texts_of(data: DataConfig) -> Iterator[str]:
    """Everything that a model is asked, or answers, when it is measured on the validation split."""
    has = source_of(data).has
    if "conversations" in has:
        for row in chat_source(data, "validation").rows():
            for message in row.messages:
                yield from (text for key, text in message.items() if key in ("content", "input") and text)
    # A file that a source with both is given holds conversations.
    if "preferences" in has and not (data.val_path and "conversations" in has):
        for pair in preference_source(data, "validation").rows():
            yield from (message["content"] for message in pair.prompt)
            yield pair.chosen
    if "prompts" in has:
        for prompt in prompt_source(data, "validation").rows():
            yield from (message["content"] for message in prompt.messages)
            if prompt.reference:
                yield prompt.reference
    if has == ("documents",):
        yield from text_source(data, "validation").documents()
