"""One job as a job of slurm: the script, its submission, and the wait for its result.

The parent prepares the run folder and submits; each task of `srun` is one rank (tinychat.launch.guard), so no node runs
Hydra. Result and errors come back through the run folder, the queue is asked sparsely.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any

from tinychat.config.schema import Config, SlurmConfig
from tinychat.errors import UserError
from tinychat.launch.outer_launcher import is_of_launcher
from tinychat.launch.ranks import JobFailed, Stopped
from tinychat.runs import failures, folders
from tinychat.runtime import process

SCRIPT = "slurm.sbatch"
LOG = "slurm-%j.log"
UNKNOWN = "UNKNOWN"  # the queue did not answer
GONE_LOOKS = 2  # looks without the job before it counts as ended: a shared disk shows files late

BODY = Template("""\
# $name, submitted by tinychat. $limit
set -euo pipefail
$setup
# A rank for each task. They meet on the first node, at a port that follows from the job's number.
MASTER_ADDR=$$(scontrol show hostnames "$$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$$((10000 + SLURM_JOB_ID % 20000))
WORLD_SIZE=$world_size
: "$${OMP_NUM_THREADS:=$${SLURM_CPUS_PER_TASK:-1}}"
export MASTER_ADDR MASTER_PORT WORLD_SIZE OMP_NUM_THREADS$start

# SIGTERM comes here before the time limit, and by scancel --batch --signal=TERM: every rank sees the file, saves, ends.
stop=$stop
rm -f "$$stop" $run_dir/$reports # of a start that slurm has put back into the queue
trap 'touch "$$stop"' TERM
# shellcheck disable=SC2016 # the tasks' own variables
srun --kill-on-bad-exit=1$cpus bash -c 'RANK=$$SLURM_PROCID LOCAL_RANK=$$SLURM_LOCALID exec "$$@"' rank \\
    $worker &
ranks=$$!
while true; do # a signal ends a wait before the ranks have ended
    if wait "$$ranks"; then status=0; else status=$$?; fi
    kill -0 "$$ranks" 2>/dev/null || break
done
exit "$$status"
""")


def script(config: Config, run_dir: Path) -> str:
    """The text for sbatch. Every path in it is absolute."""
    launch, slurm, run_dir = config.launch, _options(config), run_dir.resolve()
    limit = "Stopped before its end, it is continued by the same command with resume=auto."
    if slurm.time is not None and slurm.save_minutes:
        limit = f"{slurm.save_minutes:g} minutes before the limit it saves and stops.\n# {limit}"
    start = os.environ.get(failures.START)
    body = BODY.substitute(
        name=_one_line(_job_name(config)),
        limit=limit,
        setup="".join(f"{line}\n" for line in slurm.setup),
        cpus=f" --cpus-per-task={slurm.cpus}" if slurm.cpus else "",  # srun does not take it from sbatch
        world_size=launch.nproc * launch.nnodes,
        stop=shlex.quote(str(run_dir / folders.STOP)),
        run_dir=shlex.quote(str(run_dir)),
        reports=failures.PATTERN,
        # Jobs may wait in the queue for one folder: a rank must know which of them it belongs to.
        start=f"\nexport {failures.START}={shlex.quote(start)}" if start else "",
        worker=shlex.join([sys.executable, "-m", "tinychat.launch.guard", str(run_dir)]),
    )
    return "\n".join(["#!/usr/bin/env bash", *_directives(config, run_dir), body])


def _options(config: Config) -> SlurmConfig:
    assert config.launch.slurm is not None  # config.launch_checks
    return config.launch.slurm


def _job_name(config: Config) -> str:
    return _options(config).job_name or config.run_name or folders.default_run_name(config)


def _directives(config: Config, run_dir: Path) -> list[str]:
    launch, slurm = config.launch, _options(config)
    options: dict[str, Any] = {
        "job-name": _one_line(_job_name(config)),
        "nodes": launch.nnodes,
        "ntasks-per-node": launch.nproc,
        "gpus-per-node": slurm.gpus or None,
        "cpus-per-task": slurm.cpus,
        "mem": slurm.memory,
        "time": slurm.time,
        "partition": slurm.partition,
        "account": slurm.account,
        "chdir": Path.cwd(),
        "output": str(run_dir).replace("%", "%%") + f"/{LOG}",
        "open-mode": "append",
        "signal": f"B:TERM@{round(60 * slurm.save_minutes)}" if slurm.save_minutes else None,
    }
    lines = [f"--{name}={_quoted(name, value)}" for name, value in options.items() if value is not None]
    return [f"#SBATCH {line}" for line in (*lines, *slurm.extra)]


def _quoted(name: str, value: Any) -> str:
    """A value for a line that sbatch reads; what follows a newline would be a line of shell. Raises UserError."""
    if not str(value).isprintable():
        raise UserError(f"launch=slurm: --{name}={str(value)!r}: a line of the script cannot hold this; choose another")
    return shlex.quote(str(value))


def _one_line(name: str) -> str:
    return "".join(letter if letter.isprintable() else "_" for letter in name)


def run(config: Config, run_dir: Path) -> bool:
    """Submit the job; with launch.wait stay until its end. Returns whether it has finished.

    Raises UserError, JobFailed or Stopped.
    """
    path = run_dir / SCRIPT
    folders.write_text_atomic(path, script(config, run_dir))
    job = _submit(path)
    log = run_dir / LOG.replace("%j", job)
    print(f"slurm job {job} submitted, its log: {log}", file=sys.stderr)
    if not config.launch.wait:
        return False
    try:
        with _raising():
            _wait(job, run_dir, log, _options(config).poll_seconds)
    except Stopped:
        _end(job, run_dir, _options(config).poll_seconds)
        raise
    return True


def _submit(path: Path) -> str:
    """Give the script to sbatch; returns the job's number."""
    # From within a job: its own variables would be taken for options of the new one.
    inner = ("SLURM_", "SBATCH_")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not is_of_launcher(name) and (name == "SLURM_CONF" or not name.startswith(inner))
    }
    done = subprocess.run(["sbatch", "--parsable", str(path)], env=kept, capture_output=True, text=True, check=False)
    job = done.stdout.strip().split(";")[0]
    if done.returncode or not job:
        said = " ".join((done.stderr or done.stdout).split()) or f"exit status {done.returncode}"
        raise UserError(f"sbatch refused {path}: {said}")
    return job


def _wait(job: str, run_dir: Path, log: Path, poll_seconds: float) -> None:
    """Until the run has finished; a job that ends otherwise raises JobFailed."""
    gone = 0
    while gone < GONE_LOOKS:
        if _result(run_dir).get("status") in folders.ENDED_WELL:
            return
        gone = gone + 1 if _state(job) is None else 0
        time.sleep(poll_seconds)
    result = _result(run_dir)
    if result.get("status") in folders.ENDED_WELL:
        return
    if result.get("status") == "stopped":
        raise JobFailed(f"{run_dir}: slurm job {job} was stopped and saved; the same command with resume=auto goes on")
    problem = failures.first(run_dir)
    if problem is None:
        how = _how_it_ended(job)
        said = f": {result['error']}" if result.get("error") else f" without a {folders.RESULT}"
        problem = f"slurm job {job} ended{f' ({how})' if how else ''}{said}; its log: {log}"
    raise JobFailed(problem)


def _result(run_dir: Path) -> dict[str, Any]:
    return folders.read_result(run_dir) or {}


def _state(job: str) -> str | None:
    """The job's state in the queue; None when it is no longer there."""
    done = _ask("squeue", "--noheader", "--format=%T", f"--jobs={job}")
    if done.returncode:
        return None if "Invalid job id" in done.stderr else UNKNOWN
    return done.stdout.strip() or None


def _how_it_ended(job: str) -> str:
    """The word that slurm's accounting has for a job's end, as TIMEOUT or OUT_OF_MEMORY; empty where it keeps none."""
    done = _ask("sacct", "--allocations", "--noheader", "--parsable2", "--format=State", f"--jobs={job}")
    return done.stdout.strip().splitlines()[0] if not done.returncode and done.stdout.strip() else ""


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


def _end(job: str, run_dir: Path, poll_seconds: float) -> None:
    """A job that waits is cancelled, one that runs saves first; a second signal cancels it at once."""
    _ask("scancel", "--state=PENDING", job)
    (run_dir / folders.STOP).touch()
    print(f"\nslurm job {job} is told to save and stop; once more cancels it at once", file=sys.stderr)
    try:
        with _raising():
            while _state(job) is not None:
                time.sleep(min(poll_seconds, 5))
    except Stopped:
        _ask("scancel", job)


@contextlib.contextmanager
def _raising() -> Iterator[None]:
    """SIGTERM and Ctrl-C raise Stopped, also out of a sleep. A terminal that closes (SIGHUP) ends the wait alone: the
    job runs on in the cluster."""

    def stop(number: int, _frame: Any) -> None:
        raise Stopped(128 + number)

    with process.handling(stop, (signal.SIGTERM, signal.SIGINT)):
        yield
