"""Checkpoints of one process: what is kept, what is removed, what a crash or a full disk leaves."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

from tinychat import checkpoint as checkpoint_module
from tinychat import runs
from tinychat.checkpoint import Checkpointer, random_state, restore_random_state
from tinychat.engine.plain import PlainEngine
from tinychat.errors import UserError
from tinychat.world import World

ALONE = World(0, 0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tokenizer_folder)


@pytest.fixture
def engine() -> PlainEngine:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GPT2Config(n_layer=1, n_embd=8, n_head=1, n_positions=8, vocab_size=400))
    model.generation_config.eos_token_id = model.config.eos_token_id = 0
    model.config.bos_token_id = model.generation_config.bos_token_id = 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return PlainEngine(model, optimizer, ALONE, torch.float32, grad_clip=0.0)


def step(engine: PlainEngine) -> None:
    for p in engine.model.parameters():
        p.grad = torch.randn_like(p)
    engine.optimizer.step()


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / runs.CHECKPOINTS).iterdir())


def test_the_newest_and_the_best_are_kept(engine: PlainEngine, tokenizer: Any, tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, ALONE, keep_last=2, keep_best=1)
    for number, score in {1: 3.0, 2: 1.0, 3: None, 4: 2.0, 5: 4.0}.items():
        checkpointer.save(number, engine, tokenizer, {"metrics": {}}, {}, score)
    assert names(tmp_path) == ["step-000002", "step-000004", "step-000005"]
    best, *newest = runs.list_checkpoints(tmp_path)
    assert not (best / runs.TRAINER_STATE).exists(), "nobody resumes from it: its optimizer state is gone"
    assert all((path / runs.TRAINER_STATE).is_dir() for path in newest)
    assert runs.checkpoint_score(best) == 1.0
    for path in (best, *newest):
        runs.verify_checkpoint(path)
        AutoModelForCausalLM.from_pretrained(path)
    assert checkpointer.latest() == newest[-1]

    checkpointer.save(6, engine, tokenizer, {"metrics": {}}, {}, 0.5)
    checkpointer.save(7, engine, tokenizer, {"metrics": {}}, {}, None)
    checkpointer.save(8, engine, tokenizer, {"metrics": {}}, {}, None)
    assert names(tmp_path) == ["step-000006", "step-000007", "step-000008"]


def test_none_but_the_newest(engine: PlainEngine, tokenizer: Any, tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, ALONE, keep_last=1, keep_best=0)
    for number in (1, 2, 3):
        checkpointer.save(number, engine, tokenizer, {"metrics": {}}, {}, float(number))
    assert names(tmp_path) == ["step-000003"]


def test_leftovers_of_a_crash_are_ignored_and_then_removed(engine: PlainEngine, tokenizer: Any, tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, ALONE, keep_last=2, keep_best=1)
    checkpointer.save(1, engine, tokenizer, {"metrics": {}}, {})
    for leftover in (".saving-step-000002", ".removing-step-000000"):
        (tmp_path / runs.CHECKPOINTS / leftover / runs.TRAINER_STATE).mkdir(parents=True)
    assert checkpointer.latest() == tmp_path / runs.CHECKPOINTS / "step-000001"
    assert [path.name for path in runs.list_checkpoints(tmp_path)] == ["step-000001"]
    checkpointer.save(3, engine, tokenizer, {"metrics": {}}, {})
    assert names(tmp_path) == ["step-000001", "step-000003"]


@pytest.mark.parametrize("where", ["save_weights", "random_state", "_sync_tree"])
def test_a_save_that_fails_leaves_the_one_before(
    where: str, engine: PlainEngine, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer = Checkpointer(tmp_path, ALONE, keep_last=1, keep_best=0)
    checkpointer.save(1, engine, tokenizer, {"metrics": {}}, {})

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, where, full)
    with pytest.raises(UserError, match=r"step-000002: .*No space left on device; .*step-000001 is intact"):
        checkpointer.save(2, engine, tokenizer, {"metrics": {}}, {})
    assert names(tmp_path) == ["step-000001"]
    runs.verify_checkpoint(tmp_path / runs.CHECKPOINTS / "step-000001")


def test_the_same_step_again_replaces_it(engine: PlainEngine, tokenizer: Any, tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, ALONE, keep_last=2, keep_best=1)
    checkpointer.save(1, engine, tokenizer, {"metrics": {"train/loss": 1.0}}, {})
    checkpointer.save(1, engine, tokenizer, {"metrics": {"train/loss": 2.0}}, {})
    assert names(tmp_path) == ["step-000001"]
    assert checkpointer.load(tmp_path / runs.CHECKPOINTS / "step-000001", engine, False)["metrics"] == {"train/loss": 2}


def test_weights_optimizer_and_random_numbers_come_back(engine: PlainEngine, tokenizer: Any, tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, ALONE, keep_last=2, keep_best=1)
    step(engine)
    saved = checkpointer.save(1, engine, tokenizer, {"metrics": {"train/loss": 5.0}}, {"run_dir": "x"})
    step(engine)
    after = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
    torch.manual_seed(99)

    trainer = checkpointer.load(saved, engine, same_ranks=True)
    assert trainer == {"step": 1, "world_size": 1, "metrics": {"train/loss": 5.0}}
    step(engine)
    assert all(torch.equal(p, after[name]) for name, p in engine.model.named_parameters())
    assert json.loads((saved / runs.LINEAGE).read_text()) == {"run_dir": "x"}


def test_another_number_of_ranks_is_refused_where_the_state_is_split(
    engine: PlainEngine, tokenizer: Any, tmp_path: Path
) -> None:
    checkpointer = Checkpointer(tmp_path, ALONE, keep_last=2, keep_best=1)
    saved = checkpointer.save(1, engine, tokenizer, {"metrics": {}}, {})
    state = json.loads((saved / runs.TRAINER_STATE / "trainer.json").read_text())
    (saved / runs.TRAINER_STATE / "trainer.json").write_text(json.dumps({**state, "world_size": 4}))
    checkpointer.load(saved, engine, same_ranks=False)
    with pytest.raises(UserError, match=r"saved by 4 DeepSpeed ranks.*by 1; use launch.nproc=4"):
        checkpointer.load(saved, engine, same_ranks=True)


def test_random_generators_go_on_where_they_were() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    np.random.normal()  # leaves the second of two numbers for the next call
    state = random_state()

    def draw() -> tuple[float, float, float]:
        return random.gauss(0, 1), float(np.random.normal()), float(torch.randn(1))

    expected = draw()
    draw()
    restore_random_state(state)
    assert draw() == expected
