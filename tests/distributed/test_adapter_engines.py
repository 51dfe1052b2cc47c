"""Adapters train alike under plain PyTorch and DeepSpeed, on one rank and on two, and resume where they were."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.conftest import REPOSITORY, environment_of
from tests.distributed.driver import VOCABULARY
from tinychat.models.checkpoints import load_model

DRIVER = str(REPOSITORY / "tests" / "distributed" / "adapter_driver.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def run(launcher: list[str], base: Path, out: Path, *ways: str, precision: str = "fp32") -> dict[str, dict[str, Any]]:
    command = [*launcher, DRIVER, str(base), str(out), json.dumps(ways), precision]
    done = subprocess.run(
        command, env=environment_of(), cwd=REPOSITORY, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
    return json.loads(line.removeprefix("FOUND"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.05,
    )
    AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
    return folder


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_model(str(folder))(input_ids=torch.arange(20)[None]).logits


@pytest.mark.slow
def test_losses_resumes_and_saved_weights_agree(base: Path, tmp_path: Path) -> None:
    ways = ["lora/none", "lora/zero0", "lora/zero2", "lora/zero3"]
    if importlib.util.find_spec("bitsandbytes"):
        ways += ["qlora/none", "qlora/zero2"]
    one = run([sys.executable], base, tmp_path / "one", "lora/none", *ways[4:5])
    two = run(TORCHRUN, base, tmp_path / "two", *ways)
    assert one["lora/none"]["losses"][0] > one["lora/none"]["losses"][-1] + 0.1
    for way, found in two.items():
        kind = way.split("/")[0]
        expected = one[f"{kind}/none"]
        assert found["losses"] == pytest.approx(expected["losses"], abs=1e-4), way
        assert found["resumed"] == found["losses"][3:], way
        saved, wanted = tmp_path / "two" / way.replace("/", "-"), tmp_path / "one" / f"{kind}-none"
        assert (logits(saved) - logits(wanted)).abs().max() < 2e-3, way
        state = sum(path.stat().st_size for path in (saved / "state").rglob("*.pt"))
        adapter = (saved / "adapter_model.safetensors").stat().st_size
        assert state < 10 * adapter, f"{way}: the base is in the trainer's state"


@pytest.mark.slow
def test_bf16_stays_near_fp32(base: Path, tmp_path: Path) -> None:
    exact = run([sys.executable], base, tmp_path / "fp32", "lora/none")["lora/none"]["losses"]
    ways = ("lora/none", "lora/zero0", "lora/zero3")
    for way, found in run([sys.executable], base, tmp_path / "bf16", *ways, precision="bf16").items():
        assert found["losses"] == pytest.approx(exact, abs=0.05), way
        assert found["resumed"] == found["losses"][3:], way
