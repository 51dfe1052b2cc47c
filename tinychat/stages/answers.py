"""Held-out prompts whose answers can be checked: how many a model gets right, and how many it can (pass@k)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tinychat.config.plugins import answer_kind
from tinychat.config.schema import Config, OnBadRow
from tinychat.data.preferences.prompts import PromptBatch, PromptBatches, PromptRow, prompt_source
from tinychat.engine import Engine
from tinychat.errors import UserError
from tinychat.evaluation.answers import is_correct
from tinychat.evaluation.replies import shared_replies, with_interval, within_unit
from tinychat.evaluation.statistics import mean_interval, pass_at_k, wilson
from tinychat.models.generation.decode import DecodeOptions
from tinychat.models.vocabulary import vocabulary
from tinychat.rl.rollout import sample_replies
from tinychat.stages import Context
from tinychat.stages.common import log, write_table
from tinychat.text.chat_template import end_ids, reply_text

SEED = 2**61 + 1  # of the draws, the same at every evaluation
SHOWN = 24  # prompts in the report; the table has all


def checkable(config: Config) -> list[PromptRow]:
    """The held-out prompts whose replies can be checked, each with the kind of answer by which the reward does it."""
    rows = prompt_source(config.data, "validation", "conversations").rows()
    if kind := answer_kind(config):
        return [replace(row, answer=kind) for row in rows if row.reference]
    return [row for row in rows if row.answer]


class HeldOutAnswers:
    """Held-out prompts with a checkable answer, each replied to once greedily, and where stage.pass_k asks for it
    several times by chance.

    Reads of the configuration: data, reward, stage.pass_k, pass_samples, pass_prompts, temperature, generate_tokens and
    generate_batch_size.
    """

    def __init__(self, tokenizer: Any, length: int, config: Config, context: Context):
        """Raises UserError where no held-out prompt has an answer."""
        self._tokenizer, self._stage, self._context = tokenizer, config.stage, context
        stage, world = config.stage, context.world
        rows = checkable(config)
        if not rows:
            raise UserError(
                f"stage.pass_k={list(stage.pass_k)}: no held-out prompt of data={config.data.name} has a checkable "
                "answer; give rows reference and answer (data.answer for all of them), or measure none: stage.pass_k=[]"
            )
        prompts = PromptBatches(rows, tokenizer, length, stage.generate_tokens, config.seed, OnBadRow.skip)
        size = max(1, min(len(prompts), stage.pass_prompts) // world.size) * world.size
        picked = [index * len(prompts) // size for index in range(size)]
        self.prompts = PromptBatch([prompts.rows[i] for i in picked], [prompts.ids[i] for i in picked], picked)
        self.samples = (stage.pass_samples or max(stage.pass_k)) if stage.pass_k else 0  # by chance, to each
        if self.samples:
            log.info("validation: %d of %d prompts get %d sampled replies for pass@k", size, len(prompts), self.samples)
        else:
            log.info("validation: answers to %d of %d prompts are checked", size, len(prompts))
        self._found: list[tuple[str, bool, str, int]] = []  # of the latest measurement, for each prompt

    def measure(self, engine: Engine) -> dict[str, float]:
        """eval/accuracy of greedy replies and eval/pass_at_K of sampled ones, with 95 % bounds that take prompts for
        the sample; every rank calls it."""
        stage, world, tokenizer, batch_size = (
            self._stage,
            self._context.world,
            self._tokenizer,
            self._stage.generate_batch_size,
        )
        greedy = DecodeOptions(stage.generate_tokens, end_ids(tokenizer), temperature=0.0)
        drawn = None
        with engine.generation() as model:
            said = shared_replies(model, tokenizer, self.prompts.ids, greedy, batch_size, world, engine.dtype)
            if self.samples:
                words, ends = vocabulary(tokenizer), end_ids(tokenizer)
                chance = DecodeOptions(stage.generate_tokens, ends, stage.temperature, SEED, words, self.samples)
                pad_id = tokenizer.pad_token_id
                drawn = sample_replies(model, self.prompts, chance, pad_id, batch_size, world, engine.dtype)
        sampled = [reply_text(tokenizer, response) for response in drawn.responses] if drawn else []
        rows = self.prompts.rows
        right = self._right([text for text, _ in said] + sampled, [*rows, *(drawn.rows if drawn else ())])
        once, often = right[: len(rows)], right[len(rows) :]
        own = [slice(self.samples * index, self.samples * (index + 1)) for index in range(len(rows))]
        firsts, counts = ["".join(sampled[part][:1]) for part in own], [sum(often[part]) for part in own]
        self._found = list(zip((text for text, _ in said), once, firsts, counts, strict=True))
        hits = sum(once)
        metrics = with_interval("eval/accuracy", hits / len(rows), wilson(hits, len(rows)))
        for k in stage.pass_k:
            shares = [pass_at_k(self.samples, count, k) for count in counts]
            bounds = within_unit(mean_interval(shares))
            metrics |= with_interval(f"eval/pass_at_{k}", sum(shares) / len(shares), bounds)
        return metrics

    def _right(self, replies: list[str], rows: list[Any]) -> list[bool]:
        """Whether each reply is right; the ranks share the work, as a user's verifier may take long."""
        world = self._context.world
        own = range(world.rank, len(replies), world.size)
        judged = {index: is_correct(rows[index].answer, replies[index], rows[index].reference) for index in own}
        everywhere = {index: right for part in world.gather_objects(judged) for index, right in part.items()}
        return [everywhere[index] for index in range(len(replies))]

    def write_tables(self) -> None:
        """Of the latest measurement: by family of tasks, and every prompt."""
        if not self._found:
            return
        rows, ks = self.prompts.rows, self._stage.pass_k
        families: dict[str, list[tuple[str, bool, str, int]]] = {}
        for row, found in zip(rows, self._found, strict=True):
            families.setdefault(row.family or "all", []).append(found)
        table = [
            [
                family,
                len(own),
                sum(right for _, right, _, _ in own) / len(own),
                *(sum(pass_at_k(self.samples, count, k) for *_, count in own) / len(own) for k in ks),
            ]
            for family, own in sorted(families.items())
        ]
        columns = ["task family", "prompts", "accuracy", *(f"pass@{k}" for k in ks)]
        write_table(self._context, "pass_at_k", "Right answers by task family", columns, table)
        every = [
            [row.messages[-1]["content"], row.reference, text, "yes" if right else "no", *drawn]
            for row, (text, right, *drawn) in zip(rows, self._found, strict=True)
        ]
        columns = ["prompt", "reference", "greedy reply", "right", "a sampled reply", f"right of {self.samples}"]
        if not self.samples:
            columns, every = columns[:4], [row[:4] for row in every]
        write_table(self._context, "answers", "Answers to held-out prompts", columns, every, shown=SHOWN)
