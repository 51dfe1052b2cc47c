"""Adapters: their size, their arithmetic, their checkpoints, and every way in which base and adapter can disagree."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tests.conftest import REPOSITORY, environment_of
from tinychat.config.schema import ModelConfig, OptimConfig, OptimKind, PeftConfig, PeftKind
from tinychat.engine.base import PlainEngine, StepStats
from tinychat.engine.checkpoint import Checkpointer
from tinychat.engine.optim import build_optimizer
from tinychat.errors import UserError
from tinychat.merge import main
from tinychat.models.adapters import (
    ADAPTER_BASE,
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    add_adapter,
    merge_adapter,
    trainable_parameters,
    weights_fingerprint,
)
from tinychat.models.build import build_model, count_parameters, hf_config, training_flops_per_token
from tinychat.models.checkpoints import load_config, load_model, merge_checkpoint, start_model
from tinychat.models.logprobs import token_nll
from tinychat.models.reward import start_reward_model
from tinychat.runs import folders
from tinychat.runtime import manifest
from tinychat.runtime.world import World

ALONE = World(0, 0, 1, torch.device("cpu"))
NONE = PeftConfig("none", PeftKind.none, None, None, None, None)
LORA = PeftConfig("lora", PeftKind.lora, 4, 16.0, 0.0, None)
QLORA = PeftConfig("qlora", PeftKind.qlora, 4, 16.0, 0.0, None)
IDS = (torch.arange(40).reshape(2, 20) * 7) % 400
ARCHS = ["gpt2", "llama", "qwen3"]
needs_bitsandbytes = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="the qlora extra")


def shape(arch: str, **changes: Any) -> ModelConfig:
    llama = arch != "gpt2"
    config = ModelConfig(
        name="tiny",
        arch=arch,
        path=None,
        n_layer=2,
        n_embd=64,
        n_head=4,
        n_kv_head=2 if llama else None,
        n_inner=128 if llama else None,
        context_length=64,
        vocab_size=None,
        tie_embeddings=True,
        dropout=0.0,
        rope_theta=10000.0 if llama else None,
        init_std=0.1,
        position_init_std=None,
    )
    return dataclasses.replace(config, **changes)


def write_base(folder: Path, tokenizer_folder: Path, arch: str = "llama", seed: int = 0, **changes: Any) -> Path:
    torch.manual_seed(seed)
    build_model(shape(arch, **changes), 448, pad_token_id=1, eos_token_id=0).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(folder)
    return folder


@pytest.fixture(params=ARCHS)
def base(request: Any, tokenizer_folder: Path, tmp_path: Path) -> Path:
    return write_base(tmp_path / "base", tokenizer_folder, request.param)


@pytest.fixture
def llama(tokenizer_folder: Path, tmp_path: Path) -> Path:
    return write_base(tmp_path / "base", tokenizer_folder)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, use_cache=False).logits


def engine_of(model: Any, lr: float = 0.02) -> PlainEngine:
    optim = OptimConfig("adamw", OptimKind.adamw, [0.9, 0.95], 1e-8, 0.1, None, None, None)
    return PlainEngine(model, build_optimizer(model, optim, lr, torch.float32), ALONE, torch.float32, grad_clip=1.0)


def train(engine: PlainEngine, steps: int = 3) -> list[StepStats]:
    def loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return token_nll(model, **batch, for_sum=True).mean()

    batch = {"input_ids": IDS[:, :-1], "targets": IDS[:, 1:]}
    return [engine.train_step([batch], loss) for _ in range(steps)]


def save(engine: PlainEngine, folder: Path, tokenizer_folder: Path, step: int = 1) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.chat_template = "{{ messages }}"
    return Checkpointer(folder, ALONE, 2, 0).save(step, engine, tokenizer, {"metrics": {}}, {"run_dir": "there"})


def trained_adapter(base: Path, folder: Path, tokenizer_folder: Path, peft: PeftConfig = LORA) -> tuple[Any, Path]:
    engine = engine_of(start_model(str(base), peft))
    train(engine)
    return engine.model, save(engine, folder, tokenizer_folder)


# --- the adapter itself


def test_lora_on_gpt6x512_trains_less_than_two_percent() -> None:
    conf = OmegaConf.load(REPOSITORY / "conf" / "model" / "gpt6x512.yaml")
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), conf))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(hf_config(config, 50304, 0, 0))  # type: ignore[arg-type]
        model = add_adapter(model, dataclasses.replace(LORA, r=8))
    trainable, total = trainable_parameters(model)
    # 6 layers; A and B of attn.c_attn, attn.c_proj and mlp.c_proj
    assert trainable == 6 * 8 * ((512 + 1536) + (512 + 512) + (2048 + 512))
    assert total == 45_195_264 + trainable
    assert trainable / total < 0.02


def test_parameters_of_a_model_without_adapter() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    model[0].requires_grad_(False)
    assert trainable_parameters(model) == (4, 13)


@pytest.mark.parametrize(
    ("arch", "names"),
    [
        ("gpt2", {"attn.c_attn", "attn.c_proj", "mlp.c_proj"}),
        ("llama", {f"self_attn.{x}_proj" for x in "qkvo"} | {f"mlp.{x}_proj" for x in ("gate", "up", "down")}),
        ("qwen3", {f"self_attn.{x}_proj" for x in "qkvo"} | {f"mlp.{x}_proj" for x in ("gate", "up", "down")}),
    ],
)
def test_targets_by_architecture(arch: str, names: set[str]) -> None:
    model = add_adapter(build_model(shape(arch), 448, 1, 0), LORA)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {".".join(name.split(".lora_")[0].split(".")[-2:]) for name in trained} == names
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    assert len(trained) == 2 * 2 * len(names)


def test_named_targets_and_targets_that_are_not_there() -> None:
    model = add_adapter(build_model(shape("llama"), 448, 1, 0), dataclasses.replace(LORA, targets=["mlp.up_proj"]))
    assert len([p for p in model.parameters() if p.requires_grad]) == 4
    there = "it has down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj; null"
    for targets, problem in (
        (["q_proj", "c_attn"], "c_attn is no linear layer"),
        ([], "names no layer"),
        (["norm"], ""),
    ):
        with pytest.raises(UserError, match=rf"^peft.targets=.*{problem}.*{there}") as caught:
            add_adapter(build_model(shape("llama"), 448, 1, 0), dataclasses.replace(LORA, targets=targets))
        assert "\n" not in str(caught.value)


def test_unknown_targets_are_refused_before_weights_are_read(llama: Path) -> None:
    (llama / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"peft.targets=\['c_attn'\]: c_attn is no linear layer"):
        start_model(str(llama), dataclasses.replace(LORA, targets=["c_attn"]))


def test_the_output_is_w_plus_scaled_ba(base: Path) -> None:
    """Against the formula of the paper, written out for one layer."""
    torch.manual_seed(1)
    model = start_model(str(base), dataclasses.replace(LORA, r=3, alpha=6.0))
    assert torch.equal(logits(model), logits(load_model(str(base)))), "a new adapter changes nothing"
    name, layer = next((n, m) for n, m in model.named_modules() if hasattr(m, "lora_A"))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    b.data.normal_()
    x = torch.randn(5, a.shape[1])
    weight = layer.base_layer.weight if "c_attn" not in name else layer.base_layer.weight.T
    expected = x @ weight.T + 6.0 / 3 * x @ a.T @ b.T
    bias = layer.base_layer.bias
    assert torch.allclose(layer(x), expected if bias is None else expected + bias, atol=1e-5)


def test_switched_off_it_is_the_base_and_merged_it_is_the_adapter(base: Path, tmp_path: Path) -> None:
    before = logits(load_model(str(base)))
    engine = engine_of(start_model(str(base), LORA))
    losses = [done.loss for done in train(engine, 5)]
    assert losses[-1] < losses[0] - 0.05
    after = logits(engine.model)
    assert (after - before).abs().max() > 1e-2
    with engine.model.disable_adapter():
        assert torch.equal(logits(engine.model), before)
    merged = merge_adapter(engine.model)
    assert isinstance(merged, PreTrainedModel)
    assert all(p.requires_grad for p in merged.parameters())
    assert (logits(merged) - after).abs().max() < 1e-5


def test_losses_by_the_fused_head_are_those_of_the_logits(base: Path) -> None:
    model = start_model(str(base), LORA)
    train(engine_of(model))
    expected = torch.nn.functional.cross_entropy(logits(model)[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    found = token_nll(model, IDS[:, :-1], IDS[:, 1:], for_sum=True).mean()
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)


def test_gradients_are_the_same_under_activation_checkpointing(llama: Path) -> None:
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = start_model(str(llama), LORA).train()
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        token_nll(model, IDS[:, :-1], IDS[:, 1:], for_sum=True).mean().backward()
        found.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(torch.allclose(one, two, atol=1e-7) for one, two in zip(*found, strict=True))
    assert any(one.abs().max() > 0 for one in found[0])


# --- checkpoints


def test_a_checkpoint_is_small_and_loads_here_and_elsewhere(base: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    model, saved = trained_adapter(base, tmp_path / "run", tokenizer_folder, dataclasses.replace(LORA, r=1))
    folders.verify_checkpoint(saved)
    assert not (saved / "config.json").exists() and not (saved / "model.safetensors").exists()
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(load_file(saved / ADAPTER_WEIGHTS)) == {name.replace(".default", "") for name in names}
    state = torch.load(saved / "trainer_state" / "engine.pt", weights_only=True)
    assert set(state["model"]) == names
    assert len(state["optimizer"]["state"]) == len(names)
    assert AutoTokenizer.from_pretrained(saved).chat_template == "{{ messages }}"
    assert json.loads((saved / "lineage.json").read_text()) == {"run_dir": "there"}
    assert json.loads((saved / ADAPTER_CONFIG).read_text())["base_model_name_or_path"] == str(base.resolve())

    expected = logits(model)
    ours, frozen = load_model(str(saved)), AutoModelForCausalLM.from_pretrained(saved)
    assert isinstance(ours, PeftModel) and not ours.training
    assert not any(p.requires_grad for p in ours.parameters())
    on_base = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), saved)
    for found in (ours, frozen, on_base):
        assert torch.allclose(logits(found), expected, atol=1e-6)
    assert load_config(str(saved)).to_dict() == load_config(str(base)).to_dict()


def test_a_checkpoint_has_less_than_five_percent_of_its_base(tokenizer_folder: Path, tmp_path: Path) -> None:
    """With a vocabulary and a width in the proportions of gpt6x512's, all that a resume needs included."""
    base = write_base(tmp_path / "base", tokenizer_folder, "gpt2", n_embd=256, n_layer=4)
    _, saved = trained_adapter(base, tmp_path / "run", tokenizer_folder, dataclasses.replace(LORA, r=2))
    weights = (base / "model.safetensors").stat().st_size
    assert (saved / ADAPTER_WEIGHTS).stat().st_size < 0.05 * weights
    assert sum(path.stat().st_size for path in (saved / "trainer_state").iterdir()) < 0.05 * weights


def test_two_saves_of_the_same_weights_are_the_same_bytes(llama: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    engine = engine_of(start_model(str(llama), LORA))
    one, two = (save(engine, tmp_path / "run", tokenizer_folder, step) for step in (1, 2))
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_BASE):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    targets = json.loads((one / ADAPTER_CONFIG).read_text())["target_modules"]
    assert targets == sorted(targets)


def test_a_resume_goes_on_bit_by_bit(base: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    engine = engine_of(start_model(str(base), LORA))
    train(engine, 2)
    saved = save(engine, tmp_path / "run", tokenizer_folder)
    expected = [(done.loss, done.grad_norm) for done in train(engine, 2)]
    torch.manual_seed(99)
    again = engine_of(start_model(str(base), LORA))
    Checkpointer(tmp_path / "run", ALONE, 2, 0).load(saved, again, same_ranks=True)
    assert [(done.loss, done.grad_norm) for done in train(again, 2)] == expected
    assert torch.equal(logits(again.model), logits(engine.model))


def test_the_generation_configuration_is_the_adapters_own(llama: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    engine = engine_of(start_model(str(llama), LORA))
    engine.model.generation_config.eos_token_id = [0, 7]
    found = load_model(str(save(engine, tmp_path / "run", tokenizer_folder)))
    assert found.generation_config.eos_token_id == [0, 7]
    out = found.generate(input_ids=IDS[:1, :4], max_new_tokens=3, do_sample=False, pad_token_id=1)
    assert 5 <= out.shape[1] <= 7
    merge_checkpoint(str(tmp_path / "run" / "checkpoints" / "step-000001"), tmp_path / "merged")
    assert load_model(str(tmp_path / "merged")).generation_config.eos_token_id == [0, 7]


# --- base and adapter that do not fit


def test_a_folder_of_runs_may_be_moved_as_a_whole(tokenizer_folder: Path, tmp_path: Path) -> None:
    base = write_base(tmp_path / "old" / "pretrain", tokenizer_folder)
    model, saved = trained_adapter(base, tmp_path / "old" / "sft", tokenizer_folder)
    (tmp_path / "old").rename(tmp_path / "new")
    moved = tmp_path / "new" / saved.relative_to(tmp_path / "old")
    found = load_model(str(moved))
    assert torch.allclose(logits(found), logits(model), atol=1e-6)
    assert found.name_or_path == str(tmp_path / "new" / "pretrain")


def spoil_wrong_base(base: Path, adapter: Path, tokenizer_folder: Path) -> None:
    write_base(base, tokenizer_folder, seed=1)


def spoil_other_shape(base: Path, adapter: Path, tokenizer_folder: Path) -> None:
    (adapter / ADAPTER_BASE).unlink()  # as an adapter that another tool wrote
    write_base(base, tokenizer_folder, n_embd=32)


def spoil_other_architecture(base: Path, adapter: Path, tokenizer_folder: Path) -> None:
    (adapter / ADAPTER_BASE).unlink()
    write_base(base, tokenizer_folder, "gpt2")


def spoil_base_gone(base: Path, adapter: Path, tokenizer_folder: Path) -> None:
    shutil.rmtree(base)


def spoil_base_cut(base: Path, adapter: Path, tokenizer_folder: Path) -> None:
    content = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(content[:-10])


def spoil_adapter_cut(base: Path, adapter: Path, tokenizer_folder: Path) -> None:
    content = (adapter / ADAPTER_WEIGHTS).read_bytes()
    (adapter / ADAPTER_WEIGHTS).write_bytes(content[:-10])


def spoil_adapter_gone(base: Path, adapter: Path, tokenizer_folder: Path) -> None:
    (adapter / ADAPTER_WEIGHTS).rename(adapter / "adapter_model.bin")


def spoil_config(base: Path, adapter: Path, tokenizer_folder: Path) -> None:
    (adapter / ADAPTER_CONFIG).write_text("{")


def spoil_no_base_named(base: Path, adapter: Path, tokenizer_folder: Path) -> None:
    config = json.loads((adapter / ADAPTER_CONFIG).read_text())
    (adapter / ADAPTER_CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": None}))


def spoil_kind(base: Path, adapter: Path, tokenizer_folder: Path) -> None:
    config = json.loads((adapter / ADAPTER_CONFIG).read_text())
    (adapter / ADAPTER_CONFIG).write_text(json.dumps({**config, "peft_type": "NO_SUCH"}))


def spoil_missing(base: Path, adapter: Path, tokenizer_folder: Path) -> None:
    tensors = load_file(adapter / ADAPTER_WEIGHTS)
    del tensors[sorted(tensors)[0]]
    save_file(tensors, adapter / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def spoil_left_over(base: Path, adapter: Path, tokenizer_folder: Path) -> None:
    config = json.loads((adapter / ADAPTER_CONFIG).read_text())
    (adapter / ADAPTER_CONFIG).write_text(json.dumps({**config, "target_modules": ["q_proj"]}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_wrong_base, r"adapter .*step-000001: trained on other weights than those now in its base .*/base; put"),
        (spoil_other_shape, r"adapter .*: does not fit its base .*/base: .*size mismatch"),
        (spoil_other_architecture, r"adapter .*: does not fit its base .*/base: .*q_proj"),
        (spoil_base_gone, r"adapter .*: its base .*/base is not there; put it back, or write .* into .*config.json"),
        (spoil_base_cut, r"base/model.safetensors: cut short"),
        (spoil_adapter_cut, r"adapter_model.safetensors: cut short"),
        (spoil_adapter_gone, r"holds no adapter_model.safetensors; adapter_model.bin is not read"),
        (spoil_config, r"adapter_config.json: unreadable"),
        (spoil_no_base_named, r"adapter_config.json: base_model_name_or_path is None; write"),
        (spoil_kind, r"adapter .*: does not fit"),
        (spoil_missing, r"adapter .*disagree about base_model.model.model.layers.0.mlp.down_proj.lora_A"),
        (spoil_left_over, r"adapter .*disagree about base_model.model.model.layers.0.mlp.down_proj.lora_A"),
    ],
)
def test_one_line_for_each_thing_that_is_wrong(
    spoil: Any, words: str, llama: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    engine = engine_of(start_model(str(llama), LORA))
    saved = save(engine, tmp_path / "run", tokenizer_folder)
    load_model(str(saved))
    spoil(llama, saved, tokenizer_folder)
    (saved / manifest.MANIFEST).unlink()  # as in a folder that another tool wrote: nothing else tells of it
    with pytest.raises(UserError, match=words) as caught:
        load_model(str(saved))
    assert "\n" not in str(caught.value)


def test_the_fingerprint_does_not_depend_on_the_number_of_files(llama: Path, tmp_path: Path) -> None:
    model = load_model(str(llama))
    model.save_pretrained(tmp_path / "parts", max_shard_size="100KB")
    parts = sorted((tmp_path / "parts").glob("*.safetensors"))
    assert len(parts) > 1
    assert weights_fingerprint(parts) == weights_fingerprint([llama / "model.safetensors"])
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.001)
    model.save_pretrained(tmp_path / "other")
    other = weights_fingerprint([tmp_path / "other" / "model.safetensors"])
    assert other != weights_fingerprint(parts)


def test_a_vocabulary_that_grew_in_memory_is_refused(llama: Path) -> None:
    model = load_model(str(llama))
    model.resize_token_embeddings(512, mean_resizing=False)
    with pytest.raises(UserError, match="its vocabulary was changed from 448 to 512 entries"):
        add_adapter(model, LORA)


# --- stages that start from an adapter


def test_the_same_settings_continue_the_adapter(llama: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    model, saved = trained_adapter(llama, tmp_path / "run", tokenizer_folder)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    again = start_model(str(saved), dataclasses.replace(LORA, dropout=0.5))
    assert torch.allclose(logits(again), logits(model), atol=1e-6)
    trained = {name: p for name, p in again.named_parameters() if p.requires_grad}
    assert trained.keys() == before.keys()
    assert all(torch.equal(p, before[name]) for name, p in trained.items())
    assert not torch.equal(again.train()(IDS).logits, again(IDS).logits), "the configured dropout, not the saved one"
    _, second = trained_adapter(saved, tmp_path / "second", tokenizer_folder)
    config = json.loads((second / ADAPTER_CONFIG).read_text())
    assert config["base_model_name_or_path"] == str(llama), "one adapter on one base, however often it was continued"


def test_without_peft_an_adapter_is_merged_and_everything_trained(
    llama: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    model, saved = trained_adapter(llama, tmp_path / "run", tokenizer_folder)
    merged = start_model(str(saved), NONE)
    assert isinstance(merged, PreTrainedModel)
    assert trainable_parameters(merged) == (merged.num_parameters(), merged.num_parameters())
    assert (logits(merged) - logits(model)).abs().max() < 1e-5


@pytest.mark.parametrize("change", [{"r": 2}, {"alpha": 8.0}, {"targets": ["q_proj"]}])
def test_other_settings_put_a_new_adapter_on_the_merged_base(
    change: dict[str, Any], llama: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    model, saved = trained_adapter(llama, tmp_path / "run", tokenizer_folder)
    wanted = dataclasses.replace(LORA, **change)
    with pytest.raises(UserError, match=r"merge it first: python -m tinychat\.merge"):
        start_model(str(saved), wanted)
    merged = tmp_path / "next" / "base"
    merged.parent.mkdir()
    started = start_model(str(saved), wanted, merged=merged)
    assert (logits(started) - logits(model)).abs().max() < 1e-5
    assert started.peft_config["default"].r == wanted.r
    written = (merged / "model.safetensors").stat().st_mtime_ns
    engine = engine_of(start_model(str(saved), wanted, merged=merged))  # a resume, or the next rank
    assert (merged / "model.safetensors").stat().st_mtime_ns == written
    train(engine)
    found = load_model(str(save(engine, tmp_path / "next", tokenizer_folder)))
    assert torch.allclose(logits(found), logits(engine.model), atol=1e-6)


@pytest.mark.parametrize("peft", [NONE, LORA], ids=["none", "lora"])
def test_the_vocabulary_grows_for_chat_tokens_and_comes_back(
    peft: PeftConfig, llama: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    before = logits(load_model(str(llama)))
    own = tmp_path / "run" / "base"
    own.parent.mkdir()
    torch.manual_seed(5)
    model = start_model(str(llama), peft, merged=own, entries=450)
    drawn = torch.rand(1)
    assert model.get_input_embeddings().num_embeddings == 512
    assert torch.allclose(logits(model)[..., :448], before, atol=1e-6)
    if peft is LORA:
        with pytest.raises(
            UserError, match="its vocabulary is smaller than the tokenizer's 450 entries; train with peft=none"
        ):
            start_model(str(llama), peft, entries=450)
        torch.manual_seed(5)
        start_model(str(llama), peft, merged=own, entries=450)
        assert torch.equal(torch.rand(1), drawn), "whoever wrote the base has drawn no other random numbers"
    engine = engine_of(model)
    train(engine)
    found = load_model(str(save(engine, tmp_path / "run", tokenizer_folder)))
    assert torch.allclose(logits(found), logits(model), atol=1e-6)
    assert own.exists() == (peft is LORA)
    with pytest.raises(UserError, match="the tokenizer has 600 entries, the pretrained model 448"):
        start_model(str(llama), peft, merged=tmp_path / "other", entries=600)


def test_dropout_of_base_and_adapter(tokenizer_folder: Path, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tokenizer_folder, "gpt2", dropout=0.1)
    still = start_model(str(base), LORA, dropout=0.0).train()
    assert torch.equal(still(IDS).logits, still(IDS).logits)
    model = start_model(str(base), dataclasses.replace(LORA, dropout=0.3), dropout=0.0).train()
    rates = {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.p}
    assert rates == {0.3}


# --- merging


def test_an_adapter_on_the_head_of_tied_embeddings_is_merged_into_the_head_alone(
    base: Path, tokenizer_folder: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """Everywhere that an adapter is merged: by the command, for training all weights, under another adapter, under a
    reward head, which keeps the embedding and gives the head away."""
    peft = dataclasses.replace(LORA, targets=["lm_head"])
    model, saved = trained_adapter(base, tmp_path / "run", tokenizer_folder, peft)
    expected = logits(model)
    merge_checkpoint(str(saved), tmp_path / "merged")
    (tmp_path / "next").mkdir()
    found = {
        "command": load_model(str(tmp_path / "merged")),
        "transformers": AutoModelForCausalLM.from_pretrained(tmp_path / "merged"),
        "all weights": start_model(str(saved), NONE),
        "more rows": start_model(str(saved), NONE, entries=450),
        "another adapter": start_model(str(saved), LORA, merged=tmp_path / "next" / "base"),
    }
    for name, merged in found.items():
        assert (logits(merged)[..., :448] - expected).abs().max() < 1e-5, name
    again = save(engine_of(found["all weights"]), tmp_path / "more", tokenizer_folder)
    assert (logits(load_model(str(again))) - expected).abs().max() < 1e-5
    rewarding = start_reward_model(str(saved), NONE, None)
    assert torch.equal(rewarding.get_input_embeddings().weight, load_model(str(base)).get_input_embeddings().weight)
    assert not [warning for warning in recwarn if "tie_word" in str(warning.message)]


def test_the_command_says_what_it_did(
    llama: Path, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    saved = save(engine_of(start_model(str(llama), LORA)), tmp_path / "run", tokenizer_folder)
    capfd.readouterr()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["merge", "run", "merged"])
    main()
    assert capfd.readouterr() == (f"merged {saved.relative_to(tmp_path)} into merged\n", "")
    load_model(str(tmp_path / "merged"))


def test_a_merged_checkpoint_is_a_full_one(base: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    model, saved = trained_adapter(base, tmp_path / "run", tokenizer_folder)
    merge_checkpoint(str(saved), tmp_path / "deep" / "merged")
    out = tmp_path / "deep" / "merged"
    folders.verify_checkpoint(out)
    assert AutoTokenizer.from_pretrained(out).chat_template == "{{ messages }}"
    assert (out / "lineage.json").read_bytes() == (saved / "lineage.json").read_bytes()
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.float32}
    assert set(load_file(out / "model.safetensors")) == set(load_file(base / "model.safetensors"))
    for found in (load_model(str(out)), AutoModelForCausalLM.from_pretrained(out)):
        assert not hasattr(found, "peft_config")
        assert (logits(found) - logits(model)).abs().max() < 1e-5
    assert {path.name for path in out.parent.iterdir()} == {"merged"}, "nothing temporary is left"


def test_the_command_refuses_in_one_line(
    llama: Path, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(engine_of(start_model(str(llama), LORA)), tmp_path / "run", tokenizer_folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    monkeypatch.chdir(tmp_path)
    for arguments, words in (
        (("run", "full"), "error: full: exists and is not empty; give a new folder"),
        (("base", "out"), "error: base: holds no adapter_config.json, so there is nothing to merge; it is a full"),
        (("nowhere", "out"), "error: checkpoint nowhere: no such folder"),
        (("run",), "error: the following arguments are required: OUT; see python -m tinychat.merge --help"),
    ):
        monkeypatch.setattr(sys, "argv", ["merge", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        assert str(caught.value).startswith(words) and "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    assert not (tmp_path / "out").exists()


def test_help_does_not_wait_for_torch() -> None:
    source = "import sys; from tinychat.merge import parse; parse(['a', 'b']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", source], check=True, env=environment_of())


# --- 4 bits


@needs_bitsandbytes
def test_quantised_layers_compute_nearly_what_the_base_does(base: Path) -> None:
    """Each layer against its own weight, within NF4's error: at most half of the largest gap between its 16 levels,
    times the largest weight of a block of 64."""
    from bitsandbytes.nn import Linear4bit
    from transformers.pytorch_utils import Conv1D

    exact, packed = load_model(str(base)), load_model(str(base), quantize=True)
    layers = {name: module for name, module in packed.named_modules() if isinstance(module, Linear4bit)}
    assert len(layers) == (2 * 4 if "transformer.h.0.mlp.c_fc" in layers else 2 * 7)
    assert {p.dtype for p in packed.parameters() if p.dtype != torch.uint8} == {torch.float32}
    assert packed.get_output_embeddings().weight is packed.get_input_embeddings().weight
    torch.manual_seed(0)
    for name, layer in layers.items():
        original = exact.get_submodule(name)
        weight = original.weight.T if isinstance(original, Conv1D) else original.weight  # (out, in)
        identity = torch.eye(weight.shape[1])
        zero = layer(torch.zeros_like(identity))
        error = (layer(identity) - zero).T - weight
        assert 0 < error.abs().max() < 0.16 * weight.abs().max(), name
    assert (logits(packed) - logits(exact)).abs().mean() < 0.4 * logits(exact).std()


@needs_bitsandbytes
def test_weights_of_four_bits_are_counted_as_weights(base: Path) -> None:
    """Two of them share a byte of the tensor they are kept in."""
    exact, packed = (start_model(str(base), peft) for peft in (LORA, QLORA))
    assert any(p.dtype == torch.uint8 for p in packed.parameters())
    assert count_parameters(packed) == count_parameters(exact)
    assert (count_parameters(packed).trained, count_parameters(packed).total) == trainable_parameters(packed)
    assert training_flops_per_token(packed, 64) == training_flops_per_token(exact, 64)


@needs_bitsandbytes
def test_layers_that_a_cpu_would_read_wrongly_stay_fp32(tokenizer_folder: Path, tmp_path: Path) -> None:
    """bitsandbytes' CPU kernel takes the wrong scales where a row is no whole number of blocks of 64 weights."""
    base = write_base(tmp_path / "base", tokenizer_folder, n_inner=96)
    packed = {name for name, p in load_model(str(base), quantize=True).named_parameters() if p.dtype == torch.uint8}
    assert len(packed) == 2 * 6 and not any("down_proj" in name for name in packed)
    narrow = write_base(tmp_path / "narrow", tokenizer_folder, "gpt2", n_embd=48)
    quantised = load_model(str(narrow), quantize=True)  # its MLP is 192 wide
    assert sum(p.dtype == torch.uint8 for p in quantised.parameters()) == 2
    none = write_base(tmp_path / "none", tokenizer_folder, n_embd=32, n_inner=96)
    with pytest.raises(UserError, match=r"peft=qlora: no linear layer .* multiple of 64 \(found 32, 96\).*peft=lora"):
        load_model(str(none), quantize=True)


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_arrive_after_generating(base: Path, dtype: torch.dtype) -> None:
    model = start_model(str(base), QLORA)
    inside = torch.autocast("cpu", dtype, enabled=dtype is not torch.float32)
    with inside, torch.no_grad():
        model.eval().generate(input_ids=IDS[:, :5], max_new_tokens=4, do_sample=False, pad_token_id=1)
    before = logits(model)
    with inside:
        token_nll(model.train(), IDS[:, :-1], IDS[:, 1:], for_sum=True).mean().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(grad is not None for grad in found.values())
    # B begins at zero, so that A has no gradient yet
    assert all(grad.abs().max() > 0 for name, grad in found.items() if "lora_B" in name)
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.5).step()
    assert not torch.equal(logits(model), before)
    model.zero_grad()
    token_nll(model.train(), IDS[:, :-1], IDS[:, 1:]).mean().backward()
    assert all(p.grad.abs().max() > 0 for p in model.parameters() if p.requires_grad)


@needs_bitsandbytes
def test_gradients_are_those_of_the_dequantised_weights(base: Path) -> None:
    """Reference: the fp32 model with the same adapter whose layers hold the 4-bit values."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    torch.manual_seed(0)
    packed = start_model(str(base), QLORA)
    torch.manual_seed(0)
    exact = start_model(str(base), LORA)
    for name, module in packed.named_modules():
        if isinstance(module, Linear4bit):
            values = dequantize_4bit(module.weight.data, module.weight.quant_state)
            weight = exact.get_submodule(name).weight
            weight.data.copy_(values if isinstance(exact.get_submodule(name), torch.nn.Linear) else values.T)
    grads = []
    for model in (packed, exact):
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.data.fill_(0.01)
        token_nll(model.train(), IDS[:, :-1], IDS[:, 1:]).mean().backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        assert torch.allclose(grad, grads[1][name], atol=1e-5, rtol=1e-3), name


@needs_bitsandbytes
def test_an_adapter_of_a_quantised_base_is_merged_onto_the_exact_one(
    base: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    model, saved = trained_adapter(base, tmp_path / "run", tokenizer_folder, QLORA)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(torch.load(saved / "trainer_state" / "engine.pt", weights_only=True)["model"]) == names
    trainable, total = trainable_parameters(model)
    assert total - trainable == load_model(str(base)).num_parameters(), "4-bit weights count one by one"
    assert torch.allclose(logits(load_model(str(saved), quantize=True)), logits(model), atol=1e-6)
    on_exact = load_model(str(saved))
    assert {p.dtype for p in on_exact.parameters()} == {torch.float32}
    merge_checkpoint(str(saved), tmp_path / "merged")
    assert (logits(load_model(str(tmp_path / "merged"))) - logits(on_exact)).abs().max() < 1e-5
    again = start_model(str(saved), QLORA)
    assert torch.allclose(logits(again), logits(model), atol=1e-6)
    assert isinstance(start_model(str(saved), NONE), PreTrainedModel)
    with pytest.raises(UserError, match="merge it first"):
        start_model(str(saved), LORA)


@needs_bitsandbytes
def test_a_quantised_resume_goes_on_bit_by_bit(llama: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    engine = engine_of(start_model(str(llama), QLORA))
    train(engine, 2)
    saved = save(engine, tmp_path / "run", tokenizer_folder)
    expected = [done.loss for done in train(engine, 2)]
    again = engine_of(start_model(str(llama), QLORA))
    Checkpointer(tmp_path / "run", ALONE, 2, 0).load(saved, again, same_ranks=True)
    assert [done.loss for done in train(again, 2)] == expected


def test_without_bitsandbytes_it_says_what_to_install(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else find(name))
    with pytest.raises(UserError, match=r"pip install -e '.*\[qlora\]'"):
        load_model(str(llama), quantize=True)
