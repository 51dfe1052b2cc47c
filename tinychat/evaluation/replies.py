"""Replies to held-out conversations: loss and accuracy on the given ones, and how good greedy ones are; the work is
shared among the ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinychat.data.chats.rows import ChatRow
from tinychat.errors import UserError
from tinychat.evaluation.answers import is_correct, normalise, rouge_l
from tinychat.evaluation.refusals import refuses
from tinychat.evaluation.repetition import distinct_2, longest_run
from tinychat.evaluation.statistics import Interval, mean_interval, ratio_interval, wilson
from tinychat.models.generation.decode import DecodeOptions, decode
from tinychat.models.kernels.head_loss import CHUNK_ELEMENTS
from tinychat.models.logprobs import IGNORED, head_is
from tinychat.models.vocabulary import vocabulary
from tinychat.runtime.heartbeat import Heartbeat
from tinychat.runtime.world import World
from tinychat.text import chat_template
from tinychat.text.chat_template import reply_text

Scores = tuple[Tensor, Tensor]  # (B, T): negative log-likelihood in nats, fp32; whether the target is the likeliest


@torch.no_grad()
def response_loss(model: Any, batches: Iterable[dict[str, Tensor]], world: World) -> dict[str, float]:
    """Loss, perplexity and accuracy on the targets of the batches.

    batches: dicts with input_ids and targets (B, T), padded on the right or with position_ids and a 4D attention_mask;
    other entries are left alone. Every rank brings its own rows, and the same number of batches (sharded models need
    that); rows without a target do not count.

    Returns eval/response_loss (nats per token over all targets), eval/response_ppl = exp(loss), eval/token_accuracy
    (share of targets that are the likeliest token), each with 95 % bounds _low and _high that take rows for the sample
    (left out for fewer than two), and eval/response_tokens. Raises UserError without any target.
    """
    rows: list[list[float]] = []  # nats, tokens predicted right, tokens
    for batch in batches:
        inputs = {name: batch[name].to(world.device) for name in ("input_ids", "targets")}
        extra = {name: batch[name].to(world.device) for name in ("position_ids", "attention_mask") if name in batch}
        nll, right = token_scores(model, **inputs, **extra)
        counts = (inputs["targets"] != IGNORED).sum(1)
        sums = torch.stack([nll.double().sum(1), right.double().sum(1), counts.double()], 1)
        rows += sums[counts > 0].tolist()
    gathered = np.array([row for part in world.gather_objects(rows) for row in part]).reshape(-1, 3)
    nats, hits, tokens = gathered.T
    if not len(gathered):
        raise UserError("the conversations to evaluate on have no reply within the context; use a longer one")
    loss, bounds = nats.sum() / tokens.sum(), ratio_interval(nats, tokens)
    accuracy = hits.sum() / tokens.sum()
    metrics = with_interval("eval/response_loss", loss, bounds)
    metrics |= with_interval("eval/response_ppl", _exp(loss), (_exp(bounds[0]), _exp(bounds[1])))
    metrics |= with_interval("eval/token_accuracy", accuracy, within_unit(ratio_interval(hits, tokens)))
    return metrics | {"eval/response_tokens": float(tokens.sum())}


def with_interval(name: str, value: float, interval: Interval) -> dict[str, float]:
    """The metric NAME, with NAME_low and NAME_high where the interval is known."""
    metrics = {name: float(value)}
    if not math.isnan(interval[0]):
        metrics |= {f"{name}_low": float(interval[0]), f"{name}_high": float(interval[1])}
    return metrics


def within_unit(interval: Interval) -> Interval:
    """An interval of a share, which lies in [0, 1]."""
    low, high = interval
    return (low, high) if math.isnan(low) else (max(low, 0.0), min(high, 1.0))


def token_scores(
    model: Any,
    input_ids: Tensor,
    targets: Tensor,
    position_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Scores:
    """Negative log-likelihood of each target, as token_nll's, and whether it is the likeliest token; both (B, T), 0 and
    False where the target is IGNORED. No gradients; no [B, T, V] tensor is kept."""
    inner = getattr(model, "module", model)
    kept = targets != IGNORED
    wanted = targets[kept]

    def scores(hidden: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
        size = max(1, CHUNK_ELEMENTS // inner.config.vocab_size)
        parts = [torch.empty(0, 2, device=hidden.device)]
        for some, target in zip(hidden[kept].split(size), wanted.split(size), strict=True):
            logits = head(some).float()
            own = logits.gather(1, target[:, None])[:, 0]
            parts.append(torch.stack([logits.logsumexp(-1) - own, logits.argmax(-1) == target], 1))
        return torch.cat(parts)

    with head_is(inner.get_output_embeddings(), scores):
        found = model(
            input_ids=input_ids, position_ids=position_ids, attention_mask=attention_mask, use_cache=False
        ).logits
    nll = torch.zeros(targets.shape, device=found.device).masked_scatter_(kept, found[:, 0])
    return nll, torch.zeros_like(kept).masked_scatter_(kept, found[:, 1] > 0)


def _exp(value: float) -> float:
    with np.errstate(over="ignore"):  # a model that is lost has infinite perplexity
        return float(np.exp(np.float64(value)))


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
    heart = Heartbeat("replying", len(fitting), "prompts")
    pad_id, asked = tokenizer.pad_token_id or 0, [prompts[index] for index in fitting]
    done = decode(model, asked, options, pad_id, batch_size, dtype, tell=heart.at)
    said: dict[int, tuple[str, bool]] = dict.fromkeys(own, ("", False))
    for index, tokens, ended in zip(fitting, done.responses, done.ended, strict=True):
        said[index] = (decode_reply(tokenizer, tokens), ended)
    everywhere = {index: reply for part in world.gather_objects(said) for index, reply in part.items()}
    return [everywhere[index] for index in range(len(prompts))]


SHORT_WORDS = 5  # references of up to so many words can be met word for word

Prompts = Callable[[Any, list[list[dict[str, str]]]], list[list[int]]]  # (tokenizer, conversations) -> tokens


@dataclass(frozen=True)
class Reply:
    """What the model said to a row."""

    row: ChatRow
    text: str
    ended: bool  # by itself, not by the limit of tokens

    @property
    def prompt(self) -> str:
        """What the model was asked, to read; the roles are named where there is more than one message."""
        asked = self.row.messages[:-1]
        parts = ["\n".join(part for part in (one["content"], one.get("input", "")) if part) for one in asked]
        if len(asked) == 1:
            return parts[0]
        return "\n".join(f"{message['role']}: {part}" for message, part in zip(asked, parts, strict=True))

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


def replies_to(
    model: Any,
    tokenizer: Any,
    rows: Sequence[ChatRow],
    options: DecodeOptions,
    batch_size: int,
    world: World,
    dtype: torch.dtype | None = None,
    encode: Prompts = chat_template.encode_prompts,
    decode_reply: Text = chat_template.reply_text,
) -> list[Reply]:
    """Let the model reply to each row's conversation without its last message; the same on every rank.

    options: of the generation, usually greedy. dtype: of its products, as decode's. The ranks share the rows, alike by
    length, and may call the model differently often. A conversation that leaves no room for a reply in the model's
    context gets an empty one.
    """
    prompts = encode(tokenizer, [row.messages[:-1] for row in rows])
    said = shared_replies(model, tokenizer, prompts, options, batch_size, world, dtype, decode_reply)
    return [Reply(row, *reply) for row, reply in zip(rows, said, strict=True)]


def judge(replies: Sequence[Reply]) -> InstructionResult:
    """Metrics and tables of replies, each compared with its row's own.

    Of rows with a checkable answer eval/instruction_accuracy, eval/instruction_rows; of the others eval/rouge_l,
    eval/open_rows, and where the reference is short (up to 5 words) eval/exact_match, eval/exact_match_rows; all rates
    with 95 % bounds _low and _high; of all rows eval/reply_ended, the share of replies that the model ended itself.
    What no row measures is left out.
    """
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
    table = [[reply.row.family, reply.prompt, reply.text, reply.expected, reply.score] for reply in replies]
    return InstructionResult(metrics, table, _families(checkable))


def free_replies(replies: Sequence[Reply]) -> dict[str, float]:
    """How replies to instructions are said: eval/over_refusal_instructions, the share that refuses (refusals); of those
    with an open answer (of all, where none is) eval/distinct_2 and eval/longest_run, the mean of repetition's; {}
    without replies. Rates and means with 95 % bounds."""
    if not replies:
        return {}
    metrics = _share("eval/over_refusal_instructions", [float(refuses(reply.text)) for reply in replies])
    texts = [reply.text for reply in replies if not reply.row.answer] or [reply.text for reply in replies]
    if (distinct := distinct_2(texts)) is not None:
        metrics["eval/distinct_2"] = distinct
    runs = [longest_run(text) for text in texts]
    low, high = mean_interval(runs)
    return metrics | with_interval("eval/longest_run", sum(runs) / len(runs), (0.0 if low < 0 else low, high))


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
