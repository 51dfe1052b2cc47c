"""Commands from a process that has imported what they import: `python -m` without its seconds of start-up.

Each command is a fork of that process that runs the module as `python -m` does, with its own arguments, folder, output
and exit status. DeepSpeed is not imported before, so that ds=none runs without it, as it should.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import environment_of

SERVER = """
import json, os, runpy, sys
import jinja2, matplotlib.backends.backend_agg, matplotlib.figure, scipy.stats
import tinychat.merge, tinychat.models.adapters.lora, tinychat.stages.sft, tinychat.train, tinychat.launch.worker
from peft import get_peft_model

for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(job["folder"])
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(job[stream.name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream.fileno())
        sys.argv = [job["module"], *job["arguments"]]
        for name in ("tinychat.train", "tinychat.merge"):
            del sys.modules[name]
        runpy.run_module(job["module"], run_name="__main__", alter_sys=True)
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class WarmPython:
    """Runs commands one after the other; a context manager. What a command says goes through files in `folder`."""

    def __init__(self, folder: Path):
        self.out, self.err = folder / "stdout.txt", folder / "stderr.txt"

    def __enter__(self) -> WarmPython:
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            env=environment_of(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *problem: Any) -> None:
        self._server.communicate()  # the end of its input ends it

    def train(self, folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
        """`python -m tinychat.train OVERRIDES` in a folder, as tests.conftest.run_train runs it."""
        return self.run("tinychat.train", folder, *overrides)

    def run(self, module: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`python -m MODULE ARGUMENTS` in a folder, to its end."""
        job = {"module": module, "arguments": arguments, "folder": str(folder)}
        assert self._server.stdin and self._server.stdout
        self._server.stdin.write(json.dumps({**job, "<stdout>": str(self.out), "<stderr>": str(self.err)}) + "\n")
        self._server.stdin.flush()
        status = self._server.stdout.readline()
        assert status, "the process that commands are forked from has ended; its standard error says why"
        said, complained = self.out.read_text(), self.err.read_text()
        return subprocess.CompletedProcess([module, *arguments], int(status), said, complained)
