"""Several adapters on one base compute what each computes on a copy of it, bit for bit, and are trained, saved and
switched without touching each other."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.chat_models import babbler
from tests.reward_models import LORA, language_model, reward_model, started, stir, write
from tinychat.config.schema import PeftConfig, PeftKind
from tinychat.config.stages import Pooling, ScoreRange
from tinychat.engine.base import eval_mode
from tinychat.errors import UserError
from tinychat.models.actor_critic import ActorCritic, policy_and_values
from tinychat.models.adapters import adapter_in_use, used_adapter
from tinychat.models.checkpoints import load_model, start_model
from tinychat.models.kernels.attention import use_blocked_attention
from tinychat.models.kernels.layers import use_fused_norms, use_fused_rotary
from tinychat.models.one_base import VALUE, OneBase, add_value_adapter, other_base
from tinychat.models.reward import load_reward_model, set_normalisation, start_reward_model
from tinychat.models.scorer import Scorer

QLORA = PeftConfig("qlora", PeftKind.qlora, 4, 8.0, 0.0, None)
needs_bitsandbytes = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="the qlora extra")
KINDS = [LORA, pytest.param(QLORA, marks=needs_bitsandbytes)]
IDS = (torch.arange(36).reshape(3, 12) * 7) % 300
ROWS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14, 15, 16, 17, 18]]


def rewarding(base: Path, folder: Path, peft: PeftConfig = LORA, **options: Any) -> Path:
    """The adapter of a reward model on this base."""
    torch.manual_seed(0)
    model = start_reward_model(str(base), peft, options.pop("pooling", Pooling.last), **options)
    model.config.pad_token_id = babbler()[1].pad_token_id
    stir(model, seed=3)
    set_normalisation(model, 0.25, 2.0, ScoreRange.standard)
    return write(model, folder)


def policy_on(base: Path, peft: PeftConfig = LORA, seed: int = 1) -> Any:
    torch.manual_seed(seed)
    policy = start_model(str(base), peft, 0.0, new_adapter=True)
    stir(policy, seed)
    return placed(policy)


def placed(model: Any) -> Any:
    """With the arithmetic of an engine."""
    for faster in (use_blocked_attention, use_fused_norms, use_fused_rotary):
        faster(model, torch.device("cpu"))
    return model


def scorer_on(policy: Any, path: Path, dtype: torch.dtype = torch.float32) -> Scorer:
    return Scorer(str(path), "cpu", dtype, 2, OneBase(policy, partial(eval_mode, policy)))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pooling", list(Pooling))
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_scores_on_the_policys_base_are_those_of_a_model_of_its_own(
    tmp_path: Path, arch: str, pooling: Pooling, dtype: torch.dtype
) -> None:
    base = language_model(tmp_path / "base", arch)
    folder = rewarding(base, tmp_path / "reward", pooling=pooling)
    policy = policy_on(base)
    before, random = logits(policy), torch.get_rng_state()
    names = [name for name, _ in policy.named_parameters()]
    found = scorer_on(policy, folder, dtype)
    assert torch.equal(torch.get_rng_state(), random), "nothing is drawn"
    assert found.outputs(ROWS) == Scorer(str(folder), "cpu", dtype, 2).outputs(ROWS)
    assert found.score_ids(ROWS) == Scorer(str(folder), "cpu", dtype, 2).score_ids(ROWS)
    assert torch.equal(logits(policy), before)
    stir(policy, seed=4)  # the policy learns: its rewards stay
    assert found.outputs(ROWS) == Scorer(str(folder), "cpu", dtype, 2).outputs(ROWS)
    weights = {p.data_ptr() for p in policy.parameters()}
    shared = [p.data_ptr() in weights for name, p in found.model.named_parameters() if name != "score.weight"]
    assert all(shared), "no weight of the base is there twice"
    assert [name for name, _ in policy.named_parameters()] == names, "engines see the policy alone"


def test_a_head_at_a_lower_layer_and_an_ensemble(tmp_path: Path) -> None:
    base = language_model(tmp_path / "base")
    folders = [rewarding(base, tmp_path / "lower", head_layer=1), rewarding(base, tmp_path / "last")]
    policy = policy_on(base)
    before = logits(policy)
    shared = OneBase(policy, partial(eval_mode, policy))
    for folder in folders:
        found = Scorer(str(folder), "cpu", torch.float32, 2, shared).outputs(ROWS)
        assert found == Scorer(str(folder), "cpu", torch.float32, 2).outputs(ROWS)
    assert torch.equal(logits(policy), before)


@pytest.mark.parametrize("layer", [None, 1])
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_a_head_on_the_base_alone(tmp_path: Path, arch: str, layer: int | None) -> None:
    base = language_model(tmp_path / "base", arch)
    head = started(base, train_last_layers=0, head_layer=layer)
    set_normalisation(head, 0.25, 2.0, ScoreRange.standard)
    folder = write(head, tmp_path / "head")
    policy = policy_on(base)
    before = logits(policy)
    found = scorer_on(policy, folder)
    assert found.score_ids(ROWS) == Scorer(str(folder), "cpu", torch.float32, 2).score_ids(ROWS)
    weights = {p.data_ptr() for p in policy.parameters()}
    assert all(p.data_ptr() in weights for name, p in found.model.named_parameters() if name != "score.weight")
    assert torch.equal(logits(policy), before)
    assert used_adapter(policy) is not None


def test_a_backbone_that_was_trained_or_is_anothers_is_no_head_on_the_base(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = language_model(tmp_path / "base")
    policy = policy_on(base)
    trained = started(base, train_last_layers=1)
    list(trained.model.layers)[-1].self_attn.q_proj.weight.data[0, 0] += 1.0
    folder = write(trained, tmp_path / "trained")
    weights = {p.data_ptr() for p in policy.parameters()}
    caplog.set_level("INFO", logger="tinychat")
    found = scorer_on(policy, folder)
    assert not any(p.data_ptr() in weights for p in found.model.parameters())
    assert "is loaded beside the policy: it is not on the policy's base (model.layers.1.self_attn.q" in caplog.text
    with pytest.raises(UserError, match="is a language model, not a reward model"):
        scorer_on(policy, base)


@needs_bitsandbytes
def test_on_a_base_of_4_bits_a_reward_model_is_what_it_was_trained_as(tmp_path: Path) -> None:
    base = wide(tmp_path / "base")
    folder = rewarding(base, tmp_path / "reward", QLORA)
    policy = policy_on(base, QLORA)
    torch.manual_seed(0)
    own = start_reward_model(str(folder), QLORA, None).eval()
    own.config.tinychat_reward = {"pooling": "last", "range": "standard", "mean": 0.25, "std": 2.0}
    from tinychat.models.scorer import outputs_of

    wanted = outputs_of(own, ROWS[:2], 0, "cpu")
    assert torch.tensor(scorer_on(policy, folder).outputs(ROWS[:2])).tolist() == pytest.approx(wanted, abs=1e-6)
    whole = rewarding(base, tmp_path / "whole")
    assert "held in 4 bits" in other_base(policy, str(whole))
    assert not other_base(policy_on(base), str(folder)), "as score loads it: on whole weights"


def wide(folder: Path) -> Path:
    """A base whose linear layers can be held in 4 bits."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=320, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.1, pad_token_id=babbler()[1].pad_token_id,
    )  # fmt: skip
    return write(AutoModelForCausalLM.from_config(shape), folder)


def test_reward_models_of_other_weights_are_loaded_beside_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base, other = language_model(tmp_path / "base"), language_model(tmp_path / "other")
    stirred = load_model(str(other)).requires_grad_(True)
    stir(stirred)
    write(stirred, tmp_path / "stirred")
    policy = policy_on(base)
    own, foreign = rewarding(base, tmp_path / "own"), rewarding(tmp_path / "stirred", tmp_path / "foreign")
    whole = reward_model(tmp_path / "whole")
    with caplog.at_level("INFO"):
        for folder in (own, foreign, whole):
            assert scorer_on(policy, folder).outputs(ROWS) == Scorer(str(folder), "cpu", torch.float32, 2).outputs(ROWS)
    said = [line for line in caplog.messages if line.startswith("reward model")]
    assert "is computed on it" in said[0]
    assert "an adapter of other weights" in said[1]
    assert "it is not on the policy's base" in said[2]
    with pytest.raises(UserError, match="is a language model, not a reward model"):
        scorer_on(policy, base)


@pytest.mark.parametrize("start", ["reward", None])
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_policy_and_values_are_those_of_separate_models(tmp_path: Path, arch: str, start: str | None) -> None:
    base = language_model(tmp_path / "base", arch)
    folder = rewarding(base, tmp_path / "reward")
    policy = policy_on(base)
    alone = policy_on(base)
    add_value_adapter(policy, LORA, start and str(folder))
    model = ActorCritic(policy, None, 3.0, VALUE).eval()
    if start:
        torch.nn.init.normal_(model.value_head.weight)
        found = measured(model)
        assert torch.equal(found[1], values_by(placed(load_reward_model(str(folder))), model.value_head))
    stir(model, seed=5)
    stir(alone, seed=5)
    found, ratios = measured(model), {p.lr_ratio for p in values_of(model)}
    assert ratios == {3.0}
    write(model, tmp_path / "saved")
    again = placed(load_model(str(tmp_path / "saved")))
    assert torch.equal(found[0], measured(again)[0])
    value = placed(load_reward_model(str(tmp_path / "saved" / "value")))
    assert torch.equal(found[1], values_by(value, value.base_model.model.score.modules_to_save["default"]))
    with adapter_in_use(policy, None):
        assert torch.equal(logits(policy), logits(placed(load_model(str(base)))))
    assert used_adapter(policy) == "default"


@torch.no_grad()
def measured(model: Any) -> Any:
    return policy_and_values(model, IDS, IDS, 0.7)


def values_of(model: ActorCritic) -> list[torch.nn.Parameter]:
    return [p for name, p in model.named_parameters() if p.requires_grad and (VALUE in name or "value_head" in name)]


@torch.no_grad()
def values_by(model: Any, head: torch.nn.Linear) -> torch.Tensor:
    """By the backbone of a reward model's adapter on a base of its own."""
    return head(model.base_model.model.base_model(input_ids=IDS, use_cache=False).last_hidden_state)[..., 0]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("peft", KINDS)
def test_each_adapter_learns_from_its_own_loss_alone(tmp_path: Path, peft: PeftConfig, checkpointing: bool) -> None:
    """Also where activations are computed again backward, when another adapter may be in use."""
    base = wide(tmp_path / "base")
    policy = policy_on(base, peft)
    add_value_adapter(policy, peft, None)
    model = ActorCritic(policy, None, 1.0, VALUE)
    stir(model)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    logprobs, values, _ = policy_and_values(model, IDS, IDS, 1.0)
    values.square().sum().backward(retain_graph=True)
    others = [p for name, p in model.named_parameters() if p.requires_grad and VALUE not in name and "head" not in name]
    assert all(p.grad is not None and p.grad.any() for p in values_of(model))
    assert not any(p.grad is not None and p.grad.any() for p in others)
    before = [p.grad.clone() for p in values_of(model)]
    logprobs.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in others)
    assert all(torch.equal(p.grad, old) for p, old in zip(values_of(model), before, strict=True))
    if checkpointing:  # the same gradients as without it
        found = [p.grad.clone() for p in others]
        policy.get_base_model().activation_checkpointing_disable()
        model.zero_grad()
        logprobs, values, _ = policy_and_values(model, IDS, IDS, 1.0)
        (values.square().sum() + logprobs.sum()).backward()
        for p, grad in zip([*values_of(model), *others], [*before, *found], strict=True):
            torch.testing.assert_close(p.grad, grad)
