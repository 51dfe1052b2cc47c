"""Start the ranks of one job from a run folder and bring back its result. Hydra has already run, once, in the parent.

inline    this very process (in a multirun, one process for each job, so that its memory is freed)
torchrun  torch.distributed.run on `tinychat.worker`, which imports no Hydra
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tinychat import parents, runs
from tinychat.errors import UserError
from tinychat.orphans import end_with_parent
from tinychat.schema import Config, LaunchKind

# Ranks of an outer launcher must not leak into the ranks started here.
RANK_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)
STOP_GRACE_SECONDS = 300  # a rank that is told to stop may save for so long


class JobFailed(Exception):
    """A job that ended in an error which its ranks have reported; the message names it."""


class Stopped(BaseException):
    """A job that saved and ended because of a signal; `status` is the exit status to pass on.

    No Exception: it ends a whole multirun.
    """

    def __init__(self, status: int):
        super().__init__(f"stopped by signal {status - 128}")
        self.status = status


def run_job(config: Config, node: DictConfig) -> float | None:
    """Make or find the run folder, start the ranks, return the objective of the stage.

    Raises UserError, JobFailed or Stopped.
    """
    # As it will be read back from the run folder: enums as words, numbers as YAML has them.
    resolved = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(node, resolve=True)))
    with _writable():
        run_dir, done = _choose_run_dir(config, resolved)  # type: ignore[arg-type]
    if done is not None:
        print(f"finished already: {run_dir} (resume=never trains anew)", file=sys.stderr)
        return done.get("objective")
    if config.launch.node_rank == 0:
        with _writable():
            _write_inputs(run_dir, config, node)
    if config.launch.kind is LaunchKind.torchrun:
        _run_ranks(_torchrun_command(config, run_dir), run_dir, config)
    elif in_multirun():
        _run_ranks([sys.executable, "-m", "tinychat.worker", str(run_dir)], run_dir, config)
    else:
        from tinychat import worker  # torch and transformers load here

        for name in RANK_VARIABLES:  # of a launcher around this command: they would have it wait for other ranks
            os.environ.pop(name, None)
        status = worker.run(run_dir)
        if status:
            raise Stopped(status)
    if config.launch.node_rank > 0:
        return None  # node 0 reports
    result = runs.read_json(run_dir / runs.RESULT)
    if result is None:
        raise JobFailed(f"{run_dir}: the job ended without a {runs.RESULT}")
    return result.get("objective")


@contextlib.contextmanager
def _writable() -> Iterator[None]:
    """What the file system refuses becomes a UserError."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: {error.strerror}"
        raise UserError(f"{where}; choose another folder with paths.outputs= or run_dir=") from None


def _choose_run_dir(config: Config, resolved: dict[str, Any]) -> tuple[Path, dict | None]:
    """The run folder, and the result of a run that is to be resumed but has already finished."""
    outputs = Path(config.paths.outputs)
    if config.resume == "never":
        if config.run_dir is None:
            name = config.run_name or runs.default_run_name(config)
            return runs.new_run_dir(outputs, config.experiment_name, name), None
        return _fresh_folder(Path(config.run_dir), config), None
    identity = runs.config_identity(resolved)

    def wanted(other: dict[str, Any]) -> bool:
        return runs.config_identity(other) == identity

    if config.resume == "auto" and config.run_dir is None:
        finished = runs.newest_run(outputs, config.experiment_name, wanted, finished=True)
        run_dir = runs.newest_run(outputs, config.experiment_name, wanted, finished=False)
        if finished and (run_dir is None or finished.name > run_dir.name):
            return finished, runs.read_json(finished / runs.RESULT)
        if run_dir is None:
            name = config.run_name or runs.default_run_name(config)
            return runs.new_run_dir(outputs, config.experiment_name, name), None
    else:
        run_dir = Path(config.run_dir if config.resume == "auto" else config.resume)  # type: ignore[arg-type]
        if config.resume == "auto" and not (run_dir / runs.CONFIG).exists():
            return _fresh_folder(run_dir, config), None
        _refuse_other_configuration(run_dir, resolved)
        result = runs.read_json(run_dir / runs.RESULT)
        if result and result.get("status") == "finished":
            return run_dir, result
    if runs.is_live(run_dir):
        runs.RunLock(run_dir)  # raises, naming the process
    return run_dir, None


def _fresh_folder(run_dir: Path, config: Config) -> Path:
    if config.launch.node_rank == 0 and (run_dir / runs.CONFIG).exists():
        if runs.is_live(run_dir):
            runs.RunLock(run_dir)  # raises, naming the process
        raise UserError(
            f"run_dir={run_dir} already holds a run, nothing was written; add resume=auto to continue it, "
            "or choose another folder"
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    return run_dir


def _refuse_other_configuration(run_dir: Path, resolved: dict[str, Any]) -> None:
    path = run_dir / runs.CONFIG
    if not path.exists():
        raise UserError(f"resume={run_dir}: no {runs.CONFIG} there, so it is not a run folder")
    other = OmegaConf.to_container(OmegaConf.load(path))
    if runs.config_identity(other) == runs.config_identity(resolved):  # type: ignore[arg-type]
        return
    old, new = _flatten(other), _flatten(resolved)
    changed = [
        f"{key}={old.get(key)} there, {new.get(key)} now"
        for key in sorted(set(old) | set(new))
        if key.split(".")[0] not in runs.NOT_IDENTITY and old.get(key) != new.get(key)
    ]
    raise UserError(
        f"resume={run_dir}: a run continues only with its own configuration; changed: {'; '.join(changed[:5])}"
        " (to go on from its weights with other settings: init_from=FOLDER)"
    )


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree:
        return {name: leaf for key, value in tree.items() for name, leaf in _flatten(value, f"{prefix}{key}.").items()}
    return {prefix[:-1]: tree}


def _write_inputs(run_dir: Path, config: Config, node: DictConfig) -> None:
    """config.yaml, parents.json and command.txt. A resumed run keeps its parents; of its configuration, what may
    differ between a run and its continuation (runs.NOT_IDENTITY) is the new command's."""
    if not (run_dir / runs.CONFIG).exists():
        try:
            found = parents.find_parents(config, _overrides())
        except UserError:
            _remove_if_empty(run_dir)
            raise
        runs.write_text_atomic(run_dir / parents.FILE, json.dumps(found, indent=1))
    runs.write_text_atomic(run_dir / runs.CONFIG, OmegaConf.to_yaml(node, resolve=True))
    with open(run_dir / runs.COMMAND, "a", encoding="utf-8") as file:
        file.write(f"{_command()}\n")
    # What an earlier start ended with must not be taken for this one's.
    for old in (run_dir / runs.RESULT, *run_dir.glob("error-rank*.json")):
        old.unlink(missing_ok=True)


def _remove_if_empty(run_dir: Path) -> None:
    try:
        run_dir.rmdir()
    except OSError:
        return


def _command() -> str:
    return "python -m tinychat.train " + shlex.join(sys.argv[1:])


def _overrides() -> list[str]:
    """What the command line says about this job."""
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def in_multirun() -> bool:
    """Whether Hydra runs several jobs (-m)."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _torchrun_command(config: Config, run_dir: Path) -> list[str]:
    launch = config.launch
    command = [
        sys.executable,
        "-m",
        "tinychat.launch",
        f"--nproc-per-node={launch.nproc}",
        f"--nnodes={launch.nnodes}",
        "--signals-to-handle=SIGTERM",  # Ctrl-C comes as one: two signals at once make the agent print tracebacks
    ]
    if launch.nnodes == 1:
        command += ["--standalone"]
    else:
        host, _, port = (launch.rdzv_endpoint or "").rpartition(":")
        command += [f"--node-rank={launch.node_rank}", f"--master-addr={host}", f"--master-port={port}"]
    return [*command, "-m", "tinychat.worker", str(run_dir)]


def _rank_environment(config: Config) -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if key not in RANK_VARIABLES}
    # torchrun would give each rank a single thread; share the cores instead.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // config.launch.nproc)))
    environment.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(STOP_GRACE_SECONDS))
    environment.setdefault("LOGLEVEL", "CRITICAL")  # the agent's own lines; ranks report their errors themselves
    return environment


def _run_ranks(command: list[str], run_dir: Path, config: Config) -> None:
    """Run the ranks to their end. SIGTERM and Ctrl-C are passed on, so that they save before they go."""
    stopped_by: list[int] = []

    def forward(number: int, _frame: Any) -> None:
        if not stopped_by:
            process.send_signal(signal.SIGTERM)
        stopped_by.append(number)

    # A terminal's Ctrl-C reaches the child too, a signal to this process alone does not: it ignores the first kind (the
    # disposition is inherited) and is told of both alike.
    previous = {signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN), signal.SIGTERM: signal.SIG_DFL}
    process = subprocess.Popen(command, env=_rank_environment(config))
    for number in previous:
        signal.signal(number, forward)
    try:
        status = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    ended = (runs.read_json(run_dir / runs.RESULT) or {}).get("status")
    if stopped_by and ended in ("stopped", None):
        raise Stopped(128 + stopped_by[0])
    if status:
        raise JobFailed(_first_error(run_dir) or f"{run_dir}: the ranks ended with exit status {status}")


def _first_error(run_dir: Path) -> str | None:
    """What the rank that failed first had to say: one line for a UserError, else its traceback with its rank."""
    reports = [report for path in run_dir.glob("error-rank*.json") if (report := runs.read_json(path))]
    if not reports:
        return None
    first = min(reports, key=lambda report: (not report["user"], report["time"]))
    if first["user"]:
        return first["message"]
    return f"rank {first['rank']} failed:\n{first['traceback'].rstrip()}"


def _report_killed(run_dir: Path, rank: int, signal_name: str) -> None:
    """Speak for a rank that could not; its death is what made the others fail."""
    message = f"rank {rank} was killed by {signal_name}"
    if signal_name == "SIGKILL":
        message += ", which the system sends when memory runs out: then try a smaller stage.micro_batch_size"
    report = {"rank": rank, "time": 0.0, "user": True, "message": message}
    runs.write_text_atomic(run_dir / f"error-rank{rank}.json", json.dumps(report))


def _agent() -> None:
    """`python -m tinychat.launch TORCHRUN-ARGUMENTS`: torchrun without its own traceback when a rank fails."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    end_with_parent(signal.SIGTERM)
    try:
        run.run(run.parse_args(sys.argv[1:]))
    except ChildFailedError as error:
        killed = {rank: failure.signal_name() for rank, failure in error.failures.items() if failure.exitcode < 0}
        for rank, name in killed.items():
            _report_killed(Path(sys.argv[-1]), rank, name)
        sys.exit(1)
    except SignalException as stop:
        sys.exit(128 + stop.sigval.value)


if __name__ == "__main__":
    _agent()
