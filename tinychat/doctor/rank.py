"""One of several ranks that make the first update together, for the doctor that started them.

    python -m tinychat.doctor.rank FOLDER     (with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT)

FOLDER holds the configuration; rank 0 writes what it found there.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from omegaconf import OmegaConf

from tinychat.config.schema import to_config
from tinychat.doctor.first_update import TRACE, OneUpdate
from tinychat.doctor.stage_run import PARENTS, run_stage
from tinychat.errors import UserError
from tinychat.runs import folders
from tinychat.runtime.process import end_with_parent
from tinychat.runtime.terminal import error_line
from tinychat.runtime.world import join_world


def main() -> None:
    folder = Path(sys.argv[1])
    end_with_parent(signal.SIGKILL)
    config = to_config(OmegaConf.load(folder / folders.CONFIG))  # type: ignore[arg-type]
    world = join_world(config.device, config.launch.timeout_minutes)
    status, update = 0, OneUpdate()
    try:
        run_stage(config, folder / f"rank{world.rank}", world, folders.read_json(folder / PARENTS) or {}, update)
        if world.is_main and update.trace is not None:
            torch.save(vars(update.trace), folder / TRACE)
    except UserError as error:
        print(error_line(error), file=sys.stderr, flush=True)
        status = 1
    os._exit(status)  # as tinychat.launch.worker does, for the same reason


if __name__ == "__main__":
    main()
