"""The log says what auto took, and from when."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from tests.config.test_compose import composed
from tinychat.launch.worker import choices
from tinychat.runs.parents import find_parents
from tinychat.runtime.world import World

HERE = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


def finished(folder: Path, when: int) -> str:
    checkpoint = folder / "checkpoints" / "step-000001"
    checkpoint.mkdir(parents=True)
    (folder / "result.json").write_text("{}")
    os.utime(folder / "result.json", (when, when))
    return str(checkpoint)


def test_every_auto_choice_is_a_line_with_what_it_took_and_from_when(tmp_path: Path, monkeypatch: object) -> None:
    monkeypatch.setenv("TZ", "UTC")  # type: ignore[attr-defined]
    sft, reward = finished(tmp_path / "sft", 1_700_000_000), finished(tmp_path / "reward", 1_700_003_600)
    config = composed("stage=ppo", "init_from=auto", "reward=model", "stage.judge=auto")
    lines = list(choices(config, {"init_from": sft, "tokenizer": None, "reward.model": reward, "judge": None}, HERE))
    assert lines[0].startswith(f"init_from=auto took {sft}, of a run that ended 2023-11-14 22:1")
    assert "stage.judge=auto found none" in lines
    assert any(line.startswith(f"reward.parts.model.path=auto took {reward}, of a run") for line in lines)
    assert "device=auto took cpu" in lines
    assert any(line.startswith("precision=auto took ") for line in lines)


def test_what_the_command_names_is_no_choice(tmp_path: Path) -> None:
    config = composed("stage=sft", f"init_from={tmp_path}", "device=cpu", "precision=fp32")
    assert list(choices(config, {"init_from": str(tmp_path), "tokenizer": None}, HERE)) == []


def test_tasks_look_for_no_judge_and_tell_of_none(tmp_path: Path) -> None:
    start = finished(tmp_path, 1)
    Path(start, "config.json").write_text('{"model_type": "gpt2"}')
    words = ("stage=eval", f"init_from={start}", f"paths.outputs={tmp_path}", "device=cpu", "precision=fp32")
    for tasks, told in (([], ["stage.judge=auto found none", "stage.second_judge=auto found none"]), (["grammar"], [])):
        config = composed(*words, f"stage.tasks=[{','.join(tasks)}]")
        assert list(choices(config, find_parents(config, ()), HERE)) == told


def test_a_tokenizer_that_nobody_named_is_told(tmp_path: Path) -> None:
    config = composed("stage=pretrain", "tuned=none", "device=cpu", "precision=fp32")
    lines = list(choices(config, {"init_from": None, "tokenizer": str(tmp_path)}, HERE))
    assert lines == [f"tokenizer.path=null took {tmp_path}"]


def test_a_shortened_warm_up_is_told() -> None:
    config = composed("tuned=none", "stage.warmup_steps=50", "stage.max_steps=6", "device=cpu", "precision=fp32")
    assert list(choices(config, {}, HERE)) == [
        "stage.warmup_steps=50 is more than stage.max_steps=6: the warm-up takes 3 steps"
    ]
