"""benchmarks/pretrain.py shows that the variants compute the same thing and refuses ratios when they do not;
benchmarks/attention.py runs."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import REPOSITORY, environment_of

BENCHMARKS = REPOSITORY / "benchmarks"


def benchmark(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    quick = ("--small", "--rounds", "1", "--warmup", "1", "--steps", "2", "--threads", "1", "--out", str(folder))
    return run_script("pretrain.py", *quick, *options)


def run_script(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / name), *options],
        env=environment_of(),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str]:
    """The JSON and the printed tables of a small run; with the Trainer where accelerate is installed."""
    folder = tmp_path_factory.mktemp("benchmark")
    variants = ["nanogpt", "tinychat"]
    if importlib.util.find_spec("accelerate"):
        variants.insert(0, "trainer")
    done = benchmark(folder, "--variants", ",".join(variants))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "pretrain.json").read_text()), done.stdout


@pytest.mark.slow
def test_every_variant_has_the_same_weights_batches_and_fp32_losses(measured: tuple[dict, str]) -> None:
    report, _ = measured
    first, *others = report["checked_in_fp32"]
    assert {run["arithmetic"] for run in report["checked_in_fp32"]} == {"fp32"}
    assert len(set(first["losses"])) == 3, "batches and weights change from step to step"
    for run in others:
        assert run["losses"] == pytest.approx(first["losses"], rel=1e-4)
        assert run["inputs"] == first["inputs"]


@pytest.mark.slow
def test_the_table_gives_speed_memory_and_ratios(measured: tuple[dict, str]) -> None:
    report, printed = measured
    assert report["machine"]["torch"]
    assert report["machine"]["cores"] >= 1
    for row in report["table"]:
        assert row["tokens_per_s"] > 0
        assert row["memory_gb"] > 0.1
        assert f"| {row['variant']} " in printed
    assert report["table"][0]["speed_ratio"] == report["table"][0]["memory_ratio"] == 1.0
    # Two steps of four rows; the first token of a row follows nothing and is no target.
    assert {run["tokens"] for run in report["runs"]} == {2 * 4 * 63}


@pytest.mark.slow
def test_other_losses_weights_or_batches_are_named(measured: tuple[dict, str], harness: ModuleType) -> None:
    report, _ = measured
    checked, runs = report["checked_in_fp32"], report["runs"]
    assert harness.differences(checked, runs) == []
    for break_it in (
        lambda run: run["losses"].__setitem__(1, run["losses"][1] * 1.01),
        lambda run: run["losses"].__setitem__(1, float("nan")),
        lambda run: run["inputs"].update(weights="others"),
        lambda run: run["inputs"].update(batches=["others"]),
    ):
        broken = copy.deepcopy(runs)
        break_it(broken[-1])
        (line,) = harness.differences(checked, broken)
        assert line.startswith("tinychat")


@pytest.mark.slow
def test_the_profile_sums_to_one(tmp_path: Path) -> None:
    done = benchmark(tmp_path, "--profile", "--variants", "tinychat")
    assert done.returncode == 0, done.stderr[-3000:]
    (profile,) = json.loads((tmp_path / "profile.json").read_text())["profiles"]
    assert sum(profile["profile"].values()) == pytest.approx(1)
    assert all(profile["profile"][kind] > 0 for kind in ("head", "matmul", "attention", "optimizer", "layernorm"))


def test_an_unknown_variant_is_refused(tmp_path: Path) -> None:
    done = benchmark(tmp_path, "--variants", "tinychat,nanochat")
    assert done.returncode == 2
    assert "--variants nanochat: one of trainer, nanogpt" in done.stderr


def test_rows_of_another_kind_have_their_own_reference(harness: ModuleType) -> None:
    def run(variant: str, rows: str, loss: float, batch: str) -> dict:
        inputs = {"weights": "same", "batches": [batch]}
        return {"variant": variant, "arithmetic": "fp32", "rows": rows, "losses": [loss], "inputs": inputs}

    checked = [run("a", "padded", 6.0, "p"), run("b", "packed", 5.0, "q"), run("c", "packed", 5.0, "q")]
    assert harness.differences(checked, []) == []
    assert harness.losses_table(checked, []).count("against") == 2
    (line,) = harness.differences([*checked, run("d", "packed", 6.0, "q")], [])
    assert line == "d (fp32): loss 6.000000 at step 1, b has 5.000000 (fp32)"
    (line,) = harness.differences([*checked, run("d", "packed", 5.0, "p")], [])
    assert line == "d (fp32): other weights or batches than b"


@pytest.mark.slow
def test_blocked_attention_is_compared_with_torchs() -> None:
    done = run_script("attention.py", "--small", "--repeats", "1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count(" 2 x 2 x 160 x 16 |") == 4
    assert done.stdout.count("of 64 tokens") == 2


@pytest.mark.slow
def test_a_teacher_is_compared_with_whole_logits() -> None:
    done = run_script("distillation.py", "--small", "--repeats", "1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert [done.stdout.count(f"| tiny | {way}") for way in ("plain", "taught", "whole")] == [1, 1, 1]


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("harness")
