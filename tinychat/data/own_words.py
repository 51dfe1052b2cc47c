"""Data in tinychat's own words: benign prompts to be measured on; refusals, answers and prompts to be learnt from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinychat.config.schema import DataConfig
from tinychat.data.chats.rows import ChatRow, chat_row
from tinychat.data.files.row_sources import DataSource, Found
from tinychat.data.files.splits import Split, hash_file
from tinychat.errors import UserError

BENIGN = Path(__file__).with_name("benign.jsonl")  # prompt, kind, language, wanted (answer or refuse), pair
REFUSALS = Path(__file__).with_name("refusals.jsonl")  # prompt, reply, category, wanted
LOOK_ALIKES = Path(__file__).with_name("look_alikes.jsonl")  # prompt, category, harmful


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


class Refusals(DataSource):
    """Requests that ask for harm, each with a short refusal that says why, and such that only sound like it, each with
    an answer: enough of them among instructions (a hundred in seven hundred) and a policy refuses now and then, so that
    reinforcement learning has refusals to reward. That few do much is Bianchi et al.'s finding (2024, Safety-Tuned
    LLaMAs)."""

    has = ("conversations",)

    def made(self, config: DataConfig, split: Split, rows: str) -> Found[ChatRow]:
        """Raises UserError for validation."""
        if split == "validation":
            raise UserError(
                f"data={config.name}: refusals to be learnt from, not measured on; add them to other conversations by "
                "data.mix, as data=alpaca_refusals does, or give data.val_path=FILE"
            )

        def read() -> Iterator[ChatRow]:
            for number, line in enumerate(REFUSALS.read_text(encoding="utf-8").splitlines(), start=1):
                row = json.loads(line)
                asked = {"role": "user", "content": row["prompt"]}
                messages = [asked, {"role": "assistant", "content": row["reply"]}]
                yield chat_row(messages, f"{REFUSALS}, line {number}", row["category"])

        return Found("tinychat's own refusals", read, lambda _: hash_file(REFUSALS, None))


class LookAlikes(DataSource):
    """Everyday questions, most in words that also ask for harm, and some that do ask for it, for reinforcement
    learning: as part of data.mix they teach a policy to decline harm, not the sound of it. Without replies, and none of
    them among what is measured (Benign) or learnt from with replies (Refusals)."""

    has = ("prompts",)

    def made(self, config: DataConfig, split: Split, rows: str) -> Found[Any]:
        """Held out is none of them."""

        def read() -> Iterator[Any]:
            from tinychat.data.preferences.prompts import prompt_row

            if split == "validation":
                return
            for number, line in enumerate(LOOK_ALIKES.read_text(encoding="utf-8").splitlines(), start=1):
                yield prompt_row(json.loads(line), f"{LOOK_ALIKES}, line {number}")

        return Found("tinychat's own look-alikes", read, lambda _: hash_file(LOOK_ALIKES, None))
