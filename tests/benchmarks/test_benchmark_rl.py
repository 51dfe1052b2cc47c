"""benchmarks/rollout.py, ppo.py, grpo.py and dpo.py: equal tokens, log-probabilities, losses and amounts of work before
any ratio.

The tests with trl's trainers run where TINYCHAT_TRL112_PYTHON (PPO) and TINYCHAT_TRL_PYTHON (GRPO and DPO) name the
python of an environment with trl 1.12 and 1.16.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import REPOSITORY, environment_of

BENCHMARKS = REPOSITORY / "benchmarks"
TRL_PYTHON = os.environ.get("TINYCHAT_TRL112_PYTHON")
TRL116_PYTHON = os.environ.get("TINYCHAT_TRL_PYTHON")


def benchmark(script: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    quick = ("--model", "tiny", "--rounds", "1", "--batch", "8", "--prompt", "6", "--threads", "1")
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *quick, "--out", str(folder), *options],
        env=environment_of(),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return {name: importlib.import_module(name) for name in ("rollout", "ppo", "grpo", "dpo_task", "rl_task")}


@pytest.mark.timeout(1000)
@pytest.mark.slow
def test_rollout_compares_after_equal_greedy_tokens(tmp_path: Path) -> None:
    chosen = ("--variants", "transformers-fp32,tinychat-fp32", "--new", "5", "--calls", "1")
    done = benchmark("rollout.py", tmp_path, *chosen)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Greedy tokens in fp32 are equal." in done.stdout
    theirs, ours = json.loads((tmp_path / "rollout.json").read_text())["table"]
    assert (theirs["variant"], ours["variant"]) == ("transformers-fp32", "tinychat-fp32")
    assert ours["speed_ratio"] == pytest.approx(ours["tokens_per_s"] / theirs["tokens_per_s"])


@pytest.mark.slow
def test_replies_read_together_have_the_numbers_of_each_alone(tmp_path: Path) -> None:
    options = ("--model", "tiny", "--rounds", "1", "--replies", "8", "--ways", "all,3", "--threads", "1")
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "together.py"), *options, "--out", str(tmp_path)],
        env=environment_of(),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    together, three = json.loads((tmp_path / "together.json").read_text())["table"]
    assert (together["rows"], three["rows"]) == (8, 3) and together["padding"] > three["padding"]
    assert three["speed_ratio"] == pytest.approx(together["seconds"] / three["seconds"])


@pytest.mark.slow
def test_rollout_profile_names_the_parts_of_a_step(tmp_path: Path) -> None:
    done = benchmark("rollout.py", tmp_path, "--variants", "tinychat-fp32", "--new", "5", "--profile")
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = json.loads((tmp_path / "rollout-profile.json").read_text())["profiles"]
    shares = found["shares"]
    for kind in ("products", "head", "attention", "cache", "sampling", "norms"):
        assert 0 < shares[kind] < 1, kind
    measured = {kind: share for kind, share in shares.items() if "seconds" not in kind}
    assert sum(measured.values()) == pytest.approx(1, abs=0.01)


def test_other_greedy_tokens_are_told(imported: dict[str, ModuleType]) -> None:
    runs = [{"variant": "a", "tokens": [[1, 2], [3, 4]]}, {"variant": "b", "tokens": [[1, 2], [3, 5]]}]
    assert imported["rollout"].different(runs) == ["b: other greedy tokens than a for prompt 2"]
    assert imported["rollout"].different([runs[0], {**runs[0], "variant": "b"}]) == []


@pytest.mark.slow
def test_ppo_without_trl_measures_tinychat_alone(tmp_path: Path) -> None:
    sizes = ("--response", "5", "--epochs", "2", "--warmup", "0", "--steps", "1")
    done = benchmark("ppo.py", tmp_path, *sizes, "--variants", "trl-fp32,tinychat-fp32")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "trl is left out: python -m venv" in done.stdout
    (run,) = json.loads((tmp_path / "ppo.json").read_text())["runs"]
    assert run["tokens_per_step"] == 8 * 5  # no reply ends early
    assert run["updates_per_step"] == 2  # one for each epoch
    assert set(run["phase_seconds"]) == {"rollout", "scoring", "update"}


@pytest.mark.timeout(1000)
@pytest.mark.skipif(not TRL_PYTHON, reason="TINYCHAT_TRL112_PYTHON names no environment with trl 1.12")
def test_trl_says_the_same_and_trains_on_as_much(tmp_path: Path) -> None:
    sizes = ("--response", "5", "--epochs", "2", "--warmup", "0", "--steps", "1", "--trl-python", str(TRL_PYTHON))
    done = benchmark("ppo.py", tmp_path, *sizes, "--variants", "trl-fp32,tinychat-fp32")
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "the same log-probabilities within" in done.stdout
    theirs, ours = json.loads((tmp_path / "ppo.json").read_text())["runs"]
    for what in ("weights", "tokens_per_step", "updates_per_step"):
        assert ours[what] == theirs[what]


def test_other_log_probabilities_or_work_leave_no_ratios(imported: dict[str, ModuleType]) -> None:
    ppo = imported["ppo"]
    run = {"variant": "trl-fp32", "weights": "w", "logprobs": [[-1.0, -2.0]], "scores": [0.5]}
    other = {**run, "variant": "tinychat-fp32", "logprobs": [[-1.0, -2.001]]}
    text, problems = ppo.compare([run, {**run, "variant": "tinychat-fp32"}])
    assert problems == []
    assert "0.0e+00 nats" in text
    assert "off by 0.001 nats" in ppo.compare([run, other])[1][0]
    assert "scores by 0.1" in ppo.compare([run, {**other, "scores": [0.6]}])[1][0]
    assert "other weights" in ppo.compare([run, {**run, "weights": "x"}])[1][0]
    work = {"variant": "trl-fp32", "weights": "w", "tokens_per_step": 10, "updates_per_step": 4}
    assert ppo.unequal([work, work]) == []
    assert ppo.unequal([work, {**work, "updates_per_step": 8}]) == ["trl-fp32: updates_per_step 8, trl-fp32 has 4"]


def test_the_clock_gives_medians_of_timed_steps(imported: dict[str, ModuleType]) -> None:
    task = imported["rl_task"].Task("v", "tiny", "", 8, 4, 4, 1, warmup=1, steps=3, threads=1, seed=0)
    steps = [{"rollout": x, "scoring": 1.0, "update": 2.0} for x in (100.0, 1.0, 3.0, 5.0)]
    clock = imported["rl_task"].Clock([*steps, {}], [*steps, {}])
    found = clock.summary(task)
    assert found["samples_per_s"] == pytest.approx(8 / 6)
    assert found["phase_seconds"] == {"rollout": 3.0, "scoring": 1.0, "update": 2.0}


# --------------------------------------------------------------------------------------------------- GRPO and DPO

GRPO = ("--group", "4", "--response", "5", "--warmup", "0", "--steps", "1")
DPO = ("--response", "8", "--warmup", "1", "--steps", "1")


@pytest.mark.slow
def test_grpo_without_trl_measures_tinychat_alone(tmp_path: Path) -> None:
    done = benchmark("grpo.py", tmp_path, *GRPO, "--epochs", "2", "--variants", "trl-fp32,tinychat-fp32")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "trl is left out: python -m venv" in done.stdout
    (run,) = json.loads((tmp_path / "grpo.json").read_text())["runs"]
    assert run["tokens_per_step"] == 8 * 5  # no reply ends early
    assert run["updates_per_step"] == 2  # one for each epoch


@pytest.mark.slow
def test_dpo_without_trl_measures_tinychat_alone(tmp_path: Path) -> None:
    done = benchmark("dpo.py", tmp_path, *DPO, "--variants", "trl-fp32,tinychat-fp32")
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "dpo.json").read_text())
    (checked,), (run,) = report["checked_in_fp32"], report["runs"]
    assert checked["losses"][0] == pytest.approx(math.log(2), abs=1e-5)
    assert len(set(checked["losses"])) == 3
    assert run["reference_seconds"] > 0


@pytest.mark.timeout(1000)
@pytest.mark.skipif(not TRL116_PYTHON, reason="TINYCHAT_TRL_PYTHON names no environment with trl 1.16")
@pytest.mark.parametrize(("script", "sizes"), [("grpo.py", GRPO), ("dpo.py", DPO)])
def test_trl_116_computes_the_same(script: str, sizes: tuple[str, ...], tmp_path: Path) -> None:
    variants = ("--variants", "trl-fp32,trl-fp32-tuned,tinychat-fp32")
    done = benchmark(script, tmp_path, *sizes, *variants, "--trl-python", str(TRL116_PYTHON))
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    report = json.loads((tmp_path / script.replace("py", "json")).read_text())
    assert [row["variant"] for row in report["table"]] == variants[1].split(",")


def test_another_loss_or_gradient_leaves_no_ratios(imported: dict[str, ModuleType]) -> None:
    run = {"variant": "trl-fp32", "weights": "w", "logprobs": [[-1.0, -2.0]], "loss": 0.5, "gradient": 2.0}
    ours = {**run, "variant": "tinychat-fp32"}
    assert imported["grpo"].compare([run, ours])[1] == []
    for other in ({"loss": 0.5001}, {"gradient": 2.001}, {"logprobs": [[-1.0, -2.001]]}, {"weights": "x"}):
        assert len(imported["grpo"].compare([run, {**ours, **other}])[1]) == 1, other


def test_ratios_are_to_the_fastest_of_trl(imported: dict[str, ModuleType]) -> None:
    phases = {"rollout": 1.0, "scoring": 1.0, "update": 1.0}
    speeds = {"trl-bf16": 2.0, "trl-bf16-tuned": 3.0, "tinychat-bf16": 9.0}
    runs = [
        {
            "variant": variant,
            "samples_per_s": speed,
            "cpu_samples_per_s": speed,
            "memory_gb": 1.0,
            "phase_seconds": phases,
            "core_share": 1.0,
        }
        for variant, speed in speeds.items()
    ]
    rows = imported["grpo"].table(runs, list(speeds))
    assert [row["ratio_to"] for row in rows] == ["trl-bf16-tuned"] * 3
    assert rows[-1]["samples_per_s_ratio"] == 3.0


def test_the_time_of_the_reference_counts(imported: dict[str, ModuleType]) -> None:
    module = imported["dpo_task"]
    task = module.Task("v", "tiny", "", batch=8, prompt=4, response=4, warmup=1, steps=3, threads=1, seed=0)
    record = module.Record(losses=[0.0] * 4, times=[1.0, 2.0, 3.0, 4.0], cpu_times=[1.0, 2.0, 3.0, 4.0])
    found = module.summary(
        record, task, [100] * 4, reference=(4.0, 2.0)
    )  # three of its four seconds are of timed steps
    assert found["tokens_per_s"] == pytest.approx(300 / (3 + 3))
    assert found["cpu_tokens_per_s"] == pytest.approx(300 / (3 + 1.5))
    assert found["pairs_per_s"] == pytest.approx(24 / 6)


def test_the_digest_of_a_step_is_of_its_pairs(imported: dict[str, ModuleType]) -> None:
    digest, pairs = imported["dpo_task"].digest, [([1, 2], [1, 3]), ([4], [4, 5])]
    assert digest(pairs) == digest(pairs[::-1])
    assert digest(pairs) != digest([pairs[0], pairs[1][::-1]])
