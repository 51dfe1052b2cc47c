"""What every part of a reward is: its settings checked before a job begins, made once on each rank, asked for scores.

Nothing at the top loads torch: the parent process asks here what a kind needs.
"""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from tinychat.config.schema import RewardPart

if TYPE_CHECKING:
    import torch

    from tinychat.data.preferences.prompts import PromptRow
    from tinychat.models.one_base import OneBase
    from tinychat.runtime.world import World


@dataclass(frozen=True)
class Place:
    """Where a part is at work."""

    key: str  # reward.parts.NAME
    checkpoints: tuple[str, ...]  # of a kind that takes a model
    tokenizer: Any
    any_template: bool
    world: World
    dtype: torch.dtype
    batch_size: int
    base: OneBase | None = None  # of the policy


@dataclass(frozen=True)
class Options:
    """What a kind takes as `options`, beside its weight; what a part does not give is as here."""


class Kind(ABC):
    """One part of a reward; made once on each rank."""

    takes_code = False  # `path` is the address of code of the user's
    takes_model = False  # checkpoints of reward models
    reads_tokens = False  # those of the policy, so that they have its tokenizer
    needs_answers = False  # prompts must say how a reply is checked
    needs_oracle = False  # prompts must know an exact judge
    takes: ClassVar[type[Options]] = Options

    @classmethod
    def models(cls, part: RewardPart) -> dict[str, str]:
        """Of a kind that takes a model: what its checkpoints are called, as folders, auto or best, by their places in
        the part ("" for `path`)."""
        return {"": part.path or "auto"} if cls.takes_model else {}

    @classmethod
    def problems(cls, key: str, part: RewardPart) -> Iterator[str]:
        """What is wrong with its settings, before a job begins."""
        known = {field.name: field for field in fields(cls.takes)}
        for name, value in part.options.items():
            where = f"{key}.options.{name}={value}"
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1)
                there = f"there are {', '.join(known)}" if known else f"a part of kind {part.kind} has none"
                yield f"{where}: no such option; {there}" + (f". Did you mean {near[0]}?" if near else "")
            elif wrong := _wrong_type(value, str(known[name].type)):
                yield f"{where}: {wrong}"

    def __init__(self, part: RewardPart, place: Place) -> None:
        """Raises UserError."""
        self.key = place.key
        self._options: Any = Options() if self.takes_code else self.takes(**part.options)
        self.notes: dict[str, list[float]] = {}  # what else the latest `score` has to say of each reply, no reward

    def check_rows(self, rows: Sequence[PromptRow]) -> None:  # noqa: B027  most kinds need nothing of them
        """Raise UserError where prompts lack what the part needs."""

    def check_length(self, length: int) -> None:  # noqa: B027  most kinds read any length
        """Raise UserError where it cannot read prompt and reply of `length` tokens."""

    @abstractmethod
    def score(
        self, rows: Sequence[PromptRow], replies: list[str], sequences: list[list[int]]
    ) -> Sequence[float | None]:
        """A score for each reply, None where there is none to give; sequences: the tokens of prompt and reply. Raises
        UserError."""


def _wrong_type(value: Any, wanted: str) -> str:
    """What is wrong with an option's value; "" for nothing. wanted: the annotation of its field."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if wanted == "float" and not (is_number and math.isfinite(value)):
        return "a number, such as 1 or -0.5"
    if wanted == "bool" and not isinstance(value, bool):
        return "true or false"
    if wanted.startswith("str") and not isinstance(value, (str, type(None)) if "None" in wanted else str):
        return "a text"
    names = isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(name, str) for name in value)
    if wanted.startswith("tuple") and not (names and value and len(set(value)) == len(value)):
        return "different names, as [think, answer]"
    return ""
