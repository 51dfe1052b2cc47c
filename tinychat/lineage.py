"""Where a checkpoint comes from: parents, data, configuration, versions, source revision."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import tinychat
from tinychat import runs

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "deepspeed", "peft", "mlflow", "numpy")


@cache
def versions() -> dict[str, str]:
    """Versions of Python, tinychat and the packages that results depend on, and the git commit of the checkout."""
    found = {"python": sys.version.split()[0], "tinychat": tinychat.__version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if commit := git_commit():
        found["git_commit"] = commit
    return found


@cache
def git_commit() -> str | None:
    """Commit of the checkout tinychat is imported from, "-dirty" where files differ from it; None outside one."""
    root = Path(tinychat.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def describe(run_dir: Path, parents: dict[str, str | None], data: dict[str, Any]) -> dict[str, Any]:
    """The lineage of what a run makes: `data` holds names, fingerprints and token counts by split."""
    return {
        "run_dir": str(run_dir.resolve()),
        "parents": {key: value for key, value in parents.items() if value},
        "data": data,
        "config": runs.read_config(run_dir),
        "versions": versions(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
