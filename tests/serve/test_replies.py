"""What clients get: the same tokens as from the decoder of rollouts, whoever shares the batch, in the API's shapes."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from tests.serve.conftest import Client, chat_of
from tinychat.models.generation.decode import DecodeOptions, decode, own_draws
from tinychat.serve.served import Language
from tinychat.text.chat_template import encode_prompts, reply_text

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def test_models_say_what_they_do(client: Client) -> None:
    status, answer = client.ask("/v1/models")
    assert status == 200 and [model["kind"] for model in answer["data"]] == ["chat", "text", "reward"]
    assert client.ask("/v1/models/writer")[1] == answer["data"][1]
    assert client.ask("/health") == (200, {"status": "ok"})


def test_replies_are_those_of_the_decoder_of_rollouts(client: Client, served: list[Any]) -> None:
    """With the draws that tinychat.generate has for the same seed."""
    chatty: Language = served[0]
    (prompt,) = encode_prompts(chatty.tokenizer, [[{"role": "user", "content": "the cat"}]])
    options = DecodeOptions(12, tuple(chatty._chat_ends), vocabulary=chatty.vocabulary, group=3)
    wanted = decode(chatty._model, [prompt], options, 0, 8, draws=own_draws(1, 0, options, seed=7)).responses
    choices = client.chat(seed=7, n=3)["choices"]
    assert [one["message"]["content"] for one in choices] == [reply_text(chatty.tokenizer, ids) for ids in wanted]
    assert len({one["message"]["content"] for one in choices}) == 3


def test_a_reply_does_not_depend_on_who_shares_the_batch(client: Client) -> None:
    alone = [client.chat(f"the cat {place}", seed=place, max_tokens=20) for place in range(6)]
    others = [{"seed": place, "max_tokens": 5 + 3 * place, "temperature": 0.5} for place in range(12)]
    with ThreadPoolExecutor(18) as pool:
        noise = [
            pool.submit(client.chat, "a dog on the mat " * (place % 5), **more) for place, more in enumerate(others)
        ]
        among = list(pool.map(lambda place: client.chat(f"the cat {place}", seed=place, max_tokens=20), range(6)))
        assert all(one.result()["usage"]["completion_tokens"] <= 50 for one in noise)
    assert [one["choices"] for one in among] == [one["choices"] for one in alone]


@pytest.mark.parametrize("more", [{"seed": 3}, {"temperature": 0, "logprobs": True, "top_logprobs": 3}])
def test_a_stream_is_the_whole_in_pieces(client: Client, more: dict[str, Any]) -> None:
    body = chat_of("the dog", n=2, **more)
    whole = client.ask(CHAT, body)[1]
    events = client.events(CHAT, {**body, "stream_options": {"include_usage": True}})
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert events[-1]["choices"] == [] and events[-1]["usage"] == whole["usage"]
    for index, choice in enumerate(whole["choices"]):
        own = [one for event in events for one in event["choices"] if one["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(one["delta"].get("content", "") for one in own) == choice["message"]["content"]
        assert [one["finish_reason"] for one in own if one["finish_reason"]] == [choice["finish_reason"]]
        told = [token for one in own if one["logprobs"] for token in one["logprobs"]["content"]]
        assert told == (choice["logprobs"] or {"content": []})["content"]


def test_probabilities_are_the_model_s_own(client: Client) -> None:
    for temperature in (0, 0.5):
        answer = client.chat(temperature=temperature, seed=1, logprobs=True, top_logprobs=20)
        told = answer["choices"][0]["logprobs"]["content"]
        assert len(told) == answer["usage"]["completion_tokens"] == 12
        for token in told:
            values = [other["logprob"] for other in token["top_logprobs"]]
            assert len(values) == 20 and values == sorted(values, reverse=True)
            assert sum(map(math.exp, values)) < 1 + 1e-6 and token["logprob"] <= values[0]
            if temperature == 0:
                assert token["token"] == token["top_logprobs"][0]["token"]


def test_tokens_bytes_join_to_the_text_also_within_a_character(client: Client) -> None:
    prompt = "the cat, 从前 🎉"
    body = {"model": "writer", "prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 1}
    answer = client.ask(TEXT, body)[1]["choices"][0]
    assert answer["text"] == prompt and answer["logprobs"]["token_logprobs"][0] is not None
    answer = client.chat(temperature=2, seed=4, max_tokens=200, logprobs=True)["choices"][0]
    raw = b"".join(bytes(token["bytes"]) for token in answer["logprobs"]["content"])
    assert raw.decode("utf-8", "replace").strip().replace("\ufffd", "") == answer["message"]["content"].replace(
        "\ufffd", ""
    )


def test_a_text_stops_a_reply_and_is_no_part_of_it(client: Client) -> None:
    whole = client.chat(seed=5, max_tokens=60)["choices"][0]["message"]["content"]
    stop = whole[20:23]
    wanted = whole[: whole.index(stop)].rstrip()
    body = chat_of("the cat", seed=5, max_tokens=60, stop=[stop, "not there"])
    choice = client.ask(CHAT, body)[1]["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (wanted, "stop")
    pieces = [one["delta"].get("content", "") for event in client.events(CHAT, body) for one in event["choices"]]
    assert "".join(pieces) == wanted


def test_what_a_prompt_s_tokens_are_worth(client: Client, served: list[Any]) -> None:
    """As lm-eval asks: ids of the prompt, one token more, greedy."""
    import torch

    writer: Language = served[1]
    ids = [[5, 9, 30, 7], [8, 8, 200]]
    body = {"model": "writer", "prompt": ids, "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}
    choices = client.ask(TEXT, body)[1]["choices"]
    for choice, prompt in zip(choices, ids, strict=True):
        logits = writer.vocabulary.of_logits(writer._model(torch.tensor([prompt])).logits[0].detach())
        logprobs = logits.log_softmax(-1)
        told = choice["logprobs"]
        assert len(told["tokens"]) == len(prompt) + 1 and told["token_logprobs"][0] is None
        own = [float(logprobs[place, token]) for place, token in enumerate(prompt[1:])]
        assert told["token_logprobs"][1:-1] == pytest.approx(own, abs=1e-5)
        best = [max(top.values()) for top in told["top_logprobs"][1:]]
        assert best == pytest.approx(logprobs.max(-1).values.tolist(), abs=1e-5)
        assert told["token_logprobs"][-1] == best[-1]


def test_a_reward_model_scores(client: Client, served: list[Any]) -> None:
    from tests.reward_models import score_texts

    prompt, replies = [{"role": "user", "content": "the cat"}], ["the mat", "a dog"]
    wanted = score_texts(served[2].scorer, [prompt, prompt], replies)
    row = {"model": "judge", "messages": [*prompt, {"role": "assistant", "content": replies[0]}]}
    assert client.ask("/v1/score", row)[1]["score"] == pytest.approx(wanted[0], abs=1e-4)
    pair = client.ask("/v1/score", {"prompt": "the cat", "chosen": replies[0], "rejected": replies[1]})[1]
    assert [pair["score_chosen"], pair["score_rejected"]] == pytest.approx(wanted, abs=1e-4)
    assert pair["score_range"] == "standard" and pair["wins"] in ("chosen", "rejected")


def test_a_single_reply_of_a_light_model_is_computed_by_one_thread(
    served: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, before, seen = served[0], torch.get_num_threads(), []
    monkeypatch.setattr(model.batch, "step", lambda: seen.append(torch.get_num_threads()))
    try:
        torch.set_num_threads(2)
        for rows in ([1], [1, 2]):
            monkeypatch.setattr(model.batch, "rows", rows)
            model.step()
        monkeypatch.setattr(model.batch, "rows", [1])
        monkeypatch.setattr(model, "_light", False)
        model.step()
        assert seen == [1, 2, 2] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
