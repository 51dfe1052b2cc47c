"""What the tests share: a tiny tokenizer, tiny overrides, and the real commands run in a subprocess."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
TINY_MODEL = (
    "model.n_layer=2",
    "model.n_embd=32",
    "model.n_head=2",
    "model.n_kv_head=1",
    "model.n_inner=64",
    "model.context_length=64",
)
TINY_DATA = ("data.max_docs=120", "data.max_val_docs=20")
TINY_STAGE = ("stage.batch_size=4", "stage.micro_batch_size=2", "stage.sample_tokens=4", "stage.warmup_steps=2")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved byte-level BPE of 400 entries."""
    from tinychat.data.tinyworld import stories
    from tinychat.text.bpe import train_bpe

    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe(stories(1, "train", 200), 400, progress=False).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny(tokenizer_folder: Path) -> tuple[str, ...]:
    """Overrides under which a whole pretraining takes seconds."""
    return (*TINY_MODEL, *TINY_DATA, *TINY_STAGE, f"tokenizer.path={tokenizer_folder}", "tracker=none")


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def train(tmp_path: Path) -> Command:
    """Run `python -m tinychat.train` with overrides, in an empty folder."""

    def run(*overrides: str, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tinychat.train", *overrides],
            cwd=tmp_path,
            env=environment_of(**environment),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


def environment_of(**more: str) -> dict[str, str]:
    """The environment of a subprocess that imports this checkout from any folder."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "HYDRA_FULL_ERROR": "1", **more}


def only_run(folder: Path) -> Path:
    """The one run folder under outputs/."""
    (found,) = (path.parent for path in (folder / "outputs").glob("*/*/*/config.yaml"))
    return found
