"""Reward models: the head reads the right token, survives saving, and learns; evaluation by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tests.reward_models import LORA, NONE, language_model, reward_model, sequences, started, stir, write
from tinychat.config.rollout_stages import ValueInit, ValueKind
from tinychat.config.schema import DsConfig, OptimConfig, OptimKind, PeftConfig, Precision, RewardConfig, RewardPart
from tinychat.config.stages import Pooling, ReplyLabel, RewardLoss, RewardStage, ScoreRange
from tinychat.engine import build_engine
from tinychat.engine.optim import split_parameters
from tinychat.errors import UserError
from tinychat.evaluation.held_out import (
    ACCURACY_COLUMNS,
    PairScores,
    accuracy_table,
    pair_calibration,
    preference_metrics,
    safety_table,
    score_pairs,
    with_categories,
)
from tinychat.evaluation.statistics import calibration, draw_calibration, expected_calibration_error, wilson
from tinychat.models.checkpoints import load_model
from tinychat.models.reward import (
    head_inputs,
    head_scores,
    load_reward_model,
    normalise,
    raw_scores,
    set_normalisation,
    settings,
)
from tinychat.runtime.world import World
from tinychat.stages.ppo import get_actor_critic
from tinychat.stages.reward import batch_loss, losses_of, terms_of
from tinychat.text.tokenizer import load_saved_tokenizer

WORLD = World(0, 0, 1, torch.device("cpu"))
ARCHS = ["gpt2", "llama", "qwen3"]


@pytest.fixture(params=ARCHS)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return language_model(tmp_path / "base", request.param)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return language_model(tmp_path / "base")


def stage_of(**changes: object) -> RewardStage:
    values = {
        "name": "reward",
        "lr": 0.01,
        "batch_size": 8,
        "micro_batch_size": 8,
        "grad_clip": 1.0,
        "activation_checkpointing": False,
        "loss": RewardLoss.bradley_terry,
        "label": ReplyLabel.chosen,
        "margin": 0.0,
        "centering": 0.0,
    }
    return RewardStage(**{**values, **changes})  # type: ignore[arg-type]


# --- what is read


@pytest.mark.parametrize("pooling", list(Pooling))
def test_scores_do_not_depend_on_padding(base: Path, pooling: Pooling) -> None:
    model = started(base, pooling=pooling)
    ids, lengths = sequences()
    alone = torch.cat([raw_scores(model, ids[i : i + 1, :n], torch.ones(1, n)) for i, n in enumerate(lengths)])
    right, left = torch.full((4, 16), 0), torch.full((4, 16), 0)
    for row, n in enumerate(lengths):
        right[row, :n], left[row, 16 - n :] = ids[row, :n], ids[row, :n]
    place = torch.arange(16)
    on_right, on_left = place < lengths[:, None], place >= 16 - lengths[:, None]
    assert alone.std() > 0.01, "equal scores would mean nothing"
    assert raw_scores(model, right, on_right).detach() == pytest.approx(alone.detach(), abs=1e-5)
    assert raw_scores(model, left, on_left).detach() == pytest.approx(alone.detach(), abs=1e-5)


def test_it_is_the_head_on_the_last_real_token_or_on_the_mean(base: Path) -> None:
    ids, _ = sequences()
    mask = torch.arange(12) < torch.tensor([12, 5, 7, 9])[:, None]
    model = started(base)
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids).last_hidden_state
        every = hidden @ model.score.weight[0]
        assert raw_scores(model, ids, mask) == pytest.approx(every[range(4), [11, 4, 6, 8]], abs=1e-6)
        model.config.tinychat_reward["pooling"] = "mean"
        means = torch.stack([row[:n].mean() for row, n in zip(every, [12, 5, 7, 9], strict=True)])
        assert raw_scores(model, ids, mask) == pytest.approx(means, abs=1e-5)


def test_scores_are_fp32_under_autocast_and_near_those_without(base: Path) -> None:
    model = started(base)
    ids, _ = sequences()
    exact = raw_scores(model, ids, torch.ones_like(ids)).detach()
    with torch.autocast("cpu", torch.bfloat16):
        found = raw_scores(model, ids, torch.ones_like(ids))
    assert found.dtype is torch.float32
    assert found.detach() == pytest.approx(exact, abs=0.1)


def test_a_new_head_has_the_spread_that_keeps_scores_near_one(llama: Path) -> None:
    weight = started(llama).score.weight.detach()
    assert weight.shape == (1, 32)
    assert weight.std().item() == pytest.approx(33**-0.5, rel=0.35)


def test_the_head_is_no_hidden_matrix_for_muon(llama: Path) -> None:
    model = started(llama)
    hidden, rest = split_parameters(model)
    assert not any(p is model.score.weight for p in hidden)
    assert any(p is model.score.weight for p in rest)


# --- saved and loaded


@pytest.mark.parametrize("peft", [NONE, LORA], ids=lambda peft: peft.name)
def test_a_reloaded_model_gives_the_very_scores(base: Path, peft: PeftConfig, tmp_path: Path) -> None:
    model = started(base, peft, Pooling.mean)
    stir(model)
    set_normalisation(model, 0.5, 2.0, ScoreRange.unit)
    ids, _ = sequences()
    mask = torch.ones_like(ids)
    expected = raw_scores(model, ids, mask).detach()
    loaded = load_reward_model(str(write(model, tmp_path / "saved")))
    assert not any(p.requires_grad for p in loaded.parameters()) and not loaded.training
    assert torch.equal(raw_scores(loaded, ids, mask), expected)
    assert settings(loaded.config) == {"pooling": "mean", "range": "unit", "mean": 0.5, "std": 2.0}
    assert torch.equal(normalise(expected, loaded.config), ((expected - 0.5) / 2).sigmoid())


def test_transformers_loads_a_full_checkpoint(base: Path, tmp_path: Path) -> None:
    folder = write(started(base), tmp_path / "saved")
    theirs, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids, _ = sequences()
    mine = raw_scores(load_reward_model(str(folder)), ids, torch.ones_like(ids))
    assert theirs(ids).logits[:, 0].detach() == pytest.approx(mine, abs=1e-6)
    assert json.loads((folder / "config.json").read_text())["tinychat_reward"]["pooling"] == "last"


def test_training_goes_on_from_a_reward_model(llama: Path, tmp_path: Path) -> None:
    ids, _ = sequences()
    mask = torch.ones_like(ids)
    for peft in (NONE, LORA):
        model = started(llama, peft)
        stir(model)
        folder = write(model, tmp_path / peft.name)
        again = started(folder, peft)
        assert torch.equal(raw_scores(again, ids, mask), raw_scores(model, ids, mask))
        trained = [name for name, p in again.named_parameters() if p.requires_grad]
        assert trained == [name for name, p in model.named_parameters() if p.requires_grad]
    merged = started(tmp_path / "lora", NONE)
    assert raw_scores(merged, ids, mask).detach() == pytest.approx(raw_scores(model, ids, mask).detach(), abs=1e-5)
    assert all(p.requires_grad for p in merged.parameters())
    on_top = started(tmp_path / "none", LORA)
    full = load_reward_model(str(tmp_path / "none"))
    assert raw_scores(on_top, ids, mask).detach() == pytest.approx(raw_scores(full, ids, mask), abs=1e-6)


def test_another_tools_classifier_is_read_plainly(llama: Path, tmp_path: Path) -> None:
    model = started(llama)
    del model.config.tinychat_reward
    loaded = load_reward_model(str(write(model, tmp_path / "saved")))
    raw = torch.tensor([3.0])
    assert settings(loaded.config)["pooling"] == "last" and normalise(raw, loaded.config) is raw


@pytest.mark.parametrize(
    "odd", [5, {"pooling": "first"}, {"range": None}, {"std": 0.0}, {"mean": "a"}, {"std": float("nan")}], ids=str
)
def test_settings_that_make_no_scores_are_one_line(odd: Any, llama: Path) -> None:
    model = started(llama)
    model.config.tinychat_reward = odd
    with pytest.raises(UserError, match=r"tinychat_reward of a reward model is .*; it needs pooling"):
        settings(model.config)


def test_what_is_no_reward_model_says_so_in_one_line(llama: Path, tmp_path: Path) -> None:
    full, adapter = reward_model(tmp_path / "full"), reward_model(tmp_path / "lora", peft=LORA)
    with pytest.raises(UserError, match="is a language model, not a reward model; make one with stage=reward"):
        load_reward_model(str(llama))
    for folder in (full, adapter):
        with pytest.raises(UserError, match="is a reward model, not a language model"):
            load_model(str(folder))
    with pytest.raises(UserError, match=r"stage\.pooling=mean: .* use stage\.pooling=last"):
        started(full, pooling=Pooling.mean)
    with pytest.raises(UserError, match="not as peft=lora asks"):
        started(adapter, PeftConfig("lora", LORA.kind, 8, 8, 0.0, None))


@pytest.mark.parametrize(("pooling", "layer"), [(Pooling.last, None), (Pooling.mean, None), (Pooling.mean, 1)])
def test_a_value_function_starts_from_a_reward_model_of_any_pooling_and_layer(
    llama: Path, tmp_path: Path, pooling: Pooling, layer: int | None
) -> None:
    rewarding = started(llama, pooling=pooling, head_layer=layer)
    folder = write(rewarding, tmp_path / "reward")
    stage = SimpleNamespace(value=ValueKind.own, value_from=ValueInit.reward, critic_lr_ratio=1.0)
    parents = {"init_from": str(llama), "reward.model": str(folder)}
    context = SimpleNamespace(parents=parents, run_dir=tmp_path)
    reward = RewardConfig("test", {"model": RewardPart("model", 1.0, str(folder))}, False, False, None, None)
    config = SimpleNamespace(stage=stage, peft=NONE, model=SimpleNamespace(arch="llama"), reward=reward)
    actor_critic = get_actor_critic(cast(Any, config), cast(Any, context), load_saved_tokenizer(str(llama)))
    value, expected = actor_critic.value.base_model.state_dict(), rewarding.base_model.state_dict()
    assert value.keys() == expected.keys()
    assert all(torch.equal(value[name], weight) for name, weight in expected.items())
    assert not actor_critic.value.score.weight.any()


def test_without_a_wish_the_pooling_is_the_models_own(llama: Path, tmp_path: Path) -> None:
    folder = write(started(llama, pooling=Pooling.mean), tmp_path / "mean")
    assert settings(started(folder, pooling=None).config)["pooling"] == "mean"
    assert settings(started(llama, pooling=None).config)["pooling"] == "last"


# --- a head on a lower layer


@pytest.mark.parametrize("peft", [NONE, LORA])
def test_a_head_reads_a_lower_layer_and_the_blocks_above_are_gone(base: Path, tmp_path: Path, peft: PeftConfig) -> None:
    model = started(base, peft, Pooling.mean, head_layer=1)
    stir(model)
    ids, lengths = sequences()
    mask = torch.arange(12) < lengths[:, None]
    found = raw_scores(model, ids, mask).detach()
    folder = write(model, tmp_path / "reward")
    loaded = load_reward_model(str(folder))
    assert torch.equal(raw_scores(loaded, ids, mask), found)
    inner = loaded.get_base_model() if peft is LORA else loaded
    assert inner.config.num_hidden_layers == 1 and settings(loaded.config)["head_layer"] == 1
    if peft is LORA:
        return
    language = load_model(str(base))  # whose first block and final norm it is, moved
    language.base_model.load_state_dict(loaded.base_model.state_dict(), strict=False)
    hidden = language.base_model(ids, output_hidden_states=True).hidden_states[1]
    norm = list(language.base_model.named_children())
    after = next(part for name, part in norm if name in ("norm", "ln_f"))
    pooled = (after(hidden) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    assert (pooled @ loaded.score.weight.T)[:, 0].detach() == pytest.approx(found, abs=1e-5)
    other = AutoModelForSequenceClassification.from_pretrained(folder)
    assert other.config.num_hidden_layers == 1
    again = started(folder, pooling=None)
    assert settings(again.config)["head_layer"] == 1


def test_a_layer_that_is_not_there_or_another_than_before_is_refused(llama: Path, tmp_path: Path) -> None:
    for layer in (0, 3):
        with pytest.raises(UserError, match=rf"stage.head_layer={layer}: the model has 2 layers; use 1 to 2, or null"):
            started(llama, head_layer=layer)
    low, whole = write(started(llama, head_layer=1), tmp_path / "low"), write(started(llama), tmp_path / "whole")
    with pytest.raises(UserError, match=r"stage\.head_layer=2: .* use stage\.head_layer=1"):
        started(low, head_layer=2)
    with pytest.raises(UserError, match=r"stage\.head_layer=1: .* use stage\.head_layer=null"):
        started(whole, head_layer=1)
    assert "head_layer" not in json.loads((whole / "config.json").read_text())["tinychat_reward"]


# --- frozen


def test_all_but_the_last_blocks_are_frozen(base: Path) -> None:
    model = started(base, train_last_layers=1)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    blocks = {name.split(".")[2] for name in trained if name.split(".")[1] in ("h", "layers")}
    others = {name for name in trained if name.split(".")[1] not in ("h", "layers")}
    assert blocks == {"1"}
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in others} <= {"score", "norm", "ln_f"}
    assert "score.weight" in trained and len(others) >= 2
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, stage_of(centering=0.1), steps=2)  # a difference of scores alone tells the last bias nothing
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) != (name in trained), name


def test_without_a_trained_block_the_head_alone_learns_from_what_it_reads(base: Path) -> None:
    model = started(base, train_last_layers=0)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["score.weight"]
    batch = with_labels(toy(1))
    states = head_inputs(model, batch["input_ids"], batch["attention_mask"])
    expected = raw_scores(model, batch["input_ids"], batch["attention_mask"]).detach()
    assert torch.equal(head_scores(model, states).detach(), expected)
    stage = stage_of(loss=RewardLoss.both, label=ReplyLabel.safe)
    losses = [batch_loss(model, one, stage) for one in (batch, {"states": states, "safe": batch["safe"]})]
    grads = [torch.autograd.grad(loss, model.score.weight)[0] for loss in losses]
    assert torch.equal(*losses) and torch.equal(*grads)


def test_blocks_that_are_not_there_or_come_with_an_adapter_are_refused(llama: Path) -> None:
    with pytest.raises(UserError, match=r"train_last_layers=3: the model has 2 blocks"):
        started(llama, train_last_layers=3)
    with pytest.raises(UserError, match=r"train_last_layers=1: peft=lora freezes"):
        started(llama, LORA, train_last_layers=1)


# --- losses


SCORES = torch.tensor([[1.0, 0.5], [-1.0, 2.0]])
SAFE = torch.tensor([[1, 0], [-1, 0]])


def nll(x: float) -> float:
    return math.log1p(math.exp(-x))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [nll(0.5), nll(-3.0)]),
        ({"margin": 1.5}, [nll(-1.0), nll(-4.5)]),
        ({"centering": 0.1}, [nll(0.5) + 0.1 * 1.5**2, nll(-3.0) + 0.1 * 1.0**2]),
        ({"loss": RewardLoss.pointwise}, [nll(1.0), nll(-0.5), nll(-1.0), nll(-2.0)]),
        ({"loss": RewardLoss.pointwise, "label": ReplyLabel.safe}, [nll(1.0), nll(-0.5), nll(-2.0)]),
        (
            {"loss": RewardLoss.both, "label": ReplyLabel.safe, "margin": 1.5},
            [nll(-1.0) + (nll(1.0) + nll(-0.5)) / 2, nll(-4.5) + nll(-2.0)],
        ),
    ],
)
def test_losses_by_hand(changes: dict[str, object], expected: list[float]) -> None:
    stage = stage_of(**changes)
    assert losses_of(stage, SCORES, SAFE).tolist() == pytest.approx(expected, abs=1e-6)
    assert terms_of(stage, SAFE) == len(expected)


def test_a_batch_without_labels_has_a_loss_of_zero_and_a_gradient(llama: Path) -> None:
    model = started(llama)
    ids, _ = sequences()
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "safe": torch.full((4,), -1)}
    loss = batch_loss(model, batch, stage_of(loss=RewardLoss.pointwise, label=ReplyLabel.safe))
    loss.backward()
    assert loss.item() == 0 and not model.score.weight.grad.any()


# --- it learns


def toy(seed: int) -> dict[str, torch.Tensor]:
    """Eight pairs: the chosen reply holds token 7 somewhere, the rejected one does not."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(10, 300, (16, 12), generator=generator)
    ids[torch.arange(0, 16, 2), torch.randint(2, 8, (8,), generator=generator)] = 7
    return {"input_ids": ids, "attention_mask": torch.arange(12) < torch.randint(9, 13, (16, 1), generator=generator)}


def with_labels(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    rows = torch.arange(16)
    return {**batch, "safe": 1 - rows % 2, "pair": rows // 2, "category": torch.full((16,), -1)}


def train(model: object, stage: RewardStage, steps: int) -> object:
    optim = OptimConfig("muon", OptimKind.muon, [0.9, 0.95], 1e-8, 0.0, 1.0, 0.95, 5)
    engine = build_engine(model, optim, DsConfig("none", False, {}), stage, Precision.fp32, WORLD)
    for step in range(steps):
        batch = with_labels(toy(step))
        engine.train_step([batch], lambda model, batch: batch_loss(model, batch, stage) / 8)
    return engine


@pytest.mark.parametrize(("peft", "lr", "loss"), [(NONE, 0.01, "bradley_terry"), (LORA, 0.02, "pointwise")])
def test_it_tells_new_pairs_of_a_separable_toy_apart(llama: Path, peft: PeftConfig, lr: float, loss: str) -> None:
    stage = stage_of(lr=lr, loss=RewardLoss(loss), label=ReplyLabel.safe)
    engine = train(started(llama, peft), stage, steps=150)
    with engine.inference() as model:  # type: ignore[attr-defined]
        found = score_pairs(model, [with_labels(toy(1000 + number)) for number in range(8)], WORLD)
    metrics = preference_metrics(found)
    assert metrics["eval/reward_accuracy"] > 0.95  # 0.98 to 1.0 over seeds and kinds of processor
    if loss == "pointwise":
        assert metrics["eval/safety_accuracy"] > 0.95


# --- measured


FOUND = PairScores(
    scores=np.array([[2.0, 0.0], [1.0, 1.0], [-1.0, 1.0], [3.0, -1.0]]),
    safe=np.array([[1, 0], [1, -1], [0, 1], [-1, -1]]),
    category=np.array([0, 0, 1, -1]),
)


def test_metrics_by_hand() -> None:
    metrics = preference_metrics(FOUND)
    assert metrics["eval/reward_accuracy"] == 2.5 / 4  # a tie counts half
    assert (metrics["eval/reward_accuracy_low"], metrics["eval/reward_accuracy_high"]) == wilson(2, 4)
    assert metrics["eval/reward_margin"] == (2 + 0 - 2 + 4) / 4
    # 2.0 safe, 0.0 unsafe, 1.0 safe, -1.0 unsafe, 1.0 safe: all told right
    assert metrics["eval/safety_accuracy"] == 1.0
    unlabelled = PairScores(FOUND.scores, np.full((4, 2), -1), FOUND.category)
    assert "eval/safety_accuracy" not in preference_metrics(unlabelled) and safety_table(unlabelled) == []


def test_tables_by_hand() -> None:
    first, second = accuracy_table(FOUND, ["theft", "poison"])
    assert first == ["theft", 2, 1.5, 0.75, *wilson(2, 2), 1.0, 3, 3, 1.0, *wilson(3, 3)]
    assert second == ["poison", 1, 0.0, 0.0, *wilson(0, 1), -2.0, 2, 2, 1.0, *wilson(2, 2)]
    assert [len(row) for row in (first, second)] == [len(ACCURACY_COLUMNS)] * 2
    assert safety_table(FOUND) == [["safe", 3, 3, 1.0, *wilson(3, 3)], ["unsafe", 2, 2, 1.0, *wilson(2, 2)]]


def test_pairs_whose_data_name_no_category_get_one_by_their_text() -> None:
    named, names = with_categories(FOUND, ["theft", "poison"], lambda pair: {3: "poison"}[pair])
    assert (named.category.tolist(), names) == ([0, 0, 1, 1], ["theft", "poison"])
    unnamed = replace(FOUND, category=np.full(4, -1))
    named, names = with_categories(unnamed, [], lambda pair: "theft" if pair else "")
    assert (named.category.tolist(), names) == ([0, 1, 1, 1], ["none", "theft"])


def test_calibration_by_hand(tmp_path: Path) -> None:
    bins = calibration(np.array([0.52, 0.54, 0.97, 1.0]), np.array([1, 0.5, 1, 0]), low=0.5)
    assert [(one.count, one.predicted, one.observed) for one in bins] == [
        (2, pytest.approx(0.53), 0.75),
        (2, pytest.approx(0.985), 0.5),
    ]
    assert expected_calibration_error(bins) == pytest.approx(0.5 * 0.22 + 0.5 * 0.485)
    assert draw_calibration(bins, "by hand", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_probabilities_that_come_true_have_no_calibration_error() -> None:
    generator = np.random.default_rng(0)
    difference = np.abs(generator.normal(0, 2, 40_000))
    won = generator.random(40_000) < 1 / (1 + np.exp(-difference))
    scores = np.where(won, difference, -difference)[:, None] * np.array([[0.5, -0.5]])
    labels = np.full((40_000, 2), -1)
    assert pair_calibration(PairScores(scores, labels, labels[:, 0]))[1] < 0.01
    assert pair_calibration(PairScores(3 * scores, labels, labels[:, 0]))[1] > 0.05


def test_pairs_that_fill_up_are_not_counted_and_the_order_is_that_of_the_numbers(llama: Path) -> None:
    batch = with_labels(toy(0))
    model = started(llama)
    filler = {name: value[:2].clone() for name, value in batch.items()}
    filler["pair"].fill_(-1)
    later = {name: value[8:] for name, value in batch.items()}
    sooner = {name: value[:8] for name, value in batch.items()}
    whole, parts = score_pairs(model, [batch], WORLD), score_pairs(model, [later, filler, sooner], WORLD)
    assert len(parts) == 8
    assert parts.scores == pytest.approx(whole.scores, abs=1e-6)
