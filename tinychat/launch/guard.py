"""One rank, watched: starts tinychat.launch.worker, tells of a death without words, and ends it when another rank has
failed.

    python -m tinychat.launch.guard RUN_DIR        (started by every launcher, once for each rank; imports no torch)

Launchers do less: DeepSpeed's says not which rank was killed, none reaches ranks on other nodes, and a rank that waits
in a collective for a dead one answers no signal. All ranks see the run folder, so that is where guards look:

error-rankN.json of another rank   this rank has GRACE_SECONDS to write down its own end, then it is killed
.stop                              this rank is told to save and stop, as by SIGTERM
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinychat.runs import failures, folders
from tinychat.runtime import process
from tinychat.runtime.process import end_group, end_with_parent

POLL_SECONDS = 2.0
GRACE_SECONDS = 5.0


class Guard:
    """Watches over the rank of one process."""

    def __init__(self, run_dir: Path, rank: int, command: Sequence[str]):
        self.run_dir, self.rank, self.command = run_dir, rank, command
        self._old = failures.stamps(run_dir)  # of an earlier start
        self._told, self._killed = False, False
        self._look = threading.Event()
        self._worker: subprocess.Popen[bytes] | None = None

    def watch(self) -> int:
        """The rank from start to end. Returns 0 also where it was told to stop and has saved: no other need end."""
        with process.handling(self._on_signal, (signal.SIGTERM, signal.SIGHUP)):
            # In a session of its own: a launcher signals the guard's whole group, and the guard decides what comes of
            # it.
            self._worker = subprocess.Popen(self.command, start_new_session=True)
            if self._told:
                self._worker.terminate()
            threading.Thread(target=self._look_around, daemon=True).start()
            status = self._worker.wait()
            end_group(self._worker.pid, signal.SIGTERM)  # processes that the rank has started and left
            return self._judge(status)

    def _on_signal(self, _number: int, _frame: Any) -> None:
        if self._others_failed():
            self._look.set()
        else:
            self._stop()

    def _stop(self) -> None:
        self._told = True
        if self._worker is not None:
            self._worker.terminate()

    def _reported(self) -> tuple[bool, bool]:
        """Whether this rank, and whether another one, has reported a failure since the start."""
        own = failures.path_of(self.run_dir, self.rank).name
        new = dict(failures.stamps(self.run_dir).items() - self._old.items())
        return own in new, bool(new.keys() - {own})

    def _others_failed(self) -> bool:
        return self._reported()[1]

    def _look_around(self) -> None:
        assert self._worker is not None
        while not self._others_failed():
            if not self._told and (self.run_dir / folders.STOP).exists():
                self._stop()
            self._look.wait(POLL_SECONDS)
        try:
            self._worker.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._killed = True
            self._worker.kill()

    def _judge(self, status: int) -> int:
        """The rank's exit status as the launcher is to see it, after a report where the rank left none."""
        if status == 0 or status in process.STATUSES:
            return 0
        reported, others_failed = self._reported()
        if self._killed or reported:
            return 1
        if status == -signal.SIGTERM and self._told:
            return 128 + signal.SIGTERM  # it was told before it listened
        if status < 0:
            aborted = status == -signal.SIGABRT and others_failed
            failures.write(self.run_dir, self.rank, _death(self.rank, -status), echo=aborted)
        elif not (status == 1 and others_failed):
            failures.write(self.run_dir, self.rank, f"rank {self.rank} ended with exit status {status} and no message")
        return 1


def _death(rank: int, number: int) -> str:
    name = signal.Signals(number).name
    hints = {
        "SIGKILL": ", which the system sends when memory runs out: then try a smaller stage.micro_batch_size",
        "SIGABRT": ", as nccl does when ranks have not answered for launch.timeout_minutes; see the lines above",
    }
    return f"rank {rank} was killed by {name}{hints.get(name, '')}"


def main() -> None:
    """Console entry. Without its launcher a rank of several cannot go on; a process of its own still saves."""
    end_with_parent(signal.SIGKILL if "RANK" in os.environ else signal.SIGTERM)
    run_dir, rank = sys.argv[1], int(os.environ.get("RANK", 0))
    sys.exit(Guard(Path(run_dir), rank, [sys.executable, "-m", "tinychat.launch.worker", run_dir]).watch())


if __name__ == "__main__":
    main()
