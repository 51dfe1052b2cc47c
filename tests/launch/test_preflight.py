"""What refuses a job is said before its run folder is made, and nothing is left behind."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from tests.config.test_compose import CONF
from tinychat.config import schema
from tinychat.data import look as module
from tinychat.errors import UserError
from tinychat.launch import job as launch
from tinychat.launch import ranks
from tinychat.runs import parents

GIVEN = {"init_from": "somewhere", "tokenizer": None}


def job(outputs: Path, *words: str) -> None:
    schema.register()
    with initialize_config_dir(str(CONF)):
        node = compose("config", ["launch=torchrun", f"paths.outputs={outputs}", *words])
    launch.run_job(schema.to_config(node), node)


def refused(tmp_path: Path, *words: str) -> str:
    """The message, after which nothing is there."""
    outputs = tmp_path / "outputs"
    for choice in ([], ["resume=auto"], [f"run_dir={outputs}/run"]):
        with pytest.raises(UserError) as caught:
            job(outputs, *words, *choice)
        assert not outputs.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def with_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parents, "find_parents", lambda *_: GIVEN)


def test_parents_that_are_missing(tmp_path: Path) -> None:
    assert refused(tmp_path, "stage=sft", "init_from=auto").startswith("init_from=auto: no finished pretrain run")
    assert refused(tmp_path, "stage=pretrain", "tuned=none").startswith("tokenizer=bpe: none of ")


def test_packages_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_parents: None) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    assert "peft=qlora needs bitsandbytes: pip install" in refused(tmp_path, "stage=sft", "peft=qlora")


@pytest.mark.parametrize(
    ("stage", "data", "row", "why"),
    [
        ("pretrain", "text", {"story": "a"}, "line 1: no column 'text' (data.text_column); it has story"),
        ("tokenizer", "text", {"story": "a"}, "line 1: no column 'text'"),
        ("sft", "chat", {"text": "a"}, "line 1: no conversation in the columns text"),
        ("reward", "preference", {"prompt": "a", "chosen": "b"}, "line 1: no preference in the columns prompt, chosen"),
        ("judge", "preference", {"prompt": "a", "chosen": "b", "rejected": "c"}, " leaves no "),
        ("ppo", "prompts", {"text": "a"}, "line 1: no prompt in the columns text"),
        ("sft", "chat", {"prompt": "a", "response": "b"}, "as all have one text or prompt; give more, or"),
    ],
)
def test_data_that_cannot_be_read(
    tmp_path: Path, with_parents: None, stage: str, data: str, row: dict[str, Any], why: str
) -> None:
    path = write(tmp_path / "a.jsonl", row)
    assert why in refused(tmp_path, f"stage={stage}", "tuned=none", f"data={data}", f"data.path={path}")


def test_prompts_that_no_verifier_could_judge(tmp_path: Path, with_parents: None) -> None:
    good = [{"prompt": f"{i} + 1?", "reference": f"{i + 1}", "answer": "number"} for i in range(9)]
    train, val = write(tmp_path / "train.jsonl", *good), write(tmp_path / "val.jsonl", {"prompt": "Why?"})
    words = ("stage=ppo", "tuned=none", "data=prompts", f"data.path={train}", "reward=verifier")
    said = refused(tmp_path, *words, f"data.val_path={val}")
    assert said.startswith(
        f"reward.parts.verifier: the verifier needs prompts with a checkable answer, and {val}, line 1"
    )


def test_a_late_row_of_a_small_file_and_the_first_of_a_large_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_parents: None
) -> None:
    rows = [{"prompt": f"Say {i}.", "response": "a"} for i in range(module.FIRST + 500)]
    path = write(tmp_path / "a.jsonl", *rows, {"prompt": "Say it."})
    words = ("stage=sft", "tuned=none", "data=chat", f"data.path={path}")
    assert f"line {len(rows) + 1}: no column 'response'" in refused(tmp_path, *words)
    monkeypatch.setattr(module, "WHOLE", 10)
    started: list[Path] = []
    monkeypatch.setattr(ranks, "run", lambda _config, run_dir: started.append(run_dir))
    with pytest.raises(launch.JobFailed):
        job(tmp_path / "outputs", *words)
    assert len(started) == 1
    path.write_text('{"prompt": "Say it."}\n' + path.read_text())
    with pytest.raises(UserError, match="line 1: no conversation in the columns prompt"):
        job(tmp_path / "more", *words)
    assert not (tmp_path / "more").exists()
