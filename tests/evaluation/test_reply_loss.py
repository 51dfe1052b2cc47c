"""The loss of stage=sft against conversations taken one by one, whatever weighs alike in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from tinychat.config.stages import SftStage
from tinychat.models.logprobs import IGNORED
from tinychat.stages.sft import reply_nll, token_weights

SEGMENTS = torch.tensor([[1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 0], [1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0]])
TRAINED = torch.tensor([[0, 1, 0, 1, 0, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]], dtype=torch.bool)


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    return AutoModelForCausalLM.from_config(shape, attn_implementation="sdpa").eval()


def batch() -> dict[str, Tensor]:
    torch.manual_seed(1)
    ids, following = torch.randint(1, 40, (2, 2, 11))
    position = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 5, 0, 0], [*range(8), 0, 0, 0]])
    targets = following.masked_fill(~TRAINED, IGNORED)
    return {"input_ids": ids, "targets": targets, "position_ids": position, "segments": SEGMENTS}


def stage_of(length_power: float, label_smoothing: float) -> SftStage:
    stage = SftStage(name="sft")
    stage.packing, stage.length_power, stage.label_smoothing = True, length_power, label_smoothing
    return stage


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("length_power", [0.0, 0.5, 1.0])
def test_it_sums_what_conversations_alone_have(model: Any, length_power: float, label_smoothing: float) -> None:
    packed, wanted = batch(), torch.zeros(())
    for row, segment in ((0, 1), (0, 2), (1, 1)):
        own = (SEGMENTS[row] == segment).nonzero()[:, 0]
        logits = model(input_ids=packed["input_ids"][row, own][None]).logits[0]
        loss = torch.nn.functional.cross_entropy(
            logits,
            packed["targets"][row, own],
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=label_smoothing,
        )
        wanted = wanted + loss / int(TRAINED[row, own].sum()) ** length_power
    found = reply_nll(model, packed, stage_of(length_power, label_smoothing))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    weights = list(model.parameters())
    expected = torch.autograd.grad(wanted, weights)
    for gradient, exact in zip(torch.autograd.grad(found, weights), expected, strict=True):
        torch.testing.assert_close(gradient, exact, atol=1e-5, rtol=1e-4)


def test_conversations_weigh_alike_at_power_1() -> None:
    found = token_weights(batch()["targets"], SEGMENTS, 1.0)
    assert found.tolist() == [[0, 1, 0, 0.25, 0, 0.25, 0.25, 0.25, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]]
