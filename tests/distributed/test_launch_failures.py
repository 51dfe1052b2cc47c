"""One of two ranks fails in the middle of training, the other waits for it: over within 20 s, and told once.

A rank that is killed under torchrun is in test_launch.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import REPOSITORY, TORCHRUN, error_line, result_of, rows, run_train, start_train, wait_until
from tests.distributed.test_launch import gone, ranks

ENDLESS = ("stage.max_steps=100000", "stage.eval_every=0", "stage.log_every=1", "device=cpu", "run_dir=run")
DEEPSPEED = ("launch=deepspeed", "launch.nproc=2")
# Python runs this before a program: SIGUSR1 is an error in the middle of whatever a rank does.
SITECUSTOMIZE = """
import signal

def fail(number, frame):
    raise ValueError("injected into this rank")

signal.signal(signal.SIGUSR1, fail)
"""
LIMIT_SECONDS = 20


def training(folder: Path, *overrides: str) -> tuple[subprocess.Popen[str], dict[int, psutil.Process]]:
    """Two ranks that have made a few steps."""
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    process = start_train(folder, *overrides, *ENDLESS, PYTHONPATH=f"{folder}:{REPOSITORY}")
    wait_until(lambda: len(rows(folder / "run")) > 2, process)
    found = ranks(process.pid)
    assert sorted(found) == [0, 1]
    return process, found


def said_after(process: subprocess.Popen[str], folder: Path, seconds: float = LIMIT_SECONDS) -> str:
    began = time.monotonic()
    assert process.wait(90) == 1
    assert time.monotonic() - began < seconds
    said = (folder / "stderr.txt").read_text()
    assert said.count("\nerror: ") == 1, said
    return said


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [pytest.param(TORCHRUN, id="torchrun"), pytest.param(DEEPSPEED, id="deepspeed")])
def test_an_error_is_told_once_with_its_rank(tiny: tuple[str, ...], tmp_path: Path, launcher: tuple[str, ...]) -> None:
    process, found = training(tmp_path, *tiny, *launcher)
    found[1].send_signal(signal.SIGUSR1)
    said = said_after(process, tmp_path)
    assert "\nerror: rank 1 failed:\nTraceback (most recent call last):\n" in said
    assert said.endswith("\nValueError: injected into this rank\n")
    assert said.count("Traceback") == 1, said
    assert gone(list(found.values()))
    assert result_of(tmp_path / "run")["status"] == "failed", "rank 0 had the time to write how it ended"


@pytest.mark.slow
def test_deepspeeds_launcher_names_a_killed_rank(tiny: tuple[str, ...], tmp_path: Path) -> None:
    process, found = training(tmp_path, *tiny, *DEEPSPEED)
    found[1].kill()
    said = said_after(process, tmp_path)
    assert said.splitlines()[-1].startswith("error: rank 1 was killed by SIGKILL, which the system sends"), said
    assert "Traceback" not in said
    assert gone(list(found.values()))


@pytest.mark.slow
def test_a_node_that_does_not_come_is_a_timeout_with_a_message(tiny: tuple[str, ...], tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    nodes = ("launch=torchrun", "launch.nproc=1", "launch.nnodes=2", f"launch.rdzv_endpoint={address}", "run_dir=run")
    line = error_line(run_train(tmp_path, *tiny, *nodes, "device=cpu", "launch.timeout_minutes=0.05"))
    assert line.startswith(f"error: node 0: the 2 nodes did not meet at launch.rdzv_endpoint={address} within launch.t")
    assert "1/2 clients joined" in line


@pytest.mark.slow
def test_a_rank_that_hangs_is_a_timeout_with_a_message(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """As a node that is lost: nothing closes the connection."""
    process, found = training(tmp_path, *tiny, *TORCHRUN, "launch.timeout_minutes=0.1")
    found[1].suspend()
    said = said_after(process, tmp_path, 6 + LIMIT_SECONDS)
    last = said.splitlines()[-1]
    assert last.startswith("error: rank 0 waited 0.1 minutes for the others in tinychat/"), said
    assert "a node is lost or a rank hangs (launch.timeout_minutes=" in last
    assert "Traceback" not in said
    assert gone(list(found.values()))
