"""Perplexity: the same number as a loop over single tokens, whatever the batch, the ranks and the last
window."""

from __future__ import annotations

import dataclasses
import math
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tinychat.data.documents.tokens import TokenCache
from tinychat.errors import UserError
from tinychat.evaluation.held_out import perplexity
from tinychat.runtime import heartbeat
from tinychat.runtime.world import World

VOCAB = 23
ALONE = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


def cached(tokens: np.ndarray, n_bytes: int = 100) -> TokenCache:
    return TokenCache(tokens, 1, len(tokens), n_bytes, "", "", Path("somewhere"))  # type: ignore[arg-type]


def stream(length: int, dtype: str = "uint16") -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCAB, length).astype(dtype)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def nll(model):
    def function(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = model(inputs, use_cache=False).logits.flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits, targets.flatten(), reduction="none").view(targets.shape)

    return function


def one_token_at_a_time(model, tokens: np.ndarray, context_length: int) -> list[float]:
    """-log p of tokens 1, 2, ..., each from the tokens of its own window alone."""
    found = []
    for position in range(1, len(tokens)):
        start = (position - 1) // context_length * context_length
        seen = torch.tensor(tokens[start:position].astype(int)[None])
        with torch.no_grad():
            log_p = model(seen).logits[0, -1].log_softmax(-1)
        found.append(-log_p[int(tokens[position])].item())
    return found


@pytest.mark.parametrize("length", [2, 7, 8, 9, 10, 41])  # windows of 8: shorter, whole, one token over, many
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_equals_a_loop_over_single_tokens(model, nll, length, batch_size):
    tokens = stream(length)
    found = perplexity(nll, cached(tokens), 8, batch_size, ALONE)
    expected = one_token_at_a_time(model, tokens, 8)
    assert found["eval/tokens"] == len(expected) == length - 1
    assert found["eval/loss"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert found["eval/ppl"] == pytest.approx(math.exp(np.mean(expected)), rel=1e-5)


def test_a_long_reading_says_how_far_it_is(nll, monkeypatch, caplog):
    monkeypatch.setattr(heartbeat, "LINE_EVERY", 0.0)
    with caplog.at_level("INFO", logger="tinychat"):
        perplexity(nll, cached(stream(41)), 8, 2, ALONE)
    said = [record.getMessage().rpartition(",")[0] for record in caplog.records]
    assert said == ["held-out text: 16 of 40 tokens", "held-out text: 32 of 40 tokens"]


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "int64"])
def test_any_integer_type_and_a_memory_map(nll, tmp_path, dtype):
    tokens = stream(30, dtype)
    tokens.tofile(tmp_path / "tokens")
    mapped = np.memmap(tmp_path / "tokens", dtype=dtype, mode="r")
    expected = perplexity(nll, cached(stream(30, "int64")), 8, 2, ALONE)
    assert perplexity(nll, cached(mapped), 8, 2, ALONE) == expected


@dataclasses.dataclass(frozen=True)
class Threaded(World):
    """A rank that is a thread: sums meet at a barrier."""

    meet: threading.Barrier = None  # type: ignore[assignment]
    values: list = None  # type: ignore[assignment]

    def sum(self, *values: float) -> list[float]:
        self.values[self.rank] = values
        self.meet.wait(timeout=30)
        return [sum(column) for column in zip(*self.values, strict=True)]


def on_ranks(size: int, work) -> list:
    meet, values, results = threading.Barrier(size), [None] * size, [None] * size

    def rank(index: int) -> None:
        results[index] = work(Threaded(index, index, size, torch.device("cpu"), meet, values))

    threads = [threading.Thread(target=rank, args=(index,)) for index in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_ranks_share_the_windows_and_agree(nll, size, batch_size):
    cache = cached(stream(52))  # 7 windows of 8, the last with 3 tokens
    alone = perplexity(nll, cache, 8, 4, ALONE)
    calls: list[list[torch.Tensor]] = [[] for _ in range(size)]

    def work(world: World) -> dict[str, float]:
        def counted(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            calls[world.rank].append(targets)
            return nll(inputs, targets)

        return perplexity(counted, cache, 8, batch_size, world)

    for found in on_ranks(size, work):
        assert found == pytest.approx(alone, rel=1e-6)
    assert len({len(rank) for rank in calls}) == 1  # sharded models hang otherwise
    counted = sum(int((targets != -100).sum()) for rank in calls for targets in rank)
    assert counted == 51
    assert all(len(targets) <= batch_size for rank in calls for targets in rank)


@pytest.mark.parametrize("max_tokens", [1, 5, 8, 9, 29])
def test_max_tokens_reads_the_first_so_many(model, nll, max_tokens):
    tokens = stream(30)
    found = perplexity(nll, cached(tokens), 8, 2, ALONE, max_tokens)
    assert found["eval/tokens"] == max_tokens
    expected = one_token_at_a_time(model, tokens, 8)[:max_tokens]
    assert found["eval/loss"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert perplexity(nll, cached(tokens), 8, 2, ALONE, 1000)["eval/tokens"] == 29


def test_bits_per_byte_by_hand():
    """Every token at a loss of ln 4 is 2 bits; 9 tokens over 18 bytes are 1 bit a byte."""
    found = perplexity(lambda inputs, targets: (targets != -100) * math.log(4), cached(stream(9), 18), 4, 2, ALONE)
    assert found["eval/bits_per_byte"] == pytest.approx(1.0)
    assert found["eval/ppl"] == pytest.approx(4.0)


@pytest.mark.parametrize(("value", "expected"), [(float("nan"), math.isnan), (2000.0, math.isinf)])
def test_a_model_that_is_lost_is_reported_not_raised(value, expected):
    found = perplexity(lambda inputs, targets: (targets != -100) * value, cached(stream(9)), 4, 2, ALONE)
    assert expected(found["eval/ppl"])


@pytest.mark.parametrize("length", [0, 1])
def test_too_little_text_is_a_one_line_error(nll, length):
    with pytest.raises(UserError, match=f"has {length} tokens.*somewhere"):
        perplexity(nll, cached(stream(length)), 8, 2, ALONE)


def test_no_gradients_are_kept(model):
    def nll(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = model(inputs).logits
        assert not logits.requires_grad
        return logits[..., 0]

    perplexity(nll, cached(stream(9)), 4, 2, ALONE)
