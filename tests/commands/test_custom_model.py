"""A model of a user's own through the commands, as docs/extending.md tells it: pretrained from a YAML file of the
user's, reloaded by transformers, fine-tuned, talked to, planned."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.commands.test_pretrain import loss_by_transformers
from tests.conftest import TORCHRUN, curve, error_line, result_of, run_train, tiny_but_model
from tests.custom_models import block, write_model
from tinychat.chat import __main__ as chat
from tinychat.models.custom import load_classes
from tinychat.runs import folders

CODE = "my_model.py:AlibiConfig"
OWN = ("model=custom", f"model.path={CODE}")
STEPS = (
    "precision=fp32",
    "stage.max_steps=8",
    "stage.log_every=1",
    "stage.eval_every=0",
    "stage.lr=0.02",
    "stage.eval_tokens=null",
    "checkpoint.every=0",
)
SFT = (
    "stage=sft",
    "tracker=none",
    "precision=fp32",
    "data.max_rows=80",
    "data.max_val_rows=20",
    "stage.warmup_steps=1",
    "stage.max_steps=3",
    "stage.batch_size=4",
    "stage.micro_batch_size=2",
    "data.on_bad_row=skip",  # many are longer than 64 tokens
    "stage.generate_tokens=4",
    "stage.eval_first=false",
    "checkpoint.every=0",
)


@pytest.fixture(scope="module")
def folder(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With my_model.py, the page's YAML as conf/model/alibi.yaml, and the pretrained run `base` of that."""
    folder = tmp_path_factory.mktemp("custom")
    write_model(folder)
    (folder / "conf/model").mkdir(parents=True)
    (folder / "conf/model/alibi.yaml").write_text(block("yaml"))
    words = ("stage=pretrain", "model=alibi", "model.context_length=64", "run_dir=base")
    done = run_train(folder, *words, *tiny_but_model(tokenizer_folder), *STEPS)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "AlibiForCausalLM: its attention is its own code" in done.stderr
    assert f"--model-code {CODE}" in done.stderr, "what it says of talking to it"
    return folder


def test_it_learns_and_transformers_finds_the_loss_that_was_reported(folder: Path) -> None:
    losses = curve(folder / "base")
    assert losses[8] < losses[1] - 0.1
    kind = load_classes(f"{folder}/{CODE}", "test")  # as `import my_model`
    checkpoint = folders.list_checkpoints(folder / "base")[-1]
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert type(model.config) is kind
    assert (model.config.num_hidden_layers, model.config.steepest) == (3, 0.25), "as the user's YAML says"
    assert loss_by_transformers(checkpoint, isolated=True) == pytest.approx(
        curve(folder / "base", "eval/loss")[8], abs=1e-4
    )


def test_it_is_fine_tuned_and_talked_to(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run_train(folder, *SFT, *OWN, "init_from=base", "run_dir=sft")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "AlibiForCausalLM: generation calls its own forward" in done.stderr
    assert 0 < result_of(folder / "sft")["metrics"]["eval/response_loss"] < 10
    monkeypatch.chdir(folder)
    ask = ["sft", "--prompt", "What is 2 + 3?", "--seed", "1", "--max-new-tokens", "6"]
    chat.run(["--model-code", CODE, *ask])
    first = capsys.readouterr().out
    chat.run(["--model-code", CODE, *ask])
    assert capsys.readouterr().out == first != "\n"


def test_a_checkpoint_of_it_opens_only_where_its_code_is_named(folder: Path) -> None:
    done = run_train(folder, *SFT, "init_from=base", "run_dir=refused")
    assert done.returncode == 1
    assert re.search(
        rf"architecture 'alibi\d+' is none of transformers'.* model=custom model\.path={CODE}", error_line(done)
    )


def test_it_is_planned(folder: Path, tokenizer_folder: Path) -> None:
    done = run_train(folder, "plan=cpu", *OWN, "model.context_length=64", *tiny_but_model(tokenizer_folder))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "GB" in done.stdout


def test_what_it_cannot_do_is_said_before_it_trains(folder: Path, tmp_path: Path, tokenizer_folder: Path) -> None:
    write_model(tmp_path, {"(AlibiPreTrained, GenerationMixin)": "(AlibiPreTrained)"})
    done = run_train(tmp_path, "stage=pretrain", *OWN, *tiny_but_model(tokenizer_folder), *STEPS, "run_dir=run")
    assert done.returncode == 1
    assert error_line(done).endswith(
        "AlibiForCausalLM: has no generate; derive it from transformers' GenerationMixin too"
    )
    assert not curve(tmp_path / "run")


@pytest.mark.slow
def test_it_is_a_reward_model_and_a_policy_with_a_value_function_of_its_own(
    folder: Path, tokenizer_folder: Path
) -> None:
    longer = (*tiny_but_model(tokenizer_folder), *STEPS, "model.context_length=256", "run_dir=longer")
    assert run_train(folder, "stage=pretrain", *OWN, *longer).returncode == 0
    common = (*OWN, "tracker=none", "precision=fp32", "stage.batch_size=4", "stage.micro_batch_size=2")
    common += ("stage.max_steps=2", "stage.warmup_steps=1", "data.on_bad_row=skip", "init_from=longer")
    done = run_train(
        folder, "stage=reward", *common, "data.max_rows=120", "data.max_val_rows=40", "template=instruct", "run_dir=rm"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    few = ("stage.rollout_size=8", "stage.response_length=8", "stage.epochs=1", "stage.eval_prompts=2")
    few += ("stage.safety_prompts=2", "stage.safety_tokens=4", "stage.generate_tokens=4", "stage.generate_rows=2")
    few += ("data.max_rows=120", "data.max_val_rows=40", "template=instruct", "reward.parts.model.path=rm")
    done = run_train(folder, "stage=ppo", *common, *few, "run_dir=ppo")
    assert done.returncode == 0, done.stderr[-3000:]
    assert result_of(folder / "ppo")["status"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("ds", ["none", "zero2", "zero3"])
def test_two_ranks_end_as_one(ds: str, folder: Path, tmp_path: Path, tokenizer_folder: Path) -> None:
    shutil.copytree(folder / "conf", tmp_path / "conf")
    shutil.copy(folder / "my_model.py", tmp_path)
    words = ("stage=pretrain", "model=alibi", "model.context_length=64", "run_dir=run")
    done = run_train(tmp_path, *words, *tiny_but_model(tokenizer_folder), *STEPS, f"ds={ds}", *TORCHRUN)
    assert done.returncode == 0, done.stderr[-3000:]
    for metric in ("train/loss", "eval/loss"):
        assert curve(tmp_path / "run", metric) == pytest.approx(curve(folder / "base", metric), abs=1e-4)
