"""Several trackers at once; TensorBoard and wandb (marker trackers: pip install -e '.[tensorboard,wandb]')."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from tests.conftest import Command
from tinychat import train as entry
from tinychat.config.schema import TrackerConfig, TrackerKind, WandbMode
from tinychat.errors import UserError
from tinychat.tracking import RunInfo, check_packages, make_tracker
from tinychat.tracking.base import Row, Status
from tinychat.tracking.mirror import Mirror, MirroredTracker
from tinychat.tracking.tensorboard_run import table_text


class Fake:
    """A store that remembers, or that refuses everything."""

    kind, local, run_id = "Fake", False, None

    def __init__(self, broken: bool = False) -> None:
        self.broken, self.is_open, self.got, self.place = broken, False, [], "Fake at home"  # type: ignore[var-annotated]

    def open(self, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        if self.broken:
            raise OSError("nobody at home")
        self.is_open, self.run_id = True, "fake"  # type: ignore[assignment]

    def send_rows(self, rows: Sequence[Row], sent: Callable[[], None]) -> None:
        self.got += [(row.step, row.metrics) for row in rows]

    def send_inputs(self, data: str, path: str | None) -> bool:
        return True

    def send_table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        self.got.append((name, columns, rows))

    def send_file(self, path: Path, folder: str | None) -> None:
        self.got.append(path.read_text())

    def send_tags(self, tags: dict[str, Any]) -> None:
        self.got.append(tags)

    def close(self, status: Status, ended: float) -> None:
        self.got.append(status)


def info(folder: Path, resume_step: int | None = None) -> RunInfo:
    return RunInfo(folder / "exp" / "run" / "t1", folder, "exp", "run t1", resume_step)


def test_what_one_store_refuses_the_others_get(tmp_path: Path, caplog: Any) -> None:
    run, stores = info(tmp_path), [Fake(), Fake(broken=True), Fake()]
    tracker = MirroredTracker(run, [Mirror(store, run.run_dir / "metrics.jsonl") for store in stores])
    tracker.start({"stage": {"lr": 1}}, {"data": "x"})
    tracker.log_metrics(0, {"train/loss": 1.0})
    tracker.log_table("samples", ["a"], [["b"]])
    tracker.describe({"headline": "good"})
    tracker.finish("FINISHED")
    wanted = [(0, {"train/loss": 1.0}), ("samples", ["a"], [["b"]]), {"headline": "good"}, "FINISHED"]
    assert [store.got for store in stores] == [wanted, [], wanted] and tracker.run_id == "fake"
    assert "Fake at home: OSError: nobody at home; training goes on, metrics are kept in" in caplog.text


@pytest.mark.parametrize(
    ("named", "kind", "tensorboard", "wandb"),
    [
        ("mlflow", "mlflow", False, None),
        ("none", "none", False, None),
        ("tensorboard", "none", True, None),
        ("wandb", "none", False, "offline"),
        ("[mlflow,tensorboard]", "mlflow", True, None),
        ("[wandb,mlflow]", "mlflow", False, "offline"),
    ],
)
def test_trackers_add_up(named: str, kind: str, tensorboard: bool, wandb: str | None) -> None:
    entry.register()
    with initialize_config_dir(entry.config_folder()):
        found = compose("config", [f"tracker={named}"]).tracker
    assert (found.kind.value, found.tensorboard, found.wandb and found.wandb.value) == (kind, tensorboard, wandb)
    assert found.system_metrics is (kind == "mlflow") and found.parent is None


@pytest.mark.parametrize("spec", [None, importlib.machinery.ModuleSpec("x", None)])  # the other: a folder of that name
def test_a_package_that_is_missing_is_refused_with_what_installs_it(monkeypatch: Any, spec: Any) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    for name, more in (("tensorboard", (True, None)), ("wandb", (False, WandbMode.offline))):
        with pytest.raises(UserError, match=rf"^tracker={name} needs {name}: pip install .*\[{name}\]'; or track with"):
            check_packages(TrackerConfig(name, TrackerKind.none, None, False, None, *more))
    check_packages(TrackerConfig("none", TrackerKind.none, None, False, None, False, None))


def test_a_table_is_markdown() -> None:
    table = table_text(["a", "b"], [["x|y", 0.5], ["two\nlines", None], [1, 2]], most=2)
    assert table == "| a | b |\n|---|---|\n| x\\|y | 0.5 |\n| two lines |  |\n\nand 1 more"


def go(config: TrackerConfig, run: RunInfo, steps: Sequence[int], status: Status) -> None:
    tracker = make_tracker(config, run)
    tracker.start({"stage": {"name": "sft", "lr": 0.5}, "data": {"path": None}}, {"stage": "sft", "mlflow.user": "me"})
    for step in steps:
        tracker.log_metrics(step, {"train/loss": 1 / (step + 1)})
    tracker.log_table("samples", ["prompt", "reply"], [["a|b", 1.5], ["c", None]])
    (run.run_dir / "report.md").write_text("# Report")
    tracker.log_artifact(run.run_dir / "report.md")
    tracker.describe({"headline": "97 %"})
    tracker.finish(status)


@pytest.mark.trackers
def test_tensorboard_has_every_point_once_after_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="pip install -e '.[tensorboard]'")
    import torch.utils.tensorboard  # noqa: F401
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = TrackerConfig("tensorboard", TrackerKind.none, None, False, None, True, None)
    go(config, info(tmp_path), range(6), "KILLED")
    go(config, info(tmp_path, resume_step=3), range(4, 9), "FINISHED")
    (folder,) = tmp_path.glob("exp/run/t1/tensorboard")
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    assert [(e.step, e.value) for e in found.Scalars("train/loss")] == [
        (n, pytest.approx(1 / (n + 1))) for n in range(9)
    ]
    texts = {tag: found.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in found.Tags()["tensors"]}
    assert texts["run/status/text_summary"] == "FINISHED" and texts["report/text_summary"] == "# Report"
    assert "| stage.lr | 0.5 |" in texts["settings/text_summary"] and "mlflow" not in texts["run/text_summary"]


def comes(there: Callable[[], Any], seconds: float = 20.0) -> bool:
    """Whether it is true within this time."""
    ends = time.monotonic() + seconds
    while not there() and time.monotonic() < ends:
        time.sleep(0.05)
    return bool(there())


@pytest.mark.trackers
def test_wandb_goes_on_with_the_same_run(tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb", reason="pip install -e '.[wandb]'")
    config = TrackerConfig("wandb", TrackerKind.none, None, False, None, False, WandbMode.offline)
    go(config, info(tmp_path), range(6), "KILLED")
    run = tmp_path / "exp" / "run" / "t1"
    first = json.loads((run / "wandb.json").read_text())
    go(config, info(tmp_path, resume_step=3), range(4, 9), "FINISHED")
    then = json.loads((run / "wandb.json").read_text())
    assert then["id"] == first["id"] and (first["step"], then["step"]) == (5, 8)
    folders = sorted(run.glob("wandb/offline-run-*"))
    assert len(folders) == 2 and all(folder.name.endswith(first["id"]) for folder in folders)
    for folder in folders:
        (kept,) = folder.glob("*.wandb")
        assert comes(lambda kept=kept: b"train/loss" in kept.read_bytes()), "wandb's own process writes it"
        assert (folder / "files" / "report.md").read_text() == "# Report"
        assert not (folder / "files" / "report.md").is_symlink() and list(folder.glob("files/media/table/**/*.json"))
    wandb.teardown()  # a process forked after this would speak to the one that writes for this test


@pytest.mark.trackers
def test_a_run_is_tracked_by_all_that_are_named(train: Command, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("wandb")
    small = [
        "data.max_docs=50",
        "tokenizer.vocab_size=300",
        "tracker.uri=sqlite:///m.db",
        "tracker.system_metrics=false",
    ]
    done = train("stage=tokenizer", "tracker=[mlflow,tensorboard,wandb]", *small)
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.glob("outputs/tinychat/tokenizer-*/*/")
    assert (tmp_path / "m.db").exists() and json.loads((run / "tracking.json").read_text())["closed"] == "FINISHED"
    assert list(run.glob("tensorboard/events.*"))
    assert comes(lambda: list(run.glob("wandb/offline-run-*/*.wandb"))), done.stderr
    assert "warning" not in done.stderr
