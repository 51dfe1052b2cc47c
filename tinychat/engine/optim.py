"""Which update rule each weight gets."""

from __future__ import annotations

from typing import Any

import torch

from tinychat.config.schema import OptimConfig, OptimKind
from tinychat.engine.muon import MuonAdamW
from tinychat.models.adapters.adapter_files import is_adapter


def build_optimizer(model: Any, cfg: OptimConfig, lr: float, dtype: torch.dtype) -> torch.optim.Optimizer:
    """AdamW over everything, or Muon over the hidden matrices and AdamW over the rest.

    An adapter's matrices are the thin factors of an update, not matrices to orthogonalise: AdamW takes them.
    Weight decay falls on hidden matrices alone. Every group carries its `peak_lr`; a parameter with an `lr_ratio` of
    its own has that many times the others'. `dtype` is the arithmetic of Muon's orthogonalisation.
    """
    hidden, rest = split_parameters(model)
    muon = cfg.kind is OptimKind.muon and not is_adapter(model)
    hidden_lr = lr * (cfg.muon_lr_ratio or 1.0) if muon else lr
    groups: list[dict[str, Any]] = [
        {"params": hidden, "lr": hidden_lr, "peak_lr": hidden_lr, "weight_decay": cfg.weight_decay},
        {"params": rest, "lr": lr, "peak_lr": lr, "weight_decay": 0.0},
    ]
    groups = [part for group in groups for part in _by_ratio(group)]
    adamw = {"betas": tuple(cfg.betas), "eps": cfg.eps, "fused": True}
    if not muon:
        return torch.optim.AdamW(groups, lr=lr, **adamw)
    assert cfg.muon_momentum is not None and cfg.muon_ns_steps is not None  # tinychat.config.checks
    for name, p in model.named_parameters():
        if name.endswith("attn.c_attn.weight"):  # GPT-2: queries, keys and values side by side, (in, 3 · out)
            p.muon_parts = 3
    chosen = {id(p) for p in hidden}
    for group in groups:
        group["use_muon"] = id(group["params"][0]) in chosen
    return MuonAdamW(groups, lr, cfg.muon_momentum, cfg.muon_ns_steps, dtype, adamw)


def _by_ratio(group: dict[str, Any]) -> list[dict[str, Any]]:
    """The group split by the parameters' own lr_ratio; [] for an empty one."""
    parts: dict[float, list[torch.nn.Parameter]] = {}
    for p in group["params"]:
        parts.setdefault(getattr(p, "lr_ratio", 1.0), []).append(p)
    rates = {ratio: group["lr"] * ratio for ratio in parts}
    return [{**group, "params": own, "lr": rates[ratio], "peak_lr": rates[ratio]} for ratio, own in parts.items()]


def split_parameters(model: Any) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """(matrices of the hidden layers, everything else: embeddings, output heads, norms, biases)."""
    outside = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    head = model.get_output_embeddings()
    if head is not None:
        outside.add(id(head.weight))
    trained = [p for p in model.parameters() if p.requires_grad]
    # A matrix of one row is the head of a reward model or a value function.
    hidden = [p for p in trained if p.dim() == 2 and len(p) > 1 and id(p) not in outside]
    chosen = {id(p) for p in hidden}
    return hidden, [p for p in trained if id(p) not in chosen]
