"""The files under launchers/ are started as a person would."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, environment_of

TORCHRUN = REPOSITORY / "launchers" / "torchrun.sh"


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


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("path", sorted((REPOSITORY / "launchers").glob("*.sh")), ids=lambda path: path.name)
def test_shellcheck_is_content(path: Path) -> None:
    subprocess.run(["shellcheck", str(path)], check=True)
