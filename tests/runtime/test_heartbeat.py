from __future__ import annotations

import logging

import pytest

from tinychat.runtime import heartbeat
from tinychat.runtime.heartbeat import LINE_EVERY, Heartbeat


def test_a_line_now_and_then_and_none_at_the_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])
    heart = Heartbeat("held-out text", 230_000, "tokens")
    with caplog.at_level(logging.INFO, logger="tinychat"):
        for done in range(10_000, 240_000, 10_000):
            now[0] += LINE_EVERY / 8
            heart.at(done)
    assert [record.getMessage() for record in caplog.records] == [
        "held-out text: 80,000 of 230,000 tokens, 20 s",
        "held-out text: 160,000 of 230,000 tokens, 40 s",
    ]
    assert heart.seconds == 23 * LINE_EVERY / 8


def test_the_last_one_needs_no_line(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])
    heart = Heartbeat("replying", 5, "prompts")
    now[0] = 2 * LINE_EVERY
    with caplog.at_level(logging.INFO, logger="tinychat"):
        heart.at(5)
    assert not caplog.records
