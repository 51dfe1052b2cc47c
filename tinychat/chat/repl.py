"""The interactive part of the chat program: lines typed, commands, several checkpoints side by side;
and how lines are typed: edited by characters, with a history that outlives the program and Tab for commands."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import locale
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tinychat.chat.session import Session, examples
from tinychat.errors import UserError
from tinychat.models.generation.sampling import SamplingOptions
from tinychat.runs import folders
from tinychat.runtime.run_files import at_home
from tinychat.runtime.terminal import as_text

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


KEYS = "/help lists the commands; Ctrl-C stops a reply, Ctrl-D or /quit leaves"


def converse(sessions: list[Session], options: SamplingOptions) -> None:
    """Read lines and print replies until /quit or Ctrl-D."""
    repl = Repl(sessions, options)
    lines = LineReader([f"/{name}" for name in repl.commands])
    for session in sessions:
        what = (
            "answers messages" if session.kind == "chat" else "continues texts; an empty line starts one from nothing"
        )
        print(as_text(session.name), f"{what} ({session.context} tokens of context)")
    answering = [session for session in sessions if session.kind == "chat"]
    if answering and (tries := examples(answering[-1].folder)):
        print("Try for instance:", *(f"  {as_text(prompt)}" for prompt in tries), sep="\n")
    print(KEYS)
    while not repl.finished:
        try:
            line = lines.read()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print(f"\n{KEYS}")
            continue
        try:
            repl.take(line)
        except UserError as error:
            print(as_text(f"error: {error}"))
        except KeyboardInterrupt:  # between two replies
            print()


@contextlib.contextmanager
def noted_interrupts() -> Iterator[list[int]]:
    """Inside, the first Ctrl-C is noted in the list and raises nothing: a KeyboardInterrupt that comes up while a
    library's destructor or callback runs would be swallowed there. The second one raises."""
    noted: list[int] = []

    def note(number: int, _frame: Any) -> None:
        noted.append(number)
        if len(noted) > 1:
            raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, previous)


class Repl:
    """What the lines typed do to the sessions. Every session gets every message."""

    def __init__(self, sessions: list[Session], options: SamplingOptions):
        self.sessions, self.options, self.finished = sessions, options, False
        self._retries = 0
        self._chats = [session for session in sessions if session.kind == "chat"]
        self.commands: dict[str, Callable[[str], None]] = {
            "help": self.help,
            "undo": self.undo,
            "retry": self.retry,
            "reset": self.reset,
            "system": self.system,
            "params": self.params,
            "save": self.save,
            "save!": self.save_over,
            "quit": self.quit,
        }

    def take(self, line: str) -> None:
        """A command, or a message to every session. Raises UserError for a command that cannot work."""
        if line.startswith("/"):
            name, _, argument = line[1:].strip().partition(" ")
            if name not in self.commands:
                close = difflib.get_close_matches(name, self.commands, n=1)
                meant = f"did you mean /{close[0]}?" if close else "/help lists them"
                raise UserError(f"no command /{name}; {meant} (a blank before the / sends the line as a message)")
            self.commands[name](argument.strip())
        elif not line.strip() and len(self._chats) == len(self.sessions):
            print("type a message, or /help")
        else:
            self._retries = 0
            self._answer(line)

    def _answer(self, line: str) -> None:
        for session in self.sessions:
            options = self.options
            if self._retries and options.seed is not None:
                options = dataclasses.replace(options, seed=options.seed + self._retries)
            if len(self.sessions) > 1:
                print(as_text(f"[{session.name}] "), end="", flush=True)
            pieces = session.reply(line, options)
            try:
                with noted_interrupts() as noted:
                    for piece in pieces:
                        print(as_text(piece), end="", flush=True)
                        if noted:
                            raise KeyboardInterrupt
                print(flush=True)
            except KeyboardInterrupt:
                pieces.close()  # type: ignore[attr-defined]
                print(" [stopped]" if session.turns[-1].reply else "[stopped before it began]")
            except (
                UserError,
                RuntimeError,
            ) as error:  # RuntimeError: out of memory, above all; the others still answer
                newline = "\n" if session.turns[-1].reply else ""
                print(as_text(f"{newline}error: {' '.join(str(error).split())}"))
                continue
            turn = session.turns[-1]
            if not turn.reply and session.kind == "chat":
                turn.notes.append("no reply: the line is left out of the dialogue")
            for note in turn.notes:
                print(as_text(f"[{note}]"))

    def help(self, argument: str) -> None:
        """this list"""
        for name, does in self.commands.items():
            if name != "save!":
                usage, _, meaning = (does.__doc__ or "").rpartition(": ")
                print(f"  /{name + ' ' + usage:26}{meaning}")
        print("A line that does not begin with / is a message. Up and down bring back earlier lines.")

    def undo(self, argument: str) -> None:
        """take back the last line and its reply"""
        taken, *_ = [session.undo() for session in self.sessions]
        print(as_text(f"took back: {_shortened(taken.line)}") if taken else "nothing to take back")

    def retry(self, argument: str) -> None:
        """another reply to the last line"""
        if not self.sessions[0].turns:
            raise UserError("/retry: nothing was said yet")
        if self.options.greedy:
            print("[greedy gives the same reply; /params greedy=off]")
        last, *_ = [session.undo() for session in self.sessions]
        assert last is not None
        self._retries += 1
        self._answer(last.line)

    def reset(self, argument: str) -> None:
        """forget the dialogue (the system message stays)"""
        for session in self.sessions:
            session.reset()
        print("the dialogue is forgotten")

    def system(self, text: str) -> None:
        """[TEXT|-]: show or set the system message; - takes it away"""
        if not self._chats:
            raise UserError("/system: no checkpoint here has a chat template, and a text has no system message")
        if text:
            for session in self._chats:
                session.system = "" if text == "-" else text
        print(as_text(f"system message: {self._chats[0].system or 'none'}"))

    def params(self, assignments: str) -> None:
        """[NAME=VALUE ...]: show or set how replies are drawn, as in /params temperature=0.5"""
        self.options = with_params(self.options, assignments)
        print(" ".join(f"{name}={_shown(value)}" for name, value in dataclasses.asdict(self.options).items()))

    def save(self, file: str) -> None:
        """FILE: write the dialogue to a .json or .jsonl file, as data=chat reads it; /save! overwrites"""
        self._save(file, overwrite=False)

    def save_over(self, file: str) -> None:
        self._save(file, overwrite=True)

    def quit(self, argument: str) -> None:
        """leave"""
        self.finished = True

    def _save(self, file: str, overwrite: bool) -> None:
        rows = [{**row, "checkpoint": session.name} for session in self.sessions for row in session.rows()]
        if not file:
            raise UserError("/save: give a file, e.g. /save talk.json")
        path = at_home(file)
        if path.suffix not in (".json", ".jsonl"):
            raise UserError(f"/save {file}: name it .json or .jsonl")
        if not rows:
            raise UserError(f"/save {file}: there is no reply to save yet")
        if not path.parent.is_dir():
            raise UserError(f"/save {file}: there is no folder {path.parent}")
        if path.exists() and not overwrite:
            raise UserError(f"/save {file}: the file exists; /save! {file} overwrites it")
        try:
            folders.write_text_atomic(path, _as_text(rows, lines=path.suffix == ".jsonl"))
        except OSError as error:
            raise UserError(f"/save {file}: {error.strerror}") from None
        print(as_text(f"saved {len(rows)} {'dialogue' if len(rows) == 1 else 'dialogues'} to {path}"))


def with_params(options: SamplingOptions, assignments: str) -> SamplingOptions:
    """`options` with "NAME=VALUE NAME=VALUE" applied. Raises UserError for an unknown name or a bad value."""
    known = {field.name: field.type for field in dataclasses.fields(SamplingOptions)}
    changes: dict[str, Any] = {}
    for assignment in assignments.split():
        name, equals, text = assignment.partition("=")
        name = name.lstrip("-").replace("-", "_")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise UserError(
                f"/params {name}: " + (f"did you mean {close[0]}?" if close else f"one of {', '.join(known)}")
            )
        if not equals or not text:
            raise UserError(f"/params {name}: give a value, e.g. {name}={_shown(getattr(options, name))}")
        changes[name] = _value(name, str(known[name]), text)
    return dataclasses.replace(options, **changes)


def _value(name: str, kind: str, text: str) -> Any:
    words = {"on": True, "true": True, "off": False, "false": False}
    try:
        if kind == "bool":
            return words[text.lower()]
        if "None" in kind and text.lower() == "none":
            return None
        return float(text) if kind == "float" else int(text)
    except (KeyError, ValueError):
        wanted = {"bool": "on or off", "float": "a number"}.get(kind, "a whole number")
        raise UserError(f"/params {name}={text}: must be {wanted}{' or none' if 'None' in kind else ''}") from None


def _shown(value: object) -> str:
    return {True: "on", False: "off", None: "none"}[value] if isinstance(value, bool | None) else str(value)


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:59] + "…"


def _as_text(rows: list[dict[str, Any]], lines: bool) -> str:
    if lines:
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return json.dumps(rows, ensure_ascii=False, indent=1) + "\n"
