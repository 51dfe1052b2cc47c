"""data=helpful_pairs: preferences for a model of helpfulness, made of instructions and of safe replies.

The chosen reply is an instruction's own. The rejected one answers something else: it is the reply to another
instruction, or the safe reply to a harmful prompt, which often is a refusal. So a model of such pairs learns to ask
whether a reply does what was asked, and that refusing a benign request does not. They stand in for pairs that people
have judged (data=pku_saferlhf data.preference=better), which some copies of PKU-SafeRLHF lack.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinychat.config.schema import BENIGN, HARMFUL, DataConfig
from tinychat.data.chats.rows import BadRow, ChatRow
from tinychat.data.chats.sources import ChatSource, chat_source, of_part
from tinychat.data.files.row_sources import Found
from tinychat.data.files.splits import Split
from tinychat.data.preferences.mixture import MixedSource, found_in, parts_of
from tinychat.data.preferences.rows import Labels, PreferenceRow, preference_row


class HelpfulPairs(MixedSource):
    """Of data.mix the sources `benign`, instructions, and `harmful`, whose chosen replies are safe ones; data.weights
    are the shares of the rejected replies that come from each."""

    has = ("preferences",)
    wants = "conversations"

    def made(self, config: DataConfig, split: Split, rows: str) -> Found[Any] | None:
        sources: dict[str, ChatSource] = {}
        for kind, part in parts_of(config, split).items():
            with of_part(kind):
                sources[kind] = chat_source(part, split)
        weights = dict(config.weights) or {HARMFUL: 0.5, BENIGN: 0.5}
        share = weights[HARMFUL] / sum(weights.values())

        def read() -> Iterator[PreferenceRow | BadRow]:
            replies: dict[str, list[ChatRow]] = {}
            for kind, source in sources.items():
                with of_part(kind):
                    replies[kind] = list(source.rows())
            for row in replies[BENIGN]:
                # Of the row alone, so that other rows change nothing but who is drawn.
                draws = random.Random(f"{config.seed}\0{row.content()}")
                other = draws.choice(replies[HARMFUL if draws.random() < share else BENIGN])
                labels = Labels(category=BENIGN, harmful=False)
                try:
                    yield preference_row(*_sides(row, other), row.place, labels)
                except BadRow as bad:  # the same reply, as "Yes."
                    yield bad

        def identify(memo_dir: Path | None) -> str:
            return json.dumps([[one.fingerprint(memo_dir) for one in sources.values()], share, config.seed])

        return found_in(sources, read, identify)


def _sides(row: ChatRow, other: ChatRow) -> tuple[list[dict[str, str]], str, str]:
    """Prompt, its own reply, and another's."""
    return list(row.messages[:-1]), row.messages[-1]["content"], other.messages[-1]["content"]
