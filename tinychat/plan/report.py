"""`plan=true`: what a job would need of memory and time, without training, and without a run folder.

    python -m tinychat.train stage=ppo model=gpt6x512 ds=zero2 launch=torchrun launch.nproc=8 plan=3090

docs/scaling.md says how it is computed and how far it was checked.
"""

from __future__ import annotations

from collections.abc import Iterator

from tinychat.config.schema import Config
from tinychat.config.specs import spec_of
from tinychat.plan.estimate import Plan, estimate, remedies
from tinychat.plan.memory import ALWAYS, GB
from tinychat.runtime.console import format_duration
from tinychat.runtime.terminal import as_text


def print_plan(config: Config) -> None:
    """The estimate on standard output. Raises UserError for a stage that trains no model, and what estimate raises."""
    print(as_text("\n".join(describe(estimate(config)))))


def describe(plan: Plan) -> list[str]:
    """The plan as lines."""
    config, stage, device = plan.config, plan.config.stage, plan.hardware
    ranks = f"{plan.split.ranks} rank{'s' if plan.split.ranks > 1 else ''}"
    precision = str(plan.dtype).removeprefix("torch.")
    lines = [
        f"plan: stage={stage.name} model={config.model.name} peft={config.peft.name} optim={config.optim.name} "
        f"ds={config.ds.name} {precision}; {ranks}, each on {device.name} ({device.memory / GB:.1f} GB)",
        f"a step: {_a_step(plan)}",
        *(f"assumed: {line}" for line in plan.assumed),
        "",
        f"{'memory of each rank':<66}{'device':>10}{'host':>10}",
    ]
    lines += _memory_lines(plan)
    lines += ["", *_verdict(plan), "", *_time_lines(plan)]
    return lines


def _a_step(plan: Plan) -> str:
    work, ranks = plan.work, plan.split.ranks
    what = f"{work.rows} sequences of {work.length:,} tokens in a forward pass x {work.accumulation}"
    what += f" x {ranks} ranks" if ranks > 1 else ""
    if spec_of(plan.config).rollouts:
        stage = plan.config.stage
        updates = stage.epochs * stage.rollout_size // stage.batch_size
        replies = f"{stage.rollout_size} replies of {work.response:,} tokens to prompts of {work.prompt:,}"
        return f"{replies}, then {updates} updates of {what}"
    return what


def _memory_lines(plan: Plan) -> Iterator[str]:
    def row(name: str, device: float, host: float = 0.0) -> str:
        return f"{name:<66}{_gb(device):>10}{_gb(host):>10}"

    items = plan.memory.items
    yield "all the time"
    for item in items:
        if item.phase == ALWAYS:
            yield row(f"  {item.name}", item.device, item.host)
    yield row("  libraries" if plan.hardware.on_cpu else "  driver and libraries (assumed)", plan.hardware.taken)
    for phase in plan.memory.phases:
        yield row(phase, plan.memory.of(phase))
        for item in items:
            if item.phase == phase and len([other for other in items if other.phase == phase]) > 1:
                yield row(f"  {item.name}", item.device, item.host)


def _gb(size: float) -> str:
    return f"{size / GB:.2f} GB" if size >= 5e6 else f"{size / 1e6:.2f} MB" if size else ""


def _verdict(plan: Plan) -> list[str]:
    phases = plan.memory.phases
    height = max(phases, key=lambda name: phases[name])
    has = plan.hardware.memory / GB
    said = f"needs {plan.needed / GB:.1f} GB of {has:.1f} GB (most in: {height})"
    if plan.memory.host and not plan.hardware.on_cpu:
        said += f", and {plan.memory.host * plan.split.ranks / GB:.1f} GB of the host's memory for all ranks"
    if plan.fits:
        return [f"fits: {said}"]
    ways = [f"{words} ({other.needed / GB:.1f} GB)" for words, other in remedies(plan)]
    return [f"does NOT fit: {said}", f"try {' or '.join(ways)}" if ways else "nothing tried here makes it fit"]


def _time_lines(plan: Plan) -> list[str]:
    step, device = sum(plan.seconds.values()), plan.hardware
    steps = plan.config.stage.max_steps
    parts = ", ".join(f"{name} {_seconds(seconds)}" for name, seconds in plan.seconds.items())
    return [
        *(f"before the first step, once: {what}: {_seconds(seconds)}" for what, seconds in plan.once.items()),
        f"time: {_seconds(step)} a step ({parts}), {format_duration(step * steps)} for {steps:,} steps, without "
        "evaluation and saving",
        f"assumed: {device.mfu:.0%} of {device.peak(plan.dtype) / 1e12:.3g} TFLOP/s, {device.bandwidth / GB:,.0f} GB/s "
        "of memory; every sequence as long as it may be",
    ]


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else format_duration(seconds)
