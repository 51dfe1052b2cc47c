"""tinychat's part of the DPO benchmark, one variant in a process of its own; started by benchmarks/dpo.py.

The engine, batches, reference and loss that stages/dpo.py has.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from dpo_task import BETA, BETAS, CLIP, EPS, LR, MICRO, Task, digest, summary  # beside this file
from measuring import Record, peak_memory_gb, weights_digest
from omegaconf import OmegaConf
from ppo_tinychat import CONF, CPU
from rl_shapes import end_and_pad

from tinychat.config.schema import Config, DsConfig, OptimConfig, Precision
from tinychat.config.stages import DpoStage
from tinychat.data.preferences.tokens import UNKNOWN, PreferenceBatches, PreferenceCache
from tinychat.engine import Batch, build_engine
from tinychat.models.vocabulary import vocabulary
from tinychat.runtime.process import keep_freed_memory
from tinychat.runtime.world import World
from tinychat.stages import Context, StopFlag
from tinychat.stages.dpo import batch_loss, with_reference
from tinychat.stages.pairs import ReferenceModel, weights_key
from tinychat.stages.policy import WHOLE, get_policy
from tinychat.text.tokenizer import load_saved_tokenizer


def main() -> None:
    task = Task(**json.loads(sys.argv[1]))
    torch.set_num_threads(task.threads)
    print("RESULT", json.dumps(run(task)))


def run(task: Task) -> dict[str, Any]:
    keep_freed_memory()  # as tinychat/launch/worker.py does on a CPU
    config, world = configuration(task), World(rank=0, local_rank=0, size=1, device=CPU)
    stage: DpoStage = config.stage
    context = Context(Path(task.work), world, None, {"init_from": task.path("policy")}, StopFlag(Path(task.work)))
    tokenizer = load_saved_tokenizer(task.path("policy"))
    policy = get_policy(config, context, tokenizer, stage.dropout)
    weights, words, pairs = weights_digest(policy), vocabulary(tokenizer), cache_of(task)
    batches, start = PreferenceBatches(pairs, task.seed), weights_key(policy)
    engine = build_engine(policy, config.optim, config.ds, stage, config.precision, world)
    reference = ReferenceModel(engine, words, start, MICRO)
    begin = time.perf_counter(), time.process_time()
    # Computed here, not read from what another round has kept.
    references = torch.from_numpy(reference._measure(pairs, np.arange(len(pairs)), world))
    took = time.perf_counter() - begin[0], time.process_time() - begin[1]
    engine.set_lr(1.0)
    record, seen, tokens, sums = Record(), [], [], {}
    for step in range(task.total):
        rows = batches.micro_batches(step, task.batch, MICRO)
        done = engine.train_step(
            [with_reference(part, references) for part in rows],
            lambda model, batch: batch_loss(model, batch, stage, words, sums) / task.batch,
        )
        record.step(done.loss)
        seen.append(digest(pair for part in rows for pair in sides(part)))
        tokens.append(batches.tokens(step, task.batch))
    memory = peak_memory_gb()
    return {
        "variant": task.variant,
        "arithmetic": {torch.bfloat16: "bf16", torch.float32: "fp32"}[engine.dtype],
        **summary(record, task, tokens, took),
        "memory_gb": memory,
        "inputs": {"weights": weights, "batches": seen},
    }


def cache_of(task: Task) -> PreferenceCache:
    found = task.pairs()
    sequences = [prompt + reply for prompt, *replies in found for reply in replies]
    lengths = list(map(len, sequences))
    return PreferenceCache(
        all_ids=np.concatenate([np.array(ids, np.uint32) for ids in sequences]),
        starts=np.cumsum([0, *lengths]),
        length=-(-max(lengths) // 8) * 8,
        pad_id=end_and_pad(task.model)[1],
        n_bad=0,
        n_cut=0,
        n_dropped=0,
        fingerprint="benchmark",
        tokenizer_fingerprint="benchmark",
        path=Path(task.work) / "pairs",
        prompt_lengths=np.repeat([len(prompt) for prompt, _, _ in found], 2),
        labels=np.full((len(sequences), 3), UNKNOWN, np.int16),
        categories=[],
    )


def sides(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """The pairs of a micro-batch, as the model was given them."""
    rows = [ids[real].tolist() for ids, real in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    return list(zip(rows[::2], rows[1::2], strict=True))


def configuration(task: Task) -> Config:
    """What the stage's functions read: conf/stage/dpo.yaml, sized as trl's."""
    changes = {"lr": LR, "beta": BETA, "batch_size": task.batch, "micro_batch_size": MICRO, "grad_clip": CLIP}
    own = OmegaConf.load(CONF / "stage" / "dpo.yaml").stage
    stage = OmegaConf.merge(OmegaConf.structured(DpoStage), own, changes)
    optim = OmegaConf.merge(
        OmegaConf.structured(OptimConfig),
        OmegaConf.load(CONF / "optim" / "adamw.yaml"),
        {"betas": list(BETAS), "eps": EPS, "weight_decay": 0.0},
    )
    found = SimpleNamespace(
        stage=OmegaConf.to_object(stage),
        model=SimpleNamespace(arch="gpt2"),
        optim=OmegaConf.to_object(optim),
        ds=DsConfig("none", False, {}),
        peft=WHOLE,
        precision=Precision.auto if task.bf16 else Precision.fp32,
        seed=task.seed,
    )
    return cast(Config, found)


if __name__ == "__main__":
    main()
