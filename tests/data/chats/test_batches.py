from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tinychat.data.chats.tokens import ChatBatches, ChatCache, eval_batches, pack
from tinychat.errors import UserError

T, B, N, PAD = 32, 8, 400, 0


def make_cache(lengths: list[int], length: int = T) -> ChatCache:
    """Conversation i has the tokens 1000 * (i + 1) + position; of three tokens, the last two are trained."""
    ids = np.concatenate([1000 * (i + 1) + np.arange(n) for i, n in enumerate(lengths)]).astype("<u4")
    trained = np.concatenate([np.arange(n) % 3 > 0 for n in lengths])
    return ChatCache(
        all_ids=ids,
        all_trained=trained,
        starts=np.cumsum([0, *lengths]),
        row_trained=np.array([int((np.arange(n) % 3 > 0).sum()) for n in lengths]),
        length=length,
        pad_id=PAD,
        n_bad=0,
        n_cut=0,
        n_dropped=0,
        fingerprint="",
        tokenizer_fingerprint="",
        path=Path(),
    )


LENGTHS = np.random.default_rng(0).integers(2, 20, N).tolist()
CACHE = make_cache(LENGTHS)


def batches(packing: bool = True, seed: int = 1, cache: ChatCache = CACHE) -> ChatBatches:
    return ChatBatches(cache, T, packing, seed)


def conversations(batch: dict[str, torch.Tensor]) -> list[list[int]]:
    """The row numbers in each line, read back from the tokens."""
    found = []
    for ids, segments in zip(batch["input_ids"], batch["segments"], strict=True):
        line = [ids[segments == number] for number in range(1, int(segments.max()) + 1)]
        found.append([int(one[0]) // 1000 - 1 for one in line])
    return found


def sequences_of_an_epoch(of: ChatBatches) -> int:
    return next(step for step in range(N + 1) if of.epoch_of(step, 1) == 1)


def test_by_hand() -> None:
    """Two conversations in one line: 5 tokens, then 3, then padding."""
    packed = ChatBatches(make_cache([3, 5], length=10), 10, packing=True, seed=1)
    batch = packed.batch(0, 1)
    assert batch["input_ids"].tolist() == [[2000, 2001, 2002, 2003, 2004, 1000, 1001, 1002, 0, 0]]
    assert batch["targets"].tolist() == [[2001, 2002, -100, 2004, -100, 1001, 1002, -100, -100, -100]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 0, 0]]
    assert batch["segments"].tolist() == [[1, 1, 1, 1, 1, 2, 2, 2, 0, 0]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    assert packed.held(0, 1).tokens == 8 and sorted(packed.held(0, 1).trained) == [2, 3]


def test_padding_by_hand() -> None:
    cache = make_cache([3, 5, 9], length=12)
    padded = ChatBatches(cache, 12, packing=False, seed=1)
    batch = padded.batch(0, 3)
    assert batch["input_ids"].shape == (3, 12)  # 9 rounded up to 16 is more than the context
    assert sorted(map(tuple, batch["input_ids"].tolist()))[0] == (1000, 1001, 1002, *[0] * 9)
    assert batch["segments"].tolist() == (batch["input_ids"] > 0).long().tolist()
    row = batch["input_ids"][:, 0].tolist().index(2000)
    assert batch["targets"][row].tolist() == [2001, 2002, -100, 2004, *[-100] * 8]
    assert batch["position_ids"][row].tolist() == [0, 1, 2, 3, 4, *[0] * 7]


@pytest.mark.parametrize("packing", [True, False])
def test_every_conversation_comes_whole_and_once_an_epoch(packing: bool) -> None:
    """Sequences are counted over all epochs, which packing gives a different number of them each."""
    of = batches(packing)
    lines: list[list[int]] = []
    for step in range(120):
        batch = of.batch(step, B)
        found = conversations(batch)
        for ids, rows in zip(batch["input_ids"], found, strict=True):
            want = [token for row in rows for token in CACHE.ids(row).tolist()]
            assert ids[: len(want)].tolist() == want
            assert (ids[len(want) :] == PAD).all()
        lines += found
    rows = [row for line in lines for row in line]
    for epoch in range(2):
        assert sorted(rows[N * epoch : N * (epoch + 1)]) == list(range(N))
    assert rows[:N] != rows[N : 2 * N]


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_ranks_share_one_global_batch(world_size: int, packing: bool) -> None:
    whole = batches(packing)
    parts = [batches(packing) for _ in range(world_size)]
    for step in (0, 5, 16, 17, 49, 50):  # over the end of an epoch too
        for key, want in whole.batch(step, B).items():
            shards = [part.batch(step, B, rank, world_size)[key] for rank, part in enumerate(parts)]
            assert torch.equal(torch.cat(shards), want)


@pytest.mark.parametrize("packing", [True, False])
def test_random_access_equals_sequential(packing: bool) -> None:
    sequential = batches(packing)
    want = {step: sequential.batch(step, B)["input_ids"] for step in range(120)}
    of = batches(packing)
    for step in (119, 0, 12, 60, 12, 101, 1):
        assert torch.equal(of.batch(step, B)["input_ids"], want[step])
        assert batches(packing).epoch_of(step, B) == sequential.epoch_of(step, B)
    assert torch.equal(batches(packing).batch(77, B)["input_ids"], want[77])


@pytest.mark.parametrize("packing", [True, False])
def test_seeds_and_epochs_have_their_own_order(packing: bool) -> None:
    def rows(seed: int, first: int) -> list[list[int]]:
        of = batches(packing, seed)
        return [line for step in range(first, first + 10) for line in conversations(of.batch(step, 1))]

    assert rows(1, 0) != rows(2, 0)
    assert rows(1, 0) != rows(1, sequences_of_an_epoch(batches(packing)))
    assert rows(-1, 0) != rows(2**63, 0)


@pytest.mark.parametrize("packing", [True, False])
def test_held_is_what_the_batch_holds(packing: bool) -> None:
    of = batches(packing)
    for step in (0, 7, 30):
        batch = of.batch(step, B)
        held = of.held(step, B)
        assert held.tokens == int((batch["segments"] > 0).sum())
        assert held.trained.sum() == int((batch["targets"] != -100).sum())
        assert len(held.trained) == int(batch["segments"].amax(1).sum())


def test_padding_is_as_wide_as_the_longest_of_the_global_batch() -> None:
    of = batches(packing=False)
    for step in range(10):
        halves = [of.batch(step, B, rank, 2) for rank in range(2)]
        longest = max(int((half["segments"] > 0).sum(1).max()) for half in halves)
        assert {half["input_ids"].shape for half in halves} == {(B // 2, -(-longest // 8) * 8)}


def test_packing_is_full_and_nothing_is_split() -> None:
    random = np.random.default_rng(1)
    cases = {
        "short": (random.integers(20, 100, 20_000), 256),
        "alpaca": (np.clip(random.lognormal(4.5, 0.8, 20_000), 5, 512).astype(int), 512),
        "long": (np.clip(random.lognormal(5.8, 0.6, 20_000), 5, 512).astype(int), 512),
    }
    for name, (lengths, length) in cases.items():
        bins = pack(lengths, length, random.permutation(len(lengths)))
        assert sorted(row for one in bins for row in one) == list(range(len(lengths)))
        assert max(int(lengths[one].sum()) for one in bins) <= length
        assert lengths.sum() / (len(bins) * length) > 0.97, name


def test_packing_by_hand() -> None:
    """Longest first: 7 | 6 | 4 beside 6 | 3 beside 7 | 2 alone."""
    assert pack(np.array([2, 3, 4, 6, 7]), 10, np.arange(5)) == [[4, 1], [3, 2], [0]]


def test_one_conversation_and_a_batch_of_several_epochs() -> None:
    of = ChatBatches(make_cache([5]), T, packing=True, seed=1)
    batch = of.batch(3, B)
    assert batch["input_ids"][:, :5].tolist() == [[1000, 1001, 1002, 1003, 1004]] * B
    assert of.epoch_of(3, B) == 24
    assert of.held(3, B).tokens == 5 * B and of.held(3, B).trained.tolist() == [3] * B


def test_errors() -> None:
    with pytest.raises(UserError, match=r"stage\.batch_size=8 does not divide over 3 ranks; use 6"):
        batches().batch(0, B, 0, 3)
    with pytest.raises(UserError, match=r"stage\.context_length=16: a conversation has 19 tokens"):
        ChatBatches(CACHE, 16, packing=True, seed=1)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("max_rows", [None, 1000, 37])
def test_evaluation_sees_every_conversation_once(world_size: int, max_rows: int | None) -> None:
    ranks = [list(eval_batches(CACHE, 16, rank, world_size, max_rows)) for rank in range(world_size)]
    assert len({len(found) for found in ranks}) == 1
    with_targets = [batch for found in ranks for batch in found if (batch["targets"] != -100).any()]
    rows = [row for batch in with_targets for (row,) in conversations(batch)]
    assert len(rows) == len(set(rows)) == min(max_rows or N, N)
    if max_rows == 37:
        assert max(rows) > N * 0.9  # not the first ones
    trained = sum(int((batch["targets"] != -100).sum()) for batch in with_targets)
    assert trained == sum(int(CACHE.row_trained[row]) for row in rows)
    tokens = sum(int((batch["segments"] > 0).sum()) for batch in with_targets)
    assert tokens / sum(batch["segments"].numel() for batch in with_targets) > 0.6  # padded to 8 tokens at least
    assert sum(len(found) for found in ranks) - len(with_targets) < world_size
