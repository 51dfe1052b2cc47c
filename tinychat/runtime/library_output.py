"""What libraries say that a user cannot act on: into the log of a run, not onto the terminal.

transformers, DeepSpeed, datasets and others write to the terminal by handlers of their own, DeepSpeed's to stdout,
between the replies of a chat or the scores of a table. A user's own file (a reward function) is no library: what it
logs or warns of is shown as ever. `python -W default` brings the libraries' words back.
"""

from __future__ import annotations

import logging
import os
import sys
import sysconfig
import warnings
from pathlib import Path
from typing import Any, TextIO

WARNINGS = "py.warnings"  # logger of what Python's warnings say, as in the logging module
# Bars over files that are read in a second. That of a download from the hub is not among them.
_ENVIRONMENT = {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
_PLACES = tuple(
    f"{Path(path).resolve()}{os.sep}"
    for path in (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), Path(__file__).parents[1])
)
_INSTALLED = {"site-packages", "dist-packages"}
MARK = "_tinychat"  # attribute of the root logger's handlers that tinychat made


def take() -> None:
    """Have the loggers and warnings of libraries go through the root logger, which shows on the terminal what
    `for_terminal` lets through; in a run `console.setup_logging` brings its log.

    Before anything heavy is imported, in every process that a command starts; calling it again does no harm.
    """
    if sys.warnoptions:  # the user asks for what Python has to say
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.setLoggerClass(_Logger)
    for logger in list(logging.root.manager.loggerDict.values()):  # made before
        if isinstance(logger, logging.Logger) and not isinstance(logger, _Logger) and not _is_ours(logger.name):
            _release(logger)
    if not isinstance(warnings.showwarning, _ShowWarning):
        warnings.showwarning = _ShowWarning(warnings.showwarning)
    if not logging.root.handlers:
        handler = logging.StreamHandler()
        handler.addFilter(for_terminal)
        setattr(handler, MARK, True)
        logging.root.addHandler(handler)


def for_terminal(record: logging.LogRecord) -> bool:
    """Whether a person is to see a record: ours, a user's own, and errors."""
    if _is_ours(record.name) or record.levelno >= logging.ERROR or sys.warnoptions:
        return True
    return record.name != WARNINGS and not _is_library(record.pathname)


def _is_ours(logger: str) -> bool:
    return logger.partition(".")[0] == "tinychat"


def _is_library(file: str) -> bool:
    """Whether code at `file` is Python's, an installed package's or tinychat's own: what a library warns of stands
    where it was called from."""
    path = Path(file).resolve()
    return file.startswith("<") or str(path).startswith(_PLACES) or not _INSTALLED.isdisjoint(path.parts)


def _is_console(handler: logging.Handler) -> bool:
    """Whether a handler writes to a stream, and not to a file."""
    return isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)


def _release(logger: logging.Logger) -> None:
    """Of its own way to the terminal: the root logger's handlers have it instead."""
    for handler in [handler for handler in logger.handlers if _is_console(handler)]:
        logger.removeHandler(handler)
        logger.propagate = True


class _Logger(logging.Logger):
    """As a library gets it from logging.getLogger: without a way to the terminal of its own, which its code adds on
    import."""

    def addHandler(self, hdlr: logging.Handler) -> None:
        if _is_ours(self.name) or not (_is_console(hdlr) and _added_by_library()):
            super().addHandler(hdlr)
            return
        self.__dict__["propagate"] = True
        self._released = True

    def __setattr__(self, name: str, value: Any) -> None:
        """Stays as the root logger needs it, whether the library says propagate = False before or after."""
        if name == "propagate" and self.__dict__.get("_released"):
            return
        super().__setattr__(name, value)


def _added_by_library() -> bool:
    """Whether a library's code, not the user's, is what adds a handler."""
    return _is_library(sys._getframe(2).f_code.co_filename)


class _ShowWarning:
    """warnings.showwarning: a library's warning as a line of its logger, a user's own as ever."""

    def __init__(self, before: Any) -> None:
        self._before = before

    def __call__(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if file is not None or not _is_library(filename):
            self._before(message, category, filename, lineno, file, line)
            return
        first = " ".join(str(message).split())
        logging.getLogger(WARNINGS).warning("%s:%s: %s: %s", filename, lineno, category.__name__, first)
