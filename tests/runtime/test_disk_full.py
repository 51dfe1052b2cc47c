"""A full disk: one line with the file, what had gone well still told, and nothing half-written left."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tinychat.engine import checkpoint
from tinychat.errors import UserError
from tinychat.launch import job, worker
from tinychat.pipeline import __main__ as pipeline
from tinychat.pipeline import report as pipeline_report
from tinychat.report import curves, run
from tinychat.runs import failures, folders
from tinychat.runtime.world import World
from tinychat.stages import StageResult
from tinychat.tracking import MetricsLog, NoTracker, RunInfo


def full(*_arguments: Any, **_options: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")  # as write() raises it: without a file's name


def test_an_error_without_a_file_is_no_none() -> None:
    with pytest.raises(UserError, match=r"^disk full \(No space left on device\); choose another"), job._writable():
        full()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["torch", "python", "safetensors"],
)
def test_a_checkpoint_that_finds_no_room(error: Exception, tmp_path: Path) -> None:
    def save() -> None:
        raise error

    saves = checkpoint.Checkpointer(tmp_path, World(0, 0, 1, torch.device("cpu")), keep_last=1, keep_best=0)
    with pytest.raises(UserError, match=r"could not save .*step-000003: disk full \(No space left on device\); no ch"):
        saves._together(save, tmp_path / "step-000003")


def test_a_finished_run_says_in_its_result_whether_it_has_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = NoTracker(RunInfo(tmp_path, tmp_path, "default", "run"))
    content = worker._content(tmp_path, StageResult({"eval/loss": 1.0}, "eval/loss"), "finished", None, 0.1)
    worker._write_result(tmp_path, content)
    with monkeypatch.context() as patched:
        patched.setattr(run, "render", full)
        worker._finish(tmp_path, tracker, content)
    found = json.loads((tmp_path / "result.json").read_text())
    assert (found["status"], found["report"]) == ("finished", None)
    worker._finish(tmp_path, tracker, content)
    assert json.loads((tmp_path / "result.json").read_text())["report"] == "report.html"
    assert (tmp_path / "report.html").is_file()


def test_a_picture_cut_short_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(5):
        log.append(step, {"eval/loss": float(step)})

    def half(_figure: object, path: Path, **_options: object) -> None:
        path.write_bytes(b"\x89PNG")
        full()

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", half)
    assert curves.write_curves(log.read(), tmp_path / "curves.png") is False
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_the_report_of_a_rank_goes_to_the_terminal_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(folders, "write_text_atomic", full)
    failures.write(tmp_path, 1, "the loss is not finite")
    assert "rank 1 failed: the loss is not finite" in capsys.readouterr().err


def test_a_pipeline_whose_report_finds_no_room_still_tells_what_its_stages_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Recipe:
        name = "small"

    own = pipeline.Pipeline(Recipe(), None, [], [], {}, folder=tmp_path)  # type: ignore[arg-type]
    monkeypatch.setattr(pipeline_report, "render", full)
    assert pipeline._report(own, ["x"], []) is False
    said = capsys.readouterr().err
    assert said == f"no report of the pipeline: {tmp_path}: disk full (No space left on device)\n"
    monkeypatch.undo()
    assert pipeline._report(own, ["x"], []) is True
