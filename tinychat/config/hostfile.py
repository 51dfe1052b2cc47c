"""Hostfiles of DeepSpeed: the nodes of a job, a line `HOST slots=N` each; # begins a comment."""

from __future__ import annotations

import re
from pathlib import Path

from tinychat.errors import UserError

LINE = re.compile(r"(\S+)\s+slots=(\d+)\s*(#.*)?")


def read(path: str) -> dict[str, int]:
    """Host -> ranks it has room for, in the order of the file. Raises UserError for what DeepSpeed refuses."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a text file"
        raise UserError(f"launch.hostfile={path}: {why}; launchers/hostfile.sample shows one") from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = LINE.fullmatch(text)
        if not match or not int(match[2]):
            raise UserError(f"launch.hostfile={path}: line {number} is {text!r}; write HOST slots=N, as node0 slots=8")
        if match[1] in hosts:
            raise UserError(f"launch.hostfile={path}: line {number} names {match[1]} again; give it all slots at once")
        hosts[match[1]] = int(match[2])
    if not hosts:
        raise UserError(f"launch.hostfile={path}: names no host; a line for each, as node0 slots=8")
    return hosts
