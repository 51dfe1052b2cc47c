"""The typed configuration of the stages that learn from the policy's own replies; of the others it is in
tinychat.config.stages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from tinychat.config.stages import (
    AnswerEvaluation,
    MixPart,
    ReplyEvaluation,
    SafetyEvaluation,
    TrainLoop,
    above_zero,
    not_negative,
)


class KLControl(Enum):
    """How the weight of the KL penalty moves."""

    fixed = "fixed"
    adaptive = "adaptive"  # towards stage.kl_target


class KLEstimator(Enum):
    """KL(policy || reference) of a sampled token; with d = log-probability under the policy minus the reference's."""

    k1 = "k1"  # d
    k2 = "k2"  # d^2 / 2
    k3 = "k3"  # exp(-d) - 1 + d


class ValueKind(Enum):
    """Where the value function lives."""

    own = "own"  # a second backbone with a scalar head
    shared = "shared"  # a scalar head on the policy
    adapter = "adapter"  # a second adapter on the policy's base, with a scalar head


class ValueInit(Enum):
    """stage.value=own, adapter: whose backbone, or adapter, it starts from."""

    reward = "reward"
    policy = "policy"


class MissingEnd(Enum):
    """What becomes of the score of a reply that was cut off before its end token."""

    none = "none"
    subtract = "subtract"  # stage.eos_penalty is subtracted
    floor = "floor"  # the score is stage.eos_penalty
    soft = "soft"  # up to 1 is subtracted, the more the further it is into the last stage.soft_length tokens
    mask = "mask"  # the score stays, and the reply is left out of the loss (groups alone)


@dataclass
class Ptx:
    """Supervised learning on conversations in the same updates (PPO-ptx; Ouyang et al. 2022, section 3.5)."""

    coef: float = MISSING  # weight of the mean loss of their reply tokens; 0: off, and none of the rest acts
    source: str | None = MISSING  # as data.source, with conversations
    path: str | None = MISSING  # as data.path
    max_rows: int | None = MISSING  # training conversations taken (a seeded choice) or generated at most; null: all
    options: dict[str, Any] = field(default_factory=dict)  # as data.options
    mix: dict[str, MixPart] = field(default_factory=dict)  # conversations added to those, as data.mix
    batch_size: int = MISSING  # conversations of an update, over all ranks

    def problems(self, ranks: int) -> Iterator[str]:
        """As StageSettings.problems."""
        if self.coef < 0:
            yield f"stage.ptx.coef={self.coef}: must not be negative; 0 learns from no conversations"
        if self.coef > 0 and self.source is None:
            yield (
                f"stage.ptx.source=null: stage.ptx.coef={self.coef} needs conversations to learn from, as "
                "stage.ptx.source=alpaca stage.ptx.path=FILES"
            )
        for key in ("max_rows", "batch_size"):
            if (value := getattr(self, key)) is not None and value < 1:
                yield f"stage.ptx.{key}={value}: must be at least 1"
        if self.coef > 0 and self.batch_size >= 1 and self.batch_size % ranks:
            yield (
                f"stage.ptx.batch_size={self.batch_size} does not divide over {ranks} ranks; use "
                f"{max(1, round(self.batch_size / ranks)) * ranks}"
            )


@dataclass
class RolloutStage(TrainLoop, AnswerEvaluation, ReplyEvaluation, SafetyEvaluation):
    """Learning from the policy's own replies: a step is one rollout and the updates it feeds."""

    rollout_size: int = MISSING  # replies per step, over all ranks
    rollout_batch_size: int = MISSING  # replies generated or scored side by side on one rank, at most
    response_length: int = MISSING  # tokens of a reply at most
    context_length: int | None = MISSING  # tokens of prompt and reply; null: the model's
    temperature: float = MISSING  # divides the logits, in rollouts and updates alike
    epochs: int = MISSING  # times each reply is learnt from
    kl: KLControl = MISSING
    beta: float = MISSING  # weight of the KL penalty (adaptive: the first one)
    kl_target: float = MISSING  # adaptive: wanted KL per reply, in nats
    kl_horizon: float = MISSING  # adaptive: replies over which the weight can move by 20 %
    kl_estimator: KLEstimator = MISSING
    full_kl: bool = MISSING  # log the KL over the whole vocabulary beside the estimate
    clip_low: float = MISSING
    clip_high: float = MISSING
    dual_clip: float | None = MISSING  # bound on the loss of bad tokens, above 1; null: none
    log_ratio_bound: float = MISSING
    ptx: Ptx = MISSING
    entropy_coef: float = MISSING  # weight of an entropy bonus; with a target: by how much it moves in a step
    entropy_target: float | None = MISSING  # nats per token, below which the bonus grows and acts; null: it stays
    missing_end: MissingEnd = MISSING
    eos_penalty: float = MISSING
    soft_length: int = MISSING  # missing_end=soft: last tokens of response_length, over which the penalty grows to 1
    max_kl: float | None = MISSING  # approximate KL of an update beyond which a rollout's other updates are left out
    objective_beta: float | None = MISSING  # weight of the KL in eval/objective; null: that of the penalty
    objective_temperature: float | None = MISSING  # of the replies it is measured on; null: stage.temperature
    eval_first: bool = MISSING  # measure the policy it starts from, as step 0
    eval_prompts: int = MISSING  # held-out prompts that get a sampled reply, at most
    eval_batch_size: int = MISSING  # conversations per forward pass in evaluation
    keep_rollouts: bool = MISSING  # write each rollout to rollouts/ in the run folder: any step can be replayed

    def grad_accum_steps(self, ranks: int) -> int:
        """As TrainLoop's; those over stage.ptx are counted."""
        of_ptx = -(-(self.ptx.batch_size // ranks) // self.micro_batch_size) if self.ptx.coef else 0
        return super().grad_accum_steps(ranks) + of_ptx

    def problems(self, ranks: int) -> Iterator[str]:
        yield from super().problems(ranks)
        yield from self.ptx.problems(ranks)
        for size, name in ((self.batch_size, f"stage.batch_size={self.batch_size}"), (ranks, f"{ranks} ranks")):
            if self.rollout_size % max(size, 1):
                yield (
                    f"stage.rollout_size={self.rollout_size} is no multiple of {name}; use "
                    f"{max(1, round(self.rollout_size / size)) * size}"
                )
        if self.temperature <= 0:
            yield f"stage.temperature={self.temperature}: above 0; rollouts are sampled"
        yield from not_negative(self, "beta", "entropy_coef", "clip_high", "objective_beta")
        if not 0 <= self.clip_low <= 1:
            yield f"stage.clip_low={self.clip_low}: from 0 to 1"
        if self.dual_clip is not None and self.dual_clip <= 1:
            yield f"stage.dual_clip={self.dual_clip}: above 1 (3 is usual), or null for none"
        yield from above_zero(self, "max_kl", "objective_temperature", "entropy_target")
        if self.entropy_target is not None and self.entropy_coef <= 0:
            yield f"stage.entropy_coef={self.entropy_coef}: with entropy_target above 0 (0.005 is usual)"
        if self.kl is KLControl.adaptive and min(self.beta, self.kl_target, self.kl_horizon) <= 0:
            yield "stage.kl=adaptive needs stage.beta, kl_target and kl_horizon above 0"
        if self.missing_end is MissingEnd.soft and not 1 <= self.soft_length <= self.response_length:
            yield (
                f"stage.soft_length={self.soft_length}: missing_end=soft needs 1 to stage.response_length="
                f"{self.response_length} tokens"
            )


@dataclass
class PpoStage(RolloutStage):
    """Proximal policy optimisation against a reward, with a value function."""

    gamma: float = MISSING
    lam: float = MISSING  # lambda of generalized advantage estimation
    whiten_advantages: bool = MISSING
    whiten_rewards: bool = MISSING  # to standard deviation 1, the mean kept
    value: ValueKind = MISSING
    value_from: ValueInit = MISSING
    value_coef: float = MISSING
    value_clip: float | None = MISSING  # null: no clipping
    critic_lr_ratio: float = MISSING  # learning rate of the value function / stage.lr
    critic_warmup: int = MISSING  # first steps in which the value function alone learns

    def problems(self, ranks: int) -> Iterator[str]:
        yield from super().problems(ranks)
        for key, value in (("gamma", self.gamma), ("lam", self.lam)):
            if not 0 <= value <= 1:
                yield f"stage.{key}={value}: from 0 to 1"
        yield from not_negative(self, "value_coef", "critic_lr_ratio", "critic_warmup")
        yield from above_zero(self, "value_clip")
        if self.missing_end is MissingEnd.mask:
            yield "stage.missing_end=mask: replies are left out in groups alone; use none, subtract, floor or soft"


class GroupLoss(Enum):
    """How a group's replies are learnt from; formulas: tinychat.rl.losses."""

    grpo = "grpo"  # clipped ratio of each token; replies weigh alike
    dr_grpo = "dr_grpo"  # the same; tokens weigh alike, against stage.response_length
    dapo = "dapo"  # the same; tokens weigh alike, against those of the batch
    gspo = "gspo"  # one clipped ratio a reply, the geometric mean over its tokens
    cispo = "cispo"  # log-probabilities weighed by the ratio, bounded above at 1 + clip_high
    rloo = "rloo"  # REINFORCE, each reply against the mean of the others


class KLPlace(Enum):
    """Where the KL penalty counts."""

    reward = "reward"  # of the advantages: what follows a token, less what follows there in the group's other replies
    loss = "loss"  # a term of its own, by stage.kl_loss


class KLLoss(Enum):
    """stage.kl_in=loss: an estimate whose gradient is that of KL(policy || reference)."""

    k2 = "k2"  # d^2 / 2
    k3 = "k3"  # ratio x k3, the gradient through the ratio


class Correction(Enum):
    """How tokens weigh whose probability while sampling was another than that of the trainer's forward pass."""

    none = "none"
    tis = "tis"  # by the quotient of both, at most stage.correction_cap
    icepop = "icepop"  # by the quotient within stage.correction_low and correction_high, else not at all
    sequence_mask = "sequence_mask"  # alike, but not at all in replies whose mean quotient is outside these


@dataclass
class GrpoStage(RolloutStage):
    """Learning from groups: several replies to each prompt, each against the mean of its group; no value function."""

    group_size: int = MISSING  # replies to a prompt; rollout_size counts replies
    loss: GroupLoss = MISSING
    scale_by_std: bool = MISSING  # divide a group's advantages by their standard deviation
    normalise_parts: bool = MISSING  # each part of the reward within the group by itself, then added by weight
    kl_in: KLPlace = MISSING
    kl_loss: KLLoss = MISSING
    refill: int = MISSING  # times that groups without spread are replaced by other prompts', at most; 0: never
    correction: Correction = MISSING
    correction_cap: float = MISSING
    correction_low: float = MISSING
    correction_high: float = MISSING
    drop_stale: float | None = MISSING  # nats a token that a bad reply may have become less likely; null: any
    entropy_share: float = MISSING  # share of the tokens, those of most entropy, that advantages reach; 1: all

    @property
    def compared(self) -> bool:
        return self.beta > 0

    def problems(self, ranks: int) -> Iterator[str]:
        yield from super().problems(ranks)
        yield from self._group_problems(ranks)
        yield from above_zero(self, "drop_stale")
        if self.correction_cap < 1:
            yield f"stage.correction_cap={self.correction_cap}: 1 or more (2 is usual), or what agrees would be cut too"
        if not 0 <= self.correction_low <= 1 <= self.correction_high:
            yield (
                f"stage.correction_low={self.correction_low}, correction_high={self.correction_high}: the band must "
                "hold 1, where sampler and trainer agree (0.5 and 5 are usual)"
            )
        if not 0 < self.entropy_share <= 1:
            yield f"stage.entropy_share={self.entropy_share}: above 0, at most 1 (all tokens)"
        yield from not_negative(self, "refill")
        if self.normalise_parts and self.missing_end is MissingEnd.floor:
            yield (
                "stage.missing_end=floor: takes the place of the whole score, and normalise_parts=true adds parts; use "
                "subtract, soft or mask"
            )
        if not self.compared and self.objective_beta:
            yield (
                f"stage.objective_beta={self.objective_beta}: stage.beta=0 loads no reference to measure the KL with; "
                "use null"
            )

    def _group_problems(self, ranks: int) -> Iterator[str]:
        size = self.group_size
        if size < 2:
            yield f"stage.group_size={size}: at least 2; a reply alone has no others to be better than (8 is usual)"
            return
        for key, parts in (("batch_size", 1), ("rollout_size", ranks)):
            value, unit = getattr(self, key), size * parts
            if value % unit:
                of = f" on each of {ranks} ranks" if parts > 1 else ""
                yield (
                    f"stage.{key}={value} is no multiple of {unit}: whole groups of stage.group_size={size}{of}; use "
                    f"{max(1, round(value / unit)) * unit}"
                )


@dataclass
class RlvrStage(GrpoStage):
    """The same with a reward that can be verified."""
