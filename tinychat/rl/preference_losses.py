"""Losses on pairs of replies and on labelled ones: of policies that learn from preferences, and of reward models.

Each returns its terms one by one, in fp32 and not averaged, and what there is to report as detached SUMS; see
tinychat.rl.losses.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tinychat.errors import UserError
from tinychat.rl.kl import same_shape
from tinychat.rl.losses import Sums


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    kind: str = "sigmoid",
    label_smoothing: float = 0.0,
    reference_free: bool = False,
) -> tuple[Tensor, Sums]:
    """Losses of direct preference optimisation, with h = (chosen - rejected) - (ref_chosen - ref_rejected).

        sigmoid   -log σ(βh)                                    (Rafailov et al. 2023, eq. 7); ln 2 where h = 0
                  with label_smoothing ε: -(1 - ε) log σ(βh) - ε log σ(-βh): a share ε of the labels is taken to be
                  wrong (Mitchell 2023, conservative DPO)
        ipo       (h - 1 / 2β)²                                 (Azar et al. 2024, eq. 17)

    Args:
        chosen, rejected: (B,) log-probability of each whole response under the policy, summed over its tokens.
        ref_chosen, ref_rejected: (B,) the same under the reference; not read when reference_free.
        beta: strength of the pull to the reference, above 0.

    Returns:
        losses (B,); and sums: pairs; correct (pairs the implicit reward β(log π - log π_ref) puts right, a tie counts
        half); margin, chosen_reward, rejected_reward.

    Raises:
        UserError: another kind, label smoothing outside [0, 0.5) or with ipo, beta not above 0.
    """
    same_shape(chosen=chosen, rejected=rejected, ref_chosen=ref_chosen, ref_rejected=ref_rejected)
    if kind not in ("sigmoid", "ipo"):
        raise UserError(f"DPO loss {kind!r} does not exist; choose sigmoid or ipo")
    if beta <= 0:
        raise UserError(f"beta={beta}: DPO needs a number above 0")
    if not 0 <= label_smoothing < 0.5 or (label_smoothing and kind == "ipo"):
        raise UserError(f"label_smoothing={label_smoothing}: must be from 0 up to, not including, 0.5; with ipo only 0")
    good, bad = chosen.float(), rejected.float()
    if not reference_free:
        good, bad = good - ref_chosen.float(), bad - ref_rejected.float()
    h = good - bad
    if kind == "ipo":
        losses = (h - 1 / (2 * beta)).square()
    else:
        losses = -(1 - label_smoothing) * F.logsigmoid(beta * h) - label_smoothing * F.logsigmoid(-beta * h)
    return losses, _pair_sums(beta * good, beta * bad)


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
