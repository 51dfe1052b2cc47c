"""stage=grpo and stage=rlvr: several replies to each prompt, and those become likelier that are better than their group
(Shao et al. 2024 and its relatives, by stage.loss), with rewards that a model gives or that can be verified.

What is their own: advantages within a group in place of a value function, and the losses of tinychat.rl.losses. The
loop of rollouts and updates around them is tinychat/stages/rollouts.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tinychat.config.rollout_stages import Correction, GroupLoss, GrpoStage, KLPlace, MissingEnd
from tinychat.config.schema import Config
from tinychat.engine import Batch
from tinychat.models.actor_critic import policy_and_values
from tinychat.models.vocabulary import Vocabulary, vocabulary
from tinychat.rl.advantages import group_advantages, part_advantages, sampler_correction, with_kl_penalty
from tinychat.rl.entropy import high_entropy_tokens
from tinychat.rl.losses import Sums, fresh_tokens, group_policy_loss, kl_loss, token_weights
from tinychat.rl.rollout import Experience, Rollout
from tinychat.stages import Context, StageResult
from tinychat.stages.chats import get_chat_tokenizer
from tinychat.stages.common import log
from tinychat.stages.policy import get_policy, mean
from tinychat.stages.rollouts import learn_from_rollouts
from tinychat.stages.updates import Algorithm, Coefficients

NEVER_CLIPS = 0.05  # a mean over a reply moves less than that in an update


def run(config: Config, context: Context) -> StageResult:
    tokenizer = get_chat_tokenizer(config, context)
    policy = get_policy(config, context, tokenizer)
    stage: GrpoStage = config.stage
    if stage.loss is GroupLoss.gspo and stage.clip_high > NEVER_CLIPS:
        log.warning(
            "stage.clip_high=%g: stage.loss=gspo clips the mean over a reply, which moves little; its authors take "
            "stage.clip_low=3e-4 stage.clip_high=4e-4",
            stage.clip_high,
        )
    weights = {name: part.weight for name, part in config.reward.parts.items()}
    return learn_from_rollouts(config, context, tokenizer, policy, algorithm(stage, vocabulary(tokenizer), weights))


def algorithm(stage: GrpoStage, words: Vocabulary, weights: dict[str, float]) -> Algorithm:
    """What the loop of rollouts is given. words: which rows of the policy's head are tokens; weights: of the reward's
    parts."""

    def advantages(rollout: Rollout, experience: Experience, beta: float) -> dict[str, float]:
        return add_advantages(stage, rollout, experience, weights, beta)

    def loss(model: Any, batch: Batch, _step: int, now: Coefficients) -> tuple[Tensor, Sums]:
        return grpo_loss(stage, model, batch, words, now)

    def count(replies: Batch) -> float:
        return max(1.0, _token_weights(stage, replies)[1].item())

    return Algorithm(advantages, loss, count, group=stage.group_size, refill=stage.refill)


def add_advantages(
    stage: GrpoStage, rollout: Rollout, experience: Experience, weights: dict[str, float], beta: float
) -> dict[str, float]:
    """From rollout.scores (N,) to the field `advantages` (N, T) of the experience, and what else the loss reads of a
    rollout: `sampled`, `correction` and `learnt`, where the settings ask for them. What there is to log of them."""
    fields, mask, size = experience.fields, experience.mask, stage.group_size
    kind, known = stage.loss.value, rollout.known
    scores = rollout.scores
    if stage.normalise_parts:  # what is left is the penalty for a missing end
        scores = scores - rollout.rewards
    gained, _ = group_advantages(scores, size, stage.scale_by_std and not stage.normalise_parts, kind, known)
    if stage.normalise_parts:
        parts = torch.tensor([rollout.parts[name] for name in weights]).T
        gained = gained + part_advantages(parts, torch.tensor(list(weights.values())), size, known)
    if beta and stage.kl_in is KLPlace.reward:
        fields["advantages"] = with_kl_penalty(gained, experience.kl(), beta, mask, size, kind)
    else:
        fields["advantages"] = gained[:, None] * mask
    if stage.entropy_share < 1:  # the others keep their KL
        fields["advantages"] *= high_entropy_tokens(fields["entropy"], mask, stage.entropy_share)
    if stage.drop_stale is not None or stage.correction is not Correction.none:
        fields["sampled"] = experience.per_token(rollout.sampled)
    if stage.correction is not Correction.none:
        bounds = (stage.correction_cap, stage.correction_low, stage.correction_high)
        fields["correction"] = sampler_correction(
            fields["logprobs"], fields["sampled"], mask, stage.correction.value, *bounds
        )
    if stage.missing_end is MissingEnd.mask:
        fields["learnt"] = torch.tensor(rollout.ended)[:, None] * mask.float()
    unique = [len({*map(tuple, rollout.responses[at : at + size])}) for at in range(0, len(rollout), size)]
    return {
        "rl/advantage_std": float(fields["advantages"][mask].std(unbiased=False)),
        "rl/group_unique": mean(unique),
    }


def grpo_loss(stage: GrpoStage, model: Any, batch: Batch, words: Vocabulary, now: Coefficients) -> tuple[Tensor, Sums]:
    """Sum over a micro-batch's tokens, weighed, of policy loss, KL and entropy bonus; and the sums to report."""
    mask, old = batch["mask"], batch["logprobs"]
    logprobs, _, entropy = policy_and_values(
        model,
        batch["input_ids"],
        batch["targets"],
        stage.temperature,
        words,
        entropy=now.entropy != 0,
        group=batch.get("group"),
    )
    policy, sums = group_policy_loss(
        logprobs,
        old,
        batch["advantages"],
        mask,
        stage.loss.value,
        stage.clip_low,
        stage.clip_high,
        stage.dual_clip,
        stage.log_ratio_bound,
        batch.get("correction"),
    )
    weights, _ = _token_weights(stage, batch)
    if stage.drop_stale is not None:
        fresh = fresh_tokens(logprobs, batch["sampled"], batch["advantages"], mask, stage.drop_stale)
        policy = policy * fresh
        sums["stale"] = (mask & ~fresh).sum().float()
    losses = policy
    if now.kl and stage.kl_in is KLPlace.loss:
        kl, more = kl_loss(logprobs, old, batch["ref_logprobs"], mask, stage.kl_loss.value)
        losses, sums = losses + now.kl * kl, sums | more
    if entropy is not None:
        losses = losses - now.entropy * entropy
    if "correction" in batch:
        sums["weight"] = batch["correction"].sum()
    ratio = (logprobs.detach() - old)[mask].exp()
    sums |= {"policy_loss": policy.sum(), "ratio_max": ratio.max(), "ratio_min": ratio.min()}
    return (weights * losses).sum(), sums


def _token_weights(stage: GrpoStage, batch: Batch) -> tuple[Tensor, Tensor]:
    return token_weights(batch["mask"], stage.loss.value, stage.response_length, batch.get("learnt"))
