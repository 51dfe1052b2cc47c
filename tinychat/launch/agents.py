"""What stands between the command and its ranks: a launcher of others, with its errors in one line.

python -m tinychat.launch.agents torchrun TORCHRUN-ARGUMENTS -m tinychat.launch.guard RUN_DIR
python -m tinychat.launch.agents deepspeed DEEPSPEED-ARGUMENTS --module tinychat.launch.guard RUN_DIR
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tinychat.runs import failures, folders
from tinychat.runtime.process import end_with_parent, end_without_a_last_look


def torchrun(arguments: Sequence[str], run_dir: Path) -> int:
    """torch.distributed.run without its own traceback when a rank fails; the rank's guard has reported it."""
    from torch.distributed import DistError, run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    options = run.parse_args(arguments)
    try:
        run.run(options)
    except ChildFailedError:
        return 1
    except SignalException as stop:
        return 128 + stop.sigval.value
    except DistError as error:
        why = str(error).splitlines()[0]
        address = f"{options.master_addr}:{options.master_port}"
        message = (
            f"node {options.node_rank}: the {options.nnodes} nodes did not meet at launch.rdzv_endpoint={address} "
            f"within launch.timeout_minutes; a node is missing, or cannot reach that port ({why})"
        )
        failures.write(run_dir, f"node{options.node_rank}", message, echo=True)
        return 1
    return 0


def deepspeed(arguments: Sequence[str], run_dir: Path) -> int:
    """DeepSpeed's launcher. On SIGTERM the ranks are told through the run folder; its own way would kill them after
    30 seconds, whether they have saved or not."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.launcher import runner

    signal.signal(signal.SIGTERM, lambda *_: (run_dir / folders.STOP).touch())
    try:
        runner.main(list(arguments))
    except (ValueError, RuntimeError, OSError, subprocess.CalledProcessError) as error:
        failures.write(run_dir, "node0", f"deepspeed's launcher: {error}", echo=True)
        return 1
    return 0


AGENTS = {"torchrun": torchrun, "deepspeed": deepspeed}


def main() -> None:
    end_with_parent(signal.SIGTERM)
    end_without_a_last_look()
    sys.exit(AGENTS[sys.argv[1]](sys.argv[2:], Path(sys.argv[-1])))


if __name__ == "__main__":
    main()
