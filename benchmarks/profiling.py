"""Where a training step's time goes, in plain words, from torch.profiler."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import torch

KINDS = ("head", "matmul", "attention", "optimizer", "layernorm", "activation", "copies and casts", "other")
PARENTS = (
    ("head", re.compile(r"LinearNLL")),
    ("attention", re.compile(r"BlockedAttention")),  # forward, and BlockedAttentionBackward
    ("optimizer", re.compile(r"Optimizer\.step")),
)
NAMES = (
    ("attention", re.compile(r"scaled_dot_product|flash_attention")),
    ("matmul", re.compile(r"aten::(addmm|mm|bmm|baddbmm|linear|matmul|addmv|mkldnn)|mkldnn|onednn")),
    ("layernorm", re.compile(r"layer_norm")),
    ("activation", re.compile(r"gelu|silu|aten::tanh")),
    ("copies and casts", re.compile(r"aten::(copy_|_to_copy|to|clone|contiguous|cat|split|stack|_reshape_copy)$")),
    ("optimizer", re.compile(r"_foreach_|_fused_adamw|linalg_vector_norm")),
)


def kind_of(event: Any) -> str:
    """The plain word for an operator's own time; head, attention and optimizer keep all that runs inside them."""
    outer = event
    while outer is not None:
        for kind, pattern in PARENTS:
            if pattern.search(outer.name):
                return kind
        outer = outer.cpu_parent
    return next((kind for kind, pattern in NAMES if pattern.search(event.name)), "other")


def profiled(step: Callable[[int], None], warmup: int, total: int) -> dict[str, float]:
    """Share of a step's time by kind of work, from torch.profiler over the timed steps; the shares sum to 1."""
    for index in range(warmup):
        step(index)
    begin = time.perf_counter()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as run:
        for index in range(warmup, total):
            step(index)
        seconds = time.perf_counter() - begin
    spent = dict.fromkeys(KINDS, 0.0)
    for event in run.events():
        spent[kind_of(event)] += event.self_cpu_time_total / 1e6
    spent["other"] += max(0.0, seconds - sum(spent.values()))  # Python between operators
    return {kind: value / sum(spent.values()) for kind, value in spent.items()}
