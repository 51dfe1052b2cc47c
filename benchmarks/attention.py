"""Time of tinychat's blocked attention on the CPU against torch's scaled_dot_product_attention.

python benchmarks/attention.py            forward and backward, some shapes, bf16 and fp32, packed rows and whole ones
python benchmarks/attention.py --small    tries it out in seconds

Outputs and gradients are first shown equal to SDPA's in fp32; then both are timed in turn.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from harness import markdown  # beside this file
from torch import Tensor

from tinychat.models.kernels.attention import BlockedAttention, plan_blocks
from tinychat.models.logprobs import segment_mask
from tinychat.runtime.process import keep_freed_memory

SHAPES = ((8, 8, 512, 64), (4, 8, 1024, 64), (1, 8, 2048, 64))  # batch, heads, tokens, width of a head
SMALL_SHAPES = ((2, 2, 160, 16),)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
TOLERANCE = {"bf16": 2e-2, "fp32": 1e-4}  # of the largest value, against SDPA in fp32
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="one tiny shape")
    parser.add_argument("--repeats", type=int, default=15, help="of which the medians are given (%(default)s)")
    parser.add_argument("--packed", type=int, default=64, help="tokens of a packed sequence (%(default)s)")
    options = parser.parse_args()
    keep_freed_memory()  # as in training
    lines = [
        compare(shape, kind, packed, options.repeats)
        for shape, kind, packed in itertools.product(
            SMALL_SHAPES if options.small else SHAPES, DTYPES, (0, options.packed)
        )
    ]
    head = ["batch, heads, tokens, width", "type", "rows", "sdpa forward", "backward", "blocked forward", "backward"]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; milliseconds\n")
    print(markdown([*head, "times as fast"], lines))


def compare(shape: tuple[int, ...], kind: str, packed: int, repeats: int) -> list[str]:
    """A line of the table; exits where the two do not agree."""
    batch, heads, length, width = shape
    torch.manual_seed(0)
    # Laid out as transformers gives them: (B, T, H, D), seen as (B, H, T, D).
    *inputs, grad = (torch.randn(batch, length, heads, width).transpose(1, 2) for _ in range(4))
    segments = (torch.arange(length) // packed + 1).expand(batch, length) if packed else None
    mask = None if segments is None else segment_mask(segments)
    plan = plan_blocks(length, segments)
    ways: dict[str, Attention] = {
        "sdpa": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None),
        "blocked": lambda q, k, v: BlockedAttention.apply(q, k, v, width**-0.5, plan),
    }
    wanted = timed(ways["sdpa"], inputs, grad, torch.float32)[0]
    for name, way in ways.items():
        for own, expected in zip(timed(way, inputs, grad, DTYPES[kind])[0], wanted, strict=True):
            off = float((own.float() - expected).abs().max() / expected.abs().max())
            if not off <= TOLERANCE[kind]:
                sys.exit(f"{name} {kind} {shape}, packed {packed}: off by {off:.1e} of the largest value")
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            found[name].append(timed(way, inputs, grad, DTYPES[kind])[1])
    medians = [statistics.median(part) * 1e3 for name in ways for part in zip(*found[name], strict=True)]
    times = [f"{median:.2f}" for median in medians]
    rows = f"of {packed} tokens" if packed else "whole"
    return [" x ".join(map(str, shape)), kind, rows, *times, f"{sum(medians[:2]) / sum(medians[2:]):.2f}"]


def timed(
    way: Attention, inputs: list[Tensor], grad: Tensor, dtype: torch.dtype
) -> tuple[list[Tensor], tuple[float, float]]:
    """Output and gradients; seconds of the forward and the backward pass."""
    own = [part.to(dtype).requires_grad_() for part in (part.detach().clone() for part in inputs)]
    grad = grad.to(dtype)
    begin = time.perf_counter()
    out = way(*own)
    middle = time.perf_counter()
    gradients = torch.autograd.grad(out, own, grad)
    return [out.detach(), *gradients], (middle - begin, time.perf_counter() - middle)


if __name__ == "__main__":
    main()
