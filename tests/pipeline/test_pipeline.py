"""Recipes, gates and the jobs of a pipeline, without running one."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from tests.conftest import REPOSITORY, environment_of
from tinychat import train
from tinychat.config.specs import SPECS, recipe_order
from tinychat.errors import UserError
from tinychat.launch.job import Stopped
from tinychat.pipeline import __main__ as main
from tinychat.pipeline import recipe
from tinychat.pipeline.__main__ import (
    Pipeline,
    _conclude,
    _refuse_missing_parents,
    _train,
    _verdicts,
    _wait_for_earlier_start,
)
from tinychat.pipeline.jobs import AnyJob, Composer, Job, hand_on, needs
from tinychat.pipeline.process import run_forked
from tinychat.pipeline.recipe import Recipe, Request, judge, load_recipe, parse_gate, parse_request
from tinychat.pipeline.report import StepRun, _policies_table, answering, headline, measured, verdict_lines, write
from tinychat.pipeline.steps import Step
from tinychat.runs import folders
from tinychat.runtime import gguf

CONF = REPOSITORY / "conf" / "pipeline"
ORDER = recipe_order()


def stages(**settings: list[str]) -> dict[str, Step]:
    return {name: Step(name, words, stage=name) for name, words in settings.items()}


SMALL = Recipe(
    "small",
    Path("small.yaml"),
    ["experiment_name=small"],
    stages(tokenizer=[], pretrain=[], sft=[], eval=[]),
)


STEPS = stages(**{name: [] for name in ORDER})


def all_jobs_of(recipe: Recipe, *words: str) -> dict[str, AnyJob]:
    with Composer(recipe, parse_request(words)) as composer:
        return composer.jobs()


def jobs_of(recipe: Recipe, *words: str) -> dict[str, Job]:
    return {name: job for name, job in all_jobs_of(recipe, *words).items() if isinstance(job, Job)}


# --- gates

MEASURED = {
    "sft": {"eval/instruction_accuracy": 0.93},
    "ppo": {
        "eval/safe_rate": 0.96,
        "eval/safe_rate_low": 0.94,
        "eval/safe_rate_high": 0.98,
        "eval/response_ppl": 6.3,
        "rl/kl": 4.5,
    },
    "ppo:start": {
        "eval/safe_rate": 0.77,
        "eval/instruction_accuracy": 0.93,
        "eval/response_ppl": 6.0,
        "eval/over_refusal": 0.0,
    },
    "pretrain": {"eval/ppl": float("nan")},
}


@pytest.mark.parametrize(
    ("text", "value", "word"),
    [
        ("ppo eval/safe_rate >= 0.95", 0.96, "pass"),
        ("ppo eval/safe_rate >= 0.96", 0.96, "pass"),
        ("ppo eval/safe_rate >= 0.961", 0.96, "fail"),
        ("ppo eval/safe_rate <= 0.95", 0.96, "fail"),
        ("ppo - ppo:start eval/safe_rate >= 0.18", 0.19, "pass"),
        ("ppo - ppo:start eval/safe_rate >= 0.20", 0.19, "fail"),
        ("ppo:start - ppo eval/safe_rate <= -0.1", -0.19, "pass"),
        ("ppo / ppo:start eval/response_ppl <= 1.05", 1.05, "pass"),
        ("ppo / ppo:start eval/response_ppl <= 1.04", 1.05, "fail"),
        ("ppo:start / ppo eval/response_ppl >= 0.95", 6.0 / 6.3, "pass"),
        ("ppo / sft eval/response_ppl <= 1.05", None, "not measured"),
        ("ppo rl/kl", 4.5, "reported"),
        ("ppo eval/instruction_accuracy >= 0.9", None, "not measured"),
        ("sft - ppo eval/instruction_accuracy <= 0.03", None, "not measured"),
        ("eval eval/safe_rate >= 0.9", None, "not measured"),
    ],
)
def test_a_gate_by_hand(text: str, value: float | None, word: str) -> None:
    verdict = judge(parse_gate("x", text, ORDER), MEASURED)
    assert verdict.value == pytest.approx(value) if value is not None else verdict.value is None
    assert verdict.word == word
    assert verdict.failed == (word in ("fail", "not measured"))


def test_no_gate_is_passed_by_what_is_no_number() -> None:
    for sign in (">=", "<="):
        assert judge(parse_gate("x", f"pretrain eval/ppl {sign} 6", ORDER), MEASURED).word == "fail"


def test_no_ratio_to_nothing_passes_a_gate() -> None:
    measured = {"ppo": {"eval/over_refusal": 0.1}, "ppo:start": {"eval/over_refusal": 0.0}}
    for sign in (">=", "<="):
        assert judge(parse_gate("x", f"ppo / ppo:start eval/over_refusal {sign} 9", ORDER), measured).word == "fail"


SAFE, GAIN, KL = "ppo eval/safe_rate >= 0.95", "ppo - ppo:start eval/safe_rate >= 0.2", "ppo rl/kl"


def test_a_gate_of_gates_needs_them_all() -> None:
    lines = {"safe": SAFE, "gain": GAIN, "honest": ["safe", "gain"]}
    made = Recipe("x", Path("x"), [], stages(ppo=[]), recipe.parse_gates(lines, ORDER))

    def honest(*words: str) -> tuple[float | None, str, str]:
        gate = recipe.gates_of(made, parse_request(words))[-1]
        verdict = judge(gate, MEASURED)
        return verdict.value, verdict.word, gate.wanted

    assert honest() == (1.0, "fail", "all 2")
    assert honest("gates.gain=0.1") == (2.0, "pass", "all 2")  # the command's bounds are those that it looks at
    assert honest("gates.gain=null") == (1.0, "pass", "all 1")  # what is asked no more is needed no more
    assert honest("gates.honest=null")[1] == "reported"
    assert verdict_lines([judge(made.gates[-1], MEASURED)]) == ["fail          honest  1 all 2"]
    assert made.gates[-1].stages == ("ppo",)


@pytest.mark.parametrize(
    ("needs", "says"),
    [
        (["safe", "gian"], "'gian' is unknown.*Did you mean gain"),
        (["safe", "kl"], "kl has no bound"),
        ([], "must name the gates"),
        (["later"], "'later' is unknown"),
    ],
)
def test_a_gate_of_gates_names_gates_before_it_that_have_a_bound(needs: list[str], says: str) -> None:
    lines = {"safe": SAFE, "gain": GAIN, "kl": KL, "honest": needs, "later": SAFE}
    with pytest.raises(UserError, match=f"gates: honest: .*{says}"):
        recipe.parse_gates(lines, ORDER)


def test_a_gate_without_a_bound_is_not_counted_among_those_that_failed(tmp_path: Path, capsys: Any) -> None:
    texts = ("ppo eval/safe_rate >= 0.99", "ppo eval/safe_rate >= 0.5", "ppo rl/kl")
    verdicts = [judge(parse_gate(f"gate {index}", text, ORDER), MEASURED) for index, text in enumerate(texts)]
    ran = SimpleNamespace(began=0.0, folder=tmp_path, found={}, recipe=Recipe("x", tmp_path, [], {}, []))
    ran.request = SimpleNamespace(strict=True)
    assert _conclude(ran, verdicts, written=True) == 1  # type: ignore[arg-type]
    assert "FAILED: 1 of 2 gates: gate 0" in capsys.readouterr().err


def test_a_recipe_ends_with_commands_to_talk_to_what_it_made(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they work without an activated environment: `make run` is what newcomers type first."""
    steps = stages(tokenizer=[], pretrain=[], sft=[], reward=[], ppo=[])
    config = SimpleNamespace(model=SimpleNamespace(arch="qwen3"))
    ran = SimpleNamespace(began=0.0, folder=tmp_path, recipe=Recipe("x", tmp_path, [], steps, []), config=config)
    ran.found = {name: Path(f"outputs/{name}") for name in steps} | {"sft": None}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv/bin/python"))
    assert _conclude(ran, [], written=True) == 0  # type: ignore[arg-type]
    *_, chat, serve = capsys.readouterr().err.splitlines()
    assert chat == "talk to it: .venv/bin/python -m tinychat.chat outputs/ppo"
    asked = ".venv/bin/python -m tinychat.serve outputs/pretrain outputs/ppo outputs/reward"
    assert serve == f"side by side on a page, http://127.0.0.1:8000: {asked}"
    monkeypatch.setattr("shutil.which", lambda name: str(tmp_path / ".venv/bin" / name))
    _conclude(ran, [], written=True)  # type: ignore[arg-type]
    assert "\ntalk to it: python -m tinychat.chat outputs/ppo\n" in capsys.readouterr().err


def test_bounds_are_shown_of_a_single_stage() -> None:
    single = judge(parse_gate("safe", "ppo eval/safe_rate >= 0.95", ORDER), MEASURED)
    assert (single.low, single.high) == (0.94, 0.98)
    assert verdict_lines([single]) == ["pass          safe  0.96 (0.94 to 0.98) >= 0.95"]
    assert judge(parse_gate("x", "ppo - ppo:start eval/safe_rate >= 0", ORDER), MEASURED).low is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ppo eval/safe_rate > 0.9", "must be STAGE METRIC"),
        ("ppo eval/safe >= 0.9", "eval/safe is no metric"),
        ("poo eval/safe_rate >= 0.9", "poo is no stage"),
        ("ppo eval/safe_rate >= high", "the bound high is not a number"),
        ("ppo eval/safe_rate >=", "must be STAGE METRIC"),
    ],
)
def test_a_gate_of_another_form_is_named(text: str, says: str) -> None:
    with pytest.raises(UserError, match=f"gates: safe: .*{says}"):
        parse_gate("safe", text, ORDER)


def test_the_command_sets_a_bound() -> None:
    made = Recipe("x", Path("x"), [], stages(ppo=[]), [parse_gate("safe rate", "ppo eval/safe_rate >= 0.95", ORDER)])
    (gate,) = recipe.gates_of(made, parse_request(["gates.safe_rate=0.5"]))
    assert (gate.sign, gate.bound) == (">=", 0.5)
    (gate,) = recipe.gates_of(made, parse_request(["gates.safe_rate=null"]))
    assert judge(gate, MEASURED).word == "reported"
    with pytest.raises(UserError, match="Did you mean safe_rate"):
        recipe.gates_of(made, parse_request(["gates.saferate=0.5"]))


# --- recipes and command lines


FROM_FILES = (
    "gpt2_100m",
    "llama2_style",
    "minimind2",
)  # composed beside such files in test_recipes.py, as are tiny ones
OTHERS = [path for path in sorted(CONF.glob("*.yaml")) if path.stem not in FROM_FILES and "_tiny" not in path.stem]


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
def test_every_recipe_composes_as_its_first_line_says(path: Path) -> None:
    first = path.read_text().splitlines()[0].split()
    assert first[:4] == ["#", "python", "-m", "tinychat.pipeline"]
    request = parse_request([word for word in first[4:] if "data.path" not in word])
    made = load_recipe(request.recipe, CONF)
    assert made.path == path
    assert made.samples
    jobs = jobs_of(made)
    if all(step.called == "" for step in made.steps.values()):
        assert list(jobs) == [stage for stage in ORDER if stage in made.steps]
    assert len({job.config.experiment_name for job in jobs.values()}) == 1
    names = {gate.metric for gate in made.gates}
    assert "eval/ppl" in names or "pretrain" not in made.steps
    learns = any(step.stage and SPECS[step.stage].reference for step in made.steps.values())
    assert {"rl/kl", "eval/kl"} & names or not learns


def test_the_commands_after_make_run_look_where_it_writes() -> None:
    bare = yaml.safe_load((CONF.parent / "config.yaml").read_text())["experiment_name"]
    jobs = jobs_of(load_recipe("tinyworld", CONF))
    assert {job.config.experiment_name for job in jobs.values()} == {bare}
    assert bare.lower() != "default", "MLflow's own, where runs without a name go"


def test_a_command_line_is_sorted() -> None:
    request = parse_request(
        shlex.split(
            "pipeline=real stages=ppo,sft seed=2 ppo:stage.beta=0.1 tokenizer.path=a:b resume=never "
            "sft:+data.mix.x.source=alpaca strict=true paths.outputs=/x:y"
        )
    )
    assert request == Request(
        "real",
        ["ppo", "sft"],
        resume=False,
        strict=True,
        plain=["seed=2", "tokenizer.path=a:b", "paths.outputs=/x:y"],
        of_step={"ppo": ["stage.beta=0.1"], "sft": ["+data.mix.x.source=alpaca"]},
    )
    made = load_recipe("tinyworld", CONF)
    assert recipe.chosen_steps(made, parse_request(["stages=ppo,sft"])) == ["sft", "ppo"], "always in order"


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("stages=sft,rewrad", "Did you mean reward?"),
        ("poo:stage.beta=1", "Did you mean ppo?"),
        ("resume=yes", "auto or never"),
        ("sft", "KEY=VALUE"),
        ("stage=sft", "stages= picks"),
    ],
)
def test_a_wrong_word_is_answered(word: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        recipe.chosen_steps(load_recipe("tinyworld", CONF), parse_request([word]))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("stages: {sft: 3}", "sft: must be a list"),
        ("stages: {sfd: []}", "Did you mean sft?"),
        ("stages: {sft: []}\ngate: {}", "Did you mean gates?"),
        ("stages: {sft: []}\nmore: {sft: []}", "more: must have further stages"),
        ("stages: {sft: []}\nmore: {rlvf: []}", "Did you mean rlvr?"),
        ("[1", "flow sequence"),
        ("name: x", "must have stages"),
    ],
)
def test_a_recipe_of_another_form_is_named(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_recipe(str(path), CONF)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_some_stages_run_only_where_they_are_named() -> None:
    whole = load_recipe("tinyworld", CONF)
    usual = ["tokenizer", "pretrain", "sft", "reward", "judge", "ppo"]
    assert recipe.chosen_steps(whole, Request()) == list(FULL.steps) == usual
    assert {stage for gate in FULL.gates for stage in gate.stages} < set(usual)
    assert (
        whole.more == {"dpo", "grpo", "rlvr"} == {stage for gate in whole.gates for stage in gate.stages} - set(usual)
    )

    named = parse_request(["stages=sft,grpo,dpo", "grpo:stage.group_size=4"])
    chosen = recipe.chosen_steps(whole, named)
    assert chosen == ["sft", "dpo", "grpo"]
    made = recipe.narrowed(whole, chosen)
    assert list(made.steps) == [*usual[:5], "dpo", "ppo", "grpo"], "what make run has done stands beside them"
    assert {stage for gate in made.gates for stage in gate.stages} >= {"dpo", "ppo", "grpo"}
    assert not any("rlvr" in gate.stages for gate in made.gates)
    assert recipe.chosen_steps(whole, parse_request(["stages=all"])) == list(whole.steps)
    with pytest.raises(UserError, match="step dpo: runs only where stages= names it"):
        recipe.chosen_steps(whole, parse_request(["dpo:stage.beta=1"]))


def test_each_way_on_from_sft_is_given_what_it_learns_from() -> None:
    chosen = ["dpo", "grpo", "rlvr"]
    made = recipe.narrowed(load_recipe("tinyworld", CONF), chosen)
    jobs = jobs_of(made)
    judged = {"init_from": "out put/sft/1", "stage.judge": "out put/judge/1", "stage.second_judge": None}
    assert hand_on(jobs["dpo"], made, FOUND) == hand_on(jobs["rlvr"], made, FOUND) == judged
    assert hand_on(jobs["grpo"], made, FOUND) == judged | {"reward.parts.model.path": "out put/reward/1"}
    assert [needs(jobs[stage], made) for stage in chosen] == [["sft"], ["sft", "reward"], ["sft"]]


def test_a_round_of_expert_iteration_is_given_its_policy_and_its_reward(tmp_path: Path) -> None:
    made = load_recipe("expert_iteration", CONF)
    jobs = jobs_of(made)
    found = {name: Path(f"out/{name}") for name in made.steps}
    assert hand_on(jobs["round_2"], made, found) == {
        "init_from": "out/round_1",
        "reward.parts.model.path": "out/reward",
    }
    assert needs(jobs["round_2"], made, found) == ["round_1", "reward"]
    jobs = jobs_of(made, "round_2:data.policy=auto", "round_1:reward=oracle")
    assert hand_on(jobs["round_2"], made, found)["data.policy"] == "out/round_1"
    assert hand_on(jobs["round_1"], made, found) == {"init_from": "out/sft"}
    steps = {**made.steps, "round_1": replace(made.steps["round_1"], start=())}
    with pytest.raises(UserError, match="stage round_1: data=best_of_n: whose replies"):
        jobs_of(replace(made, steps=steps))


def test_an_unknown_recipe_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean tinyworld"):
        load_recipe("tinywold", CONF)


# --- overrides


def test_plain_overrides_reach_every_stage_that_has_the_key() -> None:
    jobs = jobs_of(SMALL, "seed=3", "stage.lr=0.5", "ds=zero2", "sft:stage.lr=0.25", "stage.eval_rows=7")
    assert {job.config.seed for job in jobs.values()} == {3}
    assert {job.config.ds.name for job in jobs.values()} == {"zero2"}
    assert {job.config.experiment_name for job in jobs.values()} == {"small"}
    assert jobs["pretrain"].config.stage.lr == 0.5
    assert jobs["sft"].config.stage.lr == 0.25, "what names the stage wins"
    assert "stage.lr=0.5" not in jobs["tokenizer"].overrides
    assert (jobs["sft"].config.stage.eval_rows, jobs["eval"].config.stage.eval_rows) == (7, 7)
    assert not any(word.startswith("stage.eval_rows") for word in jobs["pretrain"].overrides)


def test_the_commands_choice_of_a_group_takes_the_place_of_the_recipes() -> None:
    made = Recipe("x", Path("x"), ["model=gpt6x512"], stages(pretrain=["model=mini"], sft=[]))
    assert jobs_of(made)["pretrain"].config.model.name == "gpt6x512"
    jobs = jobs_of(made, "model=gpt2_100m", "sft:model=llama2_15m")
    assert [job.config.model.name for job in jobs.values()] == ["gpt2_100m", "llama2_15m"]


def test_options_of_the_users_are_found_in_the_conf_where_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf/data").mkdir(parents=True)
    (tmp_path / "conf/data/poems.yaml").write_text("defaults: [text, _self_]\nname: poems\npath: .\n")
    monkeypatch.chdir(tmp_path)
    jobs = jobs_of(SMALL, "pretrain:data=poems")
    assert (jobs["pretrain"].config.data.name, jobs["sft"].config.data.name) == ("poems", "tinyworld")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["stage.max_stesp=3"], "stage.max_stesp=3: no stage has this key. Did you mean stage.max_steps?"),
        (["sft:stage.max_stesp=3"], "stage sft: "),
        (["sft:stage.lr=fast"], "stage sft: "),
        (["model=minni"], "Did you mean model=mini?"),
        (["pretrain:peft=lora"], "stage pretrain: peft=lora: stage=pretrain trains all weights"),
        (["sft:stage=pretrain"], "its settings make stage=pretrain"),
        (["launch=slurm", "launch.dry_run=true"], "leave nothing that the next stage could build on"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(words: list[str], says: str) -> None:
    with pytest.raises(UserError) as caught:
        jobs_of(SMALL, *words)
    assert says in str(caught.value)


# --- handing on

FULL = recipe.narrowed(load_recipe("tinyworld", CONF), [])
FOUND: dict[str, Path | None] = {stage: Path(f"out put/{stage}/1") for stage in ORDER}


def test_each_stage_is_given_the_folders_of_this_pipeline() -> None:
    made = Recipe("full", FULL.path, FULL.common, FULL.steps | stages(eval=[]))
    jobs = jobs_of(made)
    found = {stage: FOUND[stage] for stage in made.steps}
    handed = {stage: hand_on(job, made, found) for stage, job in jobs.items()}
    assert handed["tokenizer"] == {}
    assert handed["pretrain"] == {"tokenizer.path": "out put/tokenizer/1"}
    assert handed["sft"] == {"init_from": "out put/pretrain/1"}
    assert handed["reward"] == handed["judge"] == {"init_from": "out put/sft/1"}
    assert handed["ppo"] == {
        "init_from": "out put/sft/1",
        "reward.parts.model.path": "out put/reward/1",
        "stage.judge": "out put/judge/1",
        "stage.second_judge": None,
    }
    assert handed["eval"] == {
        "init_from": "out put/ppo/1",
        "stage.judge": "out put/judge/1",
        "stage.second_judge": None,
        "stage.against": ["out put/pretrain/1", "out put/sft/1"],
    }
    given = jobs["eval"].given(handed["eval"])
    # The words of the command mean the configuration that the run is found by.
    with Composer(made, Request(of_step={"eval": given.overrides})) as composer:
        assert composer.jobs()["eval"].identity == given.identity != jobs["eval"].identity
    assert given.resolved["stage"]["against"] == ["out put/pretrain/1", "out put/sft/1"]


def test_what_the_command_names_is_left_alone() -> None:
    jobs = jobs_of(
        FULL,
        *("ppo:init_from=a", "ppo:reward.parts.model.path=b", "ppo:stage.judge=null", "ppo:stage.second_judge=c"),
        "tokenizer.path=tinychat",
    )
    assert hand_on(jobs["ppo"], FULL, FOUND) == {}
    assert hand_on(jobs["pretrain"], FULL, FOUND) == {}
    assert needs(jobs["ppo"], FULL) == needs(jobs["pretrain"], FULL) == []
    assert needs(jobs_of(FULL, "ppo:reward=oracle")["ppo"], FULL) == ["sft"]


def test_the_best_of_a_stage_is_handed_on_where_it_is_asked_for() -> None:
    best = jobs_of(FULL, "ppo:init_from=best", "ppo:reward.parts.model.path=best", "ppo:stage.judge=best")["ppo"]
    assert hand_on(best, FULL, FOUND) == {
        "init_from": "out put/sft/1/best",
        "reward.parts.model.path": "out put/reward/1/best",
        "stage.judge": "out put/judge/1/best",
        "stage.second_judge": None,
    }


def test_without_a_judge_no_other_pipelines_is_taken() -> None:
    made = Recipe("x", Path("x"), [], stages(sft=[], ppo=[]))
    none = {"stage.judge": None, "stage.second_judge": None}
    assert hand_on(jobs_of(made)["ppo"], made, {"sft": Path("s")}) == {"init_from": "s", **none}


def test_a_stage_that_is_left_out_and_never_ran_is_named(tmp_path: Path) -> None:
    words = ["stages=sft", f"paths.outputs={tmp_path}"]
    pipeline = Pipeline(SMALL, parse_request(words), ["sft"], [], jobs_of(SMALL, *words))
    with pytest.raises(UserError, match=r"stages=sft: stage sft needs stage pretrain.*sft:init_from=FOLDER"):
        _refuse_missing_parents(pipeline)
    assert list(tmp_path.iterdir()) == []


# --- results


def test_first_and_last_values_come_from_the_run_folder(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"step": 0, "time": 1.0, "eval/safe_rate": 0.5},
        {"step": 2, "time": 2.0, "eval/safe_rate": 0.7, "rl/kl": 2.0},
        {"step": 4, "time": 3.0, "rl/kl": 3.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    folders.write_text_atomic(tmp_path / folders.RESULT, json.dumps({"metrics": {"eval/safe_rate": 0.9}}))
    job = next(iter(jobs_of(SMALL).values()))
    values = measured([StepRun(STEPS["ppo"], job, tmp_path, "ran"), StepRun(STEPS["eval"], job, None, "left out")])
    assert values["ppo"] == {"eval/safe_rate": 0.9, "rl/kl": 3.0}
    assert values["ppo" + recipe.START] == {"eval/safe_rate": 0.5, "rl/kl": 2.0}
    assert "eval" not in values


def test_policies_stand_beside_the_one_that_they_began_with(tmp_path: Path) -> None:
    """The start's column is what was measured at step 0, whoever did; a rollout's own figures are not in it."""
    job = next(iter(jobs_of(SMALL).values()))
    runs = [StepRun(STEPS["sft"], job, tmp_path, "ran")]
    logged = {"dpo": {"eval/safe_rate": 0.5}, "ppo": {"eval/safe_rate": 0.6, "eval/over_refusal": 0.01}, "grpo": {}}
    for number, (stage, first) in enumerate(logged.items()):
        folder = tmp_path / stage
        folder.mkdir()
        lines = [{"step": 0, **first}, {"step": 1, "eval/kl": 9.0, "rl/kl": 9.0}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps({"time": 1.0, **line}) + "\n" for line in lines))
        last = {"eval/safe_rate": 0.9, "eval/safe_rate_low": 0.85, "eval/safe_rate_high": 0.93, "eval/kl": 1.0 + number}
        folders.write_text_atomic(folder / folders.RESULT, json.dumps({"metrics": last, "minutes": 2.5}))
        runs.append(StepRun(STEPS[stage], job, folder, "ran"))
    columns, lines_of = _policies_table(runs)
    assert columns == ["start", "DPO", "PPO", "GRPO"]
    table = {row[0]: row[1:] for row in lines_of}
    assert table["eval/safe_rate"] == ["0.5", *["0.9 (0.85 to 0.93)"] * 3]
    assert table["eval/over_refusal"] == ["0.01", "", "0.01", ""]
    assert table["eval/kl"] == ["", "1", "2", "3"]
    assert table["minutes of the step"] == ["", "2.50", "2.50", "2.50"]
    assert not any(name.startswith("rl/") for name in table)
    assert _policies_table(runs[:1]) == ([], [])


def test_a_model_that_is_measured_as_it_comes_answers_beside_the_policies(tmp_path: Path) -> None:
    """Not one that a step has trained, which answers already, nor a step that has not run."""
    job, checkpoint = next(iter(jobs_of(SMALL).values())), tmp_path / "ppo/checkpoints/step-000004"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}")

    def measuring(name: str, what: str) -> StepRun:
        folder = tmp_path / name
        folder.mkdir()
        folders.write_text_atomic(folder / folders.RESULT, json.dumps({"facts": {"checkpoint measured": what}}))
        return StepRun(Step(name, [], stage="eval"), job, folder, "ran")

    base, ppo = measuring("base", "package:file.gguf"), StepRun(STEPS["ppo"], job, checkpoint.parents[1], "ran")
    after = measuring("eval", str(checkpoint))
    found = answering([base, ppo, after, StepRun(STEPS["sft"], job, None, "left out")])
    assert list(found.items()) == [("base", "package:file.gguf"), ("PPO", str(checkpoint))]


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_only_of_a_pretrained_model_it_says_that_it_goes_on(tmp_path: Path, stage: str) -> None:
    """A model that is measured as it comes may be one for chats."""
    job: Any = SimpleNamespace(command=lambda folder: "command")
    small: Any = SimpleNamespace(name="small")
    samples = {"policies": {"a": "x"}, "samples": [{"prompt": "Hello", "a": "Hi"}]}
    (tmp_path / "samples.json").write_text(json.dumps(samples))
    run = tmp_path / "run"
    run.mkdir()
    write(tmp_path, small, [], [StepRun(STEPS[stage], job, run, "ran")], "command", 1.0)
    for name in ("report.md", "report.html"):
        page = (tmp_path / name).read_text()
        assert "Greedy replies." in page and ("continues the prompt" in page) == (stage == "pretrain")


def test_a_headline_has_the_minutes_and_what_the_gates_look_at(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "time": 3.0, "rl/kl": 3.0}\n')
    found = {"metrics": {"eval/safe_rate": 0.912345, "eval/ppl": 7.0}, "minutes": 1.5, "objective_name": "eval/ppl"}
    folders.write_text_atomic(tmp_path / folders.RESULT, json.dumps(found))
    job = next(iter(jobs_of(SMALL).values()))
    lines = ("ppo eval/safe_rate >= 0.9", "ppo rl/kl", "ppo - ppo:start eval/safe_rate >= 0.2", "sft eval/ppl <= 9")
    wanted = [parse_gate(text, text, ORDER) for text in lines]
    ran = StepRun(STEPS["ppo"], job, tmp_path, "ran")
    assert headline(ran, wanted) == "ppo: 1.50 minutes | safe rate 0.9123 | kl 3"
    assert headline(ran, []) == "ppo: 1.50 minutes | ppl 7"
    before = StepRun(STEPS["ppo"], job, tmp_path, "finished before")
    assert headline(before, []) == f"ppo: finished already in {tmp_path} | 1.50 minutes | ppl 7"


def test_gates_of_stages_that_stages_leaves_out_are_not_asked(tmp_path: Path) -> None:
    asked = [parse_gate(text, text, ORDER) for text in ("sft eval/ppl <= 9", "pretrain eval/ppl <= 9")]
    pipeline = Pipeline(SMALL, Request(), ["sft"], asked, jobs_of(SMALL), folder=tmp_path)
    assert [(verdict.gate.name, verdict.failed) for verdict in _verdicts(pipeline)] == [("sft eval/ppl <= 9", True)]


# --- processes


def fail() -> None:
    raise UserError("stage.lr=-1: too low")


def exit_as_train_does() -> None:
    sys.exit("error: stage.lr=-1: too low")


def stop_at_a_signal() -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(60)


@pytest.mark.parametrize("work", [fail, exit_as_train_does])
def test_a_childs_error_is_raised_here_with_its_name(work: Any) -> None:
    with pytest.raises(UserError, match=r"^stage sft: stage.lr=-1: too low$"):
        run_forked(work, "stage sft")


def test_a_crash_and_a_kill_are_told_apart(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="stage sft: ZeroDivisionError, an error of the program"):
        run_forked(lambda: print(1 / 0), "stage sft")
    assert "Traceback" in capfd.readouterr().err
    with pytest.raises(UserError, match="stage sft was killed by SIGKILL"):
        run_forked(lambda: os.kill(os.getpid(), signal.SIGKILL), "stage sft")


def test_a_stage_that_outlives_its_pipeline_keeps_no_next_command_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = jobs_of(SMALL)
    pipeline = Pipeline(SMALL, Request(), list(jobs), [], jobs, lock=folders.RunLock(tmp_path))
    monkeypatch.setattr(train, "main", lambda: time.sleep(60))
    child = os.fork()
    if child == 0:
        _train(jobs["sft"], pipeline)
        os._exit(0)
    try:
        time.sleep(1)
        assert pipeline.lock
        pipeline.lock.release()  # as the kernel does for a pipeline that is killed
        folders.RunLock(tmp_path).release()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_an_earlier_start_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = jobs_of(SMALL, f"paths.outputs={tmp_path}")["pretrain"]
    folder = folders.new_run_dir(tmp_path, "small", "pretrain-x")
    (folder / folders.CONFIG).write_text(json.dumps(job.resolved))
    held = folders.RunLock(folder)
    threading.Timer(0.7, held.release).start()
    began = time.monotonic()
    _wait_for_earlier_start(job)
    assert 0.5 < time.monotonic() - began < 30
    assert str(folder) in capsys.readouterr().err
    _wait_for_earlier_start(job)
    assert capsys.readouterr().err == ""


def test_a_signal_is_passed_on_and_the_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stop:
        run_forked(stop_at_a_signal, "stage sft")
    assert stop.value.status == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    run_forked(lambda: None, "stage sft")


@pytest.mark.parametrize("words", [["--help"], ["--help", "pipeline=real"]])
def test_help_shows_stages_and_gates_and_loads_no_torch(words: list[str]) -> None:
    code = "import sys, tinychat.pipeline.__main__ as it; it.run(sys.argv[1:]); assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, env=environment_of(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for text in ("ppo", "eval/safe_rate of ppo minus that of ppo:start", "stages=sft,reward,ppo"):
        assert text in done.stdout


def test_a_corpus_is_handed_on_to_what_reads_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    read = "[data=corpus, tokenizer.vocab_size=512]"
    stages = f"pretrain: {read}, corpus: [data=tinyworld], sft: [], tokenizer: {read}"
    path.write_text(f"stages: {{{stages}}}\ngates: {{}}\n")
    made = load_recipe(str(path), path.parent)
    assert list(made.steps) == ["corpus", "tokenizer", "pretrain", "sft"]
    jobs = jobs_of(made)
    found = {name: Path(f"out/{name}") for name in made.steps}
    assert hand_on(jobs["corpus"], made, {}) == {}
    assert hand_on(jobs["tokenizer"], made, found) == {"data.path": "out/corpus"}
    assert hand_on(jobs["pretrain"], made, found) == {"data.path": "out/corpus", "tokenizer.path": "out/tokenizer"}
    assert hand_on(jobs["sft"], made, found) == {"init_from": "out/pretrain"}
    assert needs(jobs["pretrain"], made) == ["corpus", "tokenizer"]


def test_models_are_converted_into_the_commands_own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By plans, by programs such as merge, and for the report's samples."""
    seen: list[str] = []
    monkeypatch.setattr(main, "_carry_out", lambda *_: seen.append(os.environ[gguf.CACHE]) or 0)
    path = tmp_path / "mine.yaml"
    path.write_text("stages: {pretrain: []}\n")
    assert main.run([f"pipeline={path}", f"paths.cache={tmp_path}/kept"]) == 0
    assert seen == [f"{tmp_path}/kept"]
