"""Every stage's bare command is worth its minutes: with a tenth of its data and steps each does better than chance and
than the checkpoint it began with, and the next one builds on it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.conftest import curve, result_of
from tests.warm import WarmPython

# What the stages have by default (conf/tuned), divided by ten; nothing else is changed but what is measured.
TENTH = (
    "tokenizer:data.max_docs=130",
    "pretrain:data.max_docs=170 pretrain:stage.max_steps=190 pretrain:stage.sample_tokens=4",
    "pretrain:data.max_val_docs=30",
    "sft:data.max_rows=5400 sft:stage.max_steps=194 sft:data.max_val_rows=200 sft:stage.eval_rows=100",
    "reward:data.max_rows=1450 reward:stage.max_steps=62 reward:data.max_val_rows=200",
    "ppo:stage.max_steps=4 ppo:data.max_rows=600 ppo:stage.generate_rows=50 ppo:stage.safety_prompts=50",
)
STAGES = ("tokenizer", "pretrain", "sft", "reward", "ppo")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(warm: WarmPython, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The finished run of each stage."""
    folder = tmp_path_factory.mktemp("defaults")
    words = [word for line in TENTH for word in line.split()]
    done = warm.run("tinychat.pipeline", folder, f"stages={','.join(STAGES)}", "tracker=none", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {stage: list((folder / "outputs").glob(f"*/{stage}-*/*")) for stage in STAGES}
    assert [len(of_stage) for of_stage in found.values()] == [1] * len(STAGES)
    return {stage: only for stage, (only,) in found.items()}


def test_pretraining_beats_guessing(runs: dict[str, Path]) -> None:
    result = result_of(runs["pretrain"])
    assert result["metrics"]["eval/loss"] < 0.75 * math.log(2048)
    assert "warning" not in result["facts"]


def test_fine_tuning_beats_the_checkpoint_it_began_with(runs: dict[str, Path]) -> None:
    losses, right = (curve(runs["sft"], f"eval/{name}") for name in ("response_loss", "instruction_accuracy"))
    steps = sorted(losses)
    assert steps[0] == 0
    assert losses[steps[-1]] < 0.6 * losses[0]
    assert right[steps[-1]] > right[0]


def test_a_reward_model_beats_a_coin(runs: dict[str, Path]) -> None:
    metrics = result_of(runs["reward"])["metrics"]
    assert metrics["eval/reward_accuracy_low"] > 0.5
    assert metrics["eval/loss"] < math.log(2)


def test_ppo_beats_the_policy_it_began_with(runs: dict[str, Path]) -> None:
    rewards = curve(runs["ppo"], "eval/reward")
    assert rewards[max(rewards)] > rewards[0]
