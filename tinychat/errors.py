"""The one exception whose message is meant for the person at the keyboard, and the command that such messages name."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Sequence
from pathlib import Path


class UserError(Exception):
    """Something the user can mend. The message is one line: the key or file, the value found, what would work.

    Entry points print it without a traceback and exit with status 1.
    """


def no_such(what: str, name: str, known: Sequence[str]) -> UserError:
    """To be raised for a name that is none of `known`: what there is, and which of them was probably meant."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return UserError(f"{what} {name!r} does not exist{hint or ';'} choose {', '.join(known[:-1])} or {known[-1]}")


def install_command(extra: str) -> str:
    """What installs an extra of setup.cfg: `pip install -e '.[qlora]'` in a checkout, `pip install 'tinychat[qlora]'`
    where the package came from a wheel."""
    root = Path(__file__).resolve().parent.parent
    if not ((root / "setup.cfg").is_file() and (root / "conf").is_dir()):
        return f"pip install {shlex.quote(f'tinychat[{extra}]')}"
    place = "." if root == Path.cwd() else str(root)
    return f"pip install -e {shlex.quote(f'{place}[{extra}]')}"
