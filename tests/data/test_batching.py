"""How many sequences are read together."""

from __future__ import annotations

from tinychat.data.batching import CACHED, rows_at_once


def test_a_cpu_reads_together_what_its_caches_hold() -> None:
    width = CACHED // 1000  # a thousand tokens are as many as they hold
    assert [rows_at_once(length, 64, width, "cpu") for length in (10, 100, 300, 2000)] == [64, 10, 3, 1]


def test_elsewhere_as_many_as_are_allowed() -> None:
    assert [rows_at_once(length, 64, 576, "cuda") for length in (10, 2000)] == [64, 64]
