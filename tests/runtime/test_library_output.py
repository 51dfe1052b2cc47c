"""What libraries say goes into the log of a run, what a user's own code says onto the terminal as ever."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tinychat.runtime import console
from tinychat.runtime.console import setup_logging

# As DeepSpeed and transformers do: a handler of its own and no way to the root logger, in either order.
NOISY = """
import logging, sys, warnings
logger = logging.getLogger(__name__)
logger.propagate = {first}
logger.addHandler(logging.StreamHandler(sys.{stream}))
logger.propagate = False

def speak():
    logger.warning("setting accelerator of " + __name__)
    logger.error("broken " + __name__)
    warnings.warn("old name in " + __name__, FutureWarning)
"""


def as_python_does(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
    """Where pytest would collect the warning."""
    sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two libraries and a user's module of the same text, importable; logging and warnings as before afterwards."""
    (tmp_path / "site-packages").mkdir()
    names = {"noisyone": ("True", "stdout"), "noisytwo": ("False", "stderr")}
    for name, (first, stream) in names.items():
        (tmp_path / f"site-packages/{name}.py").write_text(NOISY.format(first=first, stream=stream))
    (tmp_path / "own_reward.py").write_text(NOISY.format(first="True", stream="stderr"))
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(tmp_path / "site-packages"), *sys.path])
    monkeypatch.setattr(sys, "warnoptions", [])
    with warnings.catch_warnings():  # gives showwarning and the filters back
        warnings.simplefilter("default")
        monkeypatch.setattr(warnings, "showwarning", as_python_does)
        before, handlers = logging.getLoggerClass(), list(logging.root.handlers)
        logging.setLoggerClass(logging.Logger)  # whatever an earlier test left
        yield tmp_path
        logging.setLoggerClass(before)
        for handler in [one for one in logging.root.handlers if one not in handlers]:
            logging.root.removeHandler(handler)
            handler.close()
    for name in ("noisyone", "noisytwo", "own_reward"):
        sys.modules.pop(name, None)
        logging.root.manager.loggerDict.pop(name, None)


def speak() -> None:
    for name in ("noisyone", "noisytwo", "own_reward"):
        importlib.import_module(name).speak()


@pytest.mark.parametrize("imported_before", [False, True])
def test_libraries_speak_to_the_log_and_own_code_to_the_terminal(
    places: Path, capfd: pytest.CaptureFixture[str], imported_before: bool
) -> None:
    if imported_before:
        for name in ("noisyone", "noisytwo"):
            importlib.import_module(name)
    console.take_library_output()
    console.take_library_output()
    setup_logging(places, rank=0)
    speak()
    out, err = capfd.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if "noisy" in line]
    assert [line[9:] for line in lines] == ["error: broken noisyone", "error: broken noisytwo"], "errors are for people"
    assert "setting accelerator of own_reward" in err and "FutureWarning: old name in own_reward" in err
    log = (places / "log.txt").read_text()
    for name in ("noisyone", "noisytwo"):
        assert log.count(f"warning: setting accelerator of {name}") == 1
        assert log.count(f"FutureWarning: old name in {name}") == 1


def test_a_program_without_a_log_shows_errors_alone(places: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logging.root.handlers, before = [], logging.root.handlers
    try:
        console.take_library_output()
        speak()
        logging.getLogger("tinychat.x").warning("no curves")
    finally:
        logging.root.handlers = before
    out, err = capfd.readouterr()
    assert out == "" and "no curves" in err
    assert [line for line in err.splitlines() if "noisy" in line] == ["broken noisyone", "broken noisytwo"]


def test_python_w_brings_them_back(
    places: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "warnoptions", ["default"])
    console.take_library_output()
    speak()
    out, err = capfd.readouterr()
    assert "setting accelerator of noisyone" in out and "old name in noisyone" in err
