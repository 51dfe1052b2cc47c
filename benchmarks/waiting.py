"""How threads wait for each other: tokens per second of training on the CPU alone, and while other processes are busy.

python benchmarks/waiting.py                        every setting alone and beside one busy process, three rounds
python benchmarks/waiting.py --model gpt6x512 --seconds 20
python benchmarks/waiting.py --busy 2 --rounds 5 --settings 300000,0,1000

Between two parallel operations the threads of libgomp look for more work for a while before they sleep: GOMP_SPINCOUNT
times, 300,000 by its default. Where another process has one of the cores, a thread that looks keeps the core from the
one it waits for. A setting is a number for GOMP_SPINCOUNT, `passive` for OMP_WAIT_POLICY=PASSIVE, or `1thread`.

Each setting, load and round is a process of its own, in turn, so that a slow minute falls on all. Medians; `of default`
compares with 300000 under the same load, `of alone` with the setting itself without load. A fair share of two cores
beside one busy process is between a half (two threads that wait for each other) and two thirds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from harness import cores, describe_machine, markdown, save  # beside this file

DEFAULT = "300000"  # libgomp's
SETTINGS = (DEFAULT, "30000", "10000", "3000", "1000", "100", "0", "passive", "1thread")
VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
BUSY = "while True: pass"


@dataclasses.dataclass(frozen=True)
class Task:
    """What one process does."""

    model: str
    batch: int  # sequences a step
    length: int  # tokens a sequence
    seconds: float  # timed; two steps before are not
    words: int = 2048


def environment_of(setting: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    kept |= {"PYTHONPATH": str(Path(__file__).resolve().parent.parent), "HF_HUB_OFFLINE": "1"}
    if setting == "passive":
        return kept | {"OMP_WAIT_POLICY": "PASSIVE"}
    if setting == "1thread":
        return kept | {"OMP_NUM_THREADS": "1"}
    return kept | {"GOMP_SPINCOUNT": setting}


def trained(task: Task) -> dict[str, float]:
    """In a process of its own: tokens per second, and the cores' time it got."""
    import torch
    from omegaconf import OmegaConf

    from tinychat.config.schema import DsConfig, ModelConfig, OptimConfig, OptimKind, Precision
    from tinychat.config.stages import PretrainStage
    from tinychat.engine import build_engine
    from tinychat.models.build import build_model
    from tinychat.models.logprobs import token_nll
    from tinychat.runtime.world import World

    conf = Path(__file__).resolve().parent.parent / "conf"
    node = OmegaConf.merge(OmegaConf.structured(ModelConfig), OmegaConf.load(conf / "model" / f"{task.model}.yaml"))
    node.vocab_size = task.words
    torch.manual_seed(1)
    model = build_model(OmegaConf.to_object(node), task.words, 0, 0)  # type: ignore[arg-type]
    optim = OptimConfig("adamw", OptimKind.adamw, [0.9, 0.95], 1e-8, 0.1, 1.0, 0.95, 5)
    stage = PretrainStage(lr=1e-3, micro_batch_size=task.batch, grad_clip=1.0, activation_checkpointing=False)
    world = World(0, 0, 1, torch.device("cpu"))
    engine = build_engine(model, optim, DsConfig("none", False, {}), stage, Precision.auto, world)
    tokens = task.batch * task.length

    def step() -> None:
        ids = torch.randint(task.words, (task.batch, task.length + 1))
        batch = {"input_ids": ids[:, :-1], "targets": ids[:, 1:]}
        engine.train_step([batch], lambda model, part: token_nll(model, **part, for_sum=True).sum() / tokens)

    for _ in range(2):
        step()
    begin, cpu, steps = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - begin < task.seconds:
        step()
        steps += 1
    seconds = time.perf_counter() - begin
    return {"tokens_per_s": steps * tokens / seconds, "cores": (time.process_time() - cpu) / seconds}


def measured(task: Task, setting: str, busy: int) -> dict[str, float]:
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
    try:
        command = [sys.executable, __file__, "--task", json.dumps(dataclasses.asdict(task))]
        done = subprocess.run(command, env=environment_of(setting), capture_output=True, text=True, check=False)
    finally:
        for other in others:
            other.kill()
            other.wait()
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        sys.exit(f"{setting} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def table(runs: list[dict[str, Any]], settings: list[str], loads: list[int]) -> str:
    def median(setting: str, busy: int, what: str = "tokens_per_s") -> float:
        return statistics.median(run[what] for run in runs if (run["setting"], run["busy"]) == (setting, busy))

    base = DEFAULT if DEFAULT in settings else settings[0]
    lines = []
    for busy in loads:
        for setting in settings:
            speed = median(setting, busy)
            of_alone = f"{speed / median(setting, 0):.2f}" if 0 in loads else ""
            own = [run["tokens_per_s"] for run in runs if (run["setting"], run["busy"]) == (setting, busy)]
            lines.append(
                [
                    "alone" if not busy else f"{busy} busy",
                    setting,
                    f"{speed:,.0f}",
                    f"{min(own):,.0f} - {max(own):,.0f}",
                    f"{median(setting, busy, 'cores'):.2f}",
                    f"{speed / median(base, busy):.2f}",
                    of_alone,
                ]
            )
    return markdown(["load", "setting", "tokens/s", "slowest - fastest", "cores used", f"of {base}", "of alone"], lines)


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--model", default="mini", help="of conf/model (%(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="sequences a step (%(default)s)")
    parser.add_argument("--length", type=int, default=256, help="tokens a sequence (%(default)s)")
    parser.add_argument("--seconds", type=float, default=8.0, help="timed, of each process (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--busy", type=int, default=1, help="processes beside it in the loaded case (%(default)s)")
    parser.add_argument("--loaded-only", action="store_true", help="leave out the case without load")
    parser.add_argument("--settings", default=",".join(SETTINGS), help="in their order (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"), help="folder (%(default)s)")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        print("RESULT", json.dumps(trained(Task(**json.loads(options.task)))))
        return
    settings = options.settings.split(",")
    loads = [options.busy] if options.loaded_only else [0, options.busy]
    task = Task(options.model, options.batch, options.length, options.seconds)
    machine = describe_machine()
    runs: list[dict[str, Any]] = []
    for number in range(options.rounds):
        for busy in loads:
            for setting in settings:
                runs.append({"round": number + 1, "setting": setting, "busy": busy, **measured(task, setting, busy)})
                speed = f"{runs[-1]['tokens_per_s']:,.0f} tokens/s, {runs[-1]['cores']:.2f} of {cores()} cores"
                print(f"round {number + 1}: {busy} busy, {setting}: {speed}", flush=True)
    text = table(runs, settings, loads)
    print(text)
    save(options.out, "waiting", {"machine": machine, "task": dataclasses.asdict(task), "runs": runs}, text)


if __name__ == "__main__":
    main()
