"""The small files of run folders: read so that nothing in them can surprise, written whole or not at all.

Anything may have happened to a file since it was written: a kill, a full disk, an editor, another program. Whoever
reads one gets values of the types asked for, None where there is no file, or Unreadable: one line that names the file
and what is wrong. Nothing here reads more than a bound, follows a YAML alias without end, or waits for a pipe.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import secrets
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tinychat.errors import UserError

MOST_BYTES = 1 << 28  # of a table of replies; what is larger is none of ours
MOST_YAML_BYTES = 1 << 22
TEMPORARY = ".tmp"  # how the name of a half-written file ends
Kind = type | tuple[type, ...]
NUMBER = (int, float)
Found = TypeVar("Found")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# torch.save's and safetensors' words for a write that came to nothing; neither raises an OSError.
_DISK_FULL_WORDS = ("No space left on device", "enforce fail at inline_container", "PytorchStreamWriter failed writing")
logger = logging.getLogger(__name__)
_told: set[str] = set()


class Unreadable(UserError):
    """A file that is there and cannot be used. The message names it and says why."""


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes | None:
    """A file's content, None where there is none. Raises Unreadable for a folder or device in its place, a file that
    may not be read, or one larger than `most` bytes."""
    try:
        # Not a plain open(): a named pipe in the file's place would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Unreadable(f"{path}: {cannot(error)}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise Unreadable(f"{path}: is {'a folder' if stat.S_ISDIR(mode) else 'a device or pipe'}, not a file")
    with open(descriptor, "rb") as file:
        try:
            data = file.read(most + 1)
        except OSError as error:
            raise Unreadable(f"{path}: {cannot(error)}") from None
    if len(data) > most:
        raise Unreadable(f"{path}: larger than the {most:,} bytes it may have")
    return data


def read_text(path: Path, most: int = MOST_BYTES) -> str | None:
    """The same as text. Raises Unreadable also where it is not UTF-8."""
    data = read_bytes(path, most)
    if data is None:
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise Unreadable(f"{path}: is no text (not UTF-8)") from None


def cannot(error: OSError) -> str:
    """Why a file was not read, for after its name."""
    if isinstance(error, PermissionError):
        return "may not be read by this user (Permission denied)"
    return f"cannot be read ({error.strerror})"


def read_json(path: Path, kinds: Mapping[str, Kind] | None = None) -> dict[str, Any] | None:
    """The object in a JSON file, None where there is no file. kinds: the type or types that the value of a key has;
    with NoneType among them it may be null or missing. Raises Unreadable."""
    text = read_text(path)
    return None if text is None else _checked(path, _parsed(path, text, "JSON", json.loads), kinds)


def read_list(path: Path) -> list[Any] | None:
    """The list in a JSON file, None where there is no file. Raises Unreadable."""
    text = read_text(path)
    found = None if text is None else _parsed(path, text, "JSON", json.loads)
    if found is not None and not isinstance(found, list):
        raise Unreadable(f"{path}: holds no list")
    return found


def read_yaml(path: Path, kinds: Mapping[str, Kind] | None = None) -> dict[str, Any] | None:
    """The mapping in a YAML file, as OmegaConf reads it, None where there is no file. Raises Unreadable, also for
    aliases that stand for more than a file could say."""
    from omegaconf.omegaconf import get_yaml_loader  # bounds what aliases expand to

    text = read_text(path, MOST_YAML_BYTES)
    if text is None:
        return None
    return _checked(path, _parsed(path, text, "YAML", lambda text: yaml.load(text, get_yaml_loader())), kinds)


def at_home(path: str | Path) -> Path:
    """A path with the home folder in place of a leading `~` or `~NAME`. Where no such user has a home (Path.expanduser
    raises a RuntimeError there), it is the name of a file here, as to a shell."""
    return Path(os.path.expanduser(path))


def why_closed(folder: Path) -> str | None:
    """Why this user cannot look into a folder that may well be there; None where that is no question. What asks only
    whether a path exists would call it missing."""
    try:
        folder.stat()
        return None if not folder.is_dir() or os.access(folder, os.R_OK | os.X_OK) else "may not be read by this user"
    except PermissionError:
        return "may not be read by this user: a folder above it is closed (Permission denied)"
    except OSError:
        return None


def disk_full(error: BaseException | None) -> str | None:
    """The words for it where a failure is that of a full disk (or quota, or limit of a file's size), as any library
    reports it, also where it is only the cause of the error; None for other failures."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            words = os.strerror(error.errno)
            return words if error.errno == errno.EFBIG else f"disk full ({words})"
        if any(words in str(error) for words in _DISK_FULL_WORDS):
            return f"disk full ({os.strerror(errno.ENOSPC)})"
        error = error.__cause__ or error.__context__
    return None


def said_of(error: BaseException, where: Path | None = None) -> str:
    """What the file system (or a library that wrote a file) refused, in one line: `FILE: disk full (No space left on
    device)`. where: the file or folder, for an error that names none."""
    file = getattr(error, "filename", None) or where
    own = getattr(error, "strerror", None) or (str(error).strip().splitlines() or [type(error).__name__])[0]
    reason = disk_full(error) or own
    return f"{file}: {reason}" if file else reason


def _parsed(path: Path, text: str, what: str, parse: Callable[[str], Any]) -> Any:
    if not text.strip("\0 \t\r\n"):
        raise Unreadable(f"{path}: is empty")
    try:
        return parse(text)
    except (ValueError, yaml.YAMLError, RecursionError, TypeError) as error:
        line = " ".join(str(error).split())[:160]
        raise Unreadable(f"{path}: cut short or no {what} ({line})") from None


def _checked(path: Path, found: Any, kinds: Mapping[str, Kind] | None) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise Unreadable(f"{path}: holds {_shown(found)}, not names with values")
    for key, kind in (kinds or {}).items():
        allowed = kind if isinstance(kind, tuple) else (kind,)
        value = found.get(key)
        if key not in found and type(None) not in allowed:
            raise Unreadable(f"{path}: {key} is missing")
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            names = " or ".join("null" if one is type(None) else one.__name__ for one in allowed)
            raise Unreadable(f"{path}: {key} is {_shown(value)}, not {names}")
    return found


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def if_readable(read: Callable[[], Found]) -> Found | None:
    """What `read` returns; where that is Unreadable, None, and a warning that names the file, once in this process."""
    try:
        return read()
    except Unreadable as error:
        tell_once(str(error))
        return None


def tell_once(line: str) -> None:
    """Warn, but not twice in the same words: many places look at the same run folders."""
    if line not in _told:
        _told.add(line)
        logger.warning("%s", line)


def write_text_atomic(path: Path, text: str, private: bool = False) -> None:
    """Write a small file so that a reader sees the old content or the new, never half of it; on disk when this returns.

    Its mode is the umask's, as for any new file; private: what only its owner may read. Raises OSError, which names
    the file; nothing is left of the new content then.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        made = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600 if private else 0o666)
        with open(made, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):  # a failed write or sync names no file of its own
            raise type(error)(error.errno, error.strerror or str(error), str(path)) from None
        raise


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Remove what writers that were killed have left in a folder in which nobody else writes."""
    for pattern in (f".*{TEMPORARY}", f"*.[0-9]*{TEMPORARY}*"):
        for path in folder.glob(pattern):
            with contextlib.suppress(OSError):
                path.unlink()


def follow_umask(folder: Path) -> None:
    """Give every file below a folder the mode of a new file: safetensors and tempfile write for their owner alone."""
    mode = 0o666 & ~_umask()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def _umask() -> int:
    """Of this process, not touched where that can be: another thread may make a file in between."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("Umask:")), 8)
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
