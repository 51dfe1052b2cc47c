"""Alarms of reinforcement learning: they say in plain words what goes wrong, which shows in the metrics long before the
end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

KL_BLOW_UP = 50.0  # nats per reply, whatever the target
KL_TIMES_TARGET = 4.0
ENTROPY_LEFT = 0.1  # share of the first rollout's entropy
EOS_LOST = 0.5  # of the first rollout's rate
LENGTH_TIMES = 2.0  # the first rollout's length
CLIPPED = 0.5  # share of tokens
GOLD_WINDOW = 6  # rollouts compared with as many before them
GOLD_FALL = 0.02  # of the gold reward, while the reward rises


@dataclass
class Alarms:
    """Compares each rollout's metrics with the first one's; each alarm is told when it begins, not again while it
    lasts. `state` is plain numbers: saved with a checkpoint, a resumed run goes on comparing."""

    kl_target: float | None = None
    sampler_gap: float | None = None  # bound on rl/sampler_gap, in nats per token; None: no alarm
    state: dict[str, list[float]] = field(default_factory=dict)
    active: dict[str, str] = field(default_factory=dict)  # the alarms of the last rollout: name -> sentence

    def check(self, metrics: Mapping[str, float]) -> list[str]:
        """The alarms that begin with this rollout, each a sentence that says what to try."""
        for name in ("rl/entropy", "rl/eos_rate", "rl/response_length"):
            self.state.setdefault(name, [metrics[name]])
        for name in ("rl/reward", "rl/gold_reward"):
            if name in metrics:
                self.state[name] = [*self.state.get(name, []), metrics[name]][-2 * GOLD_WINDOW :]
        found = self._now(metrics)
        new = [text for name, text in found.items() if name not in self.active]
        self.active = found
        return new

    def _now(self, metrics: Mapping[str, float]) -> dict[str, str]:
        found = {}
        kl, entropy, length = metrics.get("rl/kl", 0.0), metrics["rl/entropy"], metrics["rl/response_length"]
        bound = KL_BLOW_UP if self.kl_target is None else KL_TIMES_TARGET * self.kl_target
        if kl > bound:
            found["kl"] = (
                f"KL blow-up: {kl:.1f} nats per reply away from the reference (more than {bound:.0f}); the policy no "
                "longer speaks as it was taught: raise stage.beta, lower stage.lr, or set stage.kl=adaptive"
            )
        if entropy < ENTROPY_LEFT * self.state["rl/entropy"][0]:
            found["entropy"] = (
                f"entropy collapse: {entropy:.3f} nats per token, {self.state['rl/entropy'][0]:.3f} at first; "
                "all replies become one: raise stage.beta or stage.entropy_coef, lower stage.lr or stage.epochs"
            )
        if metrics["rl/eos_rate"] < EOS_LOST * self.state["rl/eos_rate"][0] or metrics["rl/eos_rate"] == 0:
            found["eos"] = (
                f"replies no longer end: {metrics['rl/eos_rate']:.0%} reach their end token within "
                "stage.response_length; raise stage.eos_penalty or stage.response_length"
            )
        if length > LENGTH_TIMES * self.state["rl/response_length"][0]:
            found["length"] = (
                f"length explosion: {length:.0f} tokens a reply, {self.state['rl/response_length'][0]:.0f} in the "
                "first rollout; the reward favours length: look at the samples"
            )
        if metrics.get("rl/clip_frac", 0.0) > CLIPPED:
            found["clip"] = (
                f"{metrics['rl/clip_frac']:.0%} of the tokens are clipped: updates are too large; lower stage.lr or "
                "stage.epochs"
            )
        gap = metrics.get("rl/sampler_gap", 0.0)
        if self.sampler_gap is not None and not gap <= self.sampler_gap:
            found["sampler"] = (
                f"sampling and update disagree: {gap:.2g} nats per token between the log-probabilities that were "
                f"recorded while sampling and those of the forward pass (more than {self.sampler_gap:.2g}); replies "
                "are not drawn from the policy that learns from them: precision=fp32 tells whether rounding is the "
                "reason"
            )
        if self._over_optimised():
            found["gold"] = (
                "the reward rises while the gold reward falls: the policy exploits the reward model; raise stage.beta, "
                "stop earlier, or train the reward model on more pairs"
            )
        return found

    def _over_optimised(self) -> bool:
        reward, gold = self.state.get("rl/reward", []), self.state.get("rl/gold_reward", [])
        if min(len(reward), len(gold)) < 2 * GOLD_WINDOW:
            return False

        def change(series: list[float]) -> float:
            return (sum(series[GOLD_WINDOW:]) - sum(series[:GOLD_WINDOW])) / GOLD_WINDOW

        return change(reward) > 0 and change(gold) < -GOLD_FALL
