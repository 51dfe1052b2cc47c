"""The typed configuration of each stage: the `stage:` part of a job. Defaults live in conf/stage/ alone."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING


class Schedule(Enum):
    """Shape of the learning rate after its warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"
    wsd = "wsd"  # warm-up, stable, decay


@dataclass
class TokenizerStage:
    """Train a byte-level BPE tokenizer and report how well it fits."""

    name: str = MISSING
    report_docs: int = MISSING  # held-out documents the report measures


@dataclass
class CorpusStage:
    """Tokenize into the cache and report; nothing is trained."""

    name: str = MISSING


@dataclass
class TrainLoop:
    """What every stage that trains a model has."""

    name: str = MISSING
    lr: float = MISSING  # peak learning rate
    schedule: Schedule = MISSING
    warmup_steps: int = MISSING
    decay_fraction: float = MISSING  # wsd: share of all steps, at the end, over which the rate falls
    min_lr_ratio: float = MISSING  # last learning rate / peak
    max_steps: int = MISSING  # optimizer steps
    batch_size: int = MISSING  # sequences per optimizer step, over all ranks
    micro_batch_size: int = MISSING  # sequences per forward pass on one rank
    grad_clip: float = MISSING  # bound on the global gradient norm; 0: off
    activation_checkpointing: bool = MISSING  # recompute activations in the backward pass: less memory, more time
    log_every: int = MISSING  # steps
    eval_every: int = MISSING  # steps; 0: only at the end


@dataclass
class PretrainStage(TrainLoop):
    """Next-token prediction on packed documents."""

    context_length: int | None = MISSING  # tokens per sequence; null: the model's
    eval_batch_size: int = MISSING  # sequences per forward pass in evaluation
    eval_tokens: int | None = MISSING  # validation tokens read during training; the last evaluation reads all
    samples: list[str] = MISSING  # prompts continued at the end, "" for none
    sample_tokens: int = MISSING


@dataclass
class ReplyEvaluation:
    """How replies to held-out conversations are measured."""

    eval_rows: int | None = MISSING  # conversations measured during training; null: all
    generate_rows: int | None = MISSING  # conversations answered by greedy generation at most; null: all
    generate_tokens: int = MISSING  # tokens generated per reply at most
    generate_batch_size: int = MISSING  # replies generated side by side on one rank


@dataclass
class SftStage(TrainLoop, ReplyEvaluation):
    """Supervised fine-tuning on conversations: the loss falls on the assistant's replies alone."""

    context_length: int | None = MISSING  # tokens per sequence; null: the model's
    packing: bool = MISSING  # several conversations in one sequence, blind to each other; false: padding
    label_smoothing: float = MISSING  # share of the target's probability spread over the vocabulary, 0 to 1
    dropout: float | None = MISSING  # null: the checkpoint's own
    eval_first: bool = MISSING  # measure the model it starts from, as step 0
    eval_batch_size: int = MISSING  # conversations per forward pass in evaluation


@dataclass
class EvalStage(ReplyEvaluation):
    """What a checkpoint is worth: perplexity on text, accuracy on conversations."""

    name: str = MISSING
    context_length: int | None = MISSING
    eval_batch_size: int = MISSING
    eval_tokens: int | None = MISSING
    samples: list[str] = MISSING
    sample_tokens: int = MISSING


STAGES = {
    "tokenizer": TokenizerStage,
    "corpus": CorpusStage,
    "pretrain": PretrainStage,
    "sft": SftStage,
    "eval": EvalStage,
}
