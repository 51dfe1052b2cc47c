"""Checks of `launch`: nodes, ranks, hostfile, and the programs that a launcher needs. One line for each problem.
DeepSpeed's hostfiles have a line `HOST slots=N` for each node; # begins a comment."""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from tinychat.config.schema import Config, Device, LaunchKind, SlurmConfig
from tinychat.errors import UserError

LINE = re.compile(r"(\S+)\s+slots=(\d+)\s*(#.*)?")


def read(path: str) -> dict[str, int]:
    """Host -> ranks it has room for, in the order of the file. Raises UserError for what DeepSpeed refuses."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a text file"
        raise UserError(f"launch.hostfile={path}: {why}; launchers/hostfile.sample shows one") from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = LINE.fullmatch(text)
        if not match or not int(match[2]):
            raise UserError(f"launch.hostfile={path}: line {number} is {text!r}; write HOST slots=N, as node0 slots=8")
        if match[1] in hosts:
            raise UserError(f"launch.hostfile={path}: line {number} names {match[1]} again; give it all slots at once")
        hosts[match[1]] = int(match[2])
    if not hosts:
        raise UserError(f"launch.hostfile={path}: names no host; a line for each, as node0 slots=8")
    return hosts


# What sbatch takes as --time: minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM, D-HH:MM:SS.
TIME = re.compile(r"\d+(:\d{1,2}){0,2}|\d+-\d{1,2}(:\d{1,2}){0,2}|UNLIMITED|INFINITE")


def problems(config: Config) -> Iterator[str]:
    launch = config.launch
    if launch.timeout_minutes <= 0:
        yield f"launch.timeout_minutes={launch.timeout_minutes}: above 0"
    if launch.hostfile is not None and launch.kind is not LaunchKind.deepspeed:
        yield f"launch.hostfile={launch.hostfile}: launch={launch.name} reads none; use launch=deepspeed"
    if not launch.wait and launch.kind is not LaunchKind.slurm:
        yield f"launch.wait=false: launch={launch.name} ends with its ranks; only launch=slurm returns before"
    if launch.slurm is not None and launch.kind is not LaunchKind.slurm:
        yield f"launch.slurm: launch={launch.name} submits nothing; use launch=slurm"
    if launch.node_rank and launch.kind is not LaunchKind.torchrun:
        yield f"launch.node_rank={launch.node_rank}: only launch=torchrun is started on each node"
    if launch.rdzv_endpoint is not None and not re.fullmatch(r"\S+:\d+", launch.rdzv_endpoint):
        yield f"launch.rdzv_endpoint={launch.rdzv_endpoint}: HOST:PORT of node 0, as node0:29500"
    yield from KINDS[launch.kind](config)


def _inline(config: Config) -> Iterator[str]:
    launch = config.launch
    if launch.nproc * launch.nnodes > 1:
        found = f"launch.nproc={launch.nproc} nnodes={launch.nnodes}"
        yield f"launch=inline is one process, found {found}; use launch=torchrun"


def _torchrun(config: Config) -> Iterator[str]:
    launch = config.launch
    if not 0 <= launch.node_rank < launch.nnodes:
        yield f"launch.node_rank={launch.node_rank}: from 0 to launch.nnodes-1={launch.nnodes - 1}"
    if launch.nnodes > 1 and not launch.rdzv_endpoint:
        yield f"launch.nnodes={launch.nnodes} needs launch.rdzv_endpoint=HOST:PORT of node 0"
    if launch.nnodes > 1 and not config.run_dir:
        yield f"launch.nnodes={launch.nnodes} needs run_dir=FOLDER, the same on every node"


def _deepspeed(config: Config) -> Iterator[str]:
    launch = config.launch
    if launch.hostfile is None:
        if launch.nnodes > 1:
            yield f"launch.nnodes={launch.nnodes} needs launch.hostfile=FILE with a line HOST slots=N for each node"
        elif config.device is not Device.cpu:
            yield from _visible(launch.nproc)
        return
    try:
        hosts = read(launch.hostfile)
    except UserError as error:
        yield str(error)
        return
    fits = f"launch.nnodes={len(hosts)} launch.nproc={min(hosts.values())}"
    if launch.nnodes == 1:
        works = f"use {fits}" if len(hosts) > 1 else "leave it out to run on this machine"
        yield f"launch.hostfile={launch.hostfile} is for several nodes, found launch.nnodes=1; {works}"
        return
    if launch.nnodes > len(hosts):
        yield f"launch.nnodes={launch.nnodes}: {launch.hostfile} names {len(hosts)}; use {fits}"
    for host, slots in list(hosts.items())[: launch.nnodes]:
        if slots < launch.nproc:
            yield f"launch.nproc={launch.nproc}: {host} has slots={slots} in {launch.hostfile}; use {fits}"
    missing = [name for name in ("pdsh", "ssh") if shutil.which(name) is None]
    if missing and not launch.dry_run:
        yield (
            f"launch=deepspeed reaches other nodes by pdsh and ssh, not found: {' and '.join(missing)}; install them, "
            "or start launchers/torchrun.sh on each node"
        )


def visible_gpus() -> list[str] | None:
    """The GPUs of CUDA_VISIBLE_DEVICES, as CUDA reads it: to the first that is none; None where it is not set."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return None
    return list(itertools.takewhile(lambda word: word not in ("", "-1"), (word.strip() for word in value.split(","))))


def _visible(nproc: int) -> Iterator[str]:
    """DeepSpeed's launcher gives its ranks GPUs by number, whatever this variable hides or names otherwise."""
    gpus, value = visible_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpus is None:
        return
    if not gpus:
        yield f"CUDA_VISIBLE_DEVICES={value} hides all GPUs from launch=deepspeed; say device=cpu, or leave it unset"
    elif not all(gpu.isdecimal() for gpu in gpus):
        yield f"CUDA_VISIBLE_DEVICES={value}: launch=deepspeed takes numbers of GPUs; use them, or launch=torchrun"
    elif len(gpus) < nproc:
        yield (
            f"launch.nproc={nproc} is more than the {len(gpus)} GPUs of CUDA_VISIBLE_DEVICES={value}; lower it, or use "
            "device=cpu"
        )


def _slurm(config: Config) -> Iterator[str]:
    launch, slurm = config.launch, config.launch.slurm
    if slurm is None:
        yield "launch.slurm=null: launch=slurm sets it"
        return
    missing = [name for name in ("sbatch", "squeue", "scancel") if shutil.which(name) is None]
    if missing and not launch.dry_run:
        yield (
            f"launch=slurm needs {', '.join(missing)}, not found here; run the command where jobs are submitted, or "
            "see the script with launch.dry_run=true"
        )
    if slurm.gpus < 0 or 0 < slurm.gpus < launch.nproc:
        yield f"launch.slurm.gpus={slurm.gpus}: one for each of launch.nproc={launch.nproc} ranks of a node, or 0"
    yield from _slurm_values(slurm)


def _slurm_values(slurm: SlurmConfig) -> Iterator[str]:
    if slurm.time is not None and not TIME.fullmatch(slurm.time):
        yield f"launch.slurm.time={slurm.time}: a limit as 04:00:00 or 1-12:00:00"
    if slurm.cpus is not None and slurm.cpus < 1:
        yield f"launch.slurm.cpus={slurm.cpus}: cores of each rank, at least 1, or null"
    if slurm.save_minutes < 0:
        yield f"launch.slurm.save_minutes={slurm.save_minutes}: 0 or more"
    if slurm.poll_seconds <= 0:
        yield f"launch.slurm.poll_seconds={slurm.poll_seconds}: above 0"
    for name in ("partition", "account", "memory", "job_name"):
        value = getattr(slurm, name)
        if value is not None and not (value.strip() and value.isprintable()):
            yield f"launch.slurm.{name}={value!r}: a word that sbatch takes, on one line, or null"
    for line in slurm.extra:
        if not line.startswith("-") or not line.isprintable():
            yield f"launch.slurm.extra: {line!r} is no option of sbatch, as --constraint=a100"


KINDS = {
    LaunchKind.inline: _inline,
    LaunchKind.torchrun: _torchrun,
    LaunchKind.deepspeed: _deepspeed,
    LaunchKind.slurm: _slurm,
}
