"""The recipes in conf/pipeline: each whole one is consistent with the files that it reads and says which is missing;
each tiny one runs from end to end without a network, once, with what its whole one is known for: MiniMind's layouts,
4-bit bases, a folder that transformers loads."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import curve, write_rows
from tests.pipeline.test_pipeline import CONF, FROM_FILES, all_jobs_of
from tests.warm import WarmPython
from tinychat.config import checks
from tinychat.errors import UserError
from tinychat.pipeline.jobs import Job, hand_on
from tinychat.pipeline.recipe import load_recipe, recipes
from tinychat.tinyworld import stories

TINY = [name for name in recipes(CONF) if name.endswith("_tiny")]
REPLY = {"role": "assistant", "content": "Red."}
ASK = {"role": "user", "content": "Which colour has the rose?"}


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """./dataset as the recipes name it: MiniMind's files, and folders of texts, conversations and pairs."""
    folder = tmp_path / "dataset"
    texts = [{"text": text} for text in stories(1, "train", 200)]
    chats = [{"conversations": [ask(n), REPLY, ask(n + 1), REPLY]} for n in range(0, 400, 2)]
    pairs = [{"chosen": [ask(n), REPLY], "rejected": [ask(n), {**REPLY, "content": "It is green."}]} for n in range(90)]
    for name, rows in (("pretrain_hq", texts), ("sft_512", chats), ("sft_2048", chats), ("dpo", pairs)):
        folder.mkdir(exist_ok=True)
        write_rows(folder / f"{name}.jsonl", rows)
    for name, rows in (("corpus", texts), ("text_en", texts), ("text_zh", texts), ("code", texts)):
        (folder / name).mkdir()
        write_rows(folder / name / "a.jsonl", rows)
    for name, rows in (("sft", chats), ("preferences", pairs)):
        (folder / name).mkdir()
        write_rows(folder / name / "a.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    return folder


def ask(number: int) -> dict[str, str]:
    return {**ASK, "content": f"{ASK['content'][:-1]} number {number}?"}


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_recipe_has_the_steps_of_the_whole_one_and_no_data_of_its_own(name: str) -> None:
    tiny, whole = load_recipe(name, CONF), load_recipe(name.removesuffix("_tiny"), CONF)
    assert tiny.common[0] == f"experiment={name}" and whole.common[0] == f"experiment={name.removesuffix('_tiny')}"
    steps = {step: (made.stage, made.program, made.start) for step, made in tiny.steps.items()}
    wanted = {step: (made.stage, made.program, made.start) for step, made in whole.steps.items()}
    steps.pop("tokenizer", None)  # a small one in place of another's
    wanted.pop("tokenizer", None)
    assert steps == wanted
    for made in (tiny, whole):
        assert made.path.read_text().startswith(f"# python -m tinychat.pipeline pipeline={made.path.stem}")
    assert tiny.samples and set(tiny.gates) and tiny.more == whole.more
    for job in all_jobs_of(tiny).values():
        if isinstance(job, Job):
            assert job.config.experiment_name == name
            assert job.config.data.source in ("tinyworld", "corpus"), "generated here"


@pytest.mark.parametrize("name", FROM_FILES)
def test_a_whole_recipe_is_consistent_and_says_which_file_is_missing(name: str, dataset: Path) -> None:
    recipe = load_recipe(name, CONF)
    jobs = {step: job for step, job in all_jobs_of(recipe).items() if isinstance(job, Job)}
    for step, job in jobs.items():
        checks.check(job.config)
        assert job.config.experiment_name == name, step
    found: dict[str, Any] = {step: job.config for step, job in jobs.items()}
    if name == "minimind2":
        assert (found["dpo"].stage.batch_size, found["dpo"].launch.nproc) == (4, 2)
        assert [found[step].stage.context_length for step in ("pretrain", "sft", "sft_long")] == [512, 512, 2048]
        assert recipe.steps["sft_long"].start == ("sft",)
        missing = dataset / "sft_2048.jsonl"
    elif name == "gpt2_100m":
        sft, grpo = found["sft"], found["grpo"]
        assert (sft.peft.kind.value, sft.peft.r, sft.stage.lr) == ("qlora", 64, 1e-4)
        assert (grpo.stage.beta, grpo.stage.scale_by_std, grpo.peft.kind.value) == (0.05, False, "qlora")
        for config in (found[step] for step in ("pretrain", "sft", "reward", "grpo")):
            assert config.stage.batch_size == 4 * config.stage.micro_batch_size
            assert config.stage.activation_checkpointing and config.ds.name == "zero2"
        missing = dataset / "preferences/a.jsonl"
    else:
        assert found["pretrain"].model.path == "transformers:LlamaConfig"
        assert recipe.steps["export"].program == "merge"
        missing = dataset / "corpus/a.jsonl"
    missing.unlink()
    if missing.parent != dataset:
        missing.parent.rmdir()
        missing = missing.parent
    lines = list(refusals([job.config for job in jobs.values()]))
    assert any(f"data.path=dataset/{missing.name}: no such file or folder" in line for line in lines), lines


def test_real_data_come_from_one_folder_and_each_reward_model_scores_its_own(tmp_path: Path) -> None:
    for name in ("alpaca", "pku_saferlhf"):
        (tmp_path / name).mkdir()
    recipe = load_recipe("real", CONF)
    made = all_jobs_of(recipe, f"data.root={tmp_path}", "model.path=me/smollm2")
    jobs = {step: job for step, job in made.items() if isinstance(job, Job)}
    for step, job in jobs.items():
        checks.check(job.config)
        assert job.config.experiment_name == "real", step
        parts = [job.config.data.path, *(part.path for part in job.config.data.mix.values())]
        assert {Path(path).parent for path in parts if path} == {tmp_path}, "nothing is read from the hub"
        assert (job.config.init_from == "me/smollm2") is (step in ("judge", "base", "sft"))
    found = {step: Path(f"out/{step}") for step in recipe.steps}
    handed = hand_on(jobs["ppo"], recipe, found)
    assert handed["stage.judge"] == "out/judge"
    starts = {
        hand_on(jobs[step], recipe, found)["init_from"] for step in ("reward", "helpful", "ppo", "ppo_lagrangian")
    }
    assert starts == {"out/sft_model"}, "adapters of one base"
    assert handed["reward.parts.harmlessness.path"] == "out/reward"
    assert handed["reward.parts.helpfulness.path"] == "out/helpful"
    (tmp_path / "alpaca").rmdir()
    lines = list(refusals([job.config for job in jobs.values()]))
    assert any(f"{tmp_path}/alpaca: no such file or folder" in line for line in lines), lines


def test_the_seeds_policy_is_scored_by_models_that_read_its_replies_as_text(tmp_path: Path) -> None:
    for name in ("alpaca", "pku_saferlhf", "tinystories", "gsm8k"):
        (tmp_path / name).mkdir()
    recipe = load_recipe("real_seed", CONF)
    jobs = {step: job for step, job in all_jobs_of(recipe, f"data.root={tmp_path}").items() if isinstance(job, Job)}
    for step, job in jobs.items():
        checks.check(job.config)
        scores = step in ("reward", "judge")
        assert job.config.experiment_name == "real_seed"
        assert step == "word_judge" or job.config.model.name == ("smollm2_135m" if scores else "gpt6x512"), step
    for step in ("ppo", "grpo"):
        handed = hand_on(jobs[step], recipe, {name: Path(f"out/{name}") for name in recipe.steps})
        assert (handed["init_from"], handed["reward.parts.text_model.path"]) == ("out/sft", "out/reward")


def refusals(configs: list[Any]) -> Iterator[str]:
    for config in configs:
        try:
            checks.check(config)
        except UserError as error:
            yield str(error)


# --- from end to end


def run_of(folder: Path, beginning: str) -> Path:
    (found,) = (path.parent for path in folder.glob(f"{beginning}*/*/result.json"))
    return found


def starts_where_the_step_before_ended(folder: Path) -> None:
    """MiniMind's second SFT goes on from the first, and DPO learns."""
    runs = [path.parent for path in folder.glob("sft*/*/result.json")]
    starts = [(path / json.loads((path / "parents.json").read_text())["init_from"]).resolve() for path in runs]
    of = [start.relative_to(folder.resolve()).parts[0] for start in starts]
    assert sorted(name.partition("-")[0] for name in of) == ["pretrain", "sft"]
    losses = curve(run_of(folder, "dpo"))
    assert losses[max(losses)] < losses[1] - 0.1


def learns_with_adapters(folder: Path) -> None:
    losses = curve(run_of(folder, "sft"))
    assert losses[max(losses)] < losses[1] - 0.3
    assert (run_of(folder, "grpo") / "checkpoints").is_dir()
    if HAS_QLORA:
        config = (run_of(folder, "grpo") / "config.yaml").read_text()
        assert "kind: qlora" in config and "name: zero2" in config


def is_loaded_by_transformers(folder: Path) -> None:
    """What the step `export` has written, which says what PPO's checkpoint does."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tinychat.runs import folders

    (exported,) = (path.parent for path in folder.glob("merge-*/*/model/config.json"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(exported), AutoTokenizer.from_pretrained(exported)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not (exported / "adapter_config.json").exists()
    ids = tokenizer.apply_chat_template([ASK], add_generation_prompt=True, return_tensors="pt")["input_ids"]
    trained = AutoModelForCausalLM.from_pretrained(folders.list_checkpoints(run_of(folder, "ppo"))[-1])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, trained(ids).logits, atol=1e-4, rtol=0)


HAS_QLORA = importlib.util.find_spec("bitsandbytes") is not None
# Settings beside the recipe's own, and what holds of its runs.
SETTINGS = {
    "minimind2_tiny": [
        *(f"{step}:data=text" for step in ("tokenizer", "pretrain")),
        *(f"{step}:data.path=dataset/pretrain_hq.jsonl" for step in ("tokenizer", "pretrain")),
        *("sft:data=minimind_sft", "sft:data.path=dataset/sft_512.jsonl"),
        *("sft_long:data=minimind_sft", "sft_long:data.path=dataset/sft_2048.jsonl"),
        *("dpo:data=minimind_dpo", "dpo:data.path=dataset/dpo.jsonl"),
    ],
    "gpt2_100m_tiny": ["stages=all", *(f"{step}:peft=qlora" for step in ("sft", "grpo", "dpo") if HAS_QLORA)],
}
HOLDS: dict[str, Callable[[Path], None]] = {
    "minimind2_tiny": starts_where_the_step_before_ended,
    "gpt2_100m_tiny": learns_with_adapters,
    "llama2_style_tiny": is_loaded_by_transformers,
}


@pytest.mark.slow  # a minute or two each
@pytest.mark.parametrize("name", TINY)
def test_a_tiny_recipe_runs_from_end_to_end_and_is_skipped_when_it_has(
    warm: WarmPython, dataset: Path, name: str
) -> None:
    words = [f"pipeline={name}", *SETTINGS.get(name, []), "tracker=none"]
    done = warm.run("tinychat.pipeline", dataset.parent, *words, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    runs = dataset.parent / "outputs" / name
    (folder,) = (runs / "pipeline").iterdir()
    verdicts = {row["gate"]: row["verdict"] for row in json.loads((folder / "gates.json").read_text())}
    assert set(verdicts.values()) <= {"pass", "reported"}, verdicts
    page = (folder / "report.md").read_text()
    made = load_recipe(name, CONF)
    steps = [step for step in made.steps if "stages=all" in words or step not in made.more]
    for step in steps:
        assert f"== {step}: " in done.stderr
        assert step.replace("_", "\\_") in page
    losses = curve(run_of(runs, "pretrain"))
    assert losses[max(losses)] < losses[1] - 0.1
    if holds := HOLDS.get(name):
        holds(runs)

    again = warm.run("tinychat.pipeline", dataset.parent, *words, timeout=300)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stderr.count("finished already in") == len(steps)
