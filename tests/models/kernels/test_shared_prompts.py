"""A prompt computed once for its group: log-probabilities, entropies and gradients are those of rows of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config

from tests.rl_models import PAD, VOCABULARY, actor_critic, policy
from tinychat.models.actor_critic import policy_and_values, policy_of
from tinychat.models.kernels import attention
from tinychat.models.kernels.attention import use_blocked_attention
from tinychat.models.kernels.layers import use_fused_norms, use_fused_rotary
from tinychat.models.kernels.shared_prompts import shared_prompts
from tinychat.models.logprobs import IGNORED
from tinychat.rl.rollout import Experience, to_experience

GROUP = 3
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [14]]
REPLIES = [[3, 4, 1], [2, 2, 2, 2, 2, 2, 2, 2], [1], [7, 8], [9] * 5, [1], [4, 4], [3, 1], [2, 3, 4, 5]]


def made(kind: str) -> Any:
    if kind == "qwen3":
        torch.manual_seed(0)
        shape = Qwen3Config(
            num_hidden_layers=2, hidden_size=16, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
            intermediate_size=24, max_position_embeddings=64, vocab_size=VOCABULARY, initializer_range=0.4,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_config(shape)
    elif kind.endswith("-lora"):
        model = actor_critic(kind.removesuffix("-lora"), lora=True).policy
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight)
    else:
        model = actor_critic("llama", own=kind == "own") if kind in ("own", "shared") else policy(kind)
    cpu = torch.device("cpu")
    for part in getattr(model, "parts", [model]):
        use_blocked_attention(part, cpu)
        use_fused_norms(part, cpu)
        use_fused_rotary(part, cpu)
    return model.train()


def experience() -> Experience:
    prompts = [prompt for prompt in PROMPTS for _ in range(GROUP)]
    return to_experience(prompts, REPLIES, PAD, GROUP)


def said_of(model: Any, batch: dict[str, Tensor], group: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
    """Log-probabilities, entropies and values; and the gradients of a loss that weighs each of them otherwise."""
    rows = batch["input_ids"], batch["targets"]
    logprobs, values, entropy = policy_and_values(model, *rows, 0.7, entropy=True, group=group)
    found = [logprobs, entropy] + ([] if values is None else [values * batch["mask"]])
    torch.manual_seed(1)
    loss = sum((torch.randn_like(x) * x).sum() for x in found)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return [x.detach() for x in found], list(torch.autograd.grad(loss, weights))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3", "gpt2-lora", "llama-lora", "own", "shared"])
@pytest.mark.parametrize("block", [2, 128])
def test_values_and_gradients_are_those_of_rows_of_their_own(
    kind: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention.plan_blocks, "__defaults__", (None, block, 0))
    model, rows = made(kind), experience()
    for part in (range(9), range(3), range(1, 5), [2, 3, 6], range(4, 9)):  # whole groups, and parts of them
        batch = rows.rows(list(part))
        computed, gradients = said_of(model, batch, batch["group"])
        wanted, exact = said_of(model, batch, None)
        for own, other in zip(computed + gradients, wanted + exact, strict=True):
            torch.testing.assert_close(own, other, atol=2e-5, rtol=1e-4)


def test_each_prompt_is_computed_once_and_no_padding() -> None:
    rows = experience()
    batch = rows.rows(list(range(9)))
    shared = shared_prompts(made("gpt2"), batch["targets"], batch["group"], IGNORED)
    assert shared is not None
    replies = sum(len(reply) - 1 for reply in REPLIES)  # the last token of a reply is no input
    assert len(shared.tokens) == sum(map(len, PROMPTS)) + replies
    assert shared.inputs(batch["input_ids"])["input_ids"].shape == (1, len(shared.tokens))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_reply_does_not_see_the_others_of_its_group(kind: str) -> None:
    model, batch = made(kind), experience().rows(list(range(6)))
    before = said_of(model, batch, batch["group"])[0][0]
    batch["input_ids"][0, len(PROMPTS[0]) :] = 20
    after = said_of(model, batch, batch["group"])[0][0]
    assert not torch.equal(after[0], before[0])
    torch.testing.assert_close(after[1:], before[1:], atol=0, rtol=0)


@pytest.mark.parametrize("case", ["no group", "one of each", "another attention", "other layers"])
def test_where_nothing_can_be_shared_rows_stay_rows(case: str) -> None:
    model, batch = made("qwen3"), experience().rows(list(range(9)))
    group: Tensor | None = batch["group"]
    if case == "no group":
        group = None
    elif case == "one of each":
        group = torch.arange(9)
    elif case == "another attention":
        model.set_attn_implementation("sdpa")
    else:
        model.config.layer_types = ["full_attention", "sliding_attention"]
    assert shared_prompts(policy_of(model), batch["targets"], group, IGNORED) is None
