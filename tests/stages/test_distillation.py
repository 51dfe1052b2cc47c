"""stage=sft with a teacher, in this process: what is learnt, the same however a step is split or resumed, and what is
refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.conftest import REPOSITORY, save_base, write_rows
from tinychat.config import checks, schema
from tinychat.config.schema import Config
from tinychat.data.chats.tokens import ChatBatches
from tinychat.engine import evaluation_engine
from tinychat.errors import UserError
from tinychat.models.checkpoints import load_model
from tinychat.runs import parents
from tinychat.runtime.world import World
from tinychat.stages import Context, StageResult, StopFlag, common, sft
from tinychat.stages.chats import get_chat_tokenizer, get_chats
from tinychat.stages.teacher import Teacher
from tinychat.text.tokenizer import load_saved_tokenizer, tokenizer_fingerprint, train_bpe
from tinychat.tinyworld import stories

ALONE = World(0, 0, 1, torch.device("cpu"))
STEP = (
    "stage=sft", "tuned=none", "tracker=none", "data=chat", "template=instruct", "precision=fp32", "device=cpu",
    "optim=adamw", "stage.lr=0.01", "stage.schedule=constant", "stage.warmup_steps=0", "stage.batch_size=4",
    "stage.micro_batch_size=4", "stage.max_steps=8", "stage.log_every=1", "stage.eval_every=0",
    "stage.context_length=96", "stage.generate_rows=2", "stage.generate_tokens=2", "stage.on_policy_tokens=6",
    "stage.eval_batch_size=4", "checkpoint.every=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def made(quick: None, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a student, a teacher that is larger and another model, and conversations."""
    folder = tmp_path_factory.mktemp("distillation")
    save_base(folder / "student", tokenizer_folder)
    save_base(folder / "raw", tokenizer_folder, seed=7)
    rows = [
        {"prompt": f"question {n}" + " more" * (n % 4), "response": f"yes {n}" + " and more" * (n % 3)}
        for n in range(60)
    ]
    write_rows(folder / "train.jsonl", rows)
    write_rows(folder / "held_out.jsonl", rows[6:15])
    learns = ("stage.max_steps=15", "stage.eval_first=false")
    done = trained(folder, folder / "teacher_run", *learns, teacher=None, start="raw")
    assert done.checkpoint is not None
    shutil.copytree(done.checkpoint, folder / "teacher")
    return folder


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """The machine's peak takes as long to measure as a training here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "matmul_rate", lambda *_: 1e12)
        yield


def surroundings(
    made: Path, run_dir: Path, *overrides: str, teacher: str | None = "teacher", start: str = "student"
) -> tuple[Config, Context]:
    schema.register()
    data = (f"data.path={made / 'train.jsonl'}", f"data.val_path={made / 'held_out.jsonl'}")
    taught = () if teacher is None else (f"stage.teacher={made / teacher}",)
    with initialize_config_dir(str(REPOSITORY / "conf")):
        node = compose("config", [*STEP, *data, f"paths.cache={made / 'cache'}", *taught, *overrides])
    run_dir.mkdir(exist_ok=True)
    OmegaConf.save(node, run_dir / "config.yaml")
    found: dict[str, str | None] = {"init_from": str(made / start), "teacher": str(made / (teacher or ""))}
    return schema.to_config(node), Context(run_dir, ALONE, None, found, StopFlag(run_dir))


def trained(
    made: Path, run_dir: Path, *overrides: str, teacher: str | None = "teacher", start: str = "student"
) -> StageResult:
    torch.manual_seed(0)
    config, context = surroundings(made, run_dir, *overrides, teacher=teacher, start=start)
    checks.check(config)
    return sft.run(config, context)


def weights(done: StageResult) -> dict[str, Tensor]:
    assert done.checkpoint is not None
    return load_file(next(done.checkpoint.glob("*model.safetensors")))


OWN = ("stage.on_policy=1", "stage.eval_first=false")
MIXED = ("stage.on_policy=0.5", "stage.teacher_temperature=2", "stage.length_power=0.5")


@pytest.fixture(scope="module")
def mixed(made: Path, tmp_path_factory: pytest.TempPathFactory) -> StageResult:
    return trained(made, tmp_path_factory.mktemp("mixed") / "run", *MIXED, "checkpoint.every=4")


def test_it_comes_nearer_and_says_so(mixed: StageResult) -> None:
    metrics = mixed.metrics
    assert {
        "train/ce",
        "train/kl_teacher",
        "train/on_policy_kl",
        "train/on_policy_length",
        "train/on_policy_ended",
    } < metrics.keys()
    assert 0.1 < metrics["eval/gap_closed"] < 1.5 and metrics["eval/teacher_loss"] < 3
    assert 0 < metrics["train/on_policy_length"] <= 6 and "teacher" in mixed.facts


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_every_divergence_falls(made: Path, tmp_path: Path, kind: str) -> None:
    given = ("stage.teacher_share=1", f"stage.divergence={kind}", "stage.eval_first=false", "stage.max_steps=12")
    done = trained(made, tmp_path / "run", *given)
    first = trained(made, tmp_path / "first", *given, "stage.max_steps=1")
    assert done.metrics["train/kl_teacher"] < 0.7 * first.metrics["train/kl_teacher"]


def test_on_its_own_replies_the_student_comes_nearer(made: Path, tmp_path: Path) -> None:
    done = trained(made, tmp_path / "run", *OWN, "stage.max_steps=12")
    first = trained(made, tmp_path / "first", *OWN, "stage.max_steps=1")
    assert done.metrics["train/on_policy_kl"] < 0.7 * first.metrics["train/on_policy_kl"]


def test_a_teacher_that_is_the_student_teaches_nothing(made: Path, tmp_path: Path) -> None:
    for given in (("stage.teacher_share=1", "stage.packing=false"), ("stage.teacher_share=1",), OWN):
        done = trained(made, tmp_path / "-".join(given), *given, "stage.max_steps=1", teacher="student")
        kl = done.metrics.get("train/kl_teacher", done.metrics.get("train/on_policy_kl"))
        assert kl == pytest.approx(0, abs=1e-6) and done.metrics["train/grad_norm"] == pytest.approx(0, abs=1e-4)


def test_a_share_of_nothing_is_plain_fine_tuning(made: Path, tmp_path: Path) -> None:
    """But for rows of the head that are no tokens: with a teacher they have no probability."""
    given = ("stage.teacher_share=0", "stage.on_policy=1e-9", "stage.max_steps=2", "stage.eval_first=false")
    plain = trained(made, tmp_path / "plain", *given[2:], teacher=None)
    done = trained(made, tmp_path / "run", *given)
    assert done.metrics["train/ce"] == pytest.approx(done.metrics["train/loss"], rel=1e-6)
    assert done.metrics["train/loss"] == pytest.approx(plain.metrics["train/loss"], abs=0.15)


# --- the same numbers


def test_the_split_into_micro_batches_changes_nothing(made: Path, mixed: StageResult, tmp_path: Path) -> None:
    wanted = weights(mixed)
    for size in (2, 1):
        found = weights(trained(made, tmp_path / f"{size}", *MIXED, f"stage.micro_batch_size={size}"))
        assert all(torch.allclose(found[name], wanted[name], atol=1e-4) for name in wanted), size


@pytest.mark.parametrize("peft", ["none", "lora"])
def test_resumed_it_ends_bit_by_bit(made: Path, tmp_path: Path, peft: str) -> None:
    given = (*MIXED, "checkpoint.every=4", f"peft={peft}", "stage.dropout=0.1")
    straight = trained(made, tmp_path / "run", *given)
    wanted = {name: value.clone() for name, value in weights(straight).items()}
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000008")
    again = trained(made, tmp_path / "run", *given)
    found = weights(again)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    for metric in ("train/loss", "eval/response_loss", "eval/teacher_loss", "eval/gap_closed"):
        assert again.metrics[metric] == straight.metrics[metric], metric


def taught(made: Path, run_dir: Path, *overrides: str) -> tuple[Teacher, Any, ChatBatches, Config]:
    config, context = surroundings(made, run_dir, *overrides)
    tokenizer = get_chat_tokenizer(config, context)
    student = load_model(str(made / "student"), 0.0)
    teacher = Teacher(config, context, tokenizer, student, 96)
    engine = evaluation_engine(student, config.precision, ALONE)
    return teacher, engine, ChatBatches(get_chats("train", tokenizer, 96, config, context), 96, True, 3), config


def test_ranks_sample_the_replies_of_one_process(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, engine, batches, _ = taught(made, tmp_path / "run", *OWN)
    whole, held, ended = teacher.own_replies(engine, batches, 3)
    again, *_ = teacher.own_replies(engine, batches, 3)
    other, *_ = teacher.own_replies(engine, batches, 4)
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert other["input_ids"].shape != whole["input_ids"].shape or not torch.equal(other["targets"], whole["targets"])
    trained_tokens = (whole["targets"] != -100).sum()
    assert held.trained.sum() == trained_tokens and held.tokens == (whole["segments"] > 0).sum()
    parts = []
    for rank in (0, 1):
        engine.world = replace(ALONE, rank=rank, size=2)
        monkeypatch.setattr(World, "gather_objects", lambda _, own: [own])
        parts.append(teacher.own_replies(engine, batches, 3))
    shares = [share * len(own.trained) for _, own, share in parts]
    assert sum(shares) / len(held.trained) == pytest.approx(ended), "of the replies of all ranks"
    assert np.concatenate([own.trained for _, own, _ in parts]).tolist() == held.trained.tolist()
    for name in ("input_ids", "targets", "segments", "position_ids"):
        rows = [
            row[: (seg > 0).sum()]
            for batch, *_ in parts
            for row, seg in zip(batch[name], batch["segments"], strict=True)
        ]
        wanted = [row[: (seg > 0).sum()] for row, seg in zip(whole[name], whole["segments"], strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(rows, wanted, strict=True)), name


def test_own_replies_follow_the_prompts_of_the_data(made: Path, tmp_path: Path) -> None:
    teacher, engine, batches, _ = taught(made, tmp_path / "run", *OWN)
    rows, held, _ = teacher.own_replies(engine, batches, 1)
    prompts = [batches.cache.prompt(i) for sequence in batches.sequences(0, 4) for i in sequence]
    found = []
    for ids, targets, segments in zip(rows["input_ids"], rows["targets"], rows["segments"], strict=True):
        for number in range(1, int(segments.max()) + 1):
            own = segments == number
            count = int((targets[own] != -100).sum())
            found.append((ids[own].tolist(), count))
    for prompt, (ids, count), length in zip(prompts, found, held.trained, strict=True):
        assert ids[: len(prompt)] == prompt and len(ids) == len(prompt) + count and count == length <= 6


def test_padded_own_replies_are_no_wider_than_both_models_take(made: Path, tmp_path: Path) -> None:
    teacher, engine, batches, _ = taught(made, tmp_path / "run", *OWN, "stage.packing=false")
    batches.packing = False
    rows, held, _ = teacher.own_replies(engine, batches, 1)
    longest = int((rows["segments"] > 0).sum(1).max())
    assert rows["input_ids"].shape == (4, -(-longest // 8) * 8) and len(held.trained) == 4
    assert longest % 8, "or the next line could not fail"
    teacher._most = longest
    assert teacher.own_replies(engine, batches, 1)[0]["input_ids"].shape == (4, longest)


def test_steps_on_own_replies_are_as_many_as_asked_for(made: Path, tmp_path: Path) -> None:
    teacher, *_ = taught(made, tmp_path / "run", "stage.on_policy=0.3")
    assert sum(teacher.on_policy_at(step) for step in range(2000)) == pytest.approx(600, abs=60)
    assert [teacher.on_policy_at(step) for step in range(50)] == [teacher.on_policy_at(step) for step in range(50)]


# --- teachers


def test_an_adapter_is_a_teacher_and_has_one(made: Path, tmp_path: Path) -> None:
    small = ("peft=lora", "peft.r=2", "stage.max_steps=2", "stage.eval_first=false")
    adapter = trained(made, tmp_path / "adapter", *small, teacher=None)
    assert adapter.checkpoint is not None
    shutil.copytree(adapter.checkpoint, made / "adapter", dirs_exist_ok=True)
    done = trained(made, tmp_path / "run", *small, "stage.teacher_share=1", teacher="adapter")
    assert done.metrics["train/kl_teacher"] > 0 and done.facts["parameters trained"] < done.facts["parameters"] / 4


def refused(made: Path, tmp_path: Path, *overrides: str, teacher: str = "teacher") -> str:
    with pytest.raises(UserError) as caught:
        trained(made, tmp_path / "run", *overrides, teacher=teacher)
    assert "\n" not in str(caught.value) and not (tmp_path / "run" / "checkpoints").exists()
    return str(caught.value)


def test_a_teacher_of_another_tokenizer_is_refused_with_both_named(made: Path, tmp_path: Path) -> None:
    folder = made / "stranger"
    save_base(folder, made / "student")
    train_bpe(stories(2, "train", 100), 300, progress=False).save_pretrained(folder)
    said = refused(made, tmp_path, teacher="stranger")
    assert "stage.teacher=" in said and "take a teacher with the student's tokenizer" in said
    assert all(
        tokenizer_fingerprint(load_saved_tokenizer(str(made / name))) in said for name in ("stranger", "student")
    )


def test_a_teacher_with_too_few_rows_or_too_short_a_context_is_refused(made: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made / "student")
    save_base(made / "short", made / "student", context_length=64)
    said = refused(made, tmp_path, teacher="short")
    assert "it takes 64 tokens, and the student's conversations may have 96; lower stage.context_length" in said
    model = AutoModelForCausalLM.from_pretrained(made / "teacher")
    model.resize_token_embeddings(120)
    model.save_pretrained(made / "few")
    tokenizer.save_pretrained(made / "few")
    assert "has 120 entries, its tokenizer 4" in refused(made, tmp_path, teacher="few")


def test_a_reward_model_is_no_teacher(made: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(made / "teacher", num_labels=1)
    model.save_pretrained(made / "reward")
    AutoTokenizer.from_pretrained(made / "student").save_pretrained(made / "reward")
    said = refused(made, tmp_path, teacher="reward")
    assert said.startswith("stage.teacher: ") and "reward" in said


def test_a_run_does_not_go_on_with_another_teacher(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "made")
    given = ("stage.max_steps=2", "checkpoint.every=1", "stage.eval_first=false")
    trained(tmp_path / "made", tmp_path / "run", *given, teacher="raw")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000002")
    save_base(tmp_path / "made" / "raw", made / "student", seed=8)
    with pytest.raises(UserError, match="other weights than those this run began to learn from"):
        trained(tmp_path / "made", tmp_path / "run", *given, teacher="raw")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("stage.teacher_share=1.5",), r"stage\.teacher_share=1\.5: a share between 0 and 1"),
        (("stage.on_policy=-1",), r"stage\.on_policy=-1\.0: a share between 0 and 1"),
        (("stage.teacher_temperature=0",), r"stage\.teacher_temperature=0\.0: above 0"),
        (("stage.jsd_beta=1",), r"stage\.jsd_beta=1\.0: above 0 \(near it: forward\)"),
        (("stage.on_policy_tokens=0",), r"stage\.on_policy_tokens=0: above 0"),
        (("stage.teacher=null", "stage.on_policy=0.5"), r"stage\.on_policy=0\.5: .* give stage\.teacher=FOLDER"),
        (("stage.teacher_share=0",), r"nothing is learnt from stage\.teacher"),
        (("stage.label_smoothing=0.1",), r"stage\.label_smoothing=0\.1: .* use 0 with stage\.teacher"),
    ],
)
def test_settings_that_cannot_work_are_named(made: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        checks.check(surroundings(made, tmp_path / "run", *words)[0])


def test_auto_is_the_newest_run_of_another_model_and_a_missing_folder_is_named(made: Path, tmp_path: Path) -> None:
    outputs = f"paths.outputs={tmp_path / 'outputs'}"
    config, _ = surroundings(made, tmp_path / "run", outputs, f"init_from={made / 'student'}", "stage.teacher=auto")
    with pytest.raises(UserError, match="no finished sft run of another model than model=mini in experiment"):
        parents.find_parents(config)
    config.stage.teacher = "nowhere/at/all"
    with pytest.raises(UserError, match=r"stage\.teacher=nowhere/at/all: .*no such folder"):
        parents.find_parents(config)
