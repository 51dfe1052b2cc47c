"""The chat begins with prompts that work: those that the checkpoint's run has seen answered right."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.conftest import REPOSITORY
from tinychat.chat.session import examples
from tinychat.tinyworld.tasks.talk import LINES, SUM_WAYS

ROWS = [
    ["small talk", "Hi", "Hello!", "Hello!", 1.0],
    ["small talk", "Hello!", "Hello!", "Hello!", 1.0],
    ["addition", "What is two and three?", "five", "five", 1.0],
    ["addition", "Add one.", "two", "nine", 0.0],  # wrong
    ["story", "user: Once\nassistant: yes", "Mia", "Mia", 1.0],  # several turns
    ["opposites", "Opposite of hot?", "cold", "cold", 1],
    ["sorting", "x" * 71, "x", "x", 1.0],
    ["odd"],
]


def test_the_shortest_right_prompt_of_each_family(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "step-000010"
    checkpoint.mkdir(parents=True)
    assert examples(checkpoint) == []
    table = tmp_path / "tables" / "predictions.json"
    table.parent.mkdir()
    table.write_text(json.dumps({"title": "t", "columns": [], "rows": ROWS}))
    assert examples(checkpoint) == ["Hi", "Opposite of hot?", "What is two and three?"]
    assert examples(tmp_path) == examples(checkpoint), "a run folder too"
    table.write_text("{")
    assert examples(checkpoint) == []


def test_prompts_in_the_chats_help_are_what_the_small_world_teaches() -> None:
    known = (
        {line for lines in LINES.values() for line, _ in lines}
        | {"Copy the text."}
        | {way.format(a=2, b=3) for way in SUM_WAYS}
    )
    for name in ("docs/chat.md", "tinychat/chat/__main__.py", "README.md", "README.zh-CN.md"):
        for prompt in re.findall(r'--prompt "([^"]+)"', (REPOSITORY / name).read_text()):
            assert prompt in known, f"{name}: {prompt}"
