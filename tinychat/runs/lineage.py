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
from tinychat.errors import UserError
from tinychat.runs import folders

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


def earlier_data(checkpoint: Path | None, data: dict[str, Any], may_change: bool) -> list[dict[str, Any]]:
    """The data of a resumed run's earlier steps, where they were others: [{"until_step": 100, "data": facts}, ...].

    checkpoint: what is resumed from, with its own lineage; None: nothing. data: facts by split, of now. Raises
    UserError where a fingerprint differs from the checkpoint's, unless that `may_change`.
    """
    before = folders.read_json(checkpoint / folders.LINEAGE) if checkpoint else None
    if checkpoint is None or before is None:
        return []
    known, then = list(before.get("earlier_data", [])), before.get("data", {})
    changed = [split for split in then if split in data and _print(then[split]) != _print(data[split])]
    if not changed:
        return known
    step = folders.checkpoint_step(checkpoint)
    if may_change:
        return [*known, {"until_step": step, "data": then}]
    raise UserError(
        f"{checkpoint} learnt from other {' and '.join(changed)} data ({_difference(then, data, changed)}): the "
        f"files, or how they are read, changed since step {step}; put them back, go on with what is there now: "
        "resume_data=changed, or begin a run of its own: resume=never"
    )


def _print(facts: dict[str, Any]) -> str:
    return str(facts.get("fingerprint", ""))


def _difference(then: dict[str, Any], now: dict[str, Any], splits: list[str]) -> str:
    """Numbers of the splits that differ, else the fingerprints."""
    said = [
        f"{split} {key}: {old} then, {now[split].get(key)} now"
        for split in splits
        for key, old in then[split].items()
        if key != "fingerprint" and old != now[split].get(key)
    ]
    prints = [f"{split} {_print(then[split])[:8]} then, {_print(now[split])[:8]} now" for split in splits]
    return ", ".join(said or prints)


def describe(
    run_dir: Path,
    parents: dict[str, str | None],
    data: dict[str, Any],
    earlier: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """The lineage of what a run makes: `data` holds names, fingerprints and token counts by split, `earlier` what
    earlier_data gives."""
    return {
        "run_dir": str(run_dir.resolve()),
        "parents": {key: value for key, value in parents.items() if value},
        "data": data,
        **({"earlier_data": earlier} if earlier else {}),
        "config": folders.read_config(run_dir),
        "versions": versions(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
