"""Checks over several fields, before anything is allocated, spawned or written.

Each check yields one line: the key, the value found, what would work. All problems are reported together. Nothing here
imports torch; what needs the model, the tokenizer or the device is checked by the stage before it trains.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from pathlib import Path

from tinychat.config import data_checks, deepspeed, launch_checks, plugins, schema, shapes, size_checks
from tinychat.config.rollout_stages import ValueKind
from tinychat.config.schema import Config, Device, OptimKind, Precision
from tinychat.config.specs import Made, Start, spec_of
from tinychat.errors import UserError
from tinychat.runtime.run_files import at_home
from tinychat.runtime.terminal import is_plain

LONGEST_NAME = 200  # bytes; file systems take 255, and names grow by a part or two


def check(config: Config) -> None:
    """Raise one UserError naming every problem of the configuration."""
    # Numbers first: the other checks compute with them.
    problems = list(size_checks.problems(config)) or [line for part in CHECKS for line in part(config)]
    if problems:
        raise UserError("\n       ".join(problems))


def world_size(config: Config) -> int:
    return config.launch.nproc * config.launch.nnodes


def _positive(config: Config) -> Iterator[str]:
    stage = config.stage
    at_least_one = [
        "max_steps",
        "batch_size",
        "micro_batch_size",
        "log_every",
        "eval_batch_size",
        "sample_tokens",
        "eval_rows",
        "generate_rows",
        "generate_tokens",
        "generate_batch_size",
        "rollout_size",
        "rollout_batch_size",
        "response_length",
        "epochs",
        "eval_pairs",
        "eval_prompts",
        "head_layer",
        "safety_tokens",
    ]
    not_negative = [
        "warmup_steps",
        "eval_every",
        "grad_clip",
        "lr",
        "min_lr_ratio",
        "safety_prompts",
        "train_last_layers",
    ]
    for key in at_least_one:
        value = getattr(stage, key, None)
        if value is not None and value < 1:
            yield f"stage.{key}={value}: must be at least 1"
    for key in not_negative:
        value = getattr(stage, key, None)
        if value is not None and value < 0:
            yield f"stage.{key}={value}: must not be negative"
    for key in ("context_length", "eval_tokens"):
        value = getattr(stage, key, None)
        if value is not None and value < 2:
            yield f"stage.{key}={value}: must be at least 2"
    for name, value in (
        ("checkpoint.every", config.checkpoint.every),
        ("checkpoint.keep_best", config.checkpoint.keep_best),
    ):
        if value < 0:
            yield f"{name}={value}: must not be negative"
    if config.checkpoint.keep_last < 1:
        yield f"checkpoint.keep_last={config.checkpoint.keep_last}: must be at least 1, or nothing could be resumed"
    if config.resume not in ("never", "auto") and not Path(config.resume).is_dir():
        yield f"resume={config.resume}: neither never, auto nor a run folder"


def _names(config: Config) -> Iterator[str]:
    names = {"experiment_name": config.experiment_name, "run_name": config.run_name}
    if config.sweep is not None:
        names["sweep.study"] = config.sweep.study
    for key, name in names.items():
        if name is not None:
            yield from plain_name(key, name)
    folders = {"paths.outputs": config.paths.outputs, "paths.cache": config.paths.cache}
    for key, path in folders.items():
        if not path.strip():
            yield f"{key}={path!r}: a folder, as {key}=outputs"
    for key, path in {**folders, "run_dir": config.run_dir or ""}.items():
        if not is_plain(path):
            yield f"{key}={path!r}: control characters in a folder's name; use letters, digits and signs"
    if config.run_dir is not None and not config.run_dir.strip():
        yield "run_dir='': a folder, or null for a new one under paths.outputs"


def plain_name(key: str, name: str) -> Iterator[str]:
    """A line where a name could not be that of a folder, or would act on a terminal or in a script."""
    if not name.strip() or "/" in name or name.startswith("."):
        yield f"{key}={name!r}: must be a plain folder name"
    elif not is_plain(name):
        yield f"{key}={name!r}: control characters in a name; use letters, digits and signs"
    elif len(name.encode()) > LONGEST_NAME:
        yield f"{key}={name[:20]}...: {len(name.encode())} bytes; a folder's name has at most {LONGEST_NAME}"


def _stage(config: Config) -> Iterator[str]:
    yield from config.stage.problems(world_size(config))


def _model(config: Config) -> Iterator[str]:
    model, stage, spec = config.model, config.stage, spec_of(config)
    shape, own_start = shapes.shape_of(model), spec.trains and spec.start is Start.optional
    if shape.from_weights and not model.path and config.init_from is None and own_start:
        yield "model.path=null: model=pretrained needs a folder, GGUF file or hub id, as model.path=FOLDER"
    if shape.from_weights and _is_missing(model.path):
        yield f"model.path={model.path}: no such file or folder"
    yield from shapes.problems(model)
    if model.options and not shape.own_code:
        yield f"model.options={dict(model.options)}: only for a class of your own (model=custom); remove it"
    if not 0 <= model.dropout < 1:
        yield f"model.dropout={model.dropout}: at least 0 and below 1"
    if model.rope_theta is not None and model.rope_theta <= 0:
        yield f"model.rope_theta={model.rope_theta}: must be above 0"
    wanted = getattr(stage, "context_length", None)
    if wanted and model.context_length and config.init_from is None and wanted > model.context_length:
        yield (
            f"stage.context_length={wanted} is longer than the model's: model.context_length={model.context_length}; "
            "lower the first or raise the second"
        )


def _tokenizer(config: Config) -> Iterator[str]:
    tokenizer = config.tokenizer
    if _is_missing(tokenizer.path) and tokenizer.path != config.model.path:
        yield f"tokenizer.path={tokenizer.path}: no such file or folder"
    reads = spec_of(config).has_model and config.init_from is None and not shapes.shape_of(config.model).from_weights
    if tokenizer.kind is schema.TokenizerKind.pretrained and tokenizer.path is None and reads:
        yield f"tokenizer.path=null: tokenizer={tokenizer.name} needs a folder or hub id, as tokenizer.path=FOLDER"
    if spec_of(config).makes is Made.tokenizer and tokenizer.kind is not schema.TokenizerKind.bpe:
        yield (
            f"stage={config.stage.name} trains a byte-level BPE; tokenizer={tokenizer.name} is not trained, use "
            "tokenizer=bpe"
        )


def _is_missing(path: str | None) -> bool:
    """Whether it can be nothing but a path, and there is nothing."""
    return path is not None and path.startswith((".", "/", "~")) and not at_home(path).exists()


def _rewards(config: Config) -> Iterator[str]:
    parts = config.reward.parts
    if not plugins.rewarded(config):
        return
    if not parts:
        yield "reward.parts={}: at least one part; reward=model takes the newest reward model"
    for name, part in parts.items():
        try:
            kind = plugins.reward_kind(name, part)
        except UserError as error:
            yield str(error)
            continue
        yield from kind.problems(f"reward.parts.{name}", part)
        if part.cost and config.reward.cost_limit is None:
            yield (
                f"reward.parts.{name}.cost=true: reward={config.reward.name} has no limit for a cost; give "
                "reward.cost_limit and reward.multiplier, as reward=lagrangian does"
            )
        if kind.needs_oracle and not _has_oracle(config):
            yield f"reward.parts.{name}: the oracle knows only tinyworld's requests; use data=tinyworld or reward=model"


def _constraint(config: Config) -> Iterator[str]:
    """Of a reward under a constraint, and of parts that score some prompts alone."""
    reward, parts = config.reward, config.reward.parts
    if not plugins.rewarded(config):
        return
    limit, its = reward.cost_limit, reward.multiplier
    if limit is not None and not any(part.cost for part in parts.values()):
        yield (
            f"reward.cost_limit={limit:g}: no part of reward={reward.name} is a cost; take reward=lagrangian with "
            "reward.parts.cost.path=FOLDER, a reward model trained on safety, or leave it out"
        )
    if limit is not None and its is None:
        yield f"reward.cost_limit={limit:g}: needs reward.multiplier, as reward=lagrangian has it"
    if its is not None:
        for key in ("start", "rate", "max"):
            if not 0 < (value := getattr(its, key)) < math.inf:
                yield f"reward.multiplier.{key}={value}: a number above 0"
        if its.start > its.max:
            yield f"reward.multiplier.start={its.start:g}: at most reward.multiplier.max={its.max:g}"
        if limit is None:
            yield "reward.multiplier: needs reward.cost_limit, a mean cost such as 0.0 that it keeps replies below"
    if limit is not None and getattr(config.stage, "normalise_parts", False):
        yield "stage.normalise_parts=true: costs are weighed by their multiplier; use reward.normalise=true"
    yield from _kinds(config)


def _kinds(config: Config) -> Iterator[str]:
    """A line for each problem of the kinds of prompt that parts of the reward are for."""
    parts = config.reward.parts
    of_parts = {name: list(part.kinds) for name, part in parts.items() if part.kinds}
    for name, kinds in of_parts.items():
        if wrong := next((kind for kind in kinds if kind not in schema.PROMPT_KINDS), None):
            yield f"reward.parts.{name}.kinds: {wrong}: no kind of prompt; there are {', '.join(schema.PROMPT_KINDS)}"
    if of_parts and not _has_kinds(config):
        name, kinds = next(iter(of_parts.items()))
        yield (
            f"reward.parts.{name}.kinds=[{', '.join(kinds)}]: the prompts of data={config.data.name} have no kind; use "
            "data=safe_and_helpful, or another reward"
        )
    scored = {kind for part in parts.values() for kind in part.kinds or schema.PROMPT_KINDS}
    for kind in [kind for kind in schema.PROMPT_KINDS if kind not in scored]:
        yield f"reward.parts: none scores replies to {kind} prompts; give one kinds=[{kind}], or none"


def _template(config: Config) -> Iterator[str]:
    name, path = config.template.name, config.template.path
    ours = [*plugins.TEMPLATES.names(), plugins.OWN_TEMPLATE]
    if path is None:
        if name not in ours:
            near = difflib.get_close_matches(name, ours, n=1)
            hint = f". Did you mean template={near[0]}?" if near else ""
            there = f"there are {', '.join(ours)}; template=jinja takes a file of yours"
            yield f"template.name={name}: no such chat template; {there}{hint}"
    elif name in ours:
        yield f"template.path={path}: the name {name} is taken by tinychat's own; template=jinja template.path={path}"
    elif not at_home(path).is_file():
        yield f"template.path={path}: no such file (looked from {Path.cwd()})"
    else:
        yield from _jinja(path)


def _jinja(path: str) -> Iterator[str]:
    """What a template's file lacks; that it can be used is found out where the tokenizer is."""
    from jinja2 import Environment, TemplateSyntaxError

    try:
        text = at_home(path).read_text("utf-8")
        # The marks of trained replies are an extension of transformers, which is not loaded here.
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", text))
        if not text.strip():
            yield f"template.path={path}: the file is empty"
    except TemplateSyntaxError as error:
        yield f"template.path={path}: {path}, line {error.lineno}: {error.message}"
    except (OSError, UnicodeDecodeError) as error:
        yield f"template.path={path}: cannot be read ({error})"


def _has_kinds(config: Config) -> bool:
    try:
        source = plugins.source_of(config.data)
        return bool(source.of_parts and "prompts" in source.has)
    except UserError:  # which data_checks tell
        return True


def _has_oracle(config: Config) -> bool:
    data = plugins.prompts_of(config.data) if isinstance(config.data, schema.BestOfNConfig) else config.data
    try:
        return plugins.source_of(data).has_oracle
    except UserError:  # which data_checks tell
        return True


def _peft(config: Config) -> Iterator[str]:
    peft, spec = config.peft, spec_of(config)
    if peft.kind is schema.PeftKind.none:
        if spec.value and config.stage.value is ValueKind.adapter:
            yield (
                f"stage.value=adapter: peft={peft.name} trains all weights, so there is no frozen base for a second "
                "adapter; use peft=lora or qlora, or stage.value=own or shared"
            )
        return
    if not spec.adapters:
        measures = "measures a checkpoint as it is, an adapter's too"
        does = (
            measures if spec.has_model and not spec.trains else "trains all weights" if spec.trains else "has no model"
        )
        yield f"peft={peft.name}: stage={spec.name} {does}; use peft=none"
        return
    if peft.r is None or peft.r < 1:
        yield f"peft.r={peft.r}: the rank of an adapter, at least 1"
    if peft.alpha is None or peft.alpha <= 0:
        yield f"peft.alpha={peft.alpha}: more than 0"
    if peft.dropout is None or not 0 <= peft.dropout < 1:
        yield f"peft.dropout={peft.dropout}: at least 0 and below 1"
    if peft.targets is not None and not peft.targets:
        yield "peft.targets=[]: names of linear layers, or null for those of the architecture"
    stage = config.ds.config.get("zero_optimization", {}).get("stage", 0) if config.ds.enabled else 0
    if peft.kind is schema.PeftKind.qlora and stage == 3:
        yield "peft=qlora does not work with ZeRO stage 3, which would split packed 4-bit weights; use ds=zero2 or none"


def _optim(config: Config) -> Iterator[str]:
    optim = config.optim
    if len(optim.betas) != 2 or not all(0 <= beta < 1 for beta in optim.betas):
        yield f"optim.betas={list(optim.betas)}: two numbers, each at least 0 and below 1"
    if optim.kind is OptimKind.muon and None in (
        optim.muon_lr_ratio,
        optim.muon_momentum,
        optim.muon_ns_steps,
    ):
        yield "optim.kind=muon needs optim.muon_lr_ratio, muon_momentum and muon_ns_steps; optim=muon sets them"


def _device(config: Config) -> Iterator[str]:
    if config.device is Device.cpu and config.precision is Precision.fp16:
        yield "precision=fp16 does not work on the CPU; use precision=bf16 or fp32"


def _deepspeed(config: Config) -> Iterator[str]:
    if config.ds.enabled:
        yield from deepspeed.problems(config.ds.config, config.optim.kind is OptimKind.muon)
    elif config.ds.config:
        yield f"ds=none takes no DeepSpeed keys, found ds.config.{next(iter(config.ds.config))}; pick ds=zero0..zero3"


CHECKS = (
    _names,
    _positive,
    _stage,
    _model,
    _tokenizer,
    data_checks.problems,
    _template,
    _rewards,
    _constraint,
    _peft,
    _optim,
    launch_checks.problems,
    _device,
    _deepspeed,
)
