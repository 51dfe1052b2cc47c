"""The typed configuration of each stage: the `stage:` part of a job, and what can be wrong with it. Defaults live in
conf/stage/ alone; what else there is to know of a stage is in tinychat.config.specs. Those that learn from rollouts are
in tinychat.config.rollout_stages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

MOST_ROWS = 4096  # of a forward pass that an error proposes


class Schedule(Enum):
    """Shape of the learning rate after its warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"
    wsd = "wsd"  # warm-up, stable, decay


@dataclass
class MixPart:
    """Rows that are added to another source's."""

    source: str = MISSING  # as data.source
    path: str | None = MISSING  # as data.path
    max_rows: int | None = MISSING  # as data.max_rows
    options: dict[str, Any] = field(default_factory=dict)  # as data.options


@dataclass
class StageSettings:
    """What the settings of every stage can be asked."""

    @property
    def compared(self) -> bool:
        """Whether a stage with a reference needs it, with these settings."""
        return True

    def problems(self, ranks: int) -> Iterator[str]:
        """A line for each combination of values that cannot be, as tinychat.config.checks reports them."""
        yield from ()


def not_negative(stage: StageSettings, *keys: str) -> Iterator[str]:
    for key in keys:
        value = getattr(stage, key)
        if value is not None and value < 0:
            yield f"stage.{key}={value}: must not be negative"


def above_zero(stage: StageSettings, *keys: str) -> Iterator[str]:
    for key in keys:
        value = getattr(stage, key)
        if value is not None and value <= 0:
            yield f"stage.{key}={value}: above 0, or null"


def shares(stage: StageSettings, *keys: str) -> Iterator[str]:
    for key in keys:
        value = getattr(stage, key)
        if value is not None and not 0 <= value < 1:
            yield f"stage.{key}={value}: at least 0 and below 1"


@dataclass
class TokenizerStage(StageSettings):
    """Train a byte-level BPE tokenizer and report how well it fits."""

    name: str = MISSING
    report_docs: int = MISSING  # held-out documents the report measures


@dataclass
class TrainLoop(StageSettings):
    """What every stage that trains a model has."""

    name: str = MISSING
    lr: float = MISSING  # peak learning rate
    schedule: Schedule = MISSING
    warmup_steps: int = MISSING
    decay_fraction: float = MISSING  # wsd: share of all steps, at the end, over which the rate falls
    min_lr_ratio: float = MISSING  # last learning rate / peak
    max_steps: int = MISSING  # optimizer steps
    batch_size: int = MISSING  # sequences per optimizer step, over all ranks
    micro_batch_size: int = MISSING  # sequences per forward pass on one rank, at most
    grad_clip: float = MISSING  # bound on the global gradient norm; 0: off
    activation_checkpointing: bool = MISSING  # recompute activations in the backward pass: less memory, more time
    log_every: int = MISSING  # steps
    eval_every: int = MISSING  # steps; 0: only at the end

    def per_forward(self, ranks: int) -> int:
        """Sequences per forward pass on one of so many ranks: micro_batch_size, or its whole share of the batch where
        that is less."""
        return max(1, min(self.micro_batch_size, self.batch_size // ranks))

    def grad_accum_steps(self, ranks: int) -> int:
        """Forward passes of an optimizer step on one of so many ranks."""
        return self.batch_size // (self.per_forward(ranks) * ranks)

    def problems(self, ranks: int) -> Iterator[str]:
        yield from super().problems(ranks)
        if min(self.batch_size, self.micro_batch_size) >= 1:
            yield from self._batch_problems(ranks)
        if self.schedule is Schedule.wsd and not 0 <= self.decay_fraction <= 1:
            yield f"stage.decay_fraction={self.decay_fraction}: a share between 0 and 1"
        if self.min_lr_ratio > 1:
            yield f"stage.min_lr_ratio={self.min_lr_ratio}: at most 1"

    def _batch_problems(self, ranks: int) -> Iterator[str]:
        per_forward = self.per_forward(ranks) * ranks
        if self.batch_size % per_forward == 0:
            return
        largest = min(self.batch_size, MOST_ROWS)
        fits = [size for size in range(1, largest + 1) if self.batch_size % (size * ranks) == 0]
        works = f"micro_batch_size may be {', '.join(map(str, fits[-6:]))}"
        if not fits:
            works = f"batch_size may be {max(1, round(self.batch_size / ranks)) * ranks}"
        yield (
            f"stage.batch_size={self.batch_size} does not divide into forward passes of micro_batch_size="
            f"{self.micro_batch_size} on {ranks} rank{'s' if ranks > 1 else ''}; {works}"
        )


@dataclass
class PretrainStage(TrainLoop):
    """Next-token prediction on packed documents."""

    context_length: int | None = MISSING  # tokens per sequence; null: the model's
    isolate_documents: bool = MISSING  # a token sees its own document alone, and positions restart with each
    eval_batch_size: int = MISSING  # sequences per forward pass in evaluation
    eval_tokens: int | None = MISSING  # validation tokens read during training; the last evaluation reads all
    samples: list[str] = MISSING  # prompts continued at the end, "" for none
    sample_tokens: int = MISSING


@dataclass
class HeldOutSet:
    """Other data, whose held-out conversations a policy is measured on too."""

    source: str = MISSING  # as data.source, with conversations
    path: str | None = None  # as data.path
    val_path: str | None = None  # as data.val_path
    val_fraction: float | None = None  # as data.val_fraction, with data.seed; null: that of data=
    max_rows: int | None = None  # held-out conversations taken at most, a seeded choice; null: all
    tokens: int | None = None  # generated per reply at most; null: stage.generate_tokens
    options: dict[str, Any] = field(default_factory=dict)  # as data.options


@dataclass
class ReplyEvaluation(StageSettings):
    """How replies to held-out conversations are measured."""

    eval_rows: int | None = MISSING  # conversations measured during training, of each set; null: all
    generate_rows: int | None = MISSING  # conversations answered by greedy generation at most, of each; null: all
    generate_tokens: int = MISSING  # tokens generated per reply at most
    generate_batch_size: int = MISSING  # replies generated side by side on one rank
    held_out: dict[str, HeldOutSet] = field(default_factory=dict)  # sets beside data's own, by names of yours
    free_replies: bool = MISSING  # of those replies also refusals, distinct bigrams and repeated phrases
    benign_prompts: int | None = MISSING  # of data=benign, in pairs, answered at most; null: all; 0: none

    def problems(self, ranks: int) -> Iterator[str]:
        yield from super().problems(ranks)
        yield from not_negative(self, "benign_prompts")
        for name, one in self.held_out.items():
            for key in ("max_rows", "tokens"):
                if (value := getattr(one, key)) is not None and value < 1:
                    yield f"stage.held_out.{name}.{key}={value}: at least 1, or null"
            if one.val_fraction is not None and not 0 < one.val_fraction <= 0.5:
                yield f"stage.held_out.{name}.val_fraction={one.val_fraction}: over 0 and at most 0.5, or null"


PASS_K = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass
class AnswerEvaluation(StageSettings):
    """How often one of several sampled replies to a held-out prompt is right; a reply is as long as generate_tokens."""

    pass_k: list[int] = MISSING  # k of the pass@k that are measured, each one of PASS_K; []: none
    pass_samples: int | None = MISSING  # replies sampled to each prompt; null: the largest k
    pass_prompts: int = MISSING  # held-out prompts with a checkable answer, at most
    temperature: float = MISSING

    def problems(self, ranks: int) -> Iterator[str]:
        yield from super().problems(ranks)
        if unknown := [k for k in self.pass_k if k not in PASS_K]:
            yield f"stage.pass_k={self.pass_k}: {unknown[0]} is none of {', '.join(map(str, PASS_K))}"
        if self.pass_samples is not None and self.pass_samples < max(self.pass_k, default=1):
            yield f"stage.pass_samples={self.pass_samples}: at least the largest of stage.pass_k={self.pass_k}, or null"
        if self.pass_prompts < 1:
            yield f"stage.pass_prompts={self.pass_prompts}: must be at least 1"
        if self.pass_k and self.temperature <= 0:
            yield f"stage.temperature={self.temperature}: above 0; pass@k is of sampled replies"


class Divergence(Enum):
    """How far a student's distribution of the next token is from its teacher's; tinychat/models/kernels/distillation.py
    has the formulas."""

    forward = "forward"  # KL(teacher || student): the student covers all that the teacher may say
    reverse = "reverse"  # KL(student || teacher): the student says nothing that the teacher would not
    jsd = "jsd"  # generalised Jensen-Shannon, in between


@dataclass
class Distillation(StageSettings):
    """Learning from a teacher's distributions beside the data's tokens; without a teacher none of it acts."""

    teacher: str | None = MISSING  # checkpoint or run folder; auto: newest SFT run of another model; null: none
    teacher_share: float = MISSING  # a in (1 - a) * cross-entropy + a * T^2 * divergence
    teacher_temperature: float = MISSING  # T, which divides the logits of both
    divergence: Divergence = MISSING  # on the data's replies
    jsd_beta: float = MISSING  # divergence=jsd: the teacher's share of the mixture, above 0 and below 1
    on_policy: float = MISSING  # share of the steps that learn from the student's own replies to the data's prompts
    on_policy_divergence: Divergence = MISSING  # on those, at the temperature they are sampled at
    on_policy_temperature: float = MISSING
    on_policy_tokens: int = MISSING  # of such a reply at most

    def problems(self, ranks: int) -> Iterator[str]:
        yield from super().problems(ranks)
        for key in ("teacher_share", "on_policy"):
            if not 0 <= (value := getattr(self, key)) <= 1:
                yield f"stage.{key}={value}: a share between 0 and 1"
        yield from above_zero(self, "teacher_temperature", "on_policy_temperature", "on_policy_tokens")
        if not 0 < self.jsd_beta < 1:
            yield f"stage.jsd_beta={self.jsd_beta}: above 0 (near it: forward) and below 1 (near it: reverse)"
        if self.teacher is None and self.on_policy:
            yield f"stage.on_policy={self.on_policy}: a teacher judges own replies; give stage.teacher=FOLDER or auto"
        if self.teacher is not None and self.teacher_share == 0 and self.on_policy == 0:
            yield "stage.teacher_share=0 stage.on_policy=0: nothing is learnt from stage.teacher; raise one of them"


@dataclass
class SftStage(Distillation, TrainLoop, ReplyEvaluation):
    """Supervised fine-tuning on conversations: the loss falls on the assistant's replies alone."""

    context_length: int | None = MISSING  # tokens per sequence; null: the model's
    packing: bool = MISSING  # several conversations in one sequence, blind to each other; false: padding
    length_power: float = MISSING  # p in 1 / n^p, the weight of a token among n trained ones of its conversation
    label_smoothing: float = MISSING  # share of the target's probability spread over the vocabulary, 0 to 1
    dropout: float | None = MISSING  # null: the checkpoint's own
    eval_first: bool = MISSING  # measure the model it starts from, as step 0
    eval_batch_size: int = MISSING  # conversations per forward pass in evaluation

    def problems(self, ranks: int) -> Iterator[str]:
        yield from super().problems(ranks)
        yield from shares(self, "label_smoothing", "dropout")
        if not 0 <= self.length_power <= 1:
            yield f"stage.length_power={self.length_power}: from 0 (tokens weigh alike) to 1 (conversations do)"
        if self.teacher is not None and self.label_smoothing:
            yield (
                f"stage.label_smoothing={self.label_smoothing}: the teacher's distribution is what softens the labels; "
                "use 0 with stage.teacher"
            )


class RewardLoss(Enum):
    """What a reward model learns from."""

    bradley_terry = "bradley_terry"  # pairs: the chosen reply scores higher than the rejected one
    pointwise = "pointwise"  # single replies: binary cross-entropy with their label
    both = "both"  # their sum: of a pair, and the mean over its labelled replies


class ReplyLabel(Enum):
    """stage.loss=pointwise or both: which label a reply has."""

    chosen = "chosen"  # 1 for the chosen reply of a pair, 0 for the rejected one
    safe = "safe"  # the source's safety label


class Pooling(Enum):
    """What of a sequence the scalar head reads."""

    last = "last"  # the hidden state of the last real token
    mean = "mean"  # the mean over all real tokens


class ScoreRange(Enum):
    """What scores are after training."""

    standard = "standard"  # mean 0 and standard deviation 1 over replies of the training data
    unit = "unit"  # those mapped to (0, 1) by the logistic function
    raw = "raw"  # the head's output


@dataclass
class RewardStage(TrainLoop):
    """A backbone with a scalar head that scores replies, trained on preferences (also stage=judge)."""

    context_length: int | None = MISSING  # tokens of prompt and reply; null: the model's
    loss: RewardLoss = MISSING
    label: ReplyLabel = MISSING
    margin: float = MISSING  # of pairs: by how much the chosen reply should win
    centering: float = MISSING  # of pairs: coefficient of (chosen + rejected)^2, which keeps scores around 0
    pooling: Pooling = MISSING
    head_layer: int | None = MISSING  # after how many blocks the backbone ends, and the head reads; null: all
    score_range: ScoreRange = MISSING
    train_last_layers: int | None = (
        MISSING  # blocks trained, counted from the top, with head and norm; 0: the head; null: all
    )
    dropout: float | None = MISSING  # null: the checkpoint's own
    eval_batch_size: int = MISSING  # pairs per forward pass in evaluation
    eval_pairs: int | None = MISSING  # pairs measured during training; the last evaluation takes all

    def problems(self, ranks: int) -> Iterator[str]:
        yield from super().problems(ranks)
        if self.margin < 0:
            yield f"stage.margin={self.margin}: by how much the chosen reply should win, 0 or more"
        if self.centering < 0:
            yield f"stage.centering={self.centering}: a coefficient, 0 or more"
        yield from shares(self, "dropout")


@dataclass
class JudgeStage(RewardStage):
    """A classifier of safe and unsafe replies for evaluation, trained on rows that no reward model sees."""


@dataclass
class WordJudgeStage(StageSettings):
    """A second judge of another kind, on the judge's part of the data: n-grams of words and characters, weighed by how
    rare they are, and logistic regression."""

    name: str = MISSING
    words: list[int] = MISSING  # shortest and longest n-gram of words
    characters: list[int] = MISSING  # and of characters inside words
    min_replies: int = MISSING  # that an n-gram has to be in
    strengths: list[float] = MISSING  # inverse penalties (C), of which cross-validation takes the best
    folds: int = MISSING  # of it; a prompt's replies are in one

    def problems(self, ranks: int) -> Iterator[str]:
        yield from super().problems(ranks)
        for key in ("words", "characters"):
            value = getattr(self, key)
            if len(value) != 2 or not 1 <= value[0] <= value[1]:
                yield f"stage.{key}={value}: shortest and longest n-gram, as [1, 2]"
        if self.min_replies < 1:
            yield f"stage.min_replies={self.min_replies}: must be at least 1"
        if not self.strengths or min(self.strengths) <= 0:
            yield f"stage.strengths={self.strengths}: numbers above 0, as [0.1, 1.0]"
        if self.folds < 2:
            yield f"stage.folds={self.folds}: must be at least 2"


@dataclass
class SafetyEvaluation:
    """How replies to held-out requests are measured."""

    safety_prompts: int | None = MISSING  # requests answered at most; null: all; 0: none
    safety_tokens: int = MISSING  # tokens generated per reply at most
    judge: str | None = MISSING  # classifier of replies: checkpoint or run folder; auto: newest stage=judge run or none
    second_judge: str | None = MISSING  # another one, as of stage=word_judge, whose newest run is auto; null: none


class PreferenceLoss(Enum):
    """What a policy learns from pairs by; formulas in tinychat/rl/preference_losses.py."""

    sigmoid = "sigmoid"  # DPO
    ipo = "ipo"
    hinge = "hinge"
    rpo = "rpo"  # sigmoid, with the negative log-likelihood of the chosen reply
    simpo = "simpo"  # without a reference
    orpo = "orpo"  # without a reference

    @property
    def has_reference(self) -> bool:
        return self not in (PreferenceLoss.simpo, PreferenceLoss.orpo)


@dataclass
class DpoStage(TrainLoop, ReplyEvaluation, SafetyEvaluation):
    """Direct preference optimisation: the policy itself learns which reply of a pair is better, with no reward model
    and no rollouts."""

    context_length: int | None = MISSING  # tokens of prompt and reply; null: the model's
    loss: PreferenceLoss = MISSING
    beta: float = MISSING  # pull to the reference; simpo: scale of the rewards; orpo: weight of the odds' term
    length_normalisation: bool = MISSING  # each side divided by its length
    label_smoothing: float = MISSING  # sigmoid and rpo: share of the labels taken to be wrong
    rpo_weight: float = MISSING  # rpo: weight of the chosen reply's negative log-likelihood per token
    simpo_margin: float = MISSING  # simpo: by how much the chosen reply should win
    dropout: float | None = MISSING  # null: the checkpoint's own
    eval_first: bool = MISSING  # measure the policy it starts from, as step 0
    eval_batch_size: int = MISSING  # pairs, or conversations, per forward pass in evaluation
    eval_pairs: int | None = MISSING  # pairs measured during training; the last evaluation takes all
    kl_prompts: int = MISSING  # held-out prompts that get a sampled reply at the end, for eval/kl; 0: none

    def problems(self, ranks: int) -> Iterator[str]:
        yield from super().problems(ranks)
        if self.beta <= 0:
            yield f"stage.beta={self.beta}: above 0; 0.1 is usual, and simpo's 2"
        if not 0 <= self.label_smoothing < 0.5:
            yield f"stage.label_smoothing={self.label_smoothing}: at least 0 and below 0.5"
        elif self.label_smoothing and self.loss not in (PreferenceLoss.sigmoid, PreferenceLoss.rpo):
            yield (
                f"stage.label_smoothing={self.label_smoothing}: stage.loss={self.loss.value} has none; use 0, or "
                "stage.loss=sigmoid or rpo"
            )
        yield from not_negative(self, "rpo_weight", "simpo_margin", "kl_prompts")
        yield from shares(self, "dropout")


class TaskTemplate(Enum):
    """Which tasks are asked in the checkpoint's chat template, where it has one."""

    auto = "auto"  # those that ask something; texts that are compared, measured or gone on with stay plain
    always = "always"
    never = "never"


@dataclass
class TaskEvaluation(StageSettings):
    """Tasks of lm-eval (the extra lm_eval), in place of what the data give."""

    tasks: list[str] = MISSING  # names of tasks, groups or tags, or YAML files; []: what the data give is measured
    task_folder: str | None = MISSING  # of YAML tasks of yours
    task_shots: int | None = MISSING  # examples before each question; null: as the task says, else 0
    task_rows: int | None = MISSING  # of each task at most, its first ones; null: all
    task_template: TaskTemplate = MISSING

    def problems(self, ranks: int) -> Iterator[str]:
        yield from super().problems(ranks)
        yield from not_negative(self, "task_shots")
        if self.task_rows is not None and self.task_rows < 1:
            yield f"stage.task_rows={self.task_rows}: must be at least 1, or null for all"
        if self.tasks:
            return
        for key in ("task_folder", "task_shots", "task_rows"):
            if (value := getattr(self, key)) is not None:
                yield f"stage.{key}={value}: of tasks; name some, as tasks=[grammar], or leave it out"


@dataclass
class EvalStage(TaskEvaluation, AnswerEvaluation, ReplyEvaluation, SafetyEvaluation, StageSettings):
    """What a checkpoint is worth: perplexity on text, accuracy on conversations, safety of its replies."""

    against: list[str] = MISSING  # other checkpoints that are measured in the same way, for one table

    name: str = MISSING
    context_length: int | None = MISSING
    isolate_documents: bool = MISSING  # as in stage=pretrain
    eval_batch_size: int = MISSING
    eval_tokens: int | None = MISSING
    samples: list[str] = MISSING
    sample_tokens: int = MISSING
