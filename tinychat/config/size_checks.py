"""Checks of every number: finite, within 64 bits, and no job that this machine's memory could never hold.

What is computed here is the least that a job takes, from the configuration alone; `plan=true` says what it will take.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import psutil

from tinychat.config import plugins, shapes
from tinychat.config.schema import Config, Device, LaunchKind, OptimKind, PeftKind
from tinychat.config.specs import spec_of
from tinychat.errors import UserError

GB = 1e9
LAYER_OBJECTS = 20_000  # bytes of Python objects that a layer takes at least, also where its weights take none
RANK = 0.2 * GB  # of a process that has imported torch
# The largest value that means something: beyond it a job never ends or a library's own integers overflow.
MOST = {
    "seed": 2**63 - 1,
    "data.seed": 2**63 - 1,
    "sweep.seed": 2**32 - 1,
    "stage.max_steps": 10**9,
    "stage.epochs": 10**4,
    "stage.batch_size": 10**9,
    "stage.rollout_size": 10**9,
    "model.n_layer": 10**4,
    "model.n_embd": 10**7,
    "model.n_inner": 10**8,
    "model.context_length": 10**9,
    "model.vocab_size": 10**9,
    "tokenizer.vocab_size": 10**7,
    "peft.r": 10**6,
    "launch.timeout_minutes": 10**7,
    "sweep.n_trials": 10**7,
}
_SEEDS = ("seed", "data.seed", "sweep.seed")
_RANKS = ("launch.nproc", "launch.nnodes")  # by which batches are divided
GENERATED = 10**8  # documents or rows of tinyworld, some 50 GB


def problems(config: Config) -> Iterator[str]:
    """A line for each number that is none or too large, as tinychat.config.checks reports them."""
    numbers = dict(_numbers(config))
    wrong = False
    for key, value in numbers.items():
        most = MOST.get(key, 2**63 - 1)
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{key}={value}: must be a finite number"
        elif value > most or value < -(2**63):
            yield f"{key}={_short(value)}: must be at most {_short(most)}" if value > 0 else f"{key}={_short(value)}"
        elif key in _SEEDS and value < 0:
            yield f"{key}={value}: must not be negative"
        elif key in _RANKS and value < 1:
            yield f"{key}={value}: must be at least 1"
        else:
            continue
        wrong = True
    if wrong:  # the rest computes with them
        return
    yield from _generated(config)
    if config.launch.kind is not LaunchKind.slurm and not config.launch.dry_run:
        yield from _memory(config)


def _numbers(tree: Any, prefix: str = "") -> Iterator[tuple[str, int | float]]:
    """Every number of a configuration with its key."""
    if is_dataclass(tree):
        tree = {field.name: getattr(tree, field.name) for field in fields(tree)}
    elif isinstance(tree, (list, tuple)):
        tree = dict(enumerate(tree))
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _numbers(value, f"{prefix}{key}.")
    elif isinstance(tree, (int, float)) and not isinstance(tree, bool):
        yield prefix[:-1], tree


def _short(number: int | float) -> str:
    """1000000 as it is, longer ones as a power of ten."""
    text = str(number) if isinstance(number, int) else f"{number:g}"
    return text if len(text) <= 20 else f"{text[:3]}... ({len(text)} digits)"


def _generated(config: Config) -> Iterator[str]:
    """Of a source that makes as many documents as it is asked for."""
    data = config.data
    try:
        if not plugins.source_of(data).endless:
            return
    except UserError:  # which data_checks tell
        return
    for key in ("max_docs", "max_val_docs", "max_rows", "max_val_rows"):
        count = getattr(data, key) or 0
        count *= 1 + max(0.0, data.lessons) if key == "max_docs" else 1
        if count > GENERATED:
            more = f" data.lessons={data.lessons:g}" if key == "max_docs" and data.lessons else ""
            yield f"data.{key}={getattr(data, key)}{more}: {data.source} makes at most {GENERATED:,} documents or rows"


def machine_memory() -> float:
    """Bytes that this machine, or the container that this process is in, may use."""
    found = float(psutil.virtual_memory().total)
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found = min(found, float(Path(path).read_text()))
        except (OSError, ValueError):  # no such file; "max"
            continue
    return found


def weights_of(config: Config) -> int | None:
    """The fewest weights that the model can have; None where that is not known before it is built."""
    model = config.model
    if next(shapes.problems(model), None):  # which are reported themselves
        return None
    return shapes.shape_of(model).weights(model, model.vocab_size or config.tokenizer.vocab_size or 0)


def _memory(config: Config) -> Iterator[str]:
    stage, model, memory = config.stage, config.model, machine_memory()
    has = f"this machine has {memory / GB:,.1f} GB; plan=true says what a job needs"
    ranks = config.launch.nproc
    if ranks * RANK > memory and ranks > 1:
        yield f"launch.nproc={ranks}: as many processes take at least {ranks * RANK / GB:,.0f} GB, {has}"
        return
    if not spec_of(config).trains:
        return
    layers = (model.n_layer or 0) * LAYER_OBJECTS
    if layers > memory:
        yield f"model.n_layer={model.n_layer}: the layers alone take {layers / GB:,.0f} GB, {has}"
        return
    if config.plan is not False:  # which says the rest, of any machine
        return
    weights = None if config.init_from else weights_of(config)
    needed = (weights or 0) * _bytes_of_weight(config) * ranks
    if weights is not None and needed > memory:
        yield (
            f"model.n_layer={model.n_layer} model.n_embd={model.n_embd}: training {weights:.3g} weights takes at least "
            f"{needed / GB:,.0f} GB, {has}"
        )
        return
    length = getattr(stage, "context_length", None) or model.context_length or 1
    width = model.n_embd or 1
    kept = 1 if stage.activation_checkpointing else model.n_layer or 1
    rows = {"batch_size": (stage.batch_size, 8)}  # read at once, as whole numbers of 8 bytes
    if _on_cpu(config):
        rows["micro_batch_size"] = (stage.per_forward(ranks) * ranks, 2 * width * kept)
    if spec_of(config).rollouts:
        rows["rollout_size"] = (stage.rollout_size, 8)
    for key, (count, size) in rows.items():
        if count * length * size > memory:
            yield (
                f"stage.{key}={getattr(stage, key)}: its sequences of {length:,} tokens take at least "
                f"{count * length * size / GB:,.0f} GB, {has}"
            )


def _bytes_of_weight(config: Config) -> int:
    """The least of host memory: the weight in fp32; on a CPU its gradient and a momentum too."""
    zero = config.ds.config.get("zero_optimization", {}) if config.ds.enabled else {}
    if config.ds.enabled and zero.get("stage", 0) == 3:
        return 0  # parted over ranks, elsewhere too
    if config.ds.enabled or config.peft.kind is not PeftKind.none or not _on_cpu(config):
        return 4
    return 12 if config.optim.kind is OptimKind.muon else 16


def _on_cpu(config: Config) -> bool:
    """Whether ranks surely train on the CPU; torch, which knows, is not loaded here."""
    return config.device is Device.cpu or (config.device is Device.auto and not Path("/dev/nvidiactl").exists())
