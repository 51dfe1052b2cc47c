"""Recipes that read files of the user's: whole with those files, a clear word without them, and what each is known for:
MiniMind's layouts, 4-bit bases, a folder that transformers loads."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY, curve, write_rows
from tests.pipeline.test_pipeline import all_jobs_of
from tests.warm import WarmPython
from tinychat.config import checks
from tinychat.errors import UserError
from tinychat.pipeline.jobs import Job
from tinychat.pipeline.recipe import load_recipe
from tinychat.tinyworld import stories

CONF = REPOSITORY / "conf/pipeline"
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


@pytest.mark.parametrize("name", ["minimind2", "gpt2_100m", "llama2_style"])
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


def refusals(configs: list[Any]) -> Iterator[str]:
    for config in configs:
        try:
            checks.check(config)
        except UserError as error:
            yield str(error)


def run(warm: WarmPython, folder: Path, *words: str) -> Path:
    """A tiny recipe to its end; its folder of runs."""
    done = warm.run("tinychat.pipeline", folder, *words, "tracker=none", timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "outputs" / words[0].partition("=")[2]


def run_of(folder: Path, beginning: str) -> Path:
    (found,) = (path.parent for path in folder.glob(f"{beginning}*/*/result.json"))
    return found


@pytest.mark.slow  # a minute
def test_minimind_reads_its_files_as_they_are(warm: WarmPython, dataset: Path) -> None:
    words = ["tokenizer:data=text", "tokenizer:data.path=dataset/pretrain_hq.jsonl", "pretrain:data=text"]
    words += [
        "pretrain:data.path=dataset/pretrain_hq.jsonl",
        "sft:data=minimind_sft",
        "sft:data.path=dataset/sft_512.jsonl",
    ]
    words += ["sft_long:data=minimind_sft", "sft_long:data.path=dataset/sft_2048.jsonl", "dpo:data=minimind_dpo"]
    words += ["dpo:data.path=dataset/dpo.jsonl"]
    folder = run(warm, dataset.parent, "pipeline=minimind2_tiny", *words)
    for stage in ("pretrain", "dpo"):
        losses = curve(run_of(folder, stage))
        assert losses[max(losses)] < losses[1] - 0.1, stage
    runs = [path.parent for path in folder.glob("sft*/*/result.json")]
    starts = [(path / json.loads((path / "parents.json").read_text())["init_from"]).resolve() for path in runs]
    made = sorted(start.relative_to(folder.resolve()).parts[0].partition("-")[0] for start in starts)
    assert made == ["pretrain", "sft"], "the long one goes on from the short one"


@pytest.mark.slow  # a minute
@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="the qlora extra")
def test_gpt2_is_tuned_in_four_bits_under_zero2(warm: WarmPython, tmp_path: Path) -> None:
    words = ("sft:peft=qlora", "grpo:peft=qlora", "dpo:peft=qlora", "stages=all")
    folder = run(warm, tmp_path, "pipeline=gpt2_100m_tiny", *words)
    losses = curve(run_of(folder, "sft"))
    assert losses[max(losses)] < losses[1] - 0.3
    assert (run_of(folder, "grpo") / "checkpoints").is_dir()


@pytest.mark.slow  # a minute
def test_llama_is_exported_as_a_folder_that_transformers_loads(warm: WarmPython, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tinychat.runs import folders

    folder = run(warm, tmp_path, "pipeline=llama2_style_tiny")
    (exported,) = (path.parent for path in folder.glob("merge-*/*/model/config.json"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(exported), AutoTokenizer.from_pretrained(exported)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not (exported / "adapter_config.json").exists()
    ids = tokenizer.apply_chat_template([ASK], add_generation_prompt=True, return_tensors="pt")["input_ids"]
    trained = AutoModelForCausalLM.from_pretrained(folders.list_checkpoints(run_of(folder, "ppo"))[-1])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, trained(ids).logits, atol=1e-4, rtol=0)
