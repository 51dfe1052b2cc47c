"""stage=eval: what a checkpoint is worth on held-out data, with the tokenizer that it carries: loss and perplexity on
documents, and in a chat template replies to conversations."""

from __future__ import annotations

from typing import Any

from tinychat.checks import SOURCES_OF
from tinychat.console import format_eval
from tinychat.context import Context, StageResult
from tinychat.engine import evaluation_engine
from tinychat.errors import UserError
from tinychat.schema import Config
from tinychat.stages.chats import OWN_TEMPLATE, HeldOut, get_chat_tokenizer
from tinychat.stages.common import (
    context_length,
    evaluate,
    get_model,
    get_tokenizer,
    get_tokens,
    log,
    write_samples,
)


def run(config: Config, context: Context) -> StageResult:
    stage = config.stage
    tokenizer, documents, conversations = what_to_measure(config, context)
    model = get_model(config, context, tokenizer)
    length = context_length(stage.context_length, model)
    tokens = get_tokens(config.data, "validation", tokenizer, config, context) if documents else None
    held_out = HeldOut(tokenizer, length, config, context) if conversations else None
    engine = evaluation_engine(model, config.precision, context.world)

    metrics: dict[str, float] = {}
    facts: dict[str, Any] = {"checkpoint measured": context.parents["init_from"], "context length": length}
    if tokens is not None:
        metrics |= evaluate(engine, tokens, length, stage.eval_batch_size, stage.eval_tokens, context)
    if held_out is not None:
        metrics |= held_out.measure(engine, stage.eval_rows)
        facts |= {"template": config.template.name, "conversations": len(held_out.chats)}
        facts |= {"conversations cut": held_out.chats.n_cut}
    context.log(0, metrics)
    log.info(format_eval(0, metrics))
    if held_out is not None:
        held_out.write_tables()
    if tokens is not None:
        write_samples(engine, tokenizer, stage.samples, stage.sample_tokens, config.seed, context)
    return StageResult(metrics, "eval/loss" if documents else "eval/response_loss", facts=facts)


def what_to_measure(config: Config, context: Context) -> tuple[Any, bool, bool]:
    """(tokenizer, whether documents are measured, whether conversations are).

    Conversations need a template: the one that the command names, else (template=own) the checkpoint's. Raises
    UserError where data that are nothing else find none.
    """
    data, tokenizer = config.data, get_tokenizer(config, context)
    documents, conversations = (data.source in SOURCES_OF[rows] for rows in ("documents", "conversations"))
    if conversations and config.template.name == OWN_TEMPLATE and not tokenizer.chat_template:
        if not documents:
            raise UserError(
                f"init_from={context.parents['init_from']}: this checkpoint has no chat template, and data={data.name} "
                "has conversations alone; add template=instruct (or chatml), in which stage=sft would train it"
            )
        conversations = False
        log.info("this checkpoint has no chat template: measured on documents alone (template=instruct: on both)")
    if conversations:
        brought = tokenizer.chat_template
        tokenizer = get_chat_tokenizer(config, context)
        if brought not in (None, tokenizer.chat_template):
            log.warning("template=%s takes the place of the one that the checkpoint brings", config.template.name)
        # Files that tinyworld is given hold one or the other; with a template, what stage=sft reads of them.
        documents = documents and not (data.path or data.val_path)
    return tokenizer, documents, conversations
