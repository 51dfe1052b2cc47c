"""benchmarks/sft.py: equal conversations and losses in all variants; with an environment that has trl, its trainer too.

The tests with trl's trainer run where TINYCHAT_TRL_PYTHON names the python of such an environment.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from tests.conftest import REPOSITORY, environment_of

BENCHMARKS = REPOSITORY / "benchmarks"
TRL_PYTHON = os.environ.get("TINYCHAT_TRL_PYTHON")
IGNORED = -100


def benchmark(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    quick = ("--small", "--rounds", "1", "--warmup", "1", "--steps", "1", "--threads", "1", "--rows", "100")
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / "sft.py"), *quick, "--out", str(folder), *options],
        env=environment_of(),
        capture_output=True,
        text=True,
        timeout=1500,  # some ten processes with trl, each of seconds of work; more on busy cores
        check=False,
    )


@pytest.mark.slow
def test_without_trl_tinychat_alone_is_measured(tmp_path: Path) -> None:
    done = benchmark(tmp_path, "--variants", "trl-tuned,tinychat-padded,tinychat")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "trl is left out: python -m venv" in done.stdout
    report = json.loads((tmp_path / "sft.json").read_text())
    padded, packed = report["runs"]
    assert (padded["rows"], packed["rows"]) == ("padded", "packed")
    assert padded["inputs"]["weights"] == packed["inputs"]["weights"]
    # 4 rows of 128 tokens: packed nearly full, a conversation to a row far from it; padding is not counted.
    assert 4 * 128 * 0.8 < packed["tokens"] <= 4 * 128
    assert padded["tokens"] < packed["tokens"] / 1.5
    assert [row["variant"] for row in report["table"]] == ["tinychat-padded", "tinychat"]
    for checked, timed in zip(report["checked_in_fp32"], report["runs"], strict=True):
        assert checked["inputs"]["batches"][:2] == timed["inputs"]["batches"]
        assert len(set(checked["losses"])) == 3


@pytest.mark.timeout(1600)
@pytest.mark.skipif(not TRL_PYTHON, reason="TINYCHAT_TRL_PYTHON names no environment with trl")
def test_trl_gets_the_same_conversations_and_has_the_same_losses(tmp_path: Path) -> None:
    variants = "trl,trl-tuned,trl-tuned-accumulated,tinychat-padded,tinychat"
    done = benchmark(tmp_path, "--variants", variants, "--trl-python", str(TRL_PYTHON))
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "sft.json").read_text())
    found = {run["variant"]: run for run in report["checked_in_fp32"]}
    pairs = [("trl", "tinychat-padded"), ("trl-tuned", "tinychat"), ("trl-tuned-accumulated", "tinychat")]
    for theirs, ours in pairs:
        assert found[theirs]["inputs"] == found[ours]["inputs"]
        assert found[theirs]["losses"] == pytest.approx(found[ours]["losses"], rel=1e-4)
    tokens = {run["variant"]: run["tokens"] for run in report["runs"]}
    assert tokens["trl"] == tokens["tinychat-padded"]
    assert tokens["trl-tuned"] == tokens["tinychat"]
    assert found["trl-tuned"]["leak"] < 1e-3
    assert {run["arithmetic"] for run in report["runs"] if run["variant"].startswith("trl")} == {"bf16"}


def test_an_environment_without_trl_is_refused(tmp_path: Path) -> None:
    done = benchmark(tmp_path, "--trl-python", str(tmp_path / "python"))
    assert done.returncode == 2
    assert "trl missing; python -m venv X" in done.stderr


def test_conversations_of_a_row(sft_task: ModuleType) -> None:
    ids, labels = np.array([5, 6, 7, 8, 0]), np.array([IGNORED, 6, IGNORED, 8, IGNORED])
    first, second = sft_task.conversations(ids, labels, np.array([1, 1, 2, 2, 0]))
    assert (first[0].tolist(), first[1].tolist()) == ([5, 6], [IGNORED, 6])
    assert (second[0].tolist(), second[1].tolist()) == ([7, 8], [IGNORED, 8])
    (single,) = sft_task.conversations(ids, labels, np.array([1, 1, 1, 1, 0]))
    assert single[0].tolist() == [5, 6, 7, 8]


def test_rows_are_read_as_written(sft_task: ModuleType, tmp_path: Path) -> None:
    rows = [
        [(np.array([1, 2, 3]), np.array([IGNORED, 2, 3])), (np.array([4, 5]), np.array([IGNORED, 5]))],
        [(np.array([6]), np.array([IGNORED]))],
    ]
    sft_task.write_rows(tmp_path / "rows.npz", rows)
    read = sft_task.read_rows(tmp_path / "rows.npz")
    assert [[(ids.tolist(), labels.tolist()) for ids, labels in row] for row in read] == [
        [(ids.tolist(), labels.tolist()) for ids, labels in row] for row in rows
    ]


def test_the_digest_depends_on_ids_labels_and_where_a_conversation_ends(sft_task: ModuleType) -> None:
    one = [(np.array([1, 2]), np.array([IGNORED, 2])), (np.array([3]), np.array([IGNORED]))]
    same = [tuple(part.astype(np.int32) for part in conversation) for conversation in one]
    others = [
        [(np.array([1, 4]), np.array([IGNORED, 4])), one[1]],
        [(np.array([1, 2]), np.array([IGNORED, IGNORED])), one[1]],
        [(np.array([1]), np.array([IGNORED])), (np.array([2, 3]), np.array([2, IGNORED]))],
        one[::-1],
    ]
    digests = [sft_task.step_digest(step) for step in (one, *others)]
    assert sft_task.step_digest(same) == digests[0]
    assert len(set(digests)) == 5


def test_targets_become_labels_of_the_next_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    sft_tinychat = importlib.import_module("sft_tinychat")
    batch = {
        "input_ids": torch.tensor([[1, 2, 3, 4, 5, 9]]),
        "targets": torch.tensor([[IGNORED, 3, IGNORED, 5, IGNORED, IGNORED]]),
        "segments": torch.tensor([[1, 1, 1, 2, 2, 0]]),
    }
    ((first, second),) = sft_tinychat.unpacked(batch)
    assert (first[0].tolist(), first[1].tolist()) == ([1, 2, 3], [IGNORED, IGNORED, 3])
    assert (second[0].tolist(), second[1].tolist()) == ([4, 5], [IGNORED, 5])


@pytest.fixture
def sft_task(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("sft_task")
