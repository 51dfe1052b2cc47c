"""A mixture's batches: shares as the weights say, every sequence of each source in its turn, a function of the step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tinychat.data.documents.mixture import ROUND, MixedBlocks, MixedTokens
from tinychat.data.documents.tokens import TokenCache
from tinychat.errors import UserError

SIZES = {"web": 4000, "books": 900, "code": 300}


def mixture(weights: dict[str, float | None], length: int = 8) -> MixedBlocks:
    parts = {}
    for source, (name, size) in enumerate(SIZES.items()):
        tokens = np.arange(size, dtype=np.uint16) % 1000 + 1000 * source  # tells its source and place
        parts[name] = TokenCache(tokens, 10, size, size, name, "t", Path(name))  # type: ignore[arg-type]
    return MixedBlocks(MixedTokens.of(parts, weights), length, seed=3)


def sources_of(blocks: MixedBlocks, steps: int, batch: int) -> np.ndarray:
    return np.concatenate([blocks.batch(step, batch)["input_ids"][:, 0].numpy() // 1000 for step in range(steps)])


def test_sources_come_as_their_weights_say() -> None:
    blocks = mixture({"web": 1.0, "books": 2.0, "code": 0.7})
    drawn = np.bincount(sources_of(blocks, 500, 8), minlength=3)
    assert np.abs(drawn / drawn.sum() - np.array([1, 2, 0.7]) / 3.7).max() < 0.01
    epochs = blocks.epochs_of(500, 8)
    assert epochs == {name: count / (size // 8) for count, (name, size) in zip(drawn, SIZES.items(), strict=True)}
    natural = np.bincount(sources_of(mixture(dict.fromkeys(SIZES)), 650, 8), minlength=3)
    assert np.abs(natural / 5200 - np.array(list(SIZES.values())) / 5200).max() < 0.01


def test_a_source_is_read_once_an_epoch_whatever_the_others_do() -> None:
    blocks = mixture({"web": 0.1, "books": 0.1, "code": 0.8})
    firsts: list[int] = []
    for step in range(2 * ROUND // 8):
        rows = blocks.batch(step, 8)["input_ids"]
        firsts += [int(row[0]) for row in rows if int(row[0]) >= 2000]
    per_epoch = SIZES["code"] // 8
    whole = len(firsts) // per_epoch
    assert whole >= 40
    for epoch in range(whole):
        assert len(set(firsts[epoch * per_epoch : (epoch + 1) * per_epoch])) == per_epoch, "no block twice"


def test_a_batch_depends_on_the_step_alone_and_is_shared_among_ranks() -> None:
    weights = {"web": 3.0, "books": 1.0, "code": 1.0}
    late = mixture(weights).batch(700, 4)
    blocks = mixture(weights)
    for step in range(3):
        blocks.batch(step, 4)
    assert torch.equal(blocks.batch(700, 4)["input_ids"], late["input_ids"])
    shares = [blocks.batch(700, 4, rank, 2)["targets"] for rank in (0, 1)]
    assert torch.equal(torch.cat(shares), late["targets"])


def test_a_source_too_small_for_a_block_is_named() -> None:
    with pytest.raises(UserError, match=r"code: the training text has 300 tokens.*data\.weights\.code=0"):
        mixture({"web": 1.0, "books": 1.0, "code": 1.0}, length=512)


def test_what_is_measured_of_all_is_the_mean_over_tokens() -> None:
    tokens = MixedTokens({"a": TokenCache(np.zeros(30), 1, 30, 60, "a", "t", Path())}, {"a": 1.0})  # type: ignore[arg-type]
    tokens.parts["b"] = TokenCache(np.zeros(10), 1, 10, 20, "b", "t", Path())  # type: ignore[arg-type]
    assert [most for _, _, most in tokens.shared_out(20)] == [15, 5]
    found = tokens.together(
        {
            "a": {"eval/loss": 1.0, "eval/bits_per_byte": 0.5, "eval/tokens": 30.0, "eval/ppl": 1.0},
            "b": {"eval/loss": 5.0, "eval/bits_per_byte": 2.5, "eval/tokens": 10.0, "eval/ppl": 1.0},
        }
    )
    assert found["eval/loss"] == 2.0 and found["eval/ppl"] == pytest.approx(np.exp(2.0))
    assert found["eval/bits_per_byte"] == 1.0 and found["eval/tokens"] == 40.0
