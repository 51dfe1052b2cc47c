"""What the benchmarks share: processes in turn, losses first shown equal, medians, tables.

A benchmark is a script that starts one process for each variant and round, A B C A B C, so that neither a slow minute
of the machine nor another variant's memory falls on one alone. Such a process prints RESULT and a JSON object with
`variant`, `arithmetic` (fp32 or bf16), `losses`, `inputs` (digests of weights and batches), what Record.summary and
peak_memory_gb give, and, where variants go through different batches, `rows`: those with the same must agree.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CHECK_STEPS = 3  # steps whose losses are compared
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-3}  # largest relative difference from the fp32 loss of the first variant
QUIET = 0.85  # of the cores' time: a variant that got less was disturbed
PACKAGES = ("torch", "transformers", "accelerate", "numpy")

Result = dict[str, Any]


# ------------------------------------------------------------------------------------------------------- options


def common_options(description: str | None, variants: Sequence[str]) -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=form)
    parser.add_argument("--small", action="store_true", help="a tiny model and short sequences, to try this out")
    parser.add_argument("--batch", type=int, help="sequences a step (8; small: 4)")
    parser.add_argument("--warmup", type=int, default=2, help="steps that are not timed (%(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--variants", default=",".join(variants), help="in their order (%(default)s)")
    parser.add_argument("--threads", type=int, default=cores(), help="of every process (all cores: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of weights and data (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"), help="folder (%(default)s)")
    return parser


def read_common(parser: argparse.ArgumentParser, variants: Sequence[str]) -> argparse.Namespace:
    """The options with `batch` set and `variants` as a list; exits for values that make no sense."""
    options = parser.parse_args()
    options.batch = options.batch or (4 if options.small else 8)
    options.variants = options.variants.split(",")
    if unknown := set(options.variants) - set(variants):
        parser.error(f"--variants {sorted(unknown)[0]}: one of {', '.join(variants)}")
    if min(options.warmup, options.rounds, options.steps, options.batch) < 1:
        parser.error("--warmup, --rounds, --steps and --batch are at least 1")
    return options


# ----------------------------------------------------------------------------------------------------- processes


def run_process(script: str, task: dict[str, Any], python: str = sys.executable) -> Result:
    """One variant; raises SystemExit with the end of its output when it fails."""
    environment = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    environment |= {"PYTHONPATH": str(HERE.parent), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [python, str(HERE / script), json.dumps(task)], env=environment, capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        sys.exit(f"{task['variant']} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def measure(
    variants: Iterable[str], rounds: int, run: Callable[[str, bool], Result], checked_alike: Iterable[str] = ()
) -> tuple[list[Result], list[Result]]:
    """Every variant's first steps in fp32, then `rounds` of all in turn. `run(variant, fp32)` is one process;
    checked_alike: variants that would repeat another's check in fp32."""
    checked: list[Result] = []
    runs: list[Result] = []
    for variant in variants:
        if variant not in checked_alike or not checked:
            checked.append(run(variant, True))
            losses = " ".join(f"{loss:.5f}" for loss in checked[-1]["losses"])
            print(f"first losses in fp32: {variant}: {losses}", flush=True)
    for number in range(rounds):
        for variant in variants:
            found = run(variant, False)
            runs.append({"round": number + 1, **found})
            speed = f"{found['tokens_per_s']:,.0f} tokens/s, {found['memory_gb']:.2f} GB"
            print(f"round {number + 1}: {variant}: {speed}, {found['core_share']:.0%} of the cores", flush=True)
    return checked, runs


def conclude(
    options: argparse.Namespace,
    name: str,
    report: dict[str, Any],
    text: str,
    problems: list[str],
    begin: float,
) -> None:
    """Write the report; exits with status 1 where variants differ."""
    report |= {"minutes": (time.monotonic() - begin) / 60, "options": vars(options)}
    save(options.out, name, report, text)
    if problems:
        sys.exit("the variants do not compute the same thing, so no ratios:\n" + "\n".join(problems))


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def arithmetic_of_processor() -> str:
    """What a default run computes in: bf16 where the processor multiplies it, else fp32. Without such instructions bf16
    is many times slower."""
    import torch

    from tinychat.config.schema import Precision
    from tinychat.engine import resolve_precision

    return {torch.bfloat16: "bf16", torch.float32: "fp32"}[resolve_precision(Precision.auto, torch.device("cpu"))]


def describe_machine() -> dict[str, Any]:
    try:
        names = re.findall(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (OSError, ValueError):
        names, memory = [], None
    found = {"cpu": names[0] if names else platform.processor() or platform.machine(), "cores": cores()}
    found |= {"memory_gb": memory, "system": platform.platform(), "python": platform.python_version()}
    found |= {name: installed(name) for name in PACKAGES}
    print(f"{found['cpu']}, {found['cores']} cores, torch {found['torch']}", flush=True)
    return found


def installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# ------------------------------------------------------------------------------------------------- equal losses


def reference_of(run: Result, checked: list[Result]) -> Result:
    """The first variant, in fp32, that went through the same rows."""
    return next((own for own in checked if own.get("rows") == run.get("rows")), run)


def differences(checked: list[Result], runs: list[Result], other_rule: Sequence[str] = ()) -> list[str]:
    """One line for each process whose weights, batches or first losses are not those of its reference.

    other_rule: variants with another update rule: only the loss before the first update can agree.
    """
    problems = []
    for run in checked + runs:
        reference, name = reference_of(run, checked), f"{run['variant']} ({run['arithmetic']})"
        alike = [own["inputs"]["batches"] for own in checked + runs if own.get("rows") == run.get("rows")]
        longest = max(alike, key=lambda batches: len(batches))
        same_data = all(own == wanted for own, wanted in zip(run["inputs"]["batches"], longest, strict=False))
        if run["inputs"]["weights"] != checked[0]["inputs"]["weights"] or not same_data:
            problems.append(f"{name}: other weights or batches than {reference['variant']}")
        for step, (own, wanted) in enumerate(comparable(run, reference, other_rule), start=1):
            off = abs(own - wanted) / abs(wanted)
            if not off <= TOLERANCE[run["arithmetic"]]:
                problems.append(
                    f"{name}: loss {own:.6f} at step {step}, {reference['variant']} has {wanted:.6f} (fp32)"
                )
    return problems


def comparable(run: Result, reference: Result, other_rule: Sequence[str]) -> list[tuple[float, float]]:
    """Pairs of losses that must agree."""
    one = run["variant"] in other_rule or reference["variant"] in other_rule
    steps = 1 if one and run["variant"] != reference["variant"] else CHECK_STEPS
    return list(zip(run["losses"][:steps], reference["losses"][:steps], strict=False))


def losses_table(checked: list[Result], runs: list[Result], other_rule: Sequence[str] = ()) -> str:
    """One table for each kind of rows: the checks in fp32, and the first timed run of what was not checked so."""
    first: dict[Any, Result] = {}
    for run in checked + runs:
        first.setdefault((run.get("rows"), run["variant"], run["arithmetic"]), run)
    limits = ", ".join(f"{kind} {value:g}" for kind, value in TOLERANCE.items())
    head = ["variant", "arithmetic", *(f"loss {step}" for step in range(1, CHECK_STEPS + 1)), "largest difference"]
    tables = []
    for kind in dict.fromkeys(run.get("rows") for run in checked):
        lines = []
        for run in (run for (rows, *_), run in first.items() if rows == kind):
            pairs = comparable(run, reference_of(run, checked), other_rule)
            off = max(abs(own - wanted) / abs(wanted) for own, wanted in pairs)
            losses = [f"{loss:.5f}" for loss in run["losses"][:CHECK_STEPS]]
            losses += [""] * (CHECK_STEPS - len(losses))
            over = "first step" if len(pairs) == 1 else f"{len(pairs)} steps"
            lines.append([run["variant"], run["arithmetic"], *losses, f"{off:.1e} ({over})"])
        what = f"{kind} rows: losses" if kind else "Losses"
        title = f"{what} of the first steps, against {lines[0][0]} in fp32 (allowed: {limits})"
        tables.append(f"{title}\n\n{markdown(head, lines)}")
    return "\n\n".join(tables)


# ------------------------------------------------------------------------------------------------------- results


def summary(runs: list[Result], variants: Iterable[str]) -> list[dict[str, Any]]:
    """Medians over the rounds, a row for each variant."""
    rows = []
    for variant in variants:
        own = [run for run in runs if run["variant"] == variant]
        speeds = [run["tokens_per_s"] for run in own]
        row = {
            "variant": variant,
            "arithmetic": own[0]["arithmetic"],
            "tokens_per_s": statistics.median(speeds),
            "slowest": min(speeds),
            "fastest": max(speeds),
            "memory_gb": statistics.median(run["memory_gb"] for run in own),
            "core_share": min(run["core_share"] for run in own),
        }
        if "matmul_flops_per_s" in own[0]:
            shares = [run["tokens_per_s"] * run["flops_per_token"] / run["matmul_flops_per_s"] for run in own]
            row["share_of_matmul_rate"] = statistics.median(shares)
        rows.append(row)
    return rows


def add_ratios(rows: list[dict[str, Any]], base: dict[str, Any]) -> None:
    """Ratios of speed and memory to the row `base`."""
    for row in rows:
        row["speed_ratio"] = row["tokens_per_s"] / base["tokens_per_s"]
        row["memory_ratio"] = row["memory_gb"] / base["memory_gb"]
        row["ratio_to"] = base["variant"]


def speed_table(title: str, rows: list[dict[str, Any]]) -> str:
    base, with_rate = rows[0]["ratio_to"], "share_of_matmul_rate" in rows[0]
    head = ["variant", "arithmetic", "tokens/s", "slowest - fastest", f"times {base}", "peak memory", f"of {base}'s"]
    lines = [
        [
            row["variant"],
            row["arithmetic"],
            f"{row['tokens_per_s']:,.0f}",
            f"{row['slowest']:,.0f} - {row['fastest']:,.0f}",
            f"{row['speed_ratio']:.2f}",
            f"{row['memory_gb']:.2f} GB",
            f"{row['memory_ratio']:.0%}",
            *([f"{row['share_of_matmul_rate']:.0%}"] if with_rate else []),
        ]
        for row in rows
    ]
    least = min(row["core_share"] for row in rows)
    busy = f"\n\nSomething else was running: a variant had only {least:.0%} of the cores." if least < QUIET else ""
    return f"{title}\n\n{markdown([*head, *(['of the matmul rate'] if with_rate else [])], lines)}{busy}"


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
