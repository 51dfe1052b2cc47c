"""Sweeps whose trials compute a formula."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.sweeps.fake import Command, Server

BASE = (
    "-m",
    "stage=ppo",
    "tuned=none",
    "reward=oracle",
    "stage.max_steps=10",
    "stage.eval_every=1",
    "stage.rollout_size=32",
    "stage.epochs=1",
)


class Fake:
    """The command in a folder of its own, with a policy that is none."""

    def __init__(self, server: Server, folder: Path):
        self.server, self.folder = server, folder
        (folder / "policy").mkdir()
        (folder / "policy" / "config.json").write_text("{}")

    def start(self, *words: str, plots: bool = False, tracker: str = "none", **variables: str) -> Command:
        given = [*BASE, f"tracker={tracker}", f"init_from={self.folder / 'policy'}", *words]
        return self.server.start(self.folder, given, plots, variables)

    def run(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.start(*words, **options).wait()

    def sweep(self, *words: str, **options: Any) -> str:
        """Runs to a good end; what it said."""
        done = self.run(*words, **options)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stderr

    def sweep_dir(self, name: str) -> Path:
        return self.folder / "outputs" / "sweeps" / name

    def study(self, name: str) -> optuna.Study:
        return optuna.load_study(study_name=name, storage=f"sqlite:///{self.sweep_dir(name) / 'study.db'}")

    def table(self, name: str) -> list[dict[str, Any]]:
        content = json.loads((self.sweep_dir(name) / "trials.json").read_text())
        return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]

    def runs(self, file: str) -> list[Path]:
        """The file in the run folders of all trials that have it."""
        return list(self.folder.glob(f"outputs/tinychat/*/*/{file}"))


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def fake(server: Server, tmp_path: Path) -> Fake:
    return Fake(server, tmp_path)
