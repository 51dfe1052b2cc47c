"""Foreign text on a terminal: control characters are shown, never obeyed. Every place that prints such text asks here.

Data, prompts, replies and file names are other people's; an escape sequence in one would colour, clear or rename the
terminal, hide a line, or type an answer. Passwords inside addresses (`http://user:password@host`, `https://token@host`)
are shown as ***.
"""

from __future__ import annotations

import json
import os
import re
import sys
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinychat.errors import UserError
from tinychat.runtime.process import discard_output
from tinychat.runtime.run_files import write_text_atomic

if TYPE_CHECKING:
    from rich.console import Console

FILE = "passwords.json"
HIDDEN = "***"
# A password may hold / and @: it ends at the last @ of the address. In a text an address ends at a blank or a quote.
_ADDRESS = re.compile(r"([A-Za-z][\w+.-]*://[^\s:/@'\"]*:)(.*)@", re.DOTALL)
_IN_TEXT = re.compile(r"([A-Za-z][\w+.-]*://[^\s:/@'\"]*:)[^\s'\"]*@")
# Of the web a name without a password is a token; of a database it is just a name.
_TOKEN = re.compile(r"\b(https?://)[^\s:/@'\"]+(?=(?::(?:x-oauth-basic)?)?@)", re.IGNORECASE)
_NAMED = re.compile(r"([?&](?:password|passwd|pwd|token|secret|api_key)=)[^&\s'\"]+", re.IGNORECASE)


def masked(text: str) -> str:
    """A text (a message, a word of a command) with *** for the password of every address in it."""
    start = re.match(r"[~+]*[\w./@-]*=['\"]?", text)  # KEY= of a setting
    key, value = (text[: start.end()], text[start.end() :]) if start else ("", text)
    if _ADDRESS.match(value):
        return key + _masked_address(value)
    text = _TOKEN.sub(rf"\1{HIDDEN}", text)
    return _NAMED.sub(rf"\1{HIDDEN}", _IN_TEXT.sub(rf"\1{HIDDEN}@", text))


def _masked_address(address: str) -> str:
    address = _TOKEN.sub(rf"\1{HIDDEN}", address, count=1)
    return _NAMED.sub(rf"\1{HIDDEN}", _ADDRESS.sub(rf"\1{HIDDEN}@", address, count=1))


def masked_tree(tree: Any) -> Any:
    """A configuration with *** for the password of every value that is an address."""
    if isinstance(tree, Mapping):
        return {key: masked_tree(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [masked_tree(value) for value in tree]
    return _masked_address(tree) if isinstance(tree, str) and _is_address(tree) else tree


def _is_address(text: str) -> bool:
    return re.match(r"[A-Za-z][\w+.-]*://", text) is not None


def keep(run_dir: Path, config: Mapping[str, Any]) -> None:
    """Write the addresses of a configuration that hold passwords into the run folder, readable by the owner alone.

    Where *** stands for one, a resumed run's is kept. Raises UserError where there is none to keep, OSError.
    """
    known = _read(run_dir)
    found = {}
    for key, value in _leaves(config):
        if masked_tree(value) != value:
            found[key] = value
        elif f":{HIDDEN}@" in value or f"//{HIDDEN}@" in value or f"={HIDDEN}" in value:
            if masked_tree(known.get(key)) != value:
                raise UserError(f"{key}={value}: {HIDDEN} stands for a password; give the address with its password")
            found[key] = known[key]
    if not found:
        return
    write_text_atomic(run_dir / FILE, json.dumps(found, indent=1), private=True)


def restored(config: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    """A run's configuration with the passwords that its folder keeps; a value that is another address now stays."""
    known = _read(run_dir)

    def put_back(tree: Any, prefix: str = "") -> Any:
        if isinstance(tree, dict):
            return {key: put_back(value, f"{prefix}{key}.") for key, value in tree.items()}
        real = known.get(prefix[:-1])
        return real if isinstance(tree, str) and real is not None and masked_tree(real) == tree else tree

    return put_back(config) if known else config


def _leaves(tree: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(tree, Mapping):
        return [leaf for key, value in tree.items() for leaf in _leaves(value, f"{prefix}{key}.")]
    return [(prefix[:-1], tree)] if isinstance(tree, str) else []


def _read(run_dir: Path) -> dict[str, str]:
    try:
        found = json.loads((run_dir / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{run_dir / FILE}: {error}; give the address with its password again") from None
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


# Pictures for the controls of ASCII but line end and tab, codes for those of Latin-1, and for what turns the direction
# of writing, under which a line reads otherwise than it is.
_SHOWN = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {127: "\u2421"}
_SHOWN |= {code: f"\\x{code:02x}" for code in range(0x80, 0xA0)}
_SHOWN |= {code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def as_text(text: str) -> str:
    """`text` with its control characters shown; line ends and tabs stay, as does every printable letter."""
    return text.translate(_SHOWN)


def is_plain(text: str) -> bool:
    """Whether nothing in `text`, line ends and tabs among it, would act on a terminal or end a line."""
    breaks = ("Cc", "Cs", "Zl", "Zp")
    return as_text(text) == text and not any(unicodedata.category(letter) in breaks for letter in text)


def output_console() -> Console:
    """Of rich, for standard output: as wide as the terminal; a file or pipe has room for a table that is not folded.
    Where the reader has gone, the program goes on without it: what is printed may not be all that it does."""
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:  # rich's own ends the program, with status 1
            self.quiet = True
            discard_output()

    width = None
    if not sys.stdout.isatty():
        columns = os.environ.get("COLUMNS", "")
        width = int(columns) if columns.isdigit() and int(columns) > 20 else 160
    return Output(highlight=False, markup=False, width=width)


def say(line: str) -> None:
    """A line on standard error, its controls shown and its passwords hidden."""
    print(as_text(masked(line)), file=sys.stderr, flush=True)


def error_line(message: object) -> str:
    """What a program ends with, for sys.exit."""
    return f"error: {as_text(masked(str(message)))}"
