"""A job examined: its first step as it is, then again by another engine, in other micro-batches and on two ranks."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinychat.config.schema import Config, Precision
from tinychat.doctor.findings import Findings
from tinychat.doctor.first_update import TRACE, FirstLook, OneUpdate, Trace
from tinychat.doctor.stage_run import PARENTS, in_brief, other_split, run_stage, write_config
from tinychat.errors import UserError
from tinychat.plan.estimate import estimate
from tinychat.plan.memory import GB
from tinychat.runs import parents
from tinychat.runtime.world import World, join_world
from tinychat.text.chat_template import EncodedChat

log = logging.getLogger(__name__)
log.setLevel(logging.INFO)  # a stage that is looked at only warns
RANKS = 2
PATIENCE = 300  # seconds for the ranks
# Between two ways of making an update: of the norm of its gradient, and of its direction, both as shares.
SAME_NORM = {torch.float32: 1e-3, torch.bfloat16: 0.02, torch.float16: 0.02}
SAME_DIRECTION = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
NO_GRADIENT = 1e-6  # norm
FACTOR = 0.05  # by which a ratio of norms may be off and still tell what it is
OVER_PLAN = 1.25  # a choice: tensors reach 1.05 times their plan, and a process grows beside them (docs/scaling.md)


@dataclass
class Examined:
    findings: Findings
    example: tuple[Any, EncodedChat] | None  # a tokenizer, and a sequence of the first update


def examine(config: Config, said: Sequence[str] = (), ranks: bool = True) -> Examined:
    """Everything about a job that trains a model. said: the command's overrides; ranks: also on several. Nothing is
    left of it. Raises UserError where the job could not begin."""
    found, findings = parents.find_parents(config, said), Findings()
    world = join_world(config.device, config.launch.timeout_minutes)
    with tempfile.TemporaryDirectory(prefix="tinychat-doctor-") as folder, _told_once():
        scratch = Path(folder)
        log.info("the first step, as it is")
        brief = in_brief(config, scratch)
        first = FirstLook(brief, findings, scratch / "saved")
        try:
            done = run_stage(brief, scratch / "first", world, found, first)
            metrics = done.metrics if done is not None else {}
            loss, norm = metrics.get("train/loss", 0.0), metrics.get("train/grad_norm", 0.0)
            findings.add("first step", True, f"loss {loss:.4g}, gradient {norm:.3g}")
        except UserError as error:
            if not findings.rows:
                raise
            findings.add("first step", False, str(error))
        if first.trace is None:
            return Examined(findings, first.example)
        _again(brief, scratch, world, found, first, findings)
        why_not = _incomparable(first, findings) or _no_ranks(brief, world) if ranks else "not asked for"
        if why_not:
            findings.add("ranks", None, why_not)
        else:
            findings.ask("ranks", lambda: _ranks(brief, scratch, world, found, first))
        _memory(config, first, findings)
    return Examined(findings, first.example)


@contextlib.contextmanager
def _told_once() -> Iterator[None]:
    """The stage runs several times, on the same data: what it says of them reaches the terminal the first time."""
    filters = [(handler, _Once()) for handler in logging.root.handlers]
    for handler, once in filters:
        handler.addFilter(once)
    try:
        yield
    finally:
        for handler, once in filters:
            handler.removeFilter(once)


class _Once(logging.Filter):
    """Keeps from a handler what it has had before."""

    def __init__(self) -> None:
        super().__init__()
        self.told: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        new = message not in self.told
        self.told.add(message)
        return new


def _again(
    config: Config, scratch: Path, world: World, found: dict[str, str | None], first: FirstLook, findings: Findings
) -> None:
    """The same update by another engine, whole and in smaller micro-batches."""
    assert first.trace is not None
    split = other_split(config)
    # DeepSpeed's engine is made for one number of micro-batches: it cannot make the other's update.
    log.info("the same update again, by a new engine")
    second = OneUpdate(None if config.ds.enabled and split is not None else first)
    try:
        run_stage(split or config, scratch / "second", world, found, second)
    except UserError as error:
        findings.add("micro-batches", False, str(error))
        return
    assert second.trace is not None
    made, other = first.trace, second.trace
    findings.ask("resume", lambda: _same_step(first.weights, first.again, second.again))
    if split is None:
        findings.add("micro-batches", None, "a batch is a single sequence")
    elif why_not := _incomparable(first, findings):
        findings.add("micro-batches", None, why_not)
    else:
        sizes = f"micro_batch_size {config.stage.per_forward(1)} and {split.stage.per_forward(1)}"
        findings.ask("micro-batches", lambda: compare(made, other, sizes, "micro-batches", first.dtype))


def _same_step(wanted: dict[str, Tensor], reloaded: dict[str, Tensor], elsewhere: dict[str, Tensor] | None) -> str:
    """Weights after an update, after the same from the state that was saved before it, and by an engine made anew that
    loaded this state. Raises UserError where they are not the same bit for bit."""
    for how, found in (("loaded again", reloaded), ("loaded by a new engine", elsewhere)):
        names = [name for name in wanted if found is not None and not torch.equal(wanted[name], found[name])]
        if names:
            raise UserError(
                f"{how}: {len(names)} of {len(wanted)} weights differ after the same update, {names[0]} first"
            )
    return f"{len(wanted)} weights are the same, bit for bit"


def compare(one: Trace, other: Trace, ways: str, what: str, dtype: torch.dtype) -> str:
    """Two updates from the same sequences. Raises UserError where they differ by more than rounding."""
    if one.rows != other.rows:
        raise UserError(f"{ways}: the batches hold other sequences")
    ratio = other.grad_norm / one.grad_norm if one.grad_norm else 1.0
    counted = other.parts / one.parts if what == "micro-batches" else RANKS
    if abs(ratio * counted - 1) < FACTOR and abs(ratio - 1) > FACTOR:
        raise UserError(
            f"{ways}: the gradient's norm is {one.grad_norm:.4g} and {other.grad_norm:.4g}: the loss is divided twice, "
            f"by the number of {what} after it was divided by the whole batch"
        )
    direction = 0.0
    if one.gradient is not None and other.gradient is not None and one.grad_norm:
        apart = other.gradient / other.gradient.norm() - one.gradient / one.gradient.norm()
        direction = float(apart.norm())
    said = f"{ways}: gradients differ by {abs(ratio - 1):.1e} in norm, {direction:.1e} in direction"
    if not (abs(ratio - 1) <= SAME_NORM[dtype] and direction <= SAME_DIRECTION[dtype]):
        raise UserError(said)
    return said


def _incomparable(first: FirstLook, findings: Findings) -> str:
    """Why another split of the batch must give another update; "" where it must not."""
    if first.dropout:
        return "dropout draws other masks for another split"
    if first.trace is not None and first.trace.grad_norm < NO_GRADIENT:
        return f"the gradient of the first update is {first.trace.grad_norm:.1e}, which is rounding"
    changes = any(finding.check == "reward repeats" for finding in findings.failed)
    return "the reward gives other values each time" if changes else ""


def _no_ranks(config: Config, world: World) -> str:
    """Why several ranks cannot be tried here; "" where they can."""
    if world.device.type != "cpu":
        return f"{RANKS} ranks need as many GPUs; device=cpu compares them"
    if (os.cpu_count() or 1) < RANKS:
        return "one CPU core"
    return next(iter(config.stage.problems(RANKS)), "")


def _ranks(config: Config, scratch: Path, world: World, found: dict[str, str | None], first: FirstLook) -> str:
    """The same update on one rank and on several. Raises UserError."""
    ways = f"1 rank and {RANKS}"
    one, other, dtype = first.trace, _on_ranks(config, scratch / "ranks", found), first.dtype
    assert one is not None
    if one.rows != other.rows and dtype is not torch.float32:
        # Ranks sample fewer replies side by side, which rounds otherwise and now and then draws another token.
        exact, again = replace(config, precision=Precision.fp32), OneUpdate()
        run_stage(exact, scratch / "exact", world, found, again)
        assert again.trace is not None
        one, other, dtype = again.trace, _on_ranks(exact, scratch / "exact_ranks", found), torch.float32
        ways += f" in fp32 (rounding in {str(first.dtype).removeprefix('torch.')} draws other replies)"
    return compare(one, other, ways, "ranks", dtype)


def _on_ranks(config: Config, folder: Path, found: dict[str, str | None]) -> Trace:
    """The first update made by several ranks, each a process of its own. Raises UserError."""
    log.info("the same update on %d ranks, each a process that loads everything", RANKS)
    folder.mkdir()
    write_config(config, folder)
    (folder / PARENTS).write_text(json.dumps(found), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // RANKS))
    shared = {"WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tinychat.doctor.rank", str(folder)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": threads},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(RANKS)
    ]
    try:
        complaints = [rank.communicate(timeout=PATIENCE)[1] for rank in started]
    except subprocess.TimeoutExpired:
        raise UserError(f"{RANKS} ranks did not finish their first update within {PATIENCE} seconds") from None
    finally:
        for rank in started:
            if rank.poll() is None:
                rank.kill()
                rank.wait()
    if any(rank.returncode for rank in started) or not (folder / TRACE).exists():
        lines = [line for text in complaints for line in text.splitlines()[-1:]]
        raise UserError(f"{RANKS} ranks: {lines[0] if lines else 'ended without a word'}")
    return Trace(**torch.load(folder / TRACE, weights_only=True))


def _memory(config: Config, first: FirstLook, findings: Findings) -> None:
    plan = estimate(replace(config, plan=True))
    planned = (plan.needed - (0 if plan.hardware.on_cpu else plan.hardware.taken)) / GB
    said = f"{first.peak:.2f} GB at most up to the first update, {planned:.2f} GB planned"
    findings.add("memory", first.peak <= OVER_PLAN * planned, said)
