"""Policy and value function as one module."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.rl_models import PAD, PROMPTS, actor_critic, policy
from tinychat.models.actor_critic import ActorCritic, policy_and_values
from tinychat.models.checkpoints import save_weights, saved_buffers, saved_parameters
from tinychat.models.logprobs import IGNORED, token_nll
from tinychat.rl.rollout import to_experience


def experience():
    return to_experience(PROMPTS, [[3, 4, 1], [2, 2, 2, 2, 2], [1], [7, 8]], PAD)


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
@pytest.mark.parametrize("own", [True, False])
def test_log_probabilities_are_those_of_the_one_function(arch: str, own: bool) -> None:
    model, rows = actor_critic(arch, own), experience()
    logprobs, values, nothing = policy_and_values(model, rows.input_ids, rows.targets, temperature=0.7)
    assert nothing is None
    wanted = -token_nll(model.policy, rows.input_ids, rows.targets, temperature=0.7)
    torch.testing.assert_close(logprobs, wanted)
    logits = model.policy(input_ids=rows.input_ids).logits / 0.7
    by_hand = logits.log_softmax(-1).gather(2, rows.targets.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(logprobs, by_hand * rows.mask, atol=1e-5, rtol=1e-5)
    assert not values.any()  # the head begins at zero


def test_values_are_read_at_every_position() -> None:
    model, rows = actor_critic("llama", own=True), experience()
    torch.nn.init.normal_(model.value.score.weight)
    values = policy_and_values(model, rows.input_ids, rows.targets, 1.0)[1]
    hidden = model.value.model(input_ids=rows.input_ids).last_hidden_state
    torch.testing.assert_close(values, hidden @ model.value.score.weight[0])
    shared = actor_critic("llama", own=False)
    torch.nn.init.normal_(shared.value_head.weight)
    _, values, _ = policy_and_values(shared, rows.input_ids, rows.targets, 1.0)
    hidden = shared.policy.model(input_ids=rows.input_ids).last_hidden_state
    torch.testing.assert_close(values, hidden @ shared.value_head.weight[0])


def test_the_value_loss_does_not_move_a_policy_with_a_critic_of_its_own() -> None:
    rows = experience()
    for own in (True, False):
        model = actor_critic("llama", own)
        for head in (model.value.score,) if own else (model.value_head,):
            torch.nn.init.normal_(head.weight)
        policy_and_values(model, rows.input_ids, rows.targets, 1.0)[1].sum().backward()
        moved = any(p.grad is not None and p.grad.any() for p in model.policy.parameters())
        assert moved is not own


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("lora", [False, True])
def test_a_checkpoint_is_the_policy_with_the_value_function_beside_it(own: bool, lora: bool, tmp_path: Path) -> None:
    model = actor_critic("llama", own, lora)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    if lora:
        model.policy.adapter_base = None  # see below: adapters of checkpoints have one
        pytest.importorskip("peft")
        names = set(saved_parameters(model))
        assert all("lora_" in name or name.startswith("value") for name in names)
        assert any("lora_A" in name for name in names)
        return
    save_weights(model, saved_parameters(model) | saved_buffers(model), tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    rows = experience()
    torch.testing.assert_close(again(rows.input_ids).logits, model.policy(input_ids=rows.input_ids).logits)
    if own:
        value = AutoModelForSequenceClassification.from_pretrained(tmp_path / "value")
        torch.testing.assert_close(value.score.weight, model.value.score.weight)
    else:
        weights = load_file(tmp_path / "value" / "value_head.safetensors")
        torch.testing.assert_close(weights["weight"], model.value_head.weight)


def test_the_critic_may_have_a_learning_rate_of_its_own() -> None:
    from tinychat.config.schema import OptimConfig, OptimKind
    from tinychat.engine.optim import build_optimizer

    model = ActorCritic(policy(), None, critic_lr_ratio=3.0)
    for kind in (OptimKind.adamw, OptimKind.muon):
        config = OptimConfig(kind.value, kind, [0.9, 0.95], 1e-8, 0.1, 1.0, 0.95, 5)
        optimizer = build_optimizer(model, config, 0.01, torch.float32)
        rates = {id(p): group["peak_lr"] for group in optimizer.param_groups for p in group["params"]}
        assert rates[id(model.value_head.weight)] == pytest.approx(0.03)
        assert all(rates[id(p)] == pytest.approx(0.01) for p in model.policy.parameters())
        assert len(rates) == len(list(model.parameters()))


def test_exact_sums_are_exact_in_bf16() -> None:
    """What is normalised in fp32 sums to 1 within its own rounding, however many small terms there are."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(1, 6, 32), torch.randn(5000, 32) * 0.05
    targets = torch.randint(5000, (1, 6))

    from tinychat.models.logprobs import linear_nll

    with torch.autocast("cpu", torch.bfloat16):
        logits = (hidden.bfloat16() @ weight.bfloat16().t()).float()
        wanted = torch.nn.functional.cross_entropy(logits[0], targets[0], reduction="none")
        exact = linear_nll(hidden, weight, targets, 1.0, False, exact=True)[0]
    assert (exact - wanted).abs().max() < 1e-3
    assert IGNORED == -100
