"""The teacher of stage=sft: a frozen model of the same tokenizer, whose distributions of the next token a student
learns, on the data's replies or on replies that the student itself has written (Agarwal et al. 2024, GKD)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinychat.config.schema import Config
from tinychat.config.stages import Distillation
from tinychat.data.batching import padded_width, share_of
from tinychat.data.chats.tokens import ChatBatches, Held, collate
from tinychat.engine import Batch, Engine, evaluation_engine
from tinychat.errors import UserError
from tinychat.models.build import describe
from tinychat.models.checkpoints import start_model
from tinychat.models.generation.decode import DecodeOptions, decode
from tinychat.models.kernels.distillation import Mixture
from tinychat.models.logprobs import OutputHead, called, distilled, last_hidden
from tinychat.models.vocabulary import vocabulary
from tinychat.rl.losses import Sums
from tinychat.stages import Context
from tinychat.stages.chats import HeldOut
from tinychat.stages.common import log
from tinychat.stages.loop import TrainingLoop
from tinychat.stages.pairs import weights_key
from tinychat.stages.policy import WHOLE
from tinychat.stages.rollouts import step_seed
from tinychat.text.chat_template import end_ids, template_name
from tinychat.text.tokenizer import load_saved_tokenizer, tokenizer_fingerprint, vocabulary_size

WIDTH_MULTIPLE = 64  # of packed own replies: of few widths, memory serves again
CHOICE = 1  # tells the generator that chooses steps from those of the data's order


@dataclass(frozen=True)
class OwnReplies:
    """Conversations whose last reply the student has written, as collate reads them."""

    all_ids: np.ndarray
    all_trained: np.ndarray
    starts: np.ndarray
    pad_id: int

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)


class Teacher:
    """Held whole on every rank, in fp32 and evaluation mode, and computing in the student's precision."""

    def __init__(self, config: Config, context: Context, tokenizer: Any, student: Any, length: int):
        """student: the model, before an engine has it; length: tokens of its sequences at most.

        Raises UserError for a teacher that reads other tokens than the student, takes fewer of them, or is no language
        model.
        """
        path = context.parents["teacher"]
        assert path is not None  # tinychat.runs.parents
        stage: Distillation = config.stage
        self.path, self._stage, self._seed, self._tokenizer = path, config.stage, config.seed, tokenizer
        check_tokenizer(path, tokenizer)
        try:
            model = start_model(path, WHOLE, 0.0)
        except UserError as error:
            raise UserError(f"stage.teacher: {error}") from None
        own = length + stage.on_policy_tokens if stage.on_policy else length
        check_size(path, model, tokenizer, min(own, student.config.max_position_embeddings))
        log.info("teacher: %s", describe(model))
        self._most = min(one.config.max_position_embeddings for one in (student, model))  # tokens that both take
        self._key, self._words = weights_key(model), vocabulary(tokenizer)
        self._engine = evaluation_engine(model, config.precision, context.world)
        self._head: OutputHead | None = None
        self._losses: dict[int | None, float] = {}
        given, share, warmth = stage.divergence.value, stage.teacher_share, stage.teacher_temperature
        self._on_data = Mixture(given, share, warmth, stage.jsd_beta)
        own_kind, own_warmth = stage.on_policy_divergence.value, stage.on_policy_temperature
        self._on_own = Mixture(own_kind, 1.0, own_warmth, stage.jsd_beta)

    def check_same(self, loop: TrainingLoop) -> None:
        """A run that goes on learns from the teacher that it began with. Raises UserError."""
        if loop.state.setdefault("teacher", self._key) != self._key:
            raise UserError(
                f"stage.teacher={self.path}: these are other weights than those this run began to learn from; put them "
                "back, or begin a run of its own: resume=never"
            )

    # ------------------------------------------------------------------------------------------------- own replies

    def on_policy_at(self, step: int) -> bool:
        """Whether a step learns from the student's own replies: by chance, which depends on seed and step alone."""
        random = np.random.Generator(np.random.PCG64([self._seed % 2**64, step, CHOICE]))
        return bool(random.random() < self._stage.on_policy)

    def own_replies(self, engine: Engine, batches: ChatBatches, step: int) -> tuple[Batch, Held, float]:
        """A rank's share of the step's sequences, and what all of them hold, with the last reply of each conversation
        sampled anew by the student; and the share of all replies that ended by themselves. No gradient passes through
        the sampling.

        The draws belong to a conversation's place in the global batch. A sequence grows where replies are longer than
        those of the data.
        """
        stage, world = self._stage, engine.world
        sequences = batches.sequences(step - 1, stage.batch_size)
        mine = share_of(stage.batch_size, world.rank, world.size)
        counts = [len(rows) for rows in sequences]
        prompts = [batches.cache.prompt(index) for rows in sequences[mine.start : mine.stop] for index in rows]
        options = DecodeOptions(
            stage.on_policy_tokens,
            end_ids(self._tokenizer),
            stage.on_policy_temperature,
            step_seed(self._seed, step),
            self._words,
            first=sum(counts[: mine.start]),
        )
        pad_id = self._tokenizer.pad_token_id
        with engine.generation() as model:
            decoded = decode(model, prompts, options, pad_id, stage.generate_batch_size, engine.dtype)
        replies = decoded.responses
        numbers = np.split(np.arange(len(prompts)), np.cumsum(counts[mine.start : mine.stop])[:-1])
        own = OwnReplies(
            np.array([token for parts in zip(prompts, replies, strict=True) for part in parts for token in part]),
            np.repeat(
                np.tile([False, True], len(prompts)),
                [len(part) for parts in zip(prompts, replies, strict=True) for part in parts],
            ),
            np.cumsum([0, *(len(prompt) + len(reply) for prompt, reply in zip(prompts, replies, strict=True))]),
            pad_id,
        )
        longest = max(int(own.lengths[rows].sum()) for rows in numbers)
        if stage.packing:  # where positions restart with each conversation, however wide a sequence is
            width = -(-longest // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
        else:
            width = padded_width(longest, self._most)
        rows = collate(own, numbers, width)
        parts = world.gather_objects((int(own.starts[-1]), [len(reply) for reply in replies], sum(decoded.ended)))
        lengths = np.concatenate([one for _, one, _ in parts])
        ended = sum(count for *_, count in parts) / len(lengths)
        return rows, Held(sum(tokens for tokens, *_ in parts), lengths), ended

    # -------------------------------------------------------------------------------------------------------- loss

    def loss(self, model: Any, batch: Batch, weights: Tensor, own: bool, sums: Sums) -> Tensor:
        """Weighted sum of the losses of a micro-batch's trained tokens; what there is to report is added to `sums`.

        weights: (B, T). own: whether they are the student's own replies, which are judged by the teacher alone.
        """
        more = {name: batch[name] for name in ("position_ids", "segments") if self._stage.packing}
        ids = batch["input_ids"]
        with self._engine.inference() as teacher, last_hidden(teacher) as seen:
            called(teacher, ids, more.get("position_ids"), None, more.get("segments"))
        found = distilled(
            model,
            ids,
            batch["targets"],
            weights,
            seen[0],
            self._logits,
            self._on_own if own else self._on_data,
            vocabulary=self._words,
            **more,
        )
        for name, value in zip(("ce", "divergence"), found[1:].detach().double(), strict=True):
            sums[name] = sums.get(name, torch.zeros_like(value)) + value
        return found[0]

    def _logits(self, hidden: Tensor) -> Tensor:
        """(n, D) -> (n, V) over the vocabulary."""
        with self._engine.inference() as teacher:
            self._head = self._head or OutputHead(teacher, self._words)  # frozen: cast once
            return self._head.logits(hidden)

    def step_means(self, sums: Sums, held: Held, ended: float | None) -> dict[str, float]:
        """What there is to log of a step. ended: of one on own replies, the share of them that ended."""
        count = float(held.trained.sum())
        ce, divergence = (x / count for x in self._engine.world.sum(float(sums["ce"]), float(sums["divergence"])))
        if ended is not None:
            return {
                "train/on_policy_kl": divergence,
                "train/on_policy_length": count / len(held.trained),
                "train/on_policy_ended": ended,
            }
        return {"train/ce": ce, "train/kl_teacher": divergence}

    # -------------------------------------------------------------------------------------------------- evaluation

    def compare(self, held_out: HeldOut, loop: TrainingLoop, found: dict[str, float], most: int | None) -> None:
        """Add to what was found on `most` held-out conversations how the teacher does on them, which is measured once,
        and which share of the student's distance from it, as it was before the first step, is gone."""
        if most not in self._losses:
            self._losses[most] = held_out.measure_loss(self._engine, most)["eval/response_loss"]
        gap = found["eval/response_loss"] - self._losses[most]
        found["eval/teacher_loss"] = self._losses[most]
        first = loop.state.setdefault("teacher_gap", gap) if loop.step == 0 else loop.state.get("teacher_gap", 0.0)
        if first > 0:
            found["eval/gap_closed"] = 1 - gap / first


def check_tokenizer(path: str, tokenizer: Any) -> None:
    """Raise UserError unless the teacher's tokenizer gives every text the student's tokens."""
    other = load_saved_tokenizer(path)
    prints = [tokenizer_fingerprint(one) for one in (other, tokenizer)]
    if prints[0] != prints[1]:
        theirs, ours = (
            f"{vocabulary_size(one):,} tokens, {mark}" for one, mark in zip((other, tokenizer), prints, strict=True)
        )
        raise UserError(
            f"stage.teacher={path}: its tokenizer ({theirs}) is another one than the student's ({ours}), so that the "
            "same token means other texts; take a teacher with the student's tokenizer"
        )
    if other.chat_template and other.chat_template != tokenizer.chat_template:
        log.warning(
            "stage.teacher=%s was trained in the template %s and is asked in %s: it is less sure there",
            path,
            template_name(other),
            template_name(tokenizer),
        )


def check_size(path: str, model: Any, tokenizer: Any, length: int) -> None:
    """Raise UserError where the teacher has fewer rows than tokens, or takes fewer tokens than a sequence has."""
    rows, entries = model.get_output_embeddings().weight.shape[0], vocabulary_size(tokenizer)
    if rows < entries:
        raise UserError(
            f"stage.teacher={path}: the model has {rows:,} entries, its tokenizer {entries:,}; the folder holds "
            "another model's tokenizer"
        )
    if (most := model.config.max_position_embeddings) < length:
        raise UserError(
            f"stage.teacher={path}: it takes {most:,} tokens, and the student's conversations may have {length:,}; "
            "lower stage.context_length (with stage.on_policy also stage.on_policy_tokens), or take another teacher"
        )
