"""stage=ppo: proximal policy optimisation (Schulman et al. 2017) of a policy against a reward, kept near the policy it
starts from (Ziegler et al. 2019; Ouyang et al. 2022). A step is a rollout and the updates that learn from it."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from tinychat.config.schema import Config
from tinychat.config.stages import KLControl, MissingEnd, PpoStage
from tinychat.data.preferences.prompts import PromptBatches, prompt_shape, prompt_source
from tinychat.engine import Batch, Engine, StepStats, build_engine
from tinychat.models.actor_critic import policy_and_values
from tinychat.models.build import count_parameters
from tinychat.models.vocabulary import Vocabulary
from tinychat.rl.advantages import apply_eos_penalty, gae, per_token_rewards, whiten
from tinychat.rl.alarms import Alarms
from tinychat.rl.kl import AdaptiveKL, FixedKL, kl_estimate
from tinychat.rl.losses import ppo_policy_loss, value_loss
from tinychat.rl.rewards import Rewards
from tinychat.rl.rollout import Experience, Rollout, minibatches, write_rollout
from tinychat.rl.selfcheck import (
    FirstRatios,
    check_dropout,
    check_replies,
    check_scores,
    check_tokens,
    mean_tolerance,
    self_check,
)
from tinychat.runs.context import Context, StageResult
from tinychat.runtime.world import seed_rank
from tinychat.stages.chats import get_chat_tokenizer
from tinychat.stages.common import Speedometer, context_length, describe_engine, log, split_batch, write_lineage
from tinychat.stages.loop import TrainingLoop
from tinychat.stages.policy import PolicyEvaluation, Reference, Sampler, get_actor_critic, mean, rollout_table
from tinychat.text.tokenizer import vocabulary_size


def run(config: Config, context: Context) -> StageResult:
    stage, world = config.stage, context.world
    tokenizer = get_chat_tokenizer(config, context)
    model = get_actor_critic(config, context, tokenizer)
    length = context_length(stage.context_length, model)
    source = prompt_source(config.data, "train", prompt_shape(config.reward))
    prompts = PromptBatches(
        source.rows(), tokenizer, length, stage.response_length, config.seed, config.data.on_bad_row
    )
    log.info("train: %d prompts, the longest of %d tokens; %s", len(prompts), prompts.longest, source.description)
    parameters = count_parameters(model)
    reference = Reference(config, context, model.policy, vocabulary_size(tokenizer))
    engine = build_engine(model, config.optim, config.ds, stage, config.precision, world)
    rewards = Rewards(config.reward, context.parents, tokenizer, world, engine.dtype, stage.rollout_batch_size)
    rewards.check_rows(prompts.rows)
    rewards.check_lengths(min(length, prompts.longest + stage.response_length))
    sampler = Sampler(config, context, tokenizer, engine, reference, rewards)
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
        check_before_training(sampler, prompts, tokenizer, engine, rewards, config.seed)
        if loop.step == 0 and stage.eval_first:
            loop.evaluate(lambda _most: held_out.measure(engine, controller.beta, last=False))
        for step in loop:
            clock = Clock()
            batch = prompts.batch(step - 1, stage.rollout_size)
            rollout = sampler.sample(batch, seed=step_seed(config.seed, step))
            clock.lap("perf/rollout_seconds")
            experience = sampler.measure(rollout)
            scored, parts = sampler.score(rollout)
            found = add_advantages(stage, rollout, experience, scored, controller.beta)
            found |= {"rl/beta": controller.beta, **part_means(parts)}
            clock.lap("perf/scoring_seconds")
            done, learnt = learn(config, loop, engine, experience, sampler.vocabulary, step)
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
                write_rollout(path, rollout, experience, facts | {"beta": found["rl/beta"]})
            loop.log(done, found | {"data/epoch": prompts.epoch_of(step, stage.rollout_size)})
            if context.give_up(alarms.active) or loop.evaluation_due:
                rollout_table(context, rollout, experience, sampler.replies(rollout), parts)
                # The score is of the same prompts every time.
                loop.evaluate(lambda _most: held_out.measure(engine, controller.beta, last=loop.last))
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
    return loop.result("eval/objective", facts)


def kl_controller(stage: PpoStage) -> FixedKL | AdaptiveKL:
    if stage.kl is KLControl.adaptive:
        return AdaptiveKL(stage.beta, stage.kl_target, stage.kl_horizon)
    return FixedKL(stage.beta)


def step_seed(seed: int, step: int) -> int:
    """Of a step's draws; another one for every seed and step."""
    return (seed * 1_000_003 + step) % 2**62


def check_before_training(
    sampler: Sampler, prompts: PromptBatches, tokenizer: Any, engine: Engine, rewards: Rewards, seed: int
) -> None:
    """Refuse to train what would be trained wrongly; see tinychat.rl.selfcheck. Raises UserError."""
    check_tokens(tokenizer, sampler.end_ids)
    check_dropout(engine.model)
    size = engine.world.size
    rollout = sampler.sample(prompts.batch(0, -(-4 // size) * size), step_seed(seed, 0))
    check_replies(rollout, sampler.end_ids)
    with engine.inference() as model:
        checked = self_check(
            rollout,
            tokenizer.pad_token_id,
            sampler.temperature,
            sampler.vocabulary,
            lambda batch: sampler.forward(batch)["logprobs"],
            sampler.update_logprobs,
            model.policy,
            engine.dtype,
            engine.world.device,
        )
    gaps = [
        check_scores(f"reward.parts.{name}", scorer.outputs, rollout.sequences, scorer.spread, engine.dtype)
        for name, scorer in rewards.scorers.items()
    ]
    log.info(checked.describe() + (f", scores within {max(gaps):.1e} standard deviations" if gaps else ""))


def add_advantages(
    stage: PpoStage, rollout: Rollout, experience: Experience, scores: Tensor, beta: float
) -> dict[str, float]:
    """From scores (N,) to the fields `advantages` and `returns` of the experience; what there is to log."""
    fields, mask = experience.fields, experience.mask
    ended = torch.tensor(rollout.ended)
    rollout.scores = scores
    if stage.missing_end is not MissingEnd.none:
        rollout.scores = apply_eos_penalty(scores, ended, stage.missing_end.value, stage.eos_penalty)
    kl = kl_estimate(fields["logprobs"], fields["ref_logprobs"], stage.kl_estimator.value) * mask
    k1 = kl_estimate(fields["logprobs"], fields["ref_logprobs"], "k1") * mask
    rewards = per_token_rewards(rollout.scores, kl, beta, mask)
    if stage.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)
    advantages, returns = gae(rewards, fields["values"], mask, stage.gamma, stage.lam)
    tokens, sampled = mask.sum().item(), torch.cat([torch.tensor(part) for part in rollout.sampled])
    spread = returns[mask].var(unbiased=False)
    unexplained = (returns - fields["values"])[mask].var(unbiased=False)
    found = {
        "rl/reward": mean(scores),
        "rl/reward_std": float(scores.double().std(unbiased=False)),
        "rl/score": mean(rollout.scores),
        "rl/return": mean(rollout.scores) - beta * kl.sum().item() / len(rollout),
        "rl/kl": k1.sum().item() / len(rollout),
        "rl/kl_per_token": kl.sum().item() / tokens,
        "rl/entropy": fields["entropy"].sum().item() / tokens,
        "rl/response_length": tokens / len(rollout),
        "rl/eos_rate": mean(ended),
        "rl/advantage_std": float(advantages[mask].std(unbiased=False)),
        "rl/explained_variance": (1 - unexplained / spread).item() if spread > 0 else 0.0,
        "rl/sampler_gap": (sampled - fields["logprobs"][mask]).abs().mean().item(),
    }
    if stage.full_kl:
        found["rl/kl_full"] = fields["full_kl"].sum().item() / tokens
    fields["rewards"] = rewards
    fields["advantages"] = whiten(advantages, mask) if stage.whiten_advantages else advantages
    fields["returns"] = returns
    return found


def part_means(parts: dict[str, list[float]]) -> dict[str, float]:
    """The gold reward, where the oracle knows it; the other parts stand in the table of the rollout."""
    return {"rl/gold_reward": mean(parts["gold"])} if "gold" in parts else {}


def learn(
    config: Config, loop: TrainingLoop, engine: Engine, experience: Experience, vocabulary: Vocabulary, step: int
) -> tuple[StepStats, dict[str, float]]:
    """The updates of a step: each epoch goes through all replies once, in minibatches. Ends early beyond stage.max_kl.

    Returns the last update, and the means over the tokens of all of them; rl/first_kl is that of the first update,
    before which the policy is the one that wrote the replies.
    """
    stage, world = config.stage, engine.world
    if stage.critic_warmup:  # decay would move a policy that has no gradient
        engine.set_weight_decay(0.0 if step <= stage.critic_warmup else 1.0)
    share = stage.batch_size // world.size
    warming_up = step <= stage.critic_warmup
    totals: dict[str, float] = {}
    done, updates = StepStats(0.0, 0.0), 0
    for epoch in range(stage.epochs):
        for rows in minibatches(stage.rollout_size, stage.batch_size, config.seed, step, epoch):
            own = experience.rows(rows[world.rank * share : (world.rank + 1) * share])
            tokens = experience.mask[torch.as_tensor(rows)].sum().item()
            sums: dict[str, Tensor] = {}
            done = loop.train(
                split_batch(own, stage.micro_batch_size, world.device),
                lambda model, batch: ppo_loss(stage, model, batch, vocabulary, warming_up, sums) / tokens,  # noqa: B023
                int(tokens),
                stage.rollout_size if updates == 0 else 0,
            )
            names = sorted(sums)
            found = dict(zip(names, world.sum(*(float(sums[name]) for name in names)), strict=True))
            updates += 1
            approx_kl = found["kl_k3"] / tokens
            if updates == 1:
                first_kl = approx_kl
            for name in names:
                totals[name] = totals.get(name, 0.0) + found[name]
            if stage.max_kl is not None and approx_kl > stage.max_kl:
                return done, _learnt(totals, updates, first_kl)
    return done, _learnt(totals, updates, first_kl)


def ppo_loss(
    stage: PpoStage, model: Any, batch: Batch, vocabulary: Vocabulary, warming_up: bool, sums: dict[str, Tensor]
) -> Tensor:
    """Sum over a micro-batch's tokens of policy loss, value loss and entropy bonus; adds to `sums` what there is to
    report. warming_up: the value function learns alone, and the policy stays as it is."""
    mask, bonus = batch["mask"], stage.entropy_coef != 0 and not warming_up
    logprobs, values, entropy = policy_and_values(
        model,
        batch["input_ids"],
        batch["targets"],
        stage.temperature,
        vocabulary,
        entropy=bonus,
        detach_values=warming_up,
    )
    policy, policy_sums = ppo_policy_loss(
        logprobs,
        batch["logprobs"],
        batch["advantages"],
        mask,
        stage.clip_low,
        stage.clip_high,
        stage.dual_clip,
        stage.log_ratio_bound,
    )
    value, value_sums = value_loss(values, batch["values"], batch["returns"], mask, stage.value_clip)
    # Not left out while the value function warms up alone: DDP waits for every parameter's gradient.
    loss = policy.sum() * (0.0 if warming_up else 1.0) + stage.value_coef * value.sum()
    if entropy is not None:
        loss = loss - stage.entropy_coef * entropy.sum()
    more = {"value_clipped": value_sums["clipped"], "policy_loss": policy.sum(), "value_loss": value.sum()}
    for name, x in (policy_sums | more).items():
        sums[name] = sums.get(name, torch.zeros((), device=x.device)) + x.detach()
    return loss


def _learnt(totals: dict[str, float], updates: int, first_kl: float) -> dict[str, float]:
    tokens = totals["tokens"]
    return {
        "rl/policy_loss": totals["policy_loss"] / tokens,
        "rl/value_loss": totals["value_loss"] / tokens,
        "rl/approx_kl": totals["kl_k3"] / tokens,
        "rl/clip_frac": totals["clipped"] / tokens,
        "rl/value_clip_frac": totals["value_clipped"] / tokens,
        "rl/ratio": totals["ratio"] / tokens,
        "rl/updates": float(updates),
        "rl/first_kl": first_kl,
    }


class Clock:
    """Seconds of the parts of a step."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._begin = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._begin = now - self._begin, now
