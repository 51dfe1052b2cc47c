"""Losses on pairs of replies and on labelled ones: of policies that learn from preferences, and of reward models.

Each returns its terms one by one, in fp32 and not averaged, and what there is to report as detached SUMS; see
tinychat.rl.losses.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tinychat.errors import UserError, no_such
from tinychat.rl.kl import at_least_fp32, same_shape
from tinychat.rl.losses import Sums

KINDS = ("sigmoid", "ipo", "hinge", "rpo", "simpo", "orpo")
WITHOUT_REFERENCE = ("simpo", "orpo")
BY_LENGTH = ("ipo", "simpo", "orpo")  # each side is divided by its length, whatever is asked for
SMOOTHED = ("sigmoid", "rpo")
SUREST = -1e-6  # of a mean log-probability: the odds of a reply that is certain have no logarithm


def preference_loss(
    kind: str,
    logprobs: Tensor,
    lengths: Tensor,
    ref_logprobs: Tensor | None,
    beta: float,
    label_smoothing: float = 0.0,
    rpo_weight: float = 1.0,
    target_margin: float = 0.0,
    by_length: bool = False,
) -> tuple[Tensor, Sums]:
    """Losses of policies on pairs, the chosen reply w and the rejected one l. With ℓ a reply's log-probability, |y| its
    length and h = (ℓ - ℓ_ref) of w minus that of l:

        sigmoid   -log σ(βh)                                        (Rafailov et al. 2023, DPO, eq. 7); ln 2 where h = 0
                  with label_smoothing ε: -(1 - ε) log σ(βh) - ε log σ(-βh): a share ε of the labels is taken to be
                  wrong (Mitchell 2023, conservative DPO)
        hinge     max(0, 1 - βh)                                    (Liu et al. 2024, RSO, eq. 6, after SLiC)
        ipo       (h - 1 / 2β)², h of means over tokens, as its     (Azar et al. 2024, eq. 17)
                  authors compute it: sums would ask of long replies what short ones cannot have
        rpo       sigmoid + rpo_weight · (-ℓ_w / |w|)               (Pang et al. 2024, iterative RPO, eq. 1): what helps
                  where both log-probabilities fall
        simpo     -log σ(β(ℓ_w / |w| - ℓ_l / |l|) - target_margin)  (Meng et al. 2024, SimPO, eq. 6)
        orpo      -ℓ_w / |w| - β log σ(log odds(w) - log odds(l)), the odds p / (1 - p) of p = exp(ℓ / |y|)
                                                                    (Hong et al. 2024, ORPO, eq. 6 and 7)

    Args:
        logprobs: (N, 2) of whole replies, chosen and rejected, summed over their tokens, the end token included.
        lengths: (N, 2) those tokens, at least 1 each.
        ref_logprobs: (N, 2) under the reference; not read by simpo and orpo, which have none.
        beta: strength of the pull to the reference, above 0; of simpo the scale of the rewards, of orpo the weight of
            its second term.
        by_length: divide each side's (ℓ - ℓ_ref) by its length; a larger beta goes with it.

    Returns:
        losses (N,); and sums: pairs; correct (pairs whose chosen reply has the higher reward, a tie counts half);
        margin, chosen_reward, rejected_reward, the reward being β(ℓ - ℓ_ref), without a reference β ℓ / |y|;
        chosen_logprobs, rejected_logprobs.

    Raises:
        UserError: another kind, and settings that it cannot work with.
    """
    same_shape(logprobs=logprobs, lengths=lengths)
    _check(kind, ref_logprobs is not None, beta, label_smoothing, rpo_weight)
    own, sizes = at_least_fp32(logprobs), lengths.to(logprobs.device)
    gain = gains(kind, own, sizes, ref_logprobs, by_length)
    h = gain[:, 0] - gain[:, 1]
    if kind == "ipo":
        losses = (h - 1 / (2 * beta)).square()
    elif kind == "hinge":
        losses = F.relu(1 - beta * h)
    elif kind == "simpo":
        losses = -F.logsigmoid(beta * h - target_margin)
    elif kind == "orpo":
        sure = gain.clamp(max=SUREST)
        odds = sure - (-torch.expm1(sure)).log()
        losses = -beta * F.logsigmoid(odds[:, 0] - odds[:, 1])
    else:
        losses = -(1 - label_smoothing) * F.logsigmoid(beta * h) - label_smoothing * F.logsigmoid(-beta * h)
    if weight := {"rpo": rpo_weight, "orpo": 1.0}.get(kind, 0.0):
        losses = losses - weight * own[:, 0] / sizes[:, 0]
    good, bad = own.detach().sum(0)
    rewards = beta * gain
    return losses, _pair_sums(rewards[:, 0], rewards[:, 1]) | {"chosen_logprobs": good, "rejected_logprobs": bad}


def gains(kind: str, logprobs: Tensor, lengths: Tensor, ref_logprobs: Tensor | None, by_length: bool) -> Tensor:
    """What a loss compares of both sides: (N, 2), β times it being the reward; arguments as for preference_loss."""
    found = at_least_fp32(logprobs)
    if kind not in WITHOUT_REFERENCE:
        assert ref_logprobs is not None
        same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
        found = found - at_least_fp32(ref_logprobs)
    return found / lengths if by_length or kind in BY_LENGTH else found


def _check(kind: str, has_reference: bool, beta: float, label_smoothing: float, rpo_weight: float) -> None:
    if kind not in KINDS:
        raise no_such("loss", kind, "loss of preferences", KINDS)
    if not has_reference and kind not in WITHOUT_REFERENCE:
        without = " and ".join(WITHOUT_REFERENCE)
        raise UserError(f"loss={kind} compares with a reference, and there is none; {without} need none")
    if not beta > 0:
        raise UserError(f"beta={beta}: losses of preferences need a number above 0")
    if not 0 <= label_smoothing < 0.5:
        raise UserError(f"label_smoothing={label_smoothing}: from 0 up to, not including, 0.5")
    if label_smoothing and kind not in SMOOTHED:
        raise UserError(f"label_smoothing={label_smoothing}: loss={kind} has none; {' and '.join(SMOOTHED)} do")
    if rpo_weight < 0:
        raise UserError(f"rpo_weight={rpo_weight}: a weight, 0 or more")


def bradley_terry_loss(
    chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0, centring: float = 0.0
) -> tuple[Tensor, Sums]:
    """-log σ(chosen - rejected - margin) + centring · (chosen + rejected)², the loss of a reward model on pairs.

    (Ouyang et al. 2022, eq. 1; margin: Touvron et al. 2023, Llama 2, eq. 2; centring: Eisenstein et al. 2023.) The
    first term only sees differences; a little centring keeps the scores themselves near 0.

    Args:
        chosen, rejected: (B,) scores.
        margin: one number, or (B,) by how much each pair should differ.

    Returns:
        losses (B,); and sums: pairs; correct (chosen > rejected, a tie counts half); margin (chosen - rejected),
        chosen_reward, rejected_reward.
    """
    same_shape(chosen=chosen, rejected=rejected)
    good, bad = chosen.float(), rejected.float()
    if isinstance(margin, Tensor):
        same_shape(chosen=chosen, margin=margin)
        margin = margin.float()
    losses = -F.logsigmoid(good - bad - margin)
    if centring:
        losses = losses + centring * (good + bad).square()
    return losses, _pair_sums(good, bad)


def _pair_sums(good: Tensor, bad: Tensor) -> Sums:
    good, bad = good.detach(), bad.detach()
    return {
        "pairs": torch.tensor(float(len(good)), device=good.device),
        # Half for a tie, so that a model that gives one score to everything is right half the time, as it is.
        "correct": ((good - bad).sign() + 1).sum() / 2,
        "margin": (good - bad).sum(),
        "chosen_reward": good.sum(),
        "rejected_reward": bad.sum(),
    }


def pointwise_loss(scores: Tensor, labels: Tensor) -> tuple[Tensor, Sums]:
    """Binary cross-entropy of σ(score) with labels in [0, 1], for reward models trained on single responses.

    scores, labels (B,) -> losses (B,); and sums: samples; correct (score > 0 where label > 0.5, a score of 0 counts
    half); score.
    """
    same_shape(scores=scores, labels=labels)
    scores, labels = scores.float(), labels.float()
    losses = F.binary_cross_entropy_with_logits(scores, labels, reduction="none")
    own = scores.detach()
    side = torch.where(labels > 0.5, own, -own).sign()
    sums = {
        "samples": torch.tensor(float(len(own)), device=own.device),
        "correct": (side + 1).sum() / 2,
        "score": own.sum(),
    }
    return losses, sums
