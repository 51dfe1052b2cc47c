"""Named steps: several of one stage in one recipe, where each starts, and steps that run another program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.test_pipeline import CONF, all_jobs_of
from tinychat import merge
from tinychat.errors import UserError
from tinychat.pipeline import recipe
from tinychat.pipeline.__main__ import Pipeline, _print_plans, _refuse_missing_parents
from tinychat.pipeline.jobs import AnyJob, ProgramJob, hand_on, needs
from tinychat.pipeline.recipe import Recipe, load_recipe, parse_request
from tinychat.pipeline.report import StepRun, _metrics_table, _policies_table
from tinychat.runs import folders, parents

TEXT = """
common: [experiment_name=x, tracker=none]
stages:
  pretrain: [tokenizer.path=t]
  reward_small: {stage: reward, settings: [stage.max_steps=5]}
  sft: []
  sft_lora: {stage: sft, start: sft, settings: [peft=lora]}
  export: {program: merge}
  reward: []
  ppo: []
  ppo_small: {stage: ppo, start: sft, settings: ["reward.parts.model.path={reward_small}"]}
  rlvr: {stage: rlvr, start: [ppo, sft_lora]}
more:
  sft_long: {stage: sft, start: sft_lora}
  dpo_long: {stage: dpo, start: sft_long}
gates:
  loss: sft_lora - sft_lora:start eval/response_loss <= 0
"""
ORDER = "pretrain reward_small sft sft_lora export reward ppo ppo_small rlvr".split()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return written(tmp_path_factory.mktemp("recipe"), TEXT)


@pytest.fixture(scope="module")
def jobs(made: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, AnyJob]:
    outputs = tmp_path_factory.mktemp("outputs")
    return all_jobs_of(made, f"paths.outputs={outputs}", "sft_lora:stage.lr=0.5", "export:model_code=a.py")


def written(folder: Path, text: str) -> Recipe:
    (folder / "mine.yaml").write_text(text)
    return load_recipe(str(folder / "mine.yaml"), CONF)


def test_named_steps_run_in_the_order_of_the_file(made: Recipe) -> None:
    assert list(made.steps) == [*ORDER, "sft_long", "dpo_long"]
    assert recipe.chosen_steps(made, parse_request(["stages=ppo,sft_lora"])) == ["sft_lora", "ppo"]
    assert list(recipe.narrowed(made, ORDER).steps) == ORDER
    kept = recipe.narrowed(made, ["dpo_long"]).steps
    assert "sft_long" in kept, "it starts from that one, whether it is named or not"
    with pytest.raises(UserError, match=r"step 'sft_lore' is unknown.*Did you mean sft_lora"):
        recipe.chosen_steps(made, parse_request(["sft_lore:stage.lr=1"]))
    lines = recipe.help_text(made, CONF).splitlines()
    assert "  sft_lora      (stage sft, from sft) peft=lora" in lines
    assert "  rlvr          (from ppo or sft_lora)" in lines
    assert "  export        (program merge)" in lines


def test_each_step_starts_where_it_says_else_from_the_nearest_it_can(
    made: Recipe, jobs: dict[str, AnyJob], tmp_path: Path
) -> None:
    found = {name: tmp_path / name for name in made.steps}
    handed = {name: hand_on(job, made, found) for name, job in jobs.items()}
    starts = {name: Path(words.get("init_from") or words.get("start") or "-").name for name, words in handed.items()}
    assert starts == {
        "pretrain": "-",
        "reward_small": "pretrain",
        "sft": "pretrain",
        "sft_lora": "sft",
        "export": "sft_lora",
        "reward": "sft_lora",
        "ppo": "sft_lora",
        "ppo_small": "sft",
        "rlvr": "ppo",
        "sft_long": "sft_lora",
        "dpo_long": "sft_long",
    }
    assert handed["ppo"]["reward.parts.model.path"] == str(tmp_path / "reward"), "the nearest earlier one"
    assert handed["ppo_small"]["reward.parts.model.path"] == str(tmp_path / "reward_small"), "the one that it names"
    assert needs(jobs["ppo_small"], made) == ["reward_small", "sft"]
    assert needs(jobs["rlvr"], made, {"ppo", "sft_lora"}) == ["ppo"]
    assert needs(jobs["rlvr"], made, {"sft_lora"}) == ["sft_lora"], "where ppo is left out and never ran"
    given = jobs["ppo_small"].given(handed["ppo_small"])
    assert f"reward.parts.model.path={tmp_path / 'reward_small'}" in given.overrides  # type: ignore[union-attr]
    assert jobs["sft_lora"].config.stage.lr == 0.5 != jobs["sft"].config.stage.lr  # type: ignore[union-attr]


def test_a_program_is_found_again_by_its_words_and_its_checkpoint(
    made: Recipe, jobs: dict[str, AnyJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = jobs["export"]
    assert isinstance(bare, ProgramJob)
    base = bare.outputs / "x/sft-mini-tinyworld/1"
    base.mkdir(parents=True)
    job = bare.given({"start": str(base)})
    assert job.arguments(Path("F")) == [str(base), "F/model", "--model-code", "a.py"]
    assert job.newest(finished=True) is None

    def work(arguments: list[str]) -> dict[str, float]:
        Path(arguments[1]).mkdir()
        return {"perf/samples_per_s": 2.5, "of its own": 1.0}

    monkeypatch.setattr(merge, "run", work)
    monkeypatch.setattr("signal.signal", lambda *handler: None)
    job.run()
    folder = job.newest(finished=True)
    assert folder and job.product(folder).is_dir()
    assert (parents.read(folder) or {})["init_from"] == str(base)
    assert job.command(folder) + "\n" == (folder / folders.COMMAND).read_text()
    other = bare.outputs / "x/sft-mini-tinyworld/2"
    assert bare.given({"start": str(other)}).newest(finished=True) is None, "another checkpoint"
    head, cells = _metrics_table([StepRun(made.steps["export"], job, folder, "ran")])
    assert (head, cells) == (["export"], [["perf/samples_per_s", "2.5"], ["of its own", "1"]]), "whatever it measured"

    def fails(arguments: list[str]) -> None:
        raise UserError("no space")

    monkeypatch.setattr(merge, "run", fails)
    with pytest.raises(UserError):
        bare.given({"start": str(other)}).run()
    assert bare.given({"start": str(other)}).newest(finished=True) is None
    assert bare.given({"start": str(other)}).newest(finished=False)


def test_steps_of_one_stage_stand_beside_each_other(made: Recipe, jobs: dict[str, AnyJob], tmp_path: Path) -> None:
    runs = []
    for number, (name, start) in enumerate({"sft": "pretrain", "sft_lora": "sft", "ppo": "sft_lora"}.items()):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 0, "time": 1.0, "eval/response_ppl": 9.0 - number}))
        last = {"eval/response_ppl": 8.0 - number, "eval/safe_rate": 0.5}
        folders.write_text_atomic(folder / folders.RESULT, json.dumps({"metrics": last, "minutes": 1.0}))
        parents.write(folder, {"init_from": str(tmp_path / start), "tokenizer": None}, tmp_path)
        runs.append(StepRun(made.steps[name], jobs[name], folder, "ran"))
    columns, table = _policies_table(runs)
    assert columns == ["start of SFT", "SFT", "start of sft_lora", "sft_lora", "start of PPO", "PPO"]
    assert {row[0]: row[1:] for row in table}["eval/response_ppl"] == ["9", "8", "8", "7", "7", "6"]


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ("sft: []\n  a: {stage: sft, start: b}", "a: start: b is no earlier step with a policy; there are: sft"),
        ("reward: []\n  a: {stage: ppo, start: reward}", "start: reward is no earlier step with a policy"),
        ("a: {stage: ppo}\n  sft: []", "a stands before sft, which it starts from"),
        ("a: {stage: sfd}", "Did you mean sft?"),
        ("a: {stage: sft, starts: b}", "Did you mean start?"),
        ("a: {program: merg}", "Did you mean merge?"),
        ("sft: []\n  a: {program: merge, stage: sft}", "must have either a stage"),
        ("sft: []\n  a: {settings: []}", "must have either a stage"),
        ("sft: []\n  a: {program: merge, settings: [fast]}", "not of the form KEY=VALUE"),
        ("a: {program: merge}", "no earlier step makes one"),
        ("a-b: {stage: sft}", "letters, digits and _ alone"),
        ("tokenizer: []\n  t: {stage: tokenizer, start: tokenizer}", "starts from no checkpoint"),
    ],
)
def test_a_step_of_another_form_is_named(steps: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        written(tmp_path, f"stages:\n  {steps}\n")
    assert says in str(caught.value)
    assert str(tmp_path / "mine.yaml") in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "says"),
    [("fast=1", "step a: unrecognized arguments: --fast"), ("model_code={sfd}", "{sfd} stands for no earlier step")],
)
def test_a_programs_options_are_checked_before_anything_runs(setting: str, says: str, tmp_path: Path) -> None:
    text = f"stages:\n  sft: []\n  a: {{program: merge, settings: ['{setting}']}}\n"
    with pytest.raises(UserError) as caught:
        all_jobs_of(written(tmp_path, text))
    assert says in str(caught.value)


def test_a_programs_checkpoint_must_be_there(tmp_path: Path) -> None:
    words = ["stages=export", f"paths.outputs={tmp_path / 'out'}"]
    made = written(tmp_path, "stages:\n  sft: []\n  export: {program: merge}\n")
    pipeline = Pipeline(made, parse_request(words), ["export"], [], all_jobs_of(made, *words))
    with pytest.raises(UserError, match=r"stages=export: stage export needs stage sft.*add it to stages=$"):
        _refuse_missing_parents(pipeline)
    assert not (tmp_path / "out").exists()


def test_plan_estimates_each_step_and_writes_nothing(tmp_path: Path, capsys: Any) -> None:
    words = ["plan=cpu", "stages=tokenizer,sft,sft_lora,export", f"paths.outputs={tmp_path / 'out'}"]
    made = written(
        tmp_path,
        "stages:\n  tokenizer: []\n  sft: []\n  sft_lora: {stage: sft, settings: [peft=lora]}\n"
        "  export: {program: merge}\n",
    )
    pipeline = Pipeline(made, parse_request(words), list(made.steps), [], all_jobs_of(made, *words))
    _print_plans(pipeline)
    said = capsys.readouterr().out
    assert said.count("trains no model") == 2
    assert said.index("== sft\nplan: stage=sft") < said.index("== sft_lora (stage sft)\nplan: stage=sft")
    assert "peft=lora" in said.split("== sft_lora")[1]
    assert not (tmp_path / "out").exists()
