"""The rules of a sweep, with trials that compute a formula (tests/sweeps/fake.py) in real processes."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from omegaconf import OmegaConf
from optuna.trial import TrialState

from tests.conftest import environment_of, error_line
from tests.sweeps.conftest import Fake
from tests.sweeps.fake import STEPS
from tinychat.compare import runs as compare_runs
from tinychat.runs import folders as runs


def states(study: optuna.Study) -> Counter[str]:
    return Counter(trial.state.name for trial in study.trials)


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def values_of(study: optuna.Study) -> list[tuple[Any, ...]]:
    complete = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
    return [tuple(sorted(trial.params.items())) for trial in complete]


def test_a_sweep_leaves_study_folders_table_report_and_command(fake: Fake) -> None:
    said = fake.sweep("sweep=ppo_bayes", "sweep.n_trials=4", "sweep.sampler_options={n_startup_trials: 2}", plots=True)
    study = fake.study("tinychat-ppo_bayes")
    assert states(study) == {"COMPLETE": 4}
    own = study.trials[0].params  # those of stage=ppo, or the nearest that are searched
    assert (own["stage.lr"], own["stage.beta"], own["stage.clip_low"]) == (5e-5, 0.05, 0.2)
    rows = fake.table("tinychat-ppo_bayes")
    assert [row["trial"] for row in rows] == [0, 1, 2, 3]
    best = max(rows, key=lambda row: row["eval/objective"])
    assert [row["best"] for row in rows].count("yes") == 1 and best["best"] == "yes"
    for row, trial in zip(rows, study.trials, strict=True):
        folder = Path(row["run folder"])
        told = json.loads((folder / "trial.json").read_text())
        assert told["study"] == "tinychat-ppo_bayes" and told["number"] == trial.number
        assert told["values"] == trial.params
        assert told["objective"] == ["eval/objective"] and told["directions"] == ["maximize"]
        result = json.loads((folder / "result.json").read_text())
        assert result["objective"] == pytest.approx(trial.value) == pytest.approx(row["eval/objective"])
        assert (folder / "checkpoints").exists() is (row["best"] == "yes")  # the others' are removed
    folder = fake.sweep_dir("tinychat-ppo_bayes")
    for name in ("report.md", "report.html", "plots.html", "trials.csv", "trials.html", "history.png", "parallel.png"):
        assert (folder / name).stat().st_size > 100, name
    assert "0 of 4 trials done" in said
    assert len([line for line in said.splitlines() if line.startswith("trial ") and "| complete |" in line]) == 4
    assert f"(trial {best['trial']}" in said
    # The command repeats the best trial: the same configuration, without a sweep.
    command = next(line for line in said.splitlines() if line.strip().startswith("python -m tinychat.train"))
    words = shlex.split(command)[3:]
    assert not [word for word in words if word.startswith("sweep")]
    again = subprocess.run(
        [sys.executable, "-m", "tinychat.train", *words, "--cfg", "job", "--resolve"],
        cwd=fake.folder, env=environment_of(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    one, other = OmegaConf.create(again.stdout), OmegaConf.load(Path(best["run folder"]) / "config.yaml")
    assert runs.config_identity(OmegaConf.to_container(one)) == runs.config_identity(OmegaConf.to_container(other))


def test_killed_after_some_trials_it_ends_with_all_and_none_twice(fake: Fake) -> None:
    words = ("sweep=ppo_random", "sweep.n_trials=5")
    command = fake.start(*words, FAKE_SECONDS="0.05")
    until(lambda: len(fake.runs("result.json")) >= 2 and len(fake.runs("metrics.jsonl")) > 2)
    command.kill(signal.SIGKILL)  # not waited for: it stays a zombie, as under a shell that is busy
    time.sleep(0.2)
    cut = [trial for trial in fake.study("tinychat-ppo_random").trials if trial.state is TrialState.RUNNING]
    assert len(cut) == 1
    said = fake.sweep(*words)
    study = fake.study("tinychat-ppo_random")
    assert states(study) == {"COMPLETE": 5, "FAIL": 1}
    assert "2 of 5 trials done" in said or "3 of 5 trials done" in said
    assert len(set(values_of(study))) == 5
    assert tuple(sorted(cut[0].params.items())) in values_of(study)  # tried again
    assert "5 of 5 trials done" in fake.sweep(*words)
    assert states(fake.study("tinychat-ppo_random")) == {"COMPLETE": 5, "FAIL": 1}
    # More of the same study: only what is new runs, with fresh values.
    fake.sweep("sweep=ppo_random", "sweep.n_trials=6")
    assert len(set(values_of(fake.study("tinychat-ppo_random")))) == 6
    assert command.wait().returncode == -signal.SIGKILL


@pytest.mark.slow
def test_ctrl_c_ends_it_resumable(fake: Fake) -> None:
    words = ("sweep=ppo_random", "sweep.n_trials=3")
    command = fake.start(*words, FAKE_SECONDS="0.3")
    until(lambda: fake.runs("metrics.jsonl"))
    command.kill(signal.SIGINT)
    done = command.wait()
    assert "interrupted" in done.stderr
    assert done.returncode == 130
    fake.sweep(*words)
    assert states(fake.study("tinychat-ppo_random")) == {"COMPLETE": 3, "FAIL": 1}


@pytest.mark.slow
def test_two_workers_end_with_as_many_trials_as_were_asked_for(fake: Fake) -> None:
    words = ("sweep=ppo_random", "sweep.n_trials=4")
    both = [fake.start(*words, FAKE_SECONDS="0.1") for _ in range(2)]
    assert [command.wait().returncode for command in both] == [0, 0]
    study = fake.study("tinychat-ppo_random")
    assert states(study) == {"COMPLETE": 4}
    assert len(set(values_of(study))) == 4
    shares = Counter(trial.user_attrs["worker"]["pid"] for trial in study.trials)
    assert set(shares) == {command.pid for command in both}  # both did some
    assert len(fake.table("tinychat-ppo_random")) == 4


@pytest.mark.slow
def test_a_grid_runs_each_combination_once_also_with_two_workers(fake: Fake) -> None:
    words = ("sweep=ppo_grid", "stage.lr=1e-4,1e-3")
    both = [fake.start(*words, FAKE_SECONDS="0.03") for _ in range(2)]
    assert [command.wait().returncode for command in both] == [0, 0]
    study = fake.study("tinychat-ppo_grid")
    assert states(study) == {"COMPLETE": 6}
    found = {(trial.params["stage.lr"], trial.params["stage.beta"]) for trial in study.trials}
    assert found == {(lr, beta) for lr in (1e-4, 1e-3) for beta in (0.02, 0.05, 0.1)}


@pytest.mark.slow
def test_a_trial_worse_than_the_median_is_pruned(fake: Fake) -> None:
    space = ("stage.lr=1e-3,1e-6", "stage.beta=0.01,0.02,0.03")
    options = ("+sweep.pruner_options.n_startup_trials=3", "+sweep.pruner_options.n_warmup_steps=30")
    fake.sweep("sweep=ppo_grid", *space, "sweep.pruner=median", *options, FAKE_SECONDS="0.1")
    rows = fake.table("tinychat-ppo_grid")
    assert [row["state"] for row in rows] == ["complete"] * 3 + ["pruned"] * 3
    study, folder = fake.study("tinychat-ppo_grid"), fake.sweep_dir("tinychat-ppo_grid")
    for trial in study.trials[3:]:
        assert trial.state is TrialState.PRUNED
        assert "no match for the other trials" in trial.user_attrs["error"]
        result = json.loads((folder / trial.user_attrs["run_dir"] / "result.json").read_text())
        assert result["status"] == "pruned"
        assert trial.value == pytest.approx(result["metrics"]["eval/objective"])  # the last value
        assert min(trial.intermediate_values) >= 10
        steps = (folder / trial.user_attrs["run_dir"] / "metrics.jsonl").read_text().splitlines()
        assert len(steps) < STEPS


@pytest.mark.slow
def test_a_failed_trial_is_recorded_and_the_sweep_goes_on(fake: Fake) -> None:
    said = fake.sweep("sweep=ppo_grid", "stage.beta=0.05", FAKE_FAIL_ABOVE="1e-3")
    rows = fake.table("tinychat-ppo_grid")
    assert [row["state"] for row in rows] == ["complete", "complete", "failed"]
    assert "ValueError: lr is too high" in rows[2]["error"]
    assert "| failed |" in said and "ValueError: lr is too high" in said
    assert states(fake.study("tinychat-ppo_grid")) == {"COMPLETE": 2, "FAIL": 1}
    assert "3 of 3 trials done" in fake.sweep("sweep=ppo_grid", "stage.beta=0.05")


def test_too_many_failures_in_a_row_end_the_sweep(fake: Fake) -> None:
    done = fake.run("sweep=ppo_random", "sweep.max_failures=2", FAKE_FAIL_ABOVE="0")
    assert done.returncode == 1
    assert "2 trials in a row failed" in done.stderr
    assert "ValueError: lr is too high" in done.stderr.splitlines()[-1]
    assert states(fake.study("tinychat-ppo_random")) == {"FAIL": 2}


def test_a_metric_that_a_run_lacks_is_named(fake: Fake) -> None:
    done = fake.run("sweep=ppo_random", "sweep.max_failures=1", FAKE_METRICS="eval/kl eval/reward")
    assert done.returncode == 1
    assert "did not measure eval/objective; it has eval/kl, eval/reward" in done.stderr


@pytest.mark.slow
def test_several_objectives_give_a_front_and_its_plot(fake: Fake) -> None:
    said = fake.sweep("sweep=ppo_pareto", "sweep.n_trials=6", "sweep.sampler_options={n_startup_trials: 5}", plots=True)
    study = fake.study("tinychat-ppo_pareto")
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE", "MAXIMIZE"]
    rows = fake.table("tinychat-ppo_pareto")
    front = [row for row in rows if row["best"]]

    def beats(a: dict[str, Any], b: dict[str, Any]) -> bool:
        signs = {"eval/reward": 1, "eval/kl": -1, "eval/instruction_accuracy": 1}
        gains = [sign * (a[name] - b[name]) for name, sign in signs.items()]
        return min(gains) >= 0 and max(gains) > 0

    assert front == [row for row in rows if not any(beats(other, row) for other in rows)]
    assert f"{len(front)} on the front" in said
    assert f"trial {front[0]['trial']} again:\n  python -m tinychat.train " in said
    assert said.count("front: ") == min(len(front), 10)
    assert (f"and {len(front) - 10} more on the front, in " in said) == (len(front) > 10)
    assert (fake.sweep_dir("tinychat-ppo_pareto") / "pareto_front.png").stat().st_size > 1000


def test_plain_multirun_has_a_table_too_and_its_failures_are_told(fake: Fake) -> None:
    done = fake.run("stage.lr=1e-3,1e-2", "seed=1,2", FAKE_FAIL_ABOVE="5e-3")
    assert done.returncode == 1  # as a single run that fails
    assert done.stderr.splitlines()[-1].endswith("ValueError: lr is too high")
    (folder,) = fake.sweep_dir("").iterdir()
    rows = fake.table(folder.name)
    assert [(row["stage.lr"], row["seed"], row["state"]) for row in rows] == [
        (1e-3, 1, "complete"),
        (1e-3, 2, "complete"),
        (1e-2, 1, "failed"),
        (1e-2, 2, "failed"),
    ]
    assert "a line of the trial" in done.stdout


def bad(fake: Fake, *words: str) -> str:
    said = error_line(fake.run(*words))
    assert not fake.runs("*")  # no trial has started
    return said


def test_bad_input_is_one_line_before_any_trial(fake: Fake) -> None:
    assert "stage=ppo has no key stage.lrr, did you mean stage.lr?" in bad(
        fake, "sweep=ppo_grid", "stage.lrr=1e-3,1e-4"
    )
    fixed = ("stage.lr=1e-3", "stage.beta=0.1", "stage.epochs=1")
    assert "the search space is empty" in bad(fake, "sweep=ppo_grid", *fixed)
    assert "sweep.n_trials=0" in bad(fake, "sweep=ppo_random", "sweep.n_trials=0")
    said = bad(fake, "sweep=ppo_random", "sweep.objective=[eval/los]", "sweep.direction=[minimize]")
    assert "sweep.objective=eval/los: stage=ppo does not log it" in said
    assert "eval/objective" in said and "rl/kl" in said and "eval/safe_rate" in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sweep=ppo_bays"], "Did you mean sweep=ppo_bayes?"),
        (["sweep=ppo_random", "stage.objective_beta=null"], "stage.beta changes what eval/objective measures"),
        (["sweep=ppo_bayes", "+sweep.sampler_options.n_startups=3"], "n_startups"),
        (["sweep=ppo_grid", "stage.lr=interval(1,2)"], "an interval is for sweep=ppo_bayes"),
        (["sweep=ppo_random", "sweep.direction=[up]"], "minimize or maximize"),
        (["sweep=ppo_random", "sweep.direction=[minimize,maximize]"], "one for each of sweep.objective"),
        (["sweep=ppo_random", "sweep.prune_on=[kll]"], "did you mean kl?"),
        (["sweep=ppo_random", "sweep.pruner=median", "stage.eval_every=0"], "stage.eval_every=STEPS"),
        (["sweep=ppo_random", "stage.rollout_size=choice(32,40)"], "stage.rollout_size=40 is no multiple"),
        (["sweep=ppo_random,ppo_grid"], "cannot be varied"),
        (["sweep=ppo_random", "init_from=nowhere/at/all"], "nowhere/at/all"),
        (["sweep=ppo_random", "sweep.storage=sqlite:////nowhere/study.db"], "no folder /nowhere"),
        (["sweep=ppo_random", "sweep.storage=nonsense"], "the study's database nonsense"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_other_bad_input_too(fake: Fake, words: list[str], expected: str) -> None:
    assert expected in bad(fake, *words)


@pytest.mark.slow
def test_a_study_of_another_kind_is_refused(fake: Fake) -> None:
    fake.sweep("sweep=ppo_random", "sweep.n_trials=1")
    words = ("sweep=ppo_random", "sweep.n_trials=2")

    def refused(*more: str) -> str:
        said = error_line(fake.run(*words, *more))
        assert len(fake.study("tinychat-ppo_random").trials) == 1
        return said

    assert "sweep.study=NAME" in refused("sweep.direction=[minimize]", "sweep.objective=[eval/objective]")
    assert "sweep.direction=['minimize', 'minimize']" in refused(
        "sweep.objective=[eval/objective,eval/kl]", "sweep.direction=[minimize,minimize]"
    )
    assert "stage.gamma=1.0 there, 0.9 now" in refused("stage.gamma=0.9")
    assert "stage.lr" in refused("stage.lr=1e-3,1e-4")
    fake.sweep(*words, "sweep.sampler=tpe")  # another sampler may go on


@pytest.mark.slow
def test_outputs_moved_as_a_whole_keep_their_study(fake: Fake) -> None:
    """The policy lies in the outputs too: it is a setting that all trials of a study share."""
    fake.folder.joinpath("outputs", "default", "sft").mkdir(parents=True)
    os.rename(fake.folder / "policy", fake.folder / "outputs" / "default" / "sft" / "policy")
    words = ("sweep=ppo_random", "init_from=outputs/default/sft/policy")
    fake.sweep(*words, "sweep.n_trials=2")
    away = fake.folder / "elsewhere"
    os.rename(fake.folder / "outputs", away)
    moved = (f"paths.outputs={away}", f"init_from={away / 'default/sft/policy'}")
    said = fake.sweep(*words[:1], *moved, "sweep.n_trials=3")
    assert "2 of 3 trials done" in said
    table = json.loads((away / "sweeps" / "tinychat-ppo_random" / "trials.json").read_text())
    folders = [Path(dict(zip(table["columns"], row, strict=True))["run folder"]) for row in table["data"]]
    assert len(folders) == 3 and all((folder / "trial.json").exists() for folder in folders)
    found = compare_runs.find([str(away / "sweeps" / "tinychat-ppo_random")], Path("nowhere"))
    assert [run.folder.resolve() for run in found] == folders
    # A study whose database was emptied begins anew, and says that there were trials.
    (away / "sweeps" / "tinychat-ppo_random" / "study.db").write_bytes(b"")
    said = fake.sweep(*words[:1], *moved, "sweep.n_trials=1")
    assert "0 of 1 trials done" in said and "a new one begins; the 3 run folders of earlier trials" in said


def test_a_locked_or_broken_database_is_one_line(fake: Fake) -> None:
    folder = fake.sweep_dir("tinychat-ppo_random")
    folder.mkdir(parents=True)
    with sqlite3.connect(folder / "study.db") as holder:
        holder.execute("BEGIN EXCLUSIVE")
        said = bad(fake, "sweep=ppo_random")
        assert "study.db: database is locked" in said and "sweep.storage=" in said
    holder.close()
    (folder / "study.db").write_text("this is no database" * 100)
    assert "study.db: file is not a database" in bad(fake, "sweep=ppo_random")
    if os.geteuid():
        (folder / "study.db").chmod(0)
        assert "study.db: unable to open" in bad(fake, "sweep=ppo_random")


def test_sweep_without_m_says_so(fake: Fake) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tinychat.train", "stage=ppo", "sweep=ppo_bayes"],
        cwd=fake.folder, env=environment_of(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert error_line(done).endswith("python -m tinychat.train -m stage=ppo sweep=ppo_bayes")
