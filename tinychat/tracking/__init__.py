"""Trackers behind one small protocol: metrics go to metrics.jsonl first, and from there in the background to MLflow,
TensorBoard and wandb, as many of them as the configuration names."""

from __future__ import annotations

import functools
from pathlib import Path

from tinychat.config.schema import TrackerConfig, TrackerKind
from tinychat.runtime import hub
from tinychat.tracking.base import METRICS_FILE, STATUS_OF, MetricsLog, NoTracker, Row, RunInfo, Status, Tracker
from tinychat.tracking.mirror import Mirror, MirroredTracker, Store
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
    "check_packages",
    "close_cut_off",
    "make_tracker",
    "prepare_store",
    "resolve_uri",
    "run_tags",
]


def make_tracker(cfg: TrackerConfig, run: RunInfo) -> Tracker:
    """The tracker of rank 0. Cheap: each library is imported by a thread of its own, after start()."""
    stores: list[Store] = []
    first = None
    if cfg.kind is TrackerKind.mlflow:
        from tinychat.tracking.mlflow_run import MlflowRun

        uri = resolve_uri(cfg.uri, run.outputs)
        stores.append(MlflowRun(run, uri, cfg.system_metrics, cfg.parent))
        first = functools.partial(close_cut_off, cfg, run.outputs, run.experiment_name)
    if cfg.tensorboard:
        from tinychat.tracking.tensorboard_run import TensorboardRun

        stores.append(TensorboardRun(run))
    if cfg.wandb is not None:
        from tinychat.tracking.wandb_run import WandbRun

        stores.append(WandbRun(run, cfg.wandb, cfg.system_metrics))
    if not stores:
        return NoTracker(run)
    rows = run.run_dir / METRICS_FILE
    return MirroredTracker(
        run, [Mirror(store, rows, first if index == 0 else None) for index, store in enumerate(stores)]
    )


def check_packages(cfg: TrackerConfig) -> None:
    """Raise UserError where a tracker's own package is missing."""
    if cfg.tensorboard:
        hub.need("tensorboard", "tensorboard", "tracker=tensorboard", "track with tracker=mlflow")
    if cfg.wandb is not None:
        hub.need("wandb", "wandb", "tracker=wandb", "track with tracker=mlflow")


def close_cut_off(cfg: TrackerConfig, outputs: Path, experiment: str) -> None:
    """Of a command that starts no run of its own: see to MLflow runs of the experiment whose processes were killed."""
    if cfg.kind is TrackerKind.none:
        return
    from tinychat.tracking import mlflow_tracker

    uri = resolve_uri(cfg.uri, outputs)
    cut_off, unsent = mlflow_tracker.cut_off(outputs, experiment), mlflow_tracker.unsent(outputs, experiment, uri)
    if any(True for found in (cut_off, unsent) for _ in found):
        mlflow_tracker.close_cut_off(outputs, experiment, uri)
