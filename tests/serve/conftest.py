"""A server of tiny models that babble, on a port of this machine, and a client for it."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.chat_models import babbler
from tests.reward_models import reward_model

SECONDS = 60  # on a busy machine


@dataclasses.dataclass
class Client:
    port: int
    key: str | None = None
    server: Any = None  # tinychat.serve.app.Server

    def ask(self, path: str, body: Any = None, method: str | None = None, **headers: str) -> tuple[int, Any]:
        """(status, what the body holds). bytes are sent as they are."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)) as connection:
            raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            if self.key:
                headers.setdefault("Authorization", f"Bearer {self.key}")
            connection.request(method or ("GET" if body is None else "POST"), path, raw, headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        return answer.status, json.loads(text) if "json" in answer.headers["content-type"] else text

    def chat(self, text: str = "the cat", **more: Any) -> Any:
        """The answer to a message, which must be one."""
        status, answer = self.ask("/v1/chat/completions", chat_of(text, **more))
        assert status == 200, answer
        return answer

    def events(self, path: str, body: Any) -> list[dict[str, Any]]:
        """Of a stream that ends as it should."""
        status, text = self.ask(path, {**body, "stream": True})
        assert status == 200, text
        *events, last = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        assert last == "[DONE]"
        return [json.loads(event) for event in events]

    def refused(self, path: str, body: Any, status: int, says: str) -> dict[str, Any]:
        """The error of a request that is refused in the API's format."""
        found, answer = self.ask(path, body)
        assert found == status, answer
        assert set(answer["error"]) == {"message", "type", "param", "code"} and says in answer["error"]["message"]
        return answer["error"]

    def gauge(self, name: str) -> float:
        _, text = self.ask("/metrics")
        return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"tinychat_{name} "))


def chat_of(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "chatty", "messages": [{"role": "user", "content": text}], "max_tokens": 12, **more}


@contextlib.contextmanager
def serving(
    served: list[Any], key: str | None = None, send_buffer: int | None = None, **limits: Any
) -> Iterator[Client]:
    """send_buffer: bytes that the system takes for a client that does not read; None: as many as it likes."""
    import uvicorn

    from tinychat.serve.app import Limits, Server
    from tinychat.serve.connections import configuration

    server = Server(served, Limits(**limits), key)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        if send_buffer is not None:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        running = uvicorn.Server(configuration(server.app))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
        server.start()
        thread.start()
        try:
            yield Client(listening.getsockname()[1], key, server)
        finally:
            running.should_exit = running.force_exit = True
            thread.join(SECONDS)
            server.close()


def eventually(condition: Any) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """chatty (chat), writer (text) and judge, a reward model."""
    import torch

    from tinychat.models.scorer import Scorer
    from tinychat.serve.served import Language, Reward
    from tinychat.text.chat_template import set_template

    chatty, chats = babbler()
    set_template(chats, "chatml")
    writer, texts = babbler("gpt2")
    folder = reward_model(tmp_path_factory.mktemp("serve") / "judge")
    judge = Reward("judge", Scorer(str(folder), "cpu", torch.float32, 4))
    return [Language("chatty", chatty, chats), Language("writer", writer, texts), judge]


@pytest.fixture(scope="session")
def client(served: list[Any]) -> Iterator[Client]:
    with serving(served) as client:
        yield client
