"""Which data a stage can read, and checks of `data=...`. Nothing here imports torch or reads a row."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path

from tinychat.config import plugins
from tinychat.config.schema import Config, DataConfig
from tinychat.config.specs import spec_of
from tinychat.errors import UserError
from tinychat.runtime.run_files import at_home


def problems(config: Config) -> Iterator[str]:
    """A line for each problem of config.data, as tinychat.config.checks reports them."""
    data = config.data
    for key in ("path", "val_path"):
        value = getattr(data, key)
        if value and not _exists(value):
            yield f"data.{key}={value}: no such file or folder (looked from {Path.cwd()})"
    try:
        plugins.use_verifiers(data)
        if data.answer is not None:
            plugins.VERIFIERS.named(data.answer, "data.answer")
        source = plugins.source_of(data)
    except UserError as error:
        yield str(error)
        return
    if source.needs_path and not data.path:
        yield f"data.path=null: data={data.name} needs a file, folder or glob, as data.path=my_files/"
    yield from source.problems(data)
    yield from _mix(data)
    wanted = spec_of(config).reads
    if wanted and not plugins.gives(data, wanted):
        works = ", ".join(plugins.sources_of(wanted))
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
    for key in ("verifier_seconds", "verifier_memory_mb"):
        if getattr(data, key) <= 0:
            yield f"data.{key}={getattr(data, key)}: above 0"
    for key in ("max_docs", "max_val_docs", "max_rows", "max_val_rows"):
        value = getattr(data, key)
        if value is not None and value < 1:
            yield f"data.{key}={value}: must be at least 1"


def _mix(data: DataConfig) -> Iterator[str]:
    for name, part in data.mix.items():
        if part.path and not _exists(part.path):
            yield f"data.mix.{name}.path={part.path}: no such file or folder (looked from {Path.cwd()})"
        try:
            source = plugins.SOURCES.get(part.source, f"data.mix.{name}.source")
        except UserError as error:
            yield str(error)
            continue
        if source.needs_path and not part.path:
            yield f"data.mix.{name}.path=null: {part.source} needs a file, folder or glob"
        if not plugins.MADE_OF["conversations"] & set(source.has):
            works = ", ".join(plugins.sources_of("conversations"))
            yield f"data.mix.{name}.source={part.source} has no conversations; use {works}"
        if part.max_rows is not None and part.max_rows < 1:
            yield f"data.mix.{name}.max_rows={part.max_rows}: must be at least 1, or null for all"


def _exists(path: str) -> bool:
    """Whether a path or glob is that of a file or folder."""
    expanded = at_home(path)
    return expanded.exists() or bool(glob.glob(str(expanded)))
