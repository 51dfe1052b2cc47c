"""What every process of the fine-tuning benchmark is told, and the conversations it gets.

The driver (sft.py) tokenizes once and writes the steps' conversations to a file; trl reads them, tinychat makes its own
batches from its cache, and both report digests of what their model really saw. Imports nothing of tinychat.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PADDED, PACKED = "padded", "packed"  # a conversation to a row, or several
ROWS = {
    "trl": PADDED,
    "trl-tuned": PACKED,
    "trl-tuned-accumulated": PACKED,
    "tinychat-padded": PADDED,
    "tinychat": PACKED,
    "tinychat-fp32": PACKED,
}
LR, BETAS, EPS, CLIP = 2e-5, (0.9, 0.999), 1e-8, 1.0  # trl.SFTConfig's, the rate kept constant
IGNORED = -100
Conversation = tuple[np.ndarray, np.ndarray]  # ids, and labels: the ids where they are targets, else IGNORED


@dataclass(frozen=True)
class Task:
    """What one process does."""

    variant: str
    work: str  # folder: model/ (weights and tokenizer), {rows}.npz, cache/
    data: dict[str, object]  # keys of tinychat's DataConfig, for its own reading
    small: bool
    batch: int  # rows a step
    length: int  # tokens of a packed row, and the most of a conversation
    warmup: int  # steps that are not timed
    steps: int  # timed steps
    threads: int
    seed: int
    fp32: bool  # instead of the variant's own arithmetic, to compare losses closely

    @property
    def total(self) -> int:
        return self.warmup + self.steps

    @property
    def rows(self) -> str:
        return ROWS[self.variant]

    @property
    def model(self) -> str:
        return str(Path(self.work) / "model")


def conversations(ids: np.ndarray, labels: np.ndarray, numbers: np.ndarray) -> list[Conversation]:
    """The conversations of one row, each [T]; numbers: which conversation a token belongs to, from 1; 0: padding."""
    return [(ids[numbers == number], labels[numbers == number]) for number in range(1, int(numbers.max()) + 1)]


def step_digest(step: Iterable[Conversation]) -> str:
    """Of a step's conversations, in their order."""
    digest = hashlib.blake2b(digest_size=8)
    for ids, labels in step:
        digest.update(len(ids).to_bytes(4, "little"))
        digest.update(np.asarray(ids, np.int64))
        digest.update(np.asarray(labels, np.int64))
    return digest.hexdigest()


def write_rows(path: Path, rows: Sequence[Sequence[Conversation]]) -> None:
    flat = [conversation for row in rows for conversation in row]
    np.savez(
        path,
        ids=np.concatenate([ids for ids, _ in flat]),
        labels=np.concatenate([labels for _, labels in flat]),
        sizes=[len(ids) for ids, _ in flat],
        counts=[len(row) for row in rows],
    )


def read_rows(path: Path) -> list[list[Conversation]]:
    """As write_rows got them: row i of step s is [s * batch + i]."""
    with np.load(path) as file:
        ends = np.cumsum(file["sizes"])[:-1]
        flat = list(zip(np.split(file["ids"], ends), np.split(file["labels"], ends), strict=True))
        counts = file["counts"].tolist()
    found = iter(flat)
    return [[next(found) for _ in range(count)] for count in counts]
