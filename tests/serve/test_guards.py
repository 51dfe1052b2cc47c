"""What must not be answered is refused in the API's format, and who goes away is not computed for."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.serve.conftest import SECONDS, Client, chat_of, eventually, serving

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "the cat"}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "no JSON"),
        (b"[" * 5000, "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[]", "must be a JSON object"),
        ({"messages": []}, "messages: must be a list"),
        ({"messages": "hello"}, "messages: must be a list"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0]: must be an object with a role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content: must be a text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "only parts of type text"),
        ({"messages": [USER, {"role": "assistant", "content": "the mat"}]}, "nothing to reply to"),
        (chat_of("x", temperature="hot"), "temperature='hot': must be a number"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "temperature=nan: must be from"),
        (chat_of("x", temperature=True), "temperature=True: must be a number"),
        (chat_of("x", top_p=0), "top_p=0: must be above 0"),
        (chat_of("x", max_tokens=0), "max_tokens=0: must be from 1 to 2048"),
        (chat_of("x", max_tokens=10**6), "max_tokens=1000000"),
        (chat_of("x", n=1000), "n=1000"),
        (chat_of("x", seed=1.5), "seed=1.5: must be an integer"),
        (chat_of("x", stop=[""]), "stop="),
        (chat_of("x", top_logprobs=2), "goes with logprobs=true"),
        (chat_of("x", stream_options={"include_usage": True}), "goes with stream=true"),
        (chat_of("x", tools=[{"type": "function"}]), "tools is not served here"),
        (chat_of("x", frequency_penalty=1), "repetition_penalty is"),
        (chat_of("x", nonsense=1), "unrecognized request argument: nonsense"),
        (chat_of("\ud800"), "Unicode"),
        (chat_of("word " * 5000), "sees 2,048 tokens at once"),
        ({"messages": [USER] * 10_000}, "sees 2,048 tokens at once"),
        ({"model": "writer", "messages": [USER]}, "ask /v1/completions"),
        ({"model": "judge", "messages": [USER]}, "model judge scores replies"),
    ],
)
def test_a_chat_that_cannot_be_answered(client: Client, body: Any, says: str) -> None:
    error = client.refused(CHAT, body, 400, says)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"prompt": [3.5]}, "prompt: must be"),
        ({"prompt": [[]]}, "prompt: must be"),
        ({"prompt": [10**9]}, "is no token of writer"),
        ({"prompt": ["x"] * 129}, "prompt: must be"),
        ({"prompt": ["x"] * 9, "n": 20}, "at most 128 replies"),
        ({"prompt": "x", "best_of": 3}, "best_of=3"),
        ({"prompt": "x", "echo": True, "stream": True}, "echo and stream"),
        ({"prompt": "x", "suffix": "y"}, "suffix is not served"),
        ({"prompt": [5] * 2048}, "2,048 tokens"),
    ],
)
def test_a_text_that_cannot_be_continued(client: Client, more: dict[str, Any], says: str) -> None:
    client.refused(TEXT, {"model": "writer", "max_tokens": 3, **more}, 400, says)


def test_what_is_not_there(client: Client) -> None:
    assert client.refused(CHAT, {**chat_of("x"), "model": "gpt-9"}, 404, "chatty, writer")["code"] == "model_not_found"
    for path in ("/v1/nothing", "/../setup.cfg", "/%2e%2e/setup.cfg", "/page.html", "//etc/passwd", "/v1/models/../x"):
        client.refused(path, None, 404, "")
    status, answer = client.ask(CHAT, None)
    assert status == 405 and "method not allowed" in answer["error"]["message"]
    client.refused("/v1/score", {"prompt": "x"}, 400, "has no 'response'")
    assert client.ask("/v1/models/chatty")[0] == 200  # after all that


def test_a_large_body_is_refused_before_it_is_read(client: Client) -> None:
    client.refused(CHAT, chat_of("x" * 2**21), 413, "1,048,576 bytes")
    with socket.create_connection(("127.0.0.1", client.port), SECONDS) as plain:
        plain.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999999\r\n\r\n".encode())
        assert b" 413 " in plain.recv(4096).splitlines()[0]


def test_pages_from_elsewhere_may_not_ask_where_there_is_no_key(client: Client) -> None:
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        status, answer = client.ask(CHAT, chat_of("x"), **headers)
        assert status == 403 and "--api-key" in answer["error"]["message"]
    own = f"http://127.0.0.1:{client.port}"
    assert client.ask(CHAT, chat_of("x"), Origin=own, Host=own[7:])[0] == 200


def test_a_key_is_asked_for(served: list[Any]) -> None:
    with serving(served, key="secret") as client:
        assert client.ask("/v1/models")[0] == 200
        for header in ("Bearer wrong", "Bearer ", "secrets", "Basic secret", "Bearer s\u00e9cret"):
            for path in ("/v1/models", "/metrics"):
                status, answer = client.ask(path, Authorization=header)
                assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        client.key = None
        assert client.ask("/health")[0] == client.ask("/")[0] == 200


def test_a_client_that_goes_away_is_computed_for_no_more(client: Client) -> None:
    gone = client.gauge("cancelled_total")
    for more in ({"stream": True}, {"n": 3}):
        body = json.dumps(chat_of("the cat", **{**more, "max_tokens": 2000, "temperature": 0})).encode()
        with socket.create_connection(("127.0.0.1", client.port), SECONDS) as plain:
            head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
            plain.sendall(head.encode() + body)
            eventually(lambda: client.gauge("running") > 0)
        eventually(lambda: client.gauge("running") == 0)
    eventually(lambda: client.gauge("cancelled_total") == gone + 2)


def test_the_queue_and_the_time_are_bounded(served: list[Any]) -> None:
    with serving(served, rows=2, queue=2, seconds=0.3) as client, ThreadPoolExecutor(12) as pool:
        body = chat_of("the cat", max_tokens=2000, temperature=0)
        asked = list(pool.map(lambda _: client.ask(CHAT, body), range(12)))
        codes = {status: answer["error"]["code"] for status, answer in asked}
        assert codes == {429: "rate_limit_exceeded", 504: "timeout"}
        events = client.ask(CHAT, {**body, "stream": True})[1]
        assert '"code": "timeout"' in events.split("\n\n")[-3]
        assert client.gauge("running") == client.gauge("waiting") == 0
        eventually(lambda: client.ask(CHAT, chat_of("the cat", max_tokens=2))[0] == 200)


def test_an_error_ends_its_requests_alone(served: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(served) as client:

        def broken(*_: Any) -> Any:
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(served[0].batch, "join", broken)
            client.refused(CHAT, chat_of("x"), 500, "MemoryError")
        assert client.chat("x")["usage"]["completion_tokens"] == 12
