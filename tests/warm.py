"""Commands from a process that has imported what they import: `python -m` without its seconds of start-up.

Each command is a fork of that process that runs the module as `python -m` does, with its own arguments, environment,
folder, output and exit status. DeepSpeed is not imported before, so that ds=none runs without it, as it should.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.conftest import environment_of

SERVER = """
import io, json, os, resource, runpy, sys
import jinja2, matplotlib.backends.backend_agg, matplotlib.figure, scipy.stats
import tinychat.chat.session, tinychat.data.look, tinychat.launch.worker, tinychat.merge, tinychat.report.run
import tinychat.stages.eval, tinychat.stages.ppo, tinychat.stages.reward, tinychat.stages.sft, tinychat.stages.tokenizer
import tinychat.sweeps.run, tinychat.train
from hydra import compose, initialize_config_dir
from peft import get_peft_model
from tests.forks import fork_later_ranks, fork_ranks, run_and_leave, spare_the_collector
from tinychat.config import schema
from tinychat.models import build
from tinychat.report import curves, templates
from tinychat.tinyworld import story
from tinychat.tracking.store import load_mlflow

load_mlflow()
build.MEASURING_SECONDS = 0.02  # the machine's peak, of which a training tells its share
os.fsync = lambda _file: None  # no test pulls the plug
curves._MAX_PANELS = 1  # tests/report draws many; all of them take as long as the rest of a small training
for page in ("report.md.j2", "report.html.j2", "rollouts.html.j2"):
    templates.templates(page.endswith(".html.j2")).get_template(f"report/{page}")
figure = matplotlib.figure.Figure()
figure.add_subplot().set_title("fonts are found")
matplotlib.backends.backend_agg.FigureCanvasAgg(figure)
figure.savefig(io.BytesIO())
schema.register()
schema.register = lambda: None  # the forks have it
with initialize_config_dir(tinychat.train.config_folder()):  # Hydra's parser is slow at first
    compose("config", ["stage=sft", "stage.lr=1e-3", "init_from=x"])
for split in ("train", "validation"):
    story(0, split, 0)  # which are held out is found once a process
spare_the_collector()

for line in sys.stdin:
    job = json.loads(line)
    if "started" in job:
        ended, status = os.waitpid(job["started"], os.WNOHANG)
        print(os.waitstatus_to_exitcode(status) if ended else "", flush=True)
        continue
    child = os.fork()
    if not child:
        if job["apart"]:
            os.setsid()
        os.chdir(job["folder"])
        os.environ.clear()
        os.environ.update(job["environment"])
        os.dup2(os.open(job["stdin"], os.O_RDONLY), 0)
        sys.stdin = open(0, closefd=False)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(job[stream.name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream.fileno())
        if job["largest_file"] is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (job["largest_file"],) * 2)
        if job["fork_ranks"]:
            later = job["fork_ranks"] == "later"
            tinychat.launch.ranks.run = fork_later_ranks(tinychat.launch.ranks.run) if later else fork_ranks
        sys.argv = [job["module"], *job["arguments"]]
        for name in ("tinychat.train", "tinychat.merge"):
            del sys.modules[name]
        run_and_leave(lambda: runpy.run_module(job["module"], run_name="__main__", alter_sys=True))
    print(child if job["apart"] else os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
# Read when Python starts or a library is imported: a command with another value of these needs a process of its own.
AT_START = re.compile("PYTHON|HF_|TRANSFORMERS_|OMP_|GOMP_|MKL_|ONEDNN_|CUDA_|LD_")


class WarmPython:
    """Runs commands one after the other; a context manager. What a command says goes through files in `folder`."""

    def __init__(self, folder: Path):
        self.out, self.err, self.given = folder / "stdout.txt", folder / "stderr.txt", folder / "stdin.txt"
        self.environment = environment_of()

    def __enter__(self) -> WarmPython:
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *problem: Any) -> None:
        self._server.communicate()  # the end of its input ends it

    def can_run(self, environment: dict[str, str]) -> bool:
        """Whether a command with this environment finds all that it says."""
        differs = {name for name, _ in self.environment.items() ^ environment.items()}
        return not any(AT_START.match(name) for name in differs)

    def train(self, folder: Path, *overrides: str, fork_ranks: bool | str = False) -> subprocess.CompletedProcess[str]:
        """`python -m tinychat.train OVERRIDES` in a folder. fork_ranks: several ranks are forks too, without their
        launcher; "later": but those of a sweep's first trial."""
        return self.run("tinychat.train", folder, *overrides, fork_ranks=fork_ranks)

    def run(
        self,
        module: str,
        folder: Path,
        *arguments: str,
        stdin: bytes = b"",
        environment: dict[str, str] | None = None,
        timeout: float = 300,
        largest_file: int | None = None,
        fork_ranks: bool | str = False,
    ) -> subprocess.CompletedProcess[str]:
        """`python -m MODULE ARGUMENTS` in a folder, to its end. largest_file: bytes a file may have, as on
        a full disk."""
        self.given.write_bytes(stdin)
        files = {"stdin": str(self.given), "<stdout>": str(self.out), "<stderr>": str(self.err)}
        where: dict[str, Any] = {"folder": str(folder), "environment": environment or environment_of()}
        where |= {"apart": False, "fork_ranks": fork_ranks}
        self._tell({"module": module, "arguments": arguments, "largest_file": largest_file, **where, **files})
        assert self._server.stdout
        if not select.select([self._server.stdout], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired([module, *arguments], timeout, stderr=self.err.read_bytes())
        status = self._answer()
        said, complained = (file.read_text(encoding="utf-8") for file in (self.out, self.err))
        return subprocess.CompletedProcess([module, *arguments], int(status), said, complained)

    def start(self, folder: Path, errors: Path, *overrides: str, environment: dict[str, str]) -> Started:
        """Start `python -m tinychat.train OVERRIDES` in a process group of its own; what it says goes to `errors`."""
        errors.write_bytes(b"")  # it is there at once
        files = {"stdin": os.devnull, "<stdout>": os.devnull, "<stderr>": str(errors)}
        where = {"folder": str(folder), "environment": environment, "apart": True, "fork_ranks": False}
        self._tell({"module": "tinychat.train", "arguments": overrides, "largest_file": None, **where, **files})
        return Started(self, int(self._answer()))

    def status_of(self, pid: int) -> int | None:
        """The exit status of a command that was started; None while it runs."""
        self._tell({"started": pid})
        status = self._answer().strip()
        return int(status) if status else None

    def _tell(self, job: dict[str, Any]) -> None:
        assert self._server.stdin
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()

    def _answer(self) -> str:
        assert self._server.stdout
        answer = self._server.stdout.readline()
        assert answer, "the process that commands are forked from has ended; its standard error says why"
        return answer


class Started:
    """A command that runs, with what a subprocess.Popen has."""

    def __init__(self, warm: WarmPython, pid: int):
        self._warm, self.pid = warm, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._warm.status_of(self.pid)
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        end = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("tinychat.train", timeout)
            time.sleep(0.01)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
