"""Tokens per second and peak memory of pretraining gpt6x512: tinychat, the transformers Trainer, a plain loop.

python benchmarks/pretrain.py                        the measurement: 3 rounds, every variant in turn
python benchmarks/pretrain.py --small --rounds 1     a check in a minute with a tiny model
python benchmarks/pretrain.py --profile              what the time of a tinychat step is spent on

Each variant and round is a process of its own (see variants.py), A B C A B C, so that neither a slow minute of the
machine nor another variant's memory falls on one alone. First every variant takes a few steps in fp32: unless the
losses agree, no ratio is printed. Runs on the CPU.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FUSED_HEAD = "nanogpt+linear_cross_entropy"
VARIANTS = ("trainer", "nanogpt", FUSED_HEAD, "tinychat", "tinychat-muon")
OTHER_RULE = ("tinychat-muon",)  # another update rule: only the loss before the first update can agree
CHECK_STEPS = 3  # steps whose losses are compared
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-3}  # largest relative difference from the fp32 loss of the first variant
QUIET = 0.85  # of the cores' time: a variant that got less was disturbed
PACKAGES = ("torch", "transformers", "accelerate", "numpy")

Result = dict[str, Any]


def main() -> None:
    options = read_options()
    begin = time.monotonic()
    machine = describe_machine()
    print(f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}", flush=True)
    report: dict[str, Any] = {"machine": machine, "options": vars(options)}
    if options.profile:
        report["profiles"] = [profile(variant, options) for variant in options.variants if "tinychat" in variant]
        save(options.out, "profile", report, "\n\n".join(map(profile_table, report["profiles"])))
        return
    checked, runs = [], []
    for variant in options.variants:
        checked.append(run_variant(variant, options, fp32=True, warmup=1, steps=CHECK_STEPS - 1))
        losses = " ".join(f"{loss:.5f}" for loss in checked[-1]["losses"])
        print(f"first losses in fp32: {variant}: {losses}", flush=True)
    for number in range(options.rounds):
        for variant in options.variants:
            found = run_variant(variant, options)
            runs.append({"round": number + 1, **found})
            speed = f"{found['tokens_per_s']:,.0f} tokens/s, {found['memory_gb']:.2f} GB"
            print(f"round {number + 1}: {variant}: {speed}, {found['core_share']:.0%} of the cores", flush=True)
    problems = differences(checked, runs)
    rows = [] if problems else summary(runs, options)
    report |= {"minutes": (time.monotonic() - begin) / 60, "checked_in_fp32": checked, "runs": runs, "table": rows}
    text = losses_table(checked, runs)
    save(options.out, "pretrain", report, text + ("" if problems else "\n\n" + speed_table(rows, options)))
    if problems:
        sys.exit("the variants do not compute the same thing, so no ratios:\n" + "\n".join(problems))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tiny model and short sequences, to try this out")
    parser.add_argument("--batch", type=int, help="sequences a step (8; small: 4)")
    parser.add_argument("--length", type=int, help="tokens a sequence (512; small: 64)")
    parser.add_argument("--warmup", type=int, default=2, help="steps that are not timed (%(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="in their order (%(default)s)")
    parser.add_argument("--threads", type=int, default=cores(), help="of every process (all cores: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of weights and data (%(default)s)")
    parser.add_argument(
        "--trainer-activation",
        default="gelu_new",
        help="the trainer's GELU, transformers' default for GPT-2 (%(default)s); gelu_pytorch_tanh is the same "
        "function in one fused kernel, which the other variants use",
    )
    parser.add_argument("--profile", action="store_true", help="only profile the tinychat variants")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"), help="folder (%(default)s)")
    options = parser.parse_args()
    options.batch = options.batch or (4 if options.small else 8)
    options.length = options.length or (64 if options.small else 512)
    options.variants = options.variants.split(",")
    if unknown := set(options.variants) - set(VARIANTS):
        parser.error(f"--variants {sorted(unknown)[0]}: one of {', '.join(VARIANTS)}")
    if min(options.warmup, options.rounds, options.steps, options.batch) < 1 or options.length < 2:
        parser.error("--warmup, --rounds, --steps and --batch are at least 1, --length at least 2")
    if "trainer" in options.variants and importlib.util.find_spec("accelerate") is None:
        parser.error("the trainer needs accelerate: pip install -e '.[bench]', or leave it out of --variants")
    torch_version = importlib.metadata.version("torch")
    if FUSED_HEAD in options.variants and tuple(map(int, torch_version.split(".")[:2])) < (2, 13):
        options.variants.remove(FUSED_HEAD)
        print(f"{FUSED_HEAD} is left out: torch {torch_version} has no F.linear_cross_entropy")
    return options


def run_variant(variant: str, options: argparse.Namespace, **changes: Any) -> Result:
    """One process; raises SystemExit with the end of its output when it fails."""
    task = {
        "variant": variant,
        "fp32": False,
        "profile": False,
        **{key: getattr(options, key) for key in ("small", "batch", "length", "warmup", "steps", "seed", "threads")},
        "trainer_activation": options.trainer_activation,
        **changes,
    }
    environment = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    environment |= {"PYTHONPATH": str(HERE.parent), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(HERE / "variants.py"), json.dumps(task)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        sys.exit(f"{variant} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_machine() -> dict[str, Any]:
    try:
        names = re.findall(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (OSError, ValueError):
        names, memory = [], None
    found = {"cpu": names[0] if names else platform.processor() or platform.machine(), "cores": cores()}
    found |= {"memory_gb": memory, "system": platform.platform(), "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


# ------------------------------------------------------------------------------------------------- equal losses


def differences(checked: list[Result], runs: list[Result]) -> list[str]:
    """One line for each process whose weights, batches or first losses are not those of the first variant in fp32."""
    reference, longest, problems = checked[0], runs[0]["inputs"]["batches"], []
    for run in checked + runs:
        name = f"{run['variant']} ({run['arithmetic']})"
        same_data = all(own == wanted for own, wanted in zip(run["inputs"]["batches"], longest, strict=False))
        if run["inputs"]["weights"] != reference["inputs"]["weights"] or not same_data:
            problems.append(f"{name}: other weights or batches than {reference['variant']}")
        for step, (own, wanted) in enumerate(comparable(run, reference), start=1):
            off = abs(own - wanted) / abs(wanted)
            if not off <= TOLERANCE[run["arithmetic"]]:
                problems.append(
                    f"{name}: loss {own:.6f} at step {step}, {reference['variant']} has {wanted:.6f} (fp32)"
                )
    return problems


def comparable(run: Result, reference: Result) -> list[tuple[float, float]]:
    """Pairs of losses that must agree."""
    one = run["variant"] in OTHER_RULE or reference["variant"] in OTHER_RULE
    steps = 1 if one and run["variant"] != reference["variant"] else CHECK_STEPS
    return list(zip(run["losses"][:steps], reference["losses"][:steps], strict=False))


def losses_table(checked: list[Result], runs: list[Result]) -> str:
    first = [next(run for run in runs if run["variant"] == own["variant"]) for own in checked]
    rows = []
    for run in [*checked, *(run for run in first if run["arithmetic"] != "fp32")]:
        pairs = comparable(run, checked[0])
        off = max(abs(own - wanted) / abs(wanted) for own, wanted in pairs)
        losses = [f"{loss:.5f}" for loss in run["losses"][:CHECK_STEPS]]
        losses += [""] * (CHECK_STEPS - len(losses))
        over = "first step" if len(pairs) == 1 else f"{len(pairs)} steps"
        rows.append([run["variant"], run["arithmetic"], *losses, f"{off:.1e} ({over})"])
    head = ["variant", "arithmetic", *(f"loss {step}" for step in range(1, CHECK_STEPS + 1)), "largest difference"]
    limits = ", ".join(f"{kind} {value:g}" for kind, value in TOLERANCE.items())
    return f"Losses of the first steps, against {checked[0]['variant']} in fp32 (allowed: {limits})\n\n" + markdown(
        head, rows
    )


# ------------------------------------------------------------------------------------------------------- results


def summary(runs: list[Result], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Medians over the rounds, and ratios to the trainer (without it, to the first variant)."""
    rows = []
    for variant in options.variants:
        own = [run for run in runs if run["variant"] == variant]
        speeds = [run["tokens_per_s"] for run in own]
        arithmetic = [run["tokens_per_s"] * run["flops_per_token"] / run["matmul_flops_per_s"] for run in own]
        rows.append(
            {
                "variant": variant,
                "arithmetic": own[0]["arithmetic"],
                "tokens_per_s": statistics.median(speeds),
                "slowest": min(speeds),
                "fastest": max(speeds),
                "memory_gb": statistics.median(run["memory_gb"] for run in own),
                "core_share": min(run["core_share"] for run in own),
                "share_of_matmul_rate": statistics.median(arithmetic),
            }
        )
    base = next((row for row in rows if row["variant"] == "trainer"), rows[0])
    for row in rows:
        row["speed_ratio"] = row["tokens_per_s"] / base["tokens_per_s"]
        row["memory_ratio"] = row["memory_gb"] / base["memory_gb"]
        row["ratio_to"] = base["variant"]
    return rows


def speed_table(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    base = rows[0]["ratio_to"]
    model = "a tiny GPT-2 (no measure of anything)" if options.small else "gpt6x512"
    title = (
        f"{model}, {options.batch} sequences of {options.length} tokens a step: medians of {options.rounds} rounds of "
        f"{options.steps} steps after {options.warmup} of warm-up"
    )
    head = ["variant", "arithmetic", "tokens/s", "slowest - fastest", f"times {base}", "peak memory"]
    head += [f"of {base}'s", "of the matmul rate"]
    lines = [
        [
            row["variant"],
            row["arithmetic"],
            f"{row['tokens_per_s']:,.0f}",
            f"{row['slowest']:,.0f} - {row['fastest']:,.0f}",
            f"{row['speed_ratio']:.2f}",
            f"{row['memory_gb']:.2f} GB",
            f"{row['memory_ratio']:.0%}",
            f"{row['share_of_matmul_rate']:.0%}",
        ]
        for row in rows
    ]
    least = min(row["core_share"] for row in rows)
    busy = f"\n\nSomething else was running: a variant had only {least:.0%} of the cores." if least < QUIET else ""
    return f"{title}\n\n{markdown(head, lines)}{busy}"


def profile(variant: str, options: argparse.Namespace) -> Result:
    return run_variant(variant, options, profile=True)


def profile_table(result: Result) -> str:
    shares = sorted(result["profile"].items(), key=lambda pair: -pair[1])
    rows = [[kind, f"{share:.1%}"] for kind, share in shares]
    return f"{result['variant']} ({result['arithmetic']}): where a step's time goes\n\n" + markdown(
        ["work", "share of the time"], rows
    )


def markdown(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(line[column]) for line in [head, *rows]) for column in range(len(head))]
    numbers = [all(re.match(r"[\d.,]+", row[column]) for row in rows) for column in range(len(head))]
    rule = ["-" * (width - number) + ":" * number for width, number in zip(widths, numbers, strict=True)]

    def line(cells: list[str]) -> str:
        padded = (
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(cells, widths, numbers, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    return "\n".join(line(cells) for cells in [head, rule, *rows])


def save(folder: Path, name: str, report: dict[str, Any], text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1, default=str), encoding="utf-8")
    (folder / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n\nwritten: {folder / name}.json and .md", flush=True)


if __name__ == "__main__":
    main()
