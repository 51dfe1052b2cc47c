"""What a person gets wrong, or the machine: one line that says so, status 1, and nothing written over."""

from __future__ import annotations

import gzip
import json
import re
import resource
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import curve, error_line, result_of, run_train, start_train, wait_until
from tinychat.runs import folders


@pytest.fixture(scope="module")
def trained(tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four steps with checkpoints at 2 and 4; its caches lie beside it."""
    folder = tmp_path_factory.mktemp("trained")
    done = run_train(folder, *tiny, "stage.max_steps=4", "checkpoint.every=2", "run_dir=run")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the locks, which say who looked last."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name != ".lock"}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data=text", "data.path=nowhere.txt"], ["data.path=nowhere.txt", "no such file"]),
        (["stage.context_length=65"], ["stage.context_length=65", "model.context_length=64"]),
        (["stage.batch_size=5"], ["stage.batch_size=5", "micro_batch_size may be 1"]),
        (["tokenizer.path=./nothing"], ["tokenizer.path=./nothing"]),
        (["init_from=outputs/nothing"], ["outputs/nothing", "no such folder"]),
        (["init_from=auto"], ["init_from=auto", "python -m tinychat.train stage=pretrain model=mini"]),
        (["paths.outputs=/proc/outputs"], ["/proc", "paths.outputs="]),
    ],
)
def test_what_is_seen_before_anything_is_made(
    overrides: list[str], words: list[str], tiny: tuple[str, ...], tmp_path: Path
) -> None:
    line = error_line(run_train(tmp_path, *tiny, *overrides))
    for word in words:
        assert word in line
    assert not list(tmp_path.rglob("config.yaml"))


def no_usable_file(folder: Path) -> None:
    folder.mkdir()
    (folder / "image.png").write_bytes(b"x")


def cut_gz(path: Path) -> None:
    whole = gzip.compress(json.dumps({"text": "Once upon a time. " * 5000}).encode() + b"\n")
    path.write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("a.txt", lambda path: path.write_text(""), ["empty"]),
        ("folder", no_usable_file, ["no usable file", ".png"]),
        ("a.jsonl", lambda path: path.write_text('{"story": "x"}\n'), ["text", "story"]),
        ("a.jsonl", lambda path: path.write_bytes(b'{"text": "caf\xe9"}\n'), ["UTF-8"]),
        ("a.jsonl.gz", cut_gz, ["cut short"]),
    ],
    ids=["empty", "nothing usable", "no such column", "broken utf-8", "gz cut short"],
)
def test_text_that_cannot_be_read(
    name: str, make: Callable[[Path], None], words: list[str], tiny: tuple[str, ...], tmp_path: Path
) -> None:
    make(tmp_path / name)
    line = error_line(run_train(tmp_path, *tiny, "data=text", f"data.path={name}", "run_dir=run"))
    for word in (name, *words):
        assert word in line
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "outputs").exists()


def test_a_vocabulary_larger_than_the_models(tiny: tuple[str, ...], tmp_path: Path) -> None:
    line = error_line(run_train(tmp_path, *tiny, "model.vocab_size=300"))
    assert "model.vocab_size=300: the tokenizer has 400 entries" in line


def test_a_context_longer_than_the_checkpoints(trained: Path, tiny: tuple[str, ...], tmp_path: Path) -> None:
    overrides = ("stage=eval", "data.max_val_docs=20", "tracker=none", f"init_from={trained}")
    line = error_line(run_train(tmp_path, *overrides, "stage.context_length=65"))
    assert "stage.context_length=65 is longer than the model's 64" in line


def test_a_run_folder_that_already_holds_a_run(trained: Path, tiny: tuple[str, ...], tmp_path: Path) -> None:
    before = contents(trained)
    line = error_line(run_train(tmp_path, *tiny, f"run_dir={trained}"))
    assert f"run_dir={trained} already holds a run" in line
    assert "resume=auto" in line
    assert contents(trained) == before


def test_a_checkpoint_cut_short(trained: Path, tiny: tuple[str, ...], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / folders.RESULT).unlink()
    weights = run / "checkpoints" / "step-000004" / "model.safetensors"
    with open(weights, "r+b") as file:
        file.truncate(1000)
    before = contents(run / "checkpoints")

    line = error_line(run_train(tmp_path, *tiny, f"init_from={weights.parent}"))
    assert "is damaged: model.safetensors has 1000 bytes" in line
    assert "step-000002" in line

    # runs of one folder have one name for their configuration, wherever they lie
    resume = (*tiny, "stage.max_steps=4", "run_dir=run", "resume=auto")
    line = error_line(run_train(tmp_path, *resume))
    assert "is damaged: model.safetensors has 1000 bytes" in line
    assert "remove the damaged folder to resume from there" in line
    assert contents(run / "checkpoints") == before

    shutil.rmtree(weights.parent)
    done = run_train(tmp_path, *resume)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resumed from run/checkpoints/step-000002" in done.stderr
    assert weights.read_bytes() == (trained / "checkpoints" / "step-000004" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_live_run_is_left_alone_and_survives_a_full_disk(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """The disk: a limit on the size of a file, set while the run writes, that its weights no longer keep."""
    command = (*tiny, "stage.max_steps=100000", "checkpoint.every=100", "stage.eval_every=0", "run_dir=run")
    run = tmp_path / "run"
    process = start_train(tmp_path, *command)
    wait_until(lambda: folders.list_checkpoints(run), process)
    assert f"run folder run is in use by process {process.pid}" in error_line(run_train(tmp_path, *command))
    line = error_line(run_train(tmp_path, *command, "resume=auto"))
    assert f"run folder run is in use by process {process.pid}" in line
    assert process.poll() is None

    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (60_000, 60_000))
    assert process.wait(60) == 1
    said = (tmp_path / "stderr.txt").read_text()
    last = said.splitlines()[-1]
    assert last.startswith("error: could not save run/checkpoints/step-")
    assert "Traceback" not in said
    newest = folders.list_checkpoints(run)[-1]
    assert f"{newest.relative_to(tmp_path)} is intact; free space and continue with resume=auto" in last
    assert [path.name for path in (run / "checkpoints").glob(".*")] == []
    assert result_of(run)["status"] == "failed"

    folders.verify_checkpoint(newest)
    done = run_train(tmp_path, "stage=eval", f"init_from={newest}", "data.max_val_docs=20", "tracker=none")
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_disk_that_is_full_from_the_start(trained: Path, tiny: tuple[str, ...], tmp_path: Path) -> None:
    line = error_line(run_train(tmp_path, *tiny, "run_dir=run", largest_file=1000))
    assert "File too large; choose another folder with paths.outputs= or run_dir=" in line
    # Room for the configuration, but not for the lineage. (The token cache lies beside the other run.)
    cache = f"paths.cache={trained.parent / 'outputs' / 'cache'}"
    size = (trained / folders.CONFIG).stat().st_size + 200
    assert size < (trained / folders.LINEAGE).stat().st_size
    line = error_line(run_train(tmp_path, *tiny, "run_dir=other", cache, largest_file=size))
    assert "File too large; free space, then resume=auto" in line
    assert result_of(tmp_path / "other")["status"] == "failed"


def test_a_tracker_that_does_not_answer_costs_one_warning(tiny: tuple[str, ...], tmp_path: Path) -> None:
    tracker = ("tracker=mlflow", "tracker.system_metrics=false", "tracker.uri=http://127.0.0.1:9")
    done = run_train(tmp_path, *tiny, *tracker, "stage.max_steps=5", "stage.log_every=1", "run_dir=run")
    assert done.returncode == 0, done.stderr[-3000:]
    warnings = [line for line in done.stderr.splitlines() if "warning:" in line]
    assert len(warnings) == 1, warnings
    assert "MLflow at http://127.0.0.1:9" in warnings[0]
    assert "metrics are kept in run/metrics.jsonl" in warnings[0]
    assert list(curve(tmp_path / "run")) == [1, 2, 3, 4, 5]
    assert list(curve(tmp_path / "run", "eval/loss")) == [5]
    assert result_of(tmp_path / "run")["status"] == "finished"


def test_a_loss_that_is_no_number_stops_and_the_last_good_checkpoint_stays(
    tiny: tuple[str, ...], tmp_path: Path
) -> None:
    wild = ("stage.lr=1e18", "stage.warmup_steps=0", "stage.schedule=constant", "precision=fp32")
    line = error_line(run_train(tmp_path, *tiny, *wild, "stage.max_steps=20", "checkpoint.every=1", "run_dir=run"))
    found = re.search(r"loss is \S+ at step (\d+).*the last good checkpoint is run/checkpoints/step-(\d+)", line)
    assert found, line
    step, kept = map(int, found.groups())
    assert kept == step - 1
    assert folders.checkpoint_step(folders.list_checkpoints(tmp_path / "run")[-1]) == kept
    assert "try a lower stage.lr (now 1e+18)" in line
    assert step not in curve(tmp_path / "run")


def test_a_missing_tokenizer_names_the_command_that_makes_it(tiny: tuple[str, ...], tmp_path: Path) -> None:
    stories = [json.dumps({"story": f"Once upon a time there were {n} small birds."}) for n in range(900)]
    (tmp_path / "my birds.jsonl").write_text("\n".join(stories))
    data = ("data=text", "data.path='my birds.jsonl'", "data.text_column=story")
    wanted = (*tiny, *data, "tokenizer.path=null", "tokenizer.vocab_size=300")
    command = (*wanted, "stage.max_steps=2", "experiment_name=birds")
    line = error_line(run_train(tmp_path, *command))
    found = re.search(r"python -m tinychat\.train (stage=tokenizer [^;]*);", line)
    assert found, line
    done = run_train(tmp_path, *shlex.split(found.group(1)))
    assert done.returncode == 0, done.stderr[-3000:]
    done = run_train(tmp_path, *command)
    assert done.returncode == 0, done.stderr[-3000:]
