"""A file of the user's behaves as under `python FILE.py`."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rl.test_rewards import python, rewards, row
from tinychat.errors import UserError
from tinychat.runtime import user_code
from tinychat.runtime.process import Interrupted
from tinychat.stages import StopFlag

ROWS = [row(1), row(2)]


@pytest.fixture(autouse=True)
def path_and_modules() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def scores(tmp_path: Path, code: str) -> list[float]:
    """Of the replies "cat" and "dog", as within a stage: something listens to signals."""
    with StopFlag(tmp_path).listening(insist=True):
        return rewards(mine=python(tmp_path, code)).score(ROWS, ["cat", "doggy"], [[1], [1]])[1]["mine"]


def test_a_dataclass_with_postponed_annotations(tmp_path: Path) -> None:
    code = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n@dataclass\nclass Rule:\n"
        "    word: str\n    weight: float = 1.0\n\n"
        "def score(prompts, replies): return [Rule('x', len(reply)).weight for reply in replies]\n"
    )
    assert scores(tmp_path, code) == [3.0, 5.0]


POOL = """
import multiprocessing
from sizes import size

class Reply:
    def __init__(self, text): self.text = text

def one(reply): return float(size(reply.text))

def score(prompts, replies):
    with multiprocessing.get_context({method!r}).Pool(2) as pool:
        return pool.map(one, [Reply(reply) for reply in replies])

if __name__ == "__main__":
    raise SystemExit("run as a script")
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_pool_of_its_own_functions_and_a_module_beside_it(tmp_path: Path, method: str) -> None:
    (tmp_path / "sizes.py").write_text("def size(text): return len(text)\n")
    assert scores(tmp_path, POOL.format(method=method)) == [3.0, 5.0]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) in ([], ["__pycache__"])
    assert not list(tmp_path.glob("__pycache__/mine*"))


def test_a_spawned_process_does_not_import_the_program_that_runs_here(tmp_path: Path) -> None:
    code = (
        "import multiprocessing, sys\ndef one(_): return float('pytest' in sys.modules or 'torch' in sys.modules)\n"
        "def score(prompts, replies):\n    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        return pool.map(one, replies)\n"
    )
    program = sys.modules["__main__"]
    assert scores(tmp_path, code) == [0.0, 0.0]
    assert sys.modules["__main__"] is program


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (
            "import sys\ndef score(prompts, replies): sys.exit()",
            r"path=.*: sys.exit \(.*mine.py, line 2\), for .* to row 1",
        ),
        (
            "def score(prompts, replies): raise SystemExit(0)",
            r"sys.exit: 0 \(.*mine.py, line 1\), for the reply 'cat' to row 1",
        ),
        (
            "def score(prompts, replies): raise KeyboardInterrupt",
            r"KeyboardInterrupt \(.*mine.py, line 1\), for the reply 'cat' to row 1",
        ),
        ("import sys\nsys.exit('usage: mine.py FILE')", "sys.exit while it is loaded: usage: mine.py FILE"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt while it is loaded"),
        ("def score(prompts, replies)", r"SyntaxError while it is loaded: expected ':' \(.*mine.py, line 1\)$"),
        ("def score(prompts, replies): return [10**400] * 2", "gave 1000.* where a number is needed"),
    ],
)
def test_what_would_end_the_command_without_a_word_is_an_error(tmp_path: Path, code: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        scores(tmp_path, code)
    assert "\n" not in str(caught.value)


def test_a_signal_that_ends_the_job_goes_through(tmp_path: Path) -> None:
    code = "import os\ndef score(prompts, replies): os.kill(os.getpid(), 15) or [0.0]"
    part = python(tmp_path, code)
    stop = StopFlag(tmp_path, patient=False)
    with stop.listening(insist=True), pytest.raises(Interrupted):
        rewards(mine=part).score(ROWS, ["cat", "dog"], [[1], [1]])
    assert stop.signal_number == signal.SIGTERM


def test_another_module_of_the_name_of_one_beside_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "textwrap.py").write_text("")
    with pytest.raises(UserError, match=r"import textwrap would give .*, not the textwrap\.py beside it; rename that"):
        scores(tmp_path, "import textwrap")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own.py").write_text("")
        (tmp_path / folder / "mine.py").write_text("from own import *")
    user_code.load(str(tmp_path / "a" / "mine.py"))
    with pytest.raises(UserError, match=r"import own would give .*/a/own\.py, not the own\.py beside it"):
        user_code.load(str(tmp_path / "b" / "mine.py"))


@pytest.mark.parametrize("name", ["none.py", "mine.txt", "."])
def test_what_is_no_python_file(tmp_path: Path, name: str) -> None:
    with contextlib.suppress(IsADirectoryError):
        (tmp_path / name).write_text("") if name.endswith("txt") else None
    with pytest.raises(
        UserError, match=r"no such file" if name == "none.py" else r"no Python file; give FILE\.py:NAME"
    ):
        user_code.load(str(tmp_path / name))
