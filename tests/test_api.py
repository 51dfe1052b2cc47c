"""tinychat from Python: light until it is asked for something, the same numbers as the programs, errors as one line."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import tinychat
from tests.chat_models import saved
from tests.conftest import REPOSITORY, only_run
from tests.reward_models import reward_model
from tests.test_architecture import HEAVY
from tinychat.chat.session import open_session
from tinychat.errors import UserError
from tinychat.models.checkpoints import load_model
from tinychat.models.generation.sampling import SamplingOptions
from tinychat.models.scorer import Scorer
from tinychat.text.tokenizer import load_saved_tokenizer


def test_the_import_is_light_and_there_are_few_names() -> None:
    code = (
        "import sys, tinychat; assert all(map(callable, (tinychat.load, tinychat.run, tinychat.runs)));"
        f"print(sorted({HEAVY} & {{name.partition('.')[0] for name in sys.modules}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done
    assert len(tinychat.__all__) <= 8
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = tinychat.lod


def test_replies_are_those_of_the_chat(tmp_path: Path) -> None:
    path = saved(tmp_path / "policy", "chatml")
    model = tinychat.load(path)
    assert model.kind == "chat"
    session = open_session(load_model(str(path)), load_saved_tokenizer(str(path)), "policy")
    talked = "".join(session.reply("the cat", SamplingOptions(max_new_tokens=12, greedy=True)))
    assert model.reply("the cat", greedy=True, max_new_tokens=12) == talked
    system = [{"role": "system", "content": "the dog"}, {"role": "user", "content": "the cat"}]
    several = model.generate(["the cat", system], n=3, max_new_tokens=5, seed=4)
    assert several == model.generate(["the cat", system], n=3, max_new_tokens=5, seed=4)
    assert [len(own) for own in several] == [3, 3] and len({text for own in several for text in own}) > 2
    with pytest.raises(UserError, match="is a language model, which scores nothing"):
        model.score([("a", "b")])
    with pytest.raises(UserError, match=r"prompt 1: .*unknown role zebra"):
        model.reply([{"role": "zebra", "content": "a"}])
    with pytest.raises(UserError, match="temperature=0"):
        model.reply("a", temperature=0)


def test_a_pretrained_model_continues_and_does_not_reply(tmp_path: Path) -> None:
    model = tinychat.load(saved(tmp_path / "text"))
    assert model.kind == "text" and len(model.generate(["the cat"], max_new_tokens=4)[0]) == 1
    with pytest.raises(UserError, match=r"has not learned to reply; generate\(prompts\) continues texts"):
        model.reply("the cat")


def test_scores_are_those_of_the_scorer(tmp_path: Path) -> None:
    path = reward_model(tmp_path / "reward")
    model, scorer = tinychat.load(path), Scorer(str(path), "cpu", torch.float32, 2)
    prompt = [{"role": "user", "content": "the cat"}]
    expected = scorer.score_ids(scorer.encode([prompt] * 2, ["the dog", "the mat"]))  # type: ignore[arg-type]
    assert model.score([("the cat", "the dog"), (prompt, "the mat")]) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(UserError, match="reward model, which writes no text"):
        model.generate(["a"])
    with pytest.raises(UserError, match=r"pair 1: prompt and reply have .* tokens"):
        model.score([("the cat " * 99, "a")])


@pytest.mark.slow
def test_a_job_runs_here_and_its_result_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    random.seed(5)
    before, pid, argv = (random.getstate(), torch.get_rng_state()), os.getpid(), list(sys.argv)
    words = ["stage=tokenizer", "tokenizer.vocab_size=300", "data.max_docs=40", "data.max_val_docs=4", "tracker=none"]
    done = tinychat.run(words, progress=said.append)
    assert (random.getstate(), os.getpid(), sys.argv) == (before[0], pid, argv)
    assert torch.equal(torch.get_rng_state(), before[1]), "random numbers go on as if nothing had been"
    assert (done.stage, done.status, done.folder) == ("tokenizer", "finished", only_run(tmp_path).resolve())
    assert done.objective == done.metrics["tokenizer/bytes_per_token"] > 1
    assert done.checkpoint is not None and (done.checkpoint / "tokenizer.json").is_file()
    assert any("tokenizer in " in line for line in said) and all("\n" not in line for line in said)
    assert capsys.readouterr() == ("", ""), "nothing but what progress does with the lines"
    assert "tokenizer.vocab_size=300" in (done.folder / "command.txt").read_text()
    table = tinychat.runs("tinychat")
    assert list(table["stage"]) == ["tokenizer"] and table["objective"][0] == done.objective
    assert Path(table["folder"][0]).resolve() == done.folder
    with pytest.raises(UserError, match=r"experiment=tinychatt: .* Did you mean tinychat\?"):
        tinychat.runs("tinychatt")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stage=pretrane"], r"Did you mean stage=pretrain\?"),
        (["stage=pretrain", "stage.lrr=1"], "stage.lr"),
        ("stage=pretrain stage.batch_size=3 stage.micro_batch_size=2", "stage.batch_size=3"),
        (["-m", "seed=1,2"], "-m: only settings"),
        (["stage=ppo", "plan=true"], "plan="),
        (["stage=sft", "init_from=nowhere"], "nowhere"),
    ],
)
def test_what_the_command_refuses_is_raised_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: Any, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        tinychat.run(words, progress=None)
    assert not (tmp_path / "outputs").exists() or not list((tmp_path / "outputs").glob("*/*/*/config.yaml"))


def test_progress_may_print(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tinychat.api import _told

    with _told(print):
        print("step 1", file=sys.stderr)
        print("report")
    assert capsys.readouterr().out == "step 1\nreport\n"
