"""stage=reward and stage=judge: a backbone with a scalar head learns which replies are better, or which are safe."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tinychat.config.schema import Config
from tinychat.config.stages import ReplyLabel, RewardLoss, RewardStage, ScoreRange
from tinychat.data.preferences.tokens import UNKNOWN, PreferenceBatches, PreferenceCache, eval_pairs
from tinychat.engine import Batch, Engine, build_engine
from tinychat.errors import UserError
from tinychat.evaluation.held_out import (
    PairScores,
    accuracy_table,
    pair_calibration,
    preference_metrics,
    reply_calibration,
    safety_table,
    score_pairs,
)
from tinychat.evaluation.statistics import Bin, draw_calibration
from tinychat.models.adapters import trainable_parameters
from tinychat.models.build import count_parameters, describe, training_flops_per_token
from tinychat.models.reward import raw_scores, set_normalisation, settings, start_reward_model
from tinychat.rl.preference_losses import bradley_terry_loss, pointwise_loss
from tinychat.runs.folders import PICTURES
from tinychat.runtime.world import seed_rank
from tinychat.stages import Context, StageResult
from tinychat.stages.chats import get_chat_tokenizer
from tinychat.stages.common import (
    Speedometer,
    context_length,
    describe_engine,
    log,
    split_batch,
    write_lineage,
    write_table,
)
from tinychat.stages.loop import TrainingLoop
from tinychat.stages.pairs import get_pairs, pair_facts
from tinychat.text.tokenizer import vocabulary_size

NORMALISED_ON = 400  # training pairs whose replies get mean 0 and standard deviation 1


def run(config: Config, context: Context) -> StageResult:
    stage, world = config.stage, context.world
    tokenizer = get_chat_tokenizer(config, context)
    model = get_reward_start(config, context, tokenizer)
    length = context_length(stage.context_length, model)
    train = get_pairs("train", tokenizer, length, config, context)
    unlabelled = check_labels(train, stage, config.data.name)
    held_out = HeldOutPairs(tokenizer, length, config, context)
    check_labels(held_out.pairs, stage, config.data.name)
    batches = PreferenceBatches(train, config.seed)
    parameters, flops = count_parameters(model), training_flops_per_token(model, length)
    engine = build_engine(model, config.optim, config.ds, stage, config.precision, world)
    seed_rank(config.seed, world.rank)
    origin = write_lineage(config, context, {"train": pair_facts(train), "validation": pair_facts(held_out.pairs)})

    speed = Speedometer(flops, engine.dtype, world)
    with TrainingLoop(config, context, engine, tokenizer, origin, speed) as loop:
        for step in loop:
            rows = batches.batch(step - 1, stage.batch_size, world.rank, world.size)
            # What each micro-batch and rank adds its share of the mean over; a step may lack labels altogether.
            total = max(1.0, world.sum(float(terms_of(stage, rows["safe"].view(-1, 2))))[0])
            done = loop.train(
                split_batch(rows, 2 * stage.micro_batch_size, world.device),
                lambda model, batch: batch_loss(model, batch, stage) / total,  # noqa: B023
                batches.tokens(step - 1, stage.batch_size),
                2 * stage.batch_size,
            )
            loop.log(done, {"data/epoch": batches.epoch_of(step, stage.batch_size)})
            if loop.evaluation_due:
                loop.evaluate(lambda most: held_out.measure(engine, most), during=stage.eval_pairs)
            # Every checkpoint may become the one that scores.
            loop.save_if_due(prepare=lambda: fit_normalisation(engine, train, config, context))

    if not loop.unfinished:
        held_out.write()
    facts = {
        "parameters": parameters.total,
        "parameters trained": parameters.trained,
        "context length": length,
        "training pairs": len(train),
        "training replies without a label": unlabelled,
        "scores": ", ".join(f"{key} {value}" for key, value in settings(engine.model.config).items()),
        **describe_engine(engine),
    }
    return loop.result(facts, (math.log(2), "a coin"))


def get_reward_start(config: Config, context: Context, tokenizer: Any) -> Any:
    """The model to train: see start_reward_model. Raises UserError as that does."""
    stage = config.stage
    start = context.parents["init_from"] or config.model.path  # the latter: model=pretrained
    if start is None:
        raise UserError(f"init_from=null: stage={stage.name} starts from a checkpoint; give init_from=FOLDER or auto")
    model = start_reward_model(
        start,
        config.peft,
        stage.pooling,
        stage.dropout,
        stage.train_last_layers,
        vocabulary_size(tokenizer),
        context.run_dir / "merged_base",
        stage.head_layer,
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    if gives_probabilities(stage):
        set_normalisation(model, 0.0, 1.0, stage.score_range)  # the logistic function is the probability as it is
    trained, total = trainable_parameters(model)
    log.info("model: %s; %s of them are trained", describe(model), f"{trained:,}" if trained < total else "all")
    return model


def check_labels(pairs: PreferenceCache, stage: RewardStage, name: str) -> int:
    """How many replies have no label, which do not count. Raises UserError where none has one."""
    known = labels_of(stage, torch.from_numpy(pairs.labels[:, 0].astype("int64")).view(-1, 2))[1]
    missing = int((~known).sum())
    if missing == known.numel():
        raise UserError(
            f"stage.label=safe: no reply of data={name} has a safety label; use data=pku_saferlhf or tinyworld, or "
            "learn from pairs alone: stage=reward stage.loss=bradley_terry"
        )
    if missing:
        log.warning("%d of %d replies have no safety label and do not count", missing, known.numel())
    return missing


def gives_probabilities(stage: RewardStage) -> bool:
    """Whether the logistic function of the head's output is a probability as it is, with nothing to be measured."""
    return stage.score_range is ScoreRange.unit and stage.loss is not RewardLoss.bradley_terry


def labels_of(stage: RewardStage, safe: Tensor) -> tuple[Tensor, Tensor]:
    """What has a label in the loss, replies (pointwise, both: (N, 2)) or pairs (bradley_terry: (N,)), and the labels.

    safe: (N, 2) int, UNKNOWN where there is no label. Returns labels in {0, 1} and a mask, of one shape.
    """
    if stage.loss is RewardLoss.bradley_terry:
        return torch.ones_like(safe[:, 0]), torch.ones_like(safe[:, 0], dtype=torch.bool)
    if stage.label is ReplyLabel.chosen:
        return torch.tensor([1, 0], device=safe.device).expand_as(safe), torch.ones_like(safe, dtype=torch.bool)
    return safe, safe != UNKNOWN


def terms_of(stage: RewardStage, safe: Tensor) -> int:
    """How many losses_of there are."""
    return len(safe) if stage.loss is RewardLoss.both else int(labels_of(stage, safe)[1].sum())


def losses_of(stage: RewardStage, scores: Tensor, safe: Tensor) -> Tensor:
    """The losses of what counts, (n,): scores (N, 2) of chosen and rejected replies, safe (N, 2). Under loss=both of
    pairs: the pair's own and the mean over its labelled replies."""
    labels, known = labels_of(stage, safe)
    if stage.loss is RewardLoss.pointwise:
        return pointwise_loss(scores[known], labels[known].float())[0]
    pairs = bradley_terry_loss(scores[:, 0], scores[:, 1], stage.margin, stage.centering)[0]
    if stage.loss is RewardLoss.bradley_terry:
        return pairs
    replies = pointwise_loss(scores.reshape(-1), labels.clamp(min=0).reshape(-1).float())[0].view_as(scores) * known
    return pairs + replies.sum(1) / known.sum(1).clamp(min=1)


def batch_loss(model: Any, batch: Batch, stage: RewardStage) -> Tensor:
    """Sum of the losses of a micro-batch of whole pairs."""
    scores = raw_scores(model, batch["input_ids"], batch["attention_mask"]).view(-1, 2)
    # With no label in it, a loss of 0 that still has a gradient: every rank has to take part.
    return losses_of(stage, scores, batch["safe"].view(-1, 2)).sum() + 0.0 * scores.sum()


def fit_normalisation(engine: Engine, train: PreferenceCache, config: Config, context: Context) -> None:
    """Set what makes scores mean 0 and standard deviation 1 on replies of the training data. Every rank calls it."""
    stage, world = config.stage, context.world
    if stage.score_range is ScoreRange.raw or gives_probabilities(stage):
        set_normalisation(engine.model, 0.0, 1.0, stage.score_range)
        return
    with engine.inference() as model:
        batches = eval_pairs(train, stage.eval_batch_size, world.rank, world.size, NORMALISED_ON)
        found = score_pairs(model, batches, world).scores
    set_normalisation(engine.model, found.mean(), found.std() or 1.0, stage.score_range)
    log.info("scores of %d training replies: mean %.4g, standard deviation %.4g", found.size, found.mean(), found.std())


class HeldOutPairs:
    """Held-out pairs and how well a reward model tells them apart."""

    def __init__(self, tokenizer: Any, length: int, config: Config, context: Context):
        self.stage, self.context = config.stage, context
        self.pairs = get_pairs("validation", tokenizer, length, config, context)
        self.found: PairScores | None = None  # of the latest measurement
        self.bins: list[Bin] = []

    def measure(self, engine: Engine, most: int | None) -> dict[str, float]:
        """eval/loss and preference_metrics over `most` pairs (None: all), and their calibration."""
        stage, world = self.stage, self.context.world
        batches = eval_pairs(self.pairs, stage.eval_batch_size, world.rank, world.size, most)
        with engine.inference() as model:
            self.found = score_pairs(model, batches, world)
        scores, safe = torch.from_numpy(self.found.scores), torch.from_numpy(self.found.safe)
        labels, known = labels_of(stage, safe)
        metrics = preference_metrics(self.found)
        if stage.loss is RewardLoss.bradley_terry:
            self.bins, error = pair_calibration(self.found)
        elif bool(known.any()):
            self.bins, error = reply_calibration(scores[known].numpy(), labels[known].numpy())
        else:  # the few pairs measured in between may lack labels
            return metrics
        return {"eval/loss": float(losses_of(stage, scores, safe).mean()), **metrics, "eval/reward_ece": error}

    def write(self) -> None:
        """Tables of the latest measurement, and the picture of its calibration. Rank 0 alone writes."""
        if self.found is None or self.context.tracker is None:
            return
        if rows := accuracy_table(self.found, self.pairs.categories):
            columns = ["category", "pairs", "right", "accuracy", "95 % from", "to", "margin"]
            write_table(self.context, "categories", "Accuracy by category", columns, rows)
        if rows := safety_table(self.found):
            columns = ["replies", "number", "told right", "accuracy", "95 % from", "to"]
            write_table(self.context, "safety_labels", "Safe and unsafe replies told apart", columns, rows)
        if not self.bins:
            return
        columns = ["predicted from", "to", "predicted", "observed", "number"]
        rows = [[one.low, one.high, one.predicted, one.observed, one.count] for one in self.bins]
        write_table(self.context, "calibration", "Calibration on held-out replies", columns, rows)
        of_pairs = self.stage.loss is RewardLoss.bradley_terry
        title = "Is the higher score the chosen reply?" if of_pairs else f"Is the reply {self.stage.label.value}?"
        picture = self.context.run_dir / PICTURES / "calibration.png"
        picture.parent.mkdir(exist_ok=True)
        if draw_calibration(self.bins, title, picture):
            self.context.tracker.log_artifact(picture)
