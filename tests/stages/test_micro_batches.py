"""Padded rows as micro-batches: every row once, no wider than it needs to be, and a gradient that stays the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from tinychat.models.logprobs import IGNORED, token_nll
from tinychat.stages.common import split_batch, split_padded, up_to_last_target

CPU = torch.device("cpu")
LENGTHS = [5, 31, 9, 17, 40, 3, 22, 8]


def padded() -> dict[str, Tensor]:
    """Rows of LENGTHS targets, of which the first two are none; a number to know each row by."""
    width = max(LENGTHS)
    ids = torch.randint(1, 50, (len(LENGTHS), width), generator=torch.Generator().manual_seed(0))
    there = torch.arange(width) < torch.tensor(LENGTHS)[:, None]
    targets = torch.where(there & (torch.arange(width) > 1), ids.roll(-1, 1), IGNORED)
    return {"input_ids": torch.where(there, ids, 0), "targets": targets, "number": torch.arange(len(LENGTHS))}


def test_columns_up_to_the_last_target() -> None:
    assert up_to_last_target(padded()["targets"]).tolist() == LENGTHS
    assert up_to_last_target(torch.full((1, 4), IGNORED)).tolist() == [1]


@pytest.mark.parametrize("together", [1, 2])
def test_rows_of_like_length_come_together(together: int) -> None:
    rows = padded()
    parts = split_padded(rows, torch.tensor(LENGTHS), 2, CPU, together)
    numbers = torch.cat([part["number"] for part in parts]).tolist()
    assert sorted(numbers) == list(range(len(LENGTHS)))
    if together == 2:
        assert numbers == [4, 5, 0, 1, 6, 7, 2, 3]
    for part in parts:
        longest = max(LENGTHS[number] for number in part["number"].tolist())
        assert part["input_ids"].shape == part["targets"].shape == (2, -(-longest // 8) * 8)
        for row, number in enumerate(part["number"].tolist()):
            assert torch.equal(part["targets"][row], rows["targets"][number, : part["targets"].shape[1]])


def test_the_only_micro_batch_keeps_its_order_and_no_width_is_beyond_the_rows() -> None:
    rows = {key: value[:3] for key, value in padded().items()}
    (part,) = split_padded({**rows, "input_ids": rows["input_ids"][:, :31]}, torch.tensor(LENGTHS[:3]), 4, CPU)
    assert part["number"].tolist() == [0, 1, 2]
    assert part["input_ids"].shape == (3, 31)


def test_the_gradient_is_that_of_padded_micro_batches() -> None:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64,
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_config(shape)
    rows, found = padded(), []
    for parts in (split_batch(rows, 2, CPU), split_padded(rows, torch.tensor(LENGTHS), 2, CPU)):
        model.zero_grad()
        for part in parts:
            token_nll(model, part["input_ids"], part["targets"], for_sum=True).sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.allclose(found[0], found[1], atol=1e-5 * found[0].abs().max().item())
    assert found[0].norm() > 1
