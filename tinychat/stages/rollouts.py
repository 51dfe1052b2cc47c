"""The loop of stages that learn from the policy's own replies: sample, measure, score, learn.

A step is a rollout and the updates that learn from it. What a stage does in its own way is its Algorithm, two functions
above all: from scores to advantages, and the loss of a micro-batch.

Alarms say in plain words what goes wrong: it shows in the metrics long before the end.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tinychat.config.schema import Config
from tinychat.config.stages import KLControl, MissingEnd, RolloutStage
from tinychat.data.preferences.prompts import PromptBatches, prompt_shape, prompt_source
from tinychat.engine import Batch, Engine, StepStats, build_engine
from tinychat.models.actor_critic import policy_of
from tinychat.models.build import count_parameters
from tinychat.models.scorer import Scorer
from tinychat.models.vocabulary import vocabulary
from tinychat.rl.advantages import apply_eos_penalty
from tinychat.rl.kl import AdaptiveKL, FixedKL
from tinychat.rl.losses import Sums
from tinychat.rl.rewards import Rewards
from tinychat.rl.rollout import Experience, Rollout, minibatches, write_rollout
from tinychat.rl.selfcheck import (
    FirstRatios,
    PolicyChecks,
    check_dropout,
    check_replies,
    check_scores,
    check_tokens,
    mean_tolerance,
)
from tinychat.runtime.world import seed_rank
from tinychat.stages import Context, StageResult
from tinychat.stages.common import Speedometer, context_length, describe_engine, log, split_batch, write_lineage
from tinychat.stages.loop import TrainingLoop
from tinychat.stages.policy import Models, PolicyEvaluation, Reference, Sampler, mean, rollout_table
from tinychat.text.tokenizer import vocabulary_size


def response_tokens(batch: Batch) -> float:
    """Of a batch."""
    return batch["mask"].sum().item()


@dataclass(frozen=True)
class Algorithm:
    """What a stage that learns from rollouts does in its own way."""

    # (rollout, experience, weight of the KL penalty) -> what there is to log. Reads rollout.scores and the measures of
    # the experience, and adds to its fields what the loss needs.
    advantages: Callable[[Rollout, Experience, float], dict[str, float]]
    # (model, micro-batch with every field of the experience, step, weight of the KL penalty) -> the loss, SUMMED over
    # the micro-batch; and detached sums over its response tokens, "tokens" and "kl_k3" as ppo_policy_loss counts them
    # among them. Those in REPORTED are logged.
    loss: Callable[[Any, Batch, int, float], tuple[Tensor, Sums]]
    # An update's replies, of all ranks -> what the sum of their losses is divided by.
    count: Callable[[Batch], float] = response_tokens
    # (engine, step), before a step's updates.
    prepare: Callable[[Engine, int], None] = lambda _engine, _step: None


# Sums of a loss, as means over the tokens of all updates of a step.
REPORTED = {
    "policy_loss": "rl/policy_loss",
    "value_loss": "rl/value_loss",
    "kl_k3": "rl/approx_kl",
    "clipped": "rl/clip_frac",
    "value_clipped": "rl/value_clip_frac",
    "ratio": "rl/ratio",
}


def learn_from_rollouts(
    config: Config, context: Context, tokenizer: Any, model: Any, algorithm: Algorithm
) -> StageResult:
    """Train `model`, a policy or an ActorCritic that holds one, to the end of the stage."""
    stage, world = config.stage, context.world
    length = context_length(stage.context_length, model)
    source = prompt_source(config.data, "train", prompt_shape(config.reward))
    prompts = PromptBatches(
        source.rows(), tokenizer, length, stage.response_length, config.seed, config.data.on_bad_row
    )
    log.info("train: %d prompts, the longest of %d tokens; %s", len(prompts), prompts.longest, source.description)
    parameters = count_parameters(model)
    reference = Reference(config, context, policy_of(model), vocabulary_size(tokenizer))
    engine = build_engine(model, config.optim, config.ds, stage, config.precision, world)
    rewards = Rewards(config.reward, context.parents, tokenizer, world, engine.dtype, stage.rollout_batch_size)
    rewards.check_rows(prompts.rows)
    rewards.check_lengths(min(length, prompts.longest + stage.response_length))
    sampler = Sampler(stage, tokenizer, Models(engine, reference, vocabulary(tokenizer)), rewards)
    held_out = PolicyEvaluation(config, context, tokenizer, length, sampler)
    rewards.check_rows(held_out.prompts.rows)
    seed_rank(config.seed, world.rank)
    data = {"train": {"fingerprint": source.fingerprint(), "prompts": len(prompts)}, "validation": held_out.facts}
    origin = write_lineage(config, context, data)

    speed = Speedometer(0.0, engine.dtype, world)
    with TrainingLoop(config, context, engine, tokenizer, origin, speed, score="-eval/objective") as loop:
        controller = kl_controller(stage)
        controller.load_state_dict(loop.state.get("kl", {}))
        target = stage.kl_target if stage.kl is KLControl.adaptive else None
        alarms = Alarms(target, mean_tolerance(engine.dtype, stage.temperature), loop.state.get("alarms", {}))
        ratios = FirstRatios(engine.dtype, loop.state.get("ratios", {}))
        checks = checks_before_training(sampler, prompts, tokenizer, rewards, config.seed)
        if context.examiner is None:
            refuse_or_tell(checks)
        else:
            context.examiner.ask(checks)
            context.examiner.replies(sampler, prompts, rewards)
        if loop.step == 0 and stage.eval_first:
            loop.evaluate(lambda _most: held_out.measure(controller.beta, last=False))
        for step in loop:
            clock, beta = Clock(), controller.beta
            # Each prompt once. For several replies to a prompt it would stand here several times, side by side: each
            # place of a batch has draws of its own.
            batch = prompts.batch(step - 1, stage.rollout_size)
            rollout = sampler.sample(batch, seed=step_seed(config.seed, step))
            clock.lap("perf/rollout_seconds")
            experience = sampler.measure(rollout)
            rewarded, parts = sampler.score(rollout)
            rollout.scores = with_missing_ends(stage, rewarded, rollout)
            found = rollout_metrics(stage, rollout, experience, rewarded, beta)
            found |= algorithm.advantages(rollout, experience, beta)
            found |= {"rl/beta": beta, **part_means(parts)}
            clock.lap("perf/scoring_seconds")
            done, learnt = learn(config, loop, engine, experience, algorithm, step, beta)
            clock.lap("perf/update_seconds")
            controller.update(found["rl/kl"], len(rollout))
            found |= learnt | clock.laps
            ratios.check(step, learnt["rl/first_kl"])
            for text in alarms.check(found):
                log.warning("alarm at step %d: %s", step, text)
                loop.state["told"] = [*loop.state.get("told", []), f"step {step}: {text}"]
            loop.state |= {"kl": controller.state_dict(), "alarms": alarms.state, "ratios": ratios.state}
            if stage.keep_rollouts and world.is_main:
                facts = {"step": step, "temperature": stage.temperature, "seed": step_seed(config.seed, step)}
                path = context.run_dir / "rollouts" / f"step-{step:06d}.jsonl"
                write_rollout(path, rollout, experience, facts | {"beta": beta})
            loop.log(done, found | {"data/epoch": prompts.epoch_of(step, stage.rollout_size)})
            if context.give_up(alarms.active) or loop.evaluation_due:
                rollout_table(context, rollout, experience, sampler.replies(rollout), parts)
                # The score is of the same prompts every time.
                loop.evaluate(lambda _most: held_out.measure(controller.beta, last=loop.last))
            loop.save_if_due()

    if not loop.unfinished:
        held_out.write_tables()
    facts = {
        "policy from": context.parents["init_from"],
        "reward": ", ".join(f"{weight:g} x {name}" for name, weight in rewards.weights.items()),
        "parameters": parameters.total,
        "parameters trained": parameters.trained,
        "prompts": len(prompts),
        "context length": length,
        "alarms": "; ".join(loop.state.get("told", [])) or "none",
        "steps whose first ratio was not 1": ratios.count,
        **describe_engine(engine),
    }
    return loop.result(facts)


def kl_controller(stage: RolloutStage) -> FixedKL | AdaptiveKL:
    if stage.kl is KLControl.adaptive:
        return AdaptiveKL(stage.beta, stage.kl_target, stage.kl_horizon)
    return FixedKL(stage.beta)


def step_seed(seed: int, step: int) -> int:
    """Of a step's draws; another one for every seed and step."""
    return (seed * 1_000_003 + step) % 2**62


def checks_before_training(
    sampler: Sampler, prompts: PromptBatches, tokenizer: Any, rewards: Rewards, seed: int
) -> dict[str, Callable[[], float | None]]:
    """What would spoil training without an error (tinychat.rl.selfcheck), each to be called for itself, by all ranks.
    It returns the largest distance where it compares numbers, and raises UserError."""
    models, pad_id = sampler.models, tokenizer.pad_token_id

    @functools.cache
    def rollout() -> Rollout:
        size = models.world.size
        return sampler.sample(prompts.batch(0, -(-4 // size) * size), step_seed(seed, 0))

    @functools.cache
    def policy() -> PolicyChecks:
        return PolicyChecks(
            rollout(),
            pad_id,
            sampler.temperature,
            models.vocabulary,
            lambda batch: sampler.forward(batch)["logprobs"],
            lambda batch: models.update_logprobs(batch, sampler.temperature),
            models.dtype,
            models.world.device,
        )

    def padding() -> float:
        with models.inference() as model:
            return policy().padding(model)

    def scores(name: str, scorer: Scorer) -> Callable[[], float]:
        key = f"reward.parts.{name}"
        return lambda: check_scores(key, scorer.outputs, rollout().sequences, scorer.spread, models.dtype)

    return {
        "pad token": lambda: check_tokens(tokenizer, sampler.end_ids),
        "dropout": lambda: check_dropout(models.engine.model),
        "end token": lambda: check_replies(rollout(), sampler.end_ids),
        "ratio": lambda: policy().ratio(),
        "sampler": lambda: policy().sampler(),
        "padding": padding,
        **{f"{SCORES}{name}": scores(name, scorer) for name, scorer in rewards.scorers.items()},
    }


SCORES = "scores of "  # a reward model, by its part


def refuse_or_tell(checks: Mapping[str, Callable[[], float | None]]) -> None:
    """All of them. Raises UserError with the first that fails."""
    gaps = {name: gap for name, check in checks.items() if (gap := check()) is not None}
    scores = [gap for name, gap in gaps.items() if name.startswith(SCORES)]
    log.info(
        f"self-check passed: ratio 1 within {gaps['ratio']:.1e}, sampling within {gaps['sampler']:.1e}, "
        f"padding within {gaps['padding']:.1e} nats"
        + (f", scores within {max(scores):.1e} standard deviations" if scores else "")
    )


def with_missing_ends(stage: RolloutStage, rewarded: Tensor, rollout: Rollout) -> Tensor:
    """The scores (N,): the rewards (N,), with the penalty of replies that were cut off before their end token."""
    if stage.missing_end is MissingEnd.none:
        return rewarded
    return apply_eos_penalty(rewarded, torch.tensor(rollout.ended), stage.missing_end.value, stage.eos_penalty)


def rollout_metrics(
    stage: RolloutStage, rollout: Rollout, experience: Experience, rewarded: Tensor, beta: float
) -> dict[str, float]:
    """What there is to log of a rollout, whatever is learnt from it. rewarded: (N,), without penalties."""
    fields, mask = experience.fields, experience.mask
    kl, tokens = experience.kl(stage.kl_estimator.value), mask.sum().item()
    sampled = torch.cat([torch.tensor(part) for part in rollout.sampled])
    found = {
        "rl/reward": mean(rewarded),
        "rl/reward_std": float(rewarded.double().std(unbiased=False)),
        "rl/score": mean(rollout.scores),
        "rl/return": mean(rollout.scores) - beta * kl.sum().item() / len(rollout),
        "rl/kl": experience.kl().sum().item() / len(rollout),
        "rl/kl_per_token": kl.sum().item() / tokens,
        "rl/entropy": fields["entropy"].sum().item() / tokens,
        "rl/response_length": tokens / len(rollout),
        "rl/eos_rate": mean(torch.tensor(rollout.ended)),
        "rl/sampler_gap": (sampled - fields["logprobs"][mask]).abs().mean().item(),
    }
    if stage.full_kl:
        found["rl/kl_full"] = fields["full_kl"].sum().item() / tokens
    return found


def part_means(parts: dict[str, list[float]]) -> dict[str, float]:
    """The gold reward, where the oracle knows it; the other parts stand in the table of the rollout."""
    return {"rl/gold_reward": mean(parts["gold"])} if "gold" in parts else {}


def learn(
    config: Config,
    loop: TrainingLoop,
    engine: Engine,
    experience: Experience,
    algorithm: Algorithm,
    step: int,
    beta: float,
) -> tuple[StepStats, dict[str, float]]:
    """The updates of a step: each epoch goes through all replies once, in minibatches. Ends early beyond stage.max_kl.

    Returns the last update, and the means over the tokens of all of them; rl/first_kl is that of the first update,
    before which the policy is the one that wrote the replies.
    """
    stage, world = config.stage, engine.world
    algorithm.prepare(engine, step)
    share = stage.batch_size // world.size
    totals: dict[str, float] = {}
    done, updates, first_kl = StepStats(0.0, 0.0), 0, 0.0
    for epoch in range(stage.epochs):
        for rows in minibatches(stage.rollout_size, stage.batch_size, config.seed, step, epoch):
            replies = experience.rows(rows)
            own = experience.rows(rows[world.rank * share : (world.rank + 1) * share])
            sums: Sums = {}
            done = loop.train(
                split_batch(own, stage.micro_batch_size, world.device),
                _counting(
                    lambda model, batch: algorithm.loss(model, batch, step, beta), algorithm.count(replies), sums
                ),
                int(response_tokens(replies)),
                stage.rollout_size if updates == 0 else 0,
            )
            names = sorted(sums)
            found = dict(zip(names, world.sum(*(float(sums[name]) for name in names)), strict=True))
            updates += 1
            approx_kl = found["kl_k3"] / found["tokens"]
            if updates == 1:
                first_kl = approx_kl
            for name in names:
                totals[name] = totals.get(name, 0.0) + found[name]
            if stage.max_kl is not None and approx_kl > stage.max_kl:
                return done, _learnt(totals, updates, first_kl)
    return done, _learnt(totals, updates, first_kl)


def _counting(
    loss: Callable[[Any, Batch], tuple[Tensor, Sums]], count: float, sums: Sums
) -> Callable[[Any, Batch], Tensor]:
    """The loss as an engine calls it, a part of the whole batch's mean; adds to `sums` what there is to report."""

    def of(model: Any, batch: Batch) -> Tensor:
        total, more = loss(model, batch)
        for name, x in more.items():
            sums[name] = sums.get(name, torch.zeros((), device=x.device)) + x.detach()
        return total / count

    return of


def _learnt(totals: dict[str, float], updates: int, first_kl: float) -> dict[str, float]:
    means = {title: totals[name] / totals["tokens"] for name, title in REPORTED.items() if name in totals}
    return means | {"rl/updates": float(updates), "rl/first_kl": first_kl}


class Clock:
    """Seconds of the parts of a step."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._begin = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._begin = now - self._begin, now


KL_BLOW_UP = 50.0  # nats per reply, whatever the target
KL_TIMES_TARGET = 4.0
ENTROPY_LEFT = 0.1  # share of the first rollout's entropy
EOS_LOST = 0.5  # of the first rollout's rate
LENGTH_TIMES = 2.0  # the first rollout's length
CLIPPED = 0.5  # share of tokens
GOLD_WINDOW = 6  # rollouts compared with as many before them
GOLD_FALL = 0.02  # of the gold reward, while the reward rises


@dataclass
class Alarms:
    """Compares each rollout's metrics with the first one's; each alarm is told when it begins, not again while it
    lasts. `state` is plain numbers: saved with a checkpoint, a resumed run goes on comparing."""

    kl_target: float | None = None
    sampler_gap: float | None = None  # bound on rl/sampler_gap, in nats per token; None: no alarm
    state: dict[str, list[float]] = field(default_factory=dict)
    active: dict[str, str] = field(default_factory=dict)  # the alarms of the last rollout: name -> sentence

    def check(self, metrics: Mapping[str, float]) -> list[str]:
        """The alarms that begin with this rollout, each a sentence that says what to try."""
        for name in ("rl/entropy", "rl/eos_rate", "rl/response_length"):
            self.state.setdefault(name, [metrics[name]])
        for name in ("rl/reward", "rl/gold_reward"):
            if name in metrics:
                self.state[name] = [*self.state.get(name, []), metrics[name]][-2 * GOLD_WINDOW :]
        found = self._now(metrics)
        new = [text for name, text in found.items() if name not in self.active]
        self.active = found
        return new

    def _now(self, metrics: Mapping[str, float]) -> dict[str, str]:
        found = {}
        kl, entropy, length = metrics["rl/kl"], metrics["rl/entropy"], metrics["rl/response_length"]
        bound = KL_BLOW_UP if self.kl_target is None else KL_TIMES_TARGET * self.kl_target
        if kl > bound:
            found["kl"] = (
                f"KL blow-up: {kl:.1f} nats per reply away from the reference (more than {bound:.0f}); the policy no "
                "longer speaks as it was taught: raise stage.beta, lower stage.lr, or set stage.kl=adaptive"
            )
        if entropy < ENTROPY_LEFT * self.state["rl/entropy"][0]:
            found["entropy"] = (
                f"entropy collapse: {entropy:.3f} nats per token, {self.state['rl/entropy'][0]:.3f} at first; "
                "all replies become one: raise stage.beta or stage.entropy_coef, lower stage.lr or stage.epochs"
            )
        if metrics["rl/eos_rate"] < EOS_LOST * self.state["rl/eos_rate"][0] or metrics["rl/eos_rate"] == 0:
            found["eos"] = (
                f"replies no longer end: {metrics['rl/eos_rate']:.0%} reach their end token within "
                "stage.response_length; raise stage.eos_penalty or stage.response_length"
            )
        if length > LENGTH_TIMES * self.state["rl/response_length"][0]:
            found["length"] = (
                f"length explosion: {length:.0f} tokens a reply, {self.state['rl/response_length'][0]:.0f} in the "
                "first rollout; the reward favours length: look at the samples"
            )
        if metrics.get("rl/clip_frac", 0.0) > CLIPPED:
            found["clip"] = (
                f"{metrics['rl/clip_frac']:.0%} of the tokens are clipped: updates are too large; lower stage.lr or "
                "stage.epochs"
            )
        gap = metrics.get("rl/sampler_gap", 0.0)
        if self.sampler_gap is not None and not gap <= self.sampler_gap:
            found["sampler"] = (
                f"sampling and update disagree: {gap:.2g} nats per token between the log-probabilities that were "
                f"recorded while sampling and those of the forward pass (more than {self.sampler_gap:.2g}); replies "
                "are not drawn from the policy that learns from them: precision=fp32 tells whether rounding is the "
                "reason"
            )
        if self._over_optimised():
            found["gold"] = (
                "the reward rises while the gold reward falls: the policy exploits the reward model; raise stage.beta, "
                "stop earlier, or train the reward model on more pairs"
            )
        return found

    def _over_optimised(self) -> bool:
        reward, gold = self.state.get("rl/reward", []), self.state.get("rl/gold_reward", [])
        if min(len(reward), len(gold)) < 2 * GOLD_WINDOW:
            return False

        def change(series: list[float]) -> float:
            return (sum(series[GOLD_WINDOW:]) - sum(series[:GOLD_WINDOW])) / GOLD_WINDOW

        return change(reward) > 0 and change(gold) < -GOLD_FALL
