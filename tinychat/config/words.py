"""The words of a command line before Hydra reads them: what its grammar cannot take is quoted, slips are named.

Hydra's grammar knows ASCII letters and few signs; a file may have any name. A value that it reads is left alone, so
lists, sweeps, functions and interpolations mean what they mean to Hydra. Tab completion in bash asks here too: Hydra's
own completes `python FILE.py` and programs alone.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinychat.config.explain import check_tuned, did_you_mean
from tinychat.errors import UserError
from tinychat.runtime.run_files import at_home

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

_FLAGS = ("--shell-completion", "-sc")
# Other lines that begin with python keep bash's own completion of files. `=` parts words for readline, as
# COMP_WORDBREAKS says, so what stands before it is taken off the answers.
_INSTALL = r"""
_tinychat_completion()
{
    local line="${COMP_LINE:0:COMP_POINT}" choices word reply
    COMPREPLY=()
    [[ "$line" =~ ^([^[:space:]]+[[:space:]]+-m[[:space:]]+tinychat\.(train|doctor))[[:space:]]+(.*)$ ]] || return 0
    local program="${BASH_REMATCH[1]}" rest="${BASH_REMATCH[3]}"
    choices=$(COMP_LINE="tinychat.train $rest" $program --shell-completion query=bash 2>/dev/null)
    word="${rest##*[[:space:]]}"
    for reply in $(compgen -W "$choices" -- "$word"); do
        [[ "$COMP_WORDBREAKS" == *=* && "$word" == *=* ]] && reply="${reply#"${word%"${word##*=}"}"}"
        COMPREPLY+=("$reply")
    done
}
complete -o nospace -o bashdefault -o default -F _tinychat_completion python python3
"""
_UNINSTALL = """
complete -r python python3 2>/dev/null
unset -f _tinychat_completion
"""


def script(arguments: Sequence[str]) -> str | None:
    """What `eval "$(python -m tinychat.train --shell-completion install=bash)"` runs, or its undoing; None for any
    other command line: Hydra answers the questions of that script, and has those of other shells."""
    if not any(flag in arguments for flag in _FLAGS):
        return None
    if "install=bash" in arguments:
        return _INSTALL
    return _UNINSTALL if "uninstall=bash" in arguments else None


_OVERRIDE = re.compile(r"([~+]{0,2}[^=~+'\"][^=]*)=(.*)", re.DOTALL)
_CALL = re.compile(r"\s*(\w+)\s*\((.*)\)\s*", re.DOTALL)
_PLAIN = re.compile(r"[A-Za-z_./-][\w./-]*", re.ASCII)
_SHORT = {"tasks": "stage.tasks"}  # what may be said for a key
_NAMES = ("_name", ".name", ".study")  # keys of names, which are no paths
_CLOSING = {"[": "]", "{": "}", "(": ")"}


def ready(arguments: Sequence[str], folder: Path) -> list[str]:
    """The command line as Hydra can read it; folder: conf/, for what a wrong word may have meant.

    Raises UserError for an unknown flag, a word that is no setting, and one that is no UTF-8 text.
    """
    for word in arguments:
        _check_utf8(word)
    from hydra._internal.utils import get_args_parser

    flags = {name: action.nargs != 0 for name, action in get_args_parser()._option_string_actions.items()}
    found, takes_value = [], False
    sweeps = any(word in ("-m", "--multirun") for word in arguments)
    for index, word in enumerate(arguments):
        flag = word.partition("=")[0] if word.startswith("-") else ""
        if flag:
            if not any(name.startswith(flag) for name in flags):
                raise UserError(_unknown_flag(word, arguments[index + 1 : index + 2], folder))
            takes_value = flags.get(flag, False) and "=" not in word
            found.append(word)
            continue
        name, equals, value = word.partition("=")
        if equals and not takes_value:
            word = f"{_SHORT.get(name, name)}={value}"
        if not takes_value and "=" not in word and not word.startswith("~"):
            raise UserError(f"{word}: a setting is written KEY=VALUE (see --help){did_you_mean(word, folder)}")
        found.append(word if takes_value else quoted(word, sweeps))
        takes_value = False
    check_tuned(found, folder)
    return found


def _check_utf8(word: str) -> None:
    try:
        word.encode()
    except UnicodeEncodeError:
        shown = word.encode("utf-8", "backslashreplace").decode()
        raise UserError(f"{shown}: is not UTF-8 text, which settings are written in; rename the file") from None


def _unknown_flag(word: str, following: Sequence[str], folder: Path) -> str:
    name, equals, value = word.lstrip("-").partition("=")
    if not equals and following and "=" not in following[0]:
        value = following[0]
    shown = name.replace("-", "_") + (f"={value}" if value else "")
    return f"{word}: no such flag; a setting is written KEY=VALUE (see --help){did_you_mean(shown, folder)}"


def quoted(word: str, sweeps: bool = True) -> str:
    """An override whose value Hydra's grammar can read: as it is, or quoted. `~` at its beginning becomes the home
    folder, as a shell does it where the word begins there. sweeps: whether commas part the values of several runs."""
    match = _OVERRIDE.fullmatch(word)
    if match is None:
        return word
    key, value = match[1], match[2]
    read = _read(f"{key}={value}")
    if read is None:
        if _read(f"{key}=x") is None:  # the key is what is wrong, which Hydra says
            return word
        return f"{key}={_repaired(_at_home(key, value), sweeps)}"
    from hydra.core.override_parser.types import Sweep

    named = isinstance(read.value(), Sweep) and "," in value and Path(value).exists()  # a file that has a comma
    return f"{key}={_as_text(value)}" if named else word


def for_shell(words: Iterable[str]) -> str:
    """Words of a command as a line for a shell, without the quotes that only `quoted` needs: 'data.path=a (1).txt'."""
    return shlex.join(map(_as_typed, words))


def _as_typed(word: str) -> str:
    key, _, value = word.partition("=")
    if len(value) < 2 or value[0] not in "'\"" or value[-1] != value[0]:
        return word
    bare = f"{key}={value[1:-1]}"
    return bare if quoted(bare, sweeps=False) == word else word


def _at_home(key: str, value: str) -> str:
    """A path with its `~`; where no such user has a home it is the name of a file here."""
    if not value.startswith("~") or key.endswith(_NAMES):
        return value
    expanded = str(at_home(value))
    return f"./{expanded}" if expanded.startswith("~") else expanded


def as_value(value: Any) -> str:
    """A text, a list of texts or None as Hydra's grammar writes it."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{','.join(map(as_value, value))}]"
    is_text = _PLAIN.fullmatch(value) and value.lower() not in ("null", "true", "false", "nan", "inf", "-inf")
    return value if is_text and not re.fullmatch(r"[-.\d][\d._eE-]*", value) else _as_text(value)


def _as_text(value: str) -> str:
    """Quoted. Of backslashes only those before a quote or the end mean something to Hydra: they are doubled."""
    quote = '"' if "'" in value and '"' not in value else "'"
    escaped = re.sub(rf"(\\*){quote}", lambda match: match[1] * 2 + "\\" + quote, value)
    return quote + re.sub(r"(\\+)$", r"\1\1", escaped) + quote


def _repaired(value: str, sweeps: bool = False) -> str:
    """`value` with the parts that Hydra's grammar cannot read quoted."""
    if _read(f"x={value}") is not None:
        return value
    inner = value.strip()
    call = _CALL.fullmatch(value)
    if inner[:1] in ("[", "{") and inner.endswith(_CLOSING[inner[0]]) and _parts(inner[1:-1]) is not None:
        part = _repaired if inner[0] == "[" else functools.partial(_after, sign=":")
        return inner[0] + _each(inner[1:-1], part) + inner[-1]
    if call and call[1] in _functions() and _parts(call[2]) is not None:
        return f"{call[1]}({_each(call[2], functools.partial(_after, sign='='))})"
    if sweeps and len(_parts(value) or ()) > 1 and not Path(value).exists():  # over names
        return _each(value, _repaired)
    return _as_text(value)


def _each(text: str, change: Callable[[str], str]) -> str:
    return ",".join(change(part.strip()) for part in _parts(text) or ())


def _after(text: str, sign: str) -> str:
    """`key: value` or `name=value` with its value repaired; a value alone too."""
    name, found, value = text.partition(sign)
    if found and re.fullmatch(r"\s*\w+\s*", name, re.ASCII):
        return f"{name}{sign}{_repaired(value.strip())}"
    return _repaired(text)


def _parts(text: str) -> list[str] | None:
    """What commas part, outside of brackets and of values that begin with a quote; None where one is not closed."""
    parts, start, closing, position = [], 0, [], 0
    while position < len(text):
        sign = text[position]
        if sign in "'\"" and not text[start:position].rpartition(",")[2].strip("[{( \t"):
            end = re.compile(rf"(?<!\\)(?:\\\\)*{sign}").search(text, position + 1)
            if end is None:
                return None
            position = end.end()
            continue
        if sign in _CLOSING:
            closing.append(_CLOSING[sign])
        elif closing and sign == closing[-1]:
            closing.pop()
        elif sign == "," and not closing:
            parts.append(text[start:position])
            start = position + 1
        position += 1
    return None if closing else [*parts, text[start:]]


def _read(word: str) -> Override | None:
    # Not at the top: ranks, which never load Hydra, import this module with what looks for their parents.
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(word)
    except (HydraException, ValueError):
        return None


@functools.cache
def _functions() -> frozenset[str]:
    from hydra.core.override_parser.overrides_parser import create_functions

    return frozenset(create_functions().functions)
