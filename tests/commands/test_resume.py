"""A run that is killed or stopped, however often, ends in the very weights and curves of one that was not."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import (
    TORCHRUN,
    curve,
    error_line,
    result_of,
    rows,
    run_train,
    start_train,
    wait_until,
)

STEPS, EVERY = 36, 9
LOOP = (
    f"stage.max_steps={STEPS}",
    f"checkpoint.every={EVERY}",
    "stage.batch_size=8",
    "stage.eval_every=5",
    "stage.log_every=1",
    "stage.eval_tokens=2000",
    "tracker=mlflow",
    "tracker.system_metrics=false",
    "resume=auto",
)
MEASURED = ("train/loss", "train/grad_norm", "schedule/lr", "data/tokens", "data/epoch", "eval/loss", "eval/tokens")


class Chain:
    """One command started again and again in a run folder."""

    def __init__(self, folder: Path, *overrides: str):
        self.folder, self.overrides = folder, overrides
        self.run_dir = folder / "run"

    def interrupt(self, step: int, number: signal.Signals, group: bool) -> int:
        """Start, send a signal once `step` has been logged, return the exit status."""
        process = start_train(self.folder, *self.overrides, "run_dir=run")
        began = time.time()  # rows of an earlier start lie there until this one has dropped them
        wait_until(lambda: any(row["step"] >= step and row["time"] > began for row in rows(self.run_dir)), process)
        (os.killpg if group else os.kill)(process.pid, number)
        status = process.wait(60)
        last = max(row["step"] for row in rows(self.run_dir))
        print(f"{number.name} asked for at step {step}, came by step {last}: exit status {status}")
        assert last < STEPS, "the signal came too late to mean anything"
        return status

    def said(self) -> str:
        return (self.folder / "stderr.txt").read_text()

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.run_dir / "checkpoints").glob("step-*"))

    def mlflow(self) -> tuple[str, dict[str, list[tuple[int, float]]]]:
        """Status and curves of the one MLflow run that this folder has."""
        with closing(sqlite3.connect(self.folder / "outputs" / "mlflow.db")) as store:
            found = store.execute(
                "select r.run_uuid, r.status from runs r join tags t on t.run_uuid = r.run_uuid "
                "where t.key = 'run_dir' and t.value = ?",
                (str(self.run_dir),),
            ).fetchall()
            assert len(found) == 1, "a resumed run stays one run"
            run_id, status = found[0]
            points = store.execute("select key, step, value from metrics where run_uuid = ? order by step", (run_id,))
            curves: dict[str, list[tuple[int, float]]] = {}
            for key, step, value in points:
                curves.setdefault(key, []).append((step, value))
        return status, curves


def same_end(chain: Chain, straight: Path) -> None:
    """Weights, curves, MLflow's curves and lineage are those of the run that was never interrupted."""
    assert result_of(chain.run_dir)["status"] == "finished"
    last = f"checkpoints/step-{STEPS:06d}"
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (chain.run_dir / last / name).read_bytes() == (straight / last / name).read_bytes(), name
    for name in MEASURED:
        assert curve(chain.run_dir, name) == curve(straight, name), name
    assert list(curve(chain.run_dir)) == list(range(1, STEPS + 1))
    status, curves = chain.mlflow()
    assert status == "FINISHED"
    for name in MEASURED:
        assert curves[name] == list(curve(straight, name).items()), name


def stopped(chain: Chain) -> None:
    """It said so wherever one looks, and in few words."""
    assert result_of(chain.run_dir)["status"] == "stopped"
    assert chain.mlflow()[0] == "KILLED"
    assert "Traceback" not in chain.said()


SHARDED = pytest.param("llama, zero2 on two ranks", marks=pytest.mark.slow)


@pytest.mark.parametrize("shape", ["gpt2 with dropout, one process", SHARDED])
@pytest.mark.parametrize("often", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["once", "again and again"])
def test_killed_or_stopped_it_ends_bit_identically(
    shape: str, often: bool, tiny: tuple[str, ...], tiny_gpt2: tuple[str, ...], tmp_path: Path
) -> None:
    inline = "one process" in shape
    model = (*tiny_gpt2, "model.dropout=0.1") if inline else (*tiny, "ds=zero2", *TORCHRUN)
    chain = Chain(tmp_path, *model, *LOOP)
    straight = tmp_path / "straight"
    done = run_train(tmp_path, *chain.overrides, f"run_dir={straight}")
    assert done.returncode == 0, done.stderr[-3000:]
    choose = random.SystemRandom().randint

    if inline and often:
        assert chain.interrupt(choose(1, EVERY - 3), signal.SIGKILL, group=True) == -signal.SIGKILL
        assert chain.checkpoints() == []

    if often:
        # Only the command's own process gets it, as from `kill PID` or a scheduler.
        step = choose(EVERY + 1, 2 * EVERY - 3)
        assert chain.interrupt(step, signal.SIGTERM, group=False) == 143, chain.said()
        stopped(chain)
        saved = int(chain.checkpoints()[-1].removeprefix("step-"))
        assert saved >= step
        assert max(curve(chain.run_dir)) == saved

    assert chain.interrupt(choose(2 * EVERY + 1, 3 * EVERY - 3), signal.SIGKILL, group=True) == -signal.SIGKILL
    assert not (chain.run_dir / "result.json").exists()

    if often:
        # The whole group gets it, as from Ctrl-C on a terminal.
        assert chain.interrupt(choose(3 * EVERY + 1, STEPS - 5), signal.SIGINT, group=True) == 130, chain.said()
        stopped(chain)

    done = run_train(tmp_path, *chain.overrides, "run_dir=run")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resumed from" in done.stderr
    same_end(chain, straight)


def test_resume_finds_refuses_or_begins_anew(tiny: tuple[str, ...], tmp_path: Path) -> None:
    command = (*tiny, "stage.max_steps=3", "stage.samples=[]", "stage.lr=0.003")
    assert run_train(tmp_path, *command, "resume=auto").returncode == 0
    (first,) = (tmp_path / "outputs" / "tinychat").glob("*/*/")
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}

    done = run_train(tmp_path, *command, "resume=auto")
    assert done.returncode == 0
    assert any(line.startswith("finished already: ") for line in done.stderr.splitlines())
    assert str(first.relative_to(tmp_path)) in done.stderr
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == before

    refused = error_line(run_train(tmp_path, *command[:-1], f"resume={first}", "stage.lr=0.1", "seed=2"))
    assert "stage.lr=0.003 there, 0.1 now" in refused
    assert "seed=1 there, 2 now" in refused
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == before

    # Another configuration is another run. What does not change what is computed may differ.
    done = run_train(tmp_path, *command, "resume=auto", "seed=2", "checkpoint.every=1")
    assert done.returncode == 0
    assert len(list((tmp_path / "outputs" / "tinychat").glob("*/*/"))) == 2
    done = run_train(tmp_path, *command, "resume=auto", "seed=2", "checkpoint.keep_last=5", "run_name=renamed")
    assert "finished already: " in done.stderr


@pytest.mark.slow
def test_zero_partitions_are_not_resumed_by_another_number_of_ranks(tiny: tuple[str, ...], tmp_path: Path) -> None:
    command = (*tiny, "ds=zero2", "stage.max_steps=200", "checkpoint.every=1", "run_dir=run", "resume=auto")
    chain = Chain(tmp_path, *command)
    process = start_train(tmp_path, *command)
    wait_until(chain.checkpoints, process)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) == 143, chain.said()
    saved = chain.checkpoints()
    refused = error_line(run_train(tmp_path, *command, *TORCHRUN))
    assert "was saved by 1 DeepSpeed ranks, it cannot be resumed by 2" in refused
    assert "launch.nproc=1" in refused
    assert chain.checkpoints() == saved


def test_a_signal_before_there_is_anything_to_save_ends_at_once(tiny: tuple[str, ...], tmp_path: Path) -> None:
    process = start_train(tmp_path, *tiny, "data.max_docs=5000000", "run_dir=run")
    wait_until(lambda: "tokenizing tinyworld-train" in (tmp_path / "stderr.txt").read_text(), process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert result_of(tmp_path / "run")["status"] == "stopped"
    assert "Traceback" not in (tmp_path / "stderr.txt").read_text()
    assert not list((tmp_path / "outputs" / "cache" / "tokens").glob("*.tmp"))


def test_other_data_than_a_run_began_with(tiny: tuple[str, ...], warm: Any, tmp_path: Path) -> None:
    """A file that was exchanged between two starts: refused, or gone on with and written down."""
    data = tmp_path / "texts.jsonl"
    small = ("stage=pretrain", "data=text", f"data.path={data}", *tiny, "stage.max_steps=6", "stage.warmup_steps=1")
    command = (*small, "checkpoint.every=2", "resume=auto", "checkpoint.keep_last=9")

    def write(word: str) -> None:
        data.write_text("".join(json.dumps({"text": f"The {word} {i} sat on the mat."}) + "\n" for i in range(60)))

    write("cat")
    first = warm.train(tmp_path, *command, "run_dir=run")
    assert first.returncode == 0, first.stderr
    (tmp_path / "run" / "result.json").unlink()  # as if it had been killed after step 4
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000006")
    write("dog")
    refused = warm.train(tmp_path, *command, "run_dir=run")
    assert refused.returncode == 1
    assert "step-000004 learnt from other train and validation data" in error_line(refused)
    assert "resume_data=changed" in error_line(refused)
    before = json.loads((tmp_path / "run" / "checkpoints" / "step-000004" / "lineage.json").read_text())
    told = warm.train(tmp_path, *command, "run_dir=run", "resume_data=changed")
    assert told.returncode == 0, told.stderr
    assert "up to step 4 this run learnt from other data" in told.stderr
    for lineage in ("run/lineage.json", "run/checkpoints/step-000006/lineage.json"):
        after = json.loads((tmp_path / lineage).read_text())
        assert after["earlier_data"] == [{"until_step": 4, "data": before["data"]}]
        assert after["data"]["train"]["fingerprint"] != before["data"]["train"]["fingerprint"]
    same = warm.train(tmp_path, *command, "run_dir=run")
    assert "finished already: run (resume=never" in same.stderr
    write("cow")
    other = warm.train(tmp_path, *command, "run_dir=run")
    assert "finished already: run, with other train and validation data than there are now" in other.stderr


def test_a_resume_that_begins_anew_says_why(tiny: tuple[str, ...], warm: Any, tmp_path: Path) -> None:
    command = ("stage=pretrain", *tiny, "stage.max_steps=2", "stage.warmup_steps=1", "resume=auto")
    first = warm.train(tmp_path, *command, "stage.samples=[]")
    assert first.returncode == 0, first.stderr
    assert "resume=auto: experiment_name=" in first.stderr
    assert "has no unfinished run of stage=pretrain, so one begins" in first.stderr
    (run,) = (tmp_path / "outputs").glob("*/*/*/result.json")
    run.write_text(run.read_text().replace("finished", "failed"))
    other = warm.train(tmp_path, *command, "stage.samples=[]", "stage.lr=0.002")
    assert other.returncode == 0, other.stderr
    assert f"a new run begins, as {run.parent.relative_to(tmp_path)}, the newest unfinished one" in other.stderr
    assert "has other settings: stage.lr=" in other.stderr
    assert "there, 0.002 now" in other.stderr
