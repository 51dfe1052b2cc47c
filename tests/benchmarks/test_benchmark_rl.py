"""benchmarks/rollout.py and benchmarks/ppo.py: equal tokens, log-probabilities and amounts of work before any ratio.

The test with trl's trainer runs where TINYCHAT_TRL112_PYTHON names the python of an environment with trl 1.12.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import REPOSITORY, environment_of

BENCHMARKS = REPOSITORY / "benchmarks"
TRL_PYTHON = os.environ.get("TINYCHAT_TRL112_PYTHON")


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
    return {name: importlib.import_module(name) for name in ("rollout", "ppo", "ppo_task")}


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
    task = imported["ppo_task"].Task("v", "tiny", "", 8, 4, 4, 1, warmup=1, steps=3, threads=1, seed=0)
    steps = [{"rollout": x, "scoring": 1.0, "update": 2.0} for x in (100.0, 1.0, 3.0, 5.0)]
    clock = imported["ppo_task"].Clock([*steps, {}], [*steps, {}])
    found = clock.summary(task)
    assert found["samples_per_s"] == pytest.approx(8 / 6)
    assert found["phase_seconds"] == {"rollout": 3.0, "scoring": 1.0, "update": 2.0}
