"""Samples per second and peak memory of GRPO on the CPU: tinychat and trl's GRPOTrainer.

python benchmarks/grpo.py --trl-python X/bin/python                     gpt6x512: 2 rounds, every variant in turn
python benchmarks/grpo.py --trl-python X/bin/python --model gpt4x256    a small model with 2,048 words
python benchmarks/grpo.py --model tiny --rounds 1 ...                   tries it out in a minute

X is an environment with trl: python -m venv X && X/bin/pip install 'torch==2.13.*' 'trl==1.16.*'

A sample is a reply: sampled in a group (rollout), then scored by a function and measured by policy and reference
(scoring), then learnt from (update). Replies have one length: nothing ends them. Each variant and round is a process of
its own (grpo_trl.py, grpo_tinychat.py). First, in fp32, both must give the same sequences the same log-probabilities,
loss and norm of the gradient, KL and clipping at work; and all must train on as many tokens, in as many updates. Runs
on the CPU, in bf16 where it has instructions for it, else in fp32.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import (  # beside this file
    Result,
    arithmetic_of_processor,
    conclude,
    cores,
    describe_machine,
    run_process,
)
from ppo import add_ratios, as_text, describe, medians, prepare, unequal
from rl_shapes import MODELS
from rl_task import CHECKED, MICRO
from sft import trl_version

KINDS = ("trl-{}", "trl-{}-tuned", "tinychat-{}")
VARIANTS = tuple(kind.format(arithmetic) for arithmetic in ("bf16", "fp32") for kind in KINDS)
HOW_TO_TRL = "python -m venv X && X/bin/pip install 'torch==2.13.*' 'trl==1.16.*', then --trl-python X/bin/python"
WANTED = "1.16."
TOLERANCE = 1e-4  # nats, and shares of the loss and of the gradient's norm, in fp32


def main() -> None:
    options = read_options()
    begin = time.monotonic()
    report: dict[str, Any] = {"machine": describe_machine()}
    report["machine"]["trl"] = options.trl_version
    with tempfile.TemporaryDirectory(prefix="benchmark-grpo-") as folder:
        prepare(options, Path(folder))

        def run(variant: str, check: bool) -> Result:
            numbers = ("model", "batch", "group", "prompt", "response", "epochs", "warmup", "steps", "threads", "seed")
            task = {"variant": variant, "work": folder, "check": check} | {
                key: getattr(options, key) for key in numbers
            }
            if check:
                task["group"] = CHECKED  # the checked sequences are one
            if variant.startswith("trl"):
                return run_process("grpo_trl.py", task, python=options.trl_python)
            return run_process("grpo_tinychat.py", task)

        libraries = {variant.split("-")[0]: variant for variant in options.variants}  # one of each
        text, problems = compare([run(variant, True) for variant in libraries.values()])
        print(text, flush=True)
        runs: list[Result] = []
        for number in range(0 if problems else options.rounds):
            for variant in options.variants:
                runs.append({"round": number + 1, **run(variant, False)})
                print(f"round {number + 1}: {describe(runs[-1])}", flush=True)
    problems += unequal(runs)
    rows = [] if problems else table(runs, options.variants)
    if rows:
        text += "\n\n" + title(options, runs) + "\n\n" + as_text(rows)
    conclude(options, "grpo", report | {"runs": runs, "table": rows}, text, problems, begin)


def read_options() -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--trl-python", type=Path, help="python of an environment with trl 1.16")
    parser.add_argument("--model", choices=tuple(MODELS), default="gpt6x512", help="(%(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="replies of a step, all in one update (%(default)s)")
    parser.add_argument("--group", type=int, default=8, help="replies to a prompt (%(default)s)")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt (%(default)s)")
    parser.add_argument("--response", type=int, default=64, help="tokens of a reply (%(default)s)")
    parser.add_argument("--epochs", type=int, default=1, help="times each reply is learnt from (%(default)s)")
    parser.add_argument("--warmup", type=int, default=1, help="steps that are not timed (%(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="(%(default)s)")
    own = [kind.format(arithmetic_of_processor()) for kind in KINDS]
    parser.add_argument(
        "--variants", default=",".join(own), help=f"in their order, of {', '.join(VARIANTS)} (%(default)s)"
    )
    parser.add_argument("--threads", type=int, default=cores(), help="of every process (all cores: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of weights and prompts (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"), help="folder (%(default)s)")
    options = parser.parse_args()
    if min(options.prompt, options.response, options.epochs, options.steps, options.rounds) < 1 or options.warmup < 0:
        parser.error("--prompt, --response, --epochs, --steps and --rounds are at least 1")
    if options.batch < MICRO or options.batch % MICRO:
        parser.error(f"--batch {options.batch}: a multiple of {MICRO}")
    if options.group < 2 or options.batch % options.group:
        parser.error(f"--group {options.group}: 2 or more, and a divisor of --batch {options.batch}")
    if options.prompt + options.response > MODELS[options.model]["n_positions"]:
        parser.error(f"--prompt and --response: {options.model} has {MODELS[options.model]['n_positions']} positions")
    choose_variants(parser, options, VARIANTS)
    return options


def choose_variants(parser: argparse.ArgumentParser, options: argparse.Namespace, variants: tuple[str, ...]) -> None:
    """`variants` as a list, without trl's where there is no trl; and `trl_version`. Exits for others."""
    options.variants = options.variants.split(",")
    if unknown := set(options.variants) - set(variants):
        parser.error(f"--variants {sorted(unknown)[0]}: one of {', '.join(variants)}")
    options.trl_version = trl_version(options.trl_python) if options.trl_python else None
    if options.trl_python and not (options.trl_version or "").startswith(WANTED):
        parser.error(f"--trl-python {options.trl_python}: trl {options.trl_version or 'missing'}; {HOW_TO_TRL}")
    if not options.trl_python and any(variant.startswith("trl") for variant in options.variants):
        print(f"trl is left out: {HOW_TO_TRL}", flush=True)
        options.variants = [variant for variant in options.variants if not variant.startswith("trl")]
        if not options.variants:
            parser.error("nothing is left to measure")


# -------------------------------------------------------------------------------------------------------- agreement


def compare(checked: list[Result]) -> tuple[str, list[str]]:
    """What was found in words, and a line for each process that disagrees with the first."""
    first, *others = checked
    lines, problems = [], []
    for other in others:
        if other["weights"] != first["weights"]:
            problems.append(f"{other['variant']}: other weights than {first['variant']}")
        rows = zip(other["logprobs"], first["logprobs"], strict=True)
        off = max(abs(a - b) for own, wanted in rows for a, b in zip(own, wanted, strict=True))
        loss, gradient = (abs(other[name] / first[name] - 1) for name in ("loss", "gradient"))
        lines.append(
            f"In fp32 {other['variant'].split('-')[0]} and {first['variant'].split('-')[0]} give {CHECKED} sequences "
            f"the same log-probabilities within {off:.1e} nats a token; the loss ({first['loss']:.6f}) and the norm of "
            f"its gradient ({first['gradient']:.6f}) are equal within {loss:.1e} and {gradient:.1e} of themselves."
        )
        if not max(off, loss, gradient) <= TOLERANCE:
            problems.append(
                f"{other['variant']}: log-probabilities off by {off:.3g} nats, the loss by {loss:.3g} and the gradient "
                f"by {gradient:.3g} of themselves"
            )
    return "\n".join(lines), problems


# ---------------------------------------------------------------------------------------------------------- results


def table(runs: list[Result], variants: list[str]) -> list[dict[str, Any]]:
    """Medians over the rounds, with ratios to the fastest of trl's variants (without trl: to the first variant)."""
    rows = medians(runs, variants)
    peers = [row for row in rows if row["variant"].startswith("trl")]
    base = max(peers, key=lambda row: row["samples_per_s"]) if peers else rows[0]
    for row in rows:
        add_ratios(row, base)
    return rows


def title(options: argparse.Namespace, runs: list[Result]) -> str:
    return (
        f"{options.model}, {options.batch // options.group} prompts of {options.prompt} tokens a step, {options.group} "
        f"replies of {options.response} to each, {options.epochs} epochs, {runs[0]['updates_per_step']} updates and "
        f"{runs[0]['tokens_per_step']:,} tokens sampled a step: medians of {options.rounds} rounds of {options.steps} "
        f"steps after {options.warmup}"
    )


if __name__ == "__main__":
    main()
