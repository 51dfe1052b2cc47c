"""How a fork of a process with many imports ends."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn


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
