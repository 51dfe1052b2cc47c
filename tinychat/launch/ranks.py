"""The ranks of one job on this machine or, through DeepSpeed's launcher, several: commands, environments, waiting.

inline     a process of its own (in a multirun, so that its memory is freed)
torchrun   torch.distributed.run on each node
deepspeed  DeepSpeed's launcher, which reaches other nodes by pdsh
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinychat.config.launch_checks import visible_gpus
from tinychat.config.schema import Config, Device, LaunchConfig, LaunchKind
from tinychat.launch.outer_launcher import is_of_launcher
from tinychat.runs import failures, folders, trial
from tinychat.runtime import process as signals
from tinychat.runtime.process import end_group
from tinychat.runtime.run_files import at_home

STOP_GRACE_SECONDS = 300  # a rank that is told to stop may save for so long
# Of the command's environment, what ranks on other nodes get; DeepSpeed itself passes PYTHON*, NCCL* and MLFLOW* on.
CARRIED = ("HF_", "OMP_", "GOMP_", "TINYCHAT_", "DS_ACCELERATOR", "TORCH_")
# But no secrets: DeepSpeed puts what it carries into command lines, which everybody on a node can read.
SECRET = re.compile(r"(^|_)(TOKEN|KEY|SECRET|PASSWORD|CREDENTIALS?)$")


class JobFailed(Exception):
    """A job that ended in an error which its ranks have reported; the message names it."""


class Stopped(BaseException):
    """A job that saved and ended because of a signal; `status` is the exit status to pass on.

    No Exception: it ends a whole multirun.
    """

    def __init__(self, status: int):
        super().__init__(f"stopped by signal {status - 128}")
        self.status = status


def command(config: Config, run_dir: Path) -> list[str]:
    """What is run for the ranks of a job."""
    launch = config.launch
    if launch.kind is LaunchKind.torchrun:
        return _agent("torchrun", *_torchrun(launch), "-m", "tinychat.launch.guard", str(run_dir))
    if launch.kind is LaunchKind.deepspeed:
        options = _deepspeed(launch, config.device)
        return _agent("deepspeed", *options, "--module", "tinychat.launch.guard", str(run_dir))
    return [sys.executable, "-m", "tinychat.launch.guard", str(run_dir)]


def _agent(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "tinychat.launch.agents", name, *arguments]


def _torchrun(launch: LaunchConfig) -> list[str]:
    options = [
        f"--nproc-per-node={launch.nproc}",
        f"--nnodes={launch.nnodes}",
        "--signals-to-handle=SIGTERM",  # Ctrl-C comes as one: two signals at once make the agent print tracebacks
    ]
    if launch.nnodes == 1:
        return [*options, "--standalone"]
    host, _, port = (launch.rdzv_endpoint or "").rpartition(":")
    return [
        *options,
        f"--node-rank={launch.node_rank}",
        f"--master-addr={host}",
        f"--master-port={port}",
        f"--rdzv-conf=timeout={max(1, round(60 * launch.timeout_minutes))}",
    ]


def _deepspeed(launch: LaunchConfig, device: Device) -> list[str]:
    options = ["--no_local_rank", "--log_level=critical", f"--hostfile={launch.hostfile or ''}"]
    host, _, port = (launch.rdzv_endpoint or "").rpartition(":")
    if host:
        options.append(f"--master_addr={host}")
    if launch.hostfile is not None:
        options += [f"--num_nodes={launch.nnodes}", f"--num_gpus={launch.nproc}"]
        return [*options, f"--master_port={port}"] if port else options
    visible = visible_gpus()
    if visible and device is not Device.cpu:
        # With --num_gpus it would take the machine's first ones, whichever are meant.
        options.append(f"--include=localhost:{','.join(visible[: launch.nproc])}")
    else:
        options.append(f"--num_gpus={launch.nproc}")
    return [*options, f"--master_port={port or _free_port()}"]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _changes(config: Config) -> dict[str, str]:
    """The variables that ranks get beside those of the command, where the user has not set them."""
    launch = config.launch
    # torchrun would give each rank a single thread; share the cores instead.
    wanted = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // launch.nproc))}
    if launch.kind is LaunchKind.torchrun:
        wanted["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(STOP_GRACE_SECONDS)
        wanted["LOGLEVEL"] = "CRITICAL"  # the agent's own lines; ranks report their errors themselves
    if launch.kind is LaunchKind.deepspeed and config.device is Device.cpu:
        wanted["DS_ACCELERATOR"] = "cpu"
    return {name: value for name, value in wanted.items() if name not in os.environ}


def describe(config: Config, run_dir: Path) -> str:
    """The command as a line of shell, with the variables it sets."""
    words = [f"{name}={shlex.quote(value)}" for name, value in _changes(config).items()]
    return " ".join([*words, shlex.join(command(config, run_dir))])


def environment(config: Config) -> dict[str, str]:
    """The environment of the ranks on this machine."""
    kept = {key: value for key, value in os.environ.items() if not is_of_launcher(key)}
    return {**kept, **_changes(config)}


@contextlib.contextmanager
def _carried(config: Config, variables: dict[str, str]) -> Iterator[list[int]]:
    """Has DeepSpeed's launcher export variables on every node, by a file that is on no disk; gives the descriptors that
    it inherits. The files in which a user lists more are not read beside this one."""
    if config.launch.hostfile is None:
        yield []
        return
    name = os.environ.get("DS_ENV_FILE", ".deepspeed_env")
    own = [file.read_text().rstrip("\n") for folder in (at_home("~"), Path()) if (file := folder / name).is_file()]
    wanted = {key: value for key, value in variables.items() if key.startswith(CARRIED)}
    left_out = sorted(key for key, value in wanted.items() if SECRET.search(key) or "\n" in value)
    if left_out:
        print(
            f"note: not carried to other nodes, where command lines would show it: {', '.join(left_out)}; `hf auth "
            "login` stores a token where ranks find it, and your own .deepspeed_env carries what it lists",
            file=sys.stderr,
        )
    lines = [f"{key}={value}" for key, value in wanted.items() if key not in left_out]
    descriptor = os.memfd_create("deepspeed.env")
    try:
        os.write(descriptor, ("\n".join([*lines, *own]) + "\n").encode())
        variables["DS_ENV_FILE"] = f"/proc/self/fd/{descriptor}"
        yield [descriptor]
    finally:
        os.close(descriptor)


def run(config: Config, run_dir: Path) -> None:
    """Run the ranks to their end. SIGTERM, SIGHUP and Ctrl-C are passed on, so that they save before they go.

    Raises Stopped or JobFailed.
    """
    by_deepspeed = config.launch.kind is LaunchKind.deepspeed
    variables = environment(config)
    stopped_by: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def forward(number: int, _frame: Any) -> None:
        if by_deepspeed:  # a signal to it would kill ranks that still save; a second one is to end them
            (run_dir / folders.STOP).touch()
            if stopped_by and process is not None:
                end_group(process.pid, signal.SIGKILL)
        elif not stopped_by and process is not None:
            process.send_signal(signal.SIGTERM)
        stopped_by.append(number)

    output = trial.output_file(run_dir)
    with signals.handling(forward):
        # What a terminal sends reaches the child too, a signal to this process alone does not: it ignores the first
        # kind and is told of both alike. DeepSpeed's launcher would listen: it gets its own session.
        with (
            open(output, "ab") if output else contextlib.nullcontext() as file,
            _carried(config, variables) as descriptors,
            signals.ignored_by_children(),
        ):
            process = subprocess.Popen(
                command(config, run_dir),
                env=variables,
                start_new_session=by_deepspeed,
                stdout=file,
                stderr=file,
                pass_fds=descriptors,
            )
        if stopped_by and not by_deepspeed:
            process.send_signal(signal.SIGTERM)
        try:
            status = process.wait()
        finally:
            if by_deepspeed:
                end_group(process.pid, signal.SIGKILL)  # what is left of it after a kill -9
    _judge(run_dir, status, stopped_by)


def _judge(run_dir: Path, status: int, stopped_by: list[int]) -> None:
    ended = (folders.read_result(run_dir) or {}).get("status")
    if ended == "stopped" or (stopped_by and ended is None):
        raise Stopped(128 + (stopped_by[0] if stopped_by else signal.SIGTERM))
    problem = failures.first(run_dir)
    if status or (problem and ended not in folders.ENDED_WELL):
        raise JobFailed(problem or f"{run_dir}: the ranks ended with exit status {status}")
