"""One run in an MLflow store: made or found again, filled, closed; and what MLflow's pages show of an experiment and
a run at once (columns of the table, descriptions, data sets). Used by one thread; raises what MLflow raises."""

from __future__ import annotations

import getpass
import hashlib
import json
import re
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

import tinychat

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tinychat.runs import folders as runs
from tinychat.runs.folders import moved
from tinychat.runtime import run_files
from tinychat.runtime.terminal import masked
from tinychat.tracking.base import Row, RunInfo, Status
from tinychat.tracking.store import IDENTITY, artifact_location, load_mlflow, prepare_store, sqlite_uri

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
    from mlflow.tracking import MlflowClient

MAX_KEY = 250  # characters of a parameter, tag or metric name
MAX_PARAM = 6000  # characters of a parameter's value
MAX_TAG = 8000  # characters of a tag's value
_NOT_ALLOWED = re.compile(r"[^\w\-. /:]")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """{"stage": {"lr": 0.1, "betas": [1, 2]}} -> {"stage.lr": "0.1", "stage.betas": "[1, 2]"}, as YAML would say it."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{key}."))
        else:
            flat[fit_key(key)] = _text(value)[:MAX_PARAM]
    return flat


def _text(value: Any) -> str:
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, (bool, list, tuple, Mapping)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def fit_key(key: str) -> str:
    """`key` with characters MLflow refuses replaced; a longer one than MAX_KEY ends in a hash of the whole."""
    clean = _NOT_ALLOWED.sub("_", key)
    if len(clean) <= MAX_KEY:
        return clean
    return f"{clean[: MAX_KEY - 13]}_{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def run_tags(
    stage: str, model: str, data: str, parent: str | None = None, git_commit: str | None = None
) -> dict[str, str]:
    """The tags every run has; `parent` is the checkpoint its weights came from."""
    # The run's end says what the headline is; one that was killed keeps this.
    tags = {
        HEADLINE: "unfinished",
        "stage": stage,
        "model": model,
        "data": data,
        "tinychat.version": tinychat.__version__,
    }
    tags |= {"mlflow.source.name": "tinychat.train", "mlflow.source.type": "LOCAL"}
    if parent:
        tags["parent"] = parent
    if git_commit:
        tags |= {"git_commit": git_commit, "mlflow.source.git.commit": git_commit}
    try:
        tags["mlflow.user"] = getpass.getuser()
    except (KeyError, OSError):  # a container user without a name
        pass
    return tags


def fit_tags(tags: Mapping[str, Any]) -> dict[str, str]:
    return {fit_key(key): _text(value)[:MAX_TAG] for key, value in tags.items()}


HEADLINE = "headline"  # tag: the run's first figure in words
NOTE = "mlflow.note.content"  # tag: the description, in Markdown
VIEW = "tinychat"  # name of the table's view, in its address: ?viewStateShareKey=tinychat
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"  # of an experiment; where MLflow's interface looks for it
DIGEST = 36  # characters that MLflow takes
_COLUMNS = (
    "metrics.`eval/ppl`",
    "metrics.`eval/instruction_accuracy`",
    "metrics.`eval/safe_rate`",
    f"tags.`{HEADLINE}`",
    "tags.`stage`",
    "tags.`model`",
    "tags.`data`",
)


def experiment_tags(experiment: str) -> dict[str, str]:
    """Of an experiment by its id: a description that leads to the table with its columns, and these."""
    state: dict[str, Any] = {
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "searchFilter": "",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(_COLUMNS),
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runListHidden": False,
        "viewMaximized": False,
    }
    note = f"[The runs with headline, stage, model and data]({address_of(experiment)})"
    return {VIEW_TAG: json.dumps(state), NOTE: note}


def address_of(experiment: str) -> str:
    """Of the experiment's table, after the server's own address."""
    return f"#/experiments/{experiment}/runs?viewStateShareKey={VIEW}"


def dataset_inputs(lineage: Mapping[str, Any], data: str, path: str | None) -> list[DatasetInput]:
    """As mlflow.log_input would make them, of lineage.json's data: one for each split, with its fingerprint as digest
    and its counts as profile. data: the name of the data; path: where it lies, None where it is generated."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    splits = lineage.get("data")
    inputs = []
    for split, facts in splits.items() if isinstance(splits, dict) else ():
        if not isinstance(facts, dict) or not isinstance(facts.get("fingerprint"), str):
            continue
        counts = {name: value for name, value in facts.items() if isinstance(value, int | float)}
        source = {"uri": path} if path else {"tags": {"generator": data}}
        dataset = Dataset(
            name=f"{data}-{split}",
            digest=facts["fingerprint"][:DIGEST],
            source_type="local" if path else "code",
            source=json.dumps(source),
            profile=json.dumps(counts),
        )
        context = {"train": "training", "validation": "validation"}.get(split, split)
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
    return inputs


METRICS_PER_CALL = 1000  # MLflow's own limits
PARAMS_PER_CALL = 100
PARENT_TAG = "mlflow.parentRunId"  # what MLflow's interface folds runs by
TABLES_TAG = "mlflow.loggedArtifacts"  # where MLflow's interface and load_table look for tables
TRAINER_STATE = "trainer_state"  # of a checkpoint: what only a resume needs
SYSTEM = "system/"  # prefix of what MLflow's monitor measures
logger = logging.getLogger(__name__)


def read_identity(run_dir: Path, outputs: Path) -> dict[str, Any] | None:
    """tracking.json of a folder, the store's address as it is now; None where there is none that can be read."""
    kinds: dict[str, run_files.Kind] = {"uri": str, "run_id": str, "closed": (str, type(None))}
    found = run_files.if_readable(lambda: run_files.read_json(run_dir / IDENTITY, kinds))
    return found and found | {"uri": moved(found["uri"], runs.OUTPUTS, _file_uri(outputs))}


def _file_uri(outputs: Path) -> str:
    """What the address of a database in the outputs begins with."""
    return sqlite_uri(outputs)


class MlflowRun:
    """A Store of tinychat.tracking.mirror."""

    kind, local = "MLflow", False

    def __init__(self, run: RunInfo, uri: str, system_metrics: bool, parent: str | None = None) -> None:
        """parent: id of the run that this one is shown under."""
        self.run_id: str | None = None
        self.is_open = False
        self.place = f"{self.kind} at {masked(uri)}"
        self._parent = {PARENT_TAG: parent} if parent else {}
        self._run, self._uri, self._system_metrics = run, uri, system_metrics
        self._tried = False
        self._began = time.time()
        self._client: MlflowClient
        self._monitor: SystemMetricsMonitor | None = None
        self._present: dict[str, set[int]] = {}  # steps in the store from before a resume

    def open(self, params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """Find the run this folder had in this store, or make one; then parameters, tags, config, system metrics."""
        params, tags = flatten(params), fit_tags({**tags, **self._parent})
        load_mlflow()
        from mlflow.tracking import MlflowClient

        prepare_store(self._uri)
        self._client = MlflowClient(tracking_uri=self._uri)
        experiment = self._experiment()
        found = self._earlier_run(experiment)
        if found is None:
            made = {**tags, "run_dir": str(self._run.run_dir.absolute())[:MAX_TAG]}
            began = round(self._began * 1000)
            found = self._client.create_run(experiment, began, made, self._run.run_name)
            self.run_id = found.info.run_id
        else:
            self.run_id = found.info.run_id
            self._continue(found, tags)
        self._write_identity()
        self._send_params(params, found)
        config = self._run.run_dir / "config.yaml"
        if config.exists():
            self._client.log_artifact(self.run_id, str(config))
        self._start_monitor()
        self.is_open = True

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        name = self._run.experiment_name
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            try:
                location = artifact_location(self._uri, self._run.outputs)
                return self._dressed(self._client.create_experiment(name, location))
            except MlflowException:  # another process was faster
                experiment = self._client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage == "deleted":
            self._client.restore_experiment(experiment.experiment_id)
        return self._dressed(experiment.experiment_id, experiment.tags)

    def _dressed(self, experiment: str, had: Mapping[str, str] | None = None) -> str:
        """The experiment, with the columns of its table and a description, where nobody has given it others."""
        for key, value in experiment_tags(experiment).items():
            if key not in (had or {}):
                self._client.set_experiment_tag(experiment, key, value)
        return experiment

    def _earlier_run(self, experiment: str) -> Run | None:
        """The run of this folder, by tracking.json or by its tag; None for a new run or another store."""
        from mlflow.exceptions import MlflowException

        first, self._tried = not self._tried, True
        if first and self._run.resume_step is None:
            return None
        run_id = self.run_id or self._saved_run_id()
        if run_id is not None:
            try:
                run = self._client.get_run(run_id)
                if run.info.lifecycle_stage == "active":
                    return run
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        folder = str(self._run.run_dir.absolute())[:MAX_TAG]
        if "'" in folder:  # MLflow's filter has no way to quote it
            return None
        runs = self._client.search_runs([experiment], f"tags.run_dir = '{folder}'", max_results=1)
        return runs[0] if runs else None

    def _saved_run_id(self) -> str | None:
        saved = read_identity(self._run.run_dir, self._run.outputs)
        return saved["run_id"] if saved and saved["uri"] == masked(self._uri) else None

    def _continue(self, run: Run, tags: dict[str, str]) -> None:
        """Open a run again and learn which points it has."""
        from mlflow.entities import RunTag

        if run.info.status != "RUNNING":
            self._client.update_run(run.info.run_id, status="RUNNING")
        where = {"run_dir": str(self._run.run_dir.absolute())[:MAX_TAG]}  # the outputs may have been moved
        self._client.log_batch(run.info.run_id, tags=[RunTag(key, value) for key, value in (tags | where).items()])
        for name in run.data.metrics:
            if not name.startswith(SYSTEM):
                history = self._client.get_metric_history(run.info.run_id, name)
                self._present[name] = {point.step for point in history}

    def _write_identity(self, closed: str | None = None) -> None:
        """tracking.json. closed: the state that the run was given at its end."""
        identity = {
            "uri": moved(masked(self._uri), _file_uri(self._run.outputs), runs.OUTPUTS),
            "experiment": self._run.experiment_name,
            "run_id": self.run_id,
            "closed": closed,
        }
        runs.write_text_atomic(self._run.run_dir / IDENTITY, json.dumps(identity, indent=2) + "\n")

    def _send_params(self, params: dict[str, str], run: Run) -> None:
        """Parameters cannot be changed in MLflow: on a resume new ones are added, changed ones become tags."""
        from mlflow.entities import Param, RunTag

        had = run.data.params
        new = [Param(key, value) for key, value in params.items() if key not in had]
        for start in range(0, len(new), PARAMS_PER_CALL):
            self._client.log_batch(self.run_id, params=new[start : start + PARAMS_PER_CALL])
        changed = {key: value for key, value in params.items() if had.get(key, value) != value}
        tags = [RunTag(f"resumed.{key}"[:250], value) for key, value in changed.items()]
        for start in range(0, len(tags), PARAMS_PER_CALL):
            self._client.log_batch(self.run_id, tags=tags[start : start + PARAMS_PER_CALL])

    def _start_monitor(self) -> None:
        if not self._system_metrics or self._monitor is not None:
            return
        try:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._monitor = SystemMetricsMonitor(self.run_id, resume_logging=True, tracking_uri=self._uri)
            self._monitor.start()
        except Exception as error:  # psutil missing, or a driver that answers oddly
            logger.info("no system metrics: %s", error)

    def send_rows(self, rows: Sequence[Row], sent: Callable[[], None]) -> None:
        """Send the points the store does not have yet, with their own time; `sent` is called after each batch."""
        from mlflow.entities import Metric

        points = [
            Metric(name, value, round(row.time * 1000), row.step)
            for row in rows
            for name, value in row.metrics.items()
            if row.step not in self._present.get(name, ())
        ]
        for start in range(0, len(points), METRICS_PER_CALL):
            self._client.log_batch(self.run_id, metrics=points[start : start + METRICS_PER_CALL])
            sent()

    def send_inputs(self, data: str, path: str | None) -> bool:
        """The data sets of lineage.json, which the stage writes once it has read its data; False before it has."""
        lineage = run_files.if_readable(lambda: run_files.read_json(self._run.run_dir / runs.LINEAGE)) or {}
        inputs = dataset_inputs(lineage, data, path)
        if inputs:
            self._client.log_inputs(self.run_id, datasets=inputs)
        return bool(inputs)

    def send_table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """As MLflow's log_table stores it, but replacing an earlier one: a resumed run shows its samples once."""
        file = f"{name}.json"
        self._client.log_dict(self.run_id, {"columns": columns, "data": rows}, file)
        tables = json.loads(self._client.get_run(self.run_id).data.tags.get(TABLES_TAG, "[]"))
        if not any(table["path"] == file for table in tables):
            tables.append({"path": file, "type": "table"})
            self._client.set_tag(self.run_id, TABLES_TAG, json.dumps(tables))

    def send_file(self, path: Path, folder: str | None) -> None:
        """Raises FileNotFoundError for a file that is gone."""
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        send = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        send(self.run_id, str(path), folder)

    def send_tags(self, tags: dict[str, Any]) -> None:
        """Set tags; those that were there get the new value."""
        from mlflow.entities import RunTag

        entries = [RunTag(key, value) for key, value in fit_tags(tags).items()]
        for start in range(0, len(entries), PARAMS_PER_CALL):
            self._client.log_batch(self.run_id, tags=entries[start : start + PARAMS_PER_CALL])

    def register(self, name: str, run_id: str, checkpoint: Path, tags: dict[str, str], alias: str) -> str:
        """A version of the registered model `name`: the run's checkpoint, sent there without the trainer's state.

        Returns the version, the one there is where this run is registered already; `alias` points to it.
        """
        version = _register(self._client, name, run_id, checkpoint, "checkpoint", tags)
        self._client.set_registered_model_alias(name, alias, version)
        return version

    def close(self, status: Status, ended: float) -> None:
        """Set the status; `ended` is in seconds since the epoch."""
        if self._monitor is not None:
            self._monitor.finish()
        self._client.set_terminated(self.run_id, status, round(ended * 1000))
        self._write_identity(status)

    def settle(self, status: Status, rows: Sequence[Row], ended: float, tags: Mapping[str, str]) -> bool:
        """Close a run that another process left open, with the points it lacks and its tags of the end; nothing
        else of it is touched. Returns False where this store does not have it, or had closed it already."""
        load_mlflow()
        from mlflow.tracking import MlflowClient

        self.run_id = self._saved_run_id()
        if self.run_id is None:
            return False
        self._client = MlflowClient(tracking_uri=self._uri)
        run = self._client.get_run(self.run_id)
        if run.info.status != "RUNNING":
            self._write_identity(run.info.status)
            return False
        self._continue(run, fit_tags(tags))
        self.send_rows(rows, lambda: None)
        self.close(status, ended)
        return True


def register_model(uri: str, name: str, run_id: str, folder: Path, place: str, tags: dict[str, str]) -> str:
    """A version of the registered model `name` in the store at `uri`: the files of a folder, sent to `place` among
    those of the run; the one there is where that is registered already. Raises what MLflow raises."""
    load_mlflow()
    from mlflow.tracking import MlflowClient

    prepare_store(uri)
    return _register(MlflowClient(tracking_uri=uri), name, run_id, folder, place, fit_tags(tags))


def _register(client: MlflowClient, name: str, run_id: str, folder: Path, place: str, tags: dict[str, str]) -> str:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    quoted = name.replace("'", "''")
    for one in client.search_model_versions(f"name='{quoted}'"):
        if one.run_id == run_id and str(one.source).endswith(f"/{place}"):
            return str(one.version)
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and inside.parts[0] != TRAINER_STATE:
            client.log_artifact(run_id, str(path), str(Path(place) / inside.parent))
    source = f"{client.get_run(run_id).info.artifact_uri}/{place}"
    return str(client.create_model_version(name, source, run_id, tags=tags).version)
