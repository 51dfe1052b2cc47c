"""MLflow runs whose processes were killed: the next command of the experiment gives them their last points and a state.

A run that has ended says so in its tracking.json ("closed"). One whose folder no process holds any more and that does
not say so was cut off: perhaps after its last step, with its result written and its last points in metrics.jsonl alone.
"""

from __future__ import annotations

import functools
import itertools
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from tinychat.config.schema import TrackerKind
from tinychat.report.headline import tags_of
from tinychat.runs import folders, trial
from tinychat.runtime.run_files import if_readable
from tinychat.runtime.terminal import masked
from tinychat.tracking.base import STATUS_OF, MetricsLog, RunInfo
from tinychat.tracking.mlflow_run import MlflowRun, fit_tags, flatten, read_identity, run_tags
from tinychat.tracking.store import IDENTITY, resolve_uri

SWEEPS = "sweeps"  # OUTPUTS/sweeps/STUDY holds the run above a sweep's trials
AT_ONCE = 100  # cut-off runs that one command sees to
logger = logging.getLogger(__name__)


def cut_off(outputs: Path, experiment: str) -> Iterator[Path]:
    """The folders (of runs, pipelines and sweeps) of an experiment whose MLflow run was not closed by its process.

    Cheap where there are none: it reads a small file of each folder.
    """
    here = [*(outputs / experiment).glob(f"*/*/{IDENTITY}"), *(outputs / SWEEPS).glob(f"*/{IDENTITY}")]
    for path in here:
        found = read_identity(path.parent, outputs)
        if found is None or found.get("closed") or found.get("experiment") != experiment:
            continue
        if not folders.is_live(path.parent) and not folders.is_worked_on(path.parent):
            yield path.parent


def unsent(outputs: Path, experiment: str, uri: str) -> Iterator[Path]:
    """The folders of runs that have ended and of which this store was to have a run, but has none: killed before MLflow
    was there, or at the end of a time in which the store did not answer."""
    for path in (outputs / experiment).glob(f"*/*/{folders.RESULT}"):
        folder = path.parent
        if (folder / IDENTITY).exists() or folders.is_live(folder):
            continue
        tracker = (if_readable(functools.partial(folders.read_config, folder)) or {}).get("tracker")
        if not isinstance(tracker, dict) or tracker.get("kind") != TrackerKind.mlflow.value:
            continue
        if masked(resolve_uri(tracker.get("uri"), outputs)) == masked(uri) and folders.read_result(folder):
            yield folder


def _send(folder: Path, outputs: Path, experiment: str, uri: str) -> None:
    """A run that the store lacks, from its folder. Raises what MLflow raises."""
    config, result = folders.read_config(folder), folders.read_result(folder) or {}
    stage, model, data = (str((config.get(group) or {}).get("name")) for group in ("stage", "model", "data"))
    rows = MetricsLog(folder / "metrics.jsonl").read()
    name = trial.title(folder, f"{config.get('run_name') or folder.parent.name} {folder.name}")  # as rank 0 calls it
    run = MlflowRun(RunInfo(folder, outputs, experiment, name, resume_step=0), uri, system_metrics=False)
    run.open(flatten(config), fit_tags({**run_tags(stage, model, data), **trial.tags(folder), **_told(folder)}))
    run.send_rows(rows, lambda: None)
    run.send_inputs(data, (config.get("data") or {}).get("path"))
    for file in ("report.md", "report.html", "curves.png", folders.RESULT, folders.LINEAGE, "log.txt"):
        if (folder / file).is_file():
            run.send_file(folder / file, None)
    run.close(STATUS_OF.get(result.get("status") or "", "KILLED"), rows[-1].time if rows else time.time())


def _told(folder: Path) -> dict[str, str]:
    """A run's headline and description; of what is above runs (a sweep, a pipeline) none."""
    return tags_of(folder) if (folder / folders.CONFIG).is_file() else {}


def close_cut_off(outputs: Path, experiment: str, uri: str) -> list[Path]:
    """Send what the store lacks of those runs and set their state: that of their result, KILLED without one (a resume
    opens such a run again). Returns their folders. Nothing is raised: what a store does not take is tried again by the
    next command."""
    done = []
    for folder in list(cut_off(outputs, experiment))[:AT_ONCE]:
        log = MetricsLog(folder / "metrics.jsonl")
        try:
            status = STATUS_OF.get((folders.read_result(folder) or {}).get("status") or "", "KILLED")
            rows = log.read()
            ended = rows[-1].time if rows else time.time()
            # The run was there before: a step to resume from has it looked for, not made.
            info = RunInfo(folder, outputs, experiment, folder.parent.name, resume_step=0)
            if MlflowRun(info, uri, system_metrics=False).settle(status, rows, ended, _told(folder)):
                done.append(folder)
        except Exception as error:  # whatever MLflow raises
            logger.info("the MLflow run of %s, whose process was killed, stays as it is: %s", folder, error)
    for folder in itertools.islice(unsent(outputs, experiment, uri), AT_ONCE):
        try:
            _send(folder, outputs, experiment, uri)
            done.append(folder)
        except Exception as error:  # the same
            logger.info("MLflow did not take the run of %s: %s", folder, error)
    if done:
        names = ", ".join("/".join(folder.parts[-2:]) for folder in done[:3])
        more = f" and {len(done) - 3} more" if len(done) > 3 else ""
        logger.info("MLflow: gave runs whose processes were killed their last points and state: %s%s", names, more)
    return done
