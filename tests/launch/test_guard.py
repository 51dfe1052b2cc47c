"""What becomes of a rank under its guard, with small processes in place of ranks."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import environment_of, wait_until
from tinychat.runs import failures

GUARD = """
import sys
from pathlib import Path
from tinychat.launch import guard

guard.POLL_SECONDS, guard.GRACE_SECONDS = 0.05, 0.3
run_dir, code = sys.argv[1:]
sys.exit(guard.Guard(Path(run_dir), 1, [sys.executable, "-c", code, run_dir]).watch())
"""
READY = "import os, signal, sys, time; open(sys.argv[1] + '/ready', 'w').close(); "
SLEEP = READY + "time.sleep(60)"
SAVES = "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n" + SLEEP


def start(run_dir: Path, code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", GUARD, str(run_dir), code], env=environment_of(), text=True)


def ended(run_dir: Path, code: str) -> int:
    return start(run_dir, code).wait(30)


def ready(run_dir: Path, code: str) -> subprocess.Popen[str]:
    guard = start(run_dir, code)
    wait_until((run_dir / "ready").exists, guard, 30)
    return guard


def report(run_dir: Path, rank: int = 1) -> dict:
    return json.loads((run_dir / f"error-rank{rank}.json").read_text())


def test_success_leaves_nothing(tmp_path: Path) -> None:
    assert ended(tmp_path, "pass") == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os._exit(3)", "rank 1 ended with exit status 3 and no message"),
        ("import os; os.kill(os.getpid(), 9)", "rank 1 was killed by SIGKILL, which the system sends when memory"),
        ("import os; os.kill(os.getpid(), 11)", "rank 1 was killed by SIGSEGV"),
    ],
)
def test_a_death_without_words_is_reported(tmp_path: Path, code: str, said: str) -> None:
    assert ended(tmp_path, code) == 1
    assert report(tmp_path)["message"].startswith(said)
    assert failures.first(tmp_path) == report(tmp_path)["message"]


def test_a_ranks_own_report_is_left_alone(tmp_path: Path) -> None:
    code = "import sys, pathlib\nfrom tinychat.runs import failures\n"
    code += "failures.write(pathlib.Path(sys.argv[1]), 1, 'no room', 'Traceback: no room'); sys.exit(1)"
    assert ended(tmp_path, code) == 1
    assert failures.first(tmp_path) == "rank 1 failed:\nTraceback: no room"


def test_the_failure_of_another_rank_ends_this_one(tmp_path: Path) -> None:
    """It answers no signal, as a rank that waits in a collective; and an old report is no failure."""
    failures.write(tmp_path, 2, "of an earlier start")
    guard = ready(tmp_path, "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP)
    time.sleep(0.3)
    assert guard.poll() is None
    began = time.monotonic()
    failures.write(tmp_path, 0, "rank 0 has no room")
    assert guard.wait(30) == 1
    assert time.monotonic() - began < 5
    assert not (tmp_path / "error-rank1.json").exists(), "it was ended, it did not fail"


def test_a_signal_after_a_failure_does_not_make_it_save(tmp_path: Path) -> None:
    guard = ready(tmp_path, "import signal\nsignal.signal(signal.SIGTERM, lambda *_: open('/dev/null'))\n" + SLEEP)
    failures.write(tmp_path, 0, "rank 0 has no room")
    guard.terminate()
    assert guard.wait(30) == 1


@pytest.mark.parametrize("by_file", [True, False])
def test_a_rank_that_is_told_to_stop_saves_and_is_no_failure(tmp_path: Path, by_file: bool) -> None:
    guard = ready(tmp_path, SAVES)
    if by_file:
        (tmp_path / ".stop").touch()
    else:
        guard.terminate()
    assert guard.wait(30) == 0
    assert failures.first(tmp_path) is None


def test_told_before_it_listens(tmp_path: Path) -> None:
    guard = ready(tmp_path, SLEEP)
    guard.terminate()
    assert guard.wait(30) == 143
    assert failures.first(tmp_path) is None


def test_the_cause_is_told_before_its_echoes(tmp_path: Path) -> None:
    """Rank 0 lost a connection, by its clock before rank 1 failed; the abort of a rank after another's failure."""
    failures.write(tmp_path, 0, "rank 0 lost its connection", echo=True)
    time.sleep(0.01)
    failures.write(tmp_path, 1, "boom", "Traceback\nValueError: boom\n")
    assert failures.first(tmp_path) == "rank 1 failed:\nTraceback\nValueError: boom"
    failures.begin(tmp_path)
    assert failures.first(tmp_path) is None
