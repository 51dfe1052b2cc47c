"""A Python file of the user's as a module that behaves as under `python FILE.py`.

The files beside it are importable, dataclasses find their module, and what it defines can be sent to other processes:
its name says which file it is, so that a process that was spawned finds it too (pickle sends a function by the name of
its module). A block under `if __name__ == "__main__"` does not run, as in processes that multiprocessing spawns.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from tinychat.errors import UserError
from tinychat.runtime.process import Interrupted
from tinychat.runtime.run_files import at_home

__path__: list[str] = []  # makes this a package to the import system: the files are modules below it
_PREFIX = f"{__name__}.file_"


class UserCodeError(UserError):
    """What a user's code raised, in a line."""


class _Loader(importlib.machinery.SourceFileLoader):
    """From the source, always, and without a __pycache__ beside the user's file: as a script is run."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)  # type: ignore[return-value]


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> Any:
        if not fullname.startswith(_PREFIX):
            return None
        file = bytes.fromhex(fullname.removeprefix(_PREFIX)).decode()
        return importlib.util.spec_from_file_location(fullname, file, loader=_Loader(fullname, file))


sys.meta_path.append(_Finder())


def load(path: str) -> ModuleType:
    """The module of a file, loaded once. Raises UserCodeError for what goes wrong while it is loaded."""
    file = at_home(path).resolve()
    if file.suffix != ".py" or not file.is_file():
        raise UserCodeError("no Python file; give FILE.py:FUNCTION")
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    with running("while it is loaded"):
        _refuse_hidden(file)
        return importlib.import_module(_PREFIX + str(file).encode().hex())


@contextlib.contextmanager
def running(when: str = "") -> Iterator[None]:
    """Around code of the user's. What it raises becomes a UserCodeError, sys.exit and KeyboardInterrupt too: they would
    end the command without a word. A signal that ends the job goes through.

    Processes that it spawns would begin with a second import of the program that runs here, some seconds; they find a
    program that is empty.
    """
    program = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    except Interrupted:
        raise
    except BaseException as error:
        what = "sys.exit" if isinstance(error, SystemExit) else type(error).__name__
        said = " ".join(str(error).split())[:200]
        raise UserCodeError(" ".join(filter(None, (what, when))) + (f": {said}" if said else "")) from error
    finally:
        sys.modules["__main__"] = program


def _refuse_hidden(file: Path) -> None:
    """An import of a module beside the file must not silently give another one of that name, loaded here already."""
    for name in sorted(_imported(file)):
        there = getattr(sys.modules.get(name), "__file__", None)
        beside = [path for path in (file.parent / f"{name}.py", file.parent / name / "__init__.py") if path.is_file()]
        if there is not None and beside and Path(there).resolve() not in beside:
            raise ImportError(f"import {name} would give {there}, not the {beside[0].name} beside it; rename that")


def _imported(file: Path) -> set[str]:
    """First words of what a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_bytes(), str(file))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found
