"""A trained reward model as a function from replies to scores."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from tinychat.config.stages import ScoreRange
from tinychat.data.batching import rows_at_once
from tinychat.errors import UserError
from tinychat.models.kernels.attention import use_blocked_attention
from tinychat.models.kernels.layers import use_fused_norms, use_fused_rotary
from tinychat.models.one_base import OneBase
from tinychat.models.reward import load_reward_model, normalise, raw_scores, settings
from tinychat.models.word_judge import is_word_judge, load_word_judge
from tinychat.text.chat_render import Message, Refused
from tinychat.text.chat_template import EncodedChat, encode_chats, template_name, try_chats
from tinychat.text.tokenizer import load_saved_tokenizer, tokenizer_fingerprint

# What templates write differently: one turn, several, a system message, a user message with an input.
_ASKED, _TOLD = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}
PROBES: list[list[Message]] = [
    [_ASKED, _TOLD],
    [_ASKED, _TOLD, _ASKED, _TOLD],
    [{"role": "system", "content": "Be kind."}, _ASKED, _TOLD],
    [_ASKED | {"input": "World"}, _TOLD],
]
log = logging.getLogger("tinychat")


class AnyScorer(Protocol):
    """What scores texts: a Scorer, or a judge of another kind. What `encode` makes of a reply (Refused where it cannot
    be read) is its own; `score_ids` takes that."""

    batch_size: int

    @property
    def score_range(self) -> str: ...

    @property
    def context_length(self) -> int: ...

    def encode(self, prompts: Sequence[list[Message]], replies: Sequence[str]) -> list[Any]: ...

    def score_ids(self, sequences: Sequence[Any]) -> list[float]: ...


def _as_tokens(tokenizer: PreTrainedTokenizerFast, chat: list[Message]) -> list[int] | None:
    """A conversation up to its last reply's end as its template writes it; None where the template refuses it."""
    try:
        (encoded,) = encode_chats(tokenizer, [chat])
    except UserError:
        return None
    return encoded.ids[: _reply_end(encoded)].tolist()


def _reply_end(encoded: EncodedChat) -> int | None:
    """What the template writes after a reply's end token was not there in training either."""
    return len(encoded.ids) - int(np.argmax(encoded.trained[::-1])) if encoded.trained.any() else None


def outputs_of(model: Any, sequences: Sequence[Sequence[int]], pad_id: int, device: Any) -> list[float]:
    """What the head of a reward model gives for each, in one batch padded on the right."""
    ids = torch.full((len(sequences), max(map(len, sequences))), pad_id)
    real = torch.zeros(ids.shape, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.as_tensor(sequence)
        real[row, : len(sequence)] = True
    return raw_scores(model, ids.to(device), real.to(device)).tolist()


def open_scorer(path: str, device: str | torch.device, dtype: torch.dtype, batch_size: int) -> AnyScorer:
    """The reward model or judge in a folder or hub repository, of whatever kind, to score texts with: `encode`, then
    `score_ids`. Arguments and errors as Scorer has them."""
    return load_word_judge(path) if is_word_judge(path) else Scorer(path, device, dtype, batch_size)


class Scorer:
    """A frozen reward model, its tokenizer and its chat template.

    Scores are the normalised ones (see reward.normalise); with score_range=unit the probability that a reply is good,
    for a judge that it is safe.
    """

    def __init__(
        self,
        path: str,
        device: str | torch.device,
        dtype: torch.dtype,
        batch_size: int,
        base: OneBase | None = None,
    ):
        """path: a checkpoint folder or hub id; dtype: of the arithmetic; batch_size: sequences per forward pass; base:
        of a policy, on which the model is computed where it is an adapter of the same weights (all ranks score
        together then).

        Raises UserError for what is no reward model, or one whose tokenizer brings no chat template.
        """
        self.path, self.batch_size = path, batch_size
        self.device, self.dtype = torch.device(device), dtype
        shared = None if base is None else base.reward_model(path)
        self.model, self._in_use = shared or (load_reward_model(path).to(self.device), contextlib.nullcontext)
        self.tokenizer: PreTrainedTokenizerFast = load_saved_tokenizer(path)
        if not self.tokenizer.chat_template:
            raise UserError(f"{path}: its tokenizer brings no chat template; train it with stage=reward")
        for faster in (use_blocked_attention, use_fused_norms, use_fused_rotary) if shared is None else ():
            faster(self.model, self.device)

    @property
    def score_range(self) -> str:
        """What scores are: standard | unit | raw."""
        return settings(self.model.config)["range"]

    @property
    def context_length(self) -> int:
        """Tokens of a sequence at most."""
        return self.model.config.max_position_embeddings

    def check_tokenizer(self, other: PreTrainedTokenizerFast, what: str) -> None:
        """Raise UserError unless `other`, the tokenizer of `what`, gives every text the same tokens."""
        if tokenizer_fingerprint(self.tokenizer) != tokenizer_fingerprint(other):
            raise UserError(
                f"reward model {self.path}: its tokenizer is another one than that of {what}; train a reward model on "
                "a checkpoint with the same tokenizer (stage=reward init_from=CHECKPOINT), or let this one read texts: "
                "reward=text_model"
            )

    @property
    def spread(self) -> float | None:
        """Standard deviation of the head's outputs on the replies it was normalised on; None: it was not."""
        found = settings(self.model.config)
        return None if found["range"] == ScoreRange.raw.value else found["std"]

    def check_template(self, other: PreTrainedTokenizerFast, what: str, insist: bool) -> None:
        """Raise UserError unless `other`, the tokenizer of `what`, writes conversations as those that this model was
        trained on, token by token; with `insist` only warn. check_tokenizer comes first."""
        if all(_as_tokens(self.tokenizer, chat) == _as_tokens(other, chat) for chat in PROBES):
            return
        said = (
            f"reward model {self.path}: trained in the chat template {template_name(self.tokenizer)}, while {what} "
            f"writes in {template_name(other)}"
        )
        if not insist:
            raise UserError(
                f"{said}; its scores mean little there. Train a reward model on a checkpoint of that template, take "
                "its template for both (template=NAME), or insist: reward.any_template=true"
            )
        log.warning("%s; its scores mean little there (reward.any_template=true)", said)

    def score_ids(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Scores of sequences of prompt and reply, which end with the reply's end token (or where it was cut). Raises
        UserError as outputs."""
        return normalise(torch.tensor(self.outputs(sequences)), self.model.config).tolist()

    @torch.no_grad()
    def outputs(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """The head's outputs, of which scores are made.

        Raises UserError for an empty sequence and one longer than the model's context.
        """
        lengths = [len(sequence) for sequence in sequences]
        for number, length in enumerate(lengths, start=1):
            if not 0 < length <= self.context_length:
                raise UserError(
                    f"reward model {self.path}: sequence {number} has {length} tokens; it takes 1 to "
                    f"{self.context_length}"
                )
        longest_first = sorted(range(len(sequences)), key=lambda index: -lengths[index])
        scores, width = [0.0] * len(sequences), self.model.config.hidden_size
        with self._in_use():
            while longest_first:
                size = rows_at_once(lengths[longest_first[0]], self.batch_size, width, self.device.type)
                rows, longest_first = longest_first[:size], longest_first[size:]
                for row, score in zip(rows, self._batch([sequences[row] for row in rows]), strict=True):
                    scores[row] = score
        return scores

    def _batch(self, sequences: list[Sequence[int]]) -> list[float]:
        """Outputs for sequences, the longest first."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32):
            return outputs_of(self.model, sequences, int(self.tokenizer.pad_token_id or 0), self.device)

    def encode(self, prompts: Sequence[list[Message]], replies: Sequence[str]) -> list[list[int] | Refused]:
        """Tokens of each prompt ([system,] user, ..., user) with its reply, up to the reply's end token; the reason in
        place of what the template cannot write. Raises UserError for a template that is of no use for any."""
        chats = [
            [*prompt, {"role": "assistant", "content": reply}] for prompt, reply in zip(prompts, replies, strict=True)
        ]
        return [
            found if isinstance(found, Refused) else found.ids[: _reply_end(found)].tolist()
            for found in try_chats(self.tokenizer, chats)
        ]
