"""The updates of a step that learns from rollouts: what a stage does in its own way in them, and minibatches of a
rollout, each with conversations beside it where stage.ptx asks for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from tinychat.config.schema import Config
from tinychat.engine import Batch, Engine, StepStats
from tinychat.rl.losses import Sums
from tinychat.rl.rollout import Experience, Rollout, minibatches
from tinychat.runtime.world import World
from tinychat.stages.common import split_padded, up_to_last_target
from tinychat.stages.loop import TrainingLoop
from tinychat.stages.ptx import Conversations


def response_tokens(batch: Batch) -> float:
    """Of a batch."""
    return batch["mask"].sum().item()


@dataclass(frozen=True)
class Coefficients:
    """What controllers say that a step's KL penalty and entropy bonus weigh."""

    kl: float
    entropy: float


@dataclass(frozen=True)
class Algorithm:
    """What a stage that learns from rollouts does in its own way."""

    # (rollout, experience, weight of the KL penalty) -> what there is to log. Reads rollout.scores and the measures of
    # the experience, and adds to its fields what the loss needs.
    advantages: Callable[[Rollout, Experience, float], dict[str, float]]
    # (model, micro-batch with every field of the experience, step, coefficients) -> the loss, SUMMED over the
    # micro-batch; and detached sums over its response tokens, "tokens" and "kl_k3" as ppo_policy_loss counts them among
    # them. Those in REPORTED are logged.
    loss: Callable[[Any, Batch, int, Coefficients], tuple[Tensor, Sums]]
    # An update's replies, of all ranks -> what the sum of their losses is divided by.
    count: Callable[[Batch], float] = response_tokens
    # (engine, step), before a step's updates.
    prepare: Callable[[Engine, int], None] = lambda _engine, _step: None
    # step -> whether the policy learns, and not a value function alone.
    policy_learns: Callable[[int], bool] = lambda _step: True
    group: int = 1  # replies to a prompt, side by side in a rollout and together in an update
    refill: int = 0  # times that groups whose rewards are all equal make room for others, at most


# Sums of a loss, as means over the tokens of all updates of a step; and what its extremes are called.
REPORTED = {
    "policy_loss": "rl/policy_loss",
    "value_loss": "rl/value_loss",
    "kl_k3": "rl/approx_kl",
    "clipped": "rl/clip_frac",
    "value_clipped": "rl/value_clip_frac",
    "ratio": "rl/ratio",
    "ratio_max": "rl/ratio_max",
    "ratio_min": "rl/ratio_min",
    "weight": "rl/correction",
    "stale": "rl/stale",
    "ref_kl": "rl/kl_loss",
}
EXTREMES: dict[str, Callable[..., Any]] = {"ratio_max": max, "ratio_min": min}


def learn(
    config: Config,
    loop: TrainingLoop,
    engine: Engine,
    experience: Experience,
    algorithm: Algorithm,
    step: int,
    now: Coefficients,
    ptx: Conversations | None = None,
) -> tuple[StepStats, dict[str, float]]:
    """The updates of a step: each epoch goes through all replies once, in minibatches. Ends early beyond stage.max_kl.
    ptx: what each update learns from beside its replies, in further micro-batches; None: nothing.

    Returns the last update, and the means over the tokens of all of them; rl/first_kl is that of the first update,
    before which the policy is the one that wrote the replies.
    """
    stage, world = config.stage, engine.world
    algorithm.prepare(engine, step)
    engine.rest()  # sampling and measuring free what updates have no use for, and the other way round
    rollout_size, share = stage.rollout_size, stage.batch_size // world.size
    together = math.gcd(share, algorithm.group)  # ranks may share a group
    totals: dict[str, float] = {}
    done, updates, first_kl = StepStats(0.0, 0.0), 0, 0.0
    planned = stage.epochs * rollout_size // stage.batch_size
    every = (rollout_size, stage.batch_size, config.seed, step)
    for rows in (rows for epoch in range(stage.epochs) for rows in minibatches(*every, epoch, algorithm.group)):
        replies = experience.rows(rows)
        own = experience.rows(rows[world.rank * share : (world.rank + 1) * share])
        sums: Sums = {}
        used = up_to_last_target(own["targets"])
        parts = split_padded(own, used, stage.micro_batch_size, world.device, together)
        loss = _counting(lambda model, batch: algorithm.loss(model, batch, step, now), algorithm.count(replies), sums)
        if ptx is not None:
            # Which conversations it is does not depend on max_kl, which may have ended earlier steps.
            number = (step - 1) * planned + updates
            beside = ptx.of_update(number, world)
            used = up_to_last_target(beside["targets"])
            parts += split_padded(beside, used, stage.micro_batch_size, world.device)
            # Computed with weight 0 while a value function learns alone: an engine counts micro-batches.
            weight = ptx.coef if algorithm.policy_learns(step) else 0.0
            loss = _with_conversations(loss, _counting(ptx.loss, ptx.tokens(number), sums), weight)
        done = loop.train(
            parts,
            loss,
            int(response_tokens(replies)),
            rollout_size if updates == 0 else 0,
        )
        found = _of_all_ranks(sums, world)
        updates += 1
        approx_kl = found["kl_k3"] / found["tokens"]
        if updates == 1:
            first_kl = approx_kl
        for name, x in found.items():
            totals[name] = _joined(name, totals.get(name), x)
        if stage.max_kl is not None and approx_kl > stage.max_kl:
            break
    engine.rest()
    means = {
        title: totals[name] if name in EXTREMES else totals[name] / totals["tokens"]
        for name, title in REPORTED.items()
        if name in totals
    }
    if ptx is not None:
        means["rl/ptx_loss"] = totals["ptx_nll"] / max(1.0, totals["ptx_tokens"])
    return done, means | {"rl/updates": float(updates), "rl/first_kl": first_kl}


def _counting(
    loss: Callable[[Any, Batch], tuple[Tensor, Sums]], count: float, sums: Sums
) -> Callable[[Any, Batch], Tensor]:
    """The loss as an engine calls it, a part of the whole batch's mean; adds to `sums` what there is to report."""

    def of(model: Any, batch: Batch) -> Tensor:
        total, more = loss(model, batch)
        for name, x in more.items():
            sums[name] = _joined(name, sums.get(name), x.detach())
        return total / count

    return of


def _with_conversations(
    of_replies: Callable[[Any, Batch], Tensor], of_conversations: Callable[[Any, Batch], Tensor], weight: float
) -> Callable[[Any, Batch], Tensor]:
    """The loss of a micro-batch of a rollout's replies, or of conversations, which have no `mask`."""

    def of(model: Any, batch: Batch) -> Tensor:
        return of_replies(model, batch) if "mask" in batch else weight * of_conversations(model, batch)

    return of


Number = TypeVar("Number", float, Tensor)


def _joined(name: str, before: Number | None, x: Number) -> Number:
    """What a loss says of two parts: their sum, or the larger or smaller of both."""
    if before is None:
        return x
    return EXTREMES[name](before, x) if name in EXTREMES else before + x


def _of_all_ranks(sums: Sums, world: World) -> dict[str, float]:
    """The sums over all ranks; every rank has the same names."""
    names = sorted(sums.keys() - EXTREMES.keys())
    found = dict(zip(names, world.sum(*(float(sums[name]) for name in names)), strict=True))
    for name in sorted(sums.keys() & EXTREMES.keys()):
        sign = 1 if EXTREMES[name] is max else -1
        found[name] = sign * world.max(sign * float(sums[name]))
    return found
