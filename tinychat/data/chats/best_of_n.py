"""Conversations out of a policy's replies that a reward has judged (tinychat.stages.best_of_n makes them): which of the
replies to each prompt are kept, and what becomes of the others.

A folder of replies has train.jsonl, and validation.jsonl where the prompts' source has no conversations of its own. A
line is a prompt with all that was said to it:

    {"messages": [...], "place": "FILE, line 7", "family": "",
     "replies": [{"text": "Five.", "tokens": 3, "ended": true, "reward": 1.0}, ...]}

So what is kept may change without the policy being asked again.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from tinychat.config.plugins import gives, prompts_of
from tinychat.config.schema import BestOfNConfig, DataConfig, Keep
from tinychat.data.chats.rows import BadRow, ChatRow, chat_row
from tinychat.data.chats.sources import chat_source
from tinychat.data.files.row_sources import DataSource, Found
from tinychat.data.files.splits import Split, SplitFiles, hash_file
from tinychat.data.files.tables import Meter, read_rows
from tinychat.errors import UserError
from tinychat.runtime.run_files import at_home

log = logging.getLogger(__name__)


@dataclass
class Choice:
    """What became of a split's replies."""

    prompts: int = 0
    replies: int = 0
    tokens: int = 0  # generated
    kept: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # replies, by why
    without: int = 0  # prompts of which no reply was kept
    reward: float = 0.0  # sum over all replies that have one
    known: int = 0  # of which there are so many
    best: float = float("-inf")  # and the highest of them
    kept_reward: float = 0.0  # sum over those kept

    def describe(self) -> str:
        why = ", ".join(f"{count:,} {reason}" for reason, count in self.left_out.most_common())
        means = f"mean reward {self.reward / max(1, self.known):.3f}, of those kept {self.kept_reward / self.kept:.3f}"
        return (
            f"{self.kept:,} of {self.replies:,} replies to {self.prompts:,} prompts kept ({means}); left out: "
            f"{why or 'none'}; {self.without:,} prompts without a reply that is kept"
        )

    def facts(self) -> dict[str, Any]:
        """For the lineage."""
        return {
            "prompts": self.prompts,
            "replies": self.replies,
            "tokens": self.tokens,
            "kept": self.kept,
            "left_out": dict(self.left_out),
            "prompts_without": self.without,
            "reward": self.reward / max(1, self.known),
            "reward_kept": self.kept_reward / max(1, self.kept),
        }


def choose(replies: list[dict[str, Any]], data: BestOfNConfig, choice: Choice) -> list[dict[str, Any]]:
    """The replies to one prompt that are kept, the first of equally good ones; all are counted."""
    usable: dict[str, dict[str, Any]] = {}
    for reply in replies:
        choice.replies += 1
        choice.tokens += reply["tokens"]
        if reply["reward"] is not None:
            choice.known += 1
            choice.reward += reply["reward"]
            choice.best = max(choice.best, reply["reward"])
        if not reply["ended"]:
            choice.left_out["cut at data.max_new_tokens"] += 1
        elif not reply["text"].strip():
            choice.left_out["empty"] += 1
        elif reply["reward"] is None:
            choice.left_out["without a reward"] += 1
        elif data.threshold is not None and reply["reward"] < data.threshold:
            choice.left_out["below data.threshold"] += 1
        elif reply["text"] in usable:
            choice.left_out["said again"] += 1
        else:
            usable[reply["text"]] = reply
    kept = list(usable.values())
    if data.keep is Keep.best and len(kept) > 1:
        choice.left_out["not the best"] += len(kept) - 1
        kept = [max(kept, key=lambda reply: reply["reward"])]
    choice.prompts += 1
    choice.kept += len(kept)
    choice.kept_reward += sum(reply["reward"] for reply in kept)
    choice.without += not kept
    return kept


def file_of(folder: str, split: Split) -> Path:
    return at_home(folder) / f"{split}.jsonl"


def choice_of(data: BestOfNConfig, split: Split) -> Choice:
    """What becomes of a split's replies. Raises UserError where none is kept."""
    choice = Choice()
    for _ in _chosen(data, split, choice):
        pass
    return choice


def _chosen(data: BestOfNConfig, split: Split, choice: Choice) -> Iterator[ChatRow]:
    path = file_of(str(data.replies), split)
    if not path.is_file():
        raise UserError(f"data.replies={data.replies}: holds no {path.name}; data.replies=null makes the replies")
    for place, row in read_rows(path, Meter()):
        try:
            for reply in choose(row["replies"], data, choice):
                said = [*row["messages"], {"role": "assistant", "content": reply["text"]}]
                chat = chat_row(said, row["place"], row.get("family", ""))
                # What was said in earlier turns is the prompt's, and no reply of the policy.
                before = [index for index, message in enumerate(chat.messages[:-1]) if message["role"] == "assistant"]
                yield replace(chat, untrained=tuple(before))
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path}, {place}: is no prompt with replies ({error}); data.replies=null makes them"
            ) from None
    if not choice.kept:
        why = ", ".join(f"{count:,} {reason}" for reason, count in choice.left_out.most_common())
        found = f"; the highest reward is {choice.best:.3g}" if choice.known else ""
        raise UserError(
            f"data=best_of_n: none of {choice.replies:,} replies is kept: {why or 'there are none'}{found}; lower "
            "data.threshold, raise data.samples or data.max_new_tokens, or take a policy that does better"
        )


class BestOfN(DataSource):
    """The best of a policy's replies to the prompts of another source, once they are made. Held out are that source's
    own conversations where it has any."""

    has = ("conversations",)

    def files(self, config: DataConfig, split: Split) -> SplitFiles | None:
        return None  # data.path is the prompts'

    def made(self, config: DataConfig, split: Split, rows: str) -> Found[Any]:
        data = cast(BestOfNConfig, config)
        if split == "validation" and gives(prompts_of(data), "conversations"):
            return chat_source(prompts_of(data), split).found

        def read() -> Iterator[ChatRow | BadRow]:
            choice = Choice()
            yield from _chosen(data, split, choice)
            log.info("%s-%s: %s", data.name, split, choice.describe())

        def identify(memo_dir: Path | None) -> str:
            return json.dumps([hash_file(file_of(str(data.replies), split), memo_dir), data.keep.value, data.threshold])

        return Found(f"replies to the prompts of {data.prompts}", cast(Any, read), identify, count=data.max_rows)
