"""The user's own launcher around the command: one line instead of the same run several times."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import environment_of
from tinychat.errors import UserError
from tinychat.launch import outer_launcher

TORCHRUN = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}
DEEPSPEED = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_SIZE": "2", "CROSS_SIZE": "1"}
MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}


@pytest.mark.parametrize(
    ("words", "variables", "says"),
    [
        (
            [],
            TORCHRUN,
            "torchrun starts this command once for each rank.*launch=torchrun launch.nproc=2 .or launch=dee",
        ),
        (["seed=2"], DEEPSPEED, "tinychat.train seed=2 launch=deepspeed launch.nproc=2 .or launch=torchrun"),
        (["--local_rank=0", "seed=2"], {}, "tinychat.train seed=2 launch=deepspeed launch.nproc=1"),
        (["launch=inline"], MPI, "mpirun starts"),
        (["-m", "seed=1,2"], {"PMI_SIZE": "3"}, "mpiexec starts.*launch=torchrun launch.nproc=3"),
    ],
)
def test_refused(words: list[str], variables: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        outer_launcher.refuse("tinychat.train", words, variables)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "variables"),
    [
        ([], {}),
        ([], {**TORCHRUN, "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}),
        (["launch=torchrun"], TORCHRUN),  # of a launcher further out, as a program that was started by it
        ([], {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "node0"}),  # of a platform for its nodes
        ([], {"SLURM_PROCID": "1", "PMI_SIZE": "2"}),
    ],
)
def test_let_through(words: list[str], variables: dict[str, str]) -> None:
    outer_launcher.refuse("tinychat.train", words, variables)


def test_tasks_of_srun_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (([], True), (["-m"], False), (["launch=torchrun"], False)):
        outer_launcher.refuse("tinychat.train", words, {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"})
        assert capsys.readouterr().err.startswith("note: srun starts this command 4 times") is said


def test_one_rank_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outer_launcher, "TOLD_SECONDS", 0)
    with pytest.raises(SystemExit) as caught:
        outer_launcher.refuse("tinychat.train", [], {**TORCHRUN, "RANK": "1", "LOCAL_RANK": "1"})
    assert caught.value.code == 1


@pytest.mark.parametrize("module", ["tinychat.train", "tinychat.pipeline"])
def test_torchrun_around_the_command(module: str, tmp_path: Path) -> None:
    """The real one; the command's own launch= does not make two runs of two ranks right."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", module]
    done = subprocess.run(
        [*command, "launch=torchrun"], cwd=tmp_path, env=environment_of(), capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode
    assert len(lines) == 1, done.stderr
    assert "torchrun starts this command once for each rank" in lines[0]
    assert list(tmp_path.iterdir()) == []
