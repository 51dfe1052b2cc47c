"""PPO and GRPO on prompts of two kinds, with a reward under a constraint and with one for each kind."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_rows
from tests.reward_models import started, stir, write
from tests.stages.test_rollouts import GROUP, made, surroundings  # noqa: F401  a fixture
from tinychat.config.stages import ScoreRange
from tinychat.models.reward import set_normalisation
from tinychat.stages import StageResult, grpo, ppo

STEPS = 2


@pytest.fixture(scope="module")
def root(made: Path) -> Path:  # noqa: F811
    """Both kinds of prompt in the babbler's words, and beside `made` a second reward model, `safe`."""
    (made / "pku_saferlhf").mkdir()
    (made / "alpaca").mkdir()
    safe = {"is_response_0_safe": True, "is_response_1_safe": False, "safer_response_id": 0}
    words = ("the cat", "the dog", "mat", "cat and", "dog sat", "on the mat", "sat", "and")
    pairs = [{"prompt": f"{word} on", "response_0": "sat", "response_1": "mat", **safe} for word in words]
    write_rows(made / "pku_saferlhf/train.jsonl", pairs)
    write_rows(made / "pku_saferlhf/test.jsonl", [{**pairs[0], "prompt": f"{word} sat"} for word in words])
    write_rows(
        made / "alpaca/train.jsonl",
        [{"instruction": f"{a} {b}", "input": "", "output": "the cat sat"} for a in words for b in words],
    )
    model = started(made / "sft")
    stir(model)
    set_normalisation(model, 0.1, 0.5, ScoreRange.standard)
    write(model, made / "safe")
    return made


def run(root: Path, run_dir: Path, *overrides: str, stage: str = "ppo") -> StageResult:
    mixed = ("data=safe_and_helpful", f"data.root={root}", "data.path=null", "data.val_path=null")
    config, context = surroundings(root, run_dir, *mixed, f"stage.max_steps={STEPS}", *overrides, stage=stage)
    context.parents.update({"reward.helpfulness": str(root / "reward"), "reward.cost": str(root / "safe")})
    context.parents["reward.harmlessness"] = str(root / "safe")
    return {"ppo": ppo, "grpo": grpo}[stage].run(config, context)


LAGRANGIAN = ("reward=lagrangian", "reward.parts.helpfulness.path=x", "reward.parts.cost.path=y")


def logged(run_dir: Path, name: str) -> list[Any]:
    lines = (run_dir / "rollouts" / f"step-{step:06d}.jsonl" for step in range(1, STEPS + 1))
    return [[reply[name] for reply in map(json.loads, line.read_text().splitlines()[1:])] for line in lines]


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_the_multiplier_follows_the_mean_cost_and_the_reward_follows_it(
    root: Path, tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, float]] = []
    monkeypatch.setattr("tinychat.stages.Context.log", lambda _self, _step, row: seen.append(dict(row)))
    more = ("stage.group_size=4",) if stage == "grpo" else ()
    limit = -100.0  # below any cost: λ can only climb
    run(root, tmp_path / "run", *LAGRANGIAN, f"reward.cost_limit={limit}", "reward.multiplier.rate=1e-4",
        "reward.multiplier.start=0.5", "stage.lr=1e-3", *more, stage=stage)  # fmt: skip
    steps = [row for row in seen if "rl/lagrange_multiplier" in row]
    assert len(steps) == STEPS
    log = math.log(0.5)
    for row in steps:
        now = math.exp(log)
        assert row["rl/lagrange_multiplier"] == pytest.approx(now, rel=1e-12)
        assert row["rl/reward"] == pytest.approx((row["rl/helpfulness"] - now * row["rl/cost"]) / (1 + now), abs=1e-5)
        log += 1e-4 * now * (row["rl/cost"] - limit)
    assert steps[-1]["rl/lagrange_multiplier"] > steps[0]["rl/lagrange_multiplier"]
    told = {"rl/harmful_cost", "rl/benign_cost", "rl/harmful_reward", "rl/benign_reward"}
    assert told <= {name for row in steps for name in row}
    (last,) = [row for row in seen if "eval/cost" in row]
    at_start = (last["eval/helpfulness"] - 0.5 * last["eval/cost"]) / 1.5
    assert last["eval/reward"] == pytest.approx(at_start, abs=1e-5), "of the first multiplier, so that they compare"
    kinds = logged(tmp_path / "run", "kind")
    assert {kind for step in kinds for kind in step} == {"harmful", "benign"}, "on disk"
    if stage == "grpo":
        assert all(len({*step[at : at + GROUP]}) == 1 for step in kinds for at in range(0, len(step), GROUP))


def test_a_resume_goes_on_with_the_multiplier_and_the_scales_bit_for_bit(root: Path, tmp_path: Path) -> None:
    settings = (*LAGRANGIAN, "reward.normalise=true", "reward.cost_limit=-1", "checkpoint.every=1")
    settings += ("checkpoint.keep_last=9",)
    whole = run(root, tmp_path / "whole", *settings)
    config, context = surroundings(
        root, tmp_path / "again", "data=safe_and_helpful", f"data.root={root}", "data.path=null", "data.val_path=null",
        f"stage.max_steps={STEPS}", *settings,
    )  # fmt: skip
    context.parents.update({"reward.helpfulness": str(root / "reward"), "reward.cost": str(root / "safe")})
    shutil.copytree(tmp_path / "whole/checkpoints/step-000001", tmp_path / "again/checkpoints/step-000001")
    again = ppo.run(config, context)
    for name in ("rl/lagrange_multiplier", "rl/reward", "rl/cost", "eval/reward"):
        assert again.metrics[name] == whole.metrics[name], name
    assert whole.checkpoint is not None and again.checkpoint is not None
    weights = [(one.checkpoint / "model.safetensors").read_bytes() for one in (whole, again)]
    assert weights[0] == weights[1]


def test_each_kind_of_prompt_may_have_a_reward_of_its_own(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables: dict[str, Any] = {}
    monkeypatch.setattr(
        "tinychat.stages.policy.write_table",
        lambda _context, name, _title, columns, rows, **_: tables.update({name: (columns, rows)}),
    )
    done = run(root, tmp_path / "run", "reward=by_kind", "reward.parts.helpfulness.path=x", "reward.normalise=false",
               "stage.missing_end=none")  # fmt: skip
    assert "rl/lagrange_multiplier" not in done.metrics
    assert {"rl/harmful_reward", "rl/benign_reward"} <= set(done.metrics)
    columns, rows = tables["rollout"]
    assert columns[-1] == "kind"
    for row in (dict(zip(columns, values, strict=True)) for values in rows):
        own, other = ["harmlessness", "helpfulness"][:: 1 if row["kind"] == "harmful" else -1]
        assert row[other] == 0 and row[own] == row["reward"] != 0
