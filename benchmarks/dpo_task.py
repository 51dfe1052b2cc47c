"""What every process of the DPO benchmark is told, the pairs it gets, and what it reports. Imports nothing of
tinychat."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measuring import Record  # beside this file
from rl_shapes import MODELS, end_and_pad

LR, BETAS, EPS, CLIP, BETA = 2e-5, (0.9, 0.999), 1e-8, 1.0, 0.1  # conf/stage/dpo.yaml's rate, kept constant
MICRO = 8  # pairs of a forward pass: trl's per_device_train_batch_size
Pair = tuple[list[int], list[int], list[int]]  # prompt, chosen and rejected reply, each with the end token


@dataclass(frozen=True)
class Task:
    """What one process does."""

    variant: str
    model: str
    work: str  # folder: policy/, weights and tokenizer; order.npy
    batch: int  # pairs of a step, all in one update
    prompt: int  # tokens of a prompt on average
    response: int  # tokens of a reply on average, without its end token
    warmup: int  # steps that are not timed
    steps: int  # timed steps
    threads: int
    seed: int
    fp32: bool = False  # instead of the variant's own arithmetic, to compare losses closely

    @property
    def total(self) -> int:
        return self.warmup + self.steps

    @property
    def bf16(self) -> bool:
        return "-bf16" in self.variant and not self.fp32

    def path(self, name: str) -> str:
        return str(Path(self.work) / name)

    def pairs(self) -> list[Pair]:
        """Those of all steps. Lengths vary by half on both sides."""
        random = np.random.Generator(np.random.PCG64(self.seed))
        end, _ = end_and_pad(self.model)

        def words(mean: int) -> list[int]:
            length = random.integers(mean // 2, mean + mean // 2 + 1)
            return random.integers(0, MODELS[self.model]["entries"], max(1, length)).tolist()

        return [
            (words(self.prompt), [*words(self.response), end], [*words(self.response), end])
            for _ in range(self.batch * self.total)
        ]

    def order(self) -> np.ndarray:
        """(steps, batch): numbers of the pairs of each step."""
        return np.load(self.path("order.npy"))[: self.batch * self.total].reshape(self.total, self.batch)


def digest(pairs: Iterable[tuple[list[int], list[int]]]) -> str:
    """Of a step's pairs (whole chosen and rejected sequences), in whichever order."""
    found = hashlib.blake2b(digest_size=8)
    for pair in sorted(pairs):
        for side in pair:
            found.update(len(side).to_bytes(4, "little"))
            found.update(np.asarray(side, np.int64))
    return found.hexdigest()


def summary(record: Record, task: Task, tokens: list[int], reference: tuple[float, float]) -> dict[str, Any]:
    """Record's, with the time that the reference took before training (seconds and processor seconds, for the pairs of
    all steps) added to that of the timed steps."""
    found = record.summary(task.warmup, tokens, task.threads)
    share = task.steps / task.total
    seconds = sum(found["step_seconds"]) + share * reference[0]
    cpu_seconds = record.cpu_times[-1] - record.cpu_times[task.warmup - 1] + share * reference[1]
    return found | {
        "tokens_per_s": found["tokens"] / seconds,
        "cpu_tokens_per_s": found["tokens"] / cpu_seconds,
        "pairs_per_s": task.batch * task.steps / seconds,
        "reference_seconds": share * reference[0],
        "core_share": cpu_seconds / seconds / task.threads,
    }
