"""The worked example of docs/extending.md as a file, as it is or spoilt."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from tests.conftest import REPOSITORY

_numbers = itertools.count()


def block(language: str) -> str:
    """The first block of a language in the page's section."""
    section = (REPOSITORY / "docs/extending.md").read_text().partition("\n## A custom model\n")[2].partition("\n## ")[0]
    found = re.search(rf"```{language}\n(.*?)```", section, re.S)
    assert found
    return found.group(1)


def write_model(folder: Path, changes: dict[str, str] | None = None) -> str:
    """Writes my_model.py with these texts changed (each is there); its address, FILE.py:AlibiConfig. A process may load
    many such files: each has a model_type of its own, unless that is changed."""
    code = block("python")
    for old, new in (changes or {}).items():
        assert old in code, old
        code = code.replace(old, new)
    code = code.replace('"alibi"', f'"alibi{next(_numbers)}"')
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "my_model.py").write_text(code)
    return f"{folder / 'my_model.py'}:AlibiConfig"
