"""The recipes in conf/pipeline: every one is whole, and the tiny ones run from end to end without a network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pipeline.test_pipeline import CONF, all_jobs_of
from tests.warm import WarmPython
from tinychat.pipeline.jobs import Job
from tinychat.pipeline.recipe import load_recipe, recipes

TINY = [name for name in recipes(CONF) if name.endswith("_tiny")]


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_recipe_has_the_steps_of_the_whole_one_and_no_data_of_its_own(name: str) -> None:
    tiny, whole = load_recipe(name, CONF), load_recipe(name.removesuffix("_tiny"), CONF)
    assert tiny.common[0] == f"experiment={name}" and whole.common[0] == f"experiment={name.removesuffix('_tiny')}"
    steps = {step: (made.stage, made.program, made.start) for step, made in tiny.steps.items()}
    wanted = {step: (made.stage, made.program, made.start) for step, made in whole.steps.items()}
    steps.pop("tokenizer", None)  # a small one in place of another's
    wanted.pop("tokenizer", None)
    assert steps == wanted
    assert tiny.samples and set(tiny.gates) and tiny.more == whole.more
    for job in all_jobs_of(tiny).values():
        if isinstance(job, Job):
            assert job.config.experiment_name == name
            assert job.config.data.source in ("tinyworld", "corpus"), "generated here"


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_tiny_recipe_runs_from_end_to_end_and_is_skipped_when_it_has(
    warm: WarmPython, tmp_path: Path, name: str
) -> None:
    done = warm.run("tinychat.pipeline", tmp_path, f"pipeline={name}", "tracker=none", timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = (tmp_path / "outputs" / name / "pipeline").iterdir()
    verdicts = {row["gate"]: row["verdict"] for row in json.loads((folder / "gates.json").read_text())}
    assert set(verdicts.values()) <= {"pass", "reported"}, verdicts
    page = (folder / "report.md").read_text()
    made = load_recipe(name, CONF)
    for step in made.steps:
        if step not in made.more:
            assert f"== {step}: " in done.stderr
            assert page.count(step.replace("_", "\\_")) >= 1
    again = warm.run("tinychat.pipeline", tmp_path, f"pipeline={name}", "tracker=none", timeout=300)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stderr.count("finished already in") == len(made.steps) - len(made.more)
