"""Pairs per second and peak memory of DPO on the CPU: tinychat and trl's DPOTrainer.

python benchmarks/dpo.py --trl-python X/bin/python                     gpt6x512: 3 rounds, every variant in turn
python benchmarks/dpo.py --trl-python X/bin/python --model gpt4x256    a small model with 2,048 words
python benchmarks/dpo.py --model tiny --rounds 1 ...                   tries it out in a minute

X is an environment with trl: python -m venv X && X/bin/pip install 'torch==2.13.*' 'trl==1.16.*'

The log-probabilities of the reference count: computed once before training, they take their time from the one epoch
that is timed (a second epoch would have them for nothing). Each variant and round is a process of its own (dpo_trl.py,
dpo_tinychat.py). First every variant takes a few steps in fp32: unless weights, pairs and losses agree, no ratio is
printed. Runs on the CPU, in bf16 where it has instructions for it, else in fp32.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from dpo_task import MICRO  # beside this file
from grpo import choose_variants
from harness import (
    CHECK_STEPS,
    Result,
    add_ratios,
    arithmetic_of_processor,
    conclude,
    cores,
    describe_machine,
    differences,
    losses_table,
    measure,
    run_process,
    speed_table,
    summary,
)
from ppo import prepare
from rl_shapes import MODELS

KINDS = ("trl-{}", "trl-{}-tuned", "tinychat-{}")
VARIANTS = tuple(kind.format(arithmetic) for arithmetic in ("bf16", "fp32") for kind in KINDS)


def main() -> None:
    options = read_options()
    begin = time.monotonic()
    report: dict[str, Any] = {"machine": describe_machine()}
    report["machine"]["trl"] = options.trl_version
    with tempfile.TemporaryDirectory(prefix="benchmark-dpo-") as folder:
        prepare(options, Path(folder))

        def run(variant: str, fp32: bool) -> Result:
            numbers = ("model", "batch", "prompt", "response", "warmup", "steps", "threads", "seed")
            task = {"variant": variant, "work": folder, "fp32": fp32} | {key: getattr(options, key) for key in numbers}
            task |= {"warmup": 1, "steps": CHECK_STEPS - 1} if fp32 else {}
            write_order(Path(folder), task)
            if variant.startswith("trl"):
                return run_process("dpo_trl.py", task, python=options.trl_python)
            return run_process("dpo_tinychat.py", task)

        checked, runs = measure(options.variants, options.rounds, run)
    # Of other many pairs in the checks the order is another: they agree among themselves, and so do the timed runs.
    problems = differences(checked, checked) + differences(runs[:1], runs)
    text, rows = losses_table(checked, []), []
    if not problems:
        rows = summary(runs, options.variants)
        peers = [row for row in rows if row["variant"].startswith("trl")]
        add_ratios(rows, max(peers, key=lambda row: row["tokens_per_s"]) if peers else rows[0])
        text += "\n\n" + speed_table(title(options), rows) + "\n\n" + more(runs, rows)
    conclude(options, "dpo", report | {"checked_in_fp32": checked, "runs": runs, "table": rows}, text, problems, begin)


def read_options() -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--trl-python", type=Path, help="python of an environment with trl 1.16")
    parser.add_argument("--model", choices=tuple(MODELS), default="gpt6x512", help="(%(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="pairs of a step, all in one update (%(default)s)")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt on average (%(default)s)")
    parser.add_argument("--response", type=int, default=64, help="tokens of a reply on average (%(default)s)")
    parser.add_argument("--warmup", type=int, default=1, help="steps that are not timed (%(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    own = [kind.format(arithmetic_of_processor()) for kind in KINDS]
    parser.add_argument(
        "--variants", default=",".join(own), help=f"in their order, of {', '.join(VARIANTS)} (%(default)s)"
    )
    parser.add_argument("--threads", type=int, default=cores(), help="of every process (all cores: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of weights and pairs (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"), help="folder (%(default)s)")
    options = parser.parse_args()
    if min(options.prompt, options.response) < 2 or min(options.warmup, options.steps, options.rounds) < 1:
        parser.error("--prompt and --response are at least 2, --warmup, --steps and --rounds at least 1")
    if options.batch < MICRO or options.batch % MICRO:
        parser.error(f"--batch {options.batch}: a multiple of {MICRO}")
    longest = (options.prompt + options.response) * 3 // 2 + 2
    if longest > MODELS[options.model]["n_positions"]:
        parser.error(f"--prompt and --response: {options.model} has {MODELS[options.model]['n_positions']} positions")
    choose_variants(parser, options, VARIANTS)
    return options


def write_order(work: Path, task: dict[str, Any]) -> None:
    """Which pairs each step has, as stage=dpo would take them."""
    from tinychat.data.batching import SeededOrder

    steps = task["warmup"] + task["steps"]
    order = SeededOrder(task["batch"] * steps, task["seed"])
    np.save(work / "order.npy", np.concatenate([order.items(step, task["batch"]) for step in range(steps)]))


def title(options: argparse.Namespace) -> str:
    return (
        f"{options.model}, {options.batch} pairs a step, prompts of {options.prompt} tokens and replies of "
        f"{options.response} on average: medians of {options.rounds} rounds of {options.steps} steps after "
        f"{options.warmup}; tokens of both sides, reference included"
    )


def more(runs: list[Result], rows: list[dict[str, Any]]) -> str:
    """Pairs per second, and the ratios of processor time."""

    def median(variant: str, what: str) -> float:
        return statistics.median(run[what] for run in runs if run["variant"] == variant)

    base = rows[0]["ratio_to"]
    return "\n".join(
        f"{row['variant']}: {median(row['variant'], 'pairs_per_s'):.2f} pairs/s; by processor time "
        f"{median(row['variant'], 'cpu_tokens_per_s') / median(base, 'cpu_tokens_per_s'):.2f} times {base}"
        for row in rows
    )


if __name__ == "__main__":
    main()
