"""What an update of PPO moves, on a tiny actor-critic."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.rl_models import PAD, PROMPTS, actor_critic
from tinychat.config.schema import DsConfig, OptimConfig, OptimKind, Precision
from tinychat.engine import Engine, build_engine
from tinychat.models.actor_critic import policy_and_values
from tinychat.models.vocabulary import WHOLE
from tinychat.rl.rollout import to_experience
from tinychat.runtime.world import World
from tinychat.stages.ppo import algorithm
from tinychat.stages.updates import Coefficients, learn

ALONE = World(0, 0, 1, torch.device("cpu"))


def stage(**more: Any) -> Any:
    given = {
        "rollout_size": 4, "batch_size": 4, "micro_batch_size": 2, "epochs": 1, "max_kl": None, "critic_warmup": 0,
        "temperature": 0.7, "clip_low": 0.2, "clip_high": 0.2, "dual_clip": None, "log_ratio_bound": 20.0,
        "value_coef": 0.5, "value_clip": None, "entropy_coef": 0.0, "lr": 0.01, "grad_clip": 1.0,
        "activation_checkpointing": False,
    }  # fmt: skip
    return SimpleNamespace(**given | more)


def updates(settings: Any, own: bool, weight_decay: float = 0.0, steps: int = 3, first: int = 1) -> tuple[Engine, Any]:
    """The engine and the policy's weights before, after some steps on random advantages."""
    model = actor_critic("llama", own)
    for head in (model.value.score if own else model.value_head,):
        torch.nn.init.normal_(head.weight)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optim = OptimConfig("adamw", OptimKind.adamw, [0.9, 0.95], 1e-8, weight_decay, None, None, None)
    engine = build_engine(model, optim, DsConfig("none", False, {}), settings, Precision.fp32, ALONE)
    rows = to_experience(PROMPTS, [[3, 4, 1], [2, 2, 2, 2, 2], [1], [7, 8]], PAD)
    with torch.no_grad():
        logprobs, values, _ = policy_and_values(model, rows.input_ids, rows.targets, 0.7, WHOLE)
        assert values is not None
    torch.manual_seed(0)
    advantages, returns = torch.randn(2, *rows.mask.shape)
    rows.fields |= {"logprobs": logprobs, "values": values, "advantages": advantages, "returns": returns}
    loop: Any = SimpleNamespace(train=lambda parts, loss, _tokens, _samples: engine.train_step(parts, loss))
    config: Any = SimpleNamespace(stage=settings, seed=0)
    now = Coefficients(kl=0.1, entropy=settings.entropy_coef)
    for step in range(first, first + steps):
        learn(config, loop, engine, rows, algorithm(settings, WHOLE), step, now)
    return engine, before


@pytest.mark.parametrize("own", [True, False])
def test_the_policy_stays_as_it_is_while_the_value_function_warms_up(own: bool) -> None:
    settings = stage(critic_warmup=3, entropy_coef=0.1)
    engine, before = updates(settings, own, weight_decay=0.1)
    after = dict(engine.model.named_parameters())
    for name, weight in before.items():
        assert torch.equal(after[name], weight) is name.startswith("policy."), name
    assert {group["weight_decay"] for group in engine.optimizer.param_groups} == {0.0}
    engine, before = updates(settings, own, weight_decay=0.1, steps=1, first=4)
    after = dict(engine.model.named_parameters())
    assert all(not torch.equal(after[name], weight) for name, weight in before.items() if name.startswith("policy."))
    assert {group["weight_decay"] for group in engine.optimizer.param_groups} == {0.0, 0.1}


def test_values_are_computed_in_fp32_whatever_the_products() -> None:
    for own in (True, False):
        model = actor_critic("llama", own)
        head = model.value.score if own else model.value_head
        torch.nn.init.normal_(head.weight)
        rows = to_experience(PROMPTS, [[3, 4, 1], [2], [1], [7, 8]], PAD)
        seen: list[torch.Tensor] = []
        handle = head.register_forward_pre_hook(lambda _module, inputs, seen=seen: seen.append(inputs[0]))
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            values = policy_and_values(model, rows.input_ids, rows.targets, 1.0)[1]
        handle.remove()
        torch.testing.assert_close(values, seen[0].float() @ head.weight[0].detach(), atol=1e-5, rtol=1e-5)


def test_an_entropy_bonus_raises_the_entropy() -> None:
    found = []
    for coefficient in (0.0, 1.0):
        engine, _ = updates(stage(entropy_coef=coefficient, value_coef=0.0), own=False)
        rows = to_experience(PROMPTS, [[3, 4, 1], [2, 2, 2, 2, 2], [1], [7, 8]], PAD)
        entropy = policy_and_values(engine.model, rows.input_ids, rows.targets, 0.7, WHOLE, entropy=True)[2]
        assert entropy is not None
        found.append(entropy.sum().item())
    assert found[1] > found[0] + 1
