"""Hydra's and OmegaConf's messages as one line: what was wrong, and what would have worked."""

from __future__ import annotations

import difflib
import re


def explain(error: BaseException) -> str:
    """Hydra's and OmegaConf's messages as one line: what was wrong, and what would have worked."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    lines = [line.strip() for part in chain for line in str(part).splitlines()]
    key = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("full_key:")), "")
    noise = ("full_key:", "object_type=", "reference_type=", "Config search path:", "provider=", "To append to your")
    wanted = dict.fromkeys(line for line in lines if line and not line.startswith(noise))
    text = re.sub(r"\s+", " ", re.sub(r"(?<![.:?])\n(?=[A-Z])", ". ", "\n".join(wanted)))
    if absent := re.search(r"because '(\w+)\.(\w+)' is None", text):
        text += f"; {absent[1]}={absent[2]} has it"
    if "Available options in" in text:
        text += "." + _nearest_option(text)
    return text if not key or key in text else f"{key}: {text}"


def _nearest_option(text: str) -> str:
    match = re.search(r"Could not find '([^']+)/([^'/]+)'.*Available options in '[^']+': (.*)", text)
    if not match:
        return ""
    near = difflib.get_close_matches(match.group(2), match.group(3).rstrip(".").split(), n=1, cutoff=0.4)
    return f" Did you mean {match.group(1)}={near[0]}?" if near else ""
