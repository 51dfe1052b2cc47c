"""What stages that work on conversations do the same way: tokenizer with its template, model with its adapter, token
cache, and the evaluation of replies."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from tinychat.config.plugins import OWN_TEMPLATE, source_of
from tinychat.config.schema import Config
from tinychat.config.specs import spec_of
from tinychat.data.chats.rows import ChatRow, LeftOut
from tinychat.data.chats.sources import ChatSource, chat_source, held_out_data, of_beside
from tinychat.data.chats.tokens import ChatCache, chat_cache, eval_batches
from tinychat.data.files.splits import Split
from tinychat.data.preferences.prompts import with_prompts
from tinychat.engine import Engine
from tinychat.errors import UserError
from tinychat.evaluation.replies import InstructionResult, Reply, free_replies, judge, replies_to, response_loss
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


@dataclass(frozen=True)
class HeldOutRows:
    """Held-out conversations of data= or of a set beside it."""

    name: str
    rows: list[ChatRow]
    tokens: int  # of a reply at most
    instructs: bool = True  # what is asked is meant to be met; not so of the prompts of preferences

    @property
    def free(self) -> bool:
        """Whether there are answers that cannot be checked."""
        return not all(row.answer for row in self.rows)


class HeldOut:
    """Held-out conversations, data's own and those of stage.held_out, and how well a model replies to them.

    Preferences have no instructions to be met: beside sets, the replies that they chose are measured only where they
    are learnt from. The loss is of data's own conversations, else of the sets whose answers cannot be checked (else of
    all sets).
    """

    def __init__(self, tokenizer: Any, length: int, config: Config, context: Context):
        self.tokenizer, self.stage, self.context = tokenizer, config.stage, context
        self.caches: list[ChatCache] = []  # what the loss is of
        self.parts: list[HeldOutRows] = []
        self.sets: dict[str, dict[str, Any]] = {}  # facts of each, for the lineage
        tokens, cache_dir = config.stage.generate_tokens, Path(config.paths.cache)
        instructs = "conversations" in source_of(config.data).has
        if instructs or not config.stage.held_out or spec_of(config).reads == "conversations":
            self.caches.append(get_chats("validation", tokenizer, length, config, context))
            # Rows that the template refuses were told of when the cache was made.
            rows, _ = self._rows(chat_source(config.data, "validation"))
            self.parts.append(HeldOutRows("instructions" if instructs else "conversations", rows, tokens, instructs))
        datas = {name: held_out_data(name, one, config.data) for name, one in config.stage.held_out.items()}
        for name, data in datas.items():
            with of_beside(f"stage.held_out.{name}"):
                source = chat_source(data, "validation")
                rows, left_out = self._rows(source)
            left_out.warn(name)
            rows = [replace(row, family=row.family or name) for row in rows]
            self.parts.append(HeldOutRows(name, rows, config.stage.held_out[name].tokens or tokens))
            self.sets[f"held_out.{name}"] = {"fingerprint": source.fingerprint(cache_dir), "conversations": len(rows)}
            log.info("held out, %s: %s conversations of %s", name, f"{len(rows):,}", source.description)
        if not self.caches:
            free = [data for data, part in zip(datas.values(), self.parts, strict=True) if part.free]
            for data in free or datas.values():
                self.caches.append(get_chats("validation", tokenizer, length, replace(config, data=data), context))
        self.result: InstructionResult | None = None  # of the latest measurement
        self.replies: dict[str, list[Reply]] = {}  # of it, by set

    def _rows(self, source: ChatSource) -> tuple[list[ChatRow], LeftOut]:
        """Those whose prompts the template can write, and the others."""
        rows, left_out = list(source.rows()), LeftOut(source.on_bad_row)
        return with_prompts(self.tokenizer, rows, [row.messages[:-1] for row in rows], left_out)[0], left_out

    def measure(self, engine: Engine, most: int | None) -> dict[str, float]:
        """Loss on the replies, and greedy replies, over `most` conversations (None: all; for the replies also at most
        stage.generate_rows), of each set."""
        world, stage, ends = self.context.world, self.stage, end_ids(self.tokenizer)
        with engine.generation() as model:  # the loss too: a head with an adapter is called once for some tokens each
            metrics = self._loss(model, most)
            for part in self.parts:
                wanted = min(number for number in (most, stage.generate_rows, len(part.rows)) if number is not None)
                rows = [part.rows[index * len(part.rows) // wanted] for index in range(wanted)]
                options, size = DecodeOptions(part.tokens, ends, temperature=0.0), stage.generate_batch_size
                self.replies[part.name] = replies_to(model, self.tokenizer, rows, options, size, world, engine.dtype)
        self.result = judge([one for said in self.replies.values() for one in said])
        if stage.free_replies:
            asked = [one for part in self.parts if part.instructs for one in self.replies[part.name]]
            metrics |= free_replies(asked)
        return metrics | self.result.metrics

    def measure_loss(self, engine: Engine, most: int | None) -> dict[str, float]:
        """The part of it that generates nothing."""
        with engine.generation() as model:
            return self._loss(model, most)

    def _loss(self, model: Any, most: int | None) -> dict[str, float]:
        world, size = self.context.world, self.stage.eval_batch_size
        batches = (one for chats in self.caches for one in eval_batches(chats, size, world.rank, world.size, most))
        # Padded on the right: no position needs to be told.
        rows_only = ({key: batch[key] for key in ("input_ids", "targets")} for batch in batches)
        return response_loss(model, rows_only, world)

    def first_replies(self, count: int) -> dict[str, list[tuple[str, str]]]:
        """Of each set (data's own: instructions) the first prompts of the latest measurement, with the replies."""
        found: dict[str, list[tuple[str, str]]] = {}
        for name, said in self.replies.items():
            found[name] = [(one.prompt, one.text) for one in said[:count]]
        return found

    def write_tables(self) -> None:
        """The latest replies and their accuracy by task family, for the report and the tracker."""
        if self.result is None:
            return
        if self.result.families:
            columns = ["task family", "conversations", "right", "accuracy", "95 % from", "to"]
            write_table(self.context, "families", "Accuracy by task family", columns, self.result.families)
        columns = ["family", "prompt", "reply", "expected", "score"]
        write_table(self.context, "predictions", "Replies to held-out prompts", columns, self.result.table, shown=24)
