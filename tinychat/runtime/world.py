"""The ranks of one job: who am I, on which device, the few collectives a stage needs; and one seed for
everything random in a rank."""

from __future__ import annotations

import contextlib
import os
import random
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

from tinychat.config.schema import Device
from tinychat.errors import UserError


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (all devices). Every rank gets the same seed: models must begin equal."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_rank(seed: int, rank: int) -> None:
    """Once the models are equal: let every rank draw its own dropout masks."""
    torch.manual_seed(int(np.random.SeedSequence([seed % 2**64, rank]).generate_state(1, np.uint64)[0]))


# How gloo, nccl and the store on node 0 say that a rank did not answer in time, and that its connection is gone.
TIMED_OUT = ("timed out", "timeout")
CLOSED = ("connection closed", "connection reset", "broken pipe", "remote process exited", "connection was closed")


Said = TypeVar("Said")


class LostContact(UserError):
    """Another rank has failed, or does not answer; its own report, if it has one, tells more."""


@dataclass(frozen=True)
class World:
    """One rank's place. With size 1 every collective is the identity and no process group exists."""

    rank: int
    local_rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Each value summed over the ranks, in float64: token counts stay exact."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, value: float) -> float:
        return self._reduce((value,), dist.ReduceOp.MAX)[0]

    def _reduce(self, values: tuple[float, ...], operation) -> list[float]:
        if self.size == 1:
            return [float(value) for value in values]
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, operation)
        return tensor.tolist()

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Every rank's rows (n, ...), of the same shape everywhere, one rank's behind the other's."""
        if self.size == 1:
            return rows
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    def gather_objects(self, own: Said) -> list[Said]:
        """What every rank has to say, in the order of ranks: numbers, texts, and lists and dictionaries of them. Many
        numbers go faster as tensors."""
        found = [own] * self.size
        if self.size > 1:
            dist.all_gather_object(found, own)
        return found

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()


def join_world(device: Device, timeout_minutes: float) -> World:
    """This process's World, from the variables that torchrun sets; gloo on CPU, nccl on GPU.

    Raises UserError for device=cuda without one, or more ranks than GPUs.
    """
    rank, local_rank = int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0))
    size = int(os.environ.get("WORLD_SIZE", 1))
    use_cuda = device is Device.cuda or (device is Device.auto and torch.cuda.is_available())
    if use_cuda and not torch.cuda.is_available():
        raise UserError("device=cuda: torch finds no CUDA device here; use device=cpu or device=auto")
    if use_cuda and local_rank >= torch.cuda.device_count():
        raise UserError(
            f"launch.nproc={os.environ.get('LOCAL_WORLD_SIZE', size)} is more than the {torch.cuda.device_count()} "
            "GPUs of this machine; lower it, or use device=cpu"
        )
    own = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(own)
    if size > 1:
        dist.init_process_group("nccl" if use_cuda else "gloo", timeout=timedelta(minutes=timeout_minutes))
    return World(rank, local_rank, size, own)


@contextlib.contextmanager
def answering(timeout_minutes: float) -> Iterator[None]:
    """What torch raises when other ranks do not answer becomes LostContact: which rank waited, how long, and where."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        closed, late = any(sign in text for sign in CLOSED), any(sign in text for sign in TIMED_OUT)
        if int(os.environ.get("WORLD_SIZE", 1)) == 1 or isinstance(error, UserError) or not (closed or late):
            raise
        rank, place = os.environ.get("RANK", "0"), _place(error)
        if closed:
            message = f"rank {rank} lost its connection to another rank in {place}; that one, or its node, has ended"
        else:
            message = (
                f"rank {rank} waited {timeout_minutes:g} minutes for the others in {place}; a node is lost or a rank "
                "hangs (launch.timeout_minutes= sets how long they wait)"
            )
        raise LostContact(message) from error


def _place(error: BaseException) -> str:
    """Where in tinychat an error came up, but for this module: a file, a line and a function."""
    package = Path(__file__).parents[1]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if package in Path(frame.filename).parents]
    outer = [frame for frame in frames if Path(frame.filename) != Path(__file__)]
    frame = (outer or frames)[-1]
    return f"{Path(frame.filename).relative_to(package.parent)}:{frame.lineno} ({frame.name})"
