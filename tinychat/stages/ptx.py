"""Supervised learning beside rewards, in the same updates: PPO-ptx (Ouyang et al. 2022, section 3.5 and appendix C.4),
so that reinforcement learning forgets less of what the policy could do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from tinychat.config.plugins import gives
from tinychat.config.rollout_stages import RolloutStage
from tinychat.config.schema import Config
from tinychat.data.chats.sources import ChatSource, chat_source, held_out_data, of_beside, ptx_data, without_prompts
from tinychat.data.chats.tokens import ChatBatches, chat_cache
from tinychat.data.preferences.prompts import PromptSource, prompt_shape, prompt_source
from tinychat.engine import Batch
from tinychat.models.actor_critic import reply_nll
from tinychat.models.logprobs import IGNORED
from tinychat.rl.losses import Sums
from tinychat.runtime.world import World
from tinychat.stages import Context
from tinychat.stages.chats import chat_facts
from tinychat.stages.common import log


def conversations_beside(config: Config, context: Context, tokenizer: Any, length: int) -> Conversations | None:
    """As stage.ptx says. Arguments and errors as of Conversations."""
    ptx = config.stage.ptx
    if ptx.coef:
        return Conversations(config, context, tokenizer, length)
    if ptx.source is not None:
        log.info("stage.ptx.coef=%g: nothing is learnt from stage.ptx.source=%s", ptx.coef, ptx.source)
    return None


class Conversations:
    """Those of stage.ptx: training rows of its source, without the prompts that the run is measured on. Which of them
    an update takes depends on the seed and the update's number alone."""

    def __init__(self, config: Config, context: Context, tokenizer: Any, length: int):
        """length: tokens of a conversation at most. Raises UserError, which names stage.ptx, as reading them does."""
        stage: RolloutStage = config.stage
        self.coef, self._size, cache = stage.ptx.coef, stage.ptx.batch_size, Path(config.paths.cache)
        with of_beside("stage.ptx"):
            source = without_measured(config)
            chats = chat_cache(source, tokenizer, length, cache, progress=context.world.is_main)
        log.info("ptx: %s of %s", chats.describe(), source.description)
        self._batches = ChatBatches(chats, length, packing=False, seed=config.seed)
        self.facts = chat_facts(chats)  # for the lineage
        self.described = f"{len(chats):,} conversations of {source.description}, with weight {self.coef:g}"

    def of_update(self, number: int, world: World) -> Batch:
        """A rank's share of the conversations of an update (0-based): input_ids and targets (b, T)."""
        rows = self._batches.batch(number, self._size, world.rank, world.size)
        # Padding stands on the right, where no token sees it: nothing to mask.
        return {name: rows[name] for name in ("input_ids", "targets")}

    def tokens(self, number: int) -> float:
        """What the update's loss is a mean over: the reply tokens of its conversations, of all ranks."""
        return max(1.0, float(self._batches.held(number, self._size).trained.sum()))

    def loss(self, model: Any, batch: Batch) -> tuple[Tensor, Sums]:
        """Sum over a micro-batch's reply tokens, in nats; and the sums to report."""
        nll = reply_nll(model, batch["input_ids"], batch["targets"])
        return nll, {"ptx_nll": nll, "ptx_tokens": (batch["targets"] != IGNORED).sum().float()}


def without_measured(config: Config) -> ChatSource:
    """The training rows of stage.ptx without the prompts that the run is measured on."""
    return without_prompts(chat_source(ptx_data(config.stage.ptx, config.data), "train"), list(measured_on(config)))


def measured_on(config: Config) -> Iterator[PromptSource | ChatSource]:
    """All that the run is measured on: held-out rows of data= and the sets of stage.held_out."""
    yield prompt_source(config.data, "validation", prompt_shape(config.reward))
    if gives(config.data, "conversations"):
        yield chat_source(config.data, "validation")
    for name, one in config.stage.held_out.items():
        yield chat_source(held_out_data(name, one, config.data), "validation")
