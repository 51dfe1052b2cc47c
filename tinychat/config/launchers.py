"""The keys of `launch`: how the ranks of one job are started. No defaults here, see tinychat.config.schema."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING


class LaunchKind(Enum):
    inline = "inline"
    torchrun = "torchrun"
    deepspeed = "deepspeed"
    slurm = "slurm"


@dataclass
class SlurmConfig:
    """What sbatch is asked for beside the number of ranks. Texts and null as sbatch takes them."""

    partition: str | None = MISSING
    account: str | None = MISSING
    time: str | None = MISSING  # limit, as HH:MM:SS or D-HH:MM:SS; null: the partition's
    gpus: int = MISSING  # on each node; 0: none
    cpus: int | None = MISSING  # cores of each rank
    memory: str | None = MISSING  # of each node, as 64G
    job_name: str | None = MISSING  # null: the run's name
    save_minutes: float = MISSING  # before the limit, the run is told to save and stop
    extra: list[str] = MISSING  # further options of sbatch, as --constraint=a100
    setup: list[str] = MISSING  # shell lines that make the environment, as module load cuda
    poll_seconds: float = MISSING  # between two looks at the queue


@dataclass
class LaunchConfig:
    """How the ranks of one job are started."""

    name: str = MISSING
    kind: LaunchKind = MISSING
    nproc: int = MISSING  # ranks on each node
    nnodes: int = MISSING
    node_rank: int = MISSING  # torchrun: of this machine, 0-based
    rdzv_endpoint: str | None = MISSING  # host:port on node 0 where more than one node meets
    hostfile: str | None = MISSING  # deepspeed: the nodes, a line HOST slots=N each
    timeout_minutes: float = MISSING  # a collective or rendezvous that takes longer is an error
    dry_run: bool = MISSING  # print the command or script that would be run, write and start nothing
    wait: bool = MISSING  # slurm: whether the command waits for the job's result
    slurm: SlurmConfig | None = MISSING  # null for the others
