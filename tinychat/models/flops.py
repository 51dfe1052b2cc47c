"""Arithmetic of a training step, and how fast the device could do it at best."""

from __future__ import annotations

import time
from typing import Any

import torch

from tinychat.models.quantized import weights_in

MEASURING_SECONDS = 0.5
FEW_TRIES, MANY_TRIES = 3, 30


def training_flops_per_token(model: Any, context_length: int) -> float:
    """Floating-point operations of forward and backward pass per token of a sequence of `context_length`.

    6 for each weight that multiplies (embedding look-ups do not, the output head does), and 6·L·H·T for causal
    attention over an average of T/2 positions (Chowdhery et al. 2022, PaLM, appendix B, halved for the causal mask).
    """
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    weights = sum(weights_in(p) for p in model.parameters() if p.dim() > 1 and id(p) not in looked_up)
    head = model.get_output_embeddings()
    if head is not None and id(head.weight) in looked_up:
        weights += head.weight.numel()
    attention = 6 * model.config.num_hidden_layers * model.config.hidden_size * context_length
    return 6.0 * weights + attention


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of large matrix products, measured here and now: the peak that counts.

    The best of many short tries, so that a busy moment does not count, in half a second or one product. Where products
    are slow (bf16 without instructions for it takes a hundred times as long) smaller ones tell as much. Leaves the
    global random state alone.
    """
    size = 8192 if device.type == "cuda" else 256
    rate, seconds = _best_rate(device, dtype, size, MANY_TRIES if device.type == "cuda" else FEW_TRIES)
    while device.type == "cpu" and size < 1024 and 8 * seconds < MEASURING_SECONDS / FEW_TRIES:
        size *= 2
        rate, seconds = _best_rate(device, dtype, size, MANY_TRIES if size == 1024 else FEW_TRIES)
    return rate


def _best_rate(device: torch.device, dtype: torch.dtype, size: int, tries: int) -> tuple[float, float]:
    """Operations per second and seconds of the fastest product of two matrices of size x size."""
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    best, began = float("inf"), time.perf_counter()
    for _ in range(tries):
        _wait(device)
        start = time.perf_counter()
        torch.mm(left, right)
        _wait(device)
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() - began > MEASURING_SECONDS:
            break
    return 2.0 * size**3 / best, best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
