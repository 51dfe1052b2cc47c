"""MLflow behind one small protocol: metrics go to metrics.jsonl first, and from there to MLflow in the background."""

from __future__ import annotations

from pathlib import Path

from tinychat.config.schema import TrackerConfig, TrackerKind
from tinychat.tracking.base import STATUS_OF, MetricsLog, NoTracker, Row, RunInfo, Status, Tracker
from tinychat.tracking.mlflow_run import run_tags
from tinychat.tracking.store import prepare_store, resolve_uri
from tinychat.tracking.vocabulary import METRICS

__all__ = [
    "METRICS",
    "STATUS_OF",
    "MetricsLog",
    "NoTracker",
    "Row",
    "RunInfo",
    "Status",
    "Tracker",
    "close_cut_off",
    "make_tracker",
    "prepare_store",
    "resolve_uri",
    "run_tags",
]


def make_tracker(cfg: TrackerConfig, run: RunInfo) -> Tracker:
    """The tracker of rank 0. Cheap: MLflow is imported by its own thread, after start()."""
    if cfg.kind is TrackerKind.none:
        return NoTracker(run)
    from tinychat.tracking.mlflow_tracker import MlflowTracker

    return MlflowTracker(run, resolve_uri(cfg.uri, run.outputs), cfg.system_metrics, cfg.parent)


def close_cut_off(cfg: TrackerConfig, outputs: Path, experiment: str) -> None:
    """Of a command that starts no run of its own: see to MLflow runs of the experiment whose processes were killed."""
    if cfg.kind is TrackerKind.none:
        return
    from tinychat.tracking import mlflow_tracker

    uri = resolve_uri(cfg.uri, outputs)
    cut_off, unsent = mlflow_tracker.cut_off(outputs, experiment), mlflow_tracker.unsent(outputs, experiment, uri)
    if any(True for found in (cut_off, unsent) for _ in found):
        mlflow_tracker.close_cut_off(outputs, experiment, uri)
