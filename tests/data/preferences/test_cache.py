from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tinychat.config.schema import OnBadRow
from tinychat.data.batching import SeededOrder
from tinychat.data.chats.rows import BadRow
from tinychat.data.files.row_sources import Found
from tinychat.data.preferences import tokens as module
from tinychat.data.preferences.rows import Labels, PreferenceRow, preference_row
from tinychat.data.preferences.sources import PreferenceSource
from tinychat.data.preferences.tokens import (
    PreferenceBatches,
    PreferenceCache,
    collate_pairs,
    eval_pairs,
    preference_cache,
    replies_by_length,
    usable_pairs,
)
from tinychat.errors import UserError
from tinychat.text.chat_template import encode_prompts, end_token_id, set_template
from tinychat.text.tokenizer import load_saved_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> PreTrainedTokenizerFast:
    return with_template(tokenizer_folder, "instruct")


def with_template(folder: Path, name: str) -> PreTrainedTokenizerFast:
    tokenizer = load_saved_tokenizer(str(folder))
    set_template(tokenizer, name)
    return tokenizer


def pair(*turns: str, chosen: str = "Tom has it.", rejected: str = "No.", **labels: Any) -> PreferenceRow:
    prompt = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    return preference_row(prompt, chosen, rejected, f"a.jsonl, {turns[-1]}", Labels(**labels))


SYSTEM = {"role": "system", "content": "Be kind."}
PAIRS = [
    pair("Who?", chosen_safe=True, rejected_safe=False, category="drugs", rejected_severity=2),
    pair("Say it.", "It.", "Again.", chosen="It, it.", rejected="A longer one than the other."),
    pair("One?", chosen_safe=True, rejected_safe=True, category="theft"),
]


def source(rows: list[Any] = PAIRS, **changes: Any) -> PreferenceSource:
    def read() -> Iterator[PreferenceRow | BadRow]:
        for number, row in enumerate(rows, 1):
            yield row or BadRow(f"a.jsonl, line {number}", "no preference")

    found = Found("a.jsonl", read, lambda memo_dir: json.dumps([row and vars(row) for row in rows]))
    values = {
        "name": "own-train",
        "split": "train",
        "found": found,
        "validation": None,
        "on_bad_row": OnBadRow.skip,
        "max_rows": None,
        "judge_fraction": 0.5,
        "seed": 1,
    }
    return PreferenceSource(**{**values, **changes})


def sequence(cache: PreferenceCache, index: int) -> np.ndarray:
    return cache.all_ids[cache.starts[index] : cache.starts[index + 1]]


@pytest.mark.parametrize("template", ["instruct", "chatml"])
def test_sequences_are_prompt_and_reply_through_the_end_token(
    template: str, tokenizer_folder: Path, tmp_path: Path
) -> None:
    tokenizer = with_template(tokenizer_folder, template)
    made = preference_cache(source(), tokenizer, 96, tmp_path, progress=False)
    end = end_token_id(tokenizer)
    assert len(made) == 3
    for index, row in enumerate(PAIRS):
        (prompt,) = encode_prompts(tokenizer, [row.prompt])
        for side, text in enumerate((row.chosen, row.rejected)):
            ids = sequence(made, 2 * index + side)
            length = made.prompt_lengths[2 * index + side]
            assert ids[:length].tolist() == prompt
            assert tokenizer.decode(ids[length:-1]).strip() == text
            assert ids[-1] == end
    assert made.n_tokens == int(made.lengths.sum()) == len(made.all_ids)
    assert made.labels.tolist() == [[1, 0, -1], [0, 0, 2], [-1, -1, -1], [-1, -1, -1], [1, 1, -1], [1, 1, -1]]
    assert made.categories == ["drugs", "theft"]
    assert (made.n_bad, made.n_cut, made.n_dropped) == (0, 0, 0)
    assert made.fingerprint == source().fingerprint()
    assert made.describe().startswith(f"3 pairs, {made.n_tokens:,} tokens, ")


def test_oldest_turns_go_first_and_replies_stay_whole(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    turns = ("Where is the old ball?", "Here.", "And the new one?", "There.", "Who has it?")
    row = pair(*turns)
    with_system = preference_row([SYSTEM, *row.prompt], "Tom has it.", "No.", "p")
    whole = preference_cache(source([row, with_system]), tokenizer, 999, tmp_path, progress=False)
    assert whole.n_cut == 0
    lengths = whole.lengths.reshape(-1, 2).max(axis=1)
    made = preference_cache(source([row, with_system]), tokenizer, int(lengths[0]) - 1, tmp_path, progress=False)
    assert (len(made), made.n_cut, made.n_dropped) == (2, 2, 0)
    shorter = "Instruction: And the new one?\nResponse: There.<|endoftext|>"
    for index in range(2):
        chosen, rejected = (tokenizer.decode(sequence(made, 2 * index + side)) for side in range(2))
        assert shorter in chosen or chosen.count("Instruction") == 1
        assert "old ball" not in chosen + rejected
        assert chosen.endswith("Instruction: Who has it?\nResponse: Tom has it.<|endoftext|>")
        assert rejected == chosen.replace("Tom has it.", "No.")
    assert "Be kind." in tokenizer.decode(sequence(made, 2))
    assert ", 2 with older turns left out" in made.describe()


def test_pairs_that_are_too_long(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [PAIRS[0], pair("Who?", chosen="a b c " * 50), pair("x y z " * 50)]
    made = preference_cache(source(rows), tokenizer, 40, tmp_path, progress=False)
    assert (len(made), made.n_dropped) == (1, 2)
    assert "own-train: 2 pairs (66.7 %) left out, longer than stage.context_length=40" in caplog.text
    with pytest.raises(UserError, match=r"^a\.jsonl, Who\?: its longer side has \d+ tokens, too many for stage\.con"):
        preference_cache(source(rows, on_bad_row=OnBadRow.fail), tokenizer, 40, tmp_path, progress=False)
    with pytest.raises(UserError, match=r"no pairs left of a\.jsonl: 3 left out, longer than stage\.context_len"):
        preference_cache(source(rows), tokenizer, 4, tmp_path, progress=False)


def test_chunks_change_nothing(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [*PAIRS, pair("x y z " * 50), *PAIRS[:2]]
    length = 45
    whole = preference_cache(source(rows), tokenizer, length, tmp_path / "a", progress=False)
    monkeypatch.setattr(module, "PAIRS", dataclasses.replace(module.PAIRS, chunk=2))
    parts = preference_cache(source(rows), tokenizer, length, tmp_path / "b", progress=False)
    for name in ("all_ids", "starts", "prompt_lengths", "labels"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name)), name
    assert (whole.n_cut, whole.n_dropped, len(whole)) == (parts.n_cut, parts.n_dropped, len(parts))
    assert whole.n_dropped == 1


def test_made_once_and_again_when_anything_changes(
    tokenizer: PreTrainedTokenizerFast, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(rows: PreferenceSource | None = None, using: Any = tokenizer, length: int = 64, part: Any = None) -> Path:
        return preference_cache(rows or source(), using, length, tmp_path, False, part).path

    many = [pair(f"Who {i}?") for i in range(12)]
    paths = [made(), made(source(PAIRS[:2])), made(length=65), made(using=with_template(tokenizer_folder, "chatml"))]
    paths += [made(source(many)), made(source(many), part="judge"), made(source(many), part="reward")]
    assert len(set(paths)) == len(paths)
    assert paths[-2].name.startswith("own-train-judge-")
    monkeypatch.setattr(module, "try_chats", lambda *args: pytest.fail("encoded again"))
    assert made() == paths[0]


def test_parts_and_bad_rows(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = [None, *(pair(f"Who {i}?") for i in range(20))]
    reward, judge = (
        preference_cache(source(rows), tokenizer, 64, tmp_path, progress=False, part=part)  # type: ignore[arg-type]
        for part in ("reward", "judge")
    )
    assert len(reward) + len(judge) == 20
    assert 0 < len(judge) < 20
    assert reward.n_bad == judge.n_bad == 1
    assert judge.describe().endswith(", 1 unusable")


def test_template_that_trains_nothing_and_tokenizer_without_padding(tokenizer_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_saved_tokenizer(str(tokenizer_folder))
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% generation %}{% endgeneration %}{% endfor %}"
    with pytest.raises(UserError, match=r" at a\.jsonl, Who\?: no token would be trained"):
        preference_cache(source(), tokenizer, 64, tmp_path, progress=False)
    tokenizer.chat_template = (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{{ eos_token }}{% endfor %}"
    )
    with pytest.raises(UserError, match="marks no special token as the end of a reply"):
        preference_cache(source(), tokenizer, 64, tmp_path, progress=False)
    tokenizer.pad_token = None
    with pytest.raises(UserError, match="no padding token"):
        preference_cache(source(), tokenizer, 64, tmp_path, progress=False)


PAD = 7


def make_cache(lengths: list[int], prompts: list[int], length: int = 32) -> PreferenceCache:
    """Sequence s has the tokens 100 * (s + 1) + position."""
    return PreferenceCache(
        all_ids=np.concatenate([100 * (s + 1) + np.arange(n) for s, n in enumerate(lengths)]).astype("<u4"),
        starts=np.cumsum([0, *lengths]),
        prompt_lengths=np.array(prompts),
        labels=np.array([(s % 2, s // 2, -1) for s in range(len(lengths))], dtype=np.int16),
        categories=["a"],
        length=length,
        pad_id=PAD,
        n_bad=0,
        n_cut=0,
        n_dropped=0,
        fingerprint="",
        tokenizer_fingerprint="",
        path=Path(),
    )


N, B = 23, 6
LENGTHS = np.random.default_rng(0).integers(3, 20, 2 * N).tolist()
CACHE = make_cache(LENGTHS, [2] * 2 * N)


def test_batch_by_hand() -> None:
    cache = make_cache([4, 3, 5, 6], [2, 2, 3, 3])
    batch = collate_pairs(cache, np.array([1, 0]), 8)
    assert batch["input_ids"].tolist() == [
        [300, 301, 302, 303, 304, PAD, PAD, PAD],
        [400, 401, 402, 403, 404, 405, PAD, PAD],
        [100, 101, 102, 103, PAD, PAD, PAD, PAD],
        [200, 201, 202, PAD, PAD, PAD, PAD, PAD],
    ]
    assert batch["attention_mask"].tolist() == (batch["input_ids"] != PAD).tolist()
    assert batch["response_mask"].int().tolist() == [
        [0, 0, 0, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0, 0, 0],
    ]
    assert batch["last"].tolist() == [4, 5, 3, 2]
    assert batch["pair"].tolist() == [1, 1, 0, 0]
    assert batch["safe"].tolist() == [0, 1, 0, 1]
    assert batch["category"].tolist() == [1, 1, 0, 0]
    assert batch["severity"].tolist() == [-1] * 4
    assert batch["input_ids"].dtype == batch["last"].dtype == batch["safe"].dtype == torch.int64
    assert batch["response_mask"].dtype == batch["attention_mask"].dtype == torch.bool


def test_every_pair_comes_once_an_epoch_in_another_order() -> None:
    batches = PreferenceBatches(CACHE, seed=1)
    pairs = [int(p) for step in range(2 * N) for p in batches.batch(step, B)["pair"][::2]]
    for epoch in range(4):
        assert sorted(pairs[N * epoch : N * (epoch + 1)]) == list(range(N))
    assert pairs[:N] != pairs[N : 2 * N]
    assert batches.epoch_of(N, B) == B
    assert pairs[: 2 * B] != [
        int(p) for step in (0, 1) for p in PreferenceBatches(CACHE, 2).batch(step, B)["pair"][::2]
    ]


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_ranks_share_the_global_batch_and_any_step_may_come_first(world_size: int) -> None:
    for step in (11, 2, 3):  # step 3 lies across an epoch's end
        whole = PreferenceBatches(CACHE, seed=1).batch(step, B)
        shares = [PreferenceBatches(CACHE, seed=1).batch(step, B, rank, world_size) for rank in range(world_size)]
        for name, values in whole.items():
            assert torch.equal(torch.cat([share[name] for share in shares]), values), name
        assert whole["input_ids"].shape[1] == -(-int(whole["last"].max() + 1) // 8) * 8
        assert PreferenceBatches(CACHE, seed=1).tokens(step, B) == int(whole["attention_mask"].sum())
    with pytest.raises(UserError, match=r"stage\.batch_size=6 does not divide over 4 ranks; use 4"):
        PreferenceBatches(CACHE, seed=1).batch(0, B, 0, 4)


def test_pairs_that_say_nothing_are_counted_and_left_out() -> None:
    cache = make_cache([4, 4, 5, 5, 3, 6, 4, 4], [2, 2, 2, 2, 3, 3, 2, 2])
    cache.all_ids[4:8] = cache.all_ids[:4]  # pair 0: the same tokens; pair 2: its chosen side is its prompt
    found = usable_pairs(cache)
    assert (found.pairs.tolist(), found.n_equal, found.n_bare) == ([1, 3], 1, 1)
    assert found.left_out() == "1 with the same tokens on both sides, 1 with a side without a reply"
    batches = PreferenceBatches(cache, 1, found.pairs)
    assert {int(pair) for step in range(3) for pair in batches.batch(step, 2)["pair"]} == {1, 3}
    counted = [int(pair) for batch in eval_pairs(cache, 3, pairs=found.pairs) for pair in batch["pair"][::2]]
    assert sorted(counted) == [1, 3]
    assert batches.tokens(0, 2) == 5 + 5 + 4 + 4


@pytest.mark.parametrize(("world_size", "size"), [(1, 6), (1, 2), (2, 3), (3, 1), (2, 8)])
def test_micro_batches_are_the_global_batch_sorted_by_length(world_size: int, size: int) -> None:
    batches = PreferenceBatches(CACHE, seed=1)
    for step in (0, 3):
        parts = [batches.micro_batches(step, B, size, rank, world_size) for rank in range(world_size)]
        assert {len(part) for part in parts} == {-(-(B // world_size) // size)}
        found = sorted(int(pair) for rank in parts for rows in rank for pair in rows["pair"][::2])
        assert found == sorted(batches.batch(step, B)["pair"][::2].tolist())
        for rank in parts:
            longest = [int(rows["last"].max()) + 1 for rows in rank]
            assert longest == sorted(longest, reverse=True)
            assert [rows["input_ids"].shape[1] for rows in rank] == [-(-length // 8) * 8 for length in longest]


def test_width_stays_within_the_context() -> None:
    cache = make_cache([10, 9], [2, 2], length=10)
    assert PreferenceBatches(cache, 1).batch(0, 1)["input_ids"].shape == (2, 10)


@pytest.mark.parametrize(("world_size", "most"), [(1, None), (2, None), (3, 7), (4, 100)])
def test_evaluation_counts_every_pair_once(world_size: int, most: int | None) -> None:
    ranks = [list(eval_pairs(CACHE, 4, rank, world_size, most)) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    counted = [int(p) for batches in ranks for batch in batches for p in batch["pair"][::2] if p >= 0]
    want = range(N) if most is None or most >= N else [index * N // most for index in range(most)]
    assert sorted(counted) == list(want)
    first = ranks[0][0]["input_ids"].shape[1]
    assert all(batch["input_ids"].shape[1] <= first for batches in ranks for batch in batches)


@pytest.mark.parametrize(("size", "most"), [(4, None), (4, 16), (100, 24), (3, 1)])
def test_replies_by_length_come_once_and_as_many_as_are_asked_for(size: int, most: int | None) -> None:
    def rows_of(width: int) -> int:
        return size if most is None else max(1, min(size, most // width))

    groups = list(replies_by_length(CACHE, rows_of))
    assert sorted(np.concatenate([rows for rows, _ in groups]).tolist()) == list(range(2 * N))
    lengths = [int(CACHE.lengths[rows].max()) for rows, _ in groups]
    assert lengths == sorted(lengths, reverse=True)
    for rows, batch in groups:
        width = batch["input_ids"].shape[1]
        assert len(rows) <= size and width - CACHE.lengths[rows].max() < 8
        assert most is None or len(rows) * width <= max(most, width)
        for row, ids, real in zip(rows, batch["input_ids"], batch["attention_mask"], strict=True):
            begin, end = CACHE.starts[row], CACHE.starts[row] + CACHE.lengths[row]
            assert ids[real].tolist() == CACHE.all_ids[begin:end].tolist()
        assert batch["pair"].tolist() == [row // 2 for row in rows]
    assert most == 1 or len(groups) < 2 * N


def test_order_is_a_function_of_seed_and_place() -> None:
    order = SeededOrder(5, seed=3)
    later = order.items(7, 4).tolist()
    assert order.items(0, 4).tolist() == SeededOrder(5, seed=3).items(0, 4).tolist()  # back again
    assert SeededOrder(5, seed=3).items(7, 4).tolist() == later
    assert SeededOrder(5, seed=3).items(14, 2).tolist() + SeededOrder(5, seed=3).items(15, 2).tolist() == later
    assert SeededOrder(5, seed=-1).items(0, 5).tolist() != order.items(0, 5).tolist()
