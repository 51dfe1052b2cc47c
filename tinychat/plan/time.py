"""How long a step takes: pure functions. Products at an assumed share of the device's peak, sampling as fast as memory
is read, communication and offload without overlap. What starts no product (data, evaluation, saving) is left out."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tinychat.plan.devices import CPU, Hardware
from tinychat.plan.memory import Split, Work, offloads
from tinychat.plan.models import ModelPlan

OPERATORS_PER_LAYER = 15  # of a step of generation: tinychat.models.kernels.lean
ADAM_BYTES = 28  # read and written for each weight: gradient, fp32 weight and two moments, the last three twice


def body_flops(model: ModelPlan) -> float:
    """Of a forward pass per token, without the output head: a third of forward and backward."""
    return model.flops / 3 - 2.0 * model.head


def training_factor(model: ModelPlan, checkpointing: bool) -> float:
    """Forward and backward pass in forward passes: one for activations' gradients, one for weights', one more where
    activations are computed again. Under an adapter all layers pass gradients on, few weights have one."""
    share = model.trained / max(1, model.weights)
    backward = 2.0 if share == 1 else 1.0 + share if model.adapter else 2.0 * share
    return 1.0 + backward + (1.0 if checkpointing else 0.0)


def update_flops(trained: Sequence[ModelPlan], work: Work) -> float:
    """Of one optimizer step on one rank."""
    total = 0.0
    for model in trained:
        forward = work.length * body_flops(model) + work.targets * 2.0 * model.head
        total += forward * training_factor(model, work.checkpointing)
    return total * work.rows * work.accumulation


def traffic(count: int, whole: int, split: Split, work: Work, stored: int) -> float:
    """Bytes that a rank sends (and receives) for one optimizer step (Rajbhandari et al. 2020, section 7): gradients
    summed and results spread, twice the trained weights; with ZeRO 3 the weights again for each pass."""
    part = (split.ranks - 1) / split.ranks
    if split.zero == 3:
        return part * work.accumulation * (2 * whole + count) * stored
    passes = work.accumulation if split.zero == 2 else 1
    return part * count * stored * (1 + passes)


def update_seconds(
    models: Sequence[ModelPlan], split: Split, work: Work, stored: int, hardware: Hardware, rate: float
) -> dict[str, float]:
    """Of one optimizer step; rate: operations per second that products reach."""
    trained = [model for model in models if model.trained]
    count, whole = sum(model.trained for model in trained), sum(model.weights for model in trained)
    found = {"products": update_flops(trained, work) / rate}
    if split.ranks > 1:
        found["between ranks"] = traffic(count, whole, split, work, stored) / hardware.link
    if offloads(split) and not hardware.on_cpu:
        moved = 2 * stored * count / split.ranks / hardware.link
        found["optimizer on the host"] = moved + ADAM_BYTES * count / split.ranks / CPU.bandwidth
    if split.offload_param and split.zero == 3 and not hardware.on_cpu:
        found["weights from the host"] = 2 * work.accumulation * whole * stored / split.ranks / hardware.link
    return found


def sampling_seconds(
    policy: ModelPlan, replies: int, work: Work, computed: int, hardware: Hardware, rate: float
) -> float:
    """Replies of one rank, `work.sampled_rows` at a time: each token reads all weights and the keys and values so far,
    and starts every operator."""
    read = policy.weights * computed
    kv = work.sampled_rows * (work.prompt + work.response / 2) * policy.kv_width * computed
    products = 2.0 * policy.weights * work.sampled_rows
    token = max((read + kv) / hardware.bandwidth, products / rate)
    token += OPERATORS_PER_LAYER * policy.layers * hardware.per_operator
    prefill = work.prompt * work.sampled_rows * body_flops(policy) / rate
    return math.ceil(replies / work.sampled_rows) * (prefill + work.response * token)


def measuring_seconds(models: Sequence[ModelPlan], replies: int, work: Work, rate: float) -> float:
    """A forward pass of every model over the replies of one rank; each head once."""
    heads = 2.0 * sum(model.head for model in models)
    return replies * (work.length * sum(map(body_flops, models)) + work.targets * heads) / rate
