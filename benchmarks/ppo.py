"""Samples per second and peak memory of PPO on the CPU: tinychat and trl's PPOTrainer.

python benchmarks/ppo.py --trl-python X/bin/python                     gpt6x512: 2 rounds, every variant in turn
python benchmarks/ppo.py --trl-python X/bin/python --model gpt4x256    a small model with 2,048 words
python benchmarks/ppo.py --model tiny --rounds 1 ...                   tries it out in a minute

X is an environment with trl: python -m venv X && X/bin/pip install 'torch==2.13.*' 'trl==1.12.*'

A sample is a prompt with its reply: sampled (rollout), then scored by policy, reference, value and reward model
(scoring), then learnt from in some epochs (update). Replies have one length: nothing ends them. Each variant and round
is a process of its own (ppo_trl.py, ppo_tinychat.py). First, in fp32, both must give the same sequences the same
log-probabilities and scores; and both must train on as many tokens, in as many updates. Runs on the CPU.

The value function is a model of its own, as PPOTrainer's is; in tinychat-bf16-shared (`stage.value=shared`, which trl
does not offer) it is a head on the policy.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import Result, conclude, cores, describe_machine, markdown, run_process  # beside this file
from rl_shapes import MODELS, end_and_pad, gpt2_config
from rl_task import CHECKED, MICRO, PHASES
from sft import trl_version

VARIANTS = ("trl-fp32", "trl-bf16", "tinychat-fp32", "tinychat-bf16", "tinychat-bf16-shared")
HOW_TO_TRL = "python -m venv X && X/bin/pip install 'torch==2.13.*' 'trl==1.12.*', then --trl-python X/bin/python"
WANTED = "1.12."
TOLERANCE = 1e-4  # nats, and units of the score, in fp32


def main() -> None:
    options = read_options()
    begin = time.monotonic()
    report: dict[str, Any] = {"machine": describe_machine()}
    report["machine"]["trl"] = options.trl_version
    with tempfile.TemporaryDirectory(prefix="benchmark-ppo-") as folder:
        prepare(options, Path(folder))

        def run(variant: str, check: bool) -> Result:
            numbers = ("model", "batch", "prompt", "response", "epochs", "warmup", "steps", "threads", "seed")
            task = {"variant": variant, "work": folder, "check": check} | {
                key: getattr(options, key) for key in numbers
            }
            if variant.startswith("trl"):
                return run_process("ppo_trl.py", task, python=options.trl_python)
            return run_process("ppo_tinychat.py", task)

        libraries = {variant.split("-")[0]: variant for variant in options.variants}  # one of each
        checked = [run(variant, True) for variant in libraries.values()]
        text, problems = compare(checked)
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
    conclude(options, "ppo", report | {"runs": runs, "table": rows}, text, problems, begin)


def read_options() -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--trl-python", type=Path, help="python of an environment with trl 1.12")
    parser.add_argument("--model", choices=tuple(MODELS), default="gpt6x512", help="(%(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="prompts of a step (%(default)s)")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of each (%(default)s)")
    parser.add_argument("--response", type=int, default=64, help="tokens sampled for each (%(default)s)")
    parser.add_argument("--epochs", type=int, default=4, help="(%(default)s)")
    parser.add_argument("--warmup", type=int, default=1, help="steps that are not timed (%(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="(%(default)s)")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="in their order (%(default)s)")
    parser.add_argument("--threads", type=int, default=cores(), help="of every process (all cores: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of weights and prompts (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"), help="folder (%(default)s)")
    options = parser.parse_args()
    options.variants = options.variants.split(",")
    if unknown := set(options.variants) - set(VARIANTS):
        parser.error(f"--variants {sorted(unknown)[0]}: one of {', '.join(VARIANTS)}")
    if min(options.prompt, options.response, options.epochs, options.steps, options.rounds) < 1 or options.warmup < 0:
        parser.error("--prompt, --response, --epochs, --steps and --rounds are at least 1")
    if options.batch < MICRO or options.batch % MICRO:
        parser.error(f"--batch {options.batch}: a multiple of {MICRO}")
    if options.prompt + options.response > MODELS[options.model]["n_positions"]:
        parser.error(f"--prompt and --response: {options.model} has {MODELS[options.model]['n_positions']} positions")
    options.trl_version = trl_version(options.trl_python) if options.trl_python else None
    if options.trl_python and not (options.trl_version or "").startswith(WANTED):
        parser.error(f"--trl-python {options.trl_python}: trl {options.trl_version or 'missing'}; {HOW_TO_TRL}")
    if not options.trl_python and any(variant.startswith("trl") for variant in options.variants):
        print(f"trl is left out: {HOW_TO_TRL}", flush=True)
        options.variants = [variant for variant in options.variants if not variant.startswith("trl")]
        if not options.variants:
            parser.error("nothing is left to measure")
    return options


def prepare(options: argparse.Namespace, work: Path) -> None:
    """Write policy/ and reward/: random weights and a tokenizer whose words are numbers."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerFast

    from tinychat.text.chat_template import set_template

    end, pad = end_and_pad(options.model)
    words = {f"w{index}": index for index in range(MODELS[options.model]["entries"])} | {"<end>": end, "<pad>": pad}
    raw = Tokenizer(models.WordLevel(words, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", pad_token="<pad>", unk_token="w0")
    set_template(tokenizer, "instruct")
    torch.manual_seed(options.seed)
    config = gpt2_config(options.model)
    for name, kind in (("policy", GPT2LMHeadModel), ("reward", GPT2ForSequenceClassification)):
        config.num_labels = 1
        kind(config).save_pretrained(work / name)
        tokenizer.save_pretrained(work / name)


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
        score = max(abs(a - b) for a, b in zip(other["scores"], first["scores"], strict=True))
        lines.append(
            f"In fp32 {other['variant'].split('-')[0]} and {first['variant'].split('-')[0]} give {CHECKED} sequences "
            f"the same log-probabilities within {off:.1e} nats a token, and the same scores within {score:.1e}."
        )
        if not max(off, score) <= TOLERANCE:
            problems.append(f"{other['variant']}: log-probabilities off by {off:.3g} nats, scores by {score:.3g}")
    return "\n".join(lines), problems


def unequal(runs: list[Result]) -> list[str]:
    """A line for each run that trained otherwise than the first."""
    problems = []
    for run in runs:
        for what in ("weights", "tokens_per_step", "updates_per_step"):
            if run[what] != runs[0][what]:
                problems.append(f"{run['variant']}: {what} {run[what]}, {runs[0]['variant']} has {runs[0][what]}")
    return problems


# ---------------------------------------------------------------------------------------------------------- results


def describe(run: Result) -> str:
    phases = ", ".join(f"{name} {seconds:.1f}" for name, seconds in run["phase_seconds"].items())
    return (
        f"{run['variant']} ({run['arithmetic']}): {run['samples_per_s']:.2f} samples/s ({phases} s a step), "
        f"{run['cpu_samples_per_s']:.2f} per second of processor time, {run['memory_gb']:.2f} GB, "
        f"{run['core_share']:.0%} of the cores"
    )


def table(runs: list[Result], variants: list[str]) -> list[dict[str, Any]]:
    """Medians over the rounds, with ratios to trl in the same arithmetic (without trl: to the first variant)."""
    rows = medians(runs, variants)
    named = {row["variant"]: row for row in rows}
    for row in rows:
        add_ratios(row, named.get(f"trl-{row['variant'].split('-')[1]}", rows[0]))
    return rows


NUMBERS = ("samples_per_s", "cpu_samples_per_s", "memory_gb")


def medians(runs: list[Result], variants: list[str]) -> list[dict[str, Any]]:
    rows = []
    for variant in variants:
        own = [run for run in runs if run["variant"] == variant]
        row = {"variant": variant} | {name: statistics.median(run[name] for run in own) for name in NUMBERS}
        for phase in PHASES:
            row[phase] = statistics.median(run["phase_seconds"][phase] for run in own)
        rows.append(row | {"core_share": min(run["core_share"] for run in own)})
    return rows


def add_ratios(row: dict[str, Any], base: dict[str, Any]) -> None:
    row["ratio_to"] = base["variant"]
    for name in NUMBERS:
        row[f"{name}_ratio"] = row[name] / base[name]


def as_text(rows: list[dict[str, Any]]) -> str:
    head = ["variant", "samples/s", *(f"{phase} s" for phase in PHASES), "times as fast", "by processor time"]
    head += ["peak memory", "of it", "compared with", "of the cores"]
    lines = [
        [
            row["variant"],
            f"{row['samples_per_s']:.2f}",
            *(f"{row[phase]:.1f}" for phase in PHASES),
            f"{row['samples_per_s_ratio']:.2f}",
            f"{row['cpu_samples_per_s_ratio']:.2f}",
            f"{row['memory_gb']:.2f} GB",
            f"{row['memory_gb_ratio']:.0%}",
            row["ratio_to"],
            f"{row['core_share']:.0%}",
        ]
        for row in rows
    ]
    return markdown(head, lines)


def title(options: argparse.Namespace, runs: list[Result]) -> str:
    return (
        f"{options.model}, {options.batch} prompts of {options.prompt} tokens a step, replies of {options.response}, "
        f"{options.epochs} epochs, {runs[0]['updates_per_step']} updates and {runs[0]['tokens_per_step']:,} tokens "
        f"sampled a step: medians of {options.rounds} rounds of {options.steps} steps after {options.warmup}"
    )


if __name__ == "__main__":
    main()
