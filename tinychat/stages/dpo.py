"""stage=dpo: direct preference optimisation (Rafailov et al. 2023) and its relatives. The policy learns from pairs of
replies which one is better, with no reward model and no rollouts.

The reference is the policy it starts from. Its log-probabilities of both sides are computed once, before the first step
and by the policy itself, and kept in the cache: no second model is held.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinychat.config.schema import Config, OnBadRow
from tinychat.config.stages import DpoStage, PreferenceLoss
from tinychat.data.preferences.prompts import PromptBatches, prompt_source
from tinychat.data.preferences.tokens import UNKNOWN, PreferenceBatches, PreferenceCache, eval_pairs, usable_pairs
from tinychat.engine import Batch, Engine, build_engine
from tinychat.errors import UserError
from tinychat.evaluation.held_out import PairScores, accuracy_table
from tinychat.evaluation.replies import with_interval
from tinychat.evaluation.statistics import wilson
from tinychat.models.build import count_parameters, training_flops_per_token
from tinychat.models.generation.decode import DecodeOptions
from tinychat.models.vocabulary import Vocabulary, vocabulary
from tinychat.rl.losses import Sums
from tinychat.rl.preference_losses import gains, preference_loss
from tinychat.rl.rollout import measure, sample_replies, to_experience
from tinychat.rl.selfcheck import MEAN_TOLERANCE, TOLERANCE, check_tokens
from tinychat.runtime.world import seed_rank
from tinychat.stages import Context, StageResult
from tinychat.stages.chats import get_chat_tokenizer
from tinychat.stages.common import Speedometer, context_length, describe_engine, log, write_lineage, write_table
from tinychat.stages.loop import TrainingLoop
from tinychat.stages.pairs import ReferenceModel, get_pairs, pair_facts, side_logprobs, weights_key
from tinychat.stages.policy import SEED, Models, Reference, get_policy, spread
from tinychat.stages.requests import HeldOutReplies
from tinychat.text.chat_template import end_ids
from tinychat.text.tokenizer import vocabulary_size

# Of a step's pairs, as preference_loss sums them -> the metric.
REPORTED = {
    "correct": "reward_accuracy",
    "margin": "reward_margin",
    "chosen_reward": "chosen_reward",
    "rejected_reward": "rejected_reward",
    "chosen_logprobs": "chosen_logprobs",
    "rejected_logprobs": "rejected_logprobs",
}
FALL = 0.1  # of their first log-probability that both sides have lost when it is told


def run(config: Config, context: Context) -> StageResult:
    stage, world = config.stage, context.world
    tokenizer = get_chat_tokenizer(config, context)
    policy = get_policy(config, context, tokenizer, stage.dropout)
    words = vocabulary(tokenizer)
    context.check({"pad token": lambda: check_tokens(tokenizer, end_ids(tokenizer))})
    length = context_length(stage.context_length, policy)
    train = get_pairs("train", tokenizer, length, config, context)
    numbers = pairs_that_differ(train, config.data.name)
    batches = PreferenceBatches(train, config.seed, numbers)
    parameters, flops = count_parameters(policy), training_flops_per_token(policy, length)
    start = weights_key(policy) if stage.loss.has_reference else ""
    engine = build_engine(policy, config.optim, config.ds, stage, config.precision, world)
    seed_rank(config.seed, world.rank)
    reference = ReferenceModel(engine, words, start, stage.eval_batch_size) if stage.loss.has_reference else None
    held_out = HeldOutPairs(tokenizer, length, config, context, engine, words, reference)
    data = {"train": pair_facts(train), "validation": pair_facts(held_out.pairs), **held_out.replies.sets}
    origin = write_lineage(config, context, data)
    # Before a resumed run's weights are read: until then the policy is its own reference.
    cache = Path(config.paths.cache)
    references = None if reference is None else torch.from_numpy(reference.logprobs(train, numbers, cache))

    speed = Speedometer(flops, engine.dtype, world)
    with TrainingLoop(config, context, engine, tokenizer, origin, speed) as loop:
        check_same_start(loop, start, context)
        if loop.step == 0 and references is not None:
            first = batches.micro_batches(0, stage.batch_size, stage.micro_batch_size, world.rank, world.size)[0]
            context.check({"start": lambda: check_start(stage, engine, with_reference(first, references), words)})
        if loop.step == 0 and stage.eval_first:
            loop.evaluate(lambda most: held_out.measure(most, last=False, start=True), during=stage.eval_pairs)
            tell_fall(loop)
        for step in loop:
            sums: Sums = {}
            done = loop.train(
                [
                    {key: part.to(world.device) for key, part in with_reference(rows, references).items()}
                    for rows in batches.micro_batches(
                        step - 1, stage.batch_size, stage.micro_batch_size, world.rank, world.size
                    )
                ],
                # Each micro-batch and rank adds its share of the mean over the step's pairs.
                lambda model, batch: batch_loss(model, batch, stage, words, sums) / stage.batch_size,  # noqa: B023
                batches.tokens(step - 1, stage.batch_size),
                2 * stage.batch_size,
            )
            loop.log(done, step_means(sums, engine) | {"data/epoch": batches.epoch_of(step, stage.batch_size)})
            if loop.evaluation_due:
                loop.evaluate(
                    lambda most: held_out.measure(most, last=loop.last),
                    during=stage.eval_pairs,
                    score=held_out.measure_pairs,
                )
                context.give_up(tell_fall(loop))
            loop.save_if_due()

    if not loop.unfinished:
        held_out.write_tables()
    facts = {
        "policy from": context.parents["init_from"],
        "loss of pairs": stage.loss.value,
        "parameters": parameters.total,
        "parameters trained": parameters.trained,
        "context length": length,
        "training pairs": len(numbers),
        "training pairs left out": len(train) - len(numbers),
        "alarms": "; ".join(loop.state.get("told", [])) or "none",
        **describe_engine(engine),
    }
    return loop.result(facts, (0.5, "a coin"))


def pairs_that_differ(pairs: PreferenceCache, name: str) -> np.ndarray:
    """The numbers of those to learn from or measure on; the others are told. Raises UserError where none is left."""
    found = usable_pairs(pairs)
    if not len(found.pairs):
        raise UserError(f"data={name}: no pair says which reply is better: {found.left_out()}")
    if said := found.left_out():
        log.warning("%s: pairs left out: %s", pairs.path.name.rpartition("-")[0], said)
    return found.pairs


def with_reference(rows: Batch, references: Tensor | None) -> Batch:
    """What the loss reads of a micro-batch; references: (pairs of the cache, 2)."""
    kept = {key: rows[key] for key in ("input_ids", "response_mask")}
    return kept if references is None else kept | {"reference": references[rows["pair"][::2]]}


def losses_of(stage: DpoStage, logprobs: Tensor, lengths: Tensor, references: Tensor | None) -> tuple[Tensor, Sums]:
    """preference_loss of (N, 2) log-probabilities and lengths, as the stage asks."""
    return preference_loss(
        stage.loss.value,
        logprobs,
        lengths,
        references,
        stage.beta,
        stage.label_smoothing,
        stage.rpo_weight,
        stage.simpo_margin,
        stage.length_normalisation,
    )


def batch_loss(model: Any, batch: Batch, stage: DpoStage, words: Vocabulary, sums: Sums) -> Tensor:
    """Sum of the losses of a micro-batch of whole pairs; what there is to report is added to `sums`."""
    losses, found = losses_of(stage, *side_logprobs(model, batch, words), batch.get("reference"))
    for name, value in found.items():
        sums[name] = sums.get(name, torch.zeros_like(value)) + value
    return losses.sum()


def step_means(sums: Sums, engine: Engine) -> dict[str, float]:
    """Over the step's pairs of all ranks."""
    names = sorted(sums)
    found = dict(zip(names, engine.world.sum(*(float(sums[name]) for name in names)), strict=True))
    return {f"train/{title}": found[name] / found["pairs"] for name, title in REPORTED.items()}


def check_start(stage: DpoStage, engine: Engine, batch: Batch, words: Vocabulary) -> float:
    """Before the first step the policy is the reference: h is 0, and the loss of sigmoid ln 2. As an update computes
    it, but for dropout. Returns the largest distance of log-probabilities in nats a token. Raises UserError where they
    are apart: training would pull towards something else."""
    on_device = {key: part.to(engine.world.device) for key, part in batch.items()}
    with engine.inference() as model:
        model.train(stage.dropout == 0)
        logprobs, lengths = side_logprobs(model, on_device, words)
        gap = (logprobs - on_device["reference"]).abs() / lengths  # nats per token
        losses, _ = losses_of(stage, logprobs, lengths, on_device["reference"])
    world = engine.world
    largest, mean = world.max(float(gap.max())), world.sum(float(gap.mean()))[0] / world.size
    loss = world.sum(float(losses.mean()))[0] / world.size
    wanted = ", ln 2 is 0.6931" if stage.loss is PreferenceLoss.sigmoid else ""
    if not (largest <= TOLERANCE[engine.dtype] and mean <= MEAN_TOLERANCE[engine.dtype]):
        raise UserError(
            f"self-check: before the first step the policy's log-probabilities are up to {largest:.3g} nats a token "
            f"from the reference's, which it is itself (loss {loss:.4f}{wanted}); training is refused: the reference "
            "is another model or read other tokens, or the policy's forward pass is random"
        )
    log.info(
        "self-check passed: the policy is its reference within %.1e nats a token, loss %.4f%s", largest, loss, wanted
    )
    return largest


def check_same_start(loop: TrainingLoop, start: str, context: Context) -> None:
    """A run that goes on is compared with the reference that it began with. Raises UserError."""
    if loop.state.setdefault("reference", start) != start:
        raise UserError(
            f"init_from={context.parents['init_from']}: these are other weights than those this run began with, which "
            "are its reference; put them back, or begin a run of its own: resume=never"
        )


def tell_fall(loop: TrainingLoop) -> dict[str, str]:
    """The alarm `fall`, told once: held-out replies of both sides have become less likely than when they were measured
    first, so the policy moves to replies that are in no pair. Nothing where that is not so."""
    now = {side: loop.metrics[f"eval/{side}_logprobs"] for side in ("chosen", "rejected")}
    first = loop.state.setdefault("logprobs", now)
    falls = {side: first[side] - value for side, value in now.items()}
    if not all(fall > FALL * -first[side] for side, fall in falls.items()):
        return {}
    text = (
        f"both sides fall: held-out chosen replies have lost {falls['chosen']:.1f} nats on average, rejected ones "
        f"{falls['rejected']:.1f}; the policy moves to replies of neither kind: look at the samples, raise stage.beta, "
        "lower stage.lr, or try stage.loss=rpo"
    )
    if "told" not in loop.state:
        log.warning("alarm at step %d: %s", loop.step, text)
        loop.state["told"] = [f"step {loop.step}: {text}"]
    return {"fall": text}


class HeldOutPairs:
    """Held-out pairs and what the policy makes of them; how it replies; and how far it went from where it began."""

    def __init__(
        self,
        tokenizer: Any,
        length: int,
        config: Config,
        context: Context,
        engine: Engine,
        words: Vocabulary,
        reference: ReferenceModel | None,
    ):
        self._config, self._context, self._stage, self._tokenizer = config, context, config.stage, tokenizer
        self._engine, self._words = engine, words
        self.pairs = get_pairs("validation", tokenizer, length, config, context)
        self._numbers = pairs_that_differ(self.pairs, config.data.name)
        self._references = None
        if reference is not None:
            kept = reference.logprobs(self.pairs, self._numbers, Path(config.paths.cache))
            self._references = torch.from_numpy(kept)
        self.replies = HeldOutReplies(tokenizer, length, config, context)
        self._prompts = None
        if config.stage.kl_prompts:
            source = prompt_source(config.data, "validation", "preferences").rows()
            room = config.stage.safety_tokens
            prompts = PromptBatches(source, tokenizer, length, room, config.seed, OnBadRow.skip)
            self._prompts = spread(prompts, config.stage.kl_prompts, context.world)
        self._scores: PairScores | None = None  # of the latest measurement

    def measure(self, most: int | None, last: bool, start: bool = False) -> dict[str, float]:
        """measure_pairs, the replies, and in the last evaluation the distance from the start."""
        found = self.measure_pairs(most)
        found |= self.replies.measure(self._engine, None if last else self._stage.eval_rows, start)
        return found | (self.distance() if last and self._prompts is not None else {})

    def measure_pairs(self, most: int | None) -> dict[str, float]:
        """Loss, rewards and log-probabilities over `most` pairs (None: all)."""
        stage, world = self._stage, self._context.world
        batches = eval_pairs(self.pairs, stage.eval_batch_size, world.rank, world.size, most, self._numbers)
        rows: list[list[float]] = []
        with self._engine.inference() as model:
            for batch in batches:
                given = with_reference(batch, self._references)
                logprobs, lengths = side_logprobs(
                    model, {key: part.to(world.device) for key, part in given.items()}, self._words
                )
                if int(batch["pair"][0]) == UNKNOWN:
                    continue
                numbers = (batch["pair"][::2], batch["safe"][::2], batch["safe"][1::2], batch["category"][::2])
                columns = [torch.stack(numbers, 1).double(), logprobs.double().cpu(), lengths.double().cpu()]
                rows += torch.cat(columns, 1).tolist()
        table = torch.tensor(sorted(row for part in world.gather_objects(rows) for row in part), dtype=torch.float64)
        known, logprobs, lengths = table[:, :4].long(), table[:, 4:6], table[:, 6:8]
        references = None if self._references is None else self._references[known[:, 0]].double()
        losses, _ = losses_of(stage, logprobs, lengths, references)
        rewards = (
            stage.beta * gains(stage.loss.value, logprobs, lengths, references, stage.length_normalisation).numpy()
        )
        self._scores = PairScores(rewards, known[:, 1:3].numpy(), known[:, 3].numpy())
        right = float(self._scores.right.sum())
        metrics = with_interval("eval/reward_accuracy", right / len(table), wilson(round(right), len(table)))
        return {
            "eval/loss": float(losses.mean()),
            **metrics,
            "eval/reward_margin": float((rewards[:, 0] - rewards[:, 1]).mean()),
            "eval/chosen_reward": float(rewards[:, 0].mean()),
            "eval/rejected_reward": float(rewards[:, 1].mean()),
            "eval/chosen_logprobs": float(logprobs[:, 0].mean()),
            "eval/rejected_logprobs": float(logprobs[:, 1].mean()),
        }

    def distance(self) -> dict[str, float]:
        """KL from the start and length of replies sampled for held-out prompts. Without an adapter the policy's start
        is loaded for as long as that takes."""
        stage, engine, batch = self._stage, self._engine, self._prompts
        assert batch is not None
        reference = Reference(self._config, self._context, engine.model, vocabulary_size(self._tokenizer))
        models = Models(engine, reference, self._words)
        options = DecodeOptions(stage.safety_tokens, end_ids(self._tokenizer), 1.0, SEED, self._words)
        pad_id, size, world = self._tokenizer.pad_token_id, stage.generate_batch_size, engine.world
        with models.generation() as policy:
            rollout = sample_replies(policy, batch, options, pad_id, size, world, engine.dtype)
        experience = to_experience(rollout.prompts, rollout.responses, pad_id)
        measure(experience, lambda rows: models.measure(rows, 1.0, full_kl=False), models.measures, size, world)
        return {
            "eval/kl": experience.kl().sum().item() / len(rollout),
            "eval/response_length": rollout.n_tokens / len(rollout),
        }

    def write_tables(self) -> None:
        """The latest replies, and which pairs are told right, for the report and the tracker."""
        self.replies.write_tables()
        if self._scores is not None and (rows := accuracy_table(self._scores, self.pairs.categories)):
            columns = ["category", "pairs", "right", "accuracy", "95 % from", "to", "margin"]
            write_table(self._context, "categories", "Held-out pairs told right, by category", columns, rows)
