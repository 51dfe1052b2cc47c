"""stage=dpo in this process: the reference and where it is kept, every loss learning, the same however a batch is
split, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import REPOSITORY, save_base, write_rows
from tinychat.config import checks, schema
from tinychat.config.explain import explain
from tinychat.config.schema import Config, Precision
from tinychat.data.preferences.tokens import PreferenceCache
from tinychat.engine import build_engine, evaluation_engine
from tinychat.errors import UserError
from tinychat.models.checkpoints import load_model
from tinychat.models.vocabulary import vocabulary
from tinychat.runs import trial
from tinychat.runtime.world import World
from tinychat.stages import Context, StageResult, StopFlag, common, dpo, pairs
from tinychat.stages.chats import get_chat_tokenizer
from tinychat.stages.pairs import ReferenceModel, get_pairs, side_logprobs, weights_key
from tinychat.stages.policy import get_policy

ALONE = World(0, 0, 1, torch.device("cpu"))
STEP = (
    "stage=dpo", "tuned=none", "tracker=none", "data=preference", "data.judge_fraction=0", "template=instruct",
    "precision=fp32", "device=cpu", "stage.lr=0.003", "stage.schedule=constant", "stage.warmup_steps=0",
    "stage.batch_size=8", "stage.micro_batch_size=8", "stage.max_steps=12", "stage.log_every=1", "stage.eval_every=0",
    "stage.eval_first=false", "stage.safety_prompts=0", "stage.kl_prompts=0", "stage.eval_batch_size=4",
)  # fmt: skip


def row(number: int) -> dict[str, Any]:
    """A pair whose chosen reply is polite; every third has several turns, and lengths differ."""
    asked = [{"role": "user", "content": f"question {number}" + " more" * (number % 4)}]
    if number % 3 == 0:
        asked += [{"role": "assistant", "content": "What?"}, {"role": "user", "content": "You heard. 你好"}]
    chosen, rejected = f"yes, gladly {number}" + " and more" * (number % 5), f"no {number}" + " never" * (number % 2)
    return {"prompt": asked, "chosen": chosen, "rejected": rejected, "category": "odd" if number % 2 else "even"}


@pytest.fixture(scope="module")
def made(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a policy (`sft`) and pairs of replies."""
    folder = tmp_path_factory.mktemp("dpo")
    save_base(folder / "sft", tokenizer_folder)
    write_rows(folder / "train.jsonl", [row(number) for number in range(24)])
    write_rows(folder / "held_out.jsonl", [row(number) for number in range(30, 39)])
    return folder


def composed(made: Path, *overrides: str) -> Any:
    schema.register()
    data = (f"data.path={made / 'train.jsonl'}", f"data.val_path={made / 'held_out.jsonl'}")
    with initialize_config_dir(str(REPOSITORY / "conf")):
        return compose("config", [*STEP, *data, f"paths.cache={made / 'cache'}", *overrides])


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """The machine's peak takes as long to measure as a training here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "matmul_rate", lambda *_: 1e12)
        yield


def surroundings(made: Path, run_dir: Path, *overrides: str) -> tuple[Config, Context]:
    node = composed(made, *overrides)
    run_dir.mkdir(exist_ok=True)
    OmegaConf.save(node, run_dir / "config.yaml")
    parents: dict[str, str | None] = {"init_from": str(made / "sft")}
    return schema.to_config(node), Context(run_dir, ALONE, None, parents, StopFlag(run_dir))


def trained(made: Path, run_dir: Path, *overrides: str) -> StageResult:
    torch.manual_seed(0)
    config, context = surroundings(made, run_dir, *overrides)
    checks.check(config)
    return dpo.run(config, context)


def weights(done: StageResult) -> dict[str, Tensor]:
    assert done.checkpoint is not None
    return load_file(next(done.checkpoint.glob("*model.safetensors")))


@pytest.fixture(scope="module")
def plain(made: Path, tmp_path_factory: pytest.TempPathFactory) -> StageResult:
    return trained(made, tmp_path_factory.mktemp("plain") / "run")


def test_it_learns_and_says_what_there_is_to_say(plain: StageResult) -> None:
    metrics = plain.metrics
    assert metrics["eval/reward_accuracy"] == 1 and metrics["eval/reward_accuracy_low"] > 0.5
    assert metrics["eval/loss"] < 0.5 and metrics["train/loss"] < 0.5
    for split in ("train", "eval"):
        rewards = metrics[f"{split}/chosen_reward"] - metrics[f"{split}/rejected_reward"]
        assert metrics[f"{split}/reward_margin"] == pytest.approx(rewards, abs=1e-5)
        assert metrics[f"{split}/chosen_logprobs"] < 0 and metrics[f"{split}/rejected_logprobs"] < 0
    assert plain.objective == "eval/reward_accuracy" and "warning" not in plain.facts
    assert plain.facts["training pairs"] == 24 and plain.facts["training pairs left out"] == 0


@pytest.mark.parametrize(
    "choice",
    [
        ("stage.loss=ipo",),
        ("stage.loss=hinge",),
        ("stage.loss=rpo",),
        ("stage.loss=simpo", "stage.beta=2"),
        ("stage.loss=orpo", "stage.beta=1"),
        ("stage.label_smoothing=0.1", "stage.length_normalisation=true", "stage.beta=1"),
        ("peft=lora", "peft.r=4", "stage.lr=0.03"),
    ],
    ids=lambda choice: choice[0],
)
def test_every_loss_learns(made: Path, tmp_path: Path, choice: tuple[str, ...]) -> None:
    assert trained(made, tmp_path / "run", *choice).metrics["eval/reward_accuracy"] >= 0.8


def test_the_split_into_micro_batches_changes_nothing(made: Path, plain: StageResult, tmp_path: Path) -> None:
    wanted = weights(plain)
    for size in (4, 1):
        found = weights(trained(made, tmp_path / f"{size}", f"stage.micro_batch_size={size}"))
        assert all(torch.allclose(found[name], wanted[name], atol=1e-4) for name in wanted), size


@pytest.mark.parametrize("peft", ["none", "lora"])
def test_resumed_it_ends_bit_by_bit(made: Path, tmp_path: Path, peft: str) -> None:
    given = ("checkpoint.every=6", f"peft={peft}", "stage.dropout=0.1")
    straight = trained(made, tmp_path / "run", *given)
    wanted = {name: value.clone() for name, value in weights(straight).items()}
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000012")
    again = trained(made, tmp_path / "run", *given)
    found = weights(again)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert again.metrics["train/loss"] == straight.metrics["train/loss"]


# --- the reference


class Asked(Exception):
    """The model was called."""


def reference(
    made: Path, run_dir: Path, *overrides: str, stir: float = 0.0
) -> tuple[ReferenceModel, PreferenceCache, Path]:
    """The reference of a policy that is `stir` away from the one in `sft`."""
    config, context = surroundings(made, run_dir, *overrides)
    tokenizer = get_chat_tokenizer(config, context)
    torch.manual_seed(0)
    policy = get_policy(config, context, tokenizer, config.stage.dropout)
    if stir:
        with torch.no_grad():
            next(p for p in policy.parameters() if p.dim() > 1).view(-1)[-1] += stir
    found = get_pairs("train", tokenizer, config.stage.context_length or 256, config, context)
    key = weights_key(policy)
    engine = build_engine(policy, config.optim, config.ds, config.stage, config.precision, ALONE)
    return ReferenceModel(engine, vocabulary(tokenizer), key, 4), found, Path(config.paths.cache)


def test_the_reference_is_computed_once_and_anew_when_anything_changes(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = f"paths.cache={tmp_path / 'cache'}"
    model, found, folder = reference(made, tmp_path / "run", cache)
    numbers = torch.arange(len(found)).numpy()
    first = model.logprobs(found, numbers, folder)
    assert first.shape == (24, 2) and (first < 0).all()
    (kept,) = (folder / "references").glob("*/logprobs.bin")

    def called(*_: Any, **__: Any) -> Any:
        raise Asked

    with monkeypatch.context() as patch:
        patch.setattr(pairs, "token_nll", called)
        again, _, _ = reference(made, tmp_path / "run", cache)
        assert (again.logprobs(found, numbers, folder) == first).all()
        for changed in (
            reference(made, tmp_path / "run", cache, stir=1e-3)[:2],
            reference(made, tmp_path / "run", cache, "precision=bf16")[:2],
            reference(made, tmp_path / "run", cache, "stage.context_length=128")[:2],
            reference(made, tmp_path / "run", cache, "template=chatml")[:2],
        ):
            with pytest.raises(Asked):
                changed[0].logprobs(changed[1], numbers, folder)
        kept.write_bytes(kept.read_bytes()[:-4])  # damaged: made again
        with pytest.raises(Asked):
            again.logprobs(found, numbers, folder)


def test_an_adapter_switched_off_is_the_reference(made: Path, tmp_path: Path) -> None:
    whole, found, folder = reference(made, tmp_path / "run", f"paths.cache={tmp_path / 'one'}", "stage.dropout=0.5")
    numbers = torch.arange(len(found)).numpy()
    wanted = whole.logprobs(found, numbers, folder)
    lora, _, _ = reference(made, tmp_path / "run", "peft=lora", "peft.dropout=0.5")
    with torch.no_grad():
        for name, p in lora.engine.model.named_parameters():
            if "lora_" in name:
                p.normal_()
    assert abs(lora.logprobs(found, numbers, tmp_path / "two") - wanted).max() < 1e-5
    engine = evaluation_engine(load_model(str(made / "sft")), Precision.fp32, ALONE)
    by_hand = ReferenceModel(engine, whole.words, "", 3).logprobs(found, numbers[:5], tmp_path / "three")
    assert abs(by_hand[:5] - wanted[:5]).max() < 1e-5 and (by_hand[5:] == 0).all()


def test_log_probabilities_are_of_the_reply_and_its_end(made: Path, tmp_path: Path) -> None:
    model, found, _ = reference(made, tmp_path / "run")
    batch = dpo.PreferenceBatches(found, 1).batch(0, 3)
    logprobs, lengths = side_logprobs(model.engine.model, batch, model.words)
    for number, (pair, ids) in enumerate(zip(batch["pair"].tolist(), batch["input_ids"], strict=True)):
        side, begin = number % 2, int(found.prompt_lengths[2 * pair + number % 2])
        size = int(found.lengths[2 * pair + side])
        steps = model.engine.model(ids[None, :size]).logits[0, :, : model.words.size].log_softmax(-1)
        own = steps[begin - 1 : size - 1].gather(1, ids[begin:size, None]).sum()
        assert logprobs[number // 2, side].item() == pytest.approx(own.item(), abs=1e-4)
        assert lengths[number // 2, side] == size - begin


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_another_reference_is_refused(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str) -> None:
    own = ReferenceModel.logprobs
    monkeypatch.setattr(ReferenceModel, "logprobs", lambda *given: own(*given) + 0.05)
    with pytest.raises(UserError, match=r"self-check: before the first step .* training is refused") as caught:
        trained(made, tmp_path / "run", f"stage.loss={loss}")
    assert ("ln 2 is 0.6931" in str(caught.value)) is (loss == "sigmoid") and "\n" not in str(caught.value)


def test_a_policy_that_is_random_is_refused(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout that no setting asked for."""
    own = dpo.get_policy

    def noisy(*given: Any) -> Any:
        policy = own(*given)
        for layer in policy.model.layers:
            layer.self_attn.attention_dropout = 0.5
        return policy

    monkeypatch.setattr(dpo, "get_policy", noisy)
    with pytest.raises(UserError, match="self-check: before the first step"):
        trained(made, tmp_path / "run")


def test_a_run_does_not_go_on_beside_another_reference(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "made")
    trained(tmp_path / "made", tmp_path / "run", "stage.max_steps=2", "checkpoint.every=1")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000002")
    file = tmp_path / "made" / "sft" / "model.safetensors"
    state = bytearray(file.read_bytes())
    state[-1] ^= 1
    file.write_bytes(state)
    with pytest.raises(UserError, match="other weights than those this run began with"):
        trained(tmp_path / "made", tmp_path / "run", "stage.max_steps=2", "checkpoint.every=1")


# --- what is told


def test_both_sides_falling_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    loop: Any = SimpleNamespace(state={}, step=0, metrics={})
    for step, (chosen, rejected) in enumerate(
        [(-9.0, -8.0), (-14.0, -7.5), (-8.0, -20.0), (-12.0, -10.0), (-15.0, -15.0)]
    ):
        loop.step, loop.metrics = step, {"eval/chosen_logprobs": chosen, "eval/rejected_logprobs": rejected}
        assert bool(dpo.tell_fall(loop)) == (step > 2)  # lasts, and is told once
        assert len(caplog.records) == (step > 2)
    assert "alarm at step 3: both sides fall: held-out chosen replies have lost 3.0 nats" in caplog.records[0].message
    assert len(loop.state["told"]) == 1 and json.dumps(loop.state)


def test_a_trial_of_a_sweep_ends_at_that_alarm(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[int] = []

    def fall(loop: Any) -> dict[str, str]:
        evaluated.append(loop.step)
        return {"fall": "both sides fall"} if loop.step == 2 else {}

    monkeypatch.setattr(dpo, "tell_fall", fall)
    monkeypatch.setattr(trial, "read", lambda _run_dir: {"prune_on": ["fall"]})
    monkeypatch.setattr(trial, "asked_to_stop", lambda _run_dir: None)
    config, context = surroundings(made, tmp_path / "run", "stage.max_steps=4", "stage.eval_every=1")
    dpo.run(config, context)
    assert (context.pruned, evaluated) == ("both sides fall", [1, 2])


def test_pairs_without_a_difference_are_told_and_left_out(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = dpo.usable_pairs

    def all_but_two(cache: PreferenceCache) -> Any:
        found = own(cache)
        return type(found)(found.pairs[2:], 1, 1)

    monkeypatch.setattr(dpo, "usable_pairs", all_but_two)
    done = trained(made, tmp_path / "run", "stage.max_steps=2")
    assert (done.facts["training pairs"], done.facts["training pairs left out"]) == (22, 2)
    assert any("pairs left out: 1 with the same tokens" in record.message for record in caplog.records)
    monkeypatch.setattr(dpo, "usable_pairs", lambda cache: type(own(cache))(own(cache).pairs[:0], 24, 0))
    with pytest.raises(UserError, match="data=preference: no pair says which reply is better: 24 with the same"):
        trained(made, tmp_path / "none")


def test_rows_with_equal_sides_end_the_job_or_are_counted(made: Path, tmp_path: Path) -> None:
    rows = [row(number) for number in range(12)]
    rows[3]["rejected"] = rows[3]["chosen"] + " "
    path = write_rows(tmp_path / "own.jsonl", rows)
    with pytest.raises(UserError, match=r"own\.jsonl, line 4: chosen and rejected are the same text"):
        trained(made, tmp_path / "run", f"data.path={path}")
    done = trained(made, tmp_path / "again", f"data.path={path}", "data.on_bad_row=skip", "stage.max_steps=1")
    assert done.facts["training pairs"] == 11


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("stage.beta=0",), r"stage\.beta=0\.0: above 0"),
        (("stage.label_smoothing=0.5",), r"stage\.label_smoothing=0\.5: at least 0 and below 0\.5"),
        (("stage.loss=ipo", "stage.label_smoothing=0.1"), r"stage\.loss=ipo has none; use 0, or stage\.loss=sigmoid"),
        (("stage.loss=rpo", "stage.rpo_weight=-1"), r"stage\.rpo_weight=-1\.0: must not be negative"),
        (("stage.simpo_margin=-1",), r"stage\.simpo_margin=-1\.0: must not be negative"),
        (("stage.dropout=1",), r"stage\.dropout=1\.0"),
        (("stage.eval_pairs=0",), r"stage\.eval_pairs=0: must be at least 1"),
        (("data=alpaca", "data.val_path=null"), r"data=alpaca has no preferences, which stage=dpo takes"),
    ],
)
def test_settings_that_cannot_work_are_named(made: Path, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        checks.check(schema.to_config(composed(made, *words)))


def test_a_misspelt_loss_is_told_with_the_nearest(made: Path) -> None:
    with pytest.raises(ConfigCompositionException) as caught:
        composed(made, "stage.loss=sigmoud")
    assert explain(caught.value).endswith("[sigmoid, ipo, hinge, rpo, simpo, orpo]. Did you mean sigmoid?")


def test_the_last_evaluation_says_how_far_it_went(made: Path, tmp_path: Path) -> None:
    more = ("stage.kl_prompts=4", "stage.safety_prompts=4", "stage.safety_tokens=8", "stage.generate_batch_size=4")
    for peft in ("none", "lora"):
        done = trained(made, tmp_path / peft, *more, f"peft={peft}", "stage.eval_every=6")
        assert done.metrics["eval/kl"] > 0.01 and 1 <= done.metrics["eval/response_length"] <= 8
        assert 0 <= done.metrics["eval/safe_rate"] <= 1
    still = trained(made, tmp_path / "still", *more, "stage.lr=0", "stage.max_steps=1")
    assert still.metrics["eval/kl"] == pytest.approx(0, abs=1e-5)
    assert still.metrics["eval/reward_accuracy"] == pytest.approx(0.5, abs=0.5)
