"""How long threads wait awake for each other: set before torch is loaded, unless the user has."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from tests.benchmarks.test_benchmark import BENCHMARKS
from tests.conftest import environment_of

SHOWS = "import tinychat, os; print(os.environ.get('GOMP_SPINCOUNT'))"
UNSET = {name: value for name, value in environment_of().items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}


def said(code: str, **more: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], env=UNSET | more, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("set_by_user", "count"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_what_the_user_has_set_stays(set_by_user: dict[str, str], count: str) -> None:
    assert said(SHOWS, **set_by_user) == f"{count}\n"


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is Linux's")
def test_libgomp_has_read_it() -> None:
    """Of the first module that any entry loads: `python -m tinychat.train` imports the package before it."""
    shown = said("import tinychat.runtime.process, torch", OMP_DISPLAY_ENV="verbose")
    assert "GOMP_SPINCOUNT = '1000'" in shown


def test_the_benchmarks_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    waiting = importlib.import_module("waiting")
    speeds = {("300000", 0): 100.0, ("300000", 1): 10.0, ("0", 0): 90.0, ("0", 1): 50.0}
    runs = [
        {"setting": setting, "busy": busy, "tokens_per_s": speed + more, "cores": 1.0}
        for (setting, busy), speed in speeds.items()
        for more in (0, -1, 1)
    ]
    lines = waiting.table(runs, ["300000", "0"], [0, 1]).splitlines()
    last = [word.strip() for word in lines[-1].split("|")[1:-1]]
    assert last == ["1 busy", "0", "50", "49 - 51", "1.00", "5.00", "0.56"]
    assert waiting.environment_of("passive")["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "GOMP_SPINCOUNT" not in waiting.environment_of("passive")
