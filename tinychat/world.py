"""The ranks of one job: who am I, on which device, and the few collectives a stage needs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from tinychat.errors import UserError
from tinychat.schema import Device


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

    def texts(self, own: str) -> list[str]:
        """What every rank has to say, in the order of ranks."""
        found: list[str] = [own]
        if self.size > 1:
            found *= self.size
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
