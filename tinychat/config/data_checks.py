"""Which data a stage can read, and checks of `data=...`. Nothing here imports torch or reads a row."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path

from omegaconf import MISSING

from tinychat.config import plugins
from tinychat.config.corpus_stage import CorpusSource, EvaluationSet, weight_problems
from tinychat.config.rollout_stages import Ptx, RolloutStage
from tinychat.config.schema import DATA, BestOfNConfig, Config, DataConfig
from tinychat.config.specs import Made, spec_of
from tinychat.config.stages import HeldOutSet, MixPart, ReplyEvaluation
from tinychat.errors import UserError
from tinychat.runtime.run_files import at_home


def problems(config: Config) -> Iterator[str]:
    """A line for each problem of config.data, as tinychat.config.checks reports them."""
    data = config.data
    # A corpus of stage.sources is made of those: of data= nothing is read.
    is_read = not (spec_of(config).makes is Made.corpus and config.stage.sources)
    if data.root is not None and not at_home(data.root).is_dir():
        yield f"data.root={data.root}: no such folder (looked from {Path.cwd()})"
        return
    for key in ("path", "val_path"):
        value = getattr(data, key)
        if is_read and value and not _exists(value):
            yield f"data.{key}={value}: no such file or folder (looked from {Path.cwd()})"
    try:
        plugins.use_verifiers(data)
        if data.answer is not None:
            plugins.VERIFIERS.named(data.answer, "data.answer")
        source = plugins.source_of(data)
    except UserError as error:
        yield str(error)
        return
    if is_read and source.needs_path and not data.path:
        yield f"data.path=null: data={data.name} needs a file, folder or glob, as data.path=my_files/"
    if is_read:
        yield from source.problems(data)
    yield from _mix("data.mix", data.mix, plugins.source_of(data).wants)
    yield from _weights(data, source.of_corpus or source.of_parts)
    yield from _root(data)
    yield from _corpus(config)
    if isinstance(data, BestOfNConfig):
        yield from _best_of_n(config, data)
    if isinstance(config.stage, ReplyEvaluation):
        for name, one in config.stage.held_out.items():
            yield from _part(f"stage.held_out.{name}", one, "conversations", "max_rows")
    if isinstance(config.stage, RolloutStage) and config.stage.ptx.source is not None:
        yield from _part("stage.ptx", config.stage.ptx, "conversations", "max_rows")
        yield from _mix("stage.ptx.mix", config.stage.ptx.mix, "conversations")
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


def _best_of_n(config: Config, data: BestOfNConfig) -> Iterator[str]:
    spec = spec_of(config)
    if not (spec.trains and spec.reads == "conversations"):
        yield (
            f"data=best_of_n makes conversations to learn from, which stage={spec.name} does not; use it with "
            f"stage=sft, here data={data.prompts}"
        )
    for key, least in (("samples", 1), ("max_new_tokens", 1), ("batch_size", 1)):
        if getattr(data, key) < least:
            yield f"data.{key}={getattr(data, key)}: must be at least {least}"
    if not 0 < data.temperature < float("inf"):
        yield f"data.temperature={data.temperature}: must be above 0; chance makes replies differ"
    if data.replies is not None and not at_home(data.replies).is_dir():
        yield f"data.replies={data.replies}: no such folder (looked from {Path.cwd()}); null makes the replies"
    try:
        source = plugins.SOURCES.get(data.prompts, "data.prompts")
    except UserError as error:
        yield str(error)
        return
    if data.prompts in DATA:
        yield f"data.prompts={data.prompts}: has no prompts of its own; name the data whose prompts are answered"
        return
    prompts = plugins.prompts_of(data)
    if source.needs_path and not data.path:
        yield f"data.path=null: data.prompts={data.prompts} needs a file, folder or glob, as data.path=my_files/"
    if not plugins.gives(prompts, "prompts"):
        works = ", ".join(plugins.sources_of("prompts"))
        yield f"data.prompts={data.prompts} has {' and '.join(source.has)}, no prompts; use {works}"
    yield from source.problems(prompts)


def _mix(key: str, mix: dict[str, MixPart], wanted: str) -> Iterator[str]:
    for name, part in mix.items():
        if part.path and not _exists(part.path):
            yield f"{key}.{name}.path={part.path}: no such file or folder (looked from {Path.cwd()})"
        try:
            source = plugins.SOURCES.get(part.source, f"{key}.{name}.source")
        except UserError as error:
            yield str(error)
            continue
        if part.source in DATA:
            yield f"{key}.{name}.source={part.source}: no part of others; say data={part.source}, and mix those"
        if source.needs_path and not part.path:
            yield f"{key}.{name}.path=null: {part.source} needs a file, folder or glob"
        if source.of_parts:
            yield f"{key}.{name}.source={part.source}: a mixture itself; name one of its parts"
        elif not plugins.MADE_OF[wanted] & set(source.has):
            works = ", ".join(plugins.sources_of(wanted))
            yield f"{key}.{name}.source={part.source} has no {wanted}; use {works}"
        if part.max_rows is not None and part.max_rows < 1:
            yield f"{key}.{name}.max_rows={part.max_rows}: must be at least 1, or null for all"


def _weights(data: DataConfig, of_several: bool) -> Iterator[str]:
    if data.weights and not of_several:
        yield f"data.weights={dict(data.weights)}: data={data.name} is one source; data=corpus mixes several"
    yield from weight_problems("data.weights", dict(data.weights))


def _root(data: DataConfig) -> Iterator[str]:
    if data.root is not None and data.path is None and not any(part.path for part in data.mix.values()):
        yield f"data.root={data.root}: data={data.name} is none of the public data sets; leave it out"


def _corpus(config: Config) -> Iterator[str]:
    """Of a corpus that is to be made: where its documents come from, and what it is decontaminated against."""
    if spec_of(config).makes is not Made.corpus:
        return
    stage = config.stage
    if not stage.sources and plugins.source_of(config.data).of_corpus:
        yield f"data={config.data.name}: a corpus already; name what it is to be made of: data=text data.path=FILES"
    for name, one in stage.sources.items():
        yield from _part(f"stage.sources.{name}", one, "documents", "max_docs")
    for name, one in stage.decontaminate.sets.items():
        yield from _part(f"stage.decontaminate.sets.{name}", one, None, "max_rows")
    blocklists = {"stage.blocklist": stage.blocklist}
    blocklists |= {
        f"stage.sources.{name}.rules.blocklist": one.rules.get("blocklist") for name, one in stage.sources.items()
    }
    for key, path in blocklists.items():
        if path and not at_home(path).is_file():
            yield f"{key}={path}: no such file (looked from {Path.cwd()})"


def _part(
    key: str, part: CorpusSource | EvaluationSet | HeldOutSet | Ptx, wanted: str | None, most: str
) -> Iterator[str]:
    """wanted: the rows that it must have; None: any. most: the key that bounds what a generator makes."""
    if part.source == MISSING:
        yield f"{key}.source: must be given, as {{source: text, path: FILES}}"
        return
    for name in ("path", "val_path"):
        if (path := getattr(part, name, None)) and not _exists(path):
            yield f"{key}.{name}={path}: no such file or folder (looked from {Path.cwd()})"
    try:
        source = plugins.SOURCES.get(str(part.source), f"{key}.source")
    except UserError as error:
        yield str(error)
        return
    if source.needs_path and not (part.path or getattr(part, "val_path", None)):
        yield f"{key}.path=null: {part.source} needs a file, folder or glob"
    if source.endless and not part.path and getattr(part, most) is None:
        yield f"{key}.{most}=null: {part.source} never ends; say how many, {key}.{most}=1000"
    if wanted and (source.of_corpus or wanted not in source.has):
        own = plugins.SOURCES.own
        works = ", ".join(
            name for name in plugins.sources_of(wanted) if wanted in own[name].has and not own[name].of_corpus
        )
        yield f"{key}.source={part.source} has no {wanted} of its own; use {works}"


def _exists(path: str) -> bool:
    """Whether a path or glob is that of a file or folder."""
    expanded = at_home(path)
    return expanded.exists() or bool(glob.glob(str(expanded)))
