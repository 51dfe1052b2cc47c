"""Folders that appear whole or not at all, and over nothing that is there."""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tinychat.errors import UserError
from tinychat.runtime.run_files import said_of


@contextlib.contextmanager
def new_folder(out: Path, anew: bool = False) -> Iterator[Path]:
    """A folder that is yet to be made, for the block to fill: at its end it becomes `out`. Where `out` holds the very
    same files already it stays as it is; anew: which two exports never do.

    Raises UserError where `out` has other content, and where the file system refuses.
    """
    taken = f"{out}: exists with other content; nothing was written: give another --out FOLDER, or remove it"
    if out.is_file() or (anew and out.is_dir() and any(out.iterdir())):
        raise UserError(taken)
    temporary = out.with_name(f".saving-{out.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if out.is_dir() and any(out.iterdir()):
            if not _same(temporary, out):
                raise UserError(taken)
            return
        os.replace(temporary, out)
    except OSError as error:
        raise UserError(f"{said_of(error, out)}; choose another folder with --out") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def files_of(folder: Path) -> dict[str, Path]:
    """Every file of a folder, by its name in it."""
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}


def _same(one: Path, other: Path) -> bool:
    ours, theirs = files_of(one), files_of(other)
    return ours.keys() == theirs.keys() and all(
        filecmp.cmp(path, theirs[name], shallow=False) for name, path in ours.items()
    )


def show(folder: Path) -> None:
    """Print what was written."""
    print(f"exported to {folder}")
    for name, path in files_of(folder).items():
        print(f"  {path.stat().st_size:>13,}  {name}")
