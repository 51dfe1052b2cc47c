"""A launcher of the user's around the command, as `torchrun -m tinychat.train`: refused where it would start the same
run several times side by side; its variables are kept from the ranks that the command starts itself."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tinychat.errors import UserError

# Ranks of an outer launcher must not leak into the ranks started here.
VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
    "ROLE_NAME",
    "MASTER_ADDR",
    "MASTER_PORT",
    "LOCAL_SIZE",  # these three are DeepSpeed's
    "CROSS_RANK",
    "CROSS_SIZE",
)
PREFIXES = ("TORCHELASTIC_", "PET_")  # of torchrun: what its ranks are told, and its own options
# What stands in the command line of a launcher, and what it is called.
PROGRAMS = {
    "torchrun": "torchrun",
    "torch.distributed.run": "torchrun",
    "torch.distributed.launch": "torchrun",
    "torch/distributed/run.py": "torchrun",
    "accelerate": "accelerate",
    "deepspeed": "deepspeed",
}
TOLD_SECONDS = 5.0  # that other ranks wait for the launcher to end them, after one has told why


def is_of_launcher(name: str) -> bool:
    """Whether a launcher sets this variable for its ranks."""
    return name in VARIABLES or name.startswith(PREFIXES)


def refuse(program: str, words: Sequence[str], variables: Mapping[str, str] = os.environ) -> None:
    """Raise UserError where an outer launcher has started `python -m PROGRAM WORDS` as one of several ranks, each of
    which would be a whole run; where the command starts ranks of its own (launch=), the variables of a launcher
    further out are none of its business. One rank of a node tells, the others end without a word."""
    found = _launcher(words, variables)
    if found is None:
        _note_of_srun(words, variables)
        return
    launcher, ranks = found
    if int(_number(variables, "LOCAL_RANK") or 0):
        time.sleep(TOLD_SECONDS)
        raise SystemExit(1)
    own = shlex.join(word for word in words if not _is_local_rank(word))
    kind = "deepspeed" if launcher == "deepspeed" else "torchrun"
    other = "launch=torchrun" if kind == "deepspeed" else "launch=deepspeed"
    raise UserError(
        f"{launcher} starts this command once for each rank, and each would be a whole run of its own; start it once, "
        f"it starts its ranks itself: python -m {program} {own}{' ' if own else ''}launch={kind} launch.nproc={ranks} "
        f"(or {other}; several nodes: docs/launchers.md)"
    )


def _launcher(words: Sequence[str], variables: Mapping[str, str]) -> tuple[str, int] | None:
    """The launcher, and its ranks on this machine."""
    local = _number(variables, "LOCAL_WORLD_SIZE") or _number(variables, "LOCAL_SIZE")
    ranks = local or _number(variables, "WORLD_SIZE") or 1
    parent = _program_of(os.getppid())
    if any(_is_local_rank(word) for word in words):
        return parent or "deepspeed", ranks
    if (_number(variables, "WORLD_SIZE") or 1) > 1 and parent is not None:
        return parent, ranks
    if any(word.startswith("launch=") and word != "launch=inline" for word in words):
        return None
    if (_number(variables, "WORLD_SIZE") or 1) > 1:
        if "TORCHELASTIC_RUN_ID" in variables:
            return "torchrun", ranks
        if "CROSS_SIZE" in variables:
            return "deepspeed", ranks
    if (_number(variables, "OMPI_COMM_WORLD_SIZE") or 1) > 1:
        return "mpirun", _number(variables, "OMPI_COMM_WORLD_LOCAL_SIZE") or 1
    if "SLURM_PROCID" not in variables and (_number(variables, "PMI_SIZE") or 1) > 1:
        return "mpiexec", _number(variables, "MPI_LOCALNRANKS") or _number(variables, "PMI_SIZE") or 1
    return None


def _note_of_srun(words: Sequence[str], variables: Mapping[str, str]) -> None:
    """Tasks of srun may well be runs of their own (another seed each, workers of a sweep): said, not refused."""
    tasks = _number(variables, "SLURM_STEP_NUM_TASKS") or 1
    chosen = any(word.startswith("launch=") or word in ("-m", "--multirun") for word in words)
    if tasks > 1 and variables.get("SLURM_PROCID") == "0" and not chosen:
        one = f"one of {tasks} ranks: launch=slurm launch.nproc={tasks}, started once"
        print(f"note: srun starts this command {tasks} times, each a whole run; {one}", file=sys.stderr)


def _is_local_rank(word: str) -> bool:
    return word.startswith(("--local_rank=", "--local-rank="))


def _number(variables: Mapping[str, str], name: str) -> int | None:
    value = variables.get(name, "")
    return int(value) if value.isdecimal() else None


def _program_of(process: int) -> str | None:
    """The launcher that a process is, None for any other program and where there is no /proc."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    for word in words[:4]:  # the interpreter, its options, the program
        for sign, name in PROGRAMS.items():
            if Path(word).name == sign or word.startswith(f"{sign}.") or word.endswith(f"/{sign}") or word == sign:
                return name
    return None
