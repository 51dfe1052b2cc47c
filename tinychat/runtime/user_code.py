"""Code of the user's, by its address: FILE.py:NAME, or MODULE:NAME of a package that can be imported.

A file is a module that behaves as under `python FILE.py`. The files beside it are importable, dataclasses find their
module, and what it defines can be sent to other processes: its name says which file it is, so that a process that was
spawned finds it too (pickle sends a function by the name of its module). A block under `if __name__ == "__main__"` does
not run, as in processes that multiprocessing spawns.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from tinychat.errors import UserError
from tinychat.runtime.process import Interrupted
from tinychat.runtime.run_files import at_home

__path__: list[str] = []  # makes this a package to the import system: the files are modules below it
_PREFIX = f"{__name__}.file_"
_ROOTS: set[Path] = set()  # folders and files of code that was loaded: a line in one of them is the user's
_TINYCHAT = Path(__file__).resolve().parents[1]


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


def named(address: str) -> Any:
    """What an address means. Raises UserCodeError for what goes wrong while it is loaded, and where there is no such
    name, with those that there are."""
    where, _, name = address.rpartition(":")
    if not where or not name:
        raise UserCodeError("no address; give FILE.py:NAME, or MODULE:NAME of a package of yours")
    module = load(where)
    if hasattr(module, name):
        return getattr(module, name)
    own = (key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__)
    there = [key for key in own if not key.startswith("_")]
    near = difflib.get_close_matches(name, there, n=1)
    hint = f". Did you mean {near[0]}?" if near else ""
    raise UserCodeError(f"{where} has no {name!r}; it has {', '.join(there) or 'no class and no function'}{hint}")


def load(where: str) -> ModuleType:
    """The module of a file, or of that name, loaded once. Raises UserCodeError for what goes wrong meanwhile."""
    if "/" not in where and not where.endswith(".py"):
        _importable(str(Path.cwd()))  # as under `python -m`
        with running("while it is loaded"):
            module = importlib.import_module(where)
            _ROOTS.add(_root(module))
            return module
    file = at_home(where).resolve()
    if file.suffix != ".py":
        raise UserCodeError("no Python file; give FILE.py:NAME")
    if not file.is_file():
        raise UserCodeError(f"no such file (looked from {Path.cwd()})")
    _importable(str(file.parent))
    _ROOTS.add(file.parent)
    with running("while it is loaded"):
        _refuse_hidden(file)
        return importlib.import_module(_PREFIX + str(file).encode().hex())


def _importable(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _root(module: ModuleType) -> Path:
    """The folder of a module's whole package; of a module that is a file alone, that file."""
    top = sys.modules[module.__name__.partition(".")[0]]
    return Path(str(top.__path__[0] if hasattr(top, "__path__") else top.__file__)).resolve()


def sources(address: str) -> list[Path]:
    """The files of the code behind an address: of a package all of its modules, of a file it and what lies beside it
    and is imported, and so on."""
    module = load(address.rpartition(":")[0])
    if not module.__name__.startswith(_PREFIX) and (root := _root(module)).is_dir():
        return sorted(root.rglob("*.py"))
    file = Path(str(module.__file__)).resolve()
    found, coming = {file}, [file]
    while coming:
        beside = [path for name in _imported(coming.pop()) for path in _beside(file.parent, name)]
        coming += [path for path in beside if path not in found]
        found.update(beside)
    return sorted(found)


def _beside(folder: Path, name: str) -> list[Path]:
    if (folder / name / "__init__.py").is_file():
        return sorted((folder / name).rglob("*.py"))
    return [folder / f"{name}.py"] if (folder / f"{name}.py").is_file() else []


@contextlib.contextmanager
def running(when: str = "") -> Iterator[None]:
    """Around code of the user's. What it raises becomes a UserCodeError that names the line, sys.exit and
    KeyboardInterrupt too: they would end the command without a word. A signal that ends the job goes through.

    Processes that it spawns would begin with a second import of the program that runs here, some seconds; they find a
    program that is empty.
    """
    program = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    except (Interrupted, UserCodeError):
        raise
    except BaseException as error:
        what = "sys.exit" if isinstance(error, SystemExit) else type(error).__name__
        said = " ".join(str(getattr(error, "msg", "") or error).split())[:200]
        place = _place(error)
        raise UserCodeError(
            " ".join(filter(None, (what, when))) + (f": {said}" if said else "") + (f" ({place})" if place else "")
        ) from error
    finally:
        sys.modules["__main__"] = program


def _place(error: BaseException) -> str:
    """`FILE, line N` of the user's code that raised it, or that called what did; "" where none is known."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_shown(Path(error.filename))}, line {error.lineno}"
    frames = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    own = [f"{_shown(file)}, line {line}" for file, line in frames if _is_users(file)]
    return own[-1] if own else ""


def _shown(file: Path) -> Path:
    return file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file


def _is_users(file: Path) -> bool:
    """Whether code that was loaded has the file; a folder of work may hold tinychat and its environment too."""
    roots = [root for root in _ROOTS if file.is_relative_to(root)]
    return not file.is_relative_to(_TINYCHAT) and any(
        "site-packages" not in file.relative_to(root).parts for root in roots
    )


def _refuse_hidden(file: Path) -> None:
    """An import of a module beside the file must not silently give another one of that name, loaded here already."""
    for name in sorted(_imported(file)):
        there = getattr(sys.modules.get(name), "__file__", None)
        beside = _beside(file.parent, name)
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
