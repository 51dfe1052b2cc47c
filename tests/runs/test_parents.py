"""What a run builds on, kept in its folder: found again after a move, and made anew where the file is gone."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tinychat.chat import session
from tinychat.runs import folders, parents
from tinychat.runtime import hub, manifest, run_files
from tinychat.runtime.run_files import Unreadable


def moved_outputs(tmp_path: Path) -> tuple[Path, Path, Path]:
    """The run folder, its tokenizer's folder, and a folder outside, after all outputs were moved."""
    run, tokenizer = tmp_path / "old" / "default" / "pretrain" / "a", tmp_path / "old" / "default" / "tokenizer" / "b"
    outside = tmp_path / "elsewhere"
    for folder in (run, tokenizer, outside):
        folder.mkdir(parents=True)
    found = {"init_from": None, "tokenizer": str(tokenizer), "judge": str(outside), "against.0": "org/name"}
    parents.write(run, found, tmp_path / "old")
    assert parents.read(run) == found
    lineage = {"run_dir": str(run), "parents": {"tokenizer": str(tokenizer), "judge": str(outside)}}
    (run / folders.LINEAGE).write_text(json.dumps(lineage))
    os.rename(tmp_path / "old", tmp_path / "new")
    return tmp_path / "new" / run.relative_to(tmp_path / "old"), tmp_path / "new" / "default/tokenizer/b", outside


def test_parents_below_the_outputs_move_with_them(tmp_path: Path) -> None:
    run, tokenizer, outside = moved_outputs(tmp_path)
    assert parents.read(run) == {
        "init_from": None,
        "tokenizer": str(tokenizer),
        "judge": str(outside),
        "against.0": "org/name",
    }


@pytest.mark.parametrize("damage", ["gone", "empty", '{"init_from": nu', "[]", '{"init_from": 3}', '{"tokenizer": {}}'])
def test_lost_parents_come_from_the_lineage(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run, tokenizer, outside = moved_outputs(tmp_path)
    (run / parents.FILE).unlink()
    if damage != "gone":
        (run / parents.FILE).write_text("" if damage == "empty" else damage)
        with pytest.raises(Unreadable, match=r"parents\.json: "):
            parents.read(run)
        assert parents.told(run) == {}

    class Config:
        class paths:
            outputs = str(tmp_path / "new")

    parents.keep(run, Config, [])  # type: ignore[arg-type]
    assert parents.read(run) == {"init_from": None, "tokenizer": str(tokenizer), "judge": str(outside)}
    assert "made anew from" in caplog.text and "lineage.json" in caplog.text
    caplog.clear()
    parents.keep(run, Config, [])  # type: ignore[arg-type]
    assert not caplog.messages


def test_a_resume_from_scratch_needs_the_tokenizer_of_its_checkpoint_alone(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    """The folder that the tokenizer was trained in may have gone meanwhile."""
    from transformers import AutoTokenizer

    from tinychat.stages.common import get_tokenizer
    from tinychat.text.tokenizer import tokenizer_fingerprint

    class Context:
        run_dir = tmp_path
        parents = {"init_from": None, "tokenizer": str(tmp_path / "gone")}  # noqa: RUF012

    checkpoint = tmp_path / folders.CHECKPOINTS / "step-000001"
    (checkpoint / folders.TRAINER_STATE).mkdir(parents=True)
    trained = AutoTokenizer.from_pretrained(tokenizer_folder)
    trained.save_pretrained(checkpoint)
    found = get_tokenizer(None, Context)  # type: ignore[arg-type]
    assert tokenizer_fingerprint(found) == tokenizer_fingerprint(trained)


@pytest.mark.parametrize(
    ("spec", "found"),
    [("auto", 7), ("best", 5), ("{run}", 7), ("{run}/best", 5), ("{run}/checkpoints/step-000007", 7), ("run/best", 5)],
)
def test_the_last_or_the_best_checkpoint_of_a_run_is_chosen(
    spec: str, found: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "default" / "sft" / "2026-01-01_00-00-00"
    for step, score in ((5, 1.0), (7, 2.0)):
        checkpoint = run / folders.CHECKPOINTS / f"step-{step:06d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "config.json").write_text("{}")
        manifest.write_manifest(checkpoint, score)
    (run / folders.CONFIG).write_text("stage: {name: sft}\nmodel: {name: mini}\n")
    (run / folders.RESULT).write_text(json.dumps({"status": "finished", "checkpoint": "checkpoints/step-000007"}))
    (tmp_path / "run").symlink_to(run)
    monkeypatch.chdir(tmp_path)  # run/best is written as an id of the hub is, but the folder is here
    config: Any = SimpleNamespace(
        init_from=spec.format(run=run),
        experiment_name="default",
        stage=SimpleNamespace(name="ppo"),
        model=SimpleNamespace(name="mini", arch="qwen3"),
        paths=SimpleNamespace(outputs=str(tmp_path)),
        data=SimpleNamespace(source="tinyworld"),
        reward=SimpleNamespace(parts={}),
        tokenizer=SimpleNamespace(path=None, kind=None),
        checkpoint=SimpleNamespace(verify=True),
    )
    assert parents.find_parents(config)["init_from"] == str(run / folders.CHECKPOINTS / f"step-{found:06d}")
    assert not hub.is_hub_id(config.init_from)


DAMAGES = ["cut", "flipped", "checkpoint gone", "all gone", "manifest", "none"]


def finished_run(folder: Path) -> Path:
    """The checkpoint of a finished fine-tuning."""
    checkpoint = folder / folders.CHECKPOINTS / "step-000007"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}")
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    manifest.write_manifest(checkpoint, None)
    (folder / folders.CONFIG).write_text("stage: {name: sft}\nmodel: {name: mini}\n")
    (folder / folders.RESULT).write_text(json.dumps({"status": "finished", "checkpoint": "checkpoints/step-000007"}))
    return checkpoint


def spoil(checkpoint: Path, damage: str) -> None:
    weights = checkpoint / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(b"weigh")
    elif damage == "flipped":
        weights.write_bytes(b"weightz")
    elif damage == "manifest":
        (checkpoint / manifest.MANIFEST).write_text("{")
    elif damage.endswith("gone"):
        shutil.rmtree(checkpoint if damage == "checkpoint gone" else checkpoint.parent)


@pytest.mark.parametrize("damage", DAMAGES)
def test_auto_passes_over_a_run_whose_checkpoint_is_damaged_or_gone(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_files, "_told", set())
    older, newer = (finished_run(tmp_path / "default" / "sft" / f"2026-01-0{day}_00-00-00") for day in (1, 2))
    config: Any = SimpleNamespace(
        init_from="auto",
        experiment_name="default",
        stage=SimpleNamespace(name="ppo"),
        model=SimpleNamespace(name="mini", arch="qwen3"),
        paths=SimpleNamespace(outputs=str(tmp_path)),
        data=SimpleNamespace(source="tinyworld"),
        reward=SimpleNamespace(parts={}),
        tokenizer=SimpleNamespace(path=None, kind=None),
        checkpoint=SimpleNamespace(verify=True),
    )
    spoil(newer, damage)
    assert parents.find_parents(config)["init_from"] == str(newer if damage == "none" else older)
    named = [message for message in caplog.messages if "this run is passed over" in message]
    assert len(named) == (damage != "none") and all(
        str(newer) in message for message in named
    )  # twice looked, once said
    assert session.find("default", tmp_path) == str(newer if damage == "none" else older)
    if damage == "flipped":
        config.checkpoint.verify = False
        assert parents.find_parents(config)["init_from"] == str(newer)
    if damage in ("cut", "checkpoint gone"):
        spoil(older, damage)
        with pytest.raises(folders.Unusable, match=f"{newer}.* is {'damaged' if damage == 'cut' else 'gone'}"):
            parents.find_parents(config)
        with pytest.raises(folders.Unusable, match=f"checkpoint {newer}"):  # never another of the run unasked
            folders.resolve_checkpoint(str(newer.parent.parent))


def test_auto_takes_the_newest_policy_whatever_it_was_trained_by(tmp_path: Path) -> None:
    """PPO, DPO and GRPO go on from SFT: none of them comes before another, and all before what they began with."""
    made = {}
    for day, stage in enumerate(["grpo", "ppo", "dpo", "sft", "pretrain"], 1):
        made[stage] = finished_run(tmp_path / "default" / stage / f"2026-01-0{day}_00-00-00")
        manifest.write_manifest(made[stage], None)
        (made[stage].parents[1] / folders.CONFIG).write_text(f"stage: {{name: {stage}}}\nmodel: {{name: mini}}\n")
    config: Any = SimpleNamespace(
        init_from="auto",
        experiment_name="default",
        stage=SimpleNamespace(name="eval"),
        model=SimpleNamespace(name="mini"),
        paths=SimpleNamespace(outputs=str(tmp_path)),
        data=SimpleNamespace(source="tinyworld"),
    )
    for stage in ("dpo", "ppo", "grpo", "sft", "pretrain"):
        assert parents._newest_checkpoint(config, []) == str(made[stage])
        shutil.rmtree(made[stage].parents[1])


def test_auto_takes_the_newest_reward_model_that_reads_the_policy_s_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a recipe on data of one's own in the same experiment the newest is another's."""
    checkpoints = {}
    for day, (stage, vocabulary) in enumerate([("sft", "a"), ("reward", "a"), ("reward", "b")], 1):
        made = finished_run(tmp_path / "default" / stage / f"2026-01-0{day}_00-00-00")
        padding = {"padding": {"length": day}, "truncation": None}  # left by whatever it was last called with
        (made / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {vocabulary: 0}}, **padding}))
        manifest.write_manifest(made, None)
        (made.parents[1] / folders.CONFIG).write_text(f"stage: {{name: {stage}}}\nmodel: {{name: mini}}\n")
        checkpoints[stage, vocabulary] = str(made)
    config: Any = SimpleNamespace(
        init_from="auto",
        experiment_name="default",
        stage=SimpleNamespace(name="ppo", judge=None),
        model=SimpleNamespace(name="mini", arch="qwen3"),
        paths=SimpleNamespace(outputs=str(tmp_path)),
        data=SimpleNamespace(source="tinyworld"),
        reward=SimpleNamespace(parts={"model": SimpleNamespace(kind="model", path="auto", weight=1.0)}),
        tokenizer=SimpleNamespace(path=None, kind=None),
        checkpoint=SimpleNamespace(verify=True),
    )
    monkeypatch.setattr(parents, "reward_models", lambda reward: {name: one.path for name, one in reward.parts.items()})
    found = parents.find_parents(config)
    assert (found["init_from"], found["reward.model"]) == (checkpoints["sft", "a"], checkpoints["reward", "a"])
    shutil.rmtree(Path(checkpoints["reward", "a"]).parents[1])  # none that fits: the one there is, and its own error
    assert parents.find_parents(config)["reward.model"] == checkpoints["reward", "b"]
