"""What a finished run and a missing package say: commands that work as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import REPOSITORY
from tinychat import errors
from tinychat.config.schema import RewardPart
from tinychat.config.specs import SPECS
from tinychat.runs import next_steps


def of_stage(name: str, outputs: str = "outputs") -> SimpleNamespace:
    paths = SimpleNamespace(outputs=outputs)
    model = SimpleNamespace(arch="qwen3")
    return SimpleNamespace(stage=SimpleNamespace(name=name), experiment_name="my lab", paths=paths, model=model)


def told(stage: str, run_dir: Path, said: list[str], **result: str) -> dict[str, str]:
    return dict(next_steps.lines(of_stage(stage), run_dir, result, said))  # type: ignore[arg-type]


def test_a_run_ends_with_its_checkpoint_report_and_the_next_command(tmp_path: Path) -> None:
    (tmp_path / "report.html").touch()
    said = ["stage=sft", "model=mini", "experiment_name=my lab", "stage.lr=0.1", "data=alpaca"]
    assert told("sft", tmp_path, said, checkpoint="checkpoints/step-000010") == {
        "checkpoint": f"{tmp_path}/checkpoints/step-000010",
        "report": f"{tmp_path}/report.html",
        "talk to it": f"python -m tinychat.chat {tmp_path}",
        "next": "python -m tinychat.train stage=reward model=mini 'experiment_name=my lab'",
    }


def test_a_model_of_ones_own_is_talked_to_with_its_code(tmp_path: Path) -> None:
    config = of_stage("sft")
    config.model = SimpleNamespace(arch="custom", path="my_model.py:MyConfig")
    found = dict(next_steps.lines(config, tmp_path, {"checkpoint": "c"}, []))  # type: ignore[arg-type]
    assert found["talk to it"] == f"python -m tinychat.chat --model-code my_model.py:MyConfig {tmp_path}"
    config.model.path = "transformers:LlamaConfig"
    found = dict(next_steps.lines(config, tmp_path, {"checkpoint": "c"}, []))  # type: ignore[arg-type]
    assert found["talk to it"] == f"python -m tinychat.chat {tmp_path}", "any program opens it"


def test_a_tokenizer_is_followed_by_training_on_its_texts(tmp_path: Path) -> None:
    found = told("tokenizer", tmp_path, ["stage=tokenizer", "data=text", "data.path=x.txt"], checkpoint="tokenizer")
    assert found["next"] == "python -m tinychat.train stage=pretrain data=text data.path=x.txt"
    assert found["report"].startswith("none could be written")
    assert "talk to it" not in found


def test_preferences_are_what_reinforcement_learning_and_its_measurement_go_on_with(tmp_path: Path) -> None:
    for stage, following in (("reward", "ppo"), ("ppo", "eval")):
        found = told(stage, tmp_path, ["data=pku_safe", "data.path=x", "stage.lr=1", f"stage={stage}"])
        assert found["next"] == f"python -m tinychat.train stage={following} data=pku_safe data.path=x"


def test_a_stage_of_an_experiment_is_followed_by_one_of_that_experiment(tmp_path: Path) -> None:
    said = ["experiment=minimind2", "tracker=none", "data.path=x"]
    assert told("pretrain", tmp_path, said)["next"].endswith("stage=sft experiment=minimind2 tracker=none")
    assert told("sft", tmp_path, said)["next"].endswith("stage=dpo experiment=minimind2 tracker=none"), (
        "no reward model"
    )
    assert told("dpo", tmp_path, said)["next"] == "python -m tinychat.train stage=eval tracker=none data.path=x"


def test_pass_at_k_is_measured_by_what_comes_next_too(tmp_path: Path) -> None:
    config = of_stage("rlvr")
    config.stage.pass_k = [1, 8]
    config.reward = SimpleNamespace(parts={})
    found = dict(next_steps.lines(config, tmp_path, {"checkpoint": "c"}, ["data=gsm8k"]))  # type: ignore[arg-type]
    assert found["next"] == "python -m tinychat.train stage=eval data=gsm8k 'stage.pass_k=[1,8]'"
    config.reward.parts["math"] = RewardPart(kind="verifier", weight=1.0, options={"answer": "math"})
    config.data = SimpleNamespace(source="prompts")
    said = ["data=prompts", "data.path=x.jsonl"]
    found = dict(next_steps.lines(config, tmp_path, {"checkpoint": "c"}, said))  # type: ignore[arg-type]
    assert found["next"].endswith("data=prompts data.path=x.jsonl 'stage.pass_k=[1,8]' data.answer=math")


def test_a_measurement_is_followed_by_a_comparison(tmp_path: Path) -> None:
    assert told("eval", tmp_path, ["stage=eval"])["next"] == "python -m tinychat.compare 'my lab' --stage eval"
    found = dict(next_steps.lines(of_stage("eval", "/o"), tmp_path, {}, []))  # type: ignore[arg-type]
    assert found["next"] == "python -m tinychat.compare 'my lab' --stage eval --outputs /o"


def test_a_stage_of_a_recipe_leaves_what_is_next_to_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(next_steps, "_parts", [])
    next_steps.leave_to("tinyworld")
    assert set(told("ppo", tmp_path, [], checkpoint="c")) == {"checkpoint", "report"}


def test_every_stage_with_a_checkpoint_says_what_is_next() -> None:
    assert [spec.name for spec in SPECS.values() if spec.next is None] == ["eval"]
    assert {spec.next for spec in SPECS.values() if spec.next} <= set(SPECS)


def test_the_command_that_installs_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tinychat").mkdir()
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "tinychat" / "errors.py"))
    assert errors.install_command("qlora") == "pip install 'tinychat[qlora]'"
    (tmp_path / "setup.cfg").touch()
    (tmp_path / "conf").mkdir()
    assert errors.install_command("qlora") == f"pip install -e '{tmp_path}[qlora]'"
    monkeypatch.chdir(tmp_path)
    assert errors.install_command("qlora") == "pip install -e '.[qlora]'"


def test_make_lists_every_target() -> None:
    text = (REPOSITORY / "Makefile").read_text()
    targets = re.findall(r"^([a-z-]+):", text, re.M)
    listed = re.findall(r"^([a-z-]+):.*## \S", text, re.M)
    assert "run" in targets and targets == listed
    assert set(re.findall(r"^\.PHONY: (.*)$", text, re.M)[0].split()) == set(targets)
