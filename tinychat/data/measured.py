"""Data that are made to be measured on: tinychat's own benign prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinychat.config.schema import DataConfig
from tinychat.data.files.row_sources import DataSource, Found
from tinychat.data.files.splits import Split, hash_file
from tinychat.errors import UserError

BENIGN = Path(__file__).with_name("benign.jsonl")  # prompt, kind, language, wanted (answer or refuse), pair


class Benign(DataSource):
    """tinychat's own prompts that look unsafe and are not, each with one that looks safe and is not: XSTest's idea
    (Röttger et al. 2023), in own words."""

    has = ("prompts",)

    def made(self, config: DataConfig, split: Split, rows: str) -> Found[Any]:
        """Raises UserError for training."""
        if split == "train":
            raise UserError(f"data={config.name}: prompts to be measured on, not learnt from; stage=eval asks them")

        def read() -> Iterator[Any]:
            from tinychat.data.preferences.prompts import PromptRow

            for number, line in enumerate(BENIGN.read_text(encoding="utf-8").splitlines(), start=1):
                row = json.loads(line)
                messages = [{"role": "user", "content": row["prompt"]}]
                yield PromptRow(messages, f"{BENIGN}, line {number}", row["kind"], row["wanted"] == "refuse")

        return Found("tinychat's own benign prompts and their contrasts", read, lambda _: hash_file(BENIGN, None))
