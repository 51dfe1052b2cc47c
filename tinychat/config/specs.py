"""Every stage, described once: what it reads, what it builds on, what it makes, how it is judged, what comes next.

Checks, parents, plan=, pipelines, the tracker's vocabulary, reports and the chat read these descriptions; none of them
knows a stage by its name. A new stage is an entry here with its settings (config/stages.py or rollout_stages.py), the
function that runs it (tinychat/stages/) and its defaults (conf/stage/NAME.yaml). Imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

from tinychat.config.corpus_stage import CorpusStage
from tinychat.config.rollout_stages import GrpoStage, PpoStage, RlvrStage, RolloutStage
from tinychat.config.stages import (
    DpoStage,
    EvalStage,
    JudgeStage,
    PretrainStage,
    ReplyEvaluation,
    RewardStage,
    SafetyEvaluation,
    SftStage,
    TokenizerStage,
    TrainLoop,
    WordJudgeStage,
)
from tinychat.errors import UserError

if TYPE_CHECKING:
    from tinychat.config.schema import Config

# What may stand together in a panel of a picture: the first choice with a curve is drawn.
Panel = tuple[tuple[str, ...], ...]
Rows = Literal["documents", "conversations", "preferences", "prompts"]


class Made(Enum):
    """What a stage's checkpoint is to those that build on it."""

    corpus = "corpus"  # documents, which data=corpus reads
    tokenizer = "tokenizer"
    language = "language"  # a model that continues text: it can be talked to
    reward = "reward"  # a scalar head that scores replies
    judge = "judge"  # one whose scores are probabilities that a reply is safe
    word_judge = "word_judge"  # the same from another kind of model, one that is no transformer


# Settings of stages.SafetyEvaluation, and what makes the judges that they name.
JUDGES = {"judge": Made.judge, "second_judge": Made.word_judge}


class Start(Enum):
    """Whether a stage needs a checkpoint to start from."""

    optional = "optional"  # weights of its own, or none: then it needs a tokenizer
    weights = "weights"  # a checkpoint, or those of model=pretrained
    checkpoint = "checkpoint"


# Patterns of final metrics that several stages have.
_TRAINING = ("train/*", "schedule/lr", "data/epoch", "perf/*_per_s", "perf/step_seconds", "perf/memory_gb", "perf/mfu")
_DOCUMENTS = ("eval/loss", "eval/ppl", "eval/bits_per_byte", "eval/tokens")
_ANSWERS = ("eval/instruction*", "eval/rouge_l*", "eval/exact_match*", "eval/open_rows", "eval/reply_ended")
_HONESTY = (
    "eval/over_refusal_benign*",
    "eval/over_refusal_instructions*",
    "eval/refusal_contrast*",
    "eval/distinct_2",
    "eval/longest_run*",
)
_REPLIES = (*_ANSWERS, "eval/response_*", "eval/token_*", *_HONESTY)
# What stands beside a safe rate, at the end of the headlines.
_BESIDE = (
    "eval/over_refusal_benign",
    "eval/over_refusal_instructions",
    "eval/refusal_contrast",
    "eval/rouge_l",
    "eval/response_ppl",
    "eval/distinct_2",
    "eval/longest_run",
)
_REQUESTS = (
    "eval/safe_rate*",
    "eval/judge_agreement*",
    "eval/empty_replies*",
    "eval/over_refusal*",
    "eval/gold_reward",
)
_SCORES = ("eval/loss", "eval/reward_*", "eval/safety_accuracy*")
_PAIRS = ("eval/loss", "eval/reward_accuracy*", "eval/reward_margin", "eval/chosen_*", "eval/rejected_*")
_CHECKED = ("eval/accuracy*", "eval/pass_at_*")
_BY_KIND = ("eval/cost", "eval/helpfulness", "eval/harmful_*", "eval/benign_*")
_ROLLOUTS = ("rl/*", "eval/reward", "eval/kl", "eval/objective", "perf/*_seconds", *_CHECKED, *_BY_KIND)
_LOSS: Panel = (("train/loss", "eval/loss"),)
_SAFETY: Panel = (("eval/safe_rate", "eval/over_refusal"), ("eval/objective",))
_REWARD: Panel = (("rl/reward", "rl/gold_reward"),)
_KL: Panel = (("rl/kl",), ("rl/response_length",))
# What policies that learnt from rewards are judged by.
_POLICY = (
    "eval/safe_rate",
    "eval/over_refusal",
    "eval/instruction_accuracy",
    "eval/accuracy",
    "eval/pass_at_8",
    "eval/kl",
    "eval/gold_reward",
    "eval/objective",
    "eval/reward",
    "rl/reward",
    "rl/kl",
    *_BESIDE,
)


@dataclass(frozen=True)
class StageSpec:
    """What the rest of the house knows of a stage."""

    name: str
    settings: type  # dataclass of its part of the configuration
    run: str  # MODULE:FUNCTION, called with the configuration and the context of the run
    objective: str  # metric that a sweep looks at where nothing else is said
    headlines: tuple[str, ...]  # metrics it is judged by, the most telling first; what there is depends on its data
    metrics: tuple[str, ...]  # patterns of all its final metrics
    loss: tuple[str, str] = ("loss", "nats per token")  # what its loss is called, and the unit

    reads: Rows | None = None  # None: whatever the data have
    part: Literal["reward", "judge"] | None = None  # preferences: whose share of the training prompts it learns from
    makes: Made | None = None
    called: str = ""  # what it makes, in a sentence
    title: str = ""  # above its curves
    label: str = ""  # of its policy above a column of replies, where that is not the title
    panels: tuple[Panel, ...] = ()  # its curves in the picture of a recipe

    start: Start = Start.optional
    starts_from: tuple[str, ...] | Made = ()  # stages that init_from=auto looks for, the most wanted first
    rewards: bool = False  # maximises the parts of config.reward
    checks: bool = False  # its reward checks the answers that rows bring, where no other is named
    adapters: bool = False  # peft= makes sense

    sequences: int = 1  # plan: in a forward pass for each of stage.micro_batch_size
    value: bool = False  # plan: learns a value function too; stage.value says where it lives
    reference: bool = False  # plan: is compared with the policy it starts from; without rollouts on given tokens, once

    next: str | None = None  # the stage that goes on from it; None: runs of it are compared
    next_data: bool = True  # whether that one learns from, or is measured on, the same data

    @property
    def policy(self) -> str:
        """What its policy is called beside others."""
        return self.label or self.title

    @property
    def trains(self) -> bool:
        """Whether it trains a model."""
        return issubclass(self.settings, TrainLoop)

    @property
    def has_model(self) -> bool:
        return self.trains or self.start is Start.checkpoint

    @property
    def needs_tokenizer(self) -> bool:
        """Whether it needs a tokenizer where no checkpoint brings one."""
        return self.start is Start.optional and self.makes not in (Made.tokenizer, Made.corpus, Made.word_judge)

    @property
    def scores(self) -> bool:
        """Whether its model has a scalar head in place of one over the vocabulary."""
        return self.makes in (Made.reward, Made.judge)

    @property
    def answers(self) -> bool:
        """Whether held-out conversations are answered when it is measured."""
        return issubclass(self.settings, ReplyEvaluation)

    @property
    def rollouts(self) -> bool:
        """Whether a step is a rollout and the updates it feeds."""
        return issubclass(self.settings, RolloutStage)

    @property
    def origins(self) -> tuple[str, ...]:
        """The stages whose checkpoints init_from=auto takes, the most wanted first."""
        return tuple(reversed(makers(self.starts_from))) if isinstance(self.starts_from, Made) else self.starts_from

    @property
    def builds_on(self) -> set[str]:
        """Every stage whose checkpoint it may be given."""
        judged = issubclass(self.settings, SafetyEvaluation)
        documents = self.reads == "documents" and self.makes is not Made.corpus
        wanted = {Made.corpus: documents, Made.tokenizer: self.needs_tokenizer}
        wanted |= {Made.reward: self.rewards, **dict.fromkeys(JUDGES.values(), judged)}
        made = [made for made, wants in wanted.items() if wants]
        made += [self.starts_from] if isinstance(self.starts_from, Made) else []
        named = () if isinstance(self.starts_from, Made) else self.starts_from
        return {*named, *(spec.name for spec in SPECS.values() if spec.makes in made)} - {self.name}


SPECS: dict[str, StageSpec] = {
    spec.name: spec
    for spec in (
        StageSpec(
            name="corpus",
            settings=CorpusStage,
            run="tinychat.stages.corpus:run",
            reads="documents",
            makes=Made.corpus,
            called="a corpus",
            objective="data/documents",
            headlines=("data/documents", "data/kept", "data/bytes", "data/tokens"),
            metrics=("data/tokens", "data/documents", "data/bytes", "data/kept", "perf/text_mb_per_s"),
            next="tokenizer",
            next_data=False,
        ),
        StageSpec(
            name="tokenizer",
            settings=TokenizerStage,
            run="tinychat.stages.tokenizer:run",
            reads="documents",
            makes=Made.tokenizer,
            called="a tokenizer",
            objective="tokenizer/bytes_per_token",
            headlines=(
                "tokenizer/bytes_per_token",
                "tokenizer/tokens_per_word",
                "tokenizer/vocabulary_used",
                "tokenizer/documents_exact",
            ),
            metrics=("tokenizer/*",),
            next="pretrain",
        ),
        StageSpec(
            name="pretrain",
            settings=PretrainStage,
            run="tinychat.stages.pretrain:run",
            reads="documents",
            makes=Made.language,
            called="a pretrained model",
            title="pretraining",
            label="pretrained",
            panels=(_LOSS,),
            starts_from=("pretrain",),
            objective="eval/loss",
            headlines=("eval/ppl", "eval/bits_per_byte", "data/tokens", "perf/tokens_per_s"),
            metrics=(*_TRAINING, *_DOCUMENTS, "data/tokens"),
            next="sft",
            next_data=False,
        ),
        StageSpec(
            name="sft",
            settings=SftStage,
            run="tinychat.stages.sft:run",
            reads="conversations",
            makes=Made.language,
            called="a fine-tuned policy",
            title="SFT",
            panels=((("eval/instruction_accuracy",), ("eval/response_loss",)),),
            start=Start.weights,
            starts_from=("pretrain",),
            adapters=True,
            objective="eval/response_loss",
            headlines=(
                "eval/instruction_accuracy",
                "eval/rouge_l",
                "eval/response_ppl",
                "eval/token_accuracy",
                "eval/reply_ended",
                *(name for name in _BESIDE if name not in ("eval/rouge_l", "eval/response_ppl")),
            ),
            metrics=(*_TRAINING, *_REPLIES, "data/trained_tokens", "eval/teacher_loss", "eval/gap_closed"),
            next="reward",
            next_data=False,
        ),
        StageSpec(
            name="reward",
            settings=RewardStage,
            run="tinychat.stages.reward:run",
            reads="preferences",
            part="reward",
            makes=Made.reward,
            called="a reward model",
            title="reward model",
            panels=(_LOSS,),
            start=Start.weights,
            starts_from=("sft", "pretrain"),
            adapters=True,
            sequences=2,
            objective="eval/loss",
            headlines=("eval/reward_accuracy", "eval/safety_accuracy", "eval/reward_ece", "eval/loss"),
            metrics=(*_TRAINING, *_SCORES),
            loss=("loss", "nats per pair"),
            next="ppo",
        ),
        StageSpec(
            name="judge",
            settings=JudgeStage,
            run="tinychat.stages.reward:run",
            reads="preferences",
            part="judge",
            makes=Made.judge,
            called="a judge",
            title="judge",
            start=Start.weights,
            starts_from=("sft", "pretrain"),
            adapters=True,
            sequences=2,
            objective="eval/loss",
            headlines=("eval/safety_accuracy", "eval/reward_accuracy", "eval/reward_ece", "eval/loss"),
            metrics=(*_TRAINING, *_SCORES),
            loss=("loss", "nats per reply"),
            next="ppo",
        ),
        StageSpec(
            name="word_judge",
            settings=WordJudgeStage,
            run="tinychat.stages.word_judge:run",
            reads="preferences",
            part="judge",
            makes=Made.word_judge,
            called="a second judge",
            title="second judge",
            objective="eval/loss",
            headlines=("eval/safety_accuracy", "eval/reward_accuracy", "eval/reward_ece", "eval/loss"),
            metrics=_SCORES,
            loss=("loss", "nats per reply"),
            next="ppo",
        ),
        StageSpec(
            name="dpo",
            settings=DpoStage,
            run="tinychat.stages.dpo:run",
            reads="preferences",
            part="reward",
            makes=Made.language,
            called="a policy trained on preferences",
            title="DPO",
            panels=(
                (("eval/safe_rate", "eval/over_refusal"), ("eval/reward_accuracy",)),
                (("train/chosen_logprobs", "train/rejected_logprobs"),),
            ),
            start=Start.checkpoint,
            starts_from=("sft",),
            adapters=True,
            sequences=2,
            reference=True,
            objective="eval/reward_accuracy",
            headlines=(
                "eval/safe_rate",
                "eval/over_refusal",
                "eval/instruction_accuracy",
                "eval/reward_accuracy",
                "eval/kl",
                "eval/gold_reward",
                "eval/loss",
                *_BESIDE,
            ),
            metrics=(*_TRAINING, *_REPLIES, *_REQUESTS, *_PAIRS, "eval/kl", "eval/response_length"),
            loss=("loss", "per pair"),
            next="eval",
        ),
        StageSpec(
            name="ppo",
            settings=PpoStage,
            run="tinychat.stages.ppo:run",
            reads="prompts",
            makes=Made.language,
            called="a policy trained by reinforcement",
            title="PPO",
            panels=(_SAFETY, _REWARD, _KL),
            start=Start.checkpoint,
            starts_from=("sft",),
            rewards=True,
            adapters=True,
            value=True,
            reference=True,
            objective="eval/objective",
            headlines=_POLICY,
            metrics=(*_TRAINING, *_REPLIES, *_REQUESTS, *_ROLLOUTS),
            loss=("loss of policy and value", "per token"),
            next="eval",
        ),
        StageSpec(
            name="grpo",
            settings=GrpoStage,
            run="tinychat.stages.grpo:run",
            reads="prompts",
            makes=Made.language,
            called="a policy trained by reinforcement in groups",
            title="GRPO",
            panels=(_SAFETY, _REWARD, _KL),
            start=Start.checkpoint,
            starts_from=("sft",),
            rewards=True,
            adapters=True,
            reference=True,
            objective="eval/objective",
            headlines=_POLICY,
            metrics=(*_TRAINING, *_REPLIES, *_REQUESTS, *_ROLLOUTS),
            loss=("loss of the policy", ""),
            next="eval",
        ),
        StageSpec(
            name="rlvr",
            settings=RlvrStage,
            run="tinychat.stages.grpo:run",
            reads="prompts",
            makes=Made.language,
            called="a policy trained by verified answers",
            title="RLVR",
            panels=((("eval/accuracy",), ("eval/instruction_accuracy",), ("eval/reward",)), (("rl/reward",),), _KL),
            start=Start.checkpoint,
            starts_from=("sft",),
            rewards=True,
            checks=True,
            adapters=True,
            reference=True,
            objective="eval/objective",
            headlines=(
                "eval/accuracy",
                "eval/pass_at_8",
                "eval/instruction_accuracy",
                "eval/reward",
                "eval/kl",
                "eval/objective",
                "rl/reward",
                "rl/kl",
                *_BESIDE,
            ),
            metrics=(*_TRAINING, *_REPLIES, *_REQUESTS, *_ROLLOUTS),
            loss=("loss of the policy", ""),
            next="eval",
        ),
        StageSpec(
            name="eval",
            settings=EvalStage,
            run="tinychat.stages.eval:run",
            start=Start.checkpoint,
            starts_from=Made.language,
            objective="eval/loss",
            headlines=(
                "eval/ppl",
                "eval/instruction_accuracy",
                "eval/accuracy",
                "eval/pass_at_8",
                "eval/safe_rate",
                "eval/over_refusal",
                *("eval/response_ppl", *(name for name in _BESIDE if name != "eval/response_ppl")),
            ),
            metrics=(*_DOCUMENTS, *_REPLIES, *_REQUESTS, *_CHECKED),
        ),
    )
}


def spec_of(config: Config | Any) -> StageSpec:
    """The description of a job's stage."""
    return spec_named(config.stage.name)


def spec_named(name: str) -> StageSpec:
    """Raises UserError for a name that is no stage's."""
    if name not in SPECS:
        raise UserError(f"stage.name={name}: no such stage; there are {', '.join(SPECS)}")
    return SPECS[name]


def makers(*made: Made) -> tuple[str, ...]:
    """The stages whose checkpoints are of these kinds, in the order of a recipe."""
    return tuple(name for name in recipe_order() if SPECS[name].makes in made)


def recipe_order() -> tuple[str, ...]:
    """The stages that a recipe may have, each after those that it builds on. One that makes no checkpoint and measures
    none has no place in it."""
    able = [spec for spec in SPECS.values() if spec.makes or spec.has_model]
    return tuple(spec.name for spec in sorted(able, key=_depth))


def _depth(spec: StageSpec, above: frozenset[str] = frozenset()) -> int:
    """Stages in the longest chain that it builds on."""
    below = (SPECS[name] for name in spec.builds_on - above)
    return max((1 + _depth(other, above | {spec.name}) for other in below), default=0)
