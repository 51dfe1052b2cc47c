"""A start of a job, from the choice of its folder to its ranks: what keeps it apart from other starts."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from tests.config.test_compose import CONF
from tinychat.config import schema
from tinychat.config.schema import Config
from tinychat.errors import UserError
from tinychat.launch import job as launch
from tinychat.launch import ranks
from tinychat.runs import failures, folders, parents
from tinychat.runtime import run_files, terminal
from tinychat.stages import StopFlag


def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks_do: Callable[[Path], None], *more: str) -> None:
    """The parent's part of a job of two ranks, with a function in their place."""

    def run(_config: Config, run_dir: Path) -> None:
        ranks_do(run_dir)

    monkeypatch.setattr(ranks, "run", run)
    monkeypatch.setattr(parents, "find_parents", lambda *_: {"init_from": None})
    job(tmp_path, *more)


def job(tmp_path: Path, *more: str) -> None:
    schema.register()
    with initialize_config_dir(str(CONF)):
        node = compose("config", ["launch=torchrun", "resume=auto", f"paths.outputs={tmp_path}", *more])
    launch.run_job(schema.to_config(node), node)


def finish(run_dir: Path) -> None:
    (run_dir / folders.RESULT).write_text('{"status": "finished", "objective": 1.0}')


@pytest.mark.parametrize("file", [failures.START_FILE, parents.FILE, terminal.FILE, folders.CREATED, folders.CONFIG])
def test_nothing_is_left_of_a_start_that_finds_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    real = run_files.write_text_atomic

    def write(path: Path, *content: Any, **options: Any) -> None:
        if path.name == file:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, *content, **options)

    for module in (run_files, folders, terminal):
        monkeypatch.setattr(module, "write_text_atomic", write)
    with pytest.raises(UserError, match=f"{file}: disk full"):
        started(tmp_path / "outputs", monkeypatch, finish, "tracker.uri=http://user:secret@host")
    assert list(tmp_path.iterdir()) == []


def test_a_second_start_is_refused_before_it_touches_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the ranks have imported anything: rank 0's own lock is not there yet."""

    def first(run_dir: Path) -> None:
        failures.write(run_dir, 1, "no room")
        (run_dir / folders.STOP).touch()
        before = {path.name: path.read_bytes() for path in run_dir.iterdir()}
        assert folders.is_live(run_dir)
        for choice in ("resume=auto", f"run_dir={run_dir}", f"resume={run_dir}"):
            with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
                job(tmp_path, choice)
        assert {path.name: path.read_bytes() for path in run_dir.iterdir()} == before
        assert failures.first(run_dir) == "no room"
        failures.path_of(run_dir, 1).unlink()
        finish(run_dir)

    started(tmp_path, monkeypatch, first)
    (run_dir,) = (path.parent for path in tmp_path.rglob(folders.RESULT))
    assert not folders.is_live(run_dir)
    assert failures.START not in os.environ


def test_what_is_left_of_an_earlier_start_keeps_the_next_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks whose command was killed, while they save."""
    started(tmp_path, monkeypatch, finish)
    (run_dir,) = (path.parent for path in tmp_path.rglob(folders.RESULT))
    (run_dir / folders.RESULT).unlink()
    rank = folders.RunLock(run_dir)
    with pytest.raises(UserError, match="in use by process"):
        started(tmp_path, monkeypatch, finish)
    rank.release()
    started(tmp_path, monkeypatch, finish)


def test_a_refused_start_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object) -> None:
        raise UserError("no parent")

    monkeypatch.setattr(parents, "find_parents", nothing)
    with pytest.raises(UserError, match="no parent"):
        job(tmp_path, f"run_dir={tmp_path}/mine")
    assert list(tmp_path.iterdir()) == []


def test_the_report_of_another_start_is_no_concern_of_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(failures.START, failures.begin(tmp_path))
    failures.write(tmp_path, 0, "the folder is in use")
    assert failures.first(tmp_path) == "the folder is in use"
    monkeypatch.setenv(failures.START, "another")
    assert failures.first(tmp_path) is None
    assert failures.stamps(tmp_path) == {}
    with StopFlag(tmp_path, speaks=False).listening(insist=True) as stop:
        os.kill(os.getpid(), 15)  # exits at once where another rank has failed
        time.sleep(0)
        assert stop.signal_number == 15


def test_a_node_with_a_command_of_its_own_takes_the_name_from_the_folder(tmp_path: Path) -> None:
    name = failures.begin(tmp_path)
    assert failures.start_of(tmp_path) == name
    failures.write(tmp_path, 3, "boom")
    assert json.loads(failures.path_of(tmp_path, 3).read_text())["start"] == name


@pytest.mark.parametrize("text", ["", "[]", '"x"', "{}", '{"start": null, "rank": 0, "message": 3}', "\udcff"])
def test_what_is_no_report_is_left_out(tmp_path: Path, text: str) -> None:
    failures.path_of(tmp_path, 0).write_text(text, errors="surrogateescape")
    assert failures.first(tmp_path) is None
    assert failures.stamps(tmp_path) == {}


def test_a_fork_that_outlives_its_job_does_not_keep_the_folder(tmp_path: Path) -> None:
    lock = folders.RunLock(tmp_path)
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    try:
        time.sleep(0.2)
        assert folders.is_live(tmp_path)
        lock.release()
        assert not folders.is_live(tmp_path)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
