"""A server that cannot start says so in one line, before any model is read."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from unittest import mock

import pytest

from tests.chat_models import saved
from tests.reward_models import reward_model
from tinychat.errors import UserError
from tinychat.serve.__main__ import address, check_extra, parse, run
from tinychat.serve.served import Language, Reward, open_all


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--port", "70000"], "--port 70000: must be from 0 to 65535"),
        (["--batch_size", "0"], "--batch-size 0: must be at least 1"),
        (["--api-key", ""], "--api-key"),
        (["--host", "0.0.0.0"], "--host 0.0.0.0: others would reach it; add --api-key KEY"),
        (["--host", "no such place"], "is no address of this machine"),
        (["--nonsense"], "python -m tinychat.serve --help"),
    ],
)
def test_options_that_cannot_work(arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINYCHAT_API_KEY", raising=False)
    with pytest.raises(UserError) as error:
        run(["nowhere", *arguments])
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"^--port {port}: is in use.*--port {port + 1}"):
            run(["nowhere", "--port", str(port)])
    with address("127.0.0.1", port, None) as own:
        assert own.getsockname()[1] == port


def test_a_missing_extra() -> None:
    with (
        mock.patch.dict(sys.modules, {"uvicorn": None}),
        pytest.raises(UserError, match=r"needs the package uvicorn: pip"),
    ):
        check_extra()


def test_what_the_checkpoints_are(tmp_path: Path) -> None:
    judge = str(reward_model(tmp_path / "judge"))
    with pytest.raises(UserError, match=r"judge is a reward model.*python -m tinychat.serve latest"):
        open_all(parse([judge]))
    chatty, writer = str(saved(tmp_path / "chatty", "chatml")), str(saved(tmp_path / "writer"))
    served = open_all(parse([writer, judge, chatty, chatty, "--device", "cpu"]))
    assert [type(one) for one in served] == [Language, Reward, Language, Language]
    assert [one.kind for one in served] == ["text", "reward", "chat", "chat"]
    assert len({one.name for one in served}) == 4
