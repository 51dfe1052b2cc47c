"""Launchers that reach other machines, on a cluster of one: real ranks, stand-ins for slurm, pdsh and ssh."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, environment_of, result_of, rows, run_train, start_train, wait_until
from tests.distributed import cluster
from tests.distributed.test_launch import gone, ranks
from tinychat.runs import folders

SLURM = ("launch=slurm", "launch.slurm.poll_seconds=0.2", "device=cpu")


def first_on_path(folder: Path) -> str:
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.slow
def test_slurm_trains_two_ranks_and_brings_the_objective_back(tiny: tuple[str, ...], tmp_path: Path) -> None:
    path = first_on_path(cluster.slurm(tmp_path / "slurm"))
    command = (*tiny, *SLURM, "launch.nproc=2", "stage.max_steps=2", "stage.samples=[]", "run_dir=run")
    done = run_train(tmp_path, *command, PATH=path)
    assert done.returncode == 0, done.stderr[-3000:]
    result = result_of(tmp_path / "run")
    assert result["status"] == "finished"
    assert result["facts"]["ranks"] == 2
    (log,) = (tmp_path / "run").glob("slurm-*.log")
    assert "step 2/2" in log.read_text()


@pytest.mark.slow
def test_a_multirun_submits_a_job_for_each_trial(tiny: tuple[str, ...], tmp_path: Path) -> None:
    folder = cluster.slurm(tmp_path / "slurm")
    finishes = """echo '{"status": "finished", "objective": 1.5}' > "$1/result.json" """
    done = run_train(tmp_path, "-m", *tiny, *SLURM, "seed=1,2", PATH=first_on_path(folder), FAKE_RANKS=finishes)
    assert done.returncode == 0, done.stderr[-3000:]
    scripts = (folder / "submitted").read_text().splitlines()
    assert len(set(scripts)) == 2
    assert all((tmp_path / script).with_name("config.yaml").exists() for script in scripts)


def test_a_dry_run_of_every_launcher_writes_nothing(tiny: tuple[str, ...], tmp_path: Path) -> None:
    path = str(tmp_path)  # no slurm, no pdsh there
    for launcher in ("inline", "torchrun", "deepspeed", "slurm"):
        done = run_train(tmp_path, *tiny, f"launch={launcher}", "launch.dry_run=true", PATH=path)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "tinychat.launch.guard" in done.stdout
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.slow
def test_two_nodes_of_a_hostfile_by_deepspeeds_launcher(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """Started by launchers/deepspeed.sh."""
    folder = cluster.nodes(tmp_path / "bin")
    (tmp_path / "hosts").write_text("node0 slots=1\nnode1 slots=1\n")
    more = {"HOSTFILE": "hosts", "PATH": first_on_path(folder), "ENDPOINT": f"127.0.0.1:{29000 + os.getpid() % 500}"}
    more |= {"PYTHON": sys.executable, "HF_TOKEN": "hf_secret", "HF_HUB_DISABLE_TELEMETRY": "1"}
    more |= {"RANK": "3", "WORLD_SIZE": "4", "MASTER_PORT": "1", "LOCAL_SIZE": "4"}  # of a launcher around it
    done = subprocess.run(
        [
            REPOSITORY / "launchers" / "deepspeed.sh",
            *tiny,
            "device=cpu",
            "stage.max_steps=2",
            "run_dir=run",
        ],
        cwd=tmp_path,
        env=environment_of(**more),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert result_of(tmp_path / "run")["facts"]["ranks"] == 2
    (line,) = (folder / "pdsh.log").read_text().splitlines()
    assert line.startswith("node0,node1 ")
    assert "export OMP_NUM_THREADS=1; " in line
    assert "export DS_ACCELERATOR=cpu; " in line
    assert "export HF_HUB_DISABLE_TELEMETRY=1; " in line
    assert "hydra" not in line
    assert "note: not carried to other nodes" in done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]
    assert line.endswith("tinychat.launch.guard run")


@pytest.mark.slow
def test_deepspeeds_launcher_waits_for_ranks_that_save(tiny: tuple[str, ...], tmp_path: Path) -> None:
    process = start_train(
        tmp_path, *tiny, "launch=deepspeed", "device=cpu", "stage.max_steps=100000", "stage.log_every=1", "run_dir=run"
    )
    wait_until(lambda: len(rows(tmp_path / "run")) > 2, process)
    found = ranks(process.pid)
    process.send_signal(signal.SIGTERM)
    assert process.wait(90) == 143, (tmp_path / "stderr.txt").read_text()
    assert gone(list(found.values()))
    assert result_of(tmp_path / "run")["status"] == "stopped"
    folders.verify_checkpoint(folders.list_checkpoints(tmp_path / "run")[-1])
