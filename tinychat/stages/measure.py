"""What stage=eval measures of one checkpoint: documents, conversations, requests, as far as the data have them and the
checkpoint has a chat template."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tinychat.config.data_checks import SOURCES_OF
from tinychat.config.schema import Config
from tinychat.engine import Engine, evaluation_engine
from tinychat.errors import UserError
from tinychat.runs.context import Context
from tinychat.stages.chats import OWN_TEMPLATE, HeldOut, get_chat_tokenizer
from tinychat.stages.common import context_length, evaluate, get_model, get_tokenizer, get_tokens, log
from tinychat.stages.requests import HeldOutRequests, Judge, has_requests
from tinychat.text.tokenizer import text_beginning, tokenizer_fingerprint


@dataclass
class Subject:
    """A checkpoint to measure, its tokenizer with the chat template, and what of the data it is measured on."""

    context: Context  # in which it is what the stage starts from
    tokenizer: Any
    documents: bool
    conversations: bool
    requests: bool

    @property
    def path(self) -> str:
        return str(self.context.parents["init_from"])


@dataclass
class Measured:
    """What was found; the same on every rank, but for the tables, which rank 0 writes."""

    engine: Engine
    metrics: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    held_out: HeldOut | None = None
    requests: HeldOutRequests | None = None

    def write_tables(self) -> None:
        for part in (self.held_out, self.requests):
            if part is not None:
                part.write_tables()


def all_subjects(config: Config, context: Context) -> list[Subject]:
    """The checkpoint of init_from, then those of stage.against. Without a template of its own (template=own) another
    one is measured in the first one's, where the two share their tokenizer: a pretrained model beside what it became.
    Raises UserError as what_to_measure does."""
    first = what_to_measure(config, context)
    subjects = [first]
    for index in range(len(config.stage.against)):
        own = replace(context, parents=context.parents | {"init_from": context.parents[f"against.{index}"]})
        subjects.append(what_to_measure(config, own, first.tokenizer))
    return subjects


def what_to_measure(config: Config, context: Context, like: Any = None) -> Subject:
    """The subject that the stage starts from.

    Conversations and requests need a template: the one that the command names, else (template=own) the checkpoint's,
    else that of the tokenizer `like`. Raises UserError where data that are nothing else find none.
    """
    data, tokenizer = config.data, get_tokenizer(config, context)
    documents, conversations = (data.source in SOURCES_OF[rows] for rows in ("documents", "conversations"))
    requests = has_requests(config)
    if not (documents or conversations or requests):
        raise UserError(f"stage.safety_prompts=0: data={data.name} has nothing but requests; let some be answered")
    lacks_template = config.template.name == OWN_TEMPLATE and not tokenizer.chat_template
    if (conversations or requests) and lacks_template and _borrow(tokenizer, like):
        log.info("%s has no chat template: measured in that of the first checkpoint", context.parents["init_from"])
        documents = documents and not (data.path or data.val_path)
    elif (conversations or requests) and lacks_template:
        if not documents:
            alone = "conversations" if conversations else "requests"
            raise UserError(
                f"init_from={context.parents['init_from']}: this checkpoint has no chat template, and data={data.name} "
                f"has {alone} alone; add template=instruct (or chatml), in which stage=sft would train it"
            )
        conversations = requests = False
        log.info("this checkpoint has no chat template: measured on documents alone (template=instruct: on all)")
    elif conversations or requests:
        tokenizer = get_chat_tokenizer(config, context)
        # Files that tinyworld is given hold one or the other; with a template, what stage=sft reads of them.
        documents = documents and not (data.path or data.val_path)
    return Subject(context, tokenizer, documents, conversations, requests)


def _borrow(tokenizer: Any, like: Any) -> bool:
    """Give the tokenizer the template of an equal one that has one; whether that could be done."""
    if like is None or not like.chat_template or tokenizer_fingerprint(like) != tokenizer_fingerprint(tokenizer):
        return False
    tokenizer.chat_template = like.chat_template
    return True


def measure(subject: Subject, config: Config, judge: Judge | None = None) -> Measured:
    """Everything that the subject is measured on. judge: one that is loaded already."""
    stage, context, tokenizer = config.stage, subject.context, subject.tokenizer
    model = get_model(config, context, tokenizer)
    length = context_length(stage.context_length, model)
    tokens = get_tokens(config.data, "validation", tokenizer, config, context) if subject.documents else None
    held_out = HeldOut(tokenizer, length, config, context) if subject.conversations else None
    requests = HeldOutRequests(tokenizer, config, context, judge) if subject.requests else None
    engine = evaluation_engine(model, config.precision, context.world)

    found = Measured(engine, held_out=held_out, requests=requests)
    found.facts = {"checkpoint measured": subject.path, "context length": length}
    if tokens is not None:
        begin = text_beginning(tokenizer)[0] if stage.isolate_documents else None
        found.metrics |= evaluate(engine, tokens, length, stage.eval_batch_size, stage.eval_tokens, context, begin)
    if held_out is not None:
        found.metrics |= held_out.measure(engine, stage.eval_rows)
        found.facts |= {"template": config.template.name, "conversations": len(held_out.chats)}
        found.facts |= {"conversations cut": held_out.chats.n_cut}
    if requests is not None:
        found.metrics |= requests.measure(engine)
        found.facts |= requests.facts()
    check_numbers(found.metrics, subject.path)
    return found


def check_numbers(metrics: Mapping[str, float], path: str) -> None:
    """Raise UserError where a checkpoint's losses are no numbers: all else that was measured of it means nothing."""
    for name in ("eval/loss", "eval/response_loss"):
        if not math.isfinite(metrics.get(name, 0.0)):
            raise UserError(
                f"{path}: {name} is {metrics[name]}: with these weights the model gives no numbers; precision=fp32 "
                "tells whether rounding is the reason, else take an earlier checkpoint"
            )
