"""A stage is described once: an entry in SPECS is all that the house needs, and nothing else names a stage."""

from __future__ import annotations

import ast
import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import MISSING, OmegaConf

from tests.config.test_compose import CONF, composed
from tests.conftest import REPOSITORY
from tinychat import train
from tinychat.chat import session
from tinychat.config import checks, schema
from tinychat.config.explain import known_keys
from tinychat.config.rollout_stages import PpoStage, RolloutStage
from tinychat.config.specs import SPECS, Made, StageSpec, Start, makers, recipe_order
from tinychat.config.stages import ReplyEvaluation, TrainLoop
from tinychat.errors import UserError
from tinychat.launch import worker
from tinychat.pipeline.jobs import Composer, hand_on, needs
from tinychat.pipeline.recipe import Request, load_recipe
from tinychat.plan.estimate import estimate
from tinychat.plan.report import describe
from tinychat.runs import folders, next_steps, parents
from tinychat.stages import Context, StageResult
from tinychat.tracking import vocabulary

PACKAGE = REPOSITORY / "tinychat"


@dataclass
class PairsStage(TrainLoop, ReplyEvaluation):
    """Made up: learns from pairs, beside the policy it starts from."""

    context_length: int | None = MISSING
    beta: float = MISSING
    eval_batch_size: int = MISSING

    def problems(self, ranks: int) -> Any:
        yield from super().problems(ranks)
        if self.beta <= 0:
            yield f"stage.beta={self.beta}: above 0"


def run_pairs(config: schema.Config, context: Context) -> StageResult:
    context.log(1, {"eval/reward_accuracy": config.stage.beta})
    return StageResult({"eval/reward_accuracy": config.stage.beta}, "eval/reward_accuracy")


PAIRS = StageSpec(
    name="pairs",
    settings=PairsStage,
    run="tests.config.test_specs:run_pairs",
    reads="preferences",
    part="reward",
    makes=Made.language,
    called="a policy trained on pairs",
    title="Pairs",
    start=Start.checkpoint,
    starts_from=("sft",),
    adapters=True,
    sequences=2,
    reference=True,
    objective="eval/reward_accuracy",
    headlines=("eval/reward_accuracy",),
    metrics=("train/*", "eval/reward_accuracy*"),
    loss=("loss", "nats per pair"),
    next="ppo",
)
GROUPS = StageSpec(
    name="groups",
    settings=RolloutStage,
    run="tests.config.test_specs:run_pairs",
    reads="prompts",
    makes=Made.language,
    called="a policy",
    title="Groups",
    start=Start.checkpoint,
    starts_from=("pairs", "sft"),
    rewards=True,
    adapters=True,
    reference=True,
    objective="eval/objective",
    headlines=("eval/objective",),
    metrics=("rl/*", "eval/objective"),
    next="eval",
)


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of conf/ with a file for each of two made-up stages, which are in SPECS."""
    folder = tmp_path / "conf"
    shutil.copytree(CONF, folder)
    for spec, like in ((PAIRS, "sft"), (GROUPS, "ppo")):
        monkeypatch.setitem(SPECS, spec.name, spec)
        text = (
            (folder / "stage" / f"{like}.yaml").read_text().replace(f"schema/stage/{like}", f"schema/stage/{spec.name}")
        )
        head, _, _ = text.partition("\nstage:\n")
        keys = {field.name for field in dataclasses.fields(spec.settings)}
        own = {key: value for key, value in yaml.safe_load(text)["stage"].items() if key in keys}
        own |= {"name": spec.name} | ({"beta": 0.1} if "beta" in keys else {})
        lines = [line for line in head.splitlines() if "override /data" not in line]
        (folder / "stage" / f"{spec.name}.yaml").write_text("\n".join(lines) + "\n" + yaml.safe_dump({"stage": own}))
    monkeypatch.setattr(train, "config_folder", lambda: str(folder))
    known_keys.cache_clear()
    return folder


def job(conf: Path, *words: str) -> Any:
    schema.register()
    with initialize_config_dir(str(conf)):
        return compose("config", ["tracker=none", "device=cpu", f"paths.outputs={conf.parent / 'outputs'}", *words])


def finished(conf: Path, stage: str) -> Path:
    """The folder of a finished run of a stage, with one checkpoint; returned as the checkpoint."""
    run = conf.parent / "outputs" / "tinychat" / f"{stage}-mini-tinyworld" / "2026-01-01_00-00-00"
    checkpoint = run / folders.CHECKPOINTS / "step-000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}")
    node = job(conf, f"stage={stage}", "experiment_name=tinychat")
    (run / folders.CONFIG).write_text(OmegaConf.to_yaml(node, resolve=True))
    result = {"status": "finished", "checkpoint": "checkpoints/step-000001"}
    (run / folders.RESULT).write_text(json.dumps(result))
    return checkpoint


def test_checks_know_a_stage_by_its_entry(conf: Path) -> None:
    def check(*words: str) -> None:
        checks.check(schema.to_config(job(conf, "stage=pairs", *words)))

    check("peft=lora")
    wrong = {
        "stage.beta=0": r"stage\.beta=0\.0: above 0",
        "data=tinystories": "data=tinystories has no preferences, which stage=pairs takes",
        "stage.micro_batch_size=3": "does not divide into forward passes",
    }
    for word, says in wrong.items():
        with pytest.raises(UserError, match=says):
            check(word)
    assert "stage.beta" in known_keys("pairs")
    groups = schema.to_config(job(conf, "stage=groups"))
    groups.reward.parts = {}
    with pytest.raises(UserError, match=r"reward\.parts=\{\}"):
        checks.check(groups)


def test_an_unknown_stage_is_one_line() -> None:
    with pytest.raises(UserError, match=r"stage\.name=pears: no such stage; there are corpus, tokenizer, pretrain"):
        composed("stage.name=pears")


def test_parents_and_the_next_command_follow_from_the_entry(conf: Path) -> None:
    config = schema.to_config(job(conf, "stage=pairs"))
    with pytest.raises(UserError, match=r"no finished sft run .* make one: python -m tinychat.train stage=sft"):
        parents.find_parents(config)
    config.init_from = None
    with pytest.raises(UserError, match="init_from=null: stage=pairs starts from a checkpoint"):
        parents.find_parents(config)
    groups = schema.to_config(job(conf, "stage=groups"))
    with pytest.raises(UserError, match="stage=groups needs a policy trained on pairs and a reward model") as caught:
        parents.find_parents(groups)
    places = [str(caught.value).find(f"stage={name}") for name in ("tokenizer", "pretrain", "sft", "pairs", "reward")]
    assert places == sorted(places) and -1 not in places, caught.value

    config.init_from = "auto"
    checkpoint = finished(conf, "sft")
    assert parents.find_parents(config)["init_from"] == str(checkpoint)
    own, reward = finished(conf, "pairs"), finished(conf, "reward")
    found = parents.find_parents(groups)
    assert (found["init_from"], found["reward.model"]) == (str(own), str(reward)), "the most wanted first"
    measured = parents.find_parents(schema.to_config(job(conf, "stage=eval")))
    assert measured["init_from"] == str(own), "what makes a policy can be measured"

    run = own.parent.parent
    lines = dict(next_steps.lines(config, run, {}, ["data=tinyworld"]))
    assert lines["next"] == "python -m tinychat.train stage=ppo data=tinyworld"
    assert lines["talk to it"] == f"python -m tinychat.chat {run}"
    assert session.find("pairs-mini-tinyworld", run.parent.parent) == str(own)


@pytest.mark.slow
def test_a_plan_counts_the_models_of_the_entry(conf: Path) -> None:
    small = ("plan=3090", "tokenizer.vocab_size=512", "model.n_layer=1", "tuned=none")
    pairs = estimate(schema.to_config(job(conf, "stage=pairs", *small)))
    assert [model.name for model in pairs.models] == ["policy"], "its reference is asked once, and is itself"
    assert pairs.work.rows == 2 * pairs.config.stage.micro_batch_size
    assert set(pairs.seconds) > {"reference, once"}
    adapted = estimate(schema.to_config(job(conf, "stage=pairs", "peft=lora", *small)))
    assert [model.name for model in adapted.models] == ["policy"] and adapted.seconds["reference, once"] > 0
    groups = estimate(schema.to_config(job(conf, "stage=groups", *small)))
    assert [model.name for model in groups.models] == ["policy", "reference", "reward model"], "no value function"
    assert "replies of" in describe(groups)[1] and "sampling" in groups.seconds
    alone = estimate(schema.to_config(job(conf, "stage=grpo", "stage.beta=0", *small)))
    assert [model.name for model in alone.models] == ["policy", "reward model"], "nothing is compared with a reference"
    verified = estimate(schema.to_config(job(conf, "stage=groups", "reward=verifier", *small)))
    assert [model.name for model in verified.models] == ["policy", "reference"]
    with pytest.raises(UserError, match=r"stage=eval trains no model; there are pretrain, sft, .*pairs, groups"):
        estimate(schema.to_config(job(conf, "stage=eval", "plan=3090")))


def test_a_recipe_has_a_place_for_the_stage_and_hands_it_on(conf: Path) -> None:
    order = recipe_order()
    assert order.index("sft") < order.index("pairs") < order.index("groups") < order.index("eval") == len(order) - 1
    path = conf / "pipeline" / "mine.yaml"
    path.write_text("stages: {eval: [], groups: [], pairs: [], sft: [], reward: []}\ngates: {x: pairs eval/loss}\n")
    made = load_recipe(str(path), conf / "pipeline")
    assert list(made.steps) == ["sft", "reward", "pairs", "groups", "eval"]
    with Composer(made, Request()) as composer:
        jobs = composer.jobs()
    found: dict[str, Path | None] = {stage: Path(stage) for stage in made.steps}
    assert needs(jobs["pairs"], made) == ["sft"] and needs(jobs["groups"], made) == ["pairs", "reward"]
    assert hand_on(jobs["pairs"], made, found) == {"init_from": "sft"}
    given = hand_on(jobs["groups"], made, found)
    assert (given["init_from"], given["reward.parts.model.path"]) == ("pairs", "reward")
    assert hand_on(jobs["eval"], made, found)["stage.against"] == ["sft", "pairs"]


def test_the_vocabulary_knows_the_stages_metrics(conf: Path) -> None:
    measured = ["train/loss", "eval/reward_accuracy"]
    assert "eval/reward_accuracy_low" in vocabulary.metrics_of("pairs")
    assert vocabulary.headlines_of("pairs", measured) == ["eval/reward_accuracy"]
    assert vocabulary.label_of("train/loss", "pairs") == ("loss", "nats per pair")


def test_a_rank_runs_the_function_that_the_entry_names(conf: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / folders.CONFIG).write_text(OmegaConf.to_yaml(job(conf, "stage=pairs", "stage.beta=0.25"), resolve=True))
    parents.write(run_dir, {}, run_dir)
    assert worker.run(run_dir) == 0
    result = json.loads((run_dir / folders.RESULT).read_text())
    assert (result["status"], result["objective"]) == ("finished", 0.25)


def test_a_recipe_comes_in_the_order_in_which_stages_build_on_each_other() -> None:
    made = ("corpus", "word_judge", "tokenizer", "pretrain", "sft", "reward", "judge", "dpo", "ppo", "grpo", "rlvr")
    assert recipe_order() == (*made, "eval")
    assert makers(Made.language) == ("pretrain", "sft", "dpo", "ppo", "grpo", "rlvr")
    for spec in SPECS.values():
        module, _, function = spec.run.partition(":")
        path = REPOSITORY / f"{module.replace('.', '/')}.py"
        assert f"def {function}(config: Config, context: Context) -> StageResult:" in path.read_text()
        assert (CONF / "stage" / f"{spec.name}.yaml").is_file()
        assert set(spec.origins) <= SPECS.keys()
        assert (spec.settings is PpoStage) == spec.value


# --- no module but its own names a stage

# Words that mean something else too; of these only comparisons, tables and imports tell.
COMMON = {"corpus", "tokenizer", "reward", "judge", "eval", "grpo"}


def names_of_stages(path: Path) -> list[str]:
    """Places in a module that tell stages apart by name or type."""
    tree, found = ast.parse(path.read_text()), []
    own = {spec.name for spec in SPECS.values() if spec.run.startswith(f"{module_of(path)}:")}
    names = SPECS.keys() - own
    types = {spec.settings.__name__ for spec in SPECS.values() if spec.name in names}

    def said(node: ast.AST) -> set[str]:
        return {one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)}

    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)):
                wrong = text in names - COMMON
            case ast.Compare():
                wrong = bool(said(node) & SPECS.keys()) and "stage" in ast.unparse(node)
            case ast.Dict() | ast.Set() | ast.Tuple() | ast.List():
                wrong = len(said(node) & names & COMMON) > 2
            case ast.ImportFrom():
                wrong = bool(types & {alias.name for alias in node.names})
            case _:
                continue
        if wrong:
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)


def test_no_other_module_names_a_stage() -> None:
    told = {
        str(path.relative_to(PACKAGE)): found
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "config" / "specs.py" and (found := names_of_stages(path))
    }
    assert told == {}


@pytest.mark.parametrize(
    "line",
    [
        'config.stage.name == "reward"',
        '{"sft": 1}',
        'stage in ("tokenizer", "eval")',
        "from tinychat.config.stages import SftStage",
    ],
)
def test_the_search_finds_what_names_a_stage(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.REPOSITORY", tmp_path)
    (tmp_path / "some.py").write_text(f"{line}\n")
    assert len(names_of_stages(tmp_path / "some.py")) >= 1
