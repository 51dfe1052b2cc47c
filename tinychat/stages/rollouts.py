"""The loop of stages that learn from the policy's own replies: sample, measure, score, learn.

A step is a rollout and the updates that learn from it. What a stage does in its own way is its Algorithm, two functions
above all: from scores to advantages, and the loss of a micro-batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tinychat.config.rollout_stages import KLControl, MissingEnd, RolloutStage
from tinychat.config.schema import Config
from tinychat.data.preferences.prompts import PromptBatches, prompt_shape, prompt_source
from tinychat.engine import Batch, build_engine
from tinychat.errors import UserError
from tinychat.models.actor_critic import policy_of
from tinychat.models.build import count_parameters
from tinychat.models.one_base import OneBase
from tinychat.models.scorer import Scorer
from tinychat.models.vocabulary import vocabulary
from tinychat.rl.advantages import apply_eos_penalty, group_advantages, soft_length_penalty
from tinychat.rl.alarms import Alarms
from tinychat.rl.entropy import TargetEntropy
from tinychat.rl.kl import AdaptiveKL, FixedKL
from tinychat.rl.rewards import SPREAD, Rewards
from tinychat.rl.rollout import Experience, Rollout, write_rollout
from tinychat.rl.selfcheck import (
    FirstRatios,
    PolicyChecks,
    check_dropout,
    check_replies,
    check_scores,
    check_tokens,
    mean_tolerance,
)
from tinychat.runs.rollouts import path_of
from tinychat.runtime.world import seed_rank
from tinychat.stages import Context, StageResult
from tinychat.stages.common import Clock, Speedometer, context_length, describe_engine, log, write_lineage
from tinychat.stages.loop import TrainingLoop
from tinychat.stages.policy import Models, PolicyEvaluation, Reference, Sampler, mean, rollout_table, thought_lengths
from tinychat.stages.ptx import conversations_beside
from tinychat.stages.updates import Algorithm, Coefficients, learn
from tinychat.text.tokenizer import vocabulary_size


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
    entries = vocabulary_size(tokenizer)
    reference = Reference(config, context, policy_of(model), entries) if stage.compared else None
    engine = build_engine(model, config.optim, config.ds, stage, config.precision, world)
    base = OneBase(policy_of(engine.model), engine.generation)
    rewards = Rewards(config.reward, context.parents, tokenizer, world, engine.dtype, stage.rollout_batch_size, base)
    rewards.check_rows(prompts.rows)
    rewards.check_lengths(min(length, prompts.longest + stage.response_length))
    sampler = Sampler(stage, tokenizer, Models(engine, reference, vocabulary(tokenizer)), rewards)
    held_out = PolicyEvaluation(config, context, tokenizer, length, sampler)
    rewards.check_rows(held_out.prompts.rows)
    ptx = conversations_beside(config, context, tokenizer, length)
    seed_rank(config.seed, world.rank)
    data = {"train": {"fingerprint": source.fingerprint(), "prompts": len(prompts)}, **held_out.facts}
    data |= {} if ptx is None else {"ptx": ptx.facts}
    origin = write_lineage(config, context, data)

    speed = Speedometer(0.0, engine.dtype, world)
    with TrainingLoop(config, context, engine, tokenizer, origin, speed, score="-eval/objective") as loop:
        controller = kl_controller(stage)
        controller.load_state_dict(loop.state.get("kl", {}))
        bonus = None if stage.entropy_target is None else TargetEntropy(stage.entropy_target, stage.entropy_coef)
        if bonus is not None:
            bonus.load_state_dict(loop.state.get("entropy", {}))
        target = stage.kl_target if stage.kl is KLControl.adaptive else None
        ratios = FirstRatios(engine.dtype, loop.state.get("ratios", {}))
        checks, looser = checks_before_training(sampler, prompts, tokenizer, rewards, config.seed, algorithm.group)
        if gaps := context.check(checks):
            tell_checked(gaps, looser())
        bound = looser() * mean_tolerance(engine.dtype, stage.temperature)
        alarms = Alarms(target, bound, loop.state.get("alarms", {}))
        rewards.weighing.load_state_dict(loop.state.get("reward", {}))
        if rewards.weighing.uncalibrated:
            sampler.calibrate(prompts, step_seed(config.seed, 0, attempt=1), algorithm.group)
        if context.examiner is not None:
            context.examiner.replies(sampler, prompts, rewards, algorithm.group)
        if loop.step == 0 and stage.eval_first:
            loop.evaluate(lambda _most: held_out.measure(0, controller.beta, last=False, start=True))
        loop.state.setdefault("drawn", loop.step * (stage.rollout_size // algorithm.group))
        for step in loop:
            clock, beta = Clock(), controller.beta
            rollout, of_groups = next_rollout(config, sampler, prompts, algorithm, step, loop.state, clock)
            experience = sampler.measure(rollout)
            rollout.scores = with_missing_ends(stage, rollout)
            found = rollout_metrics(stage, rollout, experience, beta) | of_groups
            found |= {f"rl/{name}": value for name, value in sampler.by_kind(rollout).items()}
            found |= thought_lengths(tokenizer, sampler.replies(rollout))
            found |= algorithm.advantages(rollout, experience, beta)
            now = Coefficients(beta, stage.entropy_coef if bonus is None else bonus.update(found["rl/entropy"]))
            found |= {"rl/beta": beta} | ({} if bonus is None else {"rl/entropy_coef": now.entropy})
            clock.lap("perf/scoring_seconds")
            done, learnt = learn(config, loop, engine, experience, algorithm, step, now, ptx)
            clock.lap("perf/update_seconds")
            controller.update(found.get("rl/kl", 0.0), len(rollout))
            if (multiplier := rewards.weighing.multiplier) is not None:
                found["rl/lagrange_multiplier"] = multiplier.value
                multiplier.update(found["rl/cost"])
            found |= learnt | clock.laps
            ratios.check(step, learnt["rl/first_kl"])
            for text in alarms.check(found):
                log.warning("alarm at step %d: %s", step, text)
                loop.state["told"] = [*loop.state.get("told", []), f"step {step}: {text}"]
            loop.state |= {"kl": controller.state_dict(), "alarms": alarms.state, "ratios": ratios.state}
            loop.state |= {} if bonus is None else {"entropy": bonus.state_dict()}
            loop.state |= {"reward": learnt} if (learnt := rewards.weighing.state_dict()) else {}
            if stage.keep_rollouts and world.is_main:
                facts = {"step": step, "temperature": stage.temperature, "seed": step_seed(config.seed, step)}
                write_rollout(path_of(context.run_dir, step), rollout, experience, facts | {"beta": beta})
            loop.log(done, found | {"data/epoch": prompts.epoch_of(loop.state["drawn"], 1)})
            if context.give_up(alarms.active) or loop.evaluation_due:
                rollout_table(context, rollout, experience, sampler.replies(rollout))
                # The score is of the same prompts every time.
                loop.evaluate(lambda _most: held_out.measure(loop.step, controller.beta, last=loop.last))
            loop.save_if_due()

    if not loop.unfinished:
        held_out.write_tables()
    facts = {
        "policy from": context.parents["init_from"],
        "reward": ", ".join(f"{weight:g} x {name}" for name, weight in rewards.weighing.weights.items()),
        "parameters": parameters.total,
        "parameters trained": parameters.trained,
        "prompts": len(prompts),
        **({} if ptx is None else {"learnt beside rewards": ptx.described}),
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


def step_seed(seed: int, step: int, attempt: int = 0) -> int:
    """Of a step's draws; another one for every seed, step and refill of the step."""
    return (seed * 1_000_003 + step + (attempt << 40)) % 2**62


def next_rollout(
    config: Config,
    sampler: Sampler,
    prompts: PromptBatches,
    algorithm: Algorithm,
    step: int,
    state: dict[str, Any],
    clock: Clock,
) -> tuple[Rollout, dict[str, float]]:
    """The step's replies with their rewards, and what there is to log of their groups.

    Groups without spread make room for other prompts', algorithm.refill times at most (dynamic sampling, Yu et al.
    2025, section 3.2, which samples without end); then the rest of them stays. state["drawn"]: the prompts that all
    steps have drawn, one more for each that is drawn here. Raises UserError where no reply has a reward.
    """
    group, ranks = algorithm.group, sampler.models.world.size

    def draw(count: int, attempt: int) -> Rollout:
        # Ranks share them evenly: what is too many for that is not counted, or the ranks would decide what is learnt.
        batch = prompts.after(state["drawn"], -(-count // ranks) * ranks)
        state["drawn"] += count
        found = sampler.sample(batch, step_seed(config.seed, step, attempt), group)
        clock.lap("perf/rollout_seconds")
        sampler.score(found)
        clock.lap("perf/scoring_seconds")
        if not found.known.any():
            raise UserError(f"step {step}: none of the {len(found)} replies has a reward; each lacks one of its parts")
        return found

    def equal(found: Rollout) -> list[int]:
        """The groups without spread."""
        spread = group_advantages(found.rewards, group, False, "grpo", found.known)[1]
        return (~spread[::group]).nonzero().flatten().tolist()

    def given(found: Rollout) -> Tensor:
        """(n, size) of its groups, NaN where a reward is missing."""
        return found.rewards.where(found.known, torch.nan).view(-1, group)

    rollout = draw(config.stage.rollout_size // group, 0)
    if group == 1:
        return rollout, {}
    rewards, replaced = [given(rollout)], 0
    for attempt in range(1, algorithm.refill + 1):
        if not (dull := equal(rollout)):
            break
        more = draw(len(dull), attempt)
        rewards.append(given(more)[: len(dull)])
        fresh = sorted({*range(len(dull))} - {*equal(more)})
        rollout.replace(members(dull[: len(fresh)], group), more, members(fresh, group))
        replaced += len(fresh)
    left = len(equal(rollout))
    if algorithm.refill and left:
        log.info("step %d: %d of %d groups have no spread after %d refills", step, left, len(rollout) // group, attempt)
    return rollout, group_shares(torch.cat(rewards)) | {"rl/groups_replaced": float(replaced)}


def members(groups: Sequence[int], size: int) -> list[int]:
    """The replies of some groups."""
    return [index * size + place for index in groups for place in range(size)]


def group_shares(rewards: Tensor) -> dict[str, float]:
    """Of all groups that were sampled, (n, size): how many are right, wrong or equal throughout."""
    known = ~rewards.isnan()
    low = rewards.where(known, torch.inf).amin(1)
    high = rewards.where(known, -torch.inf).amax(1)
    spreads = [row[there].std(unbiased=False) for row, there in zip(rewards, known, strict=True)]
    return {
        "rl/groups_right": mean((low > 0) & known.any(1)),
        "rl/groups_wrong": mean(high <= 0),
        "rl/groups_equal": mean(low >= high),
        "rl/group_std": float(torch.stack(spreads).nanmean()),
    }


def checks_before_training(
    sampler: Sampler, prompts: PromptBatches, tokenizer: Any, rewards: Rewards, seed: int, group: int
) -> tuple[dict[str, Callable[[], float | None]], Callable[[], float]]:
    """What would spoil training without an error (tinychat.rl.selfcheck), each to be called for itself, by all ranks.
    It returns the largest distance where it compares numbers, and raises UserError. And PolicyChecks.looser."""
    models, pad_id = sampler.models, tokenizer.pad_token_id
    in_fp32 = models.engine.in_fp32

    def sampled() -> Rollout:
        size = models.world.size
        pair = min(group, 2)  # where replies share a prompt, so do these
        return sampler.sample(prompts.batch(0, -(-4 // (pair * size)) * size), step_seed(seed, 0), pair)

    rollout = functools.cache(sampled)

    def logprobs(batch: Batch) -> Tensor:
        return sampler.forward(batch)["logprobs"]

    def exact_logprobs(batch: Batch) -> Tensor:
        with in_fp32():
            return logprobs(batch)

    def policy_checks(of: Rollout) -> PolicyChecks:
        return PolicyChecks(
            of,
            pad_id,
            sampler.temperature,
            models.vocabulary,
            logprobs,
            lambda batch: models.update_logprobs(batch, sampler.temperature),
            models.dtype,
            models.world.device,
            None if models.dtype is torch.float32 else exact_logprobs,
        )

    policy = functools.cache(lambda: policy_checks(rollout()))
    exact_policy = functools.cache(lambda: policy_checks(sampled()))

    def looked_at(look: Callable[[PolicyChecks], float]) -> Callable[[], float]:
        def of_both() -> float:
            gap = look(policy())
            if policy().looser > 1:  # then a fault may be smaller than what is allowed: without rounding it shows
                with in_fp32():
                    look(exact_policy())
            return gap

        return of_both

    def padding(checks: PolicyChecks) -> float:
        with models.inference() as model:
            return checks.padding(model)

    def scores(name: str, scorer: Scorer) -> Callable[[], float]:
        key = f"reward.parts.{name}"
        return lambda: check_scores(key, scorer.outputs, rollout().sequences, scorer.spread, models.dtype)

    checks: dict[str, Callable[[], float | None]] = {
        "pad token": lambda: check_tokens(tokenizer, sampler.end_ids),
        "dropout": lambda: check_dropout(models.engine.model),
        "end token": lambda: check_replies(rollout(), sampler.end_ids),
        "ratio": looked_at(PolicyChecks.ratio),
        "sampler": looked_at(PolicyChecks.sampler),
        "padding": looked_at(padding),
        **{f"{SCORES}{name}": scores(name, scorer) for name, scorer in rewards.scorers.items()},
    }
    return checks, lambda: policy().looser


SCORES = "scores of "  # a reward model, by its part


def tell_checked(found: Mapping[str, float | None], looser: float) -> None:
    """What the checks found, none of which refuses; looser: PolicyChecks.looser."""
    gaps = {name: gap for name, gap in found.items() if gap is not None}
    scores = [gap for name, gap in gaps.items() if name.startswith(SCORES)]
    log.info(
        f"self-check passed: ratio 1 within {gaps['ratio']:.1e}, sampling within {gaps['sampler']:.1e}, "
        f"padding within {gaps['padding']:.1e} nats"
        + (f", scores within {max(scores):.1e} standard deviations" if scores else "")
    )
    if looser > 1:
        log.info(
            "the model is deep enough that rounding takes %.1f times what is allowed to a small one; in fp32 the same "
            "checks passed by the bounds of fp32",
            looser,
        )


def with_missing_ends(stage: RolloutStage, rollout: Rollout) -> Tensor:
    """The scores (N,): the rewards, with the penalty of replies that were cut off before their end token."""
    match stage.missing_end:
        case MissingEnd.none | MissingEnd.mask:
            return rollout.rewards
        case MissingEnd.soft:
            lengths = torch.tensor([len(response) for response in rollout.responses])
            return rollout.rewards + soft_length_penalty(lengths, stage.response_length, stage.soft_length)
    ended = torch.tensor(rollout.ended)
    return apply_eos_penalty(rollout.rewards, ended, stage.missing_end.value, stage.eos_penalty)


def rollout_metrics(stage: RolloutStage, rollout: Rollout, experience: Experience, beta: float) -> dict[str, float]:
    """What there is to log of a rollout, whatever is learnt from it."""
    fields, mask, known = experience.fields, experience.mask, rollout.known
    tokens, rewards, scores = mask.sum().item(), rollout.rewards[known], rollout.scores[known]
    gap = (torch.cat([torch.tensor(part) for part in rollout.sampled]) - fields["logprobs"][mask]).abs()
    found = {
        "rl/reward": mean(rewards),
        "rl/reward_std": float(rewards.double().std(unbiased=False)),
        "rl/score": mean(scores),
        "rl/entropy": fields["entropy"].sum().item() / tokens,
        "rl/response_length": tokens / len(rollout),
        "rl/eos_rate": mean(torch.tensor(rollout.ended)),
        "rl/sampler_gap": gap.mean().item(),
        "rl/sampler_gap_max": gap.max().item(),
    }
    if experience.compared:
        kl = experience.kl(stage.kl_estimator.value)
        found["rl/return"] = mean(scores) - beta * kl.sum().item() / len(rollout)
        found["rl/kl"] = experience.kl().sum().item() / len(rollout)
        found["rl/kl_per_token"] = kl.sum().item() / tokens
        if stage.full_kl:
            found["rl/kl_full"] = fields["full_kl"].sum().item() / tokens
    if len(rewards) < len(rollout):
        found["rl/reward_missing"] = 1 - len(rewards) / len(rollout)
    if spreads := [values for name, values in rollout.parts.items() if name.endswith(f" {SPREAD}")]:
        found["rl/reward_spread"] = mean(spreads)
    # The gold reward, where the oracle knows it; the other parts stand in the table of the rollout.
    return found | ({"rl/gold_reward": mean(rollout.parts["gold"])} if "gold" in rollout.parts else {})
