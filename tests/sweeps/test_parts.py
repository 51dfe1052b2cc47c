"""Parts of sweeps that need no process: the search space, sampling, what stages can be asked for."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from tinychat.config.specs import SPECS
from tinychat.errors import UserError
from tinychat.runs import trial
from tinychat.sweeps.ending import headline
from tinychat.sweeps.results import Row, command
from tinychat.sweeps.run import progress
from tinychat.sweeps.space import GaussianProcess, _PrunedCount, overrides_of, read_space
from tinychat.tracking.vocabulary import METRICS, metrics_of

optuna.logging.set_verbosity(optuna.logging.ERROR)


def test_the_space_is_the_files_and_the_command_lines_which_wins() -> None:
    params = {
        "a.x": "tag(log, interval(1e-4, 1e-2))",
        "a.n": "range(1, 4)",
        "a.c": "2,four,null,true",
        "a.y": "5",
    }
    space = read_space(params, ["stage=ppo", "a.n=7", "b=1.5,2.5"], grid=False)
    assert space.distributions == {
        "a.x": FloatDistribution(1e-4, 1e-2, log=True),
        "a.c": CategoricalDistribution([2, "four", None, True]),
        "b": CategoricalDistribution([1.5, 2.5]),
    }
    assert space.fixed == ["a.y=5", "stage=ppo", "a.n=7"]
    assert overrides_of({"a.c": None, "b": True, "c": 1e-5, "d": "x"}) == ["a.c=null", "b=true", "c=1e-05", "d=x"]
    assert read_space({"a.n": "range(1, 4)"}, [], grid=False).distributions == {"a.n": IntDistribution(1, 3)}
    assert [probe["a.x"] for probe in space.probes()][:2] == [1e-4, 1e-2]
    assert {probe["a.c"] for probe in space.probes()} == {2, "four", None, True}


def test_the_plugins_own_reading_of_a_search_space_is_where_it_was() -> None:
    """tinychat.sweeps.space takes it from a private module of hydra-optuna-sweeper, as there is no public way to it."""
    what_to_do = (
        "hydra-optuna-sweeper has moved or changed how it reads a search space: find what its sweep() calls to make "
        "Optuna's distributions of overrides, import that in tinychat/sweeps/space.py, and pin its version in setup.cfg"
    )
    try:
        from hydra_plugins.hydra_optuna_sweeper._impl import create_optuna_distribution_from_override as read
    except ImportError:
        pytest.fail(what_to_do)
    parse = OverridesParser.create().parse_override
    for words, wanted in {
        "x=interval(1.0,2.0)": FloatDistribution(1.0, 2.0),
        "x=tag(log,interval(1e-4,1e-2))": FloatDistribution(1e-4, 1e-2, log=True),
        "x=range(1,8,2)": IntDistribution(1, 7, step=2),
        "x=range(0.0,1.0,0.25)": FloatDistribution(0.0, 0.75, step=0.25),
    }.items():
        assert read(parse(words)) == wanted, what_to_do


def test_the_nearest_point_of_values() -> None:
    params = {"x": "interval(1.0, 2.0)", "n": "range(1, 8, 2)", "c": "8,64,256", "w": "one,two"}
    space = read_space(params, [], grid=False)
    assert space.nearest({"x": 5e-5, "n": 4.9, "c": 50, "w": "two"}) == {"x": 1.0, "n": 5, "c": 64, "w": "two"}
    assert space.nearest({"x": 9, "n": 99, "c": 256, "w": "one"}) == {"x": 2.0, "n": 7, "c": 256, "w": "one"}
    word = Enum("Word", ["one", "two"]).two  # type: ignore[attr-defined]
    assert space.nearest({"x": 1.5, "n": 1, "c": 8, "w": word}) == {"x": 1.5, "n": 1, "c": 8, "w": "two"}
    assert space.nearest({"x": 1.5, "n": 1, "c": 8, "w": "three"}) is None
    assert space.nearest({"x": None, "n": 1, "c": 8, "w": "one"}) is None


def test_a_grid_has_every_combination_also_of_lists() -> None:
    space = read_space({"a": "range(1, 3)"}, ["b=[1,2],[3,4]", "c=x"], grid=True)
    assert space.points() == [
        {"a": 1, "b": "[1,2]"},
        {"a": 1, "b": "[3,4]"},
        {"a": 2, "b": "[1,2]"},
        {"a": 2, "b": "[3,4]"},
    ]


@pytest.mark.parametrize("words", ["a=interval(1,2)", "a=interval(2,1)", "a=choice()", "a=range(3,3)", "a=(("])
def test_what_is_no_space_is_told_with_its_key(words: str) -> None:
    with pytest.raises(UserError, match="a=") as caught:
        read_space({}, [words], grid=True)
    assert "\n" not in str(caught.value)


def test_the_gaussian_process_learns_from_pruned_trials_that_measured_something() -> None:
    distributions = {"x": FloatDistribution(0, 1)}

    def made(state: TrialState, x: float, value: float | None) -> optuna.trial.FrozenTrial:
        return optuna.trial.create_trial(state=state, params={"x": x}, distributions=distributions, value=value)

    study = optuna.create_study(direction="maximize", sampler=GaussianProcess(seed=1, n_startup_trials=6))
    study.add_trials([made(TrialState.COMPLETE, x, 1 - x) for x in (0.3, 0.4)])
    study.add_trials([made(TrialState.PRUNED, x, -x) for x in (0.7, 0.8, 0.9, 1.0)])
    study.add_trial(made(TrialState.FAIL, 0.5, None))
    seen = _PrunedCount(study)._get_trials(states=(TrialState.COMPLETE, TrialState.RUNNING))
    assert sorted(one.params["x"] for one in seen) == [0.3, 0.4, 0.7, 0.8, 0.9, 1.0]
    assert {one.state for one in seen} == {TrialState.COMPLETE}
    # With two complete ones alone it would still draw at random; so it models, and goes where there is most.
    assert study.ask().suggest_float("x", 0, 1) < 0.35
    assert [one.state for one in study.trials].count(TrialState.PRUNED) == 4  # the study itself is as it was


def test_progress_is_in_per_cent() -> None:
    assert [progress(step, 8) for step in (0, 2, 4, 8)] == [0, 25, 50, 100]
    assert progress(1, 0) == 100


def test_every_stage_has_an_objective_among_its_metrics() -> None:
    for stage, spec in SPECS.items():
        assert spec.objective in metrics_of(stage)
        assert set(metrics_of(stage)) <= METRICS.keys()
    assert "rl/kl" in metrics_of("ppo") and "rl/kl" not in metrics_of("sft")
    assert "eval/instruction_accuracy_low" in metrics_of("sft")
    assert "eval/loss" not in metrics_of("sft")


def test_a_command_says_what_differs_and_quotes_it() -> None:
    base = {"stage.lr": 1e-3, "stage.beta": 0.05, "stage.kl": "fixed", "optim.betas": [0.9, 0.95], "run_dir": None}
    run = {**base, "stage.lr": 2e-4, "optim.betas": [0.9, 0.99], "stage.kl": None, "run_dir": "x", "sweep.name": "y"}
    said = command(["stage=ppo", "stage.lr=5"], base, run)
    assert said == "python -m tinychat.train stage=ppo stage.lr=0.0002 stage.kl=null 'optim.betas=[0.9, 0.99]'"


def test_a_trials_folder_says_what_it_is_and_whether_to_stop(tmp_path: Path) -> None:
    one = trial.Trial("s", 3, {"stage.lr": 0.1}, ["eval/loss"], ["minimize"], tmp_path / "sweep")
    assert trial.read(tmp_path) is None and trial.tags(tmp_path) == {} and not trial.of_search(tmp_path)
    trial.begin(tmp_path)  # of no sweep
    assert list(tmp_path.iterdir()) == []
    trial.expect(one)
    try:
        trial.ask_to_stop(tmp_path, "of an earlier start")
        trial.begin(tmp_path)
    finally:
        trial.expect(None)
    content = json.loads((tmp_path / "trial.json").read_text())
    assert content["values"] == {"stage.lr": 0.1} and content["sweep_dir"] == "sweep"
    assert trial.tags(tmp_path) == {"tinychat.study": "s", "tinychat.trial": "3", "sweep.stage.lr": "0.1"}
    assert trial.of_search(tmp_path) and trial.asked_to_stop(tmp_path) is None
    trial.ask_to_stop(tmp_path, "bad")
    assert trial.asked_to_stop(tmp_path) == "bad"


def test_a_sweep_that_has_ended_has_a_headline_whatever_its_trials_did() -> None:
    row = Row(3, "complete", {}, [0.12345, 2.0], True, 1.0, "x", "")
    assert headline(["eval/loss"], [row]) == "0.1235 eval/loss"
    assert headline(["eval/reward", "eval/kl"], [row, row]) == "2 on the front"
    assert headline(["eval/loss"], []) == "no trial is complete"
