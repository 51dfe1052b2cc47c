"""Programs that speak the OpenAI API ask the server: the official client, LangChain, and lm-eval's local-completions.

python -m pip install openai langchain-openai 'lm-eval[api]'
python -m pytest -n 0 -m serve tests/serve/test_clients.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.serve.conftest import Client, serving

pytestmark = [pytest.mark.serve, pytest.mark.timeout(900)]


@pytest.fixture
def openai(client: Client) -> Any:
    api = pytest.importorskip("openai", reason="openai is missing: pip install openai")
    return api.OpenAI(base_url=f"http://127.0.0.1:{client.port}/v1", api_key="none", max_retries=0)


def ask(openai: Any, **more: Any) -> Any:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "the cat"}]
    return openai.chat.completions.create(model="chatty", messages=messages, max_tokens=12, **more)


def test_the_official_client(openai: Any) -> None:
    assert [model.id for model in openai.models.list()] == ["chatty", "writer", "judge"]
    whole = ask(openai, seed=1, n=2, logprobs=True, top_logprobs=2)
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert all(len(token.top_logprobs) == 2 for choice in whole.choices for token in choice.logprobs.content)
    pieces = ["", ""]
    for chunk in ask(openai, seed=1, n=2, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            pieces[choice.index] += choice.delta.content or ""
    assert pieces == [choice.message.content for choice in whole.choices] and chunk.usage == whole.usage
    texts = openai.completions.create(model="writer", prompt=["the cat", "a dog"], max_tokens=5, logprobs=3, echo=True)
    assert [choice.text.startswith(prompt) for choice, prompt in zip(texts.choices, ("the cat", "a dog"), strict=True)]


def test_its_errors(openai: Any, served: list[Any]) -> None:
    import openai as api

    with pytest.raises(api.BadRequestError) as error:
        ask(openai, temperature=3)
    assert error.value.param == "temperature" and "from 0 to 2" in error.value.message
    with pytest.raises(api.NotFoundError):
        openai.models.retrieve("gpt-9")
    with serving(served, key="secret", seconds=0.3) as guarded:
        address = f"http://127.0.0.1:{guarded.port}/v1"
        with pytest.raises(api.AuthenticationError):
            ask(api.OpenAI(base_url=address, api_key="wrong", max_retries=0))
        right = api.OpenAI(base_url=address, api_key="secret", max_retries=0)
        with pytest.raises(api.APIError, match=r"longer than 0\.3 seconds"):
            list(right.completions.create(model="writer", prompt="x", max_tokens=2000, temperature=0, stream=True))


def test_langchain(client: Client) -> None:
    api = pytest.importorskip("langchain_openai", reason="pip install langchain-openai")
    address = {"base_url": f"http://127.0.0.1:{client.port}/v1", "api_key": "none", "max_retries": 0}
    chat = api.ChatOpenAI(model="chatty", temperature=1, max_tokens=30, seed=7, stream_usage=True, **address)
    whole = chat.invoke("the cat")
    assert whole.content == client.chat(seed=7, max_tokens=30)["choices"][0]["message"]["content"]
    pieces = list(chat.stream("the cat"))
    assert "".join(piece.content for piece in pieces) == whole.content
    assert sum(piece.usage_metadata["output_tokens"] for piece in pieces if piece.usage_metadata) == 30
    texts = ["the cat", "a dog", "the mat"]
    assert [one.content for one in chat.batch(texts)] == [chat.invoke(text).content for text in texts]
    stop = whole.content[10:13]
    assert chat.invoke("the cat", stop=[stop]).content == whole.content[: whole.content.index(stop)].rstrip()
    text = api.OpenAI(model="writer", temperature=0, max_tokens=5, **address)
    assert "".join(text.stream("the cat")) == text.invoke("the cat")
    with pytest.raises(Exception, match="tools is not served here"):
        chat.bind_tools([{"type": "function", "function": {"name": "f", "parameters": {}}}]).invoke("x")


def test_lm_eval_measures_likelihoods_and_generates(client: Client, served: list[Any], tmp_path: Path) -> None:
    models = pytest.importorskip("lm_eval.models.openai_completions", reason="pip install 'lm-eval[api]'")
    from lm_eval.api.instance import Instance

    writer = served[1]
    writer.tokenizer.save_pretrained(tmp_path)
    api = models.LocalCompletionsAPI(
        base_url=f"http://127.0.0.1:{client.port}/v1/completions",
        model="writer",
        tokenizer=str(tmp_path),
        tokenizer_backend="huggingface",
        batch_size=2,
        max_length=2048,
        num_concurrent=2,
    )
    pairs = [("the cat and", " the dog sat"), ("从前", " on the mat"), ("a", "the the the")]
    asked = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    found = api.loglikelihood(asked)
    for (context, ending), (logprob, greedy) in zip(pairs, found, strict=True):
        (context_ids, ending_ids) = api._encode_pair(context, ending)
        _, told = writer.echoed([*context_ids, *ending_ids], [*context_ids, *ending_ids], 1)
        own = told[len(context_ids) :]
        assert logprob == pytest.approx(sum(token.logprob for token in own), abs=1e-4)
        assert greedy == all(token.logprob == token.likeliest[0][2] for token in own)
    wanted = {"until": ["\n\n"], "max_gen_toks": 8, "temperature": 0}
    (text,) = api.generate_until([Instance("generate_until", {}, ("the cat", wanted), 0)])
    body = {"model": "writer", "prompt": api.tok_encode("the cat"), "max_tokens": 8, "temperature": 0}
    assert text == client.ask("/v1/completions", body)[1]["choices"][0]["text"]
