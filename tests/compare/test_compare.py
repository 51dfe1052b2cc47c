"""python -m tinychat.compare: runs found, grouped, sorted, tested and reported, from folders made here."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.conftest import environment_of
from tests.report.test_report import Page
from tinychat.compare import __main__ as compare
from tinychat.compare import groups
from tinychat.compare.groups import Stat, differing, short_names, short_value
from tinychat.compare.report import band_of, groups_table, with_spread
from tinychat.compare.runs import Run, find
from tinychat.errors import UserError
from tinychat.evaluation.statistics import mcnemar, paired
from tinychat.runtime.run_files import Unreadable
from tinychat.tracking.base import MetricsLog
from tinychat.tracking.vocabulary import LOWER_IS_BETTER, METRICS


def make_run(
    outputs: Path,
    number: int,
    lr: float = 0.001,
    seed: int = 1,
    loss: float | None = 2.0,
    status: str | None = "finished",
    experiment: str = "exp",
    stage: str = "pretrain",
    trial: dict[str, Any] | None = None,
    steps: Sequence[int] = (1, 2, 3),
    **metrics: float,
) -> Path:
    """A run folder as training leaves it; its loss falls by 1 a step to `loss`."""
    folder = outputs / experiment / f"{stage}-mini-text" / f"2026-01-01_00-00-{number:02d}"
    folder.mkdir(parents=True)
    config = {
        "experiment_name": experiment,
        "run_name": None,
        "run_dir": str(folder),
        "seed": seed,
        "init_from": "auto",
        "model": {"name": "mini", "n_layer": 3},
        "stage": {"name": stage, "lr": lr, "epochs": 1},
        "paths": {"outputs": str(outputs)},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "command.txt").write_text(f"python -m tinychat.train stage.lr={lr} seed={seed}\n")
    if loss is not None:
        log = MetricsLog(folder / "metrics.jsonl")
        for step in steps:
            log.append(step, {"eval/loss": loss + steps[-1] - step, "train/loss": loss})
        metrics = {"eval/loss": loss, **{name.replace("__", "/"): value for name, value in metrics.items()}}
    if status is not None:
        error = "the loss is not finite\nTraceback" if status == "failed" else None
        result = {"status": status, "objective": loss, "objective_name": "eval/loss", "minutes": 2.0, "error": error}
        (folder / "result.json").write_text(json.dumps({**result, "metrics": metrics}))
    if trial:
        (folder / "trial.json").write_text(json.dumps(trial))
    return folder


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    """Three learning rates; the first two with three seeds; of the third one seed finished and one failed."""
    outputs = tmp_path / "outputs"
    values = {0.001: (2.0, 2.1, 2.3), 0.01: (1.0, 1.2, 1.3)}
    number = 0
    for lr, losses in values.items():
        for seed, loss in enumerate(losses, 1):
            make_run(outputs, number := number + 1, lr, seed, loss)
    make_run(outputs, 7, 0.1, 1, 1.5)
    make_run(outputs, 8, 0.1, 2, None, "failed")
    return outputs


def table_of(found: groups.Comparison) -> list[dict[str, str]]:
    table = groups_table(found, found.groups, 3)
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def test_groups_are_settings_sorted_by_the_objective(seeds: Path) -> None:
    found = groups.compare(find(["exp"], seeds))
    assert (found.metric, found.goal, found.keys) == ("eval/loss", "minimize", ["stage.lr"])
    rows = table_of(found)
    assert [row["lr"] for row in rows] == ["0.01", "0.1", "0.001"]
    # by hand: mean 3.5 / 3, sample variance ((1/6)^2 + (1/30)^2 + (2/15)^2) / 2
    std = math.sqrt((1 / 36 + 1 / 900 + 4 / 225) / 2)
    stat = found.groups[0].stat("eval/loss")
    assert stat is not None and (stat.mean, stat.std, stat.n) == pytest.approx((3.5 / 3, std, 3))
    assert rows[0]["loss"] == "1.17 ± 0.15" and rows[0]["seeds"] == "3"
    assert rows[1]["loss"] == "1.5" and rows[1]["status"] == "1 finished, 1 failed"
    assert groups.compare(find(["exp"], seeds), goal="maximize").groups[0].settings == {"stage.lr": "0.001"}
    by_lr = groups.compare(find(["exp"], seeds), sort="lr")
    assert [row["lr"] for row in table_of(by_lr)] == ["0.001", "0.01", "0.1"]
    assert by_lr.best is not None and by_lr.best.settings == {"stage.lr": "0.01"}


def test_the_best_is_tested_against_groups_with_its_seeds(seeds: Path) -> None:
    found = groups.compare(find(["exp"], seeds))
    third, second = groups.seed_pairs(found)
    assert third.result is None and third.seeds == ["1"]
    assert second.result is not None and second.seeds == ["1", "2", "3"]
    # differences -1, -0.9, -1: mean -29/30, sd sqrt(1/300), t(2) = mean / (sd / sqrt 3) = -29
    assert second.result.difference == pytest.approx(-29 / 30)
    assert second.result.p_t == pytest.approx(0.0011871, rel=1e-3)
    assert second.result.p_flip == pytest.approx(2 / 8)  # one sign: the least that 2^3 flips allow
    half = 4.30265 / 30  # the 97.5 % quantile of t(2) times the standard error
    assert (second.result.low, second.result.high) == pytest.approx((-29 / 30 - half, -29 / 30 + half), abs=1e-5)


def test_paired_tests_by_enumeration() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=7), rng.normal(size=7)
    gap = a - b
    signs = np.array(np.meshgrid(*[[1, -1]] * 7)).reshape(7, -1)
    means = np.abs(signs.T @ gap) / 7
    assert paired(a, b).p_flip == pytest.approx(np.mean(means >= abs(gap.mean()) - 1e-12))
    same = paired([1.0, 2.0], [1.0, 2.0])
    assert same.difference == 0 and same.p_flip == 1 and math.isnan(same.p_t)
    shifted = paired([1.5, 2.5, 3.5], [1.0, 2.0, 3.0])  # no spread: the t-test is undefined, the flips are not
    assert math.isnan(shifted.p_t) and shifted.p_flip == 0.25
    with pytest.raises(ValueError, match="two pairs"):
        paired([1.0], [2.0])


def test_mcnemar_by_hand() -> None:
    # 6 items only the first meets, 1 only the second: 2 * (C(7,0) + C(7,1)) / 2^7
    first = [True] * 6 + [False] + [True] * 3 + [False] * 2
    second = [False] * 6 + [True] + [True] * 3 + [False] * 2
    result = mcnemar(first, second)
    assert (result.n, result.first_only, result.second_only) == (12, 6, 1)
    assert result.p == pytest.approx(2 * 8 / 128) and result.difference == pytest.approx(5 / 12)
    assert mcnemar([True, False], [True, False]).p == 1.0


def test_items_are_paired_by_what_was_asked(tmp_path: Path) -> None:
    met = {1: "1110", 2: "1001"}
    for number, verdicts in met.items():
        folder = make_run(tmp_path, number, number / 100, 1, float(number), eval__instruction_accuracy=0.5)
        asked = ["one", "two", "two", "three"]  # the same question twice is two items
        rows = [["f", text, "r", "e", float(score)] for text, score in zip(asked, verdicts, strict=True)]
        safety = [["ask", "r", "c", "no", True, number == 2], ["harm", "r", "c", "yes", number == 1, True]]
        if number == 2:
            safety, rows = safety[::-1], [rows[3], *rows[:3]]
        (folder / "tables").mkdir()
        content: dict[str, Any] = {"title": "", "columns": ["family", "prompt", "reply", "expected", "score"]}
        (folder / "tables" / "predictions.json").write_text(json.dumps({**content, "rows": rows}))
        content["columns"] = ["prompt", "reply", "category", "harmful", "safe", "refused"]
        (folder / "tables" / "safety.json").write_text(json.dumps({**content, "rows": safety}))
    found = groups.compare(find(["exp"], tmp_path))
    told = {p.what: (p.result.n, p.result.first_only, p.result.second_only) for p in groups.item_pairs(found)}
    assert told == {"instructions met": (4, 2, 1), "safe replies": (2, 1, 0), "benign requests answered": (1, 1, 0)}


def test_a_study_its_folder_its_numbers_and_pruned_trials(tmp_path: Path) -> None:
    sweep = tmp_path / "sweeps" / "bayes"
    sweep.mkdir(parents=True)
    trial = {"study": "bayes", "objective": ["eval/reward", "eval/loss"], "directions": ["maximize", "minimize"],
             "sweep_dir": str(sweep)}  # fmt: skip
    for number in range(3):
        status = "pruned" if number == 1 else "finished"
        own = {**trial, "number": number, "values": {"stage.lr": number / 10}}
        make_run(tmp_path, number, number / 10, loss=2.0, status=status, trial=own, eval__reward=number + 1.0)
    make_run(tmp_path, 9, 5.0, loss=0.1)  # of no study
    for name in ("bayes", str(sweep), "sweeps/bayes"):
        found = groups.compare(find([name], tmp_path))
        assert (found.metric, found.goal, found.studies) == ("eval/reward", "maximize", ["bayes"])
        rows = table_of(found)
        assert [row["trial"] for row in rows] == ["2", "0", "1"]
        assert (rows[2]["reward"], rows[2]["status"]) == ("-", "pruned")
        assert rows[0]["loss"] == "2"  # the other objective stands beside
    with pytest.raises(UserError, match=r"did you mean bayes\?"):
        find(["bays"], tmp_path)


def test_runs_by_folder_name_and_mlflow_id_each_once(seeds: Path) -> None:
    first = seeds / "exp" / "pretrain-mini-text" / "2026-01-01_00-00-01"
    (first / "tracking.json").write_text(json.dumps({"run_id": "a" * 32}))
    copy = seeds / "mlartifacts" / "1" / "artifacts"
    copy.mkdir(parents=True)
    (copy / "config.yaml").write_text((first / "config.yaml").read_text())
    names = ["a" * 32, f"runs:/{'a' * 32}", str(first), "exp/pretrain-mini-text/2026-01-01_00-00-01"]
    assert [run.folder.name for run in find(names, seeds)] == [first.name]
    assert len(find(["exp/pretrain-mini-text"], seeds)) == len(find([str(seeds / "exp")], seeds)) == 8
    with pytest.raises(UserError, match="no MLflow store"):
        find(["b" * 32], seeds)
    with pytest.raises(UserError, match=r"did you mean exp\? .* has experiments exp$"):
        find(["expp"], seeds)
    with pytest.raises(UserError, match="nothing of that name, and no folder"):
        find(["exp"], seeds / "nowhere")


def test_an_experiment_comes_before_a_folder_of_its_name(
    seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    (here / "exp" / "conf").mkdir(parents=True)
    (here / "exp" / "conf" / "config.yaml").write_text("defaults: []\n")
    monkeypatch.chdir(here)
    assert len(find(["exp"], seeds)) == 8
    with pytest.raises(Unreadable, match="names no stage"):
        find(["./exp"], seeds)


def test_settings_that_follow_the_seed_or_a_name_make_no_group(tmp_path: Path) -> None:
    def run(seed: int, model: str, parent: str, lr: str = "1") -> Run:
        layers = {"mini": "3", "large": "9"}[model]
        settings = {"seed": str(seed), "model.name": model, "model.n_layer": layers, "init_from": parent, "lr": lr}
        return Run(tmp_path, settings | {"paths.outputs": f"{seed}", "stage.name": "sft"}, {}, {})

    own_parents = [run(1, "mini", "a"), run(2, "mini", "b"), run(1, "large", "a"), run(2, "large", "b")]
    assert differing(own_parents) == ["model.name"]
    assert differing([*own_parents, run(1, "mini", "c")]) == ["init_from", "model.name"]
    assert differing(own_parents[:1]) == []
    assert short_names(["stage.lr", "optim.lr", "model.name", "a.b.path"]) == {
        "stage.lr": "stage.lr", "optim.lr": "optim.lr", "model.name": "model", "a.b.path": "b"
    }  # fmt: skip
    assert short_value("/home/me/outputs/exp/sft-mini/2026-01-01/checkpoints/step-000100") == "sft-mini/2026-01-01"
    assert (short_value("0.000300001"), short_value("64"), short_value("1e-05")) == ("0.0003", "64", "1e-05")


def test_several_stages_need_a_choice(seeds: Path) -> None:
    make_run(seeds, 20, stage="sft", loss=1.0, eval__rouge_l=0.4)
    with pytest.raises(
        UserError,
        match=r"several stages \(8 pretrain, 1 sft\); say which with --stage, or .* eval/loss$",
    ):
        groups.compare(find(["exp"], seeds))
    assert len(groups.compare(find(["exp"], seeds), stage="sft").groups) == 1
    shared = groups.compare(find(["exp"], seeds), ["eval/loss"])
    assert shared.keys[0] == "stage.name" and "several stages" in shared.notes[0]
    only = groups.compare(find(["exp"], seeds), ["rouge_l"])
    assert len(only.groups) == 1 and only.notes == ["7 finished runs without eval/rouge_l are left out (7 pretrain)."]
    with pytest.raises(UserError, match="none of the 9 runs; there are 8 pretrain, 1 sft"):
        groups.compare(find(["exp"], seeds), stage="ppo")


def test_bad_input_is_one_line(seeds: Path, capsys: Any) -> None:
    def said(*arguments: str) -> str:
        with pytest.raises(UserError) as caught:
            compare.run([*arguments, "--outputs", str(seeds)])
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "did you mean eval/loss? there are eval/loss" in said("exp", "--metric", "eval/los")
    assert "no run has such a setting; did you mean stage.lr?" in said("exp", "--by", "stage.lrr")
    assert "neither a metric nor one of stage.lr, minutes" in said("exp", "--sort", "nothing")
    assert "--top 0" in said("exp", "--top", "0")
    failed = str(seeds / "exp" / "pretrain-mini-text" / "2026-01-01_00-00-08")
    assert said(failed).startswith("none of the 1 runs has finished (1 failed); pretrain-mini-text/2026")
    assert "the loss is not finite" in said(failed)
    (Path(failed) / "config.yaml").write_text("a: [")
    assert "config.yaml: cut short or no YAML" in said(failed)
    assert "see python -m tinychat.compare --help" in said("exp", "--wrong")
    assert capsys.readouterr().out == ""


def test_terminal_and_report(seeds: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    compare.run(["exp", "--outputs", str(seeds)])
    out = capsys.readouterr().out
    assert "8 runs of 3 settings by loss" in out and "1.17 ± 0.15" in out
    assert "less is better" in " ".join(out.split())  # wherever the line is broken
    assert "failed: pretrain-mini-text/2026-01-01_00-00-08: the loss is not finite" in out
    assert "cannot be below 0.25" in out and "1 other groups do not share two seeds" in out
    folder = seeds / "compare" / "exp"
    assert str(folder / "report.html") in out
    page = Page((folder / "report.html").read_text())
    assert (
        "script" not in page.tags
        and page.addresses
        and all(a.startswith(("data:image/png", "./")) for a in page.addresses)
    )
    assert "1.17 ± 0.15" in page.words and "python -m tinychat.train stage.lr=0.01 seed=1" in page.words
    text = (folder / "report.md").read_text()
    assert "| 1 | 0.01 | 3 | 1.17 ± 0.15 | 2.00 | finished |" in text
    assert "![eval/loss](eval-loss.png)" in text
    assert (folder / "eval-loss.png").read_bytes()[:4] == b"\x89PNG"


def test_bands_are_mean_lowest_and_highest_where_all_runs_are() -> None:
    band = band_of([[(0, 0.0), (2, 2.0), (4, 4.0)], [(1, 3.0), (2, math.nan), (3, 5.0)], [(2, 1.0)]])
    assert band is not None and band.n == 2  # a single point is no curve
    assert band.steps.tolist() == [1, 2, 3]
    assert band.mean.tolist() == [2.0, 3.0, 4.0]  # (1 + 3) / 2, (2 + 4) / 2, (3 + 5) / 2
    assert band.low.tolist() == [1.0, 2.0, 3.0] and band.high.tolist() == [3.0, 4.0, 5.0]
    assert band_of([[(0, 1.0), (1, 1.0)], [(2, 1.0), (3, 1.0)]]) is None


def test_numbers_have_the_digits_of_their_spread() -> None:
    told = [with_spread(Stat(*one)) for one in ((0.512345, 0.00456, 3), (1234.5, 78.9, 2), (2.0, math.nan, 1))]
    assert told == ["0.5123 ± 0.0046", "1,234 ± 79", "2"]
    assert with_spread(Stat(math.nan, math.nan, 2)) == "nan" and with_spread(None) == "-"


def test_diverged_runs_come_last_of_the_finished(tmp_path: Path) -> None:
    for number, loss in enumerate((math.nan, 1.0, 2.0)):
        make_run(tmp_path, number, lr=number / 10, loss=loss)
    make_run(tmp_path, 5, lr=5.0, loss=0.5, status=None)
    found = groups.compare(find(["exp"], tmp_path))
    assert [row["status"] for row in table_of(found)] == ["finished"] * 3 + ["unfinished"]
    assert [row["loss"] for row in table_of(found)] == ["1", "2", "nan", "-"]
    assert found.best is found.groups[0]


def test_every_metric_with_a_direction_exists() -> None:
    assert METRICS.keys() >= LOWER_IS_BETTER


def test_help_and_a_wrong_option_answer_at_once() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "tinychat.compare", "--help"]
    start = time.monotonic()
    done = subprocess.run(command, env=environment_of(), capture_output=True, text=True, check=True)
    assert "outputs/sweeps/ppo_bayes" in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "mlflow", "numpy", "scipy", "matplotlib", "hydra"}
    assert time.monotonic() - start < 10  # a second at rest
