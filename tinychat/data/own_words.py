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
REFUSALS = Path(__file__).with_name("refusals.jsonl")  # prompt, reply, category
LOOK_ALIKES = Path(__file__).with_name("look_alikes.jsonl")  # prompt, reply of some, category, harmful


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

            for place, row in _rows(BENIGN):
                messages = [{"role": "user", "content": row["prompt"]}]
                yield PromptRow(messages, place, row["kind"], row["wanted"] == "refuse")

        return Found("tinychat's own benign prompts and their contrasts", read, lambda _: hash_file(BENIGN, None))


class Refusals(DataSource):
    """Requests that ask for harm, each with a short refusal that says why: enough of them among instructions (a hundred
    in seven hundred) and a policy refuses now and then, so that reinforcement learning has refusals to reward. That few
    do much is Bianchi et al.'s finding (2024, Safety-Tuned LLaMAs)."""

    has = ("conversations",)

    def made(self, config: DataConfig, split: Split, rows: str) -> Found[ChatRow]:
        """Raises UserError for validation."""
        _only_learnt_from(config, split)
        return Found("tinychat's own refusals", lambda: _replies(REFUSALS), lambda _: hash_file(REFUSALS, None))


class LookAlikes(DataSource):
    """Everyday questions, most in words that also ask for harm, the English ones with an answer, and some prompts that
    do ask for harm: beside refusals they teach to decline harm, not the sound of it. None of them is measured on."""

    has = ("conversations", "prompts")

    def made(self, config: DataConfig, split: Split, rows: str) -> Found[Any]:
        """Raises UserError for conversations of validation; of prompts none is held out."""
        if rows == "conversations":
            _only_learnt_from(config, split)
            return Found(
                "tinychat's own look-alikes", lambda: _replies(LOOK_ALIKES), lambda _: hash_file(LOOK_ALIKES, None)
            )

        def read() -> Iterator[Any]:
            from tinychat.data.preferences.prompts import PromptRow

            for place, row in _rows(LOOK_ALIKES) if split == "train" else ():
                messages = [{"role": "user", "content": row["prompt"]}]
                yield PromptRow(messages, place, row["category"], row["harmful"])

        return Found("tinychat's own look-alikes", read, lambda _: hash_file(LOOK_ALIKES, None))


def _only_learnt_from(config: DataConfig, split: Split) -> None:
    if split == "validation":
        raise UserError(
            f"data={config.name}: conversations to be learnt from, not measured on; add them to others by data.mix, as "
            "data=alpaca_refusals does, or give data.val_path=FILE"
        )


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        yield f"{path}, line {number}", json.loads(line)


def _replies(path: Path) -> Iterator[ChatRow]:
    for place, row in _rows(path):
        if "reply" in row:
            messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["reply"]}]
            yield chat_row(messages, place, row["category"])
