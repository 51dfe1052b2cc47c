"""Replies that a policy samples before it learns from any, and what they are compared with and judged by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tinychat.config.schema import Config
from tinychat.data.preferences.prompts import PromptBatches
from tinychat.doctor.findings import Findings
from tinychat.errors import UserError
from tinychat.models.kernels.head_loss import tempered
from tinychat.models.logprobs import OutputHead, last_hidden
from tinychat.rl.rewards import Rewards
from tinychat.rl.rollout import Experience, Rollout
from tinychat.rl.selfcheck import SCORE_TOLERANCE, check_draws, check_first_kl
from tinychat.stages.policy import Reference, Sampler
from tinychat.stages.rollouts import step_seed

REPLIES = 64  # looked at
PROBABILITIES = 1 << 23  # looked at together


def look_at_replies(
    findings: Findings, config: Config, sampler: Sampler, prompts: PromptBatches, rewards: Rewards, group: int
) -> None:
    """Add what is found of a rollout such as the first step's, of `group` replies to each prompt."""
    size = max(1, min(config.stage.rollout_size, REPLIES) // group)
    rollout = sampler.sample(prompts.batch(0, size), step_seed(config.seed, 1), group)
    experience = sampler.measure(rollout)
    findings.ask("end drawn", lambda: _ended(rollout))
    findings.ask("draws", lambda: _draws(sampler, rollout, experience))
    if (reference := sampler.models.reference) is not None:
        findings.ask("reference", lambda: _reference_mode(sampler, reference))
        findings.ask("kl", lambda: _first_kl(sampler, experience))
    try:
        scores = _scores(sampler, rewards, rollout)
    except UserError as error:
        findings.add("reward repeats", False, str(error))
        return
    findings.ask("reward repeats", lambda: _repeats(sampler, rewards, rollout, scores))
    findings.ask("reward differs", lambda: _differs(scores, group))


def _ended(rollout: Rollout) -> str:
    ended = sum(rollout.ended)
    said = f"{ended} of {len(rollout)} sampled replies ended by themselves"
    if not ended:
        raise UserError(said)
    return said


def _draws(sampler: Sampler, rollout: Rollout, experience: Experience) -> str:
    probabilities, chosen = _distributions(sampler, experience)
    sigmas, missing = check_draws(probabilities, chosen)
    sampled = torch.cat([torch.tensor(part) for part in rollout.sampled])
    gap = (sampled - experience.fields["logprobs"][experience.mask]).abs()
    return (
        f"{len(chosen)} tokens: log-probabilities {sigmas:+.1f} standard errors from what is expected, {missing:.1f} "
        f"tokens missing from the tail; recorded within {gap.mean():.1e} nats on average, {gap.max():.1e} at most"
    )


@torch.no_grad()
def _distributions(sampler: Sampler, experience: Experience) -> tuple[Tensor, Tensor]:
    """(n, V) fp32 probabilities that the policy gives to tokens, and which were drawn (n,)."""
    models = sampler.models
    size = models.vocabulary.size or models.engine.model.config.vocab_size
    counts = experience.mask.sum(1).cumsum(0)
    rows = max(1, int((counts <= PROBABILITIES // size).sum()))
    device = models.world.device
    ids, mask = experience.input_ids[:rows].to(device), experience.mask[:rows].to(device)
    with models.inference() as policy:
        with last_hidden(policy) as seen:
            policy(input_ids=ids, use_cache=False)
        with models.engine.whole(policy.get_output_embeddings()):
            logits = OutputHead(policy, models.vocabulary).logits(seen[0][mask])
    probabilities = torch.softmax(tempered(logits.float(), sampler.temperature), -1)
    return probabilities.cpu(), experience.targets[:rows][experience.mask[:rows]]


def _reference_mode(sampler: Sampler, reference: Reference) -> str:
    with sampler.models.inference() as policy, reference.model(policy) as model:
        training = [name or "the model" for name, module in model.named_modules() if module.training]
    if training:
        raise UserError(f"the reference is in training mode ({training[0]} and {len(training) - 1} more parts)")
    return "all of its parts are"


def _first_kl(sampler: Sampler, experience: Experience) -> str:
    fields, mask = experience.fields, experience.mask
    own, reference = fields["logprobs"][mask], fields["ref_logprobs"][mask]
    gap = check_first_kl(own, reference, sampler.models.dtype, sampler.temperature)
    return f"{(own - reference).mean():.1e} nats a token, {gap:.1e} at most on one"


def _scores(sampler: Sampler, rewards: Rewards, rollout: Rollout) -> Tensor:
    return rewards.score(rollout.rows, sampler.replies(rollout), rollout.sequences)[0]


def _repeats(sampler: Sampler, rewards: Rewards, rollout: Rollout, scores: Tensor) -> str:
    """The same replies again, and in the other order in two parts."""
    again = _scores(sampler, rewards, rollout)
    if changed := int((again != scores).sum()):
        gap = float((again - scores).abs().max())
        raise UserError(f"scored twice, {changed} of {len(scores)} replies got another reward, up to {gap:.3g} apart")
    order = list(reversed(range(len(rollout))))
    parts: list[Any] = []
    for chosen in (order[: len(order) // 3], order[len(order) // 3 :]):
        lists = (rollout.rows, rollout.prompts, rollout.responses, rollout.sampled, rollout.ended)
        picked: Any = ([part[index] for index in chosen] for part in lists)
        parts += [_scores(sampler, rewards, Rollout(*picked))] if chosen else []
    gap = float((torch.cat(parts).flip(0) - scores).abs().max())
    bound = SCORE_TOLERANCE[sampler.models.dtype] * max(1.0, float(scores.std()) if len(scores) > 1 else 1.0)
    if not gap <= bound:
        raise UserError(f"in other batches the same replies got other rewards, up to {gap:.3g} apart")
    return f"the same when scored again, within {gap:.1e} in other batches"


def _differs(scores: Tensor, group: int) -> str:
    distinct = len(set(scores.tolist()))
    said = f"mean {scores.mean():.3g}, standard deviation {scores.std(unbiased=False):.3g}, {distinct} different values"
    if distinct < 2:
        raise UserError(f"all {len(scores)} replies got {scores[0]:.3g}")
    if group == 1:
        return said
    groups = scores.view(-1, group)
    apart = int((groups.max(1).values > groups.min(1).values).sum())
    if not apart:
        raise UserError(f"within each of {len(groups)} groups of {group} all rewards are equal")
    return f"{said}, {apart} of {len(groups)} groups of {group} differ in themselves"
