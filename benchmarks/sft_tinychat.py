"""tinychat's part of the fine-tuning benchmark, one variant in a process of its own; started by benchmarks/sft.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from measuring import Record, peak_memory_gb, weights_digest  # beside this file
from omegaconf import OmegaConf
from sft_task import CLIP, LR, PACKED, Conversation, Task, conversations, step_digest
from variants import CPU, optim_config

from tinychat.config.schema import DataConfig, DsConfig, Precision
from tinychat.config.stages import SftStage
from tinychat.data.chats.sources import chat_source
from tinychat.data.chats.tokens import ChatBatches, chat_cache
from tinychat.engine import build_engine, resolve_precision
from tinychat.models.checkpoints import load_model
from tinychat.runtime.process import keep_freed_memory
from tinychat.runtime.world import World
from tinychat.stages.sft import reply_nll
from tinychat.text.tokenizer import load_saved_tokenizer


def main() -> None:
    task = Task(**json.loads(sys.argv[1]))
    torch.set_num_threads(task.threads)
    print("RESULT", json.dumps(run(task)))


def run(task: Task) -> dict[str, Any]:
    """The engine, batches and loss that stages/sft.py has."""
    keep_freed_memory()  # as tinychat/launch/worker.py does on a CPU
    precision = Precision.fp32 if task.fp32 or task.variant == "tinychat-fp32" else Precision.auto
    packing, batch = task.rows == PACKED, task.batch
    stage = SftStage(name="sft", lr=LR, batch_size=batch, micro_batch_size=batch, grad_clip=CLIP)
    stage.activation_checkpointing, stage.packing, stage.label_smoothing = False, packing, 0.0
    stage.length_power = 0.0
    batches = make_batches(task, packing)
    model = load_model(task.model)
    weights = weights_digest(model)
    world = World(rank=0, local_rank=0, size=1, device=CPU)
    engine = build_engine(model, optim_config("adamw"), DsConfig("none", False, {}), stage, precision, world)
    engine.set_lr(1.0)
    record, seen, tokens = Record(), [], []
    for index in range(task.total):
        rows = batches.batch(index, batch)
        held = batches.held(index, batch)
        trained = int(held.trained.sum())
        done = engine.train_step([rows], lambda model, part: reply_nll(model, part, stage) / trained)  # noqa: B023
        record.step(done.loss)
        seen.append(rows)
        tokens.append(held.tokens)
    memory = peak_memory_gb()
    return {
        "variant": task.variant,
        "rows": task.rows,
        "arithmetic": {torch.bfloat16: "bf16", torch.float32: "fp32"}[resolve_precision(precision, CPU)],
        **record.summary(task.warmup, tokens, task.threads),
        "memory_gb": memory,
        "threads": torch.get_num_threads(),
        "inputs": {
            "weights": weights,
            "batches": [step_digest(c for row in unpacked(rows) for c in row) for rows in seen],
        },
    }


def make_batches(task: Task, packing: bool) -> ChatBatches:
    """What stage=sft reads, tokenized once into the benchmark's cache."""
    data: DataConfig = OmegaConf.to_object(  # type: ignore[assignment]
        OmegaConf.merge(OmegaConf.structured(DataConfig), task.data)
    )
    tokenizer = load_saved_tokenizer(task.model)
    source = chat_source(data, "train")
    cache = chat_cache(source, tokenizer, task.length, Path(task.work) / "cache", progress=False)
    return ChatBatches(cache, task.length, packing, task.seed)


def unpacked(rows: dict[str, torch.Tensor]) -> list[list[Conversation]]:
    """The conversations of each row of a batch; its targets, which stand one token before what they are, as labels."""
    labels = rows["targets"].roll(1, dims=1)  # the last position of a row has no target
    return [
        conversations(*(part[index].numpy() for part in (rows["input_ids"], labels, rows["segments"])))
        for index in range(len(labels))
    ]


if __name__ == "__main__":
    main()
