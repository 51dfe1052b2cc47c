"""python -m tinychat.pipeline through the real command: checkpoints are handed on, what is done is skipped, what was
killed goes on, what has changed runs anew, and MLflow shows the stages below one run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import (
    STARTED,
    TINY_DATA,
    TINY_MODEL,
    curve,
    environment_of,
    error_line,
    result_of,
    rows,
    wait_until,
)
from tests.warm import WarmPython
from tinychat.runs import parents

SETTINGS = (
    *TINY_MODEL[:-1],
    "model.context_length=256",
    *TINY_DATA,
    "precision=fp32",
    "data.max_rows=150",
    "data.max_val_rows=24",
    "stage.batch_size=4",
    "stage.micro_batch_size=2",
    "stage.max_steps=6",
    "stage.lr=0.01",
    "stage.warmup_steps=2",
    "stage.log_every=1",
    "stage.eval_every=0",
    "stage.sample_tokens=4",
    "stage.generate_tokens=6",
)
RECIPE = f"""
name: small
common: [experiment_name=small, {", ".join(SETTINGS)}]
stages:
  tokenizer: [tokenizer.vocab_size=400, tokenizer.train_mb=0.1]
  pretrain: [checkpoint.every=2]
  sft: []
gates:
  perplexity: pretrain eval/ppl <= 100000
  instruction accuracy: sft eval/instruction_accuracy >= 0.99
  loss while tuning: sft - sft:start eval/response_loss <= 0
samples: ["Count these words: white, tailor."]
sample_tokens: 6
"""
STAGES = ("tokenizer", "pretrain", "sft")
QUIET = "tracker=none"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "small.yaml").write_text(RECIPE)
    return tmp_path


def pipeline(warm: WarmPython, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return warm.run("tinychat.pipeline", folder, "pipeline=small.yaml", *words)


def stage_runs(folder: Path, stage: str) -> list[Path]:
    """The run folders of a stage, oldest first."""
    return sorted(path.parent for path in (folder / "outputs/small").glob(f"{stage}-*/*/config.yaml"))


def reports(folder: Path) -> list[Path]:
    return sorted((folder / "outputs/small/pipeline").iterdir())


def given(run: Path) -> dict[str, str]:
    return {key: path for key, path in (parents.read(run) or {}).items() if path}


@pytest.mark.slow
def test_it_hands_on_skips_and_runs_anew_what_has_changed(warm: WarmPython, folder: Path) -> None:
    done = pipeline(warm, folder, QUIET)
    assert done.returncode == 0, done.stderr[-3000:]
    (tokenizer,), (base,), (sft,) = (stage_runs(folder, stage) for stage in STAGES)
    assert given(tokenizer) == {}
    assert Path(given(base)["tokenizer"]) == (tokenizer / "tokenizer").resolve()
    assert Path(given(sft)["init_from"]) == (base / "checkpoints/step-000006").resolve()
    for run in (base, sft):
        lineage = json.loads((run / "lineage.json").read_text())
        assert str(next(iter(given(run).values()))) in json.dumps(lineage)

    (report,) = reports(folder)
    verdicts = {row["gate"]: row["verdict"] for row in json.loads((report / "gates.json").read_text())}
    assert verdicts == {"perplexity": "pass", "instruction accuracy": "fail", "loss while tuning": "pass"}
    assert "FAILED: 1 of 3 gates: instruction accuracy" in done.stderr
    page = (report / "report.md").read_text()
    for text in ("## Gates", "**fail**", "| pretrained | SFT |", "Count these words", "curves-sft.png", "init\\_from"):
        assert text in page, text
    assert (report / "report.html").read_text().count("data:image/png;base64,") == 3, "two stages, and the whole recipe"
    # The command that the report gives is the one that ran.
    command = re.search(r"python -m (tinychat.train stage=sft .*)", page)
    assert command and command.group(1) in (sft / "command.txt").read_text()

    again = pipeline(warm, folder, QUIET, "strict=true")
    assert again.returncode == 1, "the failed gate"
    assert [f"{stage}: finished already" in again.stderr for stage in STAGES] == [True] * 3
    assert reports(folder) == [report]

    changed = pipeline(warm, folder, QUIET, "pretrain:stage.lr=0.002")
    assert changed.returncode == 0, changed.stderr[-3000:]
    assert [len(stage_runs(folder, stage)) for stage in STAGES] == [1, 2, 2], "that stage, and what is built on it"
    assert str(stage_runs(folder, "pretrain")[1]) in given(stage_runs(folder, "sft")[1])["init_from"]

    other_seed = pipeline(
        warm, folder, QUIET, "seed=2", "stages=pretrain,sft", "pretrain:tokenizer.path=" + str(tokenizer)
    )
    assert other_seed.returncode == 0, other_seed.stderr[-3000:]
    assert str(stage_runs(folder, "pretrain")[2]) in given(stage_runs(folder, "sft")[2])["init_from"]
    first_again = pipeline(warm, folder, QUIET)
    assert first_again.returncode == 0
    assert [len(stage_runs(folder, stage)) for stage in STAGES] == [1, 3, 3], "neither seed took the other's"

    alone = pipeline(warm, folder, QUIET, "stages=sft", "sft:stage.max_steps=3")
    assert alone.returncode == 0, alone.stderr[-3000:]
    assert given(stage_runs(folder, "sft")[3]) == given(sft), "the earlier run of the stage that was left out"


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on(warm: WarmPython, folder: Path) -> None:
    words = (QUIET, "stages=tokenizer,pretrain", "pretrain:stage.max_steps=40")
    with open(folder / "stderr.txt", "w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tinychat.pipeline", "pipeline=small.yaml", *words],
            cwd=folder,
            env=environment_of(),
            stderr=file,
            text=True,
            start_new_session=True,
        )
    STARTED.append(process)
    wait_until(lambda: any(row["step"] > 4 for run in stage_runs(folder, "pretrain") for row in rows(run)), process)
    (base,) = stage_runs(folder, "pretrain")
    child = re.search(r"\d+", (base / ".lock").read_text())
    assert child
    os.kill(int(child.group()), signal.SIGKILL)
    assert process.wait(120) == 1
    said = (folder / "stderr.txt").read_text().splitlines()
    assert said[-1].startswith("error: stage pretrain was killed by SIGKILL")
    assert not (base / "result.json").exists()

    done = pipeline(warm, folder, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "tokenizer: finished already" in done.stderr
    assert [len(stage_runs(folder, stage)) for stage in STAGES] == [1, 1, 0], "the same run went on"
    assert list(curve(base)) == list(range(1, 41))
    assert result_of(base)["status"] == "finished"
    assert len((base / "command.txt").read_text().splitlines()) == 2


@pytest.mark.slow
def test_mlflow_shows_the_stages_below_one_run(warm: WarmPython, folder: Path) -> None:
    done = pipeline(warm, folder, "stages=tokenizer,pretrain", "tracker.system_metrics=false")
    assert done.returncode == 0, done.stderr[-3000:]
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder / 'outputs/mlflow.db'}")
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    found = {run.data.tags["stage"]: run for run in client.search_runs([experiment.experiment_id])}
    assert set(found) == {"pipeline", "tokenizer", "pretrain"}
    parent = found.pop("pipeline")
    assert "mlflow.parentRunId" not in parent.data.tags
    assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {parent.info.run_id}
    assert {run.info.status for run in (parent, *found.values())} == {"FINISHED"}
    assert parent.data.tags["gate.perplexity"] == "pass <= 100000"
    assert "eval/ppl" in parent.data.metrics
    assert not any(name.startswith("system/") for name in parent.data.metrics)
    assert "report.html" in {file.path for file in client.list_artifacts(parent.info.run_id)}


def test_what_is_wrong_stops_it_at_once(warm: WarmPython, folder: Path) -> None:
    for words, says in (
        (["sft:stage.max_stesp=3"], "stage sft"),
        (["stage.max_stesp=3"], "Did you mean stage.max_steps?"),
        (["stages=sft"], "stage sft needs stage pretrain"),
        (["stages=stf"], "Did you mean sft?"),
    ):
        assert says in error_line(pipeline(warm, folder, QUIET, *words))
        assert not (folder / "outputs").exists(), "nothing was written"
    (folder / "empty.txt").write_text("")
    failed = pipeline(warm, folder, QUIET, "pretrain:data=text", "pretrain:data.path=empty.txt")
    assert error_line(failed).startswith("error: stage pretrain: ")
    assert result_of(stage_runs(folder, "tokenizer")[0])["status"] == "finished", "what is done stays done"
    assert stage_runs(folder, "sft") == []
