"""Jobs of several processes: what a rank has to say reaches the terminal once, and no rank is left behind."""

from __future__ import annotations

import resource
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import (
    REPOSITORY,
    TORCHRUN,
    curve,
    error_line,
    only_run,
    result_of,
    rows,
    run_train,
    start_train,
    wait_until,
)
from tinychat.runs import folders as runs

DEEPSPEED = ("launch=deepspeed", "launch.nproc=2")
LONG = ("stage.max_steps=100000", "stage.eval_every=0", "stage.log_every=1", *TORCHRUN)


def ranks(parent: int) -> dict[int, psutil.Process]:
    """The ranks among the descendants of a command."""
    found = {}
    for process in psutil.Process(parent).children(recursive=True):
        try:
            if "tinychat.launch.worker" in process.cmdline():
                found[int(process.environ()["RANK"])] = process
        except (psutil.Error, KeyError):
            continue
    return found


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=20)[1]


@pytest.mark.slow
def test_a_killed_rank_ends_the_job_and_is_named(tiny: tuple[str, ...], tmp_path: Path) -> None:
    process = start_train(tmp_path, *tiny, *LONG, "run_dir=run")
    wait_until(lambda: len(rows(tmp_path / "run")) > 2, process)
    found = ranks(process.pid)
    assert sorted(found) == [0, 1]
    began = time.monotonic()
    found[1].kill()
    assert process.wait(60) == 1
    assert time.monotonic() - began < 20
    said = (tmp_path / "stderr.txt").read_text()
    assert said.splitlines()[-1].startswith("error: rank 1 was killed by SIGKILL")
    assert said.count("\nerror: ") == 1
    assert "Traceback" not in said
    assert gone(list(found.values()))


@pytest.mark.slow
def test_no_rank_outlives_the_command(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """kill -9 of the command alone: its ranks save and go, and the folder is free."""
    process = start_train(tmp_path, *tiny, *LONG, "checkpoint.every=0", "run_dir=run")
    wait_until(lambda: len(rows(tmp_path / "run")) > 2, process)
    found = ranks(process.pid)
    process.kill()
    assert gone(list(found.values()))
    assert result_of(tmp_path / "run")["status"] == "stopped"
    assert not runs.is_live(tmp_path / "run")
    assert runs.checkpoint_step(runs.list_checkpoints(tmp_path / "run")[-1]) == max(curve(tmp_path / "run"))


# What Python runs when it starts: a module that ranks alone import fails.
BROKEN = """
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "tinychat.stages.loop":
            raise KeyError("a mistake of ours")
sys.meta_path.insert(0, Broken())
"""


@pytest.mark.slow
def test_errors_of_ranks_are_told_once(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """A full disk on rank 0, then a mistake in the program."""
    command = (*tiny, *LONG, "checkpoint.every=50", "run_dir=run", "resume=auto")
    run = tmp_path / "run"
    process = start_train(tmp_path, *command)
    wait_until(lambda: runs.list_checkpoints(run), process)
    # A small limit on the size of a file; rank 0 has no room for the weights then.
    resource.prlimit(ranks(process.pid)[0].pid, resource.RLIMIT_FSIZE, (60_000, 60_000))
    assert process.wait(60) == 1
    said = (tmp_path / "stderr.txt").read_text()
    assert said.splitlines()[-1].startswith("error: could not save run/checkpoints/step-"), said[-2000:]
    assert said.count("\nerror: ") == 1
    assert "Traceback" not in said
    runs.verify_checkpoint(runs.list_checkpoints(run)[-1])

    (tmp_path / "sitecustomize.py").write_text(BROKEN)
    began = time.monotonic()
    done = run_train(tmp_path, *command, PYTHONPATH=f"{tmp_path}:{REPOSITORY}")
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1, done.stderr[-3000:]
    assert "rank " in done.stderr
    assert "KeyError: 'a mistake of ours'" in done.stderr.splitlines()[-1]
    assert time.monotonic() - began < 60

    shutil.rmtree(run)
    line = error_line(run_train(tmp_path, *command, "model.vocab_size=300"))
    assert "model.vocab_size=300: the tokenizer has 400 entries" in line


@pytest.mark.slow
def test_a_multirun_gives_each_job_a_folder_and_a_process_of_its_own(tiny: tuple[str, ...], tmp_path: Path) -> None:
    done = run_train(tmp_path, "-m", *tiny, "stage.max_steps=2", "stage.samples=[]", "seed=1,2")
    assert done.returncode == 0, done.stderr[-3000:]
    folders = sorted((tmp_path / "outputs" / "tinychat" / "pretrain-mini-tinyworld").iterdir())
    assert len(folders) == 2
    losses = {result_of(folder)["objective"] for folder in folders}
    assert len(losses) == 2, "the seeds differ"
    assert all(result_of(folder)["status"] == "finished" for folder in folders)


@pytest.mark.slow
def test_ctrl_c_ends_a_whole_multirun(tiny: tuple[str, ...], tmp_path: Path) -> None:
    process = start_train(tmp_path, "-m", *tiny, "stage.max_steps=100000", "stage.log_every=1", "seed=1,2")
    folder = tmp_path / "outputs" / "tinychat" / "pretrain-mini-tinyworld"
    wait_until(lambda: folder.is_dir() and any(rows(run) for run in folder.iterdir()), process)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    (run,) = folder.iterdir()
    assert result_of(run)["status"] == "stopped"
    assert runs.list_checkpoints(run)


@pytest.mark.parametrize("launcher", [TORCHRUN, pytest.param(DEEPSPEED, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_variables_of_an_outer_launcher_do_not_reach_the_ranks(
    tiny: tuple[str, ...], tmp_path: Path, launcher: tuple[str, ...]
) -> None:
    outer = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1"}
    outer |= {"TORCHELASTIC_RUN_ID": "outer", "TORCHELASTIC_USE_AGENT_STORE": "True", "PET_MAX_RESTARTS": "2"}
    command = (*tiny, *launcher, "device=cpu", "stage.max_steps=2", "run_dir=run")
    done = run_train(tmp_path, *command, **outer)
    assert done.returncode == 0, done.stderr[-3000:]
    assert result_of(tmp_path / "run")["facts"]["ranks"] == 2


@pytest.mark.slow
def test_a_second_start_of_the_same_job_lets_the_first_go_on(tiny: tuple[str, ...], tmp_path: Path) -> None:
    command = (*tiny, *TORCHRUN, "resume=auto", "stage.max_steps=10", "stage.samples=[]")
    process = start_train(tmp_path, *command)
    wait_until(lambda: list((tmp_path / "outputs").glob("*/*/*/config.yaml")), process)
    line = error_line(run_train(tmp_path, *command))
    assert f"is in use by process {process.pid}" in line
    assert process.wait(200) == 0, (tmp_path / "stderr.txt").read_text()
    assert result_of(only_run(tmp_path))["status"] == "finished"
