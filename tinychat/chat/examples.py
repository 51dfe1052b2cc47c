"""What to say first to a checkpoint: prompts that its own run has seen it answer right."""

from __future__ import annotations

from pathlib import Path

from tinychat.runs import folders
from tinychat.runtime.run_files import if_readable, read_json

LONGEST = 70  # characters of a prompt; the shorter ones are taken


def examples(checkpoint: Path, most: int = 3) -> list[str]:
    """Prompts of one line out of the table of held-out replies in the checkpoint's run folder, answered right, of
    different task families where there are some; [] for a checkpoint without such a table."""
    for run in (checkpoint, checkpoint.parent.parent):
        path = run / folders.TABLES / "predictions.json"
        table = if_readable(lambda path=path: read_json(path, {"rows": list}))  # type: ignore[misc]
        if table is not None:
            return _short(table["rows"], most)
    return []


def _short(rows: list[list[object]], most: int) -> list[str]:
    """The shortest right one of each family; then the shortest of these."""
    found: dict[str, str] = {}
    for family, prompt, reply, expected, score in (row for row in rows if isinstance(row, list) and len(row) == 5):
        right = score == 1 and reply and expected
        if not right or not isinstance(prompt, str) or "\n" in prompt or not prompt.strip():
            continue
        if len(prompt) <= LONGEST and len(prompt) < len(found.get(str(family), "x" * (LONGEST + 1))):
            found[str(family)] = prompt
    return sorted(found.values(), key=len)[:most]
