"""What a person sees of a run: log lines, on a terminal a progress bar below them, and the same lines in log.txt.
And what the programs beside `tinychat.train` share: how arguments are read and how a program ends.

What libraries say that a user cannot act on goes into the log of a run, not onto the terminal.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import resource
import sys
import sysconfig
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TextIO

from tinychat.errors import UserError
from tinychat.runtime import console, process
from tinychat.runtime.run_files import disk_full, said_of
from tinychat.runtime.terminal import as_text, error_line, masked

WARNINGS = "py.warnings"  # logger of what Python's warnings say, as in the logging module
# Bars over files that are read in a second. That of a download from the hub is not among them.
_ENVIRONMENT = {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
_PLACES = tuple(
    f"{Path(path).resolve()}{os.sep}"
    for path in (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), Path(__file__).parents[1])
)
_INSTALLED = {"site-packages", "dist-packages"}
MARK = "_tinychat"  # attribute of the root logger's handlers that tinychat made


def take_library_output() -> None:
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


GB = 1e9  # bytes; memory is given in GB, not GiB, everywhere
RATE_WINDOW = 50  # step times the remaining time is estimated from
logger = logging.getLogger(__name__)

# metric -> how a log line shows it; any other metric: its last name and four digits
_STEP_FORMATS = {
    "rl/reward": "reward {:.3f}",
    "rl/gold_reward": "gold {:.3f}",
    "rl/kl": "kl {:.2f}",
    "rl/entropy": "entropy {:.2f}",
    "rl/response_length": "length {:.0f}",
    "rl/eos_rate": "ended {:.0%}",
    "rl/clip_frac": "clipped {:.1%}",
    "train/loss": "loss {:.3f}",
    "schedule/lr": "lr {:.1e}",
    "train/grad_norm": "grad {:.2f}",
    "perf/tokens_per_s": "{:,.0f} tok/s",
    "perf/memory_gb": "{:.1f} GB",
}
_EVAL_FORMATS = {
    "eval/loss": "loss {:.4f}",
    "eval/ppl": "ppl {:.4g}",
    "eval/bits_per_byte": "{:.3f} bits/byte",
    "eval/tokens": "on {:,.0f} tokens",
}
_LEFT_OUT = {
    "perf/samples_per_s",
    "perf/mfu",
    "perf/step_seconds",
    "data/tokens",
    "data/epoch",
    "data/trained_tokens",
    "eval/response_ppl",
}  # in metrics.jsonl only
_LEFT_OUT_STEP = ("rl/", "perf/")  # what has no format of its own is there too
_LEFT_OUT_ENDINGS = ("_low", "_high", "_rows", "_tokens")  # there too


def format_step(step: int, total: int, metrics: Mapping[str, float], seconds_left: float | None = None) -> str:
    """`step 120/500 | loss 3.412 | lr 3.0e-04 | grad 0.81 | 1,950 tok/s | 2.1 GB | 5m12s left`"""
    parts = [f"step {step}/{total}", *_metric_parts(metrics, _STEP_FORMATS)]
    if seconds_left is not None:
        parts.append(f"{format_duration(seconds_left)} left")
    return " | ".join(parts)


def format_eval(step: int, metrics: Mapping[str, float]) -> str:
    """`step 100 | eval loss 3.9012 ppl 49.8 on 20,480 tokens`"""
    return f"step {step} | eval {' '.join(_metric_parts(metrics, _EVAL_FORMATS))}"


def _metric_parts(metrics: Mapping[str, float], formats: Mapping[str, str]) -> list[str]:
    known = [form.format(metrics[name]) for name, form in formats.items() if name in metrics]
    others = [
        name
        for name in metrics
        if name not in formats
        and name not in _LEFT_OUT
        and not name.startswith(_LEFT_OUT_STEP)
        and not name.endswith(_LEFT_OUT_ENDINGS)
    ]
    return known + [f"{name.rpartition('/')[2].replace('_', ' ')} {metrics[name]:.4g}" for name in others]


def format_duration(seconds: float) -> str:
    """4.2s, 42s, 5m12s, 1h03m, 2d04h"""
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def peak_memory_gb(device: str) -> float:
    """Peak memory of this process so far in GB (1e9 bytes): resident set on CPU, allocated by torch on CUDA."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device) / GB
    try:  # ru_maxrss would count what the process that started this one used before exec
        status = Path("/proc/self/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024 / GB
    except (OSError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GB


class Progress:
    """Steps of a training loop: a bar on a terminal, one line per logged step everywhere.

    with Progress(total=500, start=0) as progress:
        for step in range(1, 501):
            ...
            progress.step(step, metrics)   # metrics, or None where nothing is logged
            progress.evaluated(step, eval_metrics)

    `max_seconds` is the time budget of the loop, where it has one: the remaining time is never more than what is left.
    """

    def __init__(
        self,
        total: int,
        start: int = 0,
        max_seconds: float | None = None,
        show: bool = True,
        name: str = "train",
    ) -> None:
        self.total, self._show, self._name, self._start = total, show, name, start
        self._began = time.monotonic()
        self._max_seconds = max_seconds
        self._times: deque[tuple[int, float]] = deque([(start, self._began)], maxlen=RATE_WINDOW + 1)
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if self._show and sys.stderr.isatty():
            self._bar = _make_bar()
            self._task = self._bar.add_task(self._name, total=self.total, completed=self._start, numbers="", left="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def seconds_left(self) -> float | None:
        """From the time of the last steps; None until two are done, as the first warms up, and at the end."""
        (first, then), (last, now) = self._times[0], self._times[-1]
        if first == self._start and len(self._times) > 2:
            first, then = self._times[1]
        if last == first or last >= self.total or len(self._times) < 3:
            return None
        left = (self.total - last) * (now - then) / (last - first)
        if self._max_seconds is not None:
            left = min(left, self._max_seconds - (time.monotonic() - self._began))
        return max(left, 0.0)

    def step(self, step: int, metrics: Mapping[str, float] | None = None) -> None:
        """`step` optimizer steps are done; with metrics, log their line."""
        self._times.append((step, time.monotonic()))
        left = self.seconds_left()
        if metrics is not None and self._show:
            logger.info("%s", format_step(step, self.total, metrics, left))
        if self._bar is not None:
            fields = {"left": f"{format_duration(left)} left" if left is not None else ""}
            if metrics is not None:
                shown = ("train/loss", "rl/reward", "rl/kl", "perf/tokens_per_s", "perf/memory_gb")
                values = {name: metrics[name] for name in shown if name in metrics}
                fields["numbers"] = " · ".join(_metric_parts(values, _STEP_FORMATS))
            self._bar.update(self._task, completed=step, **fields)

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the line of an evaluation; its time does not count as a step's."""
        if self._show:
            logger.info("%s", format_eval(step, metrics))
        self.pause_ended(step)

    def pause_ended(self, step: int) -> None:
        """Time since the last step was not training (an evaluation, a checkpoint): leave it out of the estimate."""
        gap = time.monotonic() - self._times[-1][1]
        self._times = deque(((at, then + gap) for at, then in self._times), maxlen=RATE_WINDOW + 1)


def _make_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn())
    numbers = (TextColumn("{task.fields[numbers]}"), TextColumn("[cyan]{task.fields[left]}"))
    return Bar(*columns, *numbers, console=Console(stderr=True), transient=True, expand=True)


class _Terminal(logging.StreamHandler):
    """Writes to sys.stderr as it is at that moment: a progress bar replaces it to keep log lines above itself."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.addFilter(for_terminal)

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        pass


class _File(logging.FileHandler):
    """A full disk costs log.txt its lines, and one word on the terminal."""

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._told:
            print(f"warning: {self.baseFilename} cannot be written: {sys.exc_info()[1]}", file=sys.stderr)
        self._told = True

    def close(self) -> None:
        try:
            super().close()
        except OSError:  # the last lines found no room either
            pass


class _Formatter(logging.Formatter):
    def __init__(self, rank: int, times: str) -> None:
        super().__init__("%(asctime)s %(message)s", times)
        self._prefix = f"[rank {rank}] " if rank else ""

    def format(self, record: logging.LogRecord) -> str:
        return as_text(masked(super().format(record)))

    def formatMessage(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        record.message = f"{self._prefix}{level}{record.message}"
        return super().formatMessage(record)


def setup_logging(run_dir: Path | None, rank: int) -> None:
    """Send log lines to the terminal (stderr) and to RUN_DIR/log.txt: tinychat's from INFO, a user's own code's from
    WARNING; libraries' warnings go to log.txt alone.

    Ranks other than 0 log warnings only, to the file: nearly all are of what every rank finds, as rank 0 says on the
    terminal. Calling it again (the next run of one process) replaces the handlers.
    """
    root = logging.getLogger()
    end_logging()
    handlers: list[tuple[logging.Handler, str]] = [(_Terminal(), "%H:%M:%S")]
    if run_dir is not None:
        run_dir.mkdir(parents=True, exist_ok=True)
        handlers.append((_File(run_dir / "log.txt", encoding="utf-8", delay=True), "%Y-%m-%d %H:%M:%S"))
    if rank:
        handlers[0][0].setLevel(logging.ERROR)
    for handler, times in handlers:
        handler.setFormatter(_Formatter(rank, times))
        setattr(handler, MARK, True)
        root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("tinychat").setLevel(logging.INFO if rank == 0 else logging.WARNING)


def end_logging() -> None:
    """Send log lines nowhere any more; what others have added to the loggers stays."""
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if hasattr(handler, MARK)]:
        root.removeHandler(handler)
        handler.close()


class Parser(argparse.ArgumentParser):
    """Arguments of `python -m tinychat.PROGRAM`; options may be written with - or _. Raises UserError, one line, where
    argparse would print its usage."""

    def __init__(self, program: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=f"python -m tinychat.{program}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        words = sys.argv[1:] if args is None else args
        options = {option.replace("_", "-"): option for option in self._option_string_actions}

        def as_named(word: str) -> str:
            name, equals, value = word.partition("=")
            return options.get(name.replace("_", "-"), name) + equals + value if name.startswith("--") else word

        return super().parse_known_args([as_named(word) for word in words], namespace)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def add_model_code(parser: Parser) -> None:
    """The option --model-code, for tinychat.models.custom.load_classes."""
    parser.add_argument(
        "--model-code",
        metavar="FILE.py:CONFIG",
        help="for a checkpoint of a model of your own: its code, as model.path= of its training; it is run",
    )


def main_of(run: Callable[[list[str]], object]) -> None:
    """Run a program. Exit status: 0 done, 1 an error that was explained, 130 stopped by Ctrl-C."""
    console.take_library_output()
    process.end_without_a_last_look()
    process.end_where_nobody_reads()
    try:
        run(sys.argv[1:])
    except UserError as error:
        sys.exit(error_line(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `| head` has read enough
        process.discard_output()  # it ends quietly, as `cat` does
    except OSError as error:
        if not disk_full(error):
            raise
        sys.exit(error_line(f"{said_of(error)}; free space"))
