"""The weight β of the KL penalty over a run."""

from __future__ import annotations

import math

from tinychat.errors import UserError

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
