"""Replies and their scores with a model whose tokens are letters, and the losses of given replies."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from tinychat.data.chats.rows import ChatRow
from tinychat.errors import UserError
from tinychat.evaluation import replies
from tinychat.evaluation.replies import (
    InstructionResult,
    Reply,
    judge,
    replies_to,
    response_loss,
    shared_replies,
    token_scores,
)
from tinychat.evaluation.statistics import ratio_interval, wilson
from tinychat.models.generation.decode import DecodeOptions
from tinychat.models.logprobs import IGNORED, token_nll
from tinychat.runtime import heartbeat
from tinychat.runtime.world import World

ALONE = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
END = 127
OPTIONS = DecodeOptions(max_new_tokens=8, end_ids=(END,), temperature=0.0)
TOKENIZER = SimpleNamespace(pad_token_id=0, get_vocab=lambda: {str(i): i for i in range(END + 1)})


def row(asked: str, answer: str, family: str = "", kind: str = "", system: str = "") -> ChatRow:
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return ChatRow(messages, "here", family, kind)


def encode(tokenizer: Any, conversations: list[list[dict[str, str]]]) -> list[list[int]]:
    assert all(messages[-1]["role"] == "user" for messages in conversations), "the reply is not shown"
    return [[ord(letter) for letter in messages[-1]["content"]] for messages in conversations]


def reply_text(tokenizer: Any, ids: list[int]) -> str:
    return "".join(chr(token) for token in ids if token != END).strip()


@pytest.fixture
def model() -> GPT2LMHeadModel:
    """Says the letters after the prompt's last one, and ends after "f": "c" -> "def"."""
    shape = GPT2Config(n_layer=1, n_embd=128, n_head=1, n_positions=16, vocab_size=128, tie_word_embeddings=False)
    model = GPT2LMHeadModel(shape).eval()
    with torch.no_grad():
        for block_output in (model.transformer.h[0].attn.c_proj, model.transformer.h[0].mlp.c_proj):
            block_output.weight.zero_()
            block_output.bias.zero_()
        model.transformer.wpe.weight.zero_()
        model.transformer.wte.weight.copy_(torch.eye(128))
        following = torch.arange(128) + 1
        following[ord("f")] = END
        model.lm_head.weight.zero_()
        model.lm_head.weight[following.clamp(max=127), torch.arange(128)] = 1.0
    return model


def evaluate(model: Any, rows: list[ChatRow], world: World = ALONE, batch_size: int = 2) -> InstructionResult:
    return judge(replies_to(model, TOKENIZER, rows, OPTIONS, batch_size, world, None, encode, reply_text))


ROWS = [
    row("c", "DEF.", "letters", "word"),
    row("aaaab", "cdef", "letters", "exact"),
    row("e", "g", "letters", "exact"),
    row("xyd", "e f", "spaced", "word"),
    row("b", "cdef", "", ""),
    row("bbb", "one two three four five six", "", ""),
    row("A", "nothing of it", "", ""),
]


def test_replies_are_greedy_and_scored_by_their_kind(model: GPT2LMHeadModel) -> None:
    done = evaluate(model, ROWS)
    assert done.table == [
        ["letters", "c", "def", "DEF.", 1.0],
        ["letters", "aaaab", "cdef", "cdef", 1.0],
        ["letters", "e", "f", "g", 0.0],
        ["spaced", "xyd", "ef", "e f", 0.0],
        ["", "b", "cdef", "cdef", 1.0],
        ["", "bbb", "cdef", "one two three four five six", 0.0],
        ["", "A", "BCDEFGHI", "nothing of it", 0.0],
    ]
    metrics = done.metrics
    assert metrics["eval/instruction_accuracy"] == 0.5
    assert (metrics["eval/instruction_accuracy_low"], metrics["eval/instruction_accuracy_high"]) == wilson(2, 4)
    assert metrics["eval/instruction_rows"] == 4
    assert metrics["eval/rouge_l"] == pytest.approx(1 / 3)
    assert metrics["eval/rouge_l_low"] == 0.0
    assert metrics["eval/rouge_l_high"] == pytest.approx(1 / 3 + 1.96 / 3, abs=1e-3)
    assert metrics["eval/open_rows"] == 3
    assert metrics["eval/exact_match"] == 0.5, "the six-word reference is not asked for word for word"
    assert metrics["eval/exact_match_rows"] == 2
    assert metrics["eval/reply_ended"] == pytest.approx(6 / 7), "eight letters from A on reach no f"
    assert done.families == [["letters", 3, 2, 2 / 3, *wilson(2, 3)], ["spaced", 1, 0, 0.0, *wilson(0, 1)]]


@pytest.mark.parametrize("batch_size", [1, 50])
def test_the_batch_size_changes_nothing(model: GPT2LMHeadModel, batch_size: int) -> None:
    assert evaluate(model, ROWS, batch_size=batch_size) == evaluate(model, ROWS)


class Said(Exception):
    """A rank has told its share."""


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_share_the_rows(model: GPT2LMHeadModel, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank makes its share alone; any rank that gets all shares has the whole result."""
    alone, shares = evaluate(model, ROWS), []

    def tell(self: World, own: Any) -> list[Any]:
        shares.append(own)
        raise Said

    monkeypatch.setattr(World, "gather_objects", tell)
    for rank in range(size):
        with pytest.raises(Said):
            evaluate(model, ROWS, World(rank, rank, size, torch.device("cpu")))
    assert {len(share) for share in shares} <= {len(ROWS) // size, len(ROWS) // size + 1}
    monkeypatch.setattr(World, "gather_objects", lambda self, own: shares)
    assert evaluate(model, ROWS, World(1, 1, size, torch.device("cpu"))) == alone


def test_a_prompt_that_fills_the_context_gets_an_empty_reply(model: GPT2LMHeadModel) -> None:
    done = evaluate(model, [row("a" * 16, "b", "long", "exact"), row("c", "def", "short", "exact")])
    assert [line[2] for line in done.table] == ["", "def"]
    assert done.metrics["eval/instruction_accuracy"] == 0.5


def test_what_no_row_measures_is_left_out(model: GPT2LMHeadModel) -> None:
    assert not any("rouge" in name or "exact" in name for name in evaluate(model, ROWS[:4]).metrics)
    one = evaluate(model, ROWS[4:5]).metrics
    assert set(one) == {
        "eval/rouge_l",
        "eval/open_rows",
        "eval/exact_match",
        "eval/exact_match_low",
        "eval/exact_match_high",
        "eval/exact_match_rows",
        "eval/reply_ended",
    }
    assert evaluate(model, []) == InstructionResult({})


def test_the_table_shows_all_that_was_asked() -> None:
    several = ChatRow(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Add.", "input": "1 2"},
            {"role": "assistant", "content": "3"},
            {"role": "user", "content": "And one?"},
            {"role": "assistant", "content": "4"},
        ],
        "here",
    )
    single = ChatRow([{"role": "user", "content": "Add.", "input": "1 2"}, several.messages[2]], "here")
    shown = [line[1] for line in judge([Reply(several, "", True), Reply(single, "", True)]).table]
    assert shown == ["system: Be brief.\nuser: Add.\n1 2\nassistant: 3\nuser: And one?", "Add.\n1 2"]


# ------------------------------------------------------------------------------------------- losses of given replies


@pytest.fixture
def random_model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=50, initializer_range=0.3)).eval()


def batch(rows: int, seed: int) -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    ids = torch.randint(50, (rows, 9), generator=chance)
    targets = torch.randint(50, (rows, 9), generator=chance)
    targets[:, :3] = IGNORED
    targets[0, 5:] = IGNORED
    return {"input_ids": ids, "targets": targets, "segments": ids}


@pytest.mark.parametrize("elements", [1 << 20, 100])
def test_scores_are_token_nlls_and_the_likeliest_tokens(
    random_model: GPT2LMHeadModel, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "CHUNK_ELEMENTS", elements)
    part = batch(4, 0)
    with torch.no_grad():
        logits = random_model(input_ids=part["input_ids"]).logits
        likeliest = logits.argmax(-1)
        part["targets"][1, 4:] = likeliest[1, 4:]
        nll, right = token_scores(random_model, part["input_ids"], part["targets"])
        torch.testing.assert_close(nll, token_nll(random_model, part["input_ids"], part["targets"]))
    assert torch.equal(right, (likeliest == part["targets"]) & (part["targets"] != IGNORED))
    assert right[1, 4:].all()
    assert random_model(input_ids=part["input_ids"]).logits.shape == (4, 9, 50), "the head is itself again"


def test_response_loss_counts_tokens_and_takes_rows_for_the_sample(random_model: GPT2LMHeadModel) -> None:
    parts = [batch(3, 1), batch(2, 2)]
    empty = batch(1, 3)
    empty["targets"].fill_(IGNORED)
    found = response_loss(random_model, [*parts, empty], ALONE)
    nats, tokens, hits = [], [], []
    for part in parts:
        with torch.no_grad():
            nll = token_nll(random_model, part["input_ids"], part["targets"])
            likeliest = random_model(input_ids=part["input_ids"]).logits.argmax(-1)
        nats += nll.sum(1).tolist()
        tokens += (part["targets"] != IGNORED).sum(1).tolist()
        hits += (likeliest == part["targets"]).sum(1).tolist()
    assert tokens == [2, 6, 6, 2, 6]
    loss = sum(nats) / sum(tokens)
    low, high = ratio_interval(nats, tokens)
    assert found["eval/response_tokens"] == 22
    assert found["eval/response_loss"] == pytest.approx(loss)
    assert found["eval/response_ppl"] == pytest.approx(math.exp(loss))
    assert found["eval/token_accuracy"] == pytest.approx(sum(hits) / 22)
    assert (found["eval/response_loss_low"], found["eval/response_loss_high"]) == pytest.approx((low, high))
    assert found["eval/response_ppl_high"] == pytest.approx(math.exp(high))
    assert found["eval/token_accuracy_low"] >= 0


def test_response_loss_gathers_all_ranks(random_model: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = response_loss(random_model, [batch(3, 1), batch(2, 2)], ALONE)
    said: list[Any] = []
    monkeypatch.setattr(World, "gather_objects", lambda self, own: said.append(own) or said)  # type: ignore[func-returns-value]
    response_loss(random_model, [batch(3, 1)], ALONE)
    assert response_loss(random_model, [batch(2, 2)], ALONE) == pytest.approx(whole)


def test_nothing_to_predict_is_said(random_model: GPT2LMHeadModel) -> None:
    part = batch(2, 0)
    part["targets"].fill_(IGNORED)
    with pytest.raises(UserError, match="no reply within the context"):
        response_loss(random_model, [part], ALONE)
    one = batch(1, 0)
    assert "eval/response_loss_low" not in response_loss(random_model, [one], ALONE)


def test_ids_beyond_the_tokenizer_are_never_said(model: GPT2LMHeadModel) -> None:
    """The model has a row for "f", and wants to say it; the tokenizer ends with "e"."""
    short = SimpleNamespace(pad_token_id=0, get_vocab=lambda: {chr(i): i for i in range(ord("e") + 1)})
    ((text, _),) = shared_replies(model, short, [[ord("c")]], OPTIONS, 1, ALONE, None, reply_text)
    assert text.startswith("de")
    assert max(map(ord, text)) <= ord("e")


def test_many_replies_say_how_many_there_are(
    model: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(heartbeat, "LINE_EVERY", 0.0)
    short = SimpleNamespace(pad_token_id=0, get_vocab=lambda: {chr(i): i for i in range(ord("e") + 1)})
    with caplog.at_level("INFO", logger="tinychat"):
        shared_replies(model, short, [[ord("c")]] * 5, OPTIONS, 2, ALONE, None, reply_text)
    said = [text for text in caplog.messages if text.startswith("replying")]
    assert [text.rpartition(",")[0] for text in said] == ["replying: 2 of 5 prompts", "replying: 4 of 5 prompts"]


def test_free_replies_are_asked_for_refusals_and_repetition() -> None:
    said = [
        Reply(row("how?", "so"), "no no no no", True),
        Reply(row("why?", "so"), "I can't help with that.", True),
        Reply(row("1 + 1?", "2", kind="number"), "2 2 2 2 2 2", True),
    ]
    found = replies.free_replies(said)
    assert found["eval/over_refusal_instructions"] == pytest.approx(1 / 3)  # of all
    assert found["eval/longest_run"] == 2.0  # of those whose answer is open
    assert found["eval/longest_run_low"] == 0.0
    assert found["eval/distinct_2"] == pytest.approx(8 / 10)
    assert replies.free_replies([]) == {}
