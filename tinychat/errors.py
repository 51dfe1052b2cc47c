"""The one exception whose message is meant for the person at the keyboard, and the command that such messages name."""

from __future__ import annotations

import contextlib
import difflib
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path


class UserError(Exception):
    """Something the user can mend. The message is one line: the key or file, the value found, what would work.

    Entry points print it without a traceback and exit with status 1.
    """


@contextlib.contextmanager
def about(key: str) -> Iterator[None]:
    """Inside, an error begins with the setting that it is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def no_such(key: str, name: str, what: str, known: Iterable[str], more: str = "") -> UserError:
    """To be raised for a name that is none of `known`: the key, what there is, and what was probably meant.

    what: what one is called. more: after the list, what else would work.
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f". Did you mean {near[0]}?" if near else ""
    return UserError(f"{key}={name}: no such {what}; there are {', '.join(known)}{more}{hint}")


def install_command(extra: str) -> str:
    """What installs an extra of setup.cfg: `pip install -e '.[qlora]'` in a checkout, `pip install 'tinychat[qlora]'`
    where the package came from a wheel."""
    root = Path(__file__).resolve().parent.parent
    if not ((root / "setup.cfg").is_file() and (root / "conf").is_dir()):
        return f"pip install {shlex.quote(f'tinychat[{extra}]')}"
    place = "." if root == Path.cwd() else str(root)
    return f"pip install -e {shlex.quote(f'{place}[{extra}]')}"
