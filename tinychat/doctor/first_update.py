"""The first update of a stage, as an examiner sees it: what it is made of, and what it does to the weights."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinychat.config.schema import Config
from tinychat.config.specs import spec_of
from tinychat.doctor.findings import Findings
from tinychat.doctor.replies import look_at_replies
from tinychat.doctor.stage_run import Enough
from tinychat.engine import Batch, Engine, LossFn, StepStats
from tinychat.engine.base import PlainEngine
from tinychat.engine.checkpoint import Checkpointer
from tinychat.errors import UserError
from tinychat.models.actor_critic import policy_of
from tinychat.models.logprobs import IGNORED, token_nll
from tinychat.models.scorer import outputs_of
from tinychat.models.vocabulary import vocabulary
from tinychat.rl.selfcheck import ROWS, check_dropout, check_padding, check_scores, check_tokens
from tinychat.runtime.console import peak_memory_gb
from tinychat.text.chat_template import EncodedChat, end_ids

TRACE = "trace.pt"
TOKENS = ("input_ids", "targets", "segments", "response_mask")  # of a batch: one each of a token, (B, T)
SHOWN = 400  # tokens of an example at most


@dataclass
class Trace:
    """What an update computed, the same on every rank."""

    loss: float
    grad_norm: float  # before clipping
    parts: int  # micro-batches of a rank
    gradient: Tensor | None  # (n,) fp32 on the CPU, after clipping; None where no rank holds all of it
    rows: list[int]  # checksums of the tokens of each sequence, of all ranks, ascending


def traced(engine: Engine, tokenizer: Any, micro_batches: Sequence[Batch], loss_fn: LossFn) -> tuple[Trace, StepStats]:
    """An update, and what it was."""
    seen: list[Tensor] = []

    def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        seen.append(torch.cat([gradient.detach().float().flatten().cpu() for gradient in gradients]))

    handle = engine.optimizer.register_step_pre_hook(keep)
    try:
        done = engine.train_step(micro_batches, loss_fn)
    finally:
        handle.remove()
    own = [zlib.crc32(np.array(row.ids).tobytes()) for row in rows_of(micro_batches, tokenizer.pad_token_id)]
    rows = sorted(row for part in engine.world.gather_objects(own) for row in part)
    gradient = seen[0] if seen and isinstance(engine, PlainEngine) else None
    return Trace(done.loss, done.grad_norm, len(micro_batches), gradient, rows), done


def weights_of(engine: Engine) -> dict[str, Tensor]:
    """A copy of what is trained."""
    return {name: weight.detach().cpu().clone() for name, weight in engine.full_state_dict().items()}


# ------------------------------------------------------------------------------------------------ what is learnt from


def rows_of(micro_batches: Sequence[Batch], pad_id: int) -> list[EncodedChat]:
    """The sequences of an update: of packed ones the first of each row."""
    return [
        _row({name: batch[name][index].cpu() for name in TOKENS if name in batch}, pad_id)
        for batch in micro_batches
        for index in range(len(batch["input_ids"]))
    ]


def _row(row: Mapping[str, Tensor], pad_id: int) -> EncodedChat:
    ids = row["input_ids"]
    if "targets" in row:
        kept, segments = row["targets"] != IGNORED, row.get("segments")
        if segments is not None:
            width = int((segments == segments[0]).sum())
        else:
            width = int(kept.nonzero()[-1]) + 1 if kept.any() else len(ids)
        last = row["targets"][width - 1 : width] if kept[width - 1] else ids[:0]
        tokens = torch.cat([ids[:width], last])
        trained = torch.cat([kept.new_zeros(1), kept[:width]])[: len(tokens)]
    else:
        width = int((ids != pad_id).nonzero()[-1]) + 1
        tokens = ids[:width]
        trained = row["response_mask"][:width].bool() if "response_mask" in row else torch.zeros(width).bool()
    first = int(trained.nonzero()[0]) if trained.any() else len(tokens)
    return EncodedChat(tokens.numpy(), trained.numpy(), first)


def padded(rows: Sequence[EncodedChat], pad_id: int) -> tuple[Tensor, Tensor]:
    """Sequences as input_ids and targets (B, T), padded on the right."""
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    targets = torch.full((len(rows), width), IGNORED)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = torch.as_tensor(row.ids)
        targets[index, : len(row.ids)][torch.as_tensor(row.trained)] = torch.as_tensor(row.ids)[row.trained].long()
    return ids[:, :-1], targets[:, 1:]


class Tokens:
    """What the sequences of an update must have. Each method says what it found; raises UserError."""

    def __init__(self, config: Config, engine: Engine, tokenizer: Any, rows: list[EncodedChat]):
        self._spec, self._engine, self._tokenizer, self._rows = spec_of(config), engine, tokenizer, rows
        documents = self._spec.reads == "documents"
        self._ends = (tokenizer.eos_token_id,) if documents else end_ids(tokenizer)
        self._documents = documents

    def mask(self) -> str:
        tokens, trained = (sum(len(row.ids) for row in self._rows), sum(int(row.trained.sum()) for row in self._rows))
        said = f"{trained:,} of {tokens:,} tokens in {len(self._rows)} sequences are trained"
        if self._spec.scores:
            return f"{tokens:,} tokens in {len(self._rows)} sequences are read, none is a target"
        if not trained:
            raise UserError(f"{said}: nothing is learnt")
        if not self._documents and all(row.trained[1:].all() for row in self._rows):
            raise UserError(f"{said}: prompts are trained like replies")
        return said

    def end_learnt(self) -> str:
        if self._spec.scores:
            there = sum(int(row.ids[-1]) in self._ends for row in self._rows)
            said = f"{there} of {len(self._rows)} sequences are read up to their end token"
        else:
            there = sum(bool(np.isin(row.ids[row.trained], self._ends).any()) for row in self._rows)
            said = f"in {there} of {len(self._rows)} sequences {self._names()} is trained"
        if not there:
            raise UserError(said)
        return said

    def _names(self) -> str:
        return " or ".join(self._tokenizer.convert_ids_to_tokens(list(self._ends)))

    def pad_token(self) -> str:
        check_tokens(self._tokenizer, self._ends)
        return f"{self._tokenizer.pad_token} beside {self._names()}"

    @torch.no_grad()
    def end_drawn(self) -> str:
        """The probability of the end token where it is the target."""
        words, rows = vocabulary(self._tokenizer), self._rows[:ROWS]
        ids, targets = (part.to(self._engine.world.device) for part in padded(rows, self._tokenizer.pad_token_id))
        with self._engine.inference() as model:
            nll = token_nll(policy_of(model), ids, targets, exact=True, vocabulary=words)
        at_end = torch.isin(targets, torch.tensor(self._ends, device=targets.device))
        if not at_end.any():
            raise UserError("no end token among the targets that were looked at")
        probability = (-nll[at_end]).exp().mean().item()
        what = "document" if self._documents else "reply"
        said = f"{self._names()} has a probability of {probability:.2g} where a {what} ends"
        if not probability > 0:
            raise UserError(said)
        return said

    def stored(self) -> torch.dtype:
        """The type of the weights."""
        return next(self._engine.model.parameters()).dtype

    def padding(self) -> str:
        rows = [row for row in self._rows if 0 < row.prompt_length < len(row.ids)][:ROWS]
        prompts = [row.ids[: row.prompt_length].tolist() for row in rows]
        replies = [row.ids[row.prompt_length :].tolist() for row in rows]
        pad_id, words, device = self._tokenizer.pad_token_id, vocabulary(self._tokenizer), self._engine.world.device
        # Without autocast: rounding in bf16 is large where tokens are unlikely, as in replies not learnt yet.
        with self._engine.inference() as model, torch.autocast(device.type, enabled=False):
            policy = policy_of(model)
            gap = check_padding(policy, prompts, replies, pad_id, 1.0, words, next(policy.parameters()).dtype, device)
        return f"up to {gap:.1e} nats"

    def scores(self) -> str:
        pad_id, device = int(self._tokenizer.pad_token_id), self._engine.world.device
        with self._engine.inference() as model:
            gap = check_scores(
                "the model",
                lambda sequences: outputs_of(model, sequences, pad_id, device),
                [row.ids.tolist() for row in self._rows],
                None,
                self._engine.dtype,
            )
        return f"up to {gap:.1e} standard deviations"


# --------------------------------------------------------------------------------------------------------- examiners

UNITS = {"scores": "standard deviations"}


class FirstLook:
    """Looks at everything before the first update, makes it twice, and lets the stage go on to the end of its step."""

    def __init__(self, config: Config, findings: Findings, folder: Path):
        self._config, self._findings, self._folder = config, findings, folder
        self.trace: Trace | None = None
        self.example: tuple[Any, EncodedChat] | None = None  # a tokenizer, and one of the sequences
        self.dropout = False  # draws other masks for another split
        self.peak = 0.0  # GB, up to the end of the first update
        self.dtype = torch.float32  # of the arithmetic
        # For another engine that is to make the same update.
        self.saved, self.micro_batches = Path(), list[Batch]()
        self.weights, self.again = dict[str, Tensor](), dict[str, Tensor]()  # after the update, made and made again

    def ask(self, checks: Mapping[str, Callable[[], float | None]]) -> None:
        for name, check in checks.items():
            self._findings.ask(name, lambda check=check, name=name: _said(name, check()))  # type: ignore[misc]

    def replies(self, sampler: Any, prompts: Any, rewards: Any, group: int) -> None:
        look_at_replies(self._findings, self._config, sampler, prompts, rewards, group)

    def train_step(self, engine: Engine, tokenizer: Any, micro_batches: Sequence[Batch], loss_fn: LossFn) -> StepStats:
        if self.trace is not None:
            return engine.train_step(micro_batches, loss_fn)
        self._look_at(engine, tokenizer, rows_of(micro_batches, tokenizer.pad_token_id))
        saves = Checkpointer(self._folder, engine.world, keep_last=1, keep_best=0)
        self.saved = saves.save(0, engine, tokenizer, {"metrics": {}}, {})
        done = engine.train_step(micro_batches, loss_fn)
        self.peak = peak_memory_gb(str(engine.world.device))
        self.weights, self.micro_batches = weights_of(engine), list(micro_batches)
        saves.load(self.saved, engine, same_ranks=False)
        self.trace, _ = traced(engine, tokenizer, micro_batches, loss_fn)
        self.again = weights_of(engine)
        return done

    def _look_at(self, engine: Engine, tokenizer: Any, rows: list[EncodedChat]) -> None:
        spec, known = spec_of(self._config), {finding.check for finding in self._findings}
        tokens = Tokens(self._config, engine, tokenizer, rows)
        shown = slice(0, SHOWN)
        self.example = tokenizer, EncodedChat(rows[0].ids[shown], rows[0].trained[shown], rows[0].prompt_length)
        self.dtype = engine.dtype
        try:
            check_dropout(engine.model)
        except UserError:
            self.dropout = True
        looks = {"mask": tokens.mask, "end learnt": tokens.end_learnt}
        if spec.reads != "documents":
            looks |= {"pad token": tokens.pad_token}
            looks |= {"scores": tokens.scores} if spec.scores else {"padding": tokens.padding}
        if not spec.scores:
            looks |= {"end drawn": tokens.end_drawn}
        for name, look in looks.items():
            if name == "padding" and name not in known and (stored := tokens.stored()) is not torch.float32:
                self._findings.add(name, None, f"weights are stored as {stored}, whose rounding would hide it")
            elif name not in known:
                self._findings.ask(name, look)


def _said(name: str, gap: float | None) -> str:
    unit = UNITS.get(name.split()[0], "nats")
    return "nothing wrong" if gap is None else f"up to {gap:.1e} {unit}"


class OneUpdate:
    """Makes the first update and ends the stage. first: what another engine has made; its state is loaded, and its
    update made again, too."""

    def __init__(self, first: FirstLook | None = None):
        self._first = first
        self.trace: Trace | None = None
        self.again: dict[str, Tensor] | None = None  # weights after the other's update

    def ask(self, checks: Mapping[str, Callable[[], float | None]]) -> None:
        pass

    def replies(self, sampler: Any, prompts: Any, rewards: Any, group: int) -> None:
        pass

    def train_step(self, engine: Engine, tokenizer: Any, micro_batches: Sequence[Batch], loss_fn: LossFn) -> StepStats:
        self.trace, _ = traced(engine, tokenizer, micro_batches, loss_fn)
        if self._first is not None:
            saves = Checkpointer(self._first.saved.parent.parent, engine.world, keep_last=1, keep_best=0)
            saves.load(self._first.saved, engine, same_ranks=False)
            engine.train_step(self._first.micro_batches, loss_fn)
            self.again = weights_of(engine)
        raise Enough
