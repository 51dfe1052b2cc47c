"""stage=grpo and stage=rlvr through the command, on models of a few thousand parameters."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.commands.test_ppo import KILLER, made, metrics  # noqa: F401  the fixture `made`
from tests.conftest import TORCHRUN, run_train

# All replies to half of the prompts are worth the same.
LENGTHS = """
def score(prompts, replies):
    return [0.0 if "and" in prompt else len(reply) / 20 for prompt, reply in zip(prompts, replies)]
"""
# Refills, cut replies left out, a correction, tokens and rows left out: all that a step has, in each of these runs.
STEP = (
    "stage=grpo",
    "tracker=none",
    "data=prompts",
    "stage.group_size=4",
    "stage.rollout_size=8",
    "stage.batch_size=4",
    "stage.micro_batch_size=2",
    "stage.response_length=8",
    "stage.epochs=2",
    "stage.max_steps=3",
    "stage.warmup_steps=0",
    "stage.eval_first=false",
    "stage.safety_prompts=0",
    "stage.refill=2",
    "stage.correction=tis",
    "stage.drop_stale=0.5",
    "stage.entropy_share=0.8",
    "stage.entropy_coef=0.005",
    "stage.entropy_target=9",
    "stage.lr=1e-3",
    "precision=fp32",
)


def grpo(warm, made: Path, out: Path, *overrides: str, fails: bool = False, **options: bool):  # noqa: F811
    (out / "lengths.py").write_text(LENGTHS)
    reward = ("reward=python", f"reward.parts.python.path={out / 'lengths.py'}:score")
    given = (*STEP, f"init_from={made / 'sft'}", f"data.path={made / 'prompts.txt'}", *reward)
    done = warm.train(out, *given, f"run_dir={out / 'run'}", *overrides, **options)
    assert (done.returncode != 0) is fails, done.stderr[-3000:]
    return done


def weights(out: Path, step: int = 3) -> dict[str, torch.Tensor]:
    return load_file(out / "run" / "checkpoints" / f"step-{step:06d}" / "model.safetensors")


@pytest.fixture(scope="module")
def plain(warm, made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The run of one plain process."""
    out = tmp_path_factory.mktemp("plain")
    grpo(warm, made, out)
    return out


def test_a_run_leaves_a_policy_with_its_records(plain: Path) -> None:
    folder = plain / "run" / "checkpoints" / "step-000003"
    assert not (folder / "value").exists(), "there is no value function"
    assert metrics(plain, "rl/kl")[0] == pytest.approx(0, abs=1e-5)
    assert metrics(plain, "rl/updates") == [4, 4, 4]
    for name in ("groups_equal", "groups_right", "groups_wrong", "group_std", "group_unique", "ratio_max", "ratio_min"):
        assert len(metrics(plain, f"rl/{name}")) == 3, name
    assert metrics(plain, "rl/first_kl") == pytest.approx([0, 0, 0], abs=1e-9)
    assert metrics(plain, "rl/entropy_coef") == pytest.approx([0.005, 0.01, 0.015])
    assert metrics(plain, "rl/correction") == pytest.approx([1, 1, 1], abs=1e-3)
    assert sum(metrics(plain, "rl/groups_replaced")) > 0, "else nothing was refilled"
    drawn = [round(12 * epoch) for epoch in metrics(plain, "data/epoch")]
    assert drawn[-1] > 6, "two groups a step, and those that took the place of others"
    _, *replies = map(json.loads, (plain / "run" / "rollouts" / "step-000003.jsonl").read_text().splitlines())
    assert [replies[at]["prompt"] == replies[0]["prompt"] for at in range(8)] == [True] * 4 + [False] * 4
    assert {"logprobs", "ref_logprobs", "sampled", "advantages", "correction"} <= set(replies[0])
    assert "values" not in replies[0]
    result = json.loads((plain / "run" / "result.json").read_text())
    assert result["objective_name"] == "eval/objective"


@pytest.mark.parametrize(
    "split",
    [
        ("stage.micro_batch_size=1", "stage.rollout_batch_size=3"),
        pytest.param(TORCHRUN, marks=pytest.mark.slow),
        pytest.param(("ds=zero0",), marks=pytest.mark.slow),
        pytest.param(("ds=zero1", *TORCHRUN), marks=pytest.mark.slow),
        pytest.param(("ds=zero2", *TORCHRUN), marks=pytest.mark.slow),
        pytest.param(("ds=zero3",), marks=pytest.mark.slow),
        pytest.param(("ds=zero3", *TORCHRUN), marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_every_split_trains_alike(warm, made: Path, plain: Path, tmp_path: Path, split: tuple[str, ...]) -> None:  # noqa: F811
    more = ("stage.micro_batch_size=1",) if TORCHRUN[0] in split else ()
    grpo(warm, made, tmp_path, *split, *more, fork_ranks=True)
    for name in ("rl/reward", "rl/kl", "rl/policy_loss", "train/loss", "rl/approx_kl", "rl/ratio_max", "rl/ratio_min"):
        assert metrics(tmp_path, name) == pytest.approx(metrics(plain, name), abs=1e-4, rel=1e-3), name
    if "ds=zero3" not in split:
        found, wanted = weights(tmp_path), weights(plain)
        assert max((found[name] - wanted[name]).abs().max().item() for name in wanted) < 1e-3


@pytest.mark.parametrize("where", ["rollout", pytest.param("update", marks=pytest.mark.slow)])
def test_killed_in_a_step_it_ends_bit_identically(made: Path, plain: Path, tmp_path: Path, where: str) -> None:  # noqa: F811
    """In a refill too: the prompts that were drawn are counted."""
    trap, fuse = tmp_path / "trap.py", tmp_path / "fuse"
    trap.write_text(LENGTHS + KILLER.replace("ppo_loss", "grpo_loss").replace("ppo", "grpo").replace("ggrpo", "grpo"))
    variables: dict[str, Any] = {"TINYCHAT_TEST_FUSE": str(fuse), "TINYCHAT_TEST_WHERE": where}
    fuse.write_text("5" if where == "rollout" else "3")
    reward = ("reward=python", f"reward.parts.python.path={trap}:score")
    given = (*STEP, f"init_from={made / 'sft'}", f"data.path={made / 'prompts.txt'}", *reward, "checkpoint.every=1")
    done = run_train(tmp_path, *given, f"run_dir={tmp_path / 'run'}", **variables)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert (tmp_path / "run" / "checkpoints" / "step-000001").is_dir()
    assert not (tmp_path / "run" / "result.json").exists()
    fuse.unlink()
    done = run_train(tmp_path, *given, f"resume={tmp_path / 'run'}", **variables)
    assert done.returncode == 0, done.stderr[-3000:]
    found, wanted = weights(tmp_path), weights(plain)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert metrics(tmp_path, "rl/reward") == metrics(plain, "rl/reward")
    assert metrics(tmp_path, "data/epoch") == metrics(plain, "data/epoch")
