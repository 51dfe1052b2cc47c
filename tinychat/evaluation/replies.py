"""Replies of a model to many prompts, the work shared among the ranks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from tinychat.models.generation.decode import DecodeOptions, decode
from tinychat.models.vocabulary import vocabulary
from tinychat.runtime.world import World
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
