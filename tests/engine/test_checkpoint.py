"""Checkpoints of one process: what is kept, what is removed, what a crash or a full disk leaves."""

from __future__ import annotations

import copy
import errno
import io
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

from tinychat.engine import checkpoint as checkpoint_module
from tinychat.engine.base import PlainEngine
from tinychat.engine.checkpoint import Checkpointer, random_state, restore_random_state
from tinychat.errors import UserError
from tinychat.models import load as loading
from tinychat.models.checkpoints import load_model
from tinychat.runs import folders
from tinychat.runtime import manifest
from tinychat.runtime.world import World
from tinychat.text.tokenizer import load_saved_tokenizer

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
    return sorted(path.name for path in (run_dir / folders.CHECKPOINTS).iterdir())


def test_the_newest_and_the_best_are_kept(engine: PlainEngine, tokenizer: Any, tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, ALONE, keep_last=2, keep_best=1)
    for number, score in {1: 3.0, 2: 1.0, 3: None, 4: 2.0, 5: 4.0}.items():
        checkpointer.save(number, engine, tokenizer, {"metrics": {}}, {}, score)
    assert names(tmp_path) == ["step-000002", "step-000004", "step-000005"]
    best, *newest = folders.list_checkpoints(tmp_path)
    assert not (best / folders.TRAINER_STATE).exists(), "nobody resumes from it: its optimizer state is gone"
    assert all((path / folders.TRAINER_STATE).is_dir() for path in newest)
    assert manifest.checkpoint_score(best) == 1.0
    for path in (best, *newest):
        folders.verify_checkpoint(path)
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
        (tmp_path / folders.CHECKPOINTS / leftover / folders.TRAINER_STATE).mkdir(parents=True)
    assert checkpointer.latest() == tmp_path / folders.CHECKPOINTS / "step-000001"
    assert [path.name for path in folders.list_checkpoints(tmp_path)] == ["step-000001"]
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
    with pytest.raises(UserError, match=r"step-000002: .*No space left on device.*; .*step-000001 is intact"):
        checkpointer.save(2, engine, tokenizer, {"metrics": {}}, {})
    assert names(tmp_path) == ["step-000001"]
    folders.verify_checkpoint(tmp_path / folders.CHECKPOINTS / "step-000001")


def test_the_same_step_again_replaces_it(engine: PlainEngine, tokenizer: Any, tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, ALONE, keep_last=2, keep_best=1)
    checkpointer.save(1, engine, tokenizer, {"metrics": {"train/loss": 1.0}}, {})
    checkpointer.save(1, engine, tokenizer, {"metrics": {"train/loss": 2.0}}, {})
    assert names(tmp_path) == ["step-000001"]
    assert checkpointer.load(tmp_path / folders.CHECKPOINTS / "step-000001", engine, False)["metrics"] == {
        "train/loss": 2
    }


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
    assert json.loads((saved / folders.LINEAGE).read_text()) == {"run_dir": "x"}


@pytest.mark.parametrize("name", ["trainer.json", "engine.pt", "random-rank0.pt"])
def test_a_state_with_a_flipped_byte_is_not_resumed_from(
    name: str, engine: PlainEngine, tokenizer: Any, tmp_path: Path
) -> None:
    checkpointer = Checkpointer(tmp_path, ALONE, keep_last=2, keep_best=1)
    for number in (1, 2):
        checkpointer.save(number, engine, tokenizer, {"metrics": {}}, {})
    newest = checkpointer.latest()
    assert newest is not None
    flip(newest / folders.TRAINER_STATE / name)
    whole = r"use step-000001 beside it \(remove the damaged folder to resume from there\)"
    with pytest.raises(
        UserError, match=rf"step-000002 is damaged: trainer_state/{name} is not as it was written; {whole}"
    ):
        checkpointer.load(newest, engine, same_ranks=False)
    flip(newest.with_name("step-000001") / "lineage.json")
    with pytest.raises(
        UserError, match=rf"trainer_state/{name} is not as it was written; if you changed it on purpose"
    ):
        checkpointer.load(newest, engine, same_ranks=False)


def test_a_state_that_torch_cannot_read_is_one_line(engine: PlainEngine, tokenizer: Any, tmp_path: Path) -> None:
    """Without its manifest nothing tells that it is damaged before it is opened."""
    checkpointer = Checkpointer(tmp_path, ALONE, keep_last=2, keep_best=1)
    saved = checkpointer.save(1, engine, tokenizer, {"metrics": {}}, {})
    (saved / manifest.MANIFEST).unlink()
    os.truncate(saved / folders.TRAINER_STATE / "engine.pt", 1000)
    with pytest.raises(UserError, match=r"trainer_state: cannot be loaded: .*; remove .*step-000001 to resume"):
        checkpointer.load(saved, engine, same_ranks=False)
    (saved / folders.TRAINER_STATE / "trainer.json").write_text("[1]")
    with pytest.raises(UserError, match=r"trainer.json: missing or unreadable"):
        checkpointer.load(saved, engine, same_ranks=False)


def test_weights_and_tokenizers_with_a_flipped_byte_are_not_opened(
    engine: PlainEngine, tokenizer: Any, tmp_path: Path
) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = "{{ messages }}"
    checkpointer = Checkpointer(tmp_path, ALONE, keep_last=3, keep_best=1)
    older, saved = (checkpointer.save(number, engine, tokenizer, {"metrics": {}}, {}) for number in (1, 2))
    for name, load in {
        "model.safetensors": load_model,
        "config.json": load_model,
        "chat_template.jinja": load_saved_tokenizer,
        "tokenizer.json": load_saved_tokenizer,
    }.items():
        before = (saved / name).read_bytes()
        load(str(saved))
        flip(saved / name)
        folders.verify_checkpoint(saved)  # the sizes are right
        with pytest.raises(
            UserError, match=f"step-000002 is damaged: {name} is not as it was written; use step-000001"
        ):
            load(str(saved))
        (saved / name).write_bytes(before)
    flip(saved / "model.safetensors")
    load_saved_tokenizer(str(saved))  # opens no weights
    with manifest.verifying(False):
        load_model(str(saved))
    (saved / manifest.MANIFEST).unlink()
    load_model(str(saved))

    flip(older / manifest.MANIFEST)
    with pytest.raises(UserError, match=f"step-000001 is damaged: .*{manifest.MANIFEST}: is not as it was written"):
        folders.resolve_checkpoint(str(older))


def test_removing_the_state_of_the_best_does_not_make_damage_whole(
    engine: PlainEngine, tokenizer: Any, tmp_path: Path
) -> None:
    checkpointer = Checkpointer(tmp_path, ALONE, keep_last=1, keep_best=1)
    best = checkpointer.save(1, engine, tokenizer, {"metrics": {}}, {}, 1.0)
    flip(best / "model.safetensors")
    checkpointer.save(2, engine, tokenizer, {"metrics": {}}, {}, 2.0)
    assert not (best / folders.TRAINER_STATE).exists()
    with pytest.raises(UserError, match=r"model\.safetensors is not as it was written; use step-000002"):
        load_model(str(best))


def flip(path: Path) -> None:
    """One bit in the middle of a file; of text the letter stays one."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_another_number_of_ranks_is_refused_where_the_state_is_split(
    engine: PlainEngine, tokenizer: Any, tmp_path: Path
) -> None:
    checkpointer = Checkpointer(tmp_path, ALONE, keep_last=2, keep_best=1)
    saved = checkpointer.save(1, engine, tokenizer, {"metrics": {}}, {})
    state = json.loads((saved / folders.TRAINER_STATE / "trainer.json").read_text())
    (saved / folders.TRAINER_STATE / "trainer.json").write_text(json.dumps({**state, "world_size": 4}))
    manifest.write_manifest(saved, None)
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


def test_weights_that_this_user_may_not_read_are_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors says of such a file that there is none."""
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    manifest.write_manifest(tmp_path, None)
    real = io.open

    def closed(path: Any, *arguments: Any, **options: Any) -> Any:
        if str(path).endswith(".safetensors"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(manifest, "_known", {})
    monkeypatch.setattr("builtins.open", closed)
    monkeypatch.setattr(io, "open", closed)  # pathlib's
    for read in (folders.verify_contents, lambda folder: loading.check_safetensors(folder, "model.safetensors")):
        with pytest.raises(UserError, match=r"model\.safetensors: may not be read by this user") as caught:
            read(tmp_path)
        assert "damaged" not in str(caught.value)
