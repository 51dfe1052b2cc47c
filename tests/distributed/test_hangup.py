"""A terminal that closes: every rank saves, as at SIGTERM."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import STARTED, TORCHRUN, environment_of, result_of, rows, wait_until
from tinychat.runs import folders

ENDLESS = ("stage.max_steps=100000", "stage.eval_every=0", "stage.log_every=1", "checkpoint.every=0", "run_dir=run")
IN_A_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "tinychat.train", *sys.argv[1:]])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [pytest.param((), id="inline"), pytest.param(TORCHRUN, id="torchrun"), pytest.param(("-m",), id="sweep")],
)
def test_a_terminal_that_closes_loses_nothing(tiny: tuple[str, ...], tmp_path: Path, launcher: tuple[str, ...]) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", IN_A_TERMINAL, *launcher, *tiny, *ENDLESS],
        cwd=tmp_path,
        env=environment_of(TERM="dumb"),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        text=True,
        start_new_session=True,
    )
    STARTED.append(process)
    os.close(slave)
    wait_until(lambda: len(rows(tmp_path / "run")) > 2, process)
    os.close(master)
    assert process.wait(60) == 129
    assert result_of(tmp_path / "run")["status"] == "stopped"
    assert folders.list_checkpoints(tmp_path / "run")
