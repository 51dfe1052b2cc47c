"""stage=pretrain through the real command: the same numbers however it is run, and checkpoints that others can load."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import TORCHRUN, curve, result_of, run_train
from tests.warm import WarmPython
from tinychat.runs import folders
from tinychat.tinyworld import stories

STEPS = 10
EXACT = (
    "precision=fp32",
    f"stage.max_steps={STEPS}",
    "stage.log_every=1",
    "stage.eval_every=5",
    "stage.eval_tokens=null",
    "checkpoint.every=5",
    "checkpoint.keep_last=5",
    "stage.samples=[Once upon a time]",
)
WAYS = {
    "llama none": (),
    "llama none recomputed": ("stage.activation_checkpointing=true", "stage.micro_batch_size=4"),
    "llama rows none": ("stage.isolate_documents=false",),
    "llama rows zero2": ("stage.isolate_documents=false", "ds=zero2"),
    "llama zero2": ("ds=zero2", *TORCHRUN),
    "llama zero3": ("ds=zero3", *TORCHRUN),
    "gpt2 none": (),
    "gpt2 zero2": ("ds=zero2", "stage.micro_batch_size=1"),
    "gpt2 zero3": ("ds=zero3", *TORCHRUN, "stage.micro_batch_size=1"),
}


# test_trajectory.py has more ways, on a smaller stage.
SLOW = ("llama zero2", "llama zero3", "llama rows zero2", "gpt2 zero2", "gpt2 zero3")


def named(*names: str) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in names]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs lie, in folders of their names; they share a token cache."""
    return tmp_path_factory.mktemp("pretrain")


@pytest.fixture(scope="module")
def way(tiny: tuple[str, ...], tiny_gpt2: tuple[str, ...], warm: WarmPython, folder: Path) -> Callable[[str], Path]:
    """The run of one of WAYS, made when it is first asked for."""

    @functools.cache
    def made(name: str) -> Path:
        command = (*(tiny if "llama" in name else tiny_gpt2), *EXACT, *WAYS[name], f"run_dir='{name}'")
        done = run_train(folder, *command) if WAYS[name] else warm.train(folder, *command)
        assert done.returncode == 0, f"{name}: {done.stderr[-3000:]}"
        return folder / name

    return made


@pytest.mark.parametrize("name", named(*[name for name in WAYS if not name.endswith("none")]))
def test_losses_are_those_of_one_plain_process(name: str, way: Callable[[str], Path]) -> None:
    run, plain = way(name), way("llama rows none" if "rows" in name else f"{name.split()[0]} none")
    losses = curve(plain)
    assert list(losses) == list(range(1, STEPS + 1))
    assert losses[STEPS] < losses[1] - 0.1, "the tiny model must learn, or equality would mean nothing"
    for metric, tolerance in {"train/loss": 1e-4, "eval/loss": 1e-4, "train/grad_norm": 1e-3}.items():
        found = curve(run, metric)
        assert found == pytest.approx(curve(plain, metric), abs=tolerance), metric
    assert curve(run, "schedule/lr") == curve(plain, "schedule/lr")


def loss_by_transformers(path: Path, isolated: bool) -> float:
    """Mean loss of the validation text in windows, each document of a window fed alone or all of them together."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    assert model.dtype is torch.float32
    ids: list[int] = []
    for story in stories(1, "validation", 20):
        ids += [*tokenizer(story)["input_ids"], tokenizer.eos_token_id]
    length, total = model.config.max_position_embeddings, 0.0
    assert length == 64
    model.eval()
    for start in range(0, len(ids) - 1, length):
        window = ids[start : start + length + 1]
        # A document begins with the end before it.
        cuts = [at for at in range(1, len(window) - 1) if isolated and window[at] == tokenizer.eos_token_id]
        for first, last in itertools.pairwise([0, *cuts, len(window) - 1]):
            piece = torch.tensor(window[first : last + 1])
            with torch.no_grad():
                logits = model(piece[None, :-1]).logits[0]
            total += torch.nn.functional.cross_entropy(logits, piece[1:], reduction="sum").item()
    return total / (len(ids) - 1)


@pytest.mark.parametrize("name", named(*WAYS))
def test_transformers_alone_loads_every_checkpoint_and_measures_the_same(name: str, way: Callable[[str], Path]) -> None:
    found = folders.list_checkpoints(way(name))
    assert [folders.checkpoint_step(path) for path in found] == [5, 10]
    for step, path in zip((5, 10), found, strict=True):
        wanted = curve(way(name), "eval/loss")[step]
        assert loss_by_transformers(path, isolated="rows" not in name) == pytest.approx(wanted, abs=2e-5)


def test_what_a_run_leaves(way: Callable[[str], Path]) -> None:
    run = way("llama none")
    result = result_of(run)
    assert result["status"] == "finished"
    assert result["objective_name"] == "eval/loss"
    assert result["objective"] == curve(run, "eval/loss")[STEPS]
    assert result["metrics"]["eval/ppl"] == pytest.approx(math.exp(result["objective"]))
    assert result["checkpoint"] == f"checkpoints/step-{STEPS:06d}"
    assert result["facts"]["precision"] == "float32"
    lineage = json.loads((run / result["checkpoint"] / "lineage.json").read_text())
    assert lineage["config"]["stage"]["max_steps"] == STEPS
    assert lineage["data"]["train"]["documents"] == 120
    assert [row["prompt"] for row in json.loads((run / "samples.json").read_text())] == ["Once upon a time"]
    for name in ("report.md", "report.html", "curves.png", "log.txt", "command.txt", "config.yaml"):
        assert (run / name).stat().st_size > 0, name
    assert not list(run.glob(".*.json*")), "no temporary file stays"


def test_going_on_from_its_weights_and_measuring_them_again(
    folder: Path, way: Callable[[str], Path], warm: WarmPython, tiny: tuple[str, ...]
) -> None:
    start = way("llama none")
    same_text = ("data.max_docs=120", "data.max_val_docs=20", "tracker=none", "precision=fp32")
    done = warm.train(folder, "stage=eval", f"init_from='{start}'", *same_text, "run_dir=eval")
    assert done.returncode == 0, done.stderr[-3000:]
    assert result_of(folder / "eval")["objective"] == pytest.approx(curve(start, "eval/loss")[STEPS], abs=1e-6)

    more = ("stage.max_steps=3", "stage.log_every=1", "stage.samples=[]", f"init_from='{start}'")
    done = warm.train(folder, *tiny, *more, "precision=fp32", "run_dir=more")
    assert done.returncode == 0, done.stderr[-3000:]
    assert curve(folder / "more")[1] < curve(start)[1] - 0.1
    lineage = json.loads((folder / "more" / "lineage.json").read_text())
    assert lineage["parents"]["init_from"].endswith(f"step-{STEPS:06d}")


@pytest.mark.slow
def test_bf16_under_zero3_with_a_vocabulary_of_its_own(
    folder: Path, way: Callable[[str], Path], tiny: tuple[str, ...]
) -> None:
    overrides = (*tiny, *EXACT, "ds=zero3", *TORCHRUN, "precision=bf16", "model.vocab_size=401", "run_dir=bf16")
    done = run_train(folder, *overrides)
    assert done.returncode == 0, done.stderr[-3000:]
    assert result_of(folder / "bf16")["facts"]["precision"] == "bfloat16"
    assert curve(folder / "bf16") == pytest.approx(curve(way("llama none")), abs=0.2)
    checkpoint = folders.list_checkpoints(folder / "bf16")[-1]
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert model.dtype is torch.float32, "the fp32 masters are what is saved"
    assert model.get_input_embeddings().num_embeddings == 401
    assert AutoModelForCausalLM.from_pretrained(folders.list_checkpoints(way("llama none"))[-1]).vocab_size == 448


def test_no_evaluation_and_no_checkpoints_between(train, tiny: tuple[str, ...], tmp_path: Path) -> None:
    overrides = ("stage.max_steps=4", "stage.eval_every=0", "checkpoint.every=0", "stage.samples=[]")
    done = train(*tiny, *overrides, "run_dir=run")
    assert done.returncode == 0, done.stderr[-3000:]
    assert [path.name for path in folders.list_checkpoints(tmp_path / "run")] == ["step-000004"]
    assert list(curve(tmp_path / "run", "eval/loss")) == [4]
    assert not (tmp_path / "run" / "samples.json").exists()


def test_where_a_curriculum_changes_is_told_before(tiny: tuple[str, ...], warm: WarmPython, folder: Path) -> None:
    """The loss rises there, and would look like one that diverges."""
    done = warm.train(folder, *tiny, *EXACT, "stage.max_steps=1", "data.lessons=1", "run_dir=curriculum")
    assert done.returncode == 0, done.stderr[-3000:]
    (step,) = result_of(folder / "curriculum")["facts"]["curriculum"].values()
    assert 1 < step < 200
    line = f"lessons of copying up to step {step}, then all other text, where the loss rises"
    assert line in done.stdout + done.stderr
