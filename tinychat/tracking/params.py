"""Configuration and tags in the form MLflow takes: flat keys, text values, within its length limits."""

from __future__ import annotations

import getpass
import hashlib
import json
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

import tinychat
from tinychat.tracking.mlflow_run import HEADLINE

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
