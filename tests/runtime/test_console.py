"""Log lines, durations, memory and the progress bar."""

from __future__ import annotations

import logging
import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tinychat.runtime import console
from tinychat.runtime.console import (
    Progress,
    format_duration,
    format_eval,
    format_step,
    peak_memory_gb,
    setup_logging,
)


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    root, own = logging.getLogger(), logging.getLogger("tinychat")
    before = (list(root.handlers), root.level, own.level)
    yield
    for handler in root.handlers:
        if handler not in before[0]:
            handler.close()
    root.handlers[:], root.level = before[0], before[1]
    root.setLevel(before[1])
    own.setLevel(before[2])


def test_step_line() -> None:
    metrics = {
        "schedule/lr": 3e-4,
        "train/loss": 3.41234,
        "train/grad_norm": 0.8123,
        "perf/tokens_per_s": 1950.4,
    }
    metrics |= {"perf/memory_gb": 2.1, "data/epoch": 0.3}
    line = format_step(120, 500, metrics, 312)
    assert line == "step 120/500 | loss 3.412 | lr 3.0e-04 | grad 0.81 | 1,950 tok/s | 2.1 GB | 5m12s left"
    assert format_step(1, 2, {"train/loss": float("nan")}) == "step 1/2 | loss nan"


def test_eval_line_takes_metrics_of_later_stages() -> None:
    assert format_eval(100, {"eval/loss": 3.9, "eval/ppl": 49.402}) == "step 100 | eval loss 3.9000 ppl 49.4"
    assert format_eval(7, {"eval/safe_rate": 0.91234}) == "step 7 | eval safe rate 0.9123"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0s"),
        (-3, "0.0s"),
        (4.21, "4.2s"),
        (9.96, "10s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (312, "5m12s"),
        (3599.6, "1h00m"),
        (3780, "1h03m"),
        (187200, "2d04h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_peak_memory_counts_this_process_alone() -> None:
    code = "from tinychat.runtime.console import peak_memory_gb; a = peak_memory_gb('cpu'); b = b'1' * 300_000_000;"
    code += "print(a, peak_memory_gb('cpu'))"
    before, after = map(float, subprocess.check_output([sys.executable, "-c", code]).split())
    assert 0 < before < 0.2 and 0.29 < after - before < 0.32
    assert peak_memory_gb("cpu") > 0


def test_time_left_follows_the_steps_but_not_the_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    progress = Progress(total=100, show=False)
    now[0] += 30  # a slow first step, compilation for one, is left out
    progress.step(1)
    assert progress.seconds_left() is None
    for step in range(2, 12):
        now[0] += 2
        progress.step(step)
    assert progress.seconds_left() == pytest.approx(2 * 89)
    now[0] += 50
    progress.evaluated(11, {"eval/loss": 1.0})
    now[0] += 2
    progress.step(12)
    assert progress.seconds_left() == pytest.approx(2 * 88)


def test_time_left_is_bounded_by_the_time_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    progress = Progress(total=1000, start=100, max_seconds=60, show=False)
    for step in range(101, 111):
        now[0] += 1
        progress.step(step)
    assert progress.seconds_left() == pytest.approx(50)


def test_log_file_has_the_lines_with_times_and_levels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(tmp_path / "run", rank=0)
    setup_logging(tmp_path / "run", rank=0)  # no double lines
    with Progress(total=2) as progress:
        progress.step(1)
        progress.step(2, {"train/loss": 1.5})
    logging.getLogger("tinychat.x").warning("careful")
    logging.getLogger("other").info("noise")
    logging.getLogger("other").warning("listen")
    lines = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines)
    assert [line[20:] for line in lines] == ["step 2/2 | loss 1.500", "warning: careful", "warning: listen"]
    terminal = capsys.readouterr().err.splitlines()
    assert [line[9:] for line in terminal] == [line[20:] for line in lines]


def test_other_ranks_log_warnings_only_and_not_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_logging(tmp_path, rank=1)
    logging.getLogger("tinychat.x").info("quiet")
    logging.getLogger("tinychat.x").warning("loud")
    assert (tmp_path / "log.txt").read_text().splitlines()[0].endswith(" [rank 1] warning: loud")
    assert capsys.readouterr().err == ""


def test_full_disk_says_so_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.txt").symlink_to("/dev/full")
    setup_logging(tmp_path, rank=0)
    for _ in range(3):
        logging.getLogger("tinychat.x").info("line")
    err = capsys.readouterr().err
    assert err.count("cannot be written") == 1 and "Traceback" not in err and err.count(" line") == 3


ON_A_TERMINAL = """
import logging, sys, time
from tinychat.runtime.console import Progress, setup_logging
setup_logging(None, 0)
with Progress(total=4) as progress:
    for step in range(1, 5):
        time.sleep(0.15)
        progress.step(step, {"train/loss": 5.0 / step, "perf/tokens_per_s": 1234.0, "perf/memory_gb": 2.0})
"""


def test_on_a_terminal_a_bar_runs_beside_whole_log_lines() -> None:
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen([sys.executable, "-c", ON_A_TERMINAL], stderr=slave, stdout=slave, env=environment)
    os.close(slave)
    output = b""
    try:
        while select.select([master], [], [], 20)[0] and (data := os.read(master, 65536)):
            output += data
    except OSError:  # the terminal is closed
        pass
    os.close(master)
    assert process.wait(20) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode())
    assert "4/4" in text and "━" in text and "1,234 tok/s · 2.0 GB" in text
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines()]
    assert [line[9:30] for line in lines if " step " in line] == [
        f"step {step}/4 | loss {5 / step:.3f}" for step in range(1, 5)
    ]
