"""The trajectory does not depend on micro-batches, ranks or ZeRO stage: real processes, real DeepSpeed, fp32."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY, environment_of

DRIVER = str(REPOSITORY / "tests" / "distributed" / "driver.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def run(launcher: list[str], *arguments: str) -> dict[str, list[float]]:
    done = subprocess.run(
        [*launcher, DRIVER, *arguments], env=environment_of(), capture_output=True, text=True, timeout=400, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("LOSSES")]
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(lines[0].removeprefix("LOSSES"))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_losses_norms_and_weights_agree_for_every_split_rank_count_and_zero_stage(optimizer: str) -> None:
    one = run([sys.executable], optimizer, '["none"]', "[8, 4, 1]")
    two = run(TORCHRUN, optimizer, '["none", "zero0", "zero1", "zero2", "zero3"]', "[4, 1]")
    expected = one["none/8"]
    assert expected[0] > expected[-3] + 0.1, "the tiny model must learn, or equality would mean nothing"
    for way, found in {**{f"1 rank {key}": value for key, value in one.items()}, **two}.items():
        assert found == pytest.approx(expected, abs=1e-4, rel=1e-5), way


@pytest.mark.slow
def test_one_deepspeed_process_agrees_with_plain_pytorch() -> None:
    found = run([sys.executable], "muon", '["none", "zero0", "zero2", "zero3"]', "[8]")
    for way in found:
        assert found[way] == pytest.approx(found["none/8"], abs=1e-4, rel=1e-5), way


@pytest.mark.slow
def test_bf16_stays_near_fp32_at_every_stage() -> None:
    exact = run([sys.executable], "adamw", '["none"]', "[8]")["none/8"]
    found = run(TORCHRUN, "adamw", '["none", "zero0", "zero2", "zero3"]', "[4]", "bf16")
    for way, losses in found.items():
        assert losses[:-1:2] == pytest.approx(exact[:-1:2], abs=0.05), way
