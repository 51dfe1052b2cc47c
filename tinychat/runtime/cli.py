"""What the programs beside `tinychat.train` share: how arguments are read and how a program ends."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from tinychat.errors import UserError
from tinychat.runtime import console
from tinychat.runtime.run_files import disk_full, said_of
from tinychat.runtime.terminal import error_line


class Parser(argparse.ArgumentParser):
    """Arguments of `python -m tinychat.PROGRAM`. Raises UserError, one line, where argparse would print its usage."""

    def __init__(self, program: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=f"python -m tinychat.{program}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def add_model_code(parser: Parser) -> None:
    """The option --model-code, for tinychat.models.custom.load_classes."""
    parser.add_argument(
        "--model-code",
        "--model_code",
        metavar="FILE.py:CONFIG",
        help="for a checkpoint of a model of your own: its code, as model.path= of its training; it is run",
    )


def main_of(run: Callable[[list[str]], None]) -> None:
    """Run a program. Exit status: 0 done, 1 an error that was explained, 130 stopped by Ctrl-C."""
    console.take_library_output()
    try:
        run(sys.argv[1:])
    except UserError as error:
        sys.exit(error_line(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `| head` has read enough
        close_output()
    except OSError as error:
        if not disk_full(error):
            raise
        sys.exit(error_line(f"{said_of(error)}; free space"))


def close_output() -> NoReturn:
    """End where nobody reads on: quietly, as `cat` does."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)
