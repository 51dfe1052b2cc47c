"""launchers/sweep_worker.sh with a program that only says how it was started."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, environment_of

WORKER = REPOSITORY / "launchers" / "sweep_worker.sh"
STUB = """#!/usr/bin/env bash
echo "$* gpu=${CUDA_VISIBLE_DEVICES-none}" > "started-$$"
if [ -n "${STUB_WAITS-}" ]; then
    trap 'echo interrupted > "ended-$$"; exit 130' INT
    while true; do sleep 0.05; done
fi
exit "${STUB_STATUS-0}"
"""


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    programs = tmp_path / "bin"
    programs.mkdir()
    gpus = '#!/usr/bin/env bash\nfor ((i = 0; i < ${STUB_GPUS-0}; i++)); do echo "GPU $i"; done\n'
    for name, content in (("stub", STUB), ("nvidia-smi", gpus)):
        (programs / name).write_text(content)
        (programs / name).chmod(0o755)
    return tmp_path


def start(bench: Path, *words: str, **variables: str) -> subprocess.Popen[str]:
    more = {"PYTHON": "stub", "PATH": f"{bench / 'bin'}:{os.environ['PATH']}", **variables}
    return subprocess.Popen(
        [str(WORKER), *words], cwd=bench, env=environment_of(**more), stderr=subprocess.PIPE, text=True
    )


def started(bench: Path) -> list[str]:
    return sorted(path.read_text().strip() for path in bench.glob("started-*"))


def test_a_worker_for_each_gpu(bench: Path) -> None:
    assert start(bench, "stage=ppo", "sweep=ppo_bayes", STUB_GPUS="3").wait(30) == 0
    assert started(bench) == [f"-m tinychat.train -m stage=ppo sweep=ppo_bayes gpu={i}" for i in range(3)]


def test_so_many_workers_as_were_asked_for(bench: Path) -> None:
    assert start(bench, "2", "sweep=ppo_bayes", STUB_STATUS="1").wait(30) == 1
    assert started(bench) == ["-m tinychat.train -m sweep=ppo_bayes gpu=none"] * 2


def test_ctrl_c_ends_all(bench: Path) -> None:
    process = start(bench, "2", "sweep=ppo_bayes", STUB_WAITS="1")
    end = time.monotonic() + 30
    while len(started(bench)) < 2:
        assert time.monotonic() < end
        time.sleep(0.02)
    time.sleep(0.2)  # the traps of the stub are set
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert len(list(bench.glob("ended-*"))) == 2


def test_without_words_it_says_how_it_is_used(bench: Path) -> None:
    process = start(bench, "2")
    assert process.wait(30) == 2
    assert process.stderr and "usage:" in process.stderr.read()
