"""The MLflow run above those of a pipeline's stages. All of it happens in forks: the pipeline itself has no thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinychat.config.schema import Config
from tinychat.errors import UserError
from tinychat.pipeline.process import run_forked
from tinychat.pipeline.recipe import Verdict, asking
from tinychat.tracking import RunInfo, Status, Tracker, make_tracker, run_tags
from tinychat.tracking.mlflow_run import HEADLINE, NOTE

_ANSWER_SECONDS = 60.0  # the first run of all makes the database


def open_parent(folder: Path, config: Config, name: str, commands: Mapping[str, Any]) -> str | None:
    """Make the run, or open that of the same pipeline's earlier start again; its id, None where MLflow is away."""
    again = (folder / "tracking.json").exists()

    def work() -> None:
        tracker = _tracker(folder, config, name, again)
        tracker.start({"commands": dict(commands), "seed": config.seed}, _tags(config))
        tracker.wait_run_id(_ANSWER_SECONDS)

    run_forked(work, "the tracker")
    from tinychat.tracking.mlflow_run import read_identity

    return (read_identity(folder, Path(config.paths.outputs)) or {}).get("run_id")


def close_parent(folder: Path, config: Config, verdicts: Sequence[Verdict], status: str) -> None:
    """Send the gates' metrics and the report, and set the run's status."""

    def work() -> None:
        tracker = _tracker(folder, config, "", again=True)
        words = {f"gate.{verdict.gate.name}": f"{verdict.word} {verdict.gate.wanted}" for verdict in verdicts}
        asked = asking(verdicts)
        told = f"{sum(verdict.word == 'pass' for verdict in asked)} of {len(asked)} gates passed"
        note = "\n".join(f"- {name.removeprefix('gate.')}: {word}" for name, word in words.items())
        tracker.start({}, _tags(config) | words | {HEADLINE: told, NOTE: note})
        # The last gate on a metric is that of the latest stage.
        tracker.log_metrics(0, {v.gate.metric: v.value for v in verdicts if v.value is not None and not v.gate.less})
        for path in sorted(folder.glob("report.*")):
            tracker.log_artifact(path)
        tracker.finish(_status(status))

    try:
        run_forked(work, "the tracker")
    except UserError:  # the report is written; what a stage failed with is the news
        return


def _tracker(folder: Path, config: Config, name: str, again: bool) -> Tracker:
    info = RunInfo(folder, Path(config.paths.outputs), config.experiment_name, name, 0 if again else None)
    return make_tracker(replace(config.tracker, system_metrics=False, parent=None), info)


def _tags(config: Config) -> dict[str, str]:
    return {**run_tags("pipeline", config.model.name, config.data.name), "mlflow.source.name": "tinychat.pipeline"}


def _status(status: str) -> Status:
    return {"FINISHED": "FINISHED", "KILLED": "KILLED"}.get(status, "FAILED")  # type: ignore[return-value]
