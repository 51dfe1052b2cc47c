"""Run folders: made once, locked, found again, and which checkpoint in them is meant."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from tinychat.compare import runs as compare_runs
from tinychat.errors import UserError
from tinychat.runs import failures, folders, trial
from tinychat.runtime import manifest


def make_run(outputs: Path, name: str, config: str = "stage: {}\nseed: 1\n", status: str | None = None) -> Path:
    folder = outputs / "default" / "pretrain" / name
    folder.mkdir(parents=True)
    (folder / folders.CONFIG).write_text(config)
    if status:
        (folder / folders.RESULT).write_text(json.dumps({"status": status}))
    return folder


def make_checkpoint(run_dir: Path, step: int, state: bool = True, score: float | None = None) -> Path:
    folder = run_dir / folders.CHECKPOINTS / f"step-{step:06d}"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    if state:
        (folder / folders.TRAINER_STATE).mkdir()
        (folder / folders.TRAINER_STATE / "trainer.json").write_text("{}")
    manifest.write_manifest(folder, score)
    return folder


def test_writing_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    folders.write_text_atomic(path, "old")

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        folders.write_text_atomic(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"], "no leftover of the failed write"


def test_unreadable_json_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"cut": ')
    assert folders.read_json(tmp_path / "a.json") is None
    assert folders.read_json(tmp_path / "b.json") is None


def test_identity_is_what_decides_the_result() -> None:
    config = {"seed": 1, "stage": {"lr": 0.1}, "tracker": {"name": "none"}, "launch": {"nproc": 1}}
    same = {**config, "tracker": {"name": "mlflow"}, "launch": {"nproc": 2}, "run_name": "x", "resume": "auto"}
    assert folders.config_identity(config) == folders.config_identity(dict(reversed(same.items())))
    assert folders.config_identity(config) != folders.config_identity({**config, "stage": {"lr": 0.2}})


def hold(run_dir: Path, ready, done) -> None:
    lock = folders.RunLock(run_dir)
    ready.set()
    done.wait(30)
    lock.release()


def test_a_folder_is_locked_while_its_process_lives(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    assert not folders.is_live(tmp_path)
    process = context.Process(target=hold, args=(tmp_path, ready, done))
    process.start()
    assert ready.wait(60)
    assert folders.is_live(tmp_path)
    with pytest.raises(UserError, match=f"in use by process {process.pid}"):
        folders.RunLock(tmp_path)
    process.kill()
    process.join()
    assert not folders.is_live(tmp_path)
    folders.RunLock(tmp_path).release()
    assert not folders.is_live(tmp_path)


def test_every_run_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    made = [folders.new_run_dir(tmp_path, "default", "x") for _ in range(5)]
    assert len(set(made)) == 5
    assert all(folder.is_dir() for folder in made)


def test_newest_run_by_the_time_in_its_name(tmp_path: Path) -> None:
    make_run(tmp_path, "2026-01-01_00-00-00", status="finished")
    second = make_run(tmp_path, "2026-01-02_00-00-00", status="finished")
    third = make_run(tmp_path, "2026-01-03_00-00-00", status="stopped")
    other = make_run(tmp_path, "2026-01-04_00-00-00", "stage: {}\nseed: 2\n", status="finished")
    make_run(tmp_path, "2026-01-05_00-00-00", "not: [yaml", status="finished")

    def newest(seed: int, finished: bool) -> Path | None:
        return folders.newest_run(tmp_path, "default", lambda config: config["seed"] == seed, finished)

    assert newest(1, finished=True) == second
    assert newest(1, finished=False) == third
    assert newest(2, finished=True) == other
    assert newest(3, finished=True) is None
    assert folders.newest_run(tmp_path, "elsewhere", lambda config: True, finished=True) is None


def test_newest_is_by_number_whatever_the_clock_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made in Auckland, then in Honolulu (a day earlier on the wall), then with a clock that was a year behind."""
    made = []
    for zone, now in (("Pacific/Auckland", 1.8e9), ("Pacific/Honolulu", 1.8e9 + 60), ("UTC", 1.77e9)):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        monkeypatch.setattr(time, "localtime", lambda now=now: time.gmtime(now - time.timezone))
        stamp = time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime())
        made.append(make_run(tmp_path, stamp, status="finished"))
        folders.mark_created(made[-1])
    monkeypatch.undo()
    time.tzset()
    assert made != sorted(made), "names alone tell another order"
    make_run(tmp_path, "2099-01-01_00-00-00", status="finished")  # of a version without numbers
    for expected in reversed(made):
        newest = folders.newest_run(tmp_path, "default", lambda config: True, finished=True)
        assert newest == expected
        (expected / folders.CONFIG).unlink()
    assert [folders.order_of(folder)[0] for folder in made] == [1, 2, 3]


def test_a_configuration_cut_before_its_stage_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_run(tmp_path, "2026-01-01_00-00-00", "model: {name: mini}\nseed: 1\n")
    assert folders.newest_run(tmp_path, "default", lambda config: True, finished=False) is None
    assert f"{folder / folders.CONFIG}: names no stage" in caplog.text and "passed over" in caplog.text


DAMAGED = {
    "empty": "",
    "cut": '{"stage": {"na',
    "foreign": "- 1\n",
    "other": "stage: pretrain\nmodel: 3\n",
    "zeros": "\0" * 99,
}


@pytest.mark.parametrize(
    "name", [folders.CONFIG, folders.RESULT, folders.CREATED, trial.FILE, failures.path_of(Path(), 0).name]
)
@pytest.mark.parametrize("damage", [*DAMAGED, "folder"])
def test_a_damaged_run_does_not_stop_the_others(
    name: str, damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = "stage: {name: pretrain}\nmodel: {name: mini}\n"
    good = make_run(tmp_path, "2026-01-01_00-00-00", config, "finished")
    folders.mark_created(good)
    bad = make_run(tmp_path, "2026-01-02_00-00-00", config, "finished")
    folders.mark_created(bad)
    (bad / name).unlink(missing_ok=True)
    (bad / name).mkdir() if damage == "folder" else (bad / name).write_text(DAMAGED[damage])

    def wanted(other: dict) -> bool:
        return other["stage"]["name"] == "pretrain" and other["model"]["name"] == "mini"

    newest = folders.newest_run(tmp_path, "default", wanted, finished=True, skip=trial.of_search)
    assert newest == (bad if name.startswith("error") else good)
    assert good in [run.folder for run in compare_runs.find(["default"], tmp_path)]
    failures.cause(bad)
    if name == folders.CREATED:
        assert any("counts as older" in message for message in caplog.messages)
    if damage != "foreign" or name != folders.CONFIG:  # CONFIG of a foreign kind is told by newest_run
        assert any(str(bad / name) in message for message in caplog.messages) or (damage, name) == (
            "folder",
            folders.CONFIG,
        )


def test_an_odd_lock_is_one_line(tmp_path: Path) -> None:
    (tmp_path / folders.LOCK).mkdir()
    assert not folders.is_live(tmp_path)
    with pytest.raises(UserError, match=r"\.lock: Is a directory"):
        folders.RunLock(tmp_path)


def test_outputs_that_moved_are_the_same_settings() -> None:
    def config(outputs: str, tokenizer: str) -> dict:
        stage = {"name": "eval", "against": [f"{outputs}/a/run", "org/name"]}
        return {"paths": {"outputs": outputs}, "tokenizer": {"path": tokenizer}, "stage": stage}

    old = config("/old/outputs", "/old/outputs/default/tokenizer")
    assert folders.config_identity(old) == folders.config_identity(config("new", "new/default/tokenizer"))
    assert folders.config_identity(old) != folders.config_identity(config("new", "elsewhere/default/tokenizer"))
    assert folders.config_identity(old) != folders.config_identity(config("/old/out", "/old/outputs/default/tokenizer"))


def test_checkpoints_in_the_order_of_their_steps(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000, 20):
        make_checkpoint(tmp_path, step, state=step != 1_000_000)
    (tmp_path / folders.CHECKPOINTS / ".saving-step-000030").mkdir()
    (tmp_path / folders.CHECKPOINTS / "step-best").mkdir()
    assert [folders.checkpoint_step(path) for path in folders.list_checkpoints(tmp_path)] == [20, 999_999, 1_000_000]
    assert [folders.checkpoint_step(path) for path in folders.resumable_checkpoints(tmp_path)] == [20, 999_999]
    assert folders.list_checkpoints(tmp_path / "nothing") == []


def test_where_a_started_run_goes_on(tmp_path: Path) -> None:
    assert folders.resume_step(tmp_path) is None
    assert folders.resume_step(tmp_path) == 0
    make_checkpoint(tmp_path, 5)
    make_checkpoint(tmp_path, 7, state=False)
    assert folders.resume_step(tmp_path) == 5


def test_a_path_means_a_checkpoint(tmp_path: Path) -> None:
    first, second = make_checkpoint(tmp_path, 5), make_checkpoint(tmp_path, 7)
    assert folders.resolve_checkpoint(str(first)) == first
    assert folders.resolve_checkpoint(str(tmp_path)) == second
    (tmp_path / folders.RESULT).write_text(json.dumps({"checkpoint": "checkpoints/step-000005"}))
    assert folders.resolve_checkpoint(str(tmp_path)) == first
    with pytest.raises(UserError, match="no such folder"):
        folders.resolve_checkpoint(str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no checkpoint"):
        folders.resolve_checkpoint(str(tmp_path / "empty"))


@pytest.mark.parametrize("name", ["model.safetensors", "trainer_state/trainer.json"])
def test_damage_is_noticed_and_another_checkpoint_named(tmp_path: Path, name: str) -> None:
    make_checkpoint(tmp_path, 5)
    damaged = make_checkpoint(tmp_path, 7)
    folders.verify_checkpoint(damaged)
    size = (damaged / name).stat().st_size
    os.truncate(damaged / name, 1)
    with pytest.raises(UserError, match=rf"{name} has 1 bytes, {size} were written.*use step-000005"):
        folders.verify_checkpoint(damaged)
    (damaged / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        folders.resolve_checkpoint(str(tmp_path))
    (damaged / manifest.MANIFEST).unlink()
    folders.verify_checkpoint(damaged)  # as any other folder of the hub: nothing to compare with
