"""What the server counts, in the text format of Prometheus."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

EDGES = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds


@dataclass
class Histogram:
    """Of seconds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(EDGES) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(EDGES, seconds)] += 1
        self.total += seconds

    def lines(self, name: str) -> list[str]:
        found, below = [], 0
        for edge, count in zip((*map(str, EDGES), "+Inf"), self.counts, strict=True):
            below += count
            found.append(f'{name}_bucket{{le="{edge}"}} {below}')
        return [*found, f"{name}_sum {self.total:.6f}", f"{name}_count {below}"]


@dataclass
class Metrics:
    requests: Counter[tuple[str, int]] = field(default_factory=Counter)  # by path and status
    prompt_tokens: int = 0
    tokens: int = 0  # generated
    cancelled: int = 0  # requests whose client went away
    first_token: Histogram = field(default_factory=Histogram)  # from the request to its first token
    request: Histogram = field(default_factory=Histogram)  # to its last

    def text(self, sizes: Mapping[str, int]) -> str:
        """sizes: gauges, by name."""
        lines: list[str] = []

        def add(name: str, kind: str, meaning: str, values: list[str]) -> None:
            lines.extend([f"# HELP tinychat_{name} {meaning}", f"# TYPE tinychat_{name} {kind}", *values])

        counted = [
            f'tinychat_requests_total{{path="{path}",status="{status}"}} {count}'
            for (path, status), count in sorted(self.requests.items())
        ]
        add("requests_total", "counter", "Requests answered, by path and status.", counted)
        for name, value, meaning in (
            ("prompt_tokens_total", self.prompt_tokens, "Tokens of prompts."),
            ("generated_tokens_total", self.tokens, "Tokens generated."),
            ("cancelled_total", self.cancelled, "Requests whose client went away."),
        ):
            add(name, "counter", meaning, [f"tinychat_{name} {value}"])
        for name, value in sizes.items():
            add(f"{name}", "gauge", f"What is {name} now.", [f"tinychat_{name} {value}"])
        for name, histogram, meaning in (
            ("first_token_seconds", self.first_token, "From a request to its first token."),
            ("request_seconds", self.request, "From a request to its last token."),
        ):
            add(name, "histogram", meaning, histogram.lines(f"tinychat_{name}"))
        return "\n".join(lines) + "\n"
