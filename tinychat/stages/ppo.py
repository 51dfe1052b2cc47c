"""stage=ppo: proximal policy optimisation (Schulman et al. 2017) of a policy against a reward, kept near the policy it
starts from (Ziegler et al. 2019; Ouyang et al. 2022).

What is PPO's own: a value function, advantages by it, and the clipped loss. The loop of rollouts and updates around
them is tinychat/stages/rollouts.py.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tinychat.config.plugins import reward_models
from tinychat.config.rollout_stages import PpoStage, ValueInit, ValueKind
from tinychat.config.schema import Config
from tinychat.engine import Batch, Engine
from tinychat.models.actor_critic import ActorCritic, policy_and_values
from tinychat.models.one_base import VALUE, add_value_adapter, other_base
from tinychat.models.reward import start_reward_model
from tinychat.models.vocabulary import Vocabulary, vocabulary
from tinychat.rl.advantages import gae, per_token_rewards, whiten
from tinychat.rl.losses import Sums, ppo_policy_loss, value_loss
from tinychat.rl.rollout import Experience, Rollout
from tinychat.stages import Context, StageResult
from tinychat.stages.chats import get_chat_tokenizer
from tinychat.stages.common import log
from tinychat.stages.policy import WHOLE, get_policy
from tinychat.stages.rollouts import learn_from_rollouts
from tinychat.stages.updates import Algorithm, Coefficients
from tinychat.text.tokenizer import vocabulary_size


def run(config: Config, context: Context) -> StageResult:
    tokenizer = get_chat_tokenizer(config, context)
    model = get_actor_critic(config, context, tokenizer)
    return learn_from_rollouts(config, context, tokenizer, model, algorithm(config.stage, vocabulary(tokenizer)))


def get_actor_critic(config: Config, context: Context, tokenizer: Any) -> ActorCritic:
    """The policy of init_from, without dropout, with a value function whose head is zero."""
    stage, policy, value = config.stage, get_policy(config, context, tokenizer), None
    models = [str(context.parents[f"reward.{name}"]) for name in reward_models(config.reward, reads_tokens=True)]
    start = models[0] if stage.value_from is ValueInit.reward and models else None
    if stage.value is ValueKind.own:
        where = start or str(context.parents["init_from"])
        value = start_reward_model(where, WHOLE, None, dropout=0.0, entries=vocabulary_size(tokenizer))
        log.info("value function: a backbone of its own, from %s", where)
    if stage.value is not ValueKind.adapter:
        return ActorCritic(policy, value, stage.critic_lr_ratio)
    if start is not None and (why := other_base(policy, start)):
        log.info("value function: a new adapter, and not that of %s: %s", start, why)
        start = None
    add_value_adapter(policy, config.peft, start)
    log.info("value function: an adapter on the policy's base, %s", f"from {start}" if start else "new")
    return ActorCritic(policy, None, stage.critic_lr_ratio, VALUE)


def algorithm(stage: PpoStage, words: Vocabulary) -> Algorithm:
    """What the loop of rollouts is given. words: which rows of the policy's head are tokens."""

    def advantages(rollout: Rollout, experience: Experience, beta: float) -> dict[str, float]:
        return add_advantages(stage, rollout, experience, beta)

    def loss(model: Any, batch: Batch, step: int, now: Coefficients) -> tuple[Tensor, Sums]:
        return ppo_loss(stage, model, batch, words, now.entropy, not policy_learns(step))

    def policy_learns(step: int) -> bool:
        return step > stage.critic_warmup

    def prepare(engine: Engine, step: int) -> None:
        if stage.critic_warmup:  # decay would move a policy that has no gradient
            engine.set_weight_decay(1.0 if policy_learns(step) else 0.0)

    return Algorithm(advantages, loss, prepare=prepare, policy_learns=policy_learns)


def add_advantages(stage: PpoStage, rollout: Rollout, experience: Experience, beta: float) -> dict[str, float]:
    """From rollout.scores (N,) to the fields `rewards`, `advantages` and `returns` (N, T) of the experience; what there
    is to log of them. The KL penalty is part of the reward, token by token."""
    fields, mask = experience.fields, experience.mask
    rewards = per_token_rewards(rollout.scores, experience.kl(stage.kl_estimator.value), beta, mask)
    if stage.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)
    advantages, returns = gae(rewards, fields["values"], mask, stage.gamma, stage.lam)
    spread = returns[mask].var(unbiased=False)
    unexplained = (returns - fields["values"])[mask].var(unbiased=False)
    fields["rewards"] = rewards
    fields["advantages"] = whiten(advantages, mask) if stage.whiten_advantages else advantages
    fields["returns"] = returns
    return {
        "rl/advantage_std": float(advantages[mask].std(unbiased=False)),
        "rl/explained_variance": (1 - unexplained / spread).item() if spread > 0 else 0.0,
    }


def ppo_loss(
    stage: PpoStage, model: Any, batch: Batch, words: Vocabulary, entropy_coef: float, warming_up: bool
) -> tuple[Tensor, Sums]:
    """Sum over a micro-batch's tokens of policy loss, value loss and entropy bonus; and the sums to report.

    warming_up: the value function learns alone, and the policy stays as it is.
    """
    mask, bonus = batch["mask"], entropy_coef != 0 and not warming_up
    logprobs, values, entropy = policy_and_values(
        model,
        batch["input_ids"],
        batch["targets"],
        stage.temperature,
        words,
        entropy=bonus,
        detach_values=warming_up,
    )
    assert values is not None  # PPO's model has a value function
    policy, sums = ppo_policy_loss(
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
        loss = loss - entropy_coef * entropy.sum()
    sums |= {"value_clipped": value_sums["clipped"], "policy_loss": policy.sum(), "value_loss": value.sum()}
    return loss, sums
