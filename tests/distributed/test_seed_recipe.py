"""experiment=seed_8x3090: composes for every stage, and runs on two processes of a CPU with a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.config.test_compose import composed
from tests.conftest import TINY_DATA, curve, result_of, run_train, save_base, write_rows
from tinychat.config import checks

RECIPE = "experiment=seed_8x3090"
STAGES = ("pretrain", "sft", "reward", "dpo", "ppo", "grpo", "rlvr")
# What differs from eight cards: two processes, a type that DeepSpeed has on a CPU, a tiny model, and little of all.
SHRUNK = (
    RECIPE,
    "launch.nproc=2",
    "device=cpu",
    "tracker=none",
    "stage.batch_size=8",  # still four passes a step
    "stage.micro_batch_size=1",
    "stage.max_steps=2",
    "stage.warmup_steps=0",
    "stage.context_length=64",
    "run_dir=run",
)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("ds", ["zero2_offload", "zero3_offload"])
def test_it_composes_and_is_consistent(stage: str, ds: str) -> None:
    config = composed(RECIPE, f"stage={stage}", f"ds={ds}")
    checks.check(config)
    assert config.stage.name == stage
    assert config.precision.value == "fp16"
    assert config.launch.nproc == 8
    assert 4 <= config.stage.batch_size // (config.stage.micro_batch_size * 8) <= 8
    zero = config.ds.config["zero_optimization"]
    assert zero["offload_optimizer"]["device"] == "cpu"
    assert ("offload_param" in zero) is (ds == "zero3_offload")
    assert config.optim.betas[1] == (0.999 if stage == "ppo" else 0.95)
    fewer = composed(RECIPE, f"stage={stage}", "launch.nproc=4")
    checks.check(fewer)


@pytest.mark.slow  # half a minute each
def test_two_processes_pretrain_with_it(tmp_path: Path, tiny_gpt2: tuple[str, ...], tokenizer_folder: Path) -> None:
    shape = [word for word in tiny_gpt2 if word.startswith("model.")]
    tokenizer = ("tokenizer=bpe", f"tokenizer.path={tokenizer_folder}")
    more = ("stage=pretrain", "precision=bf16", "stage.samples=[]", *shape, *tokenizer, *TINY_DATA)
    check_run(run_train(tmp_path, *SHRUNK, *more), tmp_path)


@pytest.mark.slow
def test_two_processes_learn_from_rewards_with_it(tmp_path: Path, tokenizer_folder: Path) -> None:
    check_run(run_train(tmp_path, *SHRUNK, *from_base(tmp_path, tokenizer_folder), *PPO), tmp_path)
    assert curve(tmp_path / "run", "rl/updates") == {1: 2.0, 2: 2.0}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_two_processes_fine_tune_with_it(stage: str, tmp_path: Path, tokenizer_folder: Path) -> None:
    more = ("data.max_rows=60", "data.max_val_rows=8", "template=instruct")
    more += ("stage.generate_rows=2", "stage.generate_tokens=4") if stage == "sft" else ()
    base = from_base(tmp_path, tokenizer_folder)
    words = (f"stage={stage}", "precision=bf16", "stage.context_length=256", *more)
    check_run(run_train(tmp_path, *SHRUNK, *base, *words), tmp_path)


PPO = (
    "stage=ppo",
    "ds=zero3_offload",
    "precision=fp32",
    "template=instruct",
    "data=prompts",
    "data.path=prompts.jsonl",
    "data.val_fraction=0.2",
    "stage.generate_rows=2",
    "reward=python",
    "reward.parts.python.path=count.py:score",
    "stage.rollout_size=8",
    "stage.rollout_batch_size=4",
    "stage.response_length=6",
    "stage.epochs=2",
    "stage.max_kl=null",
    "stage.eval_first=false",
    "stage.safety_prompts=0",
)


def from_base(folder: Path, tokenizer_folder: Path) -> tuple[str, ...]:
    """A checkpoint to start from, prompts and a reward."""
    save_base(folder / "base", tokenizer_folder)
    write_rows(folder / "prompts.jsonl", [{"prompt": f"{word} {n}"} for word in ("a cat", "a dog") for n in range(20)])
    (folder / "count.py").write_text(
        "def score(prompts, replies):\n    return [float(len(reply)) for reply in replies]\n"
    )
    return (f"init_from={folder / 'base'}",)


def check_run(done, folder: Path) -> None:
    assert done.returncode == 0, done.stderr[-3000:]
    result = result_of(folder / "run")
    assert result["status"] == "finished"
    assert result["facts"]["ranks"] == 2
    assert 2 in curve(folder / "run")
    assert (folder / "run" / "checkpoints" / "step-000002" / "model.safetensors").is_file()
