"""Rows that join and leave a running batch get the tokens of the decoder whose batches stand still."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch

from tests.chat_models import babbler
from tinychat.models.generation import running
from tinychat.models.generation.decode import DecodeOptions, Filter, _OwnForward, decode, own_draws
from tinychat.models.generation.running import Row, RunningBatch
from tinychat.models.vocabulary import vocabulary

PROMPTS = [[5, 6, 7], [8] * 20, list(range(10, 60)), [4, 4], [9, 8, 7, 6, 5]] * 2
STEPS = 24


def chance(draws: torch.Tensor) -> Callable[[], float]:
    return iter(draws.tolist()).__next__


def come_and_go(batch: RunningBatch, rows: list[Row]) -> None:
    """Two join at every third step; each leaves after STEPS tokens, the first of a pair after fewer."""
    waiting, step = list(rows), 0
    while waiting or batch.rows:
        if waiting and step % 3 == 0:
            batch.join(waiting[:2])
            waiting = waiting[2:]
        batch.step()
        batch.leave([row for row in batch.rows if len(row.response) >= STEPS - 9 * (rows.index(row) % 2)])
        step += 1


@pytest.mark.parametrize("kind", ["llama", "gpt2", "any other"])
def test_rows_that_join_and_leave_get_the_decoder_s_tokens(kind: str) -> None:
    model, tokenizer = babbler("gpt2" if kind == "gpt2" else "llama")
    options = DecodeOptions(STEPS + 1, (), 0.9, seed=1, vocabulary=vocabulary(tokenizer))
    draws = own_draws(len(PROMPTS), 0, options, seed=3)
    wanted = decode(model, PROMPTS, options, 0, 64, draws=draws).responses

    def own(model: Any, dtype: Any) -> Any:
        return _OwnForward(model, dtype, torch.device("cpu"))

    with mock.patch.object(running, "prepare", own if kind == "any other" else running.prepare):
        batch = RunningBatch(model, 0, options.vocabulary)
    rows = [Row(prompt, chance(own), 0.9) for prompt, own in zip(PROMPTS, draws, strict=True)]
    come_and_go(batch, rows)
    assert all(len(row.response) >= STEPS - 9 for row in rows)
    assert [row.response for row in rows] == [ids[: len(row.response)] for ids, row in zip(wanted, rows, strict=True)]


def test_each_row_has_its_own_options() -> None:
    model, tokenizer = babbler()
    known = vocabulary(tokenizer)
    wanted = [(0.0, Filter()), (1.3, Filter(top_k=5)), (0.7, Filter(top_p=0.8)), (0.7, Filter(repetition_penalty=1.5))]
    batch, rows, alone = RunningBatch(model, 0, known), [], []
    for place, (temperature, its) in enumerate(wanted):
        options = DecodeOptions(STEPS, (), temperature, vocabulary=known, filter=its)
        draws = torch.rand(1, STEPS + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(place))
        alone.append(decode(model, [PROMPTS[0]], options, 0, 1, draws=draws).responses[0])
        rows.append(Row(PROMPTS[0], chance(draws[0]), temperature, its, alternatives=place or None))
    drawn = batch.join(rows)
    assert [len(one.likeliest) for one in drawn] == [0, 1, 2, 3] and drawn[0].logprob is None
    for _ in range(STEPS - 1):
        drawn = batch.step()
    assert [row.response for row in rows] == alone
    assert all(one.logprob is not None and one.logprob <= one.likeliest[0][1] for one in drawn[1:])


def test_an_empty_batch_holds_no_memory_and_a_full_context_is_reached() -> None:
    model, tokenizer = babbler(context=64)
    batch = RunningBatch(model, 0, vocabulary(tokenizer))
    assert batch.step() == []
    rows = [Row([5] * 40, lambda: 0.5), Row([7, 8], lambda: 0.5)]
    batch.join(rows)
    for _ in range(23):
        batch.step()
    assert len(rows[0].response) == 24  # with the prompt as many as the context
    batch.leave(rows)
    assert batch.rows == [] and batch._cache is None
