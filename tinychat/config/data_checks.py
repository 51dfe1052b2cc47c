"""Which data a stage can read, and checks of `data=...`. Nothing here imports torch or reads a row."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path

from tinychat.config.schema import Config, DataConfig, Source
from tinychat.config.specs import Rows, spec_of
from tinychat.runtime.run_files import at_home

_OWN_CHATS = (Source.alpaca, Source.minimind_sft, Source.chat)
_OWN_PAIRS = (
    Source.pku_saferlhf,
    Source.hh_rlhf,
    Source.minimind_dpo,
    Source.preference,
)
_NEED_PATH = (Source.text, Source.chat, Source.preference, Source.prompts)
# Which sources have what a stage reads.
SOURCES_OF: dict[Rows, tuple[Source, ...]] = {
    "documents": (Source.tinyworld, Source.tinystories, Source.text),
    "conversations": (Source.tinyworld, *_OWN_CHATS, *_OWN_PAIRS),  # of pairs: the chosen replies
    "preferences": (Source.tinyworld, *_OWN_PAIRS),
    "prompts": (Source.tinyworld, *_OWN_PAIRS, *_OWN_CHATS, Source.prompts),
}


def problems(config: Config) -> Iterator[str]:
    """A line for each problem of config.data, as tinychat.config.checks reports them."""
    data = config.data
    for key in ("path", "val_path"):
        value = getattr(data, key)
        if value and not _exists(value):
            yield f"data.{key}={value}: no such file or folder (looked from {Path.cwd()})"
    if data.source in _NEED_PATH and not data.path:
        yield f"data.path=null: data={data.name} needs a file, folder or glob, as data.path=my_files/"
    yield from _mix(data)
    wanted = spec_of(config).reads
    if wanted and data.source not in SOURCES_OF[wanted]:
        works = ", ".join(source.value for source in SOURCES_OF[wanted])
        yield f"data={data.name} has no {wanted}, which stage={config.stage.name} takes; use data={works}"
    if not 0 <= data.val_fraction <= 0.5:
        yield f"data.val_fraction={data.val_fraction}: at least 0 and at most 0.5"
    if not 0 <= data.judge_fraction < 1:
        yield f"data.judge_fraction={data.judge_fraction}: at least 0 and below 1, such as 0.3"
    if data.lessons < 0:
        yield f"data.lessons={data.lessons}: 0 or more lessons for each story"
    for key in ("demonstrations", "unsafe_demonstrations"):
        value = getattr(data, key)
        if not 0 <= value <= 1:
            yield f"data.{key}={value}: a share, at least 0 and at most 1"
    for key in ("max_docs", "max_val_docs", "max_rows", "max_val_rows"):
        value = getattr(data, key)
        if value is not None and value < 1:
            yield f"data.{key}={value}: must be at least 1"


def _mix(data: DataConfig) -> Iterator[str]:
    for name, part in data.mix.items():
        if part.path and not _exists(part.path):
            yield f"data.mix.{name}.path={part.path}: no such file or folder (looked from {Path.cwd()})"
        if part.source in _NEED_PATH and not part.path:
            yield f"data.mix.{name}.path=null: {part.source.value} needs a file, folder or glob"
        if part.source not in SOURCES_OF["conversations"]:
            works = ", ".join(source.value for source in SOURCES_OF["conversations"])
            yield f"data.mix.{name}.source={part.source.value} has no conversations; use {works}"
        if part.max_rows is not None and part.max_rows < 1:
            yield f"data.mix.{name}.max_rows={part.max_rows}: must be at least 1, or null for all"


def _exists(path: str) -> bool:
    """Whether a path or glob is that of a file or folder."""
    expanded = at_home(path)
    return expanded.exists() or bool(glob.glob(str(expanded)))
