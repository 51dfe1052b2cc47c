"""Which MLflow store a run goes to, and its database created once, whole, by one process."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote
from urllib.request import url2pathname

from filelock import FileLock

from tinychat.errors import UserError
from tinychat.runs import folders
from tinychat.runtime.terminal import masked

IDENTITY = "tracking.json"  # of a run folder: which MLflow run it is, and in which store
_SQLITE = "sqlite:///"
_SQLITE_DRIVER = "sqlite+pysqlite:///"
_ENVIRONMENT = {  # only where the user has not set them
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # MLflow's own defaults keep a dead server busy for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "8",  # seconds
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",  # no word about a missing git program
}


ARTIFACTS = "mlartifacts"  # beside a database: the files of its runs
_ROOT = re.compile(rf"(file://.*/{ARTIFACTS})(/|$)")
_ADDRESSES = {
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("logged_models", "artifact_location"),
}


def resolve_uri(uri: str | None, outputs: Path) -> str:
    """`uri`, else $MLFLOW_TRACKING_URI, else OUTPUTS/mlflow.db. A relative SQLite path becomes absolute."""
    chosen = uri or os.environ.get("MLFLOW_TRACKING_URI")
    path = sqlite_path(chosen) if chosen else Path(outputs) / "mlflow.db"
    return sqlite_uri(path) if path else str(chosen)


def sqlite_uri(path: Path) -> str:
    """The address of a database file. In one, ? and % mean something, so they are quoted; under the plain scheme MLflow
    would make a folder of the quoted name."""
    plain = str(path.absolute())
    quoted = plain.replace("%", "%25").replace("?", "%3F")
    return f"{_SQLITE}{plain}" if quoted == plain else f"{_SQLITE_DRIVER}{quoted}"


def sqlite_path(uri: str) -> Path | None:
    """The database file of a plain SQLite URI; None for any other store."""
    scheme = next((start for start in (_SQLITE, _SQLITE_DRIVER) if uri.startswith(start)), None)
    rest = uri.removeprefix(scheme or uri)
    if not rest or "?" in rest or rest.startswith((":memory:", "file:")):
        return None
    return Path(unquote(rest))


def artifact_location(uri: str, outputs: Path) -> str | None:
    """Where a new experiment keeps its files: beside a database; a server (None) has a place of its own."""
    if uri.startswith(("http://", "https://", "databricks", "uc:")):
        return None
    path = sqlite_path(uri)
    folder = path.parent if path else Path(outputs).absolute()
    return (folder / ARTIFACTS).as_uri()


def load_mlflow() -> None:
    """Import MLflow with short timeouts and without its log lines; MLFLOW_LOGGING_LEVEL brings them back."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow.tracking  # noqa: F401

    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        for name in ("mlflow", "alembic", "sqlalchemy", "urllib3.connectionpool"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def prepare_store(uri: str) -> None:
    """Create the SQLite database of `uri` when there is none: some 6 seconds, once. Other stores are left alone.

    Any number of processes may call it at once. The schema is made under a temporary name and renamed when whole, so
    a database that exists is complete. Raises OSError or sqlite3.Error where it cannot be written.
    """
    path = sqlite_path(uri)
    if path is None:
        return
    if not _exists(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not _exists(path):
                _create(path)
    with closing(sqlite3.connect(path, timeout=20)) as connection:
        connection.execute("BEGIN IMMEDIATE")  # a store that cannot be written says so at once
        _follow_move(connection, path.parent / ARTIFACTS)
        connection.commit()


def _follow_move(connection: sqlite3.Connection, artifacts: Path) -> None:
    """MLflow keeps where files lie as absolute addresses. After the outputs were moved as a whole those of the folder
    beside the database become its new one's: else files would be written to where the outputs were."""
    here = artifacts.as_uri()
    places = [
        (table, column)
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for _, column, *_ in connection.execute(f"PRAGMA table_info({table})").fetchall()
        if (table, column) in _ADDRESSES
    ]
    known = {row[0] for row in connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()}
    roots = {match.group(1) for address in known if (match := _ROOT.match(address or ""))} - {here}
    for root in roots:
        if Path(url2pathname(root.removeprefix("file://"))).exists() or not artifacts.is_dir():
            continue  # not moved: a database that was copied, or an experiment whose files somebody put elsewhere
        for table, column in places:
            connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR {column} LIKE ? || '/%'",
                (here, len(root) + 1, root, root),
            )


def _exists(path: Path) -> bool:
    return path.exists() and (path.is_dir() or path.stat().st_size > 0)


def _create(path: Path) -> None:
    load_mlflow()
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for stale in path.parent.glob(f"{path.name}.*.tmp*"):
        stale.unlink()
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    store = SqlAlchemyStore(sqlite_uri(temporary), (path.parent / ARTIFACTS).as_uri())
    store.engine.dispose()
    os.replace(temporary, path)


def run_tags_of(run_id: str, uri: str) -> dict[str, str]:
    """The tags of an MLflow run. Raises UserError for an unknown run or a store that does not answer."""
    load_mlflow()
    import mlflow

    path = sqlite_path(uri)
    if path is not None and not _exists(path):  # the client would make it
        raise UserError(f"runs:/{run_id}: there is no MLflow store {path}")
    try:
        return mlflow.MlflowClient(uri).get_run(run_id).data.tags
    except Exception as error:  # each kind of store has its own
        raise UserError(f"runs:/{run_id}: {masked(uri)} says: {str(error).splitlines()[0]}") from None


def run_folder_of(run_id: str, uri: str, outputs: Path) -> str:
    """The run folder behind an MLflow run, from the tag that every tinychat run has; where the outputs were moved
    since, by what the run folders say themselves.

    Raises UserError for an unknown run, a store that does not answer, or a run that tinychat did not make.
    """
    tags = run_tags_of(run_id, uri)
    if "run_dir" not in tags:
        raise UserError(f"runs:/{run_id}: not a run of tinychat (it has no run_dir tag); give a checkpoint folder")
    if Path(tags["run_dir"]).exists():
        return tags["run_dir"]
    return str(find_run_folder(run_id, outputs) or tags["run_dir"])


def find_run_folder(run_id: str, outputs: Path) -> Path | None:
    """The run folder of the outputs whose tracking.json names the MLflow run."""
    for path in outputs.glob(f"*/*/*/{IDENTITY}"):
        if path.parts[-4] != ARTIFACTS and (folders.read_json(path) or {}).get("run_id") == run_id:
            return path.parent
    return None
