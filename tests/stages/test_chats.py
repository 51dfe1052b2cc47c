"""What stages on conversations take from the checkpoint they start from."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.chat_models import saved
from tinychat.stages.chats import get_chat_tokenizer


@pytest.mark.parametrize(
    ("brings", "named", "said"),
    [
        ("chatml", "instruct", True),
        ("instruct", "instruct", False),
        ("chatml", "own", False),
        (None, "instruct", False),
    ],
)
def test_a_template_in_place_of_the_one_a_checkpoint_was_trained_in_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, brings: str | None, named: str, said: int
) -> None:
    """In another one a policy is a stranger to every prompt."""
    start = saved(tmp_path / "start", brings)
    config: Any = SimpleNamespace(template=SimpleNamespace(name=named, path=None))
    context: Any = SimpleNamespace(parents={"init_from": str(start)})
    with caplog.at_level(logging.INFO, "tinychat"):
        get_chat_tokenizer(config, context)
    told = f"template=instruct takes the place of chatml, in which {start} was trained (template=own keeps that)"
    assert [record.getMessage() for record in caplog.records] == [told] * said
