"""`python -m tinychat.train` whose trials compute a formula. All else is real: Hydra, the study, run
folders, trial.json, pruning through files. Each command is a process, forked from one that has the imports done.

The objective is 1 - (log10(lr) + 3)^2 - beta; it is reached over ten steps.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.conftest import environment_of
from tests.forks import run_and_leave, spare_the_collector

STEPS = 10


def measured(config: Any, share: float) -> dict[str, float]:
    stage = config.stage
    score = 1 - (math.log10(stage.lr) + 3) ** 2 - stage.beta
    found = {
        "eval/objective": score * share,
        "eval/reward": score,
        "eval/kl": 1 / stage.beta,
        "eval/instruction_accuracy": stage.lam,
    }
    return {name: found[name] for name in os.environ.get("FAKE_METRICS", " ".join(found)).split()}


def fake_ranks(config: Any, run_dir: Path) -> None:
    """In the place of ranks.run. FAKE_SECONDS: of a step. FAKE_FAIL_ABOVE: a learning rate that fails."""
    from tinychat.launch import job as launch
    from tinychat.runs import folders, trial

    print("a line of the trial", flush=True)
    if config.stage.lr > float(os.environ.get("FAKE_FAIL_ABOVE", "inf")):
        raise launch.JobFailed("rank 0 failed:\nTraceback\nValueError: lr is too high")
    pruned = None
    with open(run_dir / "metrics.jsonl", "w") as file:
        for step in range(1, STEPS + 1):
            pruned = trial.asked_to_stop(run_dir)
            if pruned:
                break
            row: dict[str, Any] = {"step": round(step * config.stage.max_steps / STEPS), "time": time.time()}
            file.write(json.dumps(row | measured(config, step / STEPS)) + "\n")
            file.flush()
            time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
    metrics = measured(config, step / STEPS)
    result = {"status": "pruned" if pruned else "finished", "error": pruned, "metrics": metrics, "minutes": 0.0}
    result |= {"objective": metrics.get("eval/objective"), "objective_name": "eval/objective", "checkpoint": None}
    (run_dir / "checkpoints" / "step-000001").mkdir(parents=True)
    folders.write_text_atomic(run_dir / folders.RESULT, json.dumps(result))


def serve() -> None:
    """A line of JSON on standard input starts a command (its process id is printed) or waits for one (its status)."""
    import mlflow.tracking  # noqa: F401
    from hydra import compose, initialize_config_dir

    import tinychat.data.look
    import tinychat.sweeps.run
    from tinychat import train
    from tinychat.config import schema
    from tinychat.launch import ranks

    tinychat.sweeps.run.LOOK_SECONDS = 0.05  # trials are short
    schema.register()
    with initialize_config_dir(train.config_folder()):  # Hydra's parser is slow at first
        compose("config", ["stage=ppo", "sweep=ppo_random", "stage.lr=1e-3", "init_from=x"])
    ranks.run = fake_ranks
    schema.register = lambda: None  # the forks have it
    os.fsync = lambda fd: None
    spare_the_collector()
    for line in sys.stdin:
        job = json.loads(line)
        if "wait" in job:
            print(os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1]), flush=True)
            continue
        child = os.fork()
        if child:
            print(child, flush=True)
            continue
        os.chdir(job["folder"])
        os.environ.update(job["variables"])
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(os.open(job["errors"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        if not job["plots"]:
            tinychat.sweeps.results.draw = lambda *_: []  # type: ignore[attr-defined]
        sys.argv = ["tinychat.train", *job["arguments"]]
        run_and_leave(train.main)


class Command:
    """A running command."""

    def __init__(self, server: Server, pid: int, output: Path, errors: Path):
        self._server, self.pid, self._output, self._errors = server, pid, output, errors

    def kill(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> subprocess.CompletedProcess[str]:
        status = int(self._server.ask({"wait": self.pid}))
        return subprocess.CompletedProcess([], status, self._output.read_text(), self._errors.read_text())


class Server:
    """The process that commands are forked from; a context manager."""

    def __enter__(self) -> Server:
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from tests.sweeps.fake import serve; serve()"],
            env=environment_of(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *problem: Any) -> None:
        self._process.communicate()

    def ask(self, job: dict[str, Any]) -> str:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process that commands are forked from has ended"
        return answer

    def start(self, folder: Path, arguments: list[str], plots: bool, variables: dict[str, str]) -> Command:
        stem = f"said-{time.monotonic_ns()}"
        output, errors = folder / f"{stem}.out", folder / f"{stem}.err"
        job = {"folder": str(folder), "arguments": arguments, "plots": plots, "variables": variables}
        return Command(self, int(self.ask(job | {"output": str(output), "errors": str(errors)})), output, errors)
