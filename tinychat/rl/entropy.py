"""Remedies for a policy that becomes certain before it has tried enough: learning from its undecided tokens, and an
entropy bonus that acts while it is too certain. (A third, clip-higher, is an argument of the policy losses.)"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tinychat.errors import UserError
from tinychat.rl.kl import same_shape


@torch.no_grad()
def high_entropy_tokens(entropy: Tensor, mask: Tensor, share: float) -> Tensor:
    """Which tokens are among the given share of most entropy (Wang et al. 2025, 2506.01939: 0.2): there a
    reply takes one way or another, and the others follow from it.

    Args:
        entropy: (B, T) of the policy before each token was chosen, in nats. Of ALL replies that share a rollout: the
            threshold is theirs, and a micro-batch or a rank alone would find another.
        mask: (B, T). What stands where it is 0 has no influence, NaN included.
        share: above 0, up to 1 (all).

    Returns:
        (B, T) bool to multiply the advantages by: the others have no policy loss, and keep their KL and their place in
        the denominator. At least one token; all that are equal to the last one taken are taken too.

    Raises:
        UserError: share outside (0, 1].
    """
    same_shape(entropy=entropy, mask=mask)
    if not 0 < share <= 1:
        raise UserError(f"entropy_share={share}: the share of tokens that is learnt from, above 0 and up to 1 (all)")
    kept = mask.bool()
    own = entropy[kept]
    if share == 1 or not len(own):
        return kept
    least = own.topk(math.ceil(share * len(own))).values[-1]
    return kept & (entropy >= least)


class TargetEntropy:
    """The coefficient c of an entropy bonus that keeps the policy's entropy from falling below a target.

    After each rollout c moves by `step`, up while the entropy is below the target and down, to 0 at the least, while it
    is above; and only below the target is the bonus given at all (He et al. 2025, Skywork-OR1, 2505.22312, adaptive
    entropy control; its step is 0.005). A constant bonus does too little or too much, depending on the data.

    target: wanted entropy in nats per token. Raises UserError unless both are above 0.
    """

    def __init__(self, target: float, step: float) -> None:
        for name, value in (("entropy_target", target), ("entropy_step", step)):
            if not 0 < value < math.inf:
                raise UserError(f"{name}={value}: a bonus with a target needs a number above 0")
        self.target, self.step, self.coefficient = target, step, 0.0

    def update(self, entropy: float) -> float:
        """What the bonus of this rollout's updates is multiplied by, from its mean entropy per token over all ranks.

        Raises ValueError for an entropy that is not a number (c would fall unseen).
        """
        if math.isnan(entropy):
            raise ValueError("the entropy of the rollout is not a number")
        low = entropy < self.target
        self.coefficient = max(0.0, self.coefficient + (self.step if low else -self.step))
        return self.coefficient if low else 0.0

    def state_dict(self) -> dict[str, float]:
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on with a saved coefficient; without one, from 0."""
        self.coefficient = float(state.get("coefficient", 0.0))
