"""Signals that ask to save and stop: who hears them, and what becomes of processes that are forked meanwhile."""

from __future__ import annotations

import multiprocessing
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import environment_of
from tinychat.runtime import process as signals
from tinychat.stages import StopFlag


@pytest.mark.parametrize("number", signals.STOPPING)
def test_a_patient_stage_hears_each_of_them_and_goes_on(number: int, tmp_path: Path) -> None:
    before = [signal.getsignal(one) for one in signals.STOPPING]
    with StopFlag(tmp_path).listening(insist=True) as stop:
        os.kill(os.getpid(), number)
        time.sleep(0)
        assert stop.signal_number == number
    assert [signal.getsignal(one) for one in signals.STOPPING] == before


def test_nohup_is_respected(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopFlag(tmp_path).listening(insist=True) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0)
            assert stop.signal_number == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_forked_process_ends_by_them(number: int, tmp_path: Path) -> None:
    """As the workers of a pool must, which ends them by SIGTERM."""
    with StopFlag(tmp_path).listening(insist=True) as stop:
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        os.kill(child.pid or 0, number)
        child.join(20)
        ended = child.exitcode
        child.kill()
        assert ended == -number
        assert stop.signal_number == 0
        os.kill(os.getpid(), number)
        time.sleep(0)
        assert stop.signal_number == number, "the parent still listens"


def test_a_forked_process_does_its_work_when_ctrl_c_comes(tmp_path: Path) -> None:
    with StopFlag(tmp_path).listening(insist=True) as stop:
        with multiprocessing.get_context("fork").Pool(1) as pool:
            (pid,) = pool.map(_pid, [0])
            work = pool.apply_async(time.sleep, (0.2,))
            for process in (pid, os.getpid()):  # as a terminal sends it
                os.kill(process, signal.SIGINT)
            work.get(20)
        assert stop.signal_number == signal.SIGINT


def _pid(_: int) -> int:
    return os.getpid()


CLOSES = """
import os, sys, time
from pathlib import Path
from tinychat.runtime import process

told = []
with process.handling(lambda number, frame: told.append(number)):
    print("ready", flush=True)
    while not told:
        time.sleep(0.02)
    print("saving", flush=True)
    sys.stderr.write("saving")
    sys.stderr.flush()
    Path(sys.argv[1]).write_text(str(told))
"""


def test_a_terminal_that_closes_does_not_break_what_is_said_afterwards(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, termios; fcntl.ioctl(1, termios.TIOCSCTTY, 0)\n" + CLOSES,
            tmp_path / "out",
        ],
        env=environment_of(),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    assert b"ready" in os.read(master, 100)
    os.close(master)
    assert process.wait(30) == 0
    assert (tmp_path / "out").read_text() == str([int(signal.SIGHUP)])


@pytest.mark.parametrize(("more", "said"), [("", "found"), ("end_without_a_last_look()", "")])
def test_a_command_ends_without_a_last_look_for_garbage(more: str, said: str) -> None:
    code = f"""
from tinychat.runtime.process import end_without_a_last_look
class Garbage:
    def __del__(self):
        print("found")
one = Garbage()
one.itself = one
{more}
"""
    assert subprocess.check_output([sys.executable, "-c", code], env=environment_of(), text=True).strip() == said
