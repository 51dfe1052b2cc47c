"""The estimate of one job: its models, how they are split, what passes through them, and what would make it fit."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from tinychat.config import checks, plugins
from tinychat.config.schema import BestOfNConfig, Config, OptimKind, Precision, TokenizerKind
from tinychat.config.shapes import shape_of
from tinychat.config.specs import SPECS, spec_of
from tinychat.engine.base import DTYPES, resolve_precision
from tinychat.errors import UserError
from tinychat.models import custom
from tinychat.models.build import describe_shape, hf_config, model_vocab_size
from tinychat.models.checkpoints import load_config, pretrained_path
from tinychat.models.kernels.head_loss import elements_at_once
from tinychat.plan.memory import (
    BEFORE,
    Hardware,
    Memory,
    Split,
    Work,
    answering,
    hardware,
    measuring_seconds,
    memory,
    sampling_seconds,
    update_seconds,
    weight_bytes,
)
from tinychat.plan.models import TEACHER, ModelPlan, Numbers, answering_models, stage_models
from tinychat.runs import parents
from tinychat.runtime.run_files import at_home
from tinychat.text.tokenizer import load_tokenizer, vocabulary_size

PROMPTS = 1000  # that data=best_of_n answers, where data.max_rows=null takes all there are
GPT2_ENTRIES = 50_257 + 4  # with padding and chat tokens


@dataclass
class Plan:
    """The estimate of one job."""

    config: Config
    hardware: Hardware
    dtype: torch.dtype
    models: list[ModelPlan]
    split: Split
    work: Work
    memory: Memory
    seconds: dict[str, float]  # of a step (PPO: a rollout and its updates) by what takes them
    assumed: list[str] = field(default_factory=list)
    once: dict[str, float] = field(default_factory=dict)  # seconds before the first step

    @property
    def needed(self) -> float:
        """Bytes on the device; on a CPU what is offloaded lies there too."""
        return self.memory.peak + self.hardware.taken + (self.memory.host if self.hardware.on_cpu else 0.0)

    @property
    def fits(self) -> bool:
        return self.needed <= self.hardware.memory


def estimate(config: Config) -> Plan:
    """Raises UserError for a stage that trains no model, an unknown device, a precision that it does not have, and a
    model that cannot be read."""
    if not spec_of(config).trains:
        able = ", ".join(spec.name for spec in SPECS.values() if spec.trains)
        raise UserError(f"plan={config.plan}: stage={config.stage.name} trains no model; there are {able}")
    custom.use(config.model)
    device = hardware(config)
    dtype = _arithmetic(config, device)
    shape, assumed = model_shape(config)
    assumed += teacher_shape(config)[1]
    return _estimate(config, device, dtype, shape, assumed, {})


def _estimate(
    config: Config, device: Hardware, dtype: torch.dtype, shape: Any, assumed: list[str], known: dict[Any, Any]
) -> Plan:
    """known: models of earlier calls, by the type of their weights."""
    stored = dtype if config.ds.enabled else torch.float32
    length = _length(config, shape)
    if stored not in known:
        numbers, taught = Numbers(stored, dtype, device.on_cpu), getattr(config.stage, "teacher", None) is not None
        teacher = teacher_shape(config)[0] or copy.deepcopy(shape) if taught else None
        known[stored] = stage_models(config, copy.deepcopy(shape), length, numbers, teacher)
    models, split, work = known[stored], split_of(config, known[stored], device), work_of(config, length, device.on_cpu)
    muon = config.optim.kind is OptimKind.muon
    found = memory(models, split, work, stored.itemsize, dtype.itemsize, muon)
    seconds = step_seconds(config, models, split, work, stored.itemsize, dtype, device)
    plan = Plan(config, device, dtype, models, split, work, found, seconds, assumed)
    if isinstance(config.data, BestOfNConfig) and plugins.makes_replies(config):
        if BEFORE not in known:
            known[BEFORE] = answering_models(
                config, copy.deepcopy(shape), length, Numbers(torch.float32, dtype, device.on_cpu)
            )
        _add_replies(plan, config.data, known[BEFORE], length)
    return plan


def _add_replies(plan: Plan, data: BestOfNConfig, models: list[ModelPlan], length: int) -> None:
    """What data=best_of_n takes before the first step: replies of a policy to its prompts, and their scores."""
    device, ranks = plan.hardware, plan.split.ranks
    response = min(data.max_new_tokens, length - 1)
    work = replace(plan.work, rows=data.batch_size, length=length, targets=1, sampled_rows=data.batch_size)
    work = replace(work, group=data.samples, prompt=length - response, response=response)
    start = weight_bytes(plan.models[0], 4) if device.on_cpu else 0.0
    size = plan.dtype.itemsize
    plan.memory.items.extend(answering(models[0], models[1:], start, work, size))
    prompts = data.max_rows or PROMPTS
    if not plugins.gives(plugins.prompts_of(data), "conversations"):  # held-out ones are answered too
        prompts += data.max_val_rows or 0
    replies, rate = -(-prompts // ranks) * data.samples, device.peak(plan.dtype) * device.mfu
    seconds = sampling_seconds(models[0], replies, work, size, device, rate)
    seconds += measuring_seconds(models[1:], replies, work, rate)
    plan.once[f"{data.samples} replies each to {prompts:,} prompts"] = seconds


def _arithmetic(config: Config, device: Hardware) -> torch.dtype:
    if not device.on_cpu:
        return torch.bfloat16 if config.precision is Precision.auto else DTYPES[config.precision]
    if config.precision is Precision.fp16:
        raise UserError(
            f"plan={config.plan}: precision=fp16 does not work on a CPU, which is what this would train on; name the "
            "device, as plan=3090 or plan=h200"
        )
    return resolve_precision(config.precision, torch.device("cpu"))


# ------------------------------------------------------------------------------------------------- what is planned


def model_shape(config: Config) -> tuple[Any, list[str]]:
    """The transformers configuration of the stage's models, and what was assumed to find it."""
    student = copy.deepcopy(config)
    if hasattr(student.stage, "teacher"):
        student.stage.teacher = None  # which may be missing where the others are there
    try:
        found = parents.find_parents(student)
    except UserError:
        found = {"init_from": None, "tokenizer": None}
    start = found["init_from"]
    if start is None and shape_of(config.model).from_weights:
        start = pretrained_path(config.model)
    if start:
        shape = load_config(start)
        return shape, [f"every model has the shape of {start}: {describe_shape(shape)}"]
    entries, whence = _entries(config, found["tokenizer"])
    size = model_vocab_size(config.model, entries)
    assumed = [f"vocabulary: {size:,} rows for {whence}"]
    if config.init_from:
        assumed.insert(
            0, f"init_from={config.init_from}: no checkpoint of it yet; every model is model={config.model.name}"
        )
    return hf_config(config.model, size, pad_token_id=0, eos_token_id=0), assumed


def teacher_shape(config: Config) -> tuple[Any | None, list[str]]:
    """The transformers configuration of a teacher, None where there is none yet, and what was assumed."""
    if (named := getattr(config.stage, "teacher", None)) is None:
        return None, []
    own = ["sampling the student's own replies is not in the time"] if config.stage.on_policy else []
    try:
        path = parents.find_teacher(config)
    except UserError:
        return None, [f"stage.teacher={named}: no checkpoint of it yet; it has the student's shape", *own]
    return load_config(path), [f"the teacher has the shape of {path}", *own]


def _entries(config: Config, folder: str | None) -> tuple[int, str]:
    """The tokenizer's entries, and where the number is from."""
    tokenizer = config.tokenizer
    where = folder or tokenizer.path
    if where and at_home(where).is_dir():
        return vocabulary_size(load_tokenizer(tokenizer, where)), f"the tokenizer in {where}"
    if tokenizer.kind is TokenizerKind.bpe and tokenizer.vocab_size:
        return tokenizer.vocab_size, f"tokenizer.vocab_size={tokenizer.vocab_size}"
    if tokenizer.kind is TokenizerKind.gpt2:
        return GPT2_ENTRIES, "GPT-2's tokenizer"
    return vocabulary_size(load_tokenizer(tokenizer)), f"tokenizer.path={tokenizer.path}"


def _length(config: Config, shape: Any) -> int:
    wanted = config.stage.context_length
    most = int(shape.max_position_embeddings)
    if wanted and wanted > most:
        raise UserError(f"stage.context_length={wanted} is longer than the model's {most}; lower it to at most {most}")
    return wanted or most


def split_of(config: Config, models: list[ModelPlan], device: Hardware) -> Split:
    """How DeepSpeed would split it; its defaults are those of deepspeed/runtime/zero/config.py."""
    zero = config.ds.config.get("zero_optimization", {}) if config.ds.enabled else {}
    stage = zero.get("stage", 0) if config.ds.enabled else None

    def offload(key: str) -> bool:
        return (zero.get(key) or {}).get("device", "none") != "none"

    bucket = float(zero.get("reduce_bucket_size", 5e8))
    if device.on_cpu:  # memory that is never written to is not taken
        bucket = min(bucket, float(sum(model.trained for model in models)))
    buckets = 2 if zero.get("overlap_comm", False) and stage == 2 else 1
    live = float(zero.get("stage3_max_live_parameters", zero.get("max_live_parameters", 1e9)))
    ranks = checks.world_size(config)
    return Split(ranks, stage, offload("offload_optimizer"), offload("offload_param"), bucket, buckets, live)


def work_of(config: Config, length: int, on_cpu: bool) -> Work:
    stage, ranks, spec = config.stage, checks.world_size(config), spec_of(config)
    rows = stage.per_forward(ranks)
    accumulation = stage.grad_accum_steps(ranks)
    more: dict[str, int] = {}
    rows, eval_rows = spec.sequences * rows, spec.sequences * stage.eval_batch_size
    targets = 0 if spec.scores else length
    exact = spec.reference  # what is compared with a reference are the log-probabilities of single tokens
    if spec.rollouts:
        targets = min(stage.response_length, length - 1)
        measured = min(stage.rollout_batch_size, max(1, stage.rollout_size // ranks))
        more = {"sampled_rows": measured, "measured_rows": measured, "kl_elements": elements_at_once(on_cpu)}
        more |= {"prompt": length - targets, "response": targets, "group": getattr(stage, "group_size", 1)}
    elif spec.answers:
        response = min(stage.generate_tokens, length - 1)
        more = {"sampled_rows": stage.generate_batch_size, "prompt": length - response, "response": response}
    if spec.reference and not spec.rollouts:  # before the first step the policy is asked as its own reference
        more["measured_rows"] = eval_rows
    checkpointing = stage.activation_checkpointing
    return Work(rows, accumulation, length, targets, exact, checkpointing, eval_rows, **more)


def step_seconds(
    config: Config,
    models: list[ModelPlan],
    split: Split,
    work: Work,
    stored: int,
    dtype: torch.dtype,
    device: Hardware,
) -> dict[str, float]:
    rate = device.peak(dtype) * device.mfu
    update = update_seconds(models, split, work, stored, device, rate)
    stage, spec = config.stage, spec_of(config)
    if spec.reference and not spec.rollouts:
        # Of as many pairs as a step has: each is asked about once, however many epochs there are.
        return update | {"reference, once": measuring_seconds(models[:1], work.rows * work.accumulation, work, rate)}
    if teachers := [model for model in models if model.name == TEACHER]:
        update |= {"teacher": measuring_seconds(teachers, work.rows * work.accumulation, work, rate)}
    if not spec.rollouts:
        return update
    replies, updates = stage.rollout_size // split.ranks, stage.epochs * stage.rollout_size // stage.batch_size
    found = {"sampling": sampling_seconds(models[0], replies, work, dtype.itemsize, device, rate)}
    found["measuring and scoring"] = measuring_seconds(models, replies, work, rate)
    return found | {f"updates: {name}": seconds * updates for name, seconds in update.items()}


# ------------------------------------------------------------------------------------------------------- what to try

MOST_REMEDIES = 3


def remedies(plan: Plan) -> list[tuple[str, Plan]]:
    """Changes that make the plan fit, each with the plan it gives; the least first."""
    shape = model_shape(plan.config)[0]
    known: dict[Any, Any] = {}
    found: list[tuple[str, Plan]] = []
    for words, change in _changes(plan.config):
        config = copy.deepcopy(plan.config)
        change(config)
        try:
            checks.check(config)
        except UserError:
            continue
        other = _estimate(config, plan.hardware, plan.dtype, shape, [], known)
        if other.fits:
            found.append((words, other))
        if len(found) == MOST_REMEDIES:
            break
    return found


def _changes(config: Config) -> Iterator[tuple[str, Callable[[Config], None]]]:
    """(overrides, the same on a configuration): smaller passes, then ZeRO, then both."""
    stages = [("zero2", 2, 0), ("zero2_offload", 2, 1), ("zero3", 3, 0), ("zero3_offload", 3, 2)]
    splits = [to for to in stages if to[0] != config.ds.name]
    passes = _smaller_passes(config)
    for words, values in passes:
        yield words, functools.partial(_change, values=values)
    for to in splits:
        yield f"ds={to[0]}", functools.partial(_change, ds=to)
    for words, values in passes[-1:]:
        for to in splits:
            yield f"{words} ds={to[0]}", functools.partial(_change, values=values, ds=to)


def _smaller_passes(config: Config) -> list[tuple[str, dict[str, Any]]]:
    """Halved numbers of sequences that pass at a time, and activation checkpointing, each beyond the one before."""
    names = ("micro_batch_size", "eval_batch_size", "rollout_batch_size", "generate_batch_size")
    sizes = {name: getattr(config.stage, name) for name in names if hasattr(config.stage, name)}
    found: list[tuple[str, dict[str, Any]]] = []
    values: dict[str, Any] = {}
    if not config.stage.activation_checkpointing:
        found.append(("stage.activation_checkpointing=true", {"activation_checkpointing": True}))
    while max(sizes.values()) > 1:
        largest = max(sizes.values())
        sizes = {
            name: max(1, size // 2) if size == largest or name == "micro_batch_size" else size
            for name, size in sizes.items()
        }
        values = {name: size for name, size in sizes.items() if size != getattr(config.stage, name)}
        found.append((" ".join(f"stage.{name}={size}" for name, size in values.items()), dict(values)))
    if values and not config.stage.activation_checkpointing:
        words = " ".join(f"stage.{name}={size}" for name, size in values.items())
        found.append((f"{words} stage.activation_checkpointing=true", values | {"activation_checkpointing": True}))
    return found


def _change(config: Config, values: dict[str, Any] | None = None, ds: tuple[str, int, int] | None = None) -> None:
    """values: of `stage`; ds: (name, ZeRO's stage, how many of optimizer and weights are offloaded)."""
    for name, value in (values or {}).items():
        setattr(config.stage, name, value)
    if ds is not None:
        name, stage, offloaded = ds
        zero: dict[str, Any] = {"stage": stage}
        zero |= {key: {"device": "cpu"} for key in ("offload_optimizer", "offload_param")[:offloaded]}
        config.ds.name, config.ds.enabled, config.ds.config = name, True, {"zero_optimization": zero}
