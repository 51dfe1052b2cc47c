"""stage=reward and stage=judge: a backbone with a scalar head learns which replies are better, or which are safe."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinychat.config.schema import Config
from tinychat.config.stages import ReplyLabel, RewardLoss, RewardStage, ScoreRange
from tinychat.data.batching import rows_at_once
from tinychat.data.files.caches import cached, mapped, synced_file
from tinychat.data.preferences.tokens import (
    LABELS,
    UNKNOWN,
    PreferenceBatches,
    PreferenceCache,
    eval_pairs,
    replies_by_length,
)
from tinychat.engine import Batch, Engine, build_engine, resolve_precision
from tinychat.errors import UserError
from tinychat.evaluation import harm_rules
from tinychat.evaluation.held_out import (
    ACCURACY_COLUMNS,
    PairScores,
    accuracy_table,
    pair_calibration,
    preference_metrics,
    reply_calibration,
    safety_table,
    score_pairs,
    with_categories,
)
from tinychat.evaluation.statistics import Bin, draw_calibration
from tinychat.models.adapters import trainable_parameters
from tinychat.models.build import count_parameters, describe, training_flops_per_token
from tinychat.models.reward import head_inputs, head_scores, raw_scores, set_normalisation, settings, start_reward_model
from tinychat.rl.preference_losses import bradley_terry_loss, pointwise_loss
from tinychat.runs.folders import PICTURES
from tinychat.runtime.heartbeat import Heartbeat
from tinychat.runtime.world import seed_rank
from tinychat.stages import Context, StageResult
from tinychat.stages.chats import get_chat_tokenizer
from tinychat.stages.common import (
    Speedometer,
    context_length,
    describe_engine,
    log,
    split_batch,
    split_padded,
    write_lineage,
    write_table,
)
from tinychat.stages.loop import TrainingLoop
from tinychat.stages.pairs import get_pairs, pair_facts, weights_key
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
    backbone = FrozenBackbone.of(model, config, context)
    engine = build_engine(model, config.optim, config.ds, stage, config.precision, world)
    seed_rank(config.seed, world.rank)
    origin = write_lineage(config, context, {"train": pair_facts(train), "validation": pair_facts(held_out.pairs)})

    states = None if backbone is None else backbone.states(engine, train)
    held_out.states = None if backbone is None else backbone.states(engine, held_out.pairs)
    speed = Speedometer(flops if states is None else 0, engine.dtype, world)
    with TrainingLoop(config, context, engine, tokenizer, origin, speed) as loop:
        for step in loop:
            rows = batches.batch(step - 1, stage.batch_size, world.rank, world.size)
            if states is None:
                parts = split_padded(rows, rows["last"] + 1, 2 * stage.micro_batch_size, world.device, together=2)
            else:
                rows = {"states": states[rows["pair"][::2]].flatten(0, 1), "safe": rows["safe"]}
                parts = split_batch(rows, 2 * stage.micro_batch_size, world.device)
            # What each micro-batch and rank adds its share of the mean over; a step may lack labels altogether.
            total = max(1.0, world.sum(float(terms_of(stage, rows["safe"].view(-1, 2))))[0])
            done = loop.train(
                parts,
                lambda model, batch: batch_loss(model, batch, stage) / total,  # noqa: B023
                batches.tokens(step - 1, stage.batch_size),
                2 * stage.batch_size,
            )
            loop.log(done, {"data/epoch": batches.epoch_of(step, stage.batch_size)})
            if loop.evaluation_due:
                loop.evaluate(lambda most: held_out.measure(engine, most), during=stage.eval_pairs)
            # Every checkpoint may become the one that scores.
            loop.save_if_due(prepare=lambda: fit_normalisation(engine, train, states, config, context))

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
    terms = 2 if stage.loss is RewardLoss.both else 1  # a pair's loss and that of its replies
    return loop.result(facts, (terms * math.log(2), "a coin"))


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
        stage.dropout if stage.train_last_layers != 0 else 0.0,  # nothing in a frozen backbone is to be random
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
    if "states" in batch:
        scores = head_scores(model, batch["states"]).view(-1, 2)
    else:
        scores = raw_scores(model, batch["input_ids"], batch["attention_mask"]).view(-1, 2)
    # With no label in it, a loss of 0 that still has a gradient: every rank has to take part.
    return losses_of(stage, scores, batch["safe"].view(-1, 2)).sum() + 0.0 * scores.sum()


@dataclass(frozen=True)
class FrozenBackbone:
    """A backbone of which nothing is trained (stage.train_last_layers=0): what the head reads of a pair is computed
    once and kept, and the head learns from that, an epoch in a moment."""

    identity: dict[str, Any]  # all that its states depend on but the pairs
    stage: RewardStage
    cache_dir: Path

    @classmethod
    def of(cls, model: Any, config: Config, context: Context) -> FrozenBackbone | None:
        """None where something of it is trained, or where the work is shared among ranks or wrapped by DeepSpeed: there
        the backbone is asked at every step."""
        if config.stage.train_last_layers != 0 or context.world.size > 1 or config.ds.enabled:
            return None
        identity = {
            "version": 1,
            "weights": weights_key(model, frozen=True),
            "arithmetic": str(resolve_precision(config.precision, context.world.device)),
            "device": context.world.device.type,
            "pooling": settings(model.config)["pooling"],
        }
        return cls(identity, config.stage, Path(config.paths.cache))

    def states(self, engine: Engine, pairs: PreferenceCache) -> Tensor:
        """(N, 2, D) fp32: what the head reads of each pair's replies. From the cache, or computed now and kept."""
        identity = self.identity | {"pairs": pairs.path.name}
        name = pairs.path.name.rpartition("-")[0]
        width = engine.model.score.in_features

        def load(folder: Path, _meta: dict[str, Any]) -> np.ndarray:
            return np.array(mapped(folder / "states.bin", "<f4", len(pairs) * 2 * width))

        def write(folder: Path) -> dict[str, Any]:
            with synced_file(folder / "states.bin") as file:
                file.write(self._computed(engine, pairs, width).numpy().astype("<f4").tobytes())
            return {}

        found = cached(self.cache_dir / "states", name, identity, load, write)
        return torch.from_numpy(found).view(len(pairs), 2, width)

    @torch.no_grad()
    def _computed(self, engine: Engine, pairs: PreferenceCache, width: int) -> Tensor:
        """Reply by reply, those of like length together."""
        device, total = engine.world.device, 2 * len(pairs)
        most, wide = 2 * self.stage.eval_batch_size, engine.model.config.hidden_size
        found, done, heart = torch.empty(total, width), 0, Heartbeat("frozen backbone", total, "replies")
        with engine.inference() as model:
            for rows, batch in replies_by_length(pairs, lambda length: rows_at_once(length, most, wide, device.type)):
                states = head_inputs(model, batch["input_ids"].to(device), batch["attention_mask"].to(device))
                found[torch.from_numpy(rows)] = states.cpu()
                done += len(rows)
                heart.at(done)
        log.info("frozen backbone: what the head reads of %d replies, in %.0f s", done, heart.seconds)
        return found.view(len(pairs), 2, width)


def fit_normalisation(
    engine: Engine, train: PreferenceCache, states: Tensor | None, config: Config, context: Context
) -> None:
    """Set what makes scores mean 0 and standard deviation 1 on replies of the training data. Every rank calls it.
    states: of a frozen backbone."""
    stage, world = config.stage, context.world
    if stage.score_range is ScoreRange.raw or gives_probabilities(stage):
        set_normalisation(engine.model, 0.0, 1.0, stage.score_range)
        return
    with engine.inference() as model:
        if states is not None:
            found = scores_of_states(model, states)
        else:
            batches = eval_pairs(train, stage.eval_batch_size, world.rank, world.size, NORMALISED_ON)
            found = score_pairs(model, batches, world).scores
    set_normalisation(engine.model, found.mean(), found.std() or 1.0, stage.score_range)
    log.info("scores of %d training replies: mean %.4g, standard deviation %.4g", found.size, found.mean(), found.std())


@torch.no_grad()
def scores_of_states(model: Any, states: Tensor) -> np.ndarray:
    """What score_pairs gives, (N, 2) float64, of the states (N, 2, D) of a frozen backbone."""
    device = model.score.weight.device
    return head_scores(model, states.flatten(0, 1).to(device)).view(-1, 2).double().cpu().numpy()


class HeldOutPairs:
    """Held-out pairs and how well a reward model tells them apart."""

    def __init__(self, tokenizer: Any, length: int, config: Config, context: Context):
        self.stage, self.context, self.tokenizer = config.stage, context, tokenizer
        self.pairs = get_pairs("validation", tokenizer, length, config, context)
        self.states: Tensor | None = None  # (N, 2, D) of a frozen backbone
        self.found: PairScores | None = None  # of the latest measurement
        self.bins: list[Bin] = []

    def measure(self, engine: Engine, most: int | None) -> dict[str, float]:
        """eval/loss and preference_metrics over `most` pairs (None: all; all those of a frozen backbone), and their
        calibration."""
        stage, world = self.stage, self.context.world
        batches = eval_pairs(self.pairs, stage.eval_batch_size, world.rank, world.size, most)
        with engine.inference() as model:
            if self.states is None:
                self.found = score_pairs(model, batches, world)
            else:  # of all: that takes no time
                labels: np.ndarray = self.pairs.labels.reshape(-1, 2, len(LABELS)).astype(np.int64)
                self.found = PairScores(scores_of_states(model, self.states), labels[..., 0], labels[:, 0, 1])
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
        """Tables of the latest measurement, of all pairs, and the picture of its calibration. Rank 0 alone writes."""
        if self.found is None or self.context.tracker is None:
            return
        write_pair_tables(self.found, self.pairs.categories, self._category, self.bins, self.stage.loss, self.context)

    def _category(self, pair: int) -> str:
        """Of a pair whose data name none, by the harm rules."""
        said = []
        for row in (2 * pair, 2 * pair + 1):
            ids, begin = self.pairs.all_ids[slice(*self.pairs.starts[row : row + 2])], self.pairs.prompt_lengths[row]
            said.append([self.tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:begin], ids[begin:])])
        return harm_rules.category(said[0][0], f"{said[0][1]}\n{said[1][1]}")


def write_pair_tables(
    found: PairScores,
    categories: Sequence[str],
    of_pair: Callable[[int], str],
    bins: Sequence[Bin],
    loss: RewardLoss,
    context: Context,
) -> None:
    """Accuracy by category and by label, and the calibration, for the report. categories, of_pair: as with_categories;
    bins: of the calibration, of pairs under loss=bradley_terry, else of replies."""
    named, names = with_categories(found, categories, of_pair)
    title = "Accuracy by category" if (found.category != UNKNOWN).all() else "Accuracy by category (by the harm rules)"
    write_table(context, "categories", title, ACCURACY_COLUMNS, accuracy_table(named, names))
    if rows := safety_table(found):
        columns = ["replies", "number", "told right", "accuracy", "95 % from", "to"]
        write_table(context, "safety_labels", "Safe and unsafe replies told apart", columns, rows)
    if not bins:
        return
    columns = ["predicted from", "to", "predicted", "observed", "number"]
    rows = [[one.low, one.high, one.predicted, one.observed, one.count] for one in bins]
    write_table(context, "calibration", "Calibration on held-out replies", columns, rows)
    of_pairs = loss is RewardLoss.bradley_terry
    picture = context.run_dir / PICTURES / "calibration.png"
    picture.parent.mkdir(exist_ok=True)
    title = "Is the higher score the chosen reply?" if of_pairs else "Is the reply of label 1?"
    if draw_calibration(list(bins), title, picture) and context.tracker is not None:
        context.tracker.log_artifact(picture)
