"""Muon against torch's own, and which weight gets which rule."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from tinychat.config.schema import OptimConfig, OptimKind
from tinychat.engine.optim import MuonAdamW, build_optimizer, orthogonalize, split_parameters

ADAMW = {"betas": (0.9, 0.95), "eps": 1e-8}


def model_of(arch: str, tied: bool = True):
    torch.manual_seed(0)
    if arch == "gpt2":
        shape = GPT2Config(n_layer=2, n_embd=32, n_head=2, n_positions=16, vocab_size=64, tie_word_embeddings=tied)
    else:
        shape = LlamaConfig(
            num_hidden_layers=2,
            hidden_size=32,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=48,
            vocab_size=64,
            tie_word_embeddings=tied,
        )
    return AutoModelForCausalLM.from_config(shape)


def settings(kind: str, weight_decay: float = 0.1) -> OptimConfig:
    return OptimConfig(kind, OptimKind(kind), [0.9, 0.95], 1e-8, weight_decay, 10.0, 0.95, 5)


@pytest.mark.parametrize("shape", [(64, 64), (32, 96), (96, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthogonalized_singular_values_are_near_one(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    # A spectrum over two orders of magnitude, as updates have.
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrix = u @ torch.diag(torch.logspace(0, -2, min(shape))) @ v
    found = orthogonalize(matrix, steps=5, dtype=dtype)
    assert found.dtype is torch.float32
    assert found.shape == shape
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.5
    assert values.max() < 1.3
    # The directions stay: U V^T of the input, up to the spread of the singular values.
    assert (found * (u @ v)).sum() / min(shape) == pytest.approx(values.mean().item(), abs=0.03)


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_head_norms_and_biases_are_adamws_and_do_not_decay(arch: str, tied: bool) -> None:
    model = model_of(arch, tied)
    optimizer = build_optimizer(model, settings("muon"), 1e-3, torch.float32)
    names = {id(p): name for name, p in model.named_parameters()}
    of_muon = {names[id(p)] for group in optimizer.param_groups if group["use_muon"] for p in group["params"]}
    others = {names[id(p)] for group in optimizer.param_groups if not group["use_muon"] for p in group["params"]}
    assert of_muon | others == set(names.values())
    assert not of_muon & others
    assert all(".h." in name or ".layers." in name for name in of_muon)
    assert all(model.get_parameter(name).dim() == 2 for name in of_muon)
    outside = {name for name in names.values() if ".h." not in name and ".layers." not in name}
    assert outside | {name for name in names.values() if model.get_parameter(name).dim() == 1} == others
    for group in optimizer.param_groups:
        assert group["weight_decay"] == (0.1 if group["use_muon"] else 0.0)
        assert group["peak_lr"] == group["lr"] == pytest.approx(1e-2 if group["use_muon"] else 1e-3)


def test_adamw_alone_decays_the_same_weights_and_knows_no_ratio() -> None:
    model = model_of("llama")
    optimizer = build_optimizer(model, settings("adamw"), 1e-3, torch.float32)
    assert type(optimizer) is torch.optim.AdamW
    hidden, rest = split_parameters(model)
    assert [group["params"] for group in optimizer.param_groups] == [hidden, rest]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-3]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_factors_of_an_adapter_are_adamws(kind: str) -> None:
    model = get_peft_model(model_of("gpt2"), LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    optimizer = build_optimizer(model, settings(kind), 1e-3, torch.float32)
    assert type(optimizer) is torch.optim.AdamW
    (group,) = optimizer.param_groups
    assert (len(group["params"]), group["lr"], group["peak_lr"]) == (4, 1e-3, 1e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-6), (torch.float32, 3e-2)])
@pytest.mark.parametrize("shape", [(48, 32), (32, 48)])
def test_matrices_move_as_under_torchs_muon_and_the_rest_as_under_its_adamw(
    dtype: torch.dtype, tolerance: float, shape: tuple[int, int]
) -> None:
    """torch's computes in bf16: ours does so too to the last bits, and in fp32 up to the error of bf16."""
    torch.manual_seed(0)
    lr, decay, steps = 0.02, 0.1, 6
    matrix, vector = torch.randn(shape), torch.randn(8)
    ours = [torch.nn.Parameter(matrix.clone()), torch.nn.Parameter(vector.clone())]
    theirs = [torch.nn.Parameter(matrix.clone()), torch.nn.Parameter(vector.clone())]
    groups = [
        {"params": ours[:1], "lr": lr, "weight_decay": decay, "use_muon": True},
        {"params": ours[1:], "lr": lr, "weight_decay": 0.0, "use_muon": False},
    ]
    mine = MuonAdamW(groups, lr, momentum=0.95, ns_steps=5, dtype=dtype, adamw=ADAMW)
    muon = torch.optim.Muon(
        theirs[:1], lr, decay, momentum=0.95, nesterov=True, ns_steps=5, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(theirs[1:], lr, weight_decay=0.0, **ADAMW)
    for _ in range(steps):
        for own, other in zip(ours, theirs, strict=True):
            own.grad = torch.randn_like(own)
            other.grad = own.grad.clone()
        mine.step()
        muon.step()
        adamw.step()
    moved = (theirs[0] - matrix).norm()
    assert (ours[0] - theirs[0]).norm() < tolerance * moved
    assert torch.equal(ours[1], theirs[1])


def test_parts_of_one_weight_are_orthogonalised_alone() -> None:
    torch.manual_seed(0)
    whole, gradient = torch.nn.Parameter(torch.zeros(16, 48)), torch.randn(16, 48)
    whole.muon_parts = 3
    whole.grad = gradient.clone()
    parts = [torch.nn.Parameter(torch.zeros(16, 16)) for _ in range(3)]
    for part, piece in zip(parts, gradient.chunk(3, dim=1), strict=True):
        part.grad = piece.clone()
    for group in ([whole], parts):
        rest = torch.nn.Parameter(torch.zeros(1))
        groups = [{"params": group, "use_muon": True}, {"params": [rest], "use_muon": False}]
        MuonAdamW(groups, 0.1, 0.95, 5, torch.float32, ADAMW).step()
    assert torch.allclose(whole, torch.cat(list(parts), dim=1), atol=1e-6)


def test_state_survives_saving_and_loading(tmp_path) -> None:
    def fresh():
        torch.manual_seed(1)
        model = model_of("gpt2")
        return model, build_optimizer(model, settings("muon"), 1e-2, torch.float32)

    def step(model, optimizer, seed: int) -> None:
        torch.manual_seed(seed)
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()

    model, optimizer = fresh()
    step(model, optimizer, 1)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    step(model, optimizer, 2)

    other, loaded = fresh()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    other.load_state_dict(state["model"])
    loaded.load_state_dict(state["optimizer"])
    step(other, loaded, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
