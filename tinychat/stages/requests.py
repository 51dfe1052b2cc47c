"""Held-out requests, how safe a model's replies to them are, and the tables that say so."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tinychat.config.plugins import source_of
from tinychat.config.schema import Config
from tinychat.config.specs import JUDGES, spec_of
from tinychat.config.stages import AnswerEvaluation, SafetyEvaluation, ScoreRange
from tinychat.data.chats.rows import LeftOut
from tinychat.data.preferences.prompts import PromptRow, prompt_source, with_prompts
from tinychat.engine import Engine
from tinychat.errors import UserError
from tinychat.evaluation.replies import shared_replies
from tinychat.evaluation.safety import (
    CATEGORY_COLUMNS,
    COLUMNS,
    DISAGREEMENT_COLUMNS,
    RATE_COLUMNS,
    SafetyResult,
    judge_replies,
    safety,
)
from tinychat.models.generation.decode import DecodeOptions
from tinychat.runs import folders
from tinychat.stages import Context
from tinychat.stages.answers import HeldOutAnswers
from tinychat.stages.chats import HeldOut
from tinychat.stages.common import log, write_table
from tinychat.stages.honesty import FIRST, BenignPrompts, add_after, keep_before
from tinychat.text.chat_render import Refused
from tinychat.text.chat_template import end_ids

if TYPE_CHECKING:
    from tinychat.models.scorer import AnyScorer

SHOWN = 24  # replies in the report; the table has all


def has_requests(config: Config) -> bool:
    """Whether the data have requests to be safe with, and the stage asks for an answer to any."""
    data = config.data
    has = source_of(data).has
    if len(has) > 1 and (data.path or data.val_path):
        return False  # files that tinyworld is given are documents or conversations
    return bool({"preferences", "prompts"} & set(has)) and config.stage.safety_prompts != 0


class HeldOutRequests:
    """Requests of the validation split and how safely a model replies to them.

    Reads of the configuration: data, stage.safety_prompts, safety_tokens, generate_batch_size; context.parents has the
    folders of config.specs.JUDGES, or None. `judges` hands over those that are loaded already, by these names.
    """

    def __init__(self, tokenizer: Any, config: Config, context: Context, judges: Mapping[str, Judge] | None = None):
        self.tokenizer, self.stage, self.context, self.data = tokenizer, config.stage, context, config.data
        rows = list(prompt_source(config.data, "validation", "preferences").rows())
        wanted = min(len(rows), config.stage.safety_prompts or len(rows))
        self.rows = [rows[index * len(rows) // wanted] for index in range(wanted)]
        left_out = LeftOut(config.data.on_bad_row)
        self.rows, self.ids = with_prompts(tokenizer, self.rows, [row.messages for row in self.rows], left_out)
        if not self.rows:
            raise UserError(f"there are no requests left: {left_out.reason()}")
        left_out.warn("requests")
        self.judges = dict(judges or {})
        self._paths = {key: path for key in JUDGES if (path := context.parents.get(key))}
        log.info("validation: %s requests of %s to reply to", f"{wanted:,}", f"{len(rows):,}")
        self.n_measured = 0  # requests of the latest measurement
        self.result: SafetyResult | None = None  # of the latest measurement

    def measure(self, engine: Engine) -> dict[str, float]:
        """Metrics of greedy replies; every rank calls it. Requests that do not leave stage.safety_tokens of the model's
        context are left out with a warning; UserError where none is left."""
        for key, path in self._paths.items():
            if key not in self.judges:
                self.judges[key] = load_judge(path, engine, self.stage.generate_batch_size, key)
        options = DecodeOptions(self.stage.safety_tokens, end_ids(self.tokenizer), temperature=0.0)
        world, batch_size = self.context.world, self.stage.generate_batch_size
        with engine.generation() as model:
            rows, ids = self._fitting(getattr(model, "module", model).config.max_position_embeddings)
            found = shared_replies(model, self.tokenizer, ids, options, batch_size, world, engine.dtype)
        judged = judge_replies(rows, [text for text, _ in found], self.judges, world)
        self.n_measured, self.result = len(rows), safety(judged)
        if empty := sum(one.empty for one in judged):
            log.warning("%d of %d replies have no word: that they are safe says nothing", empty, len(rows))
        for key in self.judges:
            if unread := sum(one.probability(key) is None for one in judged):
                text = "%s: %d of %d replies do not fit into its context and are not judged"
                log.warning(text, key, unread, len(rows))
        return self.result.metrics

    def _fitting(self, context_length: int) -> tuple[list[PromptRow], list[list[int]]]:
        room = context_length - self.stage.safety_tokens
        fitting = [index for index, ids in enumerate(self.ids) if len(ids) <= room]
        left_out = len(self.rows) - len(fitting)
        if left_out:
            longest = max(range(len(self.ids)), key=lambda index: len(self.ids[index]))
            what = (
                f"{left_out:,} of {len(self.rows):,} requests are longer than the {max(room, 0)} tokens that a context "
                f"of {context_length} leaves beside stage.safety_tokens={self.stage.safety_tokens}; the longest has "
                f"{len(self.ids[longest]):,} tokens ({self.rows[longest].place})"
            )
            if not fitting:
                raise UserError(f"{what}; lower stage.safety_tokens, or measure no safety: stage.safety_prompts=0")
            log.warning("%s; left out", what)
        return [self.rows[index] for index in fitting], [self.ids[index] for index in fitting]

    def facts(self) -> dict[str, Any]:
        """For the report: what the safe rate is of, and by whom."""
        if self.result is None:
            return {}
        found = {"requests": self.n_measured, "requests too long": len(self.rows) - self.n_measured}
        judges = {key.replace("_", " "): path for key, path in self._paths.items()}
        return found | {"safe rate by": self.result.primary, "judge": None} | judges

    def first_replies(self, count: int) -> dict[str, list[tuple[str, str]]]:
        """As HeldOut.first_replies."""
        table = self.result.table if self.result else []
        return {"requests": [(prompt, reply) for prompt, reply, *_ in table[:count]]}

    def write_tables(self) -> None:
        """The latest replies with every verdict, safe rates by judge and by category."""
        if self.result is None:
            return
        found, context = self.result, self.context
        write_table(context, "safety_rates", "Safe replies to held-out requests", RATE_COLUMNS, found.rates)
        title = f"Safe replies by category, by the {found.primary}"
        write_table(context, "safety_categories", title, CATEGORY_COLUMNS, found.categories)
        write_table(context, "safety", "Replies to held-out requests", COLUMNS, found.table, shown=SHOWN)
        if context.tracker is not None and found.disagreements:
            title = "Replies on which judges disagree"
            write_table(context, "disagreements", title, DISAGREEMENT_COLUMNS, found.disagreements, shown=SHOWN)
            lines = (dict(zip(DISAGREEMENT_COLUMNS, row, strict=True)) for row in found.disagreements)
            text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
            folders.write_text_atomic(context.run_dir / "disagreements.jsonl", text)


class HeldOutReplies:
    """How a policy replies: to held-out requests, to held-out instructions, as far as the data have them, and to benign
    prompts."""

    def __init__(self, tokenizer: Any, length: int, config: Config, context: Context):
        has, stage = source_of(config.data).has, config.stage
        self._context = context
        asks = isinstance(stage, SafetyEvaluation) and "preferences" in has and stage.safety_prompts != 0
        self.requests = HeldOutRequests(tokenizer, config, context) if asks else None
        # Of preferences alone (all but tinyworld's) the chosen replies are no instructions to be met.
        met = "conversations" in has or bool(stage.held_out) or spec_of(config).reads == "conversations"
        self.instructions = HeldOut(tokenizer, length, config, context) if met else None
        checks = isinstance(stage, AnswerEvaluation) and stage.pass_k
        self.answers = HeldOutAnswers(tokenizer, length, config, context) if checks else None
        self.benign = BenignPrompts(tokenizer, config, context) if stage.benign_prompts != 0 else None
        self.sets = {} if self.instructions is None else self.instructions.sets  # for the lineage

    def measure(self, engine: Engine, most: int | None, start: bool = False) -> dict[str, float]:
        """Metrics of greedy replies, and of sampled ones where the stage asks for pass@k; most: instructions, None:
        all. start: the policy is the one that the stage starts from."""
        found = {} if self.requests is None else self.requests.measure(engine)
        if self.instructions is not None:
            found |= self.instructions.measure(engine, most)
        if self.answers is not None:
            found |= self.answers.measure(engine)
        if self.benign is not None:
            found |= self.benign.measure(engine)
        if start:
            keep_before(self.first_replies(), self._context)
        return found

    def first_replies(self) -> dict[str, list[tuple[str, str]]]:
        """Of the latest measurement, the first of each kind."""
        found: dict[str, list[tuple[str, str]]] = {}
        for part in (self.requests, self.instructions, self.benign):
            found |= {} if part is None else part.first_replies(FIRST)
        return found

    def write_tables(self) -> None:
        """The latest replies, for the report and the tracker."""
        for part in (self.requests, self.instructions, self.answers, self.benign):
            if part is not None:
                part.write_tables()
        add_after(self.first_replies(), self._context)


@dataclass
class Judge:
    """A judge's checkpoint as the classifier that evaluation.safety takes."""

    scorer: AnyScorer  # with score_range=unit

    def __call__(self, prompts: Sequence[list[dict[str, str]]], replies: Sequence[str]) -> list[float | None]:
        """The probability that each reply is safe; None for what is longer than the judge's context, or what
        its chat template refuses."""
        sequences = self.scorer.encode(prompts, replies)
        fitting = {
            index: ids
            for index, ids in enumerate(sequences)
            if not isinstance(ids, Refused) and len(ids) <= self.scorer.context_length
        }
        found: list[float | None] = [None] * len(sequences)
        for index, score in zip(fitting, self.scorer.score_ids(list(fitting.values())), strict=True):
            found[index] = score
        return found


def load_judge(path: str, engine: Engine, batch_size: int, key: str) -> Judge:
    """key: of config.specs.JUDGES. Raises UserError for what scores nothing, or gives no probabilities."""
    from tinychat.models.scorer import open_scorer

    device: torch.device = engine.world.device
    scorer = open_scorer(path, device, engine.dtype, batch_size)
    if scorer.score_range != ScoreRange.unit.value:
        raise UserError(
            f"stage.{key}={path}: its scores are {scorer.score_range}, not probabilities; take one of stage=judge "
            f"(stage.score_range=unit), or stage.{key}=null"
        )
    log.info("%s: %s", key, path)
    return Judge(scorer)
