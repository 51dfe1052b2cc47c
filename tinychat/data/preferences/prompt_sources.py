"""From `data=...` to the prompts of one split: those of any source of preferences or conversations, or a user's own."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tinychat.config.schema import DataConfig, OnBadRow, RewardConfig, RewardKind, Source
from tinychat.data.chats.rows import ChatRow
from tinychat.data.chats.sources import ChatSource, chat_source
from tinychat.data.files.splits import Split
from tinychat.data.preferences.prompt_files import PromptFiles, PromptRow, prompt_files
from tinychat.data.preferences.rows import PreferenceRow
from tinychat.data.preferences.sources import SOURCES, PreferenceSource, preference_source

Shape = Literal["preferences", "conversations"]
READING_VERSION = 2  # raise it when the same rows would give other prompts
log = logging.getLogger(__name__)


@dataclass
class PromptSource:
    """The different prompts of one split."""

    rows_of: PreferenceSource | ChatSource | PromptFiles
    n_duplicates: int = 0  # rows left out by the latest rows(), whole after its end
    first_duplicate: str = ""  # where the first of them stands

    @property
    def name(self) -> str:
        return self.rows_of.name

    @property
    def description(self) -> str:
        return f"the prompts of {self.rows_of.description}"

    @property
    def on_bad_row(self) -> OnBadRow:
        return self.rows_of.on_bad_row

    def rows(self) -> Iterator[PromptRow]:
        """Each prompt once for all that a reply to it is judged by, in the order of the first row that has it. Raises
        what the source's rows() do."""
        self.n_duplicates, self.first_duplicate = 0, ""
        seen: set[bytes] = set()
        for row in self.rows_of.rows():
            prompt = _prompt(row)
            key = hashlib.blake2b(json.dumps(_identity(row, prompt)).encode(), digest_size=16).digest()
            if key in seen:
                self.n_duplicates += 1
                self.first_duplicate = self.first_duplicate or row.place
                continue
            seen.add(key)
            yield prompt
        if self.n_duplicates:
            what = "rows left out, whose prompt an earlier row has"
            log.info("%s: %d %s; the first at %s", self.name, self.n_duplicates, what, self.first_duplicate)

    def fingerprint(self, memo_dir: Path | None = None) -> str:
        """A hash of what rows() yields."""
        return hashlib.sha256(f"prompts {READING_VERSION}\0{self.rows_of.fingerprint(memo_dir)}".encode()).hexdigest()


def prompt_source(config: DataConfig, split: Split, shape: Shape | None = None) -> PromptSource:
    """The prompts of one split, found but not yet read: of preferences, of conversations (without their last
    reply) or of a user's own files. `shape` matters where a source has both (tinyworld); None takes its
    preferences. Raises UserError as preference_source, chat_source and prompt_files do."""
    if config.source is Source.prompts:
        return PromptSource(prompt_files(config, split))
    if shape is None:
        shape = "preferences" if config.source in SOURCES else "conversations"
    find: Callable[[DataConfig, Split], PreferenceSource | ChatSource]
    find = preference_source if shape == "preferences" else chat_source
    return PromptSource(find(config, split))


def prompt_shape(reward: RewardConfig) -> Shape | None:
    """Prompts with checkable answers where the verifier alone scores, else those of preferences."""
    kinds = {part.kind for part in reward.parts.values()}
    return "conversations" if kinds == {RewardKind.verifier} else None


def _prompt(row: PreferenceRow | ChatRow | PromptRow) -> PromptRow:
    if isinstance(row, PromptRow):
        return row
    if isinstance(row, PreferenceRow):
        return PromptRow(row.prompt, row.place, row.category, row.harmful, request=row.request)
    reference = row.messages[-1]["content"]
    return PromptRow(row.messages[:-1], row.place, family=row.family, answer=row.answer, reference=reference)


def _identity(row: PreferenceRow | ChatRow | PromptRow, prompt: PromptRow) -> list[Any]:
    """What makes two rows one prompt. All that a user's own row of prompts says counts; of others what a verifier
    reads: that two pairs have other replies, or two conversations without a checkable answer, changes nothing."""
    if isinstance(row, PromptRow):
        return [prompt.messages, prompt.answer, prompt.reference, prompt.category, prompt.harmful]
    return [prompt.messages, prompt.answer, prompt.reference if prompt.answer else ""]
