"""Which MLflow store a run goes to, and its database created once, whole, by one process."""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path

from filelock import FileLock

from tinychat.errors import UserError
from tinychat.passwords import masked

_SQLITE = "sqlite:///"
_ENVIRONMENT = {  # only where the user has not set them
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # MLflow's own defaults keep a dead server busy for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "8",  # seconds
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",  # no word about a missing git program
}


def resolve_uri(uri: str | None, outputs: Path) -> str:
    """`uri`, else $MLFLOW_TRACKING_URI, else OUTPUTS/mlflow.db. A relative SQLite path becomes absolute."""
    chosen = uri or os.environ.get("MLFLOW_TRACKING_URI")
    path = sqlite_path(chosen) if chosen else Path(outputs) / "mlflow.db"
    return sqlite_uri(path) if path else str(chosen)


def sqlite_uri(path: Path) -> str:
    """The address of a database file. Letters that mean something in an address (?, #, %) are quoted."""
    from sqlalchemy.engine import URL

    return URL.create("sqlite", database=str(path.absolute())).render_as_string()


def sqlite_path(uri: str) -> Path | None:
    """The database file of a plain SQLite URI; None for any other store."""
    from sqlalchemy.engine import make_url

    rest = uri.removeprefix(_SQLITE)
    if rest == uri or not rest or "?" in rest or rest.startswith((":memory:", "file:")):
        return None
    return Path(str(make_url(uri).database))


def artifact_location(uri: str, outputs: Path) -> str | None:
    """Where a new experiment keeps its files: beside a database; a server (None) has a place of its own."""
    if uri.startswith(("http://", "https://", "databricks", "uc:")):
        return None
    path = sqlite_path(uri)
    folder = path.parent if path else Path(outputs).absolute()
    return (folder / "mlartifacts").as_uri()


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
        connection.rollback()


def _exists(path: Path) -> bool:
    return path.exists() and (path.is_dir() or path.stat().st_size > 0)


def _create(path: Path) -> None:
    load_mlflow()
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for stale in path.parent.glob(f"{path.name}.*.tmp*"):
        stale.unlink()
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    store = SqlAlchemyStore(sqlite_uri(temporary), (path.parent / "mlartifacts").as_uri())
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


def run_folder_of(run_id: str, uri: str) -> str:
    """The run folder behind an MLflow run, from the tag that every tinychat run has.

    Raises UserError for an unknown run, a store that does not answer, or a run that tinychat did not make.
    """
    tags = run_tags_of(run_id, uri)
    if "run_dir" not in tags:
        raise UserError(f"runs:/{run_id}: not a run of tinychat (it has no run_dir tag); give a checkpoint folder")
    return tags["run_dir"]
