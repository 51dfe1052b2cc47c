"""Forks of a process with many imports: how one ends, and ranks that are some."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn


def spare_the_collector() -> None:
    """Leave what is imported by now out of every garbage collection, and collect more seldom. Otherwise a small
    training spends as long on looking at the objects of every import, which a fork has to copy for that, as on all
    the rest."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def run_and_leave(command: Callable[[], object]) -> NoReturn:
    """Run a command and end this process as Python would: threads, what is to be done at exit, the status.

    All but the last look at the objects of every import, which takes longer than most commands of the tests.
    """
    status: object = None
    try:
        command()
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if status is not None and not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)


def fork_ranks(config: Any, run_dir: Path) -> None:
    """In the place of tinychat.launch.ranks.run, for tests of what ranks compute: they are forks of this process, with
    the environment that a launcher would give them."""
    from tinychat.launch import ranks, worker

    count = str(config.launch.nproc)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ranks._free_port())}
    os.environ.update(ranks._changes(config) | place | {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count})
    started = []
    for rank in map(str, range(config.launch.nproc)):
        started.append(os.fork())
        if not started[-1]:
            os.environ.update({"RANK": rank, "LOCAL_RANK": rank})
            sys.argv = ["tinychat.launch.worker", str(run_dir)]
            worker.main()  # which ends the process
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in started]
    ranks._judge(run_dir, next(filter(None, statuses), 0), [])


def fork_later_ranks(run: Callable[[Any, Path], None]) -> Callable[[Any, Path], None]:
    """The same for a sweep whose first trial has ranks as they are, for tests of what is in such a process."""
    later: list[Callable[[Any, Path], None]] = []

    def run_next(config: Any, run_dir: Path) -> None:
        (later[0] if later else run)(config, run_dir)
        later.append(fork_ranks)

    return run_next
