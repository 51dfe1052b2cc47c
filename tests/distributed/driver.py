"""Trains a tiny model in several ways within one process group and prints each way's losses. See test_trajectory.

python -m torch.distributed.run --standalone --nproc_per_node 2 tests/distributed/driver.py muon '["none", "zero3"]' 2
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPT2Config

from tinychat.config.schema import Device, DsConfig, OptimConfig, OptimKind, Precision
from tinychat.config.stages import PretrainStage, Schedule
from tinychat.engine import build_engine
from tinychat.models.logprobs import IGNORED, token_nll
from tinychat.runtime.world import World, join_world

BATCH, LENGTH, STEPS, VOCABULARY = 8, 16, 12, 97


def batch(step: int) -> dict[str, torch.Tensor]:
    """The global batch of a step: counting from random numbers on; rows have unequal numbers of targets."""
    generator = torch.Generator().manual_seed(step)
    ids = (torch.randint(VOCABULARY, (BATCH, 1), generator=generator) + torch.arange(LENGTH + 1)) % VOCABULARY
    targets = ids[:, 1:].clone()
    for row in range(BATCH):
        targets[row, LENGTH - row :] = IGNORED
    return {"input_ids": ids[:, :-1], "targets": targets}


def losses(kind: str, ds: str, micro_batch_size: int, world: World, precision: Precision) -> list[float]:
    torch.manual_seed(0)
    shape = GPT2Config(
        n_layer=2, n_embd=32, n_head=2, n_positions=32, vocab_size=VOCABULARY, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    shape.bos_token_id = shape.eos_token_id = 0
    model = AutoModelForCausalLM.from_config(shape)
    optim = OptimConfig(kind, OptimKind(kind), [0.9, 0.95], 1e-8, 0.1, 1.0, 0.95, 5)
    config = {} if ds == "none" else {"zero_optimization": {"stage": int(ds[-1])}}
    stage = PretrainStage(
        name="pretrain",
        lr=0.01,
        schedule=Schedule.constant,
        batch_size=BATCH,
        micro_batch_size=micro_batch_size,
        grad_clip=0.5,
        activation_checkpointing=False,
    )
    engine = build_engine(model, optim, DsConfig(ds, ds != "none", config), stage, precision, world)
    found = []
    for step in range(STEPS):
        rows = batch(step)
        total = int((rows["targets"] != IGNORED).sum())
        own = slice(world.rank * BATCH // world.size, (world.rank + 1) * BATCH // world.size)
        splits = zip(*(rows[key][own].split(micro_batch_size) for key in ("input_ids", "targets")), strict=True)
        micro_batches = [{"input_ids": ids, "targets": targets} for ids, targets in splits]
        engine.set_lr(1 - step / STEPS)

        def share(model: Any, part: dict[str, torch.Tensor], total: int = total) -> torch.Tensor:
            return token_nll(model, **part, for_sum=True).sum() / total

        done = engine.train_step(micro_batches, share)
        found += [done.loss, done.grad_norm]
    weights = engine.full_state_dict()
    found.append(float(sum(value.double().abs().sum() for value in weights.values())))
    engine.close()
    return found


def main() -> None:
    kind, ways, micro_batch_sizes = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    precision = Precision(sys.argv[4]) if len(sys.argv) > 4 else Precision.fp32
    world = join_world(Device.cpu, timeout_minutes=2)
    found = {f"{ds}/{micro}": losses(kind, ds, micro, world, precision) for ds in ways for micro in micro_batch_sizes}
    if world.is_main:
        print("LOSSES", json.dumps(found))
    world.close()
    sys.stdout.flush()
    os._exit(0)  # as tinychat.launch.worker does, for the same reason


if __name__ == "__main__":
    main()
