"""One training under a meter: what its tensors take and what its process takes, step by step."""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tinychat.config.schema import Config
from tinychat.launch import worker
from tinychat.runs import folders, parents
from tinychat.stages.loop import TrainingLoop


class Tensors(TorchDispatchMode):
    """Inside, the bytes of all tensors that operators return, each storage once while it lives; `peak` of them."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, tuple[StorageWeakRef, int]] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        known = self.sizes.get(storage._cdata)
        if known is not None and not known[0].expired():
            return
        self.now += storage.nbytes() - (0 if known is None else known[1])
        self.sizes[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        if self.now > self.peak:  # only then does it matter what has been freed since
            for key in [key for key, (other, _) in self.sizes.items() if other.expired()]:
                self.now -= self.sizes.pop(key)[1]
            self.peak = max(self.peak, self.now)


def resident(name: str) -> int:
    """VmRSS (now) or VmHWM (the highest so far) of this process in bytes."""
    return int(re.findall(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024


def measure(config: Config, folder: Path) -> dict[str, float]:
    """Train in forks of this process, one for each rank, up to the last step, whose evaluation is left out.

    Returns bytes at the height, of rank 0: `tensors`, and `resident`, beyond what the process had before.
    """
    folder.mkdir()
    folders.write_text_atomic(folder / parents.FILE, json.dumps(parents.find_parents(config)))
    OmegaConf.save(OmegaConf.structured(config), folder / folders.CONFIG)
    ranks = config.launch.nproc
    children = [_fork(config, folder, rank, ranks) for rank in range(ranks)]
    failed = [child for child in children if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]
    if failed:
        sys.exit(f"{folder}: {(folder / 'problem.txt').read_text()}")
    return json.loads((folder / "measured.json").read_text())


def _fork(config: Config, folder: Path, rank: int, ranks: int) -> int:
    child = os.fork()
    if child:
        return child
    try:
        if ranks > 1:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": 29_577}
            os.environ.update({name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"})
        quiet = os.open(folder / f"log-{rank}.txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        torch.set_num_threads(1)  # the threads that this process worked with are not in its fork, which would wait
        _train(config, folder, rank)
    except BaseException:
        (folder / "problem.txt").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)


def _train(config: Config, folder: Path, rank: int) -> None:
    log = TrainingLoop.log

    def log_and_stop(loop: TrainingLoop, *arguments: Any) -> None:
        log(loop, *arguments)
        if loop.last:
            found = {"tensors": tensors.peak, "resident": resident("VmHWM") - before}
            if rank == 0:
                (folder / "measured.json").write_text(json.dumps(found))
            loop.engine.world.barrier()
            os._exit(0)

    TrainingLoop.log = log_and_stop  # type: ignore[method-assign]
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest size counts from here
    with Tensors() as tensors:
        worker.run(folder)
