"""stage=dpo through the real command: the same numbers on ranks and ZeRO stages, killed and resumed, in a sweep."""

from __future__ import annotations

import functools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import TORCHRUN, curve, result_of, save_base, start_train, wait_until
from tests.warm import WarmPython
from tinychat.runs import folders

STEPS, EVERY, HELD_OUT = 8, 4, 22
TINY = (
    "stage=dpo", "init_from=base", "template=instruct", "tracker=none", "precision=fp32", "tuned=none",
    "data.max_rows=120", f"data.max_val_rows={HELD_OUT}", "stage.lr=0.005", "stage.warmup_steps=2",
    f"stage.max_steps={STEPS}", "stage.batch_size=4", "stage.micro_batch_size=2", "stage.log_every=1",
    f"stage.eval_every={EVERY}", "stage.eval_batch_size=3", "stage.eval_pairs=null", "stage.eval_rows=4",
    "stage.generate_rows=4", "stage.generate_tokens=4", "stage.safety_prompts=4", "stage.safety_tokens=4",
    "stage.kl_prompts=4", f"checkpoint.every={EVERY}", "checkpoint.keep_last=5",
)  # fmt: skip
LORA = ("peft=lora", "peft.r=2", "peft.alpha=8")
TWO = (*TORCHRUN, "launch.timeout_minutes=2")
WAYS = {
    "none": (),
    "none, two ranks, other micro-batches": (*TWO, "stage.micro_batch_size=1"),
    "zero0, two ranks": ("ds=zero0", *TWO),
    "zero1, two ranks": ("ds=zero1", *TWO),
    "zero2": ("ds=zero2",),
    "zero2, two ranks": ("ds=zero2", *TWO),
    "zero3, two ranks": ("ds=zero3", "+ds.config.zero_optimization.stage3_param_persistence_threshold=0", *TWO),
    "lora": LORA,
    "lora, two ranks": (*LORA, *TWO),
    "lora zero2, two ranks": (*LORA, "ds=zero2", *TWO),
    "orpo": ("stage.loss=orpo",),
    "orpo zero3, two ranks": ("stage.loss=orpo", "ds=zero3", *TWO),
}


@pytest.fixture(scope="module")
def folder(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs, with the `base` they start from."""
    folder = tmp_path_factory.mktemp("dpo")
    save_base(folder / "base", tokenizer_folder, context_length=512)
    return folder


@pytest.fixture(scope="module")
def way(folder: Path, warm: WarmPython) -> Callable[[str], Path]:
    """The run of one of WAYS, made when it is first asked for, with a reference of its own."""

    @functools.cache
    def made(name: str) -> Path:
        run = name.replace(" ", "-").replace(",", "")
        done = warm.train(folder, *TINY, *WAYS[name], f"run_dir={run}", f"paths.cache=cache-{run}")
        assert done.returncode == 0, done.stderr[-3000:]
        return folder / run

    return made


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folders.resolve_checkpoint(str(run)).glob("*model.safetensors")))


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("zero2", "none"),
        pytest.param("none, two ranks, other micro-batches", "none", marks=pytest.mark.slow),
        pytest.param("zero0, two ranks", "none", marks=pytest.mark.slow),
        pytest.param("zero1, two ranks", "none", marks=pytest.mark.slow),
        pytest.param("zero2, two ranks", "none", marks=pytest.mark.slow),
        pytest.param("zero3, two ranks", "none", marks=pytest.mark.slow),
        pytest.param("lora, two ranks", "lora", marks=pytest.mark.slow),
        pytest.param("lora zero2, two ranks", "lora", marks=pytest.mark.slow),
        pytest.param("orpo zero3, two ranks", "orpo", marks=pytest.mark.slow),
    ],
)
def test_every_way_gives_the_same_curves_and_weights(way: Callable[[str], Path], name: str, plain: str) -> None:
    run, expected = way(name), way(plain)
    assert max(map(abs, curve(expected, "train/reward_margin").values())) > 0.01, "it has to move"
    names = ("loss", "reward_accuracy", "reward_margin", "chosen_logprobs", "rejected_logprobs")
    for metric in (*(f"{split}/{name}" for split in ("train", "eval") for name in names), "train/grad_norm"):
        assert curve(run, metric) == pytest.approx(curve(expected, metric), abs=5e-4, rel=5e-4), metric
    found, wanted = weights(run), weights(expected)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.allclose(found[key], value, atol=2e-4), key


def test_the_run_keeps_what_was_measured(way: Callable[[str], Path]) -> None:
    run = way("none")
    metrics, report = result_of(run)["metrics"], (run / "report.md").read_text()
    assert {"eval/kl", "eval/safe_rate", "eval/over_refusal", "eval/instruction_accuracy"} <= metrics.keys()
    assert sum(row[1] for row in json.loads((run / "tables" / "categories.json").read_text())["rows"]) == HELD_OUT
    assert (run / "tables" / "safety.json").is_file() and (run / "tables" / "predictions.json").is_file()
    assert "Held-out pairs told right" in report and "best checkpoint" in report


@pytest.mark.slow
def test_killed_it_ends_bit_by_bit(way: Callable[[str], Path], folder: Path, warm: WarmPython) -> None:
    wanted, run = weights(way("none")), folder / "killed"
    given = (*TINY, "run_dir=killed", "paths.cache=cache-none")
    process = start_train(folder, *given)
    wait_until(lambda: max(curve(run), default=0) > EVERY, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(60)
    assert not (run / "result.json").exists() and (run / "checkpoints" / f"step-{EVERY:06d}").is_dir()
    done = warm.train(folder, *TINY, "resume=killed", "paths.cache=cache-none")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "kept from an earlier run" in done.stderr and "computed in" not in done.stderr
    found = weights(run)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    for metric in ("train/loss", "eval/loss", "eval/kl"):
        assert curve(run, metric) == curve(way("none"), metric)


@pytest.mark.slow
def test_a_sweep_over_beta_has_two_trials(folder: Path, warm: WarmPython) -> None:
    given = [word for word in TINY if not word.startswith(("stage.lr", "stage.eval_every", "checkpoint"))]
    words = ("sweep=dpo_beta", "sweep.n_trials=2", "stage.max_steps=2", "paths.cache=cache-none")
    done = warm.train(folder, "-m", *given, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    table = json.loads((folder / "outputs/sweeps/tinychat-dpo_beta/trials.json").read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert len(rows) == 2 and all({"stage.beta", "eval/kl", "eval/reward_accuracy"} <= row.keys() for row in rows)
