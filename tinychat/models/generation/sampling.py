"""How the next token is chosen. Imports no torch, so that a bad option is refused at once."""

from __future__ import annotations

from dataclasses import dataclass

from tinychat.errors import UserError


@dataclass(frozen=True)
class SamplingOptions:
    """Options of one generation. Raises UserError for a value that cannot work."""

    max_new_tokens: int = 200
    temperature: float = 0.8  # below 1 likelier tokens, above 1 more surprising ones
    top_k: int = 0  # only the k likeliest tokens; 0: all
    top_p: float = 1.0  # only the likeliest tokens that together have this probability
    repetition_penalty: float = 1.0  # divides the scores of tokens already there (Keskar et al. 2019); 1: off
    greedy: bool = False  # always the likeliest token; temperature, top_k and top_p play no part
    seed: int | None = None  # the same seed gives the same text; None: another text each time

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens={self.max_new_tokens}: must be at least 1")
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"temperature={self.temperature}: must be above 0; greedy takes the likeliest token")
        if self.top_k < 0:
            raise UserError(f"top_k={self.top_k}: must be at least 1, or 0 for all tokens")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p}: must be above 0 and at most 1")
        if not 0 < self.repetition_penalty < float("inf"):
            raise UserError(f"repetition_penalty={self.repetition_penalty}: must be above 0; 1 is off")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise UserError(f"seed={self.seed}: must be at least 0 and below 2^63")
