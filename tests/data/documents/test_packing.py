from __future__ import annotations

import numpy as np
import pytest
import torch

from tinychat.data.documents.tokens import PackedBlocks, document_segments
from tinychat.errors import UserError

N, T, B = 1_003, 10, 8  # 100 blocks an epoch, 3 tokens over


def blocks(seed: int = 1, n: int = N, length: int = T) -> PackedBlocks:
    """Over the stream 0, 1, 2, ..., so that a token is its own place."""
    return PackedBlocks(np.arange(n, dtype=np.uint16), length, seed)


def rows(packed: PackedBlocks, first: int, last: int, batch_size: int = B) -> torch.Tensor:
    return torch.cat([packed.batch(step, batch_size)["input_ids"] for step in range(first, last)])


def test_shapes_types_and_shift() -> None:
    batch = blocks().batch(3, B)
    assert set(batch) == {"input_ids", "targets"}
    for tensor in batch.values():
        assert tensor.shape == (B, T)
        assert tensor.dtype == torch.int64
        assert tensor.is_contiguous()
    # each target follows its input in the ring
    assert torch.equal((batch["input_ids"] + 1) % N, batch["targets"])
    assert torch.equal(batch["input_ids"][:, 1:], batch["targets"][:, :-1])


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_ranks_share_one_global_batch(world_size: int) -> None:
    whole = blocks()
    parts = [blocks() for _ in range(world_size)]
    for step in (0, 5, 12, 13):  # 12 goes over the end of the first epoch
        for key, want in whole.batch(step, B).items():
            shards = [part.batch(step, B, rank, world_size)[key] for rank, part in enumerate(parts)]
            assert {len(shard) for shard in shards} == {B // world_size}
            assert torch.equal(torch.cat(shards), want)


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_every_token_is_a_target_once_an_epoch(epoch: int) -> None:
    packed = blocks()
    assert packed.n_blocks == 100
    targets = torch.cat([packed.batch(step, 10)["targets"] for step in range(10 * epoch, 10 * epoch + 10)])
    counts = torch.bincount(targets.flatten(), minlength=N)
    assert counts.max() == 1
    assert (counts == 0).sum() == N - packed.n_blocks * T


def test_a_curriculum_is_read_in_order_once() -> None:
    packed = PackedBlocks(np.arange(N, dtype=np.uint16), T, 1, in_order=True)
    assert torch.equal(rows(packed, 0, 10, 10), torch.arange(1000).view(100, T))
    assert torch.equal(rows(packed, 10, 20, 10), rows(blocks(), 10, 20, 10))


def test_order_and_cuts_differ_between_epochs_and_seeds() -> None:
    starts = [rows(blocks(seed), 10 * epoch, 10 * epoch + 10, 10)[:, 0] for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    for i, one in enumerate(starts):
        assert ((one[1:] - one[:-1]) % N == T).sum() < 10  # shuffled: hardly one follows the one before
        for other in starts[i + 1 :]:
            assert not torch.equal(one, other)
            assert set(one.tolist()) != set(other.tolist())  # cut elsewhere
    assert torch.equal(rows(blocks(1), 0, 30), rows(blocks(1), 0, 30))


def test_random_access_equals_sequential() -> None:
    sequential = blocks()
    want = {step: sequential.batch(step, B)["input_ids"] for step in range(60)}
    packed = blocks()
    for step in (59, 0, 12, 30, 12, 44, 1):
        assert torch.equal(packed.batch(step, B)["input_ids"], want[step])


def test_resume_in_the_middle_of_an_epoch_with_another_number_of_ranks() -> None:
    want = rows(blocks(), 17, 40)
    resumed = [blocks() for _ in range(4)]
    got = [part.batch(step, B, rank, 4)["input_ids"] for step in range(17, 40) for rank, part in enumerate(resumed)]
    assert torch.equal(torch.cat(got), want)


def test_micro_batches_are_the_rows_in_order() -> None:
    """Splitting the batch size keeps the sequence of rows, so accumulation does not change what is seen."""
    assert torch.equal(rows(blocks(), 0, 10, 8), rows(blocks(), 0, 20, 4))


def test_epoch_of() -> None:
    packed = blocks()
    assert packed.epoch_of(0, B) == 0
    assert packed.epoch_of(25, B) == 2.0
    assert packed.epoch_of(10, B) == pytest.approx(0.8)


def test_one_block_and_a_batch_of_several_epochs() -> None:
    packed = blocks(n=T + 1)
    assert packed.n_blocks == 1
    batch = packed.batch(2, B)
    assert len(set(batch["input_ids"][:, 0].tolist())) > 1  # each epoch cuts elsewhere
    assert torch.equal((batch["input_ids"] + 1) % (T + 1), batch["targets"])


def test_too_few_tokens() -> None:
    with pytest.raises(UserError, match=r"10 tokens.*context_length=10.*at most 9"):
        blocks(n=T)


def test_batch_that_does_not_divide() -> None:
    with pytest.raises(UserError, match=r"stage\.batch_size=8 does not divide over 3 ranks; use 6"):
        blocks().batch(0, B, 0, 3)


def test_negative_and_huge_seeds() -> None:
    assert not torch.equal(rows(blocks(-1), 0, 5), rows(blocks(2**63), 0, 5))


def test_memmap_and_wide_tokens(tmp_path) -> None:
    ids = np.arange(70_000, 70_000 + N, dtype="<u4")
    ids.tofile(tmp_path / "tokens.bin")
    packed = PackedBlocks(np.memmap(tmp_path / "tokens.bin", "<u4", mode="r"), T, 1)
    assert torch.equal(packed.batch(4, B)["input_ids"] - 70_000, blocks().batch(4, B)["input_ids"])


def test_documents_of_a_row_are_told_apart() -> None:
    end = 9
    ids = torch.tensor([[3, 4, end, 5, 6, 7, end, end, 1], [end, 2, 2, 2, 2, 2, 2, 2, end]])
    found = document_segments(ids, end)
    assert found["segments"].tolist() == [[1, 1, 2, 2, 2, 2, 3, 4, 4], [2, 2, 2, 2, 2, 2, 2, 2, 3]]
    assert found["position_ids"].tolist() == [[0, 1, 0, 1, 2, 3, 0, 0, 1], [0, 1, 2, 3, 4, 5, 6, 7, 0]]
    assert all(value.shape == ids.shape and value.dtype == torch.int64 for value in found.values())
