"""What every process of the benchmarks ppo.py and grpo.py is told, and what it reports. Imports nothing of tinychat."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rl_shapes import prompts  # beside this file

LR, BETAS, EPS = 3e-6, (0.9, 0.999), 1e-8  # trl.PPOConfig's
TEMPERATURE = 1.0
MICRO = 8  # replies of a forward pass in an update; an update has all replies of the step
PHASES = ("rollout", "scoring", "update")
CHECKED = 4  # sequences whose log-probabilities and scores are compared


@dataclass(frozen=True)
class Task:
    """What one process does."""

    variant: str
    model: str
    work: str  # folder: policy/ and reward/, weights and tokenizer
    batch: int  # replies of a step
    prompt: int  # tokens of each prompt
    response: int  # tokens of each reply
    epochs: int
    warmup: int  # steps that are not timed
    steps: int  # timed steps
    threads: int
    seed: int
    group: int = 1  # replies to each prompt
    check: bool = False  # fp32, and no training: only what is said of `sequences`

    @property
    def total(self) -> int:
        return self.warmup + self.steps

    @property
    def shared(self) -> bool:
        """One trunk for policy and value function."""
        return self.variant.endswith("-shared")

    @property
    def bf16(self) -> bool:
        return "-bf16" in self.variant and not self.check

    def path(self, name: str) -> str:
        return str(Path(self.work) / name)

    def prompts(self, step: int) -> list[list[int]]:
        return prompts(self.model, self.batch // self.group, self.prompt, self.seed + step).tolist()

    def sequences(self) -> np.ndarray:
        """(CHECKED, prompt + response) words."""
        return prompts(self.model, CHECKED, self.prompt + self.response, self.seed + 10_000)


@dataclass
class Clock:
    """Seconds and processor seconds of every phase of every step."""

    seconds: list[dict[str, float]] = field(default_factory=list)
    cpu: list[dict[str, float]] = field(default_factory=list)

    def begin(self) -> None:
        self.seconds.append({})
        self.cpu.append({})
        self._last = time.perf_counter(), time.process_time()

    def lap(self, phase: str) -> None:
        now = time.perf_counter(), time.process_time()
        for kind, old, new in zip((self.seconds, self.cpu), self._last, now, strict=True):
            kind[-1][phase] = new - old
        self._last = now

    def summary(self, task: Task) -> dict[str, Any]:
        """Medians over the timed steps."""
        timed, cpu = self.seconds[task.warmup : task.total], self.cpu[task.warmup : task.total]
        whole, whole_cpu = ([sum(step.values()) for step in steps] for steps in (timed, cpu))
        return {
            "samples_per_s": task.batch / statistics.median(whole),
            "cpu_samples_per_s": task.batch / statistics.median(whole_cpu),  # per second of processor time
            "phase_seconds": {phase: statistics.median(step[phase] for step in timed) for phase in PHASES},
            "phase_cpu_seconds": {phase: statistics.median(step[phase] for step in cpu) for phase in PHASES},
            "core_share": sum(whole_cpu) / sum(whole) / task.threads,
        }
