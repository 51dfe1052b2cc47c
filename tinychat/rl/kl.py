"""How far a policy is from its reference: estimators from sampled tokens, and the exact value over the vocabulary.

Every result is fp32 in nats. Log-probabilities must be made with the temperature the tokens were sampled with, and
without top-k or top-p: the estimators assume tokens drawn from the policy itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tinychat.errors import UserError, no_such
from tinychat.models.kernels.head_loss import elements_at_once, exact_columns, tempered

LOG_RATIO_BOUND = 20.0  # exp(20) is 5e8: far beyond any ratio that means something, far below fp32's largest number


def same_shape(**tensors: Tensor) -> None:
    """Raise ValueError unless all shapes are equal: (B, 1) beside (B, T) or (B,) would broadcast without a word."""
    if len({tensor.shape for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"shapes must be equal: {shapes}")


def at_least_fp32(x: Tensor) -> Tensor:
    """x in fp32; float64 stays, so that gradients can be compared with exact ones."""
    return x if x.dtype is torch.float64 else x.float()


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of x where mask is not 0, a scalar in fp32. x may hold NaN or infinity elsewhere."""
    same_shape(x=x, mask=mask)
    return x.float().masked_fill(~mask.bool(), 0.0).sum()


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: str) -> Tensor:
    """KL(policy || reference) per token, estimated from the one token that was sampled.

    With d = logprobs - ref_logprobs (Schulman 2020, "Approximating KL divergence"):

        k1 = d                    unbiased; of either sign, so its variance is large
        k2 = d² / 2               biased, by third order in the distance; never negative
        k3 = exp(-d) - 1 + d      unbiased and never negative; its tail is heavy where the policy left the reference

    These are values, for rewards and reports. As a loss they differ more (over samples of the policy the gradient of k1
    is 0 on average, that of k3 belongs to KL(reference || policy)): a loss is tinychat.rl.losses.kl_loss.

    Args:
        logprobs, ref_logprobs: of the sampled tokens under both models, any one shape.
        estimator: "k1", "k2" or "k3".

    Returns:
        at least fp32, same shape. In k3, d is bounded to ±20.

    Raises:
        UserError: another estimator.
    """
    same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    if estimator not in ESTIMATORS:
        raise no_such("kl_estimator", estimator, "estimator", ESTIMATORS)
    return ESTIMATORS[estimator](at_least_fp32(logprobs) - at_least_fp32(ref_logprobs))


def _k1(d: Tensor) -> Tensor:
    return d


def _k2(d: Tensor) -> Tensor:
    return d.square() / 2


def _k3(d: Tensor) -> Tensor:
    d = d.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    return torch.expm1(-d) + d  # expm1: near d = 0 the value is d² / 2, which exp(-d) - 1 would round away


ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {"k1": _k1, "k2": _k2, "k3": _k3}


@torch.no_grad()
def logit_measures(
    logits: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    ref_logits: Tensor | None = None,
    full_kl: bool = True,
    elements: int | None = None,
) -> dict[str, Tensor]:
    """What a policy and its reference say of next tokens, from one pass over both logits, without gradient.

    With a and b the tempered logits less the largest of their row, A and B the row sums of exp(a) and exp(b):

        logprobs      a[target] - log A, and ref_logprobs b[target] - log B
        entropy       log A - Σ exp(a)·a / A
        full_kl       KL(policy || reference) = Σ exp(a)·(a - b) / A - log A + log B, exactly 0 where both are equal

    Args:
        logits, ref_logits: (n, V), finite. temperature divides both.
        targets: (n,).
        elements: how many logits become probabilities together; None: elements_at_once of the device.

    Returns:
        (n,) fp32 each, in nats: logprobs and entropy; with a reference ref_logprobs and full_kl too, the latter 0
        unless it is asked for. The log-probabilities are those of LinearNLL with `exact`, bit by bit.
    """
    names = ("logprobs", "entropy") if ref_logits is None else ("logprobs", "entropy", "ref_logprobs", "full_kl")
    found = {name: torch.zeros(len(logits), device=logits.device) for name in names}
    columns = exact_columns(logits.device)
    elements = elements or elements_at_once(logits.device.type == "cpu") // 4  # so many arrays are at work
    size = max(1, elements // min(columns, logits.shape[-1]))
    for start in range(0, len(logits), size):
        part = slice(start, start + size)
        both = [x[part] for x in (logits, ref_logits) if x is not None]
        tops = [z.amax(-1, keepdim=True).float() for z in both]
        own, *other = (z.gather(1, targets[part, None]).float() - top for z, top in zip(both, tops, strict=True))
        total, inner, apart, ref_total = (torch.zeros_like(own) for _ in range(4))
        for pieces in zip(*(z.split(columns, -1) for z in both), strict=True):
            low, *ref = (tempered(x.float() - top, temperature) for x, top in zip(pieces, tops, strict=True))
            e = low.exp()
            total += e.sum(-1, keepdim=True)
            inner += (e * low).sum(-1, keepdim=True)
            if ref and full_kl:
                apart += low.sub_(ref[0]).mul_(e).sum(-1, keepdim=True)
            if ref:
                ref_total += ref[0].exp_().sum(-1, keepdim=True)
        found["logprobs"][part] = -(total.log() - tempered(own, temperature))[:, 0]
        found["entropy"][part] = (total.log() - inner / total)[:, 0]
        if other:
            found["ref_logprobs"][part] = -(ref_total.log() - tempered(other[0], temperature))[:, 0]
        if other and full_kl:
            found["full_kl"][part] = (apart / total - (total.log() - ref_total.log()))[:, 0]
    return found


MAX_ERROR = 0.2  # an update looks no further than 20 % off the target, so that one odd rollout cannot throw β


class FixedKL:
    """β stays what the configuration says; there is nothing to save."""

    def __init__(self, beta: float) -> None:
        if not 0 <= beta < math.inf:
            raise UserError(f"beta={beta}: the weight of the KL penalty must be 0 or more")
        self.beta = beta

    def update(self, kl: float, n: int) -> float:
        """β for the next rollout."""
        return self.beta

    def state_dict(self) -> dict[str, float]:
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Nothing is taken over: β is the configuration's, also when a run is resumed."""


class AdaptiveKL:
    """β follows the KL: up while it is above the target, down while it is below.

    β ← β · (1 + clip(KL / target - 1, ±0.2) · n / horizon)      (Ziegler et al. 2019, section 2.2)

    beta: the first β. target: wanted KL, in the unit of update's `kl`. horizon: responses over which β can move by
    20 %; n / horizon counts as at most 1, or β could turn negative. Raises UserError unless all three are above 0.
    """

    def __init__(self, beta: float, target: float, horizon: float) -> None:
        for name, value in (("beta", beta), ("target", target), ("horizon", horizon)):
            if not 0 < value < math.inf:
                raise UserError(f"{name}={value}: an adaptive KL penalty needs a number above 0")
        self.beta, self.target, self.horizon = beta, target, horizon

    def update(self, kl: float, n: int) -> float:
        """Move β after a rollout and return it.

        kl: mean KL(policy || reference) over the responses of the rollout, all ranks. n: number of those responses.
        Raises ValueError for a KL that is not a number (every comparison with it is false, and β would rise unseen).
        """
        if math.isnan(kl):
            raise ValueError("the KL of the rollout is not a number")
        error = min(max(kl / self.target - 1, -MAX_ERROR), MAX_ERROR)
        self.beta *= 1 + error * min(n / self.horizon, 1.0)
        return self.beta

    def state_dict(self) -> dict[str, float]:
        return {"beta": self.beta}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on with a saved β; the state of a FixedKL leaves it as the configuration says."""
        self.beta = float(state.get("beta", self.beta))
