"""Greedy replies to held-out conversations, the work shared among the ranks, and how good they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from tinychat.data.chats.rows import ChatRow
from tinychat.evaluation.answers import is_correct, normalise, rouge_l
from tinychat.evaluation.responses import with_interval, within_unit
from tinychat.evaluation.statistics import mean_interval, wilson
from tinychat.models.generation.decode import DecodeOptions, decode
from tinychat.models.vocabulary import vocabulary
from tinychat.runtime.world import World
from tinychat.text import chat_template
from tinychat.text.chat_template import reply_text

Text = Callable[[Any, list[int]], str]  # (tokenizer, tokens) -> reply


def shared_replies(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    options: DecodeOptions,
    batch_size: int,
    world: World,
    dtype: torch.dtype | None = None,
    decode_reply: Text = reply_text,
) -> list[tuple[str, bool]]:
    """(reply without its end token, whether the model ended it itself) for each prompt, the same on every rank.

    options: usually greedy; vocabulary is the tokenizer's. dtype: of the products, as decode's. The ranks share the
    prompts, alike by length, and may call the model differently often. A prompt that leaves no room in the model's
    context gets an empty reply.
    """
    options = replace(options, vocabulary=vocabulary(tokenizer))
    longest_first = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    own = longest_first[world.rank :: world.size]
    room = getattr(model, "module", model).config.max_position_embeddings
    fitting = [index for index in own if len(prompts[index]) < room]
    done = decode(
        model, [prompts[index] for index in fitting], options, tokenizer.pad_token_id or 0, batch_size, dtype=dtype
    )
    said: dict[int, tuple[str, bool]] = dict.fromkeys(own, ("", False))
    for index, tokens, ended in zip(fitting, done.responses, done.ended, strict=True):
        said[index] = (decode_reply(tokenizer, tokens), ended)
    parts = world.texts(json.dumps(said))
    everywhere = {int(index): reply for part in parts for index, reply in json.loads(part).items()}
    return [(everywhere[index][0], everywhere[index][1]) for index in range(len(prompts))]


SHORT_WORDS = 5  # references of up to so many words can be met word for word

Prompts = Callable[[Any, list[list[dict[str, str]]]], list[list[int]]]  # (tokenizer, conversations) -> tokens


@dataclass(frozen=True)
class Reply:
    """What the model said to a row."""

    row: ChatRow
    text: str
    ended: bool  # by itself, not by the limit of tokens

    @property
    def expected(self) -> str:
        return self.row.messages[-1]["content"]

    @property
    def score(self) -> float:
        """1 or 0 where the answer can be checked, else ROUGE-L."""
        if self.row.answer:
            return float(is_correct(self.row.answer, self.text, self.expected))
        return rouge_l(self.text, self.expected)


@dataclass
class InstructionResult:
    """The same on every rank."""

    metrics: dict[str, float]
    table: list[list[Any]] = field(default_factory=list)  # family, prompt, reply, expected, score of each row
    families: list[list[Any]] = field(default_factory=list)  # family, rows, right, accuracy, low, high: checkable rows


def evaluate_replies(
    model: Any,
    tokenizer: Any,
    rows: Sequence[ChatRow],
    options: DecodeOptions,
    batch_size: int,
    world: World,
    dtype: torch.dtype | None = None,
    encode: Prompts = chat_template.encode_prompts,
    decode_reply: Text = chat_template.reply_text,
) -> InstructionResult:
    """Let the model reply to each row's conversation without its last message, and compare with that.

    options: of the generation, usually greedy. dtype: of its products, as decode's. The ranks share the rows, alike by
    length, and may call the model differently often. A conversation that leaves no room for a reply in the model's
    context gets an empty one.

    Metrics: of rows with a checkable answer eval/instruction_accuracy, eval/instruction_rows; of the others
    eval/rouge_l, eval/open_rows, and where the reference is short (up to 5 words) eval/exact_match,
    eval/exact_match_rows; all rates with 95 % bounds _low and _high; of all rows eval/reply_ended, the share of replies
    that the model ended itself. What no row measures is left out.
    """
    prompts = encode(tokenizer, [row.messages[:-1] for row in rows])
    said = shared_replies(model, tokenizer, prompts, options, batch_size, world, dtype, decode_reply)
    return judge([Reply(row, *reply) for row, reply in zip(rows, said, strict=True)])


def judge(replies: Sequence[Reply]) -> InstructionResult:
    """Metrics and tables of replies."""
    checkable = [reply for reply in replies if reply.row.answer]
    free = [reply for reply in replies if not reply.row.answer]
    short = [reply for reply in free if len(reply.expected.split()) <= SHORT_WORDS]
    metrics: dict[str, float] = {}
    if checkable:
        metrics |= _share("eval/instruction_accuracy", [reply.score for reply in checkable])
        metrics["eval/instruction_rows"] = float(len(checkable))
    if free:
        scores = [reply.score for reply in free]
        metrics |= with_interval("eval/rouge_l", sum(scores) / len(scores), within_unit(mean_interval(scores)))
        metrics["eval/open_rows"] = float(len(free))
    if short:
        met = [float(normalise(reply.text) == normalise(reply.expected)) for reply in short]
        metrics |= _share("eval/exact_match", met)
        metrics["eval/exact_match_rows"] = float(len(short))
    if replies:
        metrics["eval/reply_ended"] = sum(reply.ended for reply in replies) / len(replies)
    table = [[reply.row.family, _prompt(reply.row), reply.text, reply.expected, reply.score] for reply in replies]
    return InstructionResult(metrics, table, _families(checkable))


def _share(name: str, scores: list[float]) -> dict[str, float]:
    right = int(sum(scores))
    return with_interval(name, right / len(scores), wilson(right, len(scores)))


def _families(checkable: Sequence[Reply]) -> list[list[Any]]:
    scores: dict[str, list[float]] = {}
    for reply in checkable:
        scores.setdefault(reply.row.family, []).append(reply.score)
    found: list[list[Any]] = []
    for family, own in sorted(scores.items()):
        right = int(sum(own))
        found.append([family, len(own), right, right / len(own), *wilson(right, len(own))])
    return found


def _prompt(row: ChatRow) -> str:
    """What the model was asked, to read; the roles are named where there is more than one message."""
    asked = row.messages[:-1]
    parts = ["\n".join(part for part in (message["content"], message.get("input", "")) if part) for message in asked]
    if len(asked) == 1:
        return parts[0]
    return "\n".join(f"{message['role']}: {part}" for message, part in zip(asked, parts, strict=True))
