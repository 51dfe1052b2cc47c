"""Tokens per second and peak memory of fine-tuning gpt6x512 on conversations: tinychat and trl's SFTTrainer.

python benchmarks/sft.py --trl-python X/bin/python              the measurement: 3 rounds, every variant in turn
python benchmarks/sft.py --small --rounds 1 --trl-python ...    a check in a minute or two with a tiny model
python benchmarks/sft.py --data alpaca/train.jsonl ...          Alpaca's rows in place of generated ones

X is an environment with trl: python -m venv X && X/bin/pip install 'torch>=2.11,<2.14' 'trl==1.16.*'

Tokens are those of the conversations; padding does not count. Each variant and round is a process of its own
(sft_tinychat.py, sft_trl.py). First every variant takes a few steps in fp32: unless the losses agree, no ratio is
printed. Runs on the CPU.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from pathlib import Path
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
    measure,
    read_common,
    run_process,
    speed_table,
    summary,
)
from sft_task import PACKED, PADDED, ROWS, Task, write_rows

VARIANTS = tuple(ROWS)
CHECKED_ALIKE = ("tinychat-fp32",)  # in fp32 the same as tinychat
HOW_TO_TRL = "python -m venv X && X/bin/pip install 'torch>=2.11,<2.14' 'trl==1.16.*', then --trl-python X/bin/python"
WANTED = "1.16."
SMALL_VOCABULARY = 512
LEAKS = 1e-3  # relative change of hidden states: far above rounding


def main() -> None:
    options = read_options()
    begin = time.monotonic()
    report: dict[str, Any] = {"machine": describe_machine()}
    report["machine"]["trl"] = options.trl_version
    with tempfile.TemporaryDirectory(prefix="benchmark-sft-") as folder:
        report["data"] = prepare(options, Path(folder))
        print(report["data"], flush=True)

        def run(variant: str, fp32: bool) -> Result:
            changes = {"fp32": True, "warmup": 1, "steps": CHECK_STEPS - 1} if fp32 else {}
            python = {"python": options.trl_python} if variant.startswith("trl") else {}
            script = "sft_trl.py" if python else "sft_tinychat.py"
            return run_process(script, make_task(variant, options, folder) | changes, **python)

        checked, runs = measure(options.variants, options.rounds, run, CHECKED_ALIKE)
    problems = differences(checked, runs)
    text, rows = losses_table(checked, runs), []
    if not problems:
        rows = summary(runs, options.variants)
        peers = [row for row in rows if row["variant"].startswith("trl")]
        add_ratios(rows, max(peers, key=lambda row: row["tokens_per_s"]) if peers else rows[0])
        text += "\n\n" + speed_table(title(options, runs), rows)
    text += "".join(f"\n\n{line}" for line in leaks(checked))
    report |= {"checked_in_fp32": checked, "runs": runs, "table": rows}
    conclude(options, "sft", report, text, problems, begin)


def read_options() -> argparse.Namespace:
    parser = common_options(__doc__, VARIANTS)
    parser.add_argument("--length", type=int, help="tokens of a packed row, most of a conversation (512; small: 128)")
    parser.add_argument("--data", type=Path, help="Alpaca rows: a file or folder (generated tinyworld instructions)")
    parser.add_argument("--rows", type=int, default=2000, help="conversations chosen or generated (%(default)s)")
    parser.add_argument("--tokenizer", help="folder of GPT-2's tokenizer (as tokenizer=gpt2 finds it)")
    parser.add_argument("--trl-python", type=Path, help="python of an environment with trl 1.16")
    options = read_common(parser, VARIANTS)
    options.length = options.length or (128 if options.small else 512)
    if options.length < 16 or options.rows < 1:
        parser.error("--length is at least 16, --rows at least 1")
    options.trl_version = None
    if options.trl_python:
        options.trl_version = trl_version(options.trl_python)
        if not (options.trl_version or "").startswith(WANTED):
            parser.error(f"--trl-python {options.trl_python}: trl {options.trl_version or 'missing'}; {HOW_TO_TRL}")
    elif any(variant.startswith("trl") for variant in options.variants):
        options.variants = [variant for variant in options.variants if not variant.startswith("trl")]
        print(f"trl is left out: {HOW_TO_TRL}", flush=True)
        if not options.variants:
            parser.error("nothing is left to measure")
    return options


def trl_version(python: Path) -> str | None:
    """None where it cannot be found."""
    code = "import importlib.metadata as m; print(m.version('trl'))"
    try:
        done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def make_task(variant: str, options: argparse.Namespace, folder: str) -> dict[str, Any]:
    numbers = ("small", "batch", "length", "warmup", "steps", "seed", "threads")
    task = {"variant": variant, "work": folder, "data": data_keys(options), "fp32": False}
    return task | {key: getattr(options, key) for key in numbers}


def data_keys(options: argparse.Namespace) -> dict[str, Any]:
    """conf/data/alpaca.yaml or tinyworld.yaml, with the benchmark's choice of rows."""
    from omegaconf import OmegaConf
    from variants import CONF

    name = "alpaca" if options.data else "tinyworld"
    changes = {"path": str(options.data.resolve()) if options.data else None, "max_rows": options.rows}
    node = OmegaConf.merge(OmegaConf.load(CONF / "data" / f"{name}.yaml"), changes, {"seed": options.seed})
    return OmegaConf.to_container(node)  # type: ignore[return-value]


# ---------------------------------------------------------------------------------------------- the same for all


def prepare(options: argparse.Namespace, work: Path) -> str:
    """Write model/ (first weights and tokenizer), cache/ and the rows of all steps; says what the data is."""
    import torch
    from sft_tinychat import make_batches, unpacked
    from variants import model_config

    from tinychat.models.build import build_model, model_vocab_size
    from tinychat.text.chat_template import set_template

    tokenizer = get_tokenizer(options)
    set_template(tokenizer, "instruct")
    tokenizer.save_pretrained(work / "model")
    config = model_config(options.small)
    torch.manual_seed(options.seed)
    vocabulary = model_vocab_size(config, len(tokenizer))
    model = build_model(config, vocabulary, tokenizer.pad_token_id, tokenizer.eos_token_id)
    model.save_pretrained(work / "model")
    if options.length > config.context_length:
        raise SystemExit(f"--length {options.length}: the model's context is {config.context_length}")
    steps = max(options.warmup + options.steps, CHECK_STEPS)
    for rows in (PADDED, PACKED):
        example = next(variant for variant in VARIANTS if ROWS[variant] == rows)
        batches = make_batches(Task(**make_task(example, options, str(work))), rows == PACKED)
        found = [unpacked(batches.batch(step, options.batch)) for step in range(steps)]
        write_rows(work / f"{rows}.npz", [row for step in found for row in step])
    return f"{options.data or 'tinyworld'}: {batches.cache.describe()}"


def get_tokenizer(options: argparse.Namespace) -> Any:
    """GPT-2's; for --small a BPE trained on the conversations."""
    from omegaconf import OmegaConf

    from tinychat.config.schema import DataConfig
    from tinychat.data.chats.sources import chat_source
    from tinychat.errors import UserError
    from tinychat.text.tokenizer import load_gpt2, train_bpe

    try:
        if not options.small or options.tokenizer:
            return load_gpt2(options.tokenizer)
        data = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), data_keys(options)))
        rows = chat_source(data, "train").rows()  # type: ignore[arg-type]
        texts = (message["content"] for row in rows for message in row.messages)
        return train_bpe(texts, SMALL_VOCABULARY, progress=False)
    except UserError as error:
        raise SystemExit(str(error)) from None


# ------------------------------------------------------------------------------------------------------- results


def title(options: argparse.Namespace, runs: list[Result]) -> str:
    model = "a tiny GPT-2 (no measure of anything)" if options.small else "gpt6x512"
    tokens = {run["rows"]: run["tokens"] / options.steps for run in runs}
    sizes = ", ".join(f"{kind} {count:,.0f}" for kind, count in tokens.items())
    return (
        f"{model}, {options.batch} rows of at most {options.length} tokens a step (conversations' tokens: {sizes}): "
        f"medians of {options.rounds} rounds of {options.steps} steps after {options.warmup} of warm-up"
    )


def leaks(checked: list[Result]) -> list[str]:
    """One line for each packed variant of trl: whether a conversation sees the one before it in its row."""
    lines = []
    for run in checked:
        if run.get("leak") is not None:
            sees = "sees" if run["leak"] > LEAKS else "does not see"
            change = f"its hidden states change by {run['leak']:.1e}"
            lines.append(
                f"{run['variant']} ({run['attention']} attention): a packed conversation {sees} the one before it "
                f"({change})."
            )
    return lines


if __name__ == "__main__":
    main()
