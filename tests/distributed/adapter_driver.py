"""Trains an adapter on a saved base in several ways, saves, resumes, and prints the losses. See test_adapter_engines.

python tests/distributed/adapter_driver.py BASE OUT '["lora/none", "qlora/zero2", "lora/zero3"]' fp32
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from tests.distributed.driver import batch
from tinychat.config.schema import Device, DsConfig, OptimConfig, OptimKind, PeftConfig, PeftKind, Precision
from tinychat.config.stages import PretrainStage, Schedule
from tinychat.engine import Engine, build_engine
from tinychat.models.checkpoints import save_weights, start_model
from tinychat.models.logprobs import token_nll
from tinychat.runtime.world import World, join_world

STEPS, SAVED_AT = 6, 3


def start(base: str, kind: str, ds: str, precision: Precision, world: World) -> Engine:
    torch.manual_seed(0)
    model = start_model(base, PeftConfig(kind, PeftKind(kind), 4, 16.0, 0.0, None))
    config = {} if ds == "none" else {"zero_optimization": {"stage": int(ds[-1])}}
    optim = OptimConfig("adamw", OptimKind.adamw, [0.9, 0.95], 1e-8, 0.1, None, None, None)
    stage = PretrainStage(
        name="pretrain",
        lr=0.01,
        schedule=Schedule.constant,
        batch_size=8,
        micro_batch_size=4,
        grad_clip=0.5,
        activation_checkpointing=False,
    )
    return build_engine(model, optim, DsConfig(ds, ds != "none", config), stage, precision, world)


def train(engine: Engine, first: int, last: int) -> list[float]:
    found = []
    own = slice(engine.world.rank * 8 // engine.world.size, (engine.world.rank + 1) * 8 // engine.world.size)
    for step in range(first, last):
        rows = {key: value[own] for key, value in batch(step).items()}
        total = int((batch(step)["targets"] >= 0).sum())
        parts = zip(*(rows[key].split(4) for key in ("input_ids", "targets")), strict=True)
        micro_batches = [{"input_ids": ids, "targets": targets} for ids, targets in parts]

        def share(model: Any, part: dict[str, torch.Tensor], total: int = total) -> torch.Tensor:
            return token_nll(model, **part, for_sum=True).sum() / total

        found.append(engine.train_step(micro_batches, share).loss)
    return found


def run(base: str, out: Path, way: str, precision: Precision, world: World) -> dict[str, Any]:
    kind, ds = way.split("/")
    engine = start(base, kind, ds, precision, world)
    losses = train(engine, 0, SAVED_AT)
    if world.is_main:
        (out / "state").mkdir(parents=True)
    world.barrier()
    engine.save_state(out / "state")
    losses += train(engine, SAVED_AT, STEPS)
    weights = engine.full_state_dict()
    if world.is_main:
        save_weights(engine.model, weights, out)
    engine.close()
    engine = start(base, kind, ds, precision, world)
    engine.load_state(out / "state")
    resumed = train(engine, SAVED_AT, STEPS)
    engine.close()
    return {"losses": losses, "resumed": resumed}


def main() -> None:
    base, out, ways, precision = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]), Precision(sys.argv[4])
    world = join_world(Device.cpu, timeout_minutes=2)
    found = {way: run(base, out / way.replace("/", "-"), way, precision, world) for way in ways}
    if world.is_main:
        print("FOUND", json.dumps(found))
    world.close()
    sys.stdout.flush()
    os._exit(0)  # as tinychat.launch.worker does, for the same reason


if __name__ == "__main__":
    main()
