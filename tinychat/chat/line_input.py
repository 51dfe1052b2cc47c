"""Lines typed at a terminal: edited by characters, with a history that outlives the program and Tab for commands."""

from __future__ import annotations

import contextlib
import locale
import os
from pathlib import Path
from typing import Any

from tinychat.runtime.run_files import at_home

HISTORY_ENV = "TINYCHAT_HISTORY"
HISTORY_LINES = 2000


class LineReader:
    """Reads lines; Tab completes `commands`. Where Python has no readline, the terminal's own editing must do."""

    def __init__(self, commands: list[str]):
        self._commands = commands
        self._file = history_file()
        self._readline: Any = None
        with contextlib.suppress(ImportError):  # not on Windows
            import readline

            self._readline = readline
            self._prepare()

    def read(self) -> str:
        """The next line. Raises EOFError and KeyboardInterrupt as input() does, and UserError never."""
        known = self._readline.get_current_history_length() if self._readline else 0
        line = input("> ")
        # A line at a time, so that neither a crash nor a second session loses any; readline leaves repeated lines out.
        if self._file and self._readline and self._readline.get_current_history_length() > known:
            with contextlib.suppress(OSError):  # a full disk must not stop a talk
                self._readline.append_history_file(1, self._file)
        return as_utf8(line)

    def _prepare(self) -> None:
        _edit_characters()
        self._readline.set_completer(self._complete)
        self._readline.set_completer_delims(" ")
        is_libedit = "libedit" in (self._readline.__doc__ or "")
        self._readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
        self._readline.set_history_length(HISTORY_LINES)
        if self._file:
            with contextlib.suppress(OSError):
                self._file.parent.mkdir(parents=True, exist_ok=True)
                self._file.touch(mode=0o600)  # what was typed is nobody else's business
                self._readline.read_history_file(self._file)

    def _complete(self, text: str, index: int) -> str | None:
        found = [command for command in self._commands if text.startswith("/") and command.startswith(text)]
        return found[index] if index < len(found) else None


def as_utf8(text: str) -> str:
    """Text from the terminal or the command line, where bytes that Python could not decode stand as half surrogate
    pairs: decoded as UTF-8 after all, and U+FFFD for what is none."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _edit_characters() -> None:
    """Let readline move and delete by characters where the environment's locale (C, above all) has only bytes; it
    looks the locale up in the environment for each line."""
    for name in ("C.UTF-8", "en_US.UTF-8"):
        if locale.nl_langinfo(locale.CODESET).upper() in ("UTF-8", "UTF8"):
            return
        with contextlib.suppress(locale.Error):
            locale.setlocale(locale.LC_CTYPE, name)
            os.environ["LC_ALL"] = name


def history_file() -> Path | None:
    """$TINYCHAT_HISTORY, or tinychat/history in the user's folder for state; None where the variable is empty or 0, and
    for a user without a home."""
    chosen = os.environ.get(HISTORY_ENV)
    if chosen is not None:
        return None if chosen in ("", "0") else at_home(chosen)
    state = at_home(os.environ.get("XDG_STATE_HOME") or "~/.local/state")
    return state / "tinychat" / "history" if state.is_absolute() else None
