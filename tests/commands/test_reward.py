"""stage=reward and stage=judge through the real command: the same numbers however they are run or interrupted, scores
that survive the checkpoint, and one line for what cannot be trained on."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import TORCHRUN, curve, error_line, result_of, save_base, write_rows
from tests.reward_models import score_texts
from tests.warm import WarmPython
from tinychat.models.reward import load_reward_model, settings
from tinychat.models.scorer import Scorer
from tinychat.runs import folders
from tinychat.runtime import manifest

STEPS, EVERY, HELD_OUT = 8, 4, 22
TINY = (
    "init_from=base",
    "template=instruct",
    "tracker=none",
    "precision=fp32",
    "data.max_rows=120",
    f"data.max_val_rows={HELD_OUT}",
    "stage.lr=0.01",
    "stage.warmup_steps=2",
    f"stage.max_steps={STEPS}",
    "stage.batch_size=4",
    "stage.micro_batch_size=2",
    "stage.log_every=1",
    f"stage.eval_every={EVERY}",
    "stage.eval_batch_size=3",
    "stage.eval_pairs=null",
    f"checkpoint.every={EVERY}",
    "checkpoint.keep_last=5",
)
LORA = ("peft=lora", "peft.r=2", "peft.alpha=8", "optim=adamw")
HEAD = (
    *("stage.train_last_layers=0", "stage.head_layer=1", "stage.pooling=mean"),
    *("stage.loss=both", "stage.label=safe", "optim=adamw", "paths.cache=cache"),
)
WAYS = {
    "none": (),
    "none, two ranks, other micro-batches": (*TORCHRUN, "stage.micro_batch_size=1"),
    "zero2, two ranks": ("ds=zero2", *TORCHRUN),
    "zero3, two ranks": ("ds=zero3", *TORCHRUN),
    "lora": LORA,
    "lora zero2, two ranks": (*LORA, "ds=zero2", *TORCHRUN),
    "judge": ("stage=judge",),
    "head": HEAD,
    "head zero2": (*HEAD, "ds=zero2"),
    "judge zero2": ("stage=judge", "ds=zero2"),
}


@pytest.fixture(scope="module")
def folder(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs, with the `base` they start from."""
    folder = tmp_path_factory.mktemp("reward")
    save_base(folder / "base", tokenizer_folder, context_length=512)
    return folder


@pytest.fixture(scope="module")
def way(folder: Path, warm: WarmPython) -> Callable[[str], Path]:
    """The run of one of WAYS, made when it is first asked for."""

    @functools.cache
    def made(name: str) -> Path:
        run = name.replace(" ", "-").replace(",", "")
        stage = () if any(word.startswith("stage=") for word in WAYS[name]) else ("stage=reward",)
        done = warm.train(folder, *stage, *WAYS[name], *TINY, f"run_dir={run}", fork_ranks=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return folder / run

    return made


def weights(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = folders.resolve_checkpoint(str(run))
    name = "adapter_model.safetensors" if (checkpoint / "adapter_model.safetensors").exists() else "model.safetensors"
    return load_file(checkpoint / name)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        pytest.param("none, two ranks, other micro-batches", "none", marks=pytest.mark.slow),
        pytest.param("zero2, two ranks", "none", marks=pytest.mark.slow),
        pytest.param("zero3, two ranks", "none", marks=pytest.mark.slow),
        pytest.param("lora zero2, two ranks", "lora", marks=pytest.mark.slow),
        ("judge zero2", "judge"),
        pytest.param("head zero2", "head", marks=pytest.mark.slow),  # asks the backbone at every step
    ],
)
def test_every_way_gives_the_same_curves_and_weights(way: Callable[[str], Path], name: str, plain: str) -> None:
    run, expected = way(name), way(plain)
    for metric in ("train/loss", "train/grad_norm", "eval/loss", "eval/reward_accuracy", "eval/reward_margin"):
        assert curve(run, metric) == pytest.approx(curve(expected, metric), abs=1e-4, rel=1e-4), metric
    found, wanted = weights(run), weights(expected)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.allclose(found[key], value, atol=2e-4), key


def test_a_head_alone_learns_from_what_is_kept_of_a_frozen_backbone(way: Callable[[str], Path], folder: Path) -> None:
    run = way("head")
    assert len(list((folder / "cache" / "states").glob("*/states.bin"))) == 2
    checkpoint = folders.resolve_checkpoint(str(run))
    model, start = load_reward_model(str(checkpoint)), load_file(folder / "base" / "model.safetensors")
    backbone = {name: p for name, p in model.named_parameters() if name != "score.weight"}
    assert backbone and all(torch.equal(p, start[name]) for name, p in backbone.items())
    losses = list(curve(run, "train/loss").values())
    assert losses[-1] < losses[0]
    scorer = Scorer(str(checkpoint), "cpu", torch.float32, 8)
    assert scorer.model.config.num_hidden_layers == 1


def test_the_run_keeps_what_was_measured_and_how_to_score(way: Callable[[str], Path]) -> None:
    for name in ("none", "lora"):
        run = way(name)
        metrics = result_of(run)["metrics"]
        assert metrics["eval/reward_accuracy_low"] <= metrics["eval/reward_accuracy"]
        assert {"eval/reward_ece", "eval/reward_margin", "eval/safety_accuracy", "eval/loss"} <= metrics.keys()
        loaded = settings(load_reward_model(str(folders.resolve_checkpoint(str(run)))).config)
        assert loaded["range"] == "standard" and loaded["std"] not in (0.0, 1.0)
        for checkpoint in folders.list_checkpoints(run):  # each may become the one that scores
            its = settings(load_reward_model(str(checkpoint)).config)
            assert its["range"] == "standard" and its["std"] not in (0.0, 1.0), checkpoint.name
            assert manifest.checkpoint_score(checkpoint) is not None
        assert (folders.read_json(run / "tables" / "calibration.json") or {})["rows"]
        assert sum(row[1] for row in json.loads((run / "tables" / "categories.json").read_text())["rows"]) == HELD_OUT
        assert (run / "pictures" / "calibration.png").is_file()
        assert "pictures/calibration.png" in (run / "report.md").read_text()


def test_a_judge_gives_probabilities(way: Callable[[str], Path]) -> None:
    scorer = Scorer(str(folders.resolve_checkpoint(str(way("judge")))), "cpu", torch.float32, 8)
    assert settings(scorer.model.config) == {"pooling": "last", "range": "unit", "mean": 0.0, "std": 1.0}
    prompt = [[{"role": "user", "content": "How do I bake bread?"}]]
    assert 0 < score_texts(scorer, prompt, ["Mix flour and water."])[0] < 1


@pytest.mark.parametrize("name", ["none", "lora"])
def test_resumed_it_ends_bit_by_bit(name: str, way: Callable[[str], Path], folder: Path, warm: WarmPython) -> None:
    straight = way(name)
    run = folder / f"again-{name}"
    shutil.copytree(straight, run)
    shutil.rmtree(run / "checkpoints" / f"step-{STEPS:06d}")
    (run / "result.json").unlink()
    done = warm.train(folder, "stage=reward", *WAYS[name], *TINY, f"resume={run.name}")
    assert done.returncode == 0, done.stderr[-3000:]
    found, wanted = weights(run), weights(straight)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    for metric in ("train/loss", "eval/loss"):
        assert curve(run, metric) == curve(straight, metric)
    last = f"checkpoints/step-{STEPS:06d}"
    for file in ("config.json", "reward.json"):
        if (straight / last / file).exists():
            assert (run / last / file).read_text() == (straight / last / file).read_text()


def test_it_goes_on_from_a_reward_model_and_in_bf16(way: Callable[[str], Path], folder: Path, warm: WarmPython) -> None:
    start = way("none")
    more = ("precision=bf16", "stage.max_steps=2", "stage.score_range=unit", "template=own")
    done = warm.train(folder, "stage=reward", *TINY, f"init_from={start.name}", *more, "run_dir=more")
    assert done.returncode == 0, done.stderr[-3000:]
    scorer = Scorer(str(folders.resolve_checkpoint(str(folder / "more"))), "cpu", torch.bfloat16, 8)
    assert 0 < score_texts(scorer, [[{"role": "user", "content": "Hi"}]], ["Hello"])[0] < 1
    assert scorer.score_range == "unit" and settings(scorer.model.config)["std"] != 1.0


def test_what_cannot_be_trained_on(way: Callable[[str], Path], folder: Path, warm: WarmPython) -> None:
    pairs = [{"prompt": f"question {i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(60)]
    write_rows(folder / "own.jsonl", pairs)
    own = ("data=preference", "data.path=own.jsonl", "data.max_rows=null", "data.max_val_rows=null")
    cases = (
        (("stage=judge", *TINY, *own, "data.judge_fraction=0.5"), "stage.label=safe: no reply of data=preference has"),
        (("stage=reward", *TINY, "template=own"), "this tokenizer brings no chat template; use template=instruct"),
        (("stage=reward", *TINY, "stage.train_last_layers=9"), "stage.train_last_layers=9: the model has 2 blocks"),
        (("stage=sft", "tracker=none", f"init_from={way('none').name}"), "is a reward model, not a language model"),
    )
    for overrides, said in cases:
        done = warm.train(folder, *overrides, "run_dir=bad")
        assert said in error_line(done), overrides
        shutil.rmtree(folder / "bad", ignore_errors=True)
