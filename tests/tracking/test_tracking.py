"""Tracking: what is in metrics.jsonl is in MLflow, once, whatever is killed or unreachable in between."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from contextlib import closing
from pathlib import Path

import pytest

from tinychat.config.schema import TrackerConfig, TrackerKind
from tinychat.runs import folders as runs
from tinychat.runtime.terminal import masked
from tinychat.tracking import (
    METRICS,
    MetricsLog,
    NoTracker,
    RunInfo,
    close_cut_off,
    make_tracker,
    mirror,
    mlflow_tracker,
    prepare_store,
    resolve_uri,
    run_tags,
)
from tinychat.tracking.mlflow_run import MAX_PARAM, MlflowRun, fit_key, flatten
from tinychat.tracking.mlflow_tracker import SweepRun
from tinychat.tracking.store import run_folder_of, sqlite_path

TAGS = run_tags("pretrain", "mini", "tinyworld", parent="runs/parent", git_commit="abc123")


# metrics.jsonl


def test_metrics_log_round_trip_with_non_finite_values_is_strict_json(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append(1, {"train/loss": 2.5})
    log.append(2, {"train/loss": math.nan, "train/grad_norm": -math.inf})
    first, second = log.read()
    assert (first.step, first.metrics) == (1, {"train/loss": 2.5})
    assert abs(first.time - time.time()) < 60
    assert math.isnan(second.metrics["train/loss"]) and second.metrics["train/grad_norm"] == -math.inf

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    for line in log.path.read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def test_metrics_log_refuses_a_name_outside_the_vocabulary_and_writes_nothing(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="train/los"):
        log.append(1, {"train/loss": 1.0, "train/los": 1.0})
    assert log.read() == []


def test_truncate_keeps_rows_up_to_the_step_and_a_torn_last_line_disappears(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(1, 8):
        log.append(step, {"train/loss": float(step)})
    with open(log.path, "ab") as file:
        file.write(b'{"step": 8, "time": 1.0, "tra')
    assert [row.step for row in log.read()] == [1, 2, 3, 4, 5, 6, 7]
    again = MetricsLog(log.path)  # a new process appends after the torn line
    again.append(9, {"train/loss": 9.0})
    assert [row.step for row in again.read()] == [1, 2, 3, 4, 5, 6, 7, 9]
    again.truncate_after(4)
    assert [row.step for row in again.read()] == [1, 2, 3, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_vocabulary_names_are_ones_mlflow_takes() -> None:
    assert all(fit_key(name) == name and meaning for name, meaning in METRICS.items())


# parameters, tags, addresses


def test_flatten_params_in_the_words_of_the_yaml_within_the_limits_of_mlflow() -> None:
    long_key = "k" * 300
    values = {
        "stage": {"lr": 1e-3, "samples": ["a", "é"], "kind": TrackerKind.none},
        "x": None,
        "on": True,
        "ds": {},
    }
    flat = flatten({**values, long_key: "v" * 7000, long_key + "2": 1, "a@b": 1})
    assert flat["stage.lr"] == "0.001" and flat["stage.samples"] == '["a", "é"]' and flat["stage.kind"] == "none"
    assert flat["x"] == "null" and flat["on"] == "true" and flat["ds"] == "{}" and flat["a_b"] == "1"
    assert len(flat) == 9 and max(map(len, flat)) == 250  # two long keys stay two
    assert max(len(value) for value in flat.values()) == MAX_PARAM


def test_resolve_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri(None, Path("outputs")) == f"sqlite:///{tmp_path}/outputs/mlflow.db"
    assert resolve_uri("sqlite:///a.db", Path("outputs")) == f"sqlite:///{tmp_path}/a.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert resolve_uri(None, Path("outputs")) == "http://127.0.0.1:5000"
    assert resolve_uri("sqlite:////x/a.db", Path("outputs")) == "sqlite:////x/a.db"
    assert masked("http://me:secret@host:1/") == "http://me:***@host:1/"


# NoTracker


def test_no_tracker_keeps_metrics_and_sets_an_old_file_aside(tmp_path: Path) -> None:
    run = RunInfo(tmp_path / "run", tmp_path, "e", "r")
    for _ in range(2):
        tracker = make_tracker(TrackerConfig("none", TrackerKind.none, None, False, None, False, None), run)
        tracker.start({}, {})
        tracker.log_metrics(1, {"eval/loss": 3.0})
        tracker.finish("FINISHED")
    assert tracker.wait_run_id(1) is None and isinstance(tracker, NoTracker)
    assert len(MetricsLog(run.run_dir / "metrics.jsonl").read()) == 1
    assert len(MetricsLog(run.run_dir / "metrics.1.jsonl").read()) == 1


def test_a_full_disk_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = NoTracker(RunInfo(tmp_path, tmp_path, "e", "r"))
    tracker.metrics_log.path = Path("/dev/full")
    for step in range(3):
        tracker.log_metrics(step, {"eval/loss": 3.0})
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "No space left" in caplog.text


# MLflow


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of two processes that asked for it at the same time; the tests copy it."""
    folder = tmp_path_factory.mktemp("store")
    code = f"from tinychat.tracking import prepare_store; prepare_store('sqlite:///{folder}/mlflow.db')"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert not list(folder.glob("*.tmp*"))
    return folder / "mlflow.db"


@pytest.fixture
def outputs(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return tmp_path


def tracker_of(outputs: Path, resume_step: int | None = None, uri: str | None = None, system: bool = False):  # type: ignore[no-untyped-def]
    run = RunInfo(outputs / "run", outputs, "exp", "pretrain-mini-tinyworld", resume_step)
    return make_tracker(TrackerConfig("mlflow", TrackerKind.mlflow, uri, system, None, False, None), run)


def client_of(outputs: Path):  # type: ignore[no-untyped-def]
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{outputs}/mlflow.db")


def table_of(outputs: Path, run_id: str) -> list[list[str]]:
    """Through MLflow's own reader, which goes by the tag and the layout that log_table writes."""
    client = client_of(outputs)
    experiment = client.get_experiment_by_name("exp").experiment_id
    with pytest.MonkeyPatch.context() as patch:  # load_table asks the process-wide address
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{outputs}/mlflow.db")
        return client.load_table(experiment, "samples.json", [run_id]).values.tolist()


def points(outputs: Path, name: str) -> list[tuple[int, float]]:
    """(step, value) of one metric over all runs of the store, duplicates included."""
    with closing(sqlite3.connect(outputs / "mlflow.db")) as connection:
        return connection.execute("select step, value from metrics where key = ? order by step", (name,)).fetchall()


def test_run_arrives_whole(outputs: Path) -> None:
    (outputs / "run").mkdir()
    (outputs / "run" / "config.yaml").write_text("seed: 1\n")
    (outputs / "report.md").write_text("# report\n")
    tracker = tracker_of(outputs, system=True)
    tracker.start({"stage": {"lr": 0.1}, **{f"p{i}": i for i in range(150)}}, TAGS)
    for step in range(1, 401):  # 1,200 points: more than one batch
        tracker.log_metrics(step, {"train/loss": 5 / step, "schedule/lr": 0.1, "train/grad_norm": math.nan})
    tracker.log_table("samples", ["prompt", "continuation"], [["Once", "upon 一 🙂"]])
    tracker.log_artifact(outputs / "report.md")
    run_id = tracker.wait_run_id(30)
    tracker.finish("FINISHED")

    client = client_of(outputs)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED" and run.info.run_name == "pretrain-mini-tinyworld"
    assert run.data.params["stage.lr"] == "0.1" and len(run.data.params) == 151
    assert {"stage", "model", "data", "parent", "git_commit", "tinychat.version"} <= run.data.tags.keys()
    history = client.get_metric_history(run_id, "train/loss")
    rows = MetricsLog(outputs / "run" / "metrics.jsonl").read()
    assert [(p.step, p.value, p.timestamp) for p in history] == [
        (row.step, row.metrics["train/loss"], round(row.time * 1000)) for row in rows
    ]
    assert len(client.get_metric_history(run_id, "train/grad_norm")) == 400
    assert {file.path for file in client.list_artifacts(run_id)} == {
        "config.yaml",
        "samples.json",
        "report.md",
    }
    assert run.info.artifact_uri.startswith(f"file://{outputs}/mlartifacts/")
    assert table_of(outputs, run_id) == [["Once", "upon 一 🙂"]]
    saved = json.loads((outputs / "run" / "tracking.json").read_text())
    assert saved == {"uri": "OUTPUTS/mlflow.db", "experiment": "exp", "run_id": run_id, "closed": "FINISHED"}


KILLED_RUN = """
import sys, time
from pathlib import Path
from tinychat.config.schema import TrackerConfig, TrackerKind
from tinychat.tracking import RunInfo, make_tracker
outputs, resume, last, pause = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
run = RunInfo(outputs / "run", outputs, "exp", "name", None if resume < 0 else resume)
tracker = make_tracker(TrackerConfig("mlflow", TrackerKind.mlflow, None, False, None, False, None), run)
tracker.start({"max_steps": last}, {})
for step in range(max(resume, 0) + 1, last + 1):
    tracker.log_metrics(step, {"train/loss": 1 / step})
    if step % 10 == 0:
        tracker.log_metrics(step, {"eval/loss": 2 / step})
        (outputs / "checkpoint").write_text(str(step))
    time.sleep(pause)
tracker.finish("FINISHED")
"""


def start_run(outputs: Path, resume: int, last: int, pause: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", KILLED_RUN, str(outputs), str(resume), str(last), str(pause)])


def kill_when(process: subprocess.Popen[bytes], condition) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_killed_twice_and_resumed_the_curve_has_no_gap_and_no_double(outputs: Path) -> None:
    checkpoint = outputs / "checkpoint"

    def saved() -> int:
        return int(checkpoint.read_text() or 0) if checkpoint.exists() else 0

    # killed before MLflow was even imported: rows up to the checkpoint are in the file alone
    process = start_run(outputs, -1, 400, 0.002)
    kill_when(process, lambda: saved() >= 20)
    first = saved()
    assert points(outputs, "train/loss") == []
    # killed after MLflow has rows beyond the checkpoint, which the next process measures again
    process = start_run(outputs, first, 400, 0.1)  # slowly: MLflow takes its time to import
    kill_when(process, lambda: len(points(outputs, "train/loss")) > saved() > first)
    second = saved()
    mirrored = points(outputs, "train/loss")
    assert len(mirrored) > second > first

    assert start_run(outputs, second, 400, 0.0).wait(60) == 0
    expected = [(step, 1 / step) for step in range(1, 401)]
    assert points(outputs, "train/loss") == expected
    assert points(outputs, "eval/loss") == [(step, 2 / step) for step in range(10, 401, 10)]
    log = MetricsLog(outputs / "run" / "metrics.jsonl").read()
    assert [(row.step, row.metrics["train/loss"]) for row in log if "train/loss" in row.metrics] == expected
    (run,) = client_of(outputs).search_runs([client_of(outputs).get_experiment_by_name("exp").experiment_id])
    assert run.info.status == "FINISHED"


def test_resume_into_another_store_sends_the_whole_curve_and_changed_params_are_tags(outputs: Path) -> None:
    tracker = tracker_of(outputs, uri=f"sqlite:///{outputs}/other.db")
    shutil.copy(outputs / "mlflow.db", outputs / "other.db")
    tracker.start({"max_steps": 5}, TAGS)
    for step in range(1, 6):
        tracker.log_metrics(step, {"train/loss": 1 / step})
    tracker.finish("KILLED")
    for last in (8, 10):  # the second time in the same store, with another max_steps
        tracker = tracker_of(outputs, resume_step=last - 3)
        tracker.start({"max_steps": last}, TAGS)
        tracker.log_metrics(last, {"train/loss": 1 / last})
        tracker.finish("FINISHED")
    assert [step for step, _ in points(outputs, "train/loss")] == [1, 2, 3, 4, 5, 8, 10]
    run = client_of(outputs).get_run(tracker.run_id)
    assert run.data.params == {"max_steps": "8"} and run.data.tags["resumed.max_steps"] == "10"


def test_table_logged_again_after_a_resume_is_replaced(outputs: Path) -> None:
    for resume_step, text in ((None, "first"), (5, "again")):
        tracker = tracker_of(outputs, resume_step)
        tracker.start({}, TAGS)
        tracker.log_table("samples", ["prompt", "continuation"], [["Once", text]])
        tracker.finish("FINISHED")
    assert table_of(outputs, tracker.run_id) == [["Once", "again"]]


def test_an_outage_loses_and_doubles_nothing(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mirror, "RETRY_SECONDS", (0.05, 0.05))
    monkeypatch.setattr(mirror, "FLUSH_SECONDS", 0.05)
    caplog.set_level(logging.INFO)
    send, calls = MlflowRun.send_rows, []

    def flaky(self, rows, sent):  # type: ignore[no-untyped-def]
        calls.append(len(rows))
        if len(calls) <= 2:
            send(self, rows[: len(rows) // 2], sent)  # part of it has arrived
            raise ConnectionResetError("gone")
        send(self, rows, sent)

    monkeypatch.setattr(MlflowRun, "send_rows", flaky)
    tracker = tracker_of(outputs)
    tracker.start({}, TAGS)
    for step in range(1, 31):
        tracker.log_metrics(step, {"train/loss": 1 / step})
    deadline = time.monotonic() + 30
    while "answers again" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.02)
    tracker.finish("FINISHED")
    assert points(outputs, "train/loss") == [(step, 1 / step) for step in range(1, 31)]
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1 and "gone" in warnings[0]
    assert "answers again" in caplog.text


@pytest.mark.parametrize(
    ("uri", "word"),
    [
        ("http://127.0.0.1:9", "refused"),
        ("sqlite:////dev/null/x/mlflow.db", "Not a directory"),
        ("nonsense://x", "nonsense"),
        ("read-only", "readonly"),
    ],
)
def test_unreachable_store_is_one_warning_and_training_goes_on(
    uri: str, word: str, outputs: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if uri == "read-only":
        monkeypatch.chdir(outputs)  # MLflow makes a folder of the name "file:" there
        uri = f"sqlite:///file:{outputs}/mlflow.db?mode=ro&uri=true"
    tracker = tracker_of(outputs, uri=uri)
    tracker.start({"a": 1}, TAGS)
    for step in range(5):
        began = time.monotonic()
        tracker.log_metrics(step, {"train/loss": 1.0})
        assert time.monotonic() - began < 0.5
    tracker.log_artifact(outputs / "nothing")
    assert tracker.wait_run_id(30) is None
    began = time.monotonic()
    tracker.finish("FINISHED")
    assert time.monotonic() - began < 15
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1 and word in warnings[0].getMessage() and "\n" not in warnings[0].getMessage()
    assert "metrics.jsonl" in warnings[0].getMessage()
    assert len(MetricsLog(outputs / "run" / "metrics.jsonl").read()) == 5


def test_a_server_that_never_answers_does_not_hold_finish(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mirror, "STALL_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        tracker = tracker_of(outputs, uri=f"http://127.0.0.1:{server.getsockname()[1]}")
        tracker.start({}, TAGS)
        tracker.log_metrics(1, {"train/loss": 1.0})
        time.sleep(0.2)
        began = time.monotonic()
        tracker.finish("FINISHED")
        assert time.monotonic() - began < 3
    assert sum("metrics are kept" in record.getMessage() for record in caplog.records) == 1


def test_a_full_queue_never_blocks(outputs: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = tracker_of(outputs)  # not started: nothing takes from the queue
    began = time.monotonic()
    for _ in range(mirror.QUEUE_ITEMS + 50):
        tracker.log_artifact(outputs / "x.png")
    assert time.monotonic() - began < 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_run_killed_after_its_last_step_is_closed_by_the_next_of_its_experiment(outputs: Path) -> None:
    """Of one run MLflow lacks the last points, another has no result, and one is still running."""
    folders = [outputs / "exp" / "name" / f"run{index}" for index in range(4)]
    ids = []
    for folder in folders[:3]:
        folder.mkdir(parents=True)
        run = RunInfo(folder, outputs, "exp", "name")
        store = MlflowRun(run, f"sqlite:///{outputs}/mlflow.db", False)
        store.open({}, run_tags("pretrain", "mini", "a"))
        (folder / "config.yaml").write_text("stage: {name: pretrain}")
        log = MetricsLog(folder / "metrics.jsonl")
        for step in (1, 2):
            log.append(step, {"train/loss": 1 / step})
        store.send_rows(log.read(), lambda: None)
        log.append(3, {"train/loss": 1 / 3})  # and then it was killed
        ids.append(store.run_id)
    (folders[0] / "result.json").write_text(json.dumps({"status": "finished", "metrics": {"eval/ppl": 3.3}}))
    lock = runs.RunLock(folders[2])
    assert set(mlflow_tracker.cut_off(outputs, "exp")) == set(folders[:2])
    assert not list(mlflow_tracker.cut_off(outputs, "other"))

    config = TrackerConfig("mlflow", TrackerKind.mlflow, None, False, None, False, None)
    tracker = make_tracker(config, RunInfo(folders[3], outputs, "exp", "name"))
    tracker.start({}, {})
    tracker.finish("FINISHED")
    lock.release()
    states = [client_of(outputs).get_run(run_id).info.status for run_id in ids]
    assert states == ["FINISHED", "KILLED", "RUNNING"]
    tags = [client_of(outputs).get_run(run_id).data.tags for run_id in ids]
    assert [found["headline"] for found in tags] == ["3.3 perplexity", "killed at step 3", "unfinished"]
    assert "perplexity **3.3**" in tags[0]["mlflow.note.content"]
    for run_id, steps in zip(ids, ([1, 2, 3], [1, 2, 3], [1, 2]), strict=True):
        assert [point.step for point in client_of(outputs).get_metric_history(run_id, "train/loss")] == steps
    assert list(mlflow_tracker.cut_off(outputs, "exp")) == [folders[2]]  # now nobody holds it
    # A command that starts no run of its own, as one that finds its run finished, does the same.
    close_cut_off(config, outputs, "exp")
    assert client_of(outputs).get_run(ids[2]).info.status == "KILLED"


def test_a_run_that_was_killed_before_mlflow_was_there_is_sent_whole(
    outputs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = TrackerConfig("mlflow", TrackerKind.mlflow, None, False, None, False, None)
    folders = {kind: outputs / "exp" / kind / "time" for kind in ("mlflow", "none", "elsewhere")}
    for kind, folder in folders.items():
        folder.mkdir(parents=True)
        MetricsLog(folder / "metrics.jsonl").append(3, {"train/loss": 0.5})
        tracker = {"kind": "none" if kind == "none" else "mlflow", "uri": "http://x" if kind == "elsewhere" else None}
        written = {"stage": {"name": "pretrain"}, "model": {"name": "mini"}, "data": {"name": "a"}, "tracker": tracker}
        (folder / "config.yaml").write_text(json.dumps(written))
    close_cut_off(config, outputs, "exp")
    assert client_of(outputs).get_experiment_by_name("exp") is None, "none has ended"
    for folder in folders.values():
        (folder / "result.json").write_text(json.dumps({"status": "finished"}))
        (folder / "lineage.json").write_text(json.dumps({"data": {"train": {"fingerprint": "abc"}}}))
    (program := outputs / "exp" / "merge-model" / "time").mkdir(parents=True)  # a step of a pipeline
    (program / "result.json").write_text(json.dumps({"status": "finished"}))
    for _ in range(2):
        close_cut_off(config, outputs, "exp")
        experiment = client_of(outputs).get_experiment_by_name("exp").experiment_id
        (run,) = client_of(outputs).search_runs([experiment])
    assert run.info.status == "FINISHED" and run.data.metrics == {"train/loss": 0.5}
    assert run.data.params["model.name"] == "mini" and run.data.tags["run_dir"] == str(folders["mlflow"])
    assert run.info.run_name == "mlflow time" and "is missing" not in caplog.text
    assert [one.dataset.name for one in run.inputs.dataset_inputs] == ["a-train"]


def test_the_run_above_a_killed_sweep_is_closed_too(outputs: Path) -> None:
    folder = outputs / "sweeps" / "lr-1"
    folder.mkdir(parents=True)
    uri = f"sqlite:///{outputs}/mlflow.db"
    sweep = SweepRun(folder, outputs, "exp", "lr-1", uri)
    run_id = sweep.open({}, {})
    assert run_id is not None
    with runs.working_on(folder), runs.working_on(folder):
        assert not list(mlflow_tracker.cut_off(outputs, "exp"))
    assert mlflow_tracker.close_cut_off(outputs, "exp", uri) == [folder]
    assert client_of(outputs).get_run(run_id).info.status == "KILLED"


def test_the_measurement_before_the_first_step_is_there_once_after_a_kill(tmp_path: Path) -> None:
    """Killed before the first checkpoint everything comes again; from a checkpoint on what was before it stays."""

    def start(resume_step: int | None) -> NoTracker:
        tracker = NoTracker(RunInfo(tmp_path, tmp_path, "exp", "name", resume_step))
        tracker.start({}, {})
        return tracker

    for resume_step in (None, 0, 0):
        tracker = start(resume_step)
        for step in range(3):
            tracker.log_metrics(step, {"eval/loss": float(step)})
        assert [row.step for row in tracker.metrics_log.read()] == [0, 1, 2]
    start(1).log_metrics(2, {"eval/loss": 2.0})
    assert [row.step for row in tracker.metrics_log.read()] == [0, 1, 2]


def test_damaged_lines_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3, 4):
        log.append(step, {"train/loss": 1.0})
    lines = log.path.read_bytes().splitlines()
    log.path.write_bytes(b"\n".join([lines[0], b"\0" * 40, b'{"step": 1e999, "time": 1}', lines[3], b'{"step": 5, "t']))
    for _ in range(2):
        assert [row.step for row in log.read()] == [1, 4]
    assert len(caplog.messages) == 1 and "metrics.jsonl: 2 damaged lines" in caplog.messages[0]
    log.path.unlink()
    log.path.mkdir()
    assert log.read() == [] and "is a folder" in caplog.messages[1]


MOVED_RUN = """
import sys
from pathlib import Path
from tinychat.config.schema import TrackerConfig, TrackerKind
from tinychat.tracking import RunInfo, make_tracker
root, step = Path(sys.argv[1]), int(sys.argv[2])
folder = root / "exp" / "name" / "time"
folder.mkdir(parents=True, exist_ok=True)
(folder / "report.md").write_text(f"after step {step}")
run = RunInfo(folder, root, "exp", "name", step - 1 or None)
tracker = make_tracker(TrackerConfig("mlflow", TrackerKind.mlflow, None, False, None, False, None), run)
tracker.start({}, {})
tracker.log_metrics(step, {"train/loss": 1 / step})
tracker.log_artifact(folder / "report.md")
tracker.finish("FINISHED")
print(tracker.run_id)
"""


@pytest.mark.slow
def test_outputs_moved_as_a_whole_keep_their_runs_and_files(outputs: Path) -> None:
    """Each start is a process of its own: MLflow's client remembers where a run's files are."""

    def track(root: Path, step: int) -> str:
        command = [sys.executable, "-c", MOVED_RUN, str(root), str(step)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    old, new = outputs / "old", outputs / "new place"
    old.mkdir()
    shutil.copy(outputs / "mlflow.db", old / "mlflow.db")
    run_id = track(old, 1)
    os.rename(old, new)
    folder = new / "exp" / "name" / "time"
    assert run_folder_of(run_id, f"sqlite:///{new}/mlflow.db", new) == str(folder)
    assert track(new, 2) == run_id, "a resumed run stays one run"
    assert not old.exists(), "nothing is written to where the outputs were"
    run = client_of(new).get_run(run_id)
    assert run.data.tags["run_dir"] == str(folder)
    assert [point.step for point in client_of(new).get_metric_history(run_id, "train/loss")] == [1, 2]
    files = new / "mlartifacts" / run_id / "artifacts"
    assert run.info.artifact_uri == files.as_uri() and (files / "report.md").read_text() == "after step 2"


def test_missing_artifact_costs_a_warning_not_the_run(outputs: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = tracker_of(outputs)
    tracker.start({}, TAGS)
    tracker.log_artifact(outputs / "missing.png")
    tracker.log_metrics(1, {"train/loss": 1.0})
    tracker.finish("FAILED")
    assert "missing.png" in caplog.text
    assert client_of(outputs).get_run(tracker.run_id).info.status == "FAILED"


def test_mlflow_is_imported_by_the_background_thread_only() -> None:
    code = (
        "import sys, tinychat.tracking.mlflow_tracker, tinychat.tracking.mlflow_run;"
        "assert not {'mlflow', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_threads_may_ask_for_a_new_store_at_once(tmp_path: Path, empty_store: Path) -> None:
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    shutil.copytree(empty_store.parent, tmp_path / "new")
    before = (tmp_path / "new" / "mlflow.db").stat().st_mtime_ns
    threads = [threading.Thread(target=prepare_store, args=(uri,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "new" / "mlflow.db").stat().st_mtime_ns == before  # a store that exists is left as it is


@pytest.mark.parametrize("name", ["a?b", "a%20b", "a#b", "100%", "é ~x", "plain-1_2"])
def test_a_database_lies_in_the_folder_it_is_said_to_whatever_that_is_called(name: str, tmp_path: Path) -> None:
    from optuna.storages import RDBStorage

    path = tmp_path / name / "mlflow.db"
    path.parent.mkdir()
    uri = resolve_uri(None, path.parent)
    assert sqlite_path(uri) == path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        RDBStorage(uri)  # as of a sweep; MLflow reads addresses alike
    assert [found.name for found in tmp_path.rglob("*.db")] == ["mlflow.db"]
    assert path.exists()


def test_a_run_has_a_description_its_headline_and_its_data_sets(outputs: Path) -> None:
    (outputs / "run").mkdir()
    tracker = tracker_of(outputs)
    tracker.start({"data": {"path": "my/texts"}}, TAGS)
    run_id = tracker.wait_run_id(30)
    lineage = {
        "data": {"train": {"fingerprint": "ab" * 32, "tokens": 12}, "validation": {"fingerprint": "c", "x": None}}
    }
    (outputs / "run/lineage.json").write_text(json.dumps(lineage))  # once the stage has read its data
    tracker.describe({"headline": "3.3 perplexity", "mlflow.note.content": "- perplexity **3.3**"})
    tracker.finish("FINISHED")

    client = client_of(outputs)
    run = client.get_run(run_id)
    assert run.data.tags["headline"] == "3.3 perplexity" and "**3.3**" in run.data.tags["mlflow.note.content"]
    inputs = {one.dataset.name: one for one in run.inputs.dataset_inputs}
    assert set(inputs) == {"tinyworld-train", "tinyworld-validation"}
    train = inputs["tinyworld-train"]
    assert train.dataset.digest == "ab" * 18 and json.loads(train.dataset.profile) == {"tokens": 12}
    assert json.loads(train.dataset.source) == {"uri": "my/texts"}
    assert {tag.key: tag.value for tag in train.tags} == {"mlflow.data.context": "training"}
    experiment = client.get_experiment_by_name("exp")
    view = json.loads(experiment.tags["mlflow.sharedViewState.tinychat"])
    assert {"tags.`headline`", "tags.`stage`", "tags.`model`", "tags.`data`"} <= set(view["selectedColumns"])
    assert f"#/experiments/{experiment.experiment_id}/runs" in experiment.tags["mlflow.note.content"]


def test_an_experiment_s_own_description_stays(outputs: Path) -> None:
    client = client_of(outputs)
    experiment = client.create_experiment("exp", tags={"mlflow.note.content": "mine"})
    tracker = tracker_of(outputs)
    tracker.start({}, TAGS)
    tracker.wait_run_id(30)
    tracker.finish("FINISHED")
    tags = client.get_experiment(experiment).tags
    assert tags["mlflow.note.content"] == "mine" and "mlflow.sharedViewState.tinychat" in tags
