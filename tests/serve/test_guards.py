"""What must not be answered is refused in the API's format, and who goes away is not computed for."""

from __future__ import annotations

import itertools
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.serve.conftest import SECONDS, Client, chat_of, eventually, serving
from tinychat.serve import app, connections
from tinychat.serve.worker import Worker

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
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0]: must be an object with a role"),
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
        (chat_of("x", **{"\ud800": 1}), "unrecognized request argument: \\ud800"),
        (chat_of("x", repetition_penalty=1e-300), "repetition_penalty=1e-300: must be from 0.01 to 100"),
        (chat_of("x", n=8, max_tokens=2000, logprobs=True, top_logprobs=20), "at most 262,144 log-probabilities"),
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
        ({"prompt": [[5] * 1000] * 100, "echo": True, "logprobs": 2}, "at most 262,144 log-probabilities"),
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


def plain(client: Client, request: bytes) -> socket.socket:
    """A connection on which that was sent."""
    connection = socket.create_connection(("127.0.0.1", client.port), SECONDS)
    connection.sendall(request)
    return connection


def read_all(connection: socket.socket) -> bytes:
    """Until the server ends it."""
    with connection:
        try:
            return b"".join(iter(lambda: connection.recv(65536), b""))
        except ConnectionResetError:
            return b""


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (b"\x16\x03\x01 this is TLS\r\n\r\n", "Invalid HTTP request"),
        (b"GET / HTTP/1.1\r\n\r\n", "Invalid HTTP request"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000, "Invalid HTTP request"),
        (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", "Invalid HTTP request"),
        (b"GET /v1/models HTTP/1.0\r\n\r\n", "requests without a Host are not answered"),
    ],
)
def test_what_is_no_request_is_told_so(client: Client, request_: bytes, says: str) -> None:
    head, _, body = read_all(plain(client, request_)).partition(b"\r\n\r\n")
    assert head.split()[1] in (b"400", b"403") and says in json.loads(body)["error"]["message"]


def test_a_connection_without_a_request_is_ended(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "PATIENCE", 0.2)
    assert read_all(plain(client, b"")) == read_all(plain(client, b"GET / HTTP/1.1\r\nHost: loc")) == b""
    assert read_all(plain(client, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET")).endswith(b'"ok"}')


def test_many_idle_connections_keep_nobody_out(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST", 5)
    idle = [plain(client, b"GET / HTTP/1.1\r\nHost: loc") for _ in range(40)]
    assert client.chat("x")
    assert [read_all(one) for one in idle[:35]] == [b""] * 35
    for one in idle[35:]:
        one.close()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_reads_nothing_is_left(served: list[Any], stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a stream, and with an answer that is whole."""
    monkeypatch.setattr(connections, "PATIENCE", 0.01)  # far shorter than the reply takes
    body = {"model": "writer", "prompt": "the cat", "max_tokens": 300, "temperature": 0, "logprobs": 20}
    asked = json.dumps({**body, "stream": stream}).encode()
    head = f"POST {TEXT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(asked)}\r\n\r\n".encode()
    with serving(served, send_buffer=4096) as client, socket.socket() as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        silent.connect(("127.0.0.1", client.port))
        silent.sendall(head + asked)
        eventually(lambda: client.server.metrics.requests[TEXT, 200] == 1)
        eventually(lambda: _is_ended(silent))
        eventually(lambda: client.server.worker.sizes()["running"] == 0)
        assert client.server.metrics.cancelled == stream


def _is_ended(connection: socket.socket) -> bool:
    try:
        connection.sendall(b"x")
    except OSError:
        return True
    return False


def test_bodies_that_do_not_come_keep_nobody_out(served: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "BODY_SECONDS_OF_MANY", 0.0)
    with serving(served, queue=1, rows=1) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n".encode()
        slow = [plain(client, head + b"{") for _ in range(30)]
        eventually(lambda: client.gauge("running") == 0)
        assert client.chat("x")
        assert b" 408 " in slow[0].recv(4096).splitlines()[0]
        for one in slow:
            one.close()


def test_a_client_that_leaves_in_its_body_is_no_error(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with plain(client, f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{{".encode()):
        pass
    left = f'tinychat_requests_total{{path="{CHAT}",status="499"}}'
    eventually(lambda: left in client.ask("/metrics")[1])
    assert not caplog.records


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


def test_a_long_echo_holds_up_no_reply(served: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the prompts of an echo the replies on their way get their tokens."""
    done: list[str] = []

    def noted(name: str, function: Any) -> Any:
        return lambda *given: (done.append(name), function(*given))[1]

    monkeypatch.setattr(served[0].batch, "step", noted("step", served[0].batch.step))
    monkeypatch.setattr(served[1], "echoed", noted("echo", served[1].echoed))
    body = {"model": "writer", "prompt": ["the cat", "a dog"] * 3, "max_tokens": 0, "echo": True, "logprobs": 1}
    with serving(served) as client, ThreadPoolExecutor(1) as pool:
        reply = pool.submit(client.chat, max_tokens=300, temperature=0)
        eventually(lambda: len(done) > 1)
        status, answer = client.ask(TEXT, body)
        assert status == 200 and [choice["text"] for choice in answer["choices"]] == body["prompt"]
        assert reply.result()
    assert done.count("echo") == 6
    assert all(pair != ("echo", "echo") for pair in itertools.pairwise(done))


def test_an_error_that_nobody_foresaw(served: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "asked", lambda *_: 1 / 0)
    with serving(served) as client:
        assert client.refused(CHAT, chat_of("x"), 500, "its log says more")["type"] == "server_error"


def test_health_when_nothing_is_computed_any_more(served: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(served) as client:
        assert client.ask("/health")[0] == 200
        monkeypatch.setattr(Worker, "_calls", lambda self: 1 / 0)
        for _ in range(2):
            client.refused(CHAT, chat_of("x"), 503, "the server is ending")
        client.refused("/health", None, 503, "start the server again")


def test_an_error_ends_its_requests_alone(served: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(served) as client:

        def broken(*_: Any) -> Any:
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(served[0].batch, "join", broken)
            client.refused(CHAT, chat_of("x"), 500, "MemoryError")
        assert client.chat("x")["usage"]["completion_tokens"] == 12
