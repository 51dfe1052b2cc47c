"""What a benchmark's process measures of itself. Imports nothing of tinychat: other libraries' environments lack it."""

from __future__ import annotations

import hashlib
import re
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Record:
    """When each step ended, its loss, and the processor time used until then by all threads."""

    losses: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    cpu_times: list[float] = field(default_factory=list)

    def step(self, loss: float) -> None:
        self.losses.append(loss)
        self.times.append(time.perf_counter())
        self.cpu_times.append(time.process_time())

    def summary(self, warmup: int, tokens: Sequence[int], threads: int) -> dict[str, Any]:
        """Losses of all steps and the speed of those after the first `warmup` (at least 1); tokens: of every step."""
        counted = range(warmup, len(self.times))
        seconds, cpu_seconds = (ends[-1] - ends[warmup - 1] for ends in (self.times, self.cpu_times))
        timed = sum(tokens[index] for index in counted)
        return {
            "losses": self.losses,
            "step_seconds": [self.times[index] - self.times[index - 1] for index in counted],
            "tokens": timed,
            "tokens_per_s": timed / seconds,
            "core_share": cpu_seconds / seconds / threads,
        }


def peak_memory_gb() -> float:
    """Highest resident size of this process so far, in GB (1e9 bytes)."""
    try:  # ru_maxrss would count what the process that started this one used before exec
        return int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024 / 1e9
    except (OSError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def weights_digest(model: Any) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(value.detach().numpy())
    return digest.hexdigest()
