"""Ranks whose own data differ do not wait for each other for ever: nothing that all ranks must do together is done as
often as a rank's own tokens ask for. Real processes, real DeepSpeed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig

from tests.conftest import REPOSITORY, TORCHRUN, environment_of, result_of, write_rows
from tests.distributed import uneven_driver
from tinychat.models.logprobs import OutputHead
from tinychat.runtime.world import World

DRIVER = str(REPOSITORY / "tests" / "distributed" / "uneven_driver.py")
TWO_RANKS = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def on_two_ranks(*ways: str) -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [*TWO_RANKS, DRIVER, json.dumps(ways)],
        env=environment_of(),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(lines[0].removeprefix("FOUND"))


def check(ways: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks sample, measure and learn what one process does."""
    found = on_two_ranks(*ways)
    uneven_driver.patch(monkeypatch.setattr)
    assert OutputHead(uneven_driver.language_model("llama")).tokens_at_once == uneven_driver.TOKENS_AT_ONCE
    for way in ways:
        wanted = uneven_driver.run(f"none/{way.split('/', 1)[1]}", World(0, 0, 1, torch.device("cpu")))
        assert found[way]["replies"] == wanted["replies"], way
        lengths = [[len(reply) for reply in replies] for replies in wanted["replies"]]
        assert any(sum(rows[:2]) != sum(rows[2:]) for rows in lengths), "else this says nothing"
        for fields, expected in zip(found[way]["fields"], wanted["fields"], strict=True):
            assert fields == pytest.approx(expected, abs=1e-3), way
        assert found[way]["losses"] == pytest.approx(wanted["losses"], abs=1e-4), way


@pytest.mark.slow
def test_rollouts_of_uneven_ranks_under_zero3(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that is called once for each few tokens, in rollouts and in the evaluation of given replies, an adapter on
    it, and an architecture that generates through transformers' own forward pass."""
    check(["zero3/llama/none", "zero3/llama/lm_head", "zero3/mistral/none"], monkeypatch)


@pytest.mark.slow
def test_rollouts_of_uneven_ranks_at_every_zero_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [f"zero{stage}" for stage in range(4)]
    check([f"{ds}/{arch}/none" for ds in ("none", *stages) for arch in ("gpt2", "gemma")], monkeypatch)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A pretrained model that the lean decoder does not know."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    torch.manual_seed(0)
    shape = MistralConfig(
        num_hidden_layers=2, hidden_size=32, num_attention_heads=2, num_key_value_heads=1, intermediate_size=64,
        max_position_embeddings=256, vocab_size=448, head_dim=16, bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


SMALL = (
    "tracker=none", "precision=fp32", "stage.max_steps=2", "stage.batch_size=4", "stage.micro_batch_size=1",
    "stage.warmup_steps=0", "stage.eval_every=1", "stage.eval_batch_size=2", "template=instruct",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("ds", ["zero0", "zero1", "zero2", "zero3"])
def test_every_stage_ends_where_ranks_have_uneven_rows(warm, base: Path, tmp_path: Path, ds: str) -> None:
    """Rows of one word beside rows that fill the context, and evaluations that do not divide over the ranks."""
    chats, pairs = [], []
    for index in range(11):
        question, answer = f"question {index} " * (1 + 9 * (index % 3)), f"word {index} " * (1 + 12 * (index % 2))
        prompt = [{"role": "user", "content": question}]
        chats.append({"messages": [*prompt, {"role": "assistant", "content": answer}]})
        pairs.append({"prompt": question, "chosen": answer, "rejected": f"other {index}"})
    stories = [{"text": f"story {index} " * (1 + 40 * (index % 2))} for index in range(60)]
    files = {"chat": chats, "preference": pairs, "text": stories}
    for source, rows in files.items():
        write_rows(tmp_path / f"{source}.jsonl", rows[: 2 * len(rows) // 3])
        write_rows(tmp_path / f"{source}-val.jsonl", rows[2 * len(rows) // 3 :])
    zero = ("+ds.config.zero_optimization.stage3_param_persistence_threshold=0",) if ds == "zero3" else ()

    def run(name: str, *overrides: str) -> Path:
        done = warm.train(
            tmp_path, f"stage={name}", *SMALL, f"ds={ds}", *zero, *TORCHRUN, "launch.timeout_minutes=1", *overrides,
            f"run_dir={tmp_path / name}",
        )  # fmt: skip
        assert done.returncode == 0, f"{name}: {done.stderr[-3000:]}"
        assert result_of(tmp_path / name)["status"] == "finished"
        return tmp_path / name / "checkpoints" / "step-000002"

    def data(source: str) -> tuple[str, ...]:
        paths = (
            f"data.{key}={tmp_path / name}.jsonl" for key, name in (("path", source), ("val_path", f"{source}-val"))
        )
        return f"data={source}", *paths

    start, samples = f"init_from={base}", ("stage.samples=[word,the]", "stage.sample_tokens=8")
    run("pretrain", start, *data("text"), *samples, "stage.context_length=64")
    policy = run("sft", start, *data("chat"), "stage.generate_tokens=8", "stage.generate_batch_size=2")
    reward = run("reward", f"init_from={policy}", *data("preference"))
    replies = ("stage.generate_batch_size=1", "stage.safety_prompts=3", "stage.safety_tokens=8", "stage.kl_prompts=3")
    run("dpo", f"init_from={policy}", *data("preference"), *replies)
    run(
        "ppo", f"init_from={policy}", *data("preference"), "reward=model", f"reward.parts.model.path={reward}",
        "stage.rollout_size=4", "stage.rollout_batch_size=1", "stage.response_length=16", "stage.entropy_coef=0.01",
        "stage.safety_prompts=3", "stage.safety_tokens=8", "stage.value=shared",
    )  # fmt: skip
    run(
        "grpo", f"init_from={policy}", *data("preference"), "reward=model", f"reward.parts.model.path={reward}",
        "stage.group_size=2", "stage.rollout_size=4", "stage.rollout_batch_size=1", "stage.response_length=16",
        "stage.entropy_coef=0.01", "stage.safety_prompts=3", "stage.safety_tokens=8", "stage.refill=1",
        "stage.correction=icepop", "stage.drop_stale=0.1", "stage.entropy_share=0.5", "stage.missing_end=mask",
    )  # fmt: skip
