"""What learning from a teacher costs beside plain fine-tuning: a forward and backward pass of a student.

python benchmarks/distillation.py            processor time of three ways in turn, then peak memory of each by itself
python benchmarks/distillation.py --small    tries it out in seconds

plain: the loss of stage=sft. taught: stage.teacher, as stage=sft computes it. whole: the same with the logits of both
models whole and torch's own functions, as short programs have it. Losses and gradients of the last two must agree.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from harness import markdown  # beside this file
from transformers import AutoModelForCausalLM, Qwen3Config

from tinychat.engine.base import cpu_has_bf16
from tinychat.models.kernels.distillation import Mixture
from tinychat.models.logprobs import OutputHead, called, distilled, last_hidden, token_nll
from tinychat.runtime.console import peak_memory_gb
from tinychat.runtime.process import keep_freed_memory

# name: (layers and width of the student, of the teacher, vocabulary, sequences, tokens of each)
SIZES = {
    "small world": ((3, 128), (3, 192), 2048, 4, 256),
    "GPT-2's vocabulary": ((6, 512), (12, 768), 50304, 2, 512),
}
SMALL = {"tiny": ((1, 32), (2, 64), 512, 2, 32)}
MIXTURE = Mixture("forward", 0.5, 2.0)
WAYS = ("plain", "taught", "whole")
TRAINED = 0.5  # share of the tokens that are trained
TOLERANCE = 0.03  # of the largest gradient: rounding of bf16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="one tiny size")
    parser.add_argument("--repeats", type=int, default=5, help="of which the medians are given (%(default)s)")
    parser.add_argument("--only", nargs=2, metavar=("SIZE", "WAY"), help="print the peak memory of one way, in GB")
    options = parser.parse_args()
    keep_freed_memory()  # as in training
    sizes = SMALL if options.small else SIZES
    if options.only:
        size, way = options.only
        run = ways(sizes[size])[way]
        run(), run()
        print(peak_memory_gb("cpu"))
        return
    rows = []
    for size, shape in sizes.items():
        found = ways(shape)
        check(found, size)
        seconds: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(options.repeats):
            for name in WAYS:
                begin = time.process_time()
                found[name]()
                seconds[name].append(time.process_time() - begin)
        base = statistics.median(seconds["plain"])
        for name in WAYS:
            own = statistics.median(seconds[name])
            command = [sys.executable, __file__, *(["--small"] if options.small else []), "--only", size, name]
            memory = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            rows.append([size, name, f"{own * 1e3:.0f}", f"{own / base:.2f}", f"{memory:.2f}"])
    kind = "bf16" if cpu_has_bf16() else "fp32"
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {kind}\n")
    print(markdown(["size", "way", "processor ms a step", "of plain's", "peak memory, GB"], rows))


def ways(shape: tuple[Any, ...]) -> dict[str, Callable[[], tuple[float, torch.Tensor]]]:
    """Each a forward and backward pass -> loss, gradient of the student's embedding."""
    own, its, entries, rows, length = shape
    torch.manual_seed(0)
    student, teacher = (build(layers, width, entries, length) for layers, width in (own, its))
    teacher.requires_grad_(False)
    ids = torch.randint(entries, (rows, length))
    targets = torch.randint(entries, (rows, length)).masked_fill(torch.rand(rows, length) > TRAINED, -100)
    weights = (targets != -100).float()
    heads: list[OutputHead] = []

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bf16()):
            heads[:] = heads or [OutputHead(teacher)]
            return heads[0].logits(hidden)

    def plain() -> torch.Tensor:
        return token_nll(student, ids, targets, for_sum=True).sum()

    def taught() -> torch.Tensor:
        with torch.no_grad(), last_hidden(teacher) as seen:
            called(teacher, ids, None, None, None)
        return distilled(student, ids, targets, weights, seen[0], logits, MIXTURE)[0]

    def whole() -> torch.Tensor:
        with torch.no_grad():
            theirs = teacher(input_ids=ids, use_cache=False).logits.float()
        z, a, warmth = student(input_ids=ids, use_cache=False).logits.float(), MIXTURE.share, MIXTURE.temperature
        logp, logq = (z / warmth).log_softmax(-1), (theirs / warmth).log_softmax(-1)
        far = F.kl_div(logp, logq, reduction="none", log_target=True).sum(-1)
        entropy = F.cross_entropy(z.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none")
        return ((1 - a) * entropy.view_as(targets) * weights + a * warmth**2 * far * weights).sum()

    def stepped(loss: Callable[[], torch.Tensor]) -> Callable[[], tuple[float, torch.Tensor]]:
        def step() -> tuple[float, torch.Tensor]:
            student.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bf16()):
                found = loss()
            found.backward()
            return found.item(), student.get_input_embeddings().weight.grad

        return step

    return {name: stepped(loss) for name, loss in zip(WAYS, (plain, taught, whole), strict=True)}


def build(layers: int, width: int, entries: int, length: int) -> Any:
    shape = Qwen3Config(
        vocab_size=entries,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        num_key_value_heads=1,
        head_dim=min(64, width),
        max_position_embeddings=length,
        tie_word_embeddings=True,
    )
    return AutoModelForCausalLM.from_config(shape, attn_implementation="sdpa").eval()


def check(found: dict[str, Callable[[], tuple[float, torch.Tensor]]], size: str) -> None:
    """Exits where taught and whole do not agree."""
    loss, gradient = found["taught"]()
    gradient = gradient.clone()
    wanted, exact = found["whole"]()
    off = float((gradient - exact).abs().max() / exact.abs().max())
    if not (abs(loss - wanted) <= 1e-2 * wanted and off <= TOLERANCE):
        sys.exit(f"{size}: losses {loss:.4f} and {wanted:.4f}, gradients off by {off:.1e} of the largest")


if __name__ == "__main__":
    main()
