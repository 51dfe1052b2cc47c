"""What stages that work on conversations do the same way: tokenizer with its template, model with its adapter, token
cache, and the evaluation of replies."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from tinychat.config.plugins import OWN_TEMPLATE
from tinychat.config.schema import Config
from tinychat.data.chats.rows import LeftOut
from tinychat.data.chats.sources import chat_source
from tinychat.data.chats.tokens import ChatCache, chat_cache, eval_batches
from tinychat.data.files.splits import Split
from tinychat.data.preferences.prompts import with_prompts
from tinychat.engine import Engine
from tinychat.errors import UserError
from tinychat.evaluation.replies import InstructionResult, evaluate_replies, response_loss
from tinychat.models.adapters import trainable_parameters
from tinychat.models.build import describe
from tinychat.models.checkpoints import pretrained_path, start_model
from tinychat.models.generation.decode import DecodeOptions
from tinychat.runs import folders
from tinychat.stages import Context
from tinychat.stages.common import get_tokenizer, log, try_own_model, write_table
from tinychat.text.chat_template import EncodedChat, coloured_example, end_ids, set_template, template_name
from tinychat.text.tokenizer import load_saved_tokenizer, load_tokenizer, tokenizer_fingerprint, vocabulary_size


def get_chat_tokenizer(config: Config, context: Context) -> Any:
    """The tokenizer of the checkpoint the stage starts from, with the configured template.

    Raises UserError where the command names another tokenizer than the checkpoint's.
    """
    tokenizer = get_tokenizer(config, context)
    start = context.parents["init_from"]
    if start and (named := context.parents.get("named_tokenizer")):
        other = load_tokenizer(config.tokenizer, None if named == config.tokenizer.name else named)
        if tokenizer_fingerprint(other) != tokenizer_fingerprint(tokenizer):
            raise UserError(
                f"tokenizer={named}: the checkpoint {start} was trained with another one, whose tokens mean other "
                "things; leave out tokenizer=..., the checkpoint brings its own"
            )
    if config.template.name != OWN_TEMPLATE:
        brought, its_name = tokenizer.chat_template, template_name(tokenizer)
        set_template(tokenizer, config.template.name, config.template.path)
        _refuse_changed(config, context, tokenizer)
        if brought not in (None, tokenizer.chat_template):
            log.warning(
                "template=%s takes the place of %s, in which %s was trained (template=own keeps that)",
                config.template.name,
                its_name,
                start or tokenizer.name_or_path,
            )
    elif not tokenizer.chat_template:
        raise UserError("template=own: this tokenizer brings no chat template; use template=instruct or chatml")
    return tokenizer


def _refuse_changed(config: Config, context: Context, tokenizer: Any) -> None:
    """A run does not go on in another template than it began in."""
    newest = folders.resumable_checkpoints(context.run_dir)[-1:] if config.template.path else []
    if newest and load_saved_tokenizer(str(newest[0])).chat_template != tokenizer.chat_template:
        raise UserError(
            f"template.path={config.template.path}: the file changed since {newest[0]}; put it back, or begin a run of "
            "its own: resume=never"
        )


def get_start_model(config: Config, context: Context, tokenizer: Any) -> Any:
    """The model to fine-tune: a checkpoint's or a pretrained one, with an adapter where `peft` asks for one."""
    start, dropout = context.parents["init_from"], config.stage.dropout
    if start is None:  # model=pretrained
        start, dropout = pretrained_path(config.model), config.model.dropout if dropout is None else dropout
    model = start_model(start, config.peft, dropout, context.run_dir / "merged_base", vocabulary_size(tokenizer))
    return ready_to_reply(model, tokenizer, config, "model")


def ready_to_reply(model: Any, tokenizer: Any, config: Config, called: str) -> Any:
    """The model, whose generation ends at the template's end token for whoever loads the checkpoint. It is told, and a
    custom one tried."""
    model.generation_config.eos_token_id = list(end_ids(tokenizer))
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    log.info("%s: %s", called, describe(model))
    trained, total = trainable_parameters(model)
    if trained < total:
        log.info("trained: %s of %s parameters (%.2f %%)", f"{trained:,}", f"{total:,}", 100 * trained / total)
    try_own_model(config, model)
    return model


def get_chats(split: Split, tokenizer: Any, length: int, config: Config, context: Context) -> ChatCache:
    """The split's conversations as tokens; built by whichever rank or run comes first."""
    source = chat_source(config.data, split)
    chats = chat_cache(source, tokenizer, length, Path(config.paths.cache), progress=context.world.is_main)
    log.info("%s: %s", split, chats.describe())
    return chats


def chat_facts(chats: ChatCache) -> dict[str, Any]:
    """What lineage says of a split."""
    return {"fingerprint": chats.fingerprint, "conversations": len(chats), "tokens": chats.n_tokens}


def show_example(tokenizer: Any, chats: ChatCache, context: Context) -> None:
    """Print one conversation as the model sees it, what is trained in colour."""
    if not (context.world.is_main and log.isEnabledFor(logging.INFO)):
        return
    encoded = EncodedChat(np.asarray(chats.ids(0)), np.asarray(chats.trained(0)), prompt_length=0)
    log.info("one conversation; what is trained is bold (%d of %d tokens):", encoded.trained.sum(), len(encoded.ids))
    Console(stderr=True, soft_wrap=True, highlight=False).print(coloured_example(tokenizer, encoded))


class HeldOut:
    """Held-out conversations and how well a model replies to them."""

    def __init__(self, tokenizer: Any, length: int, config: Config, context: Context):
        self.tokenizer, self.stage, self.context, self.seed = tokenizer, config.stage, context, config.seed
        self.chats = get_chats("validation", tokenizer, length, config, context)
        # Rows that the template refuses were told of when the cache was made.
        rows, left_out = list(chat_source(config.data, "validation").rows()), LeftOut(config.data.on_bad_row)
        self.rows, _ = with_prompts(tokenizer, rows, [row.messages[:-1] for row in rows], left_out)
        self.result: InstructionResult | None = None  # of the latest measurement

    def measure(self, engine: Engine, most: int | None) -> dict[str, float]:
        """Loss on the replies, and greedy replies, over `most` conversations (None: all; for the replies also at most
        stage.generate_rows)."""
        world, stage = self.context.world, self.stage
        wanted = min(number for number in (most, stage.generate_rows, len(self.rows)) if number is not None)
        rows = [self.rows[index * len(self.rows) // wanted] for index in range(wanted)]
        options = DecodeOptions(stage.generate_tokens, end_ids(self.tokenizer), temperature=0.0)
        with engine.generation() as model:  # the loss too: a head with an adapter is called once for some tokens each
            metrics = self._loss(model, most)
            self.result = evaluate_replies(
                model, self.tokenizer, rows, options, stage.generate_batch_size, world, engine.dtype
            )
        return metrics | self.result.metrics

    def measure_loss(self, engine: Engine, most: int | None) -> dict[str, float]:
        """The part of it that generates nothing."""
        with engine.generation() as model:
            return self._loss(model, most)

    def _loss(self, model: Any, most: int | None) -> dict[str, float]:
        world = self.context.world
        batches = eval_batches(self.chats, self.stage.eval_batch_size, world.rank, world.size, most)
        # Padded on the right: no position needs to be told.
        rows_only = ({key: batch[key] for key in ("input_ids", "targets")} for batch in batches)
        return response_loss(model, rows_only, world)

    def write_tables(self) -> None:
        """The latest replies and their accuracy by task family, for the report and the tracker."""
        if self.result is None:
            return
        if self.result.families:
            columns = ["task family", "conversations", "right", "accuracy", "95 % from", "to"]
            write_table(self.context, "families", "Accuracy by task family", columns, self.result.families)
        columns = ["family", "prompt", "reply", "expected", "score"]
        write_table(self.context, "predictions", "Replies to held-out prompts", columns, self.result.table, shown=24)
