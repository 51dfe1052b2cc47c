"""Tokens per second and peak memory of pretraining gpt6x512: tinychat, the transformers Trainer, a plain loop.

python benchmarks/pretrain.py                        the measurement: 3 rounds, every variant in turn
python benchmarks/pretrain.py --small --rounds 1     a check in a minute with a tiny model
python benchmarks/pretrain.py --profile              what the time of a tinychat step is spent on

Each variant and round is a process of its own (variants.py). First every variant takes a few steps in fp32: unless the
losses agree, no ratio is printed. Runs on the CPU.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import time
from typing import Any

from harness import (  # beside this file
    CHECK_STEPS,
    Result,
    add_ratios,
    common_options,
    conclude,
    describe_machine,
    differences,
    losses_table,
    markdown,
    measure,
    read_common,
    run_process,
    save,
    speed_table,
    summary,
)

FUSED_HEAD = "nanogpt+linear_cross_entropy"
VARIANTS = ("trainer", "nanogpt", FUSED_HEAD, "tinychat", "tinychat-muon")
OTHER_RULE = ("tinychat-muon",)  # another update rule
SHARED = ("small", "batch", "length", "warmup", "steps", "seed", "threads", "trainer_activation")


def main() -> None:
    options = read_options()
    begin = time.monotonic()
    report: dict[str, Any] = {"machine": describe_machine()}
    if options.profile:
        report["profiles"] = [
            run_variant(variant, options, profile=True) for variant in options.variants if "tinychat" in variant
        ]
        save(options.out, "profile", report, "\n\n".join(map(profile_table, report["profiles"])))
        return

    def run(variant: str, fp32: bool) -> Result:
        return run_variant(variant, options, **({"fp32": True, "warmup": 1, "steps": CHECK_STEPS - 1} if fp32 else {}))

    checked, runs = measure(options.variants, options.rounds, run)
    problems = differences(checked, runs, OTHER_RULE)
    text, rows = losses_table(checked, runs, OTHER_RULE), []
    if not problems:
        rows = summary(runs, options.variants)
        add_ratios(rows, next((row for row in rows if row["variant"] == "trainer"), rows[0]))
        text += "\n\n" + speed_table(title(options), rows)
    report |= {"checked_in_fp32": checked, "runs": runs, "table": rows}
    conclude(options, "pretrain", report, text, problems, begin)


def read_options() -> argparse.Namespace:
    parser = common_options(__doc__, VARIANTS)
    parser.add_argument("--length", type=int, help="tokens a sequence (512; small: 64)")
    parser.add_argument(
        "--trainer-activation",
        default="gelu_new",
        help="the trainer's GELU, transformers' default for GPT-2 (%(default)s); gelu_pytorch_tanh is the same "
        "function in one fused kernel, which the other variants use",
    )
    parser.add_argument("--profile", action="store_true", help="only profile the tinychat variants")
    options = read_common(parser, VARIANTS)
    options.length = options.length or (64 if options.small else 512)
    if options.length < 2:
        parser.error("--length is at least 2")
    if "trainer" in options.variants and importlib.util.find_spec("accelerate") is None:
        parser.error("the trainer needs accelerate: pip install -e '.[bench]', or leave it out of --variants")
    torch_version = importlib.metadata.version("torch")
    if FUSED_HEAD in options.variants and tuple(map(int, torch_version.split(".")[:2])) < (2, 13):
        options.variants.remove(FUSED_HEAD)
        print(f"{FUSED_HEAD} is left out: torch {torch_version} has no F.linear_cross_entropy")
    return options


def run_variant(variant: str, options: argparse.Namespace, **changes: Any) -> Result:
    task = {"variant": variant, "fp32": False, "profile": False, **{key: getattr(options, key) for key in SHARED}}
    return run_process("variants.py", task | changes)


def title(options: argparse.Namespace) -> str:
    model = "a tiny GPT-2 (no measure of anything)" if options.small else "gpt6x512"
    return (
        f"{model}, {options.batch} sequences of {options.length} tokens a step: medians of {options.rounds} rounds of "
        f"{options.steps} steps after {options.warmup} of warm-up"
    )


def profile_table(result: Result) -> str:
    shares = sorted(result["profile"].items(), key=lambda pair: -pair[1])
    rows = [[kind, f"{share:.1%}"] for kind, share in shares]
    return f"{result['variant']} ({result['arithmetic']}): where a step's time goes\n\n" + markdown(
        ["work", "share of the time"], rows
    )


if __name__ == "__main__":
    main()
