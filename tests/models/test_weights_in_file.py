"""A frozen model's weights that lie in their file while nobody reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.rl_models import policy
from tinychat.models.load import WEIGHTS, WeightsInFile, write_weights


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_they_go_and_come_back_bit_for_bit_even_where_the_file_has_gone(arch: str, tmp_path: Path) -> None:
    model, ids = policy(arch), torch.arange(5)[None]
    write_weights(model, dict(model.named_parameters()), tmp_path)
    wanted = model(ids).logits.detach()
    weights = WeightsInFile(model, tmp_path)
    (tmp_path / WEIGHTS).unlink()
    for _ in range(2):
        weights.rest()
        assert sum(p.numel() for p in model.parameters()) == 0
        weights.wake()
        assert torch.equal(model(ids).logits, wanted)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_weights_that_are_not_those_of_the_file_stay(tmp_path: Path) -> None:
    model = policy("llama")
    write_weights(model, dict(model.named_parameters()), tmp_path)
    with torch.no_grad():
        model.model.norm.weight[0] += 1
        model.get_input_embeddings().weight.data = torch.cat([model.get_input_embeddings().weight, torch.ones(8, 16)])
    weights = WeightsInFile(model, tmp_path)
    weights.rest()
    kept = {name for name, p in model.named_parameters() if p.numel()}
    assert kept == {"model.norm.weight", "model.embed_tokens.weight"}
    whole = WeightsInFile(policy("llama"), tmp_path / "nothing here")
    whole.rest()
    whole.wake()
