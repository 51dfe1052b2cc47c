"""Instructions with checkable answers from tinyworld: families of tasks, each worded in several ways.

`instruction(seed, split, index)` gives one `Task`; `instructions(seed, split, n)` many.

What an item turns on is its *core*: the operands and what is counted, the words of a list in their order, the
facts of a story and the question; every recipe says what its core is. The cores of a recipe are numbered, and a
fixed permutation of those numbers, which knows neither seed nor index, deals one core in HELD_OUT_EVERY to
validation for ever. The rest of an item is its dressing: who is in it, and how it is worded. So train and
validation share no core, whatever their seeds; they do share words, names and wordings, and where a skill is a
small table (sums, opposites), what is held out is a row of the table in a setting, not the row itself.

Every round of len(FAMILIES) indices holds each family once, in shuffled order; the recipes of a family take
turns by their weights; and the number of a recipe's turn is sent by a seeded permutation to a core and a
dressing. No text comes twice, none is remembered, and any index can be had alone.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from random import Random
from typing import NamedTuple

from tinychat.tinyworld.combinations import HELD_OUT_EVERY, SPLITS, mix, permute
from tinychat.tinyworld.tasks import chinese, hard, numbers, reading, talk, writing
from tinychat.tinyworld.tasks.draw import Draft, Draw, Recipe, Teller

__all__ = ["FAMILIES", "LEVELS", "Task", "capacity", "indices", "instruction", "instructions"]


_SHORT = ("addition", "comparing", "counting", "picking", "reversing", "sorting")  # what chinese.FAMILIES ask too
_RECIPES: dict[str, dict[str, tuple[Recipe, ...]]] = {
    "plain": {
        **numbers.FAMILIES,
        **reading.FAMILIES,
        **writing.FAMILIES,
        **talk.FAMILIES,
    },
    "hard": hard.FAMILIES,
    "bilingual": {name: numbers.FAMILIES[name] for name in _SHORT} | chinese.FAMILIES,
}
LEVELS = tuple(_RECIPES)
FAMILIES = {level: tuple(recipes) for level, recipes in _RECIPES.items()}


@dataclass(frozen=True)
class Task:
    """One conversation; its last message is the reference reply, and `answer` says how a reply is checked."""

    messages: list[dict[str, str]]
    family: str
    answer: str  # "number", "word", "yes_no", "list" or "exact"
    place: str  # "tinyworld train 12"


class _Turn(NamedTuple):
    """A recipe's turn in its family's cycle."""

    number: int  # the recipe's, among all recipes
    recipe: Recipe
    before: int  # the recipe's turns earlier in the cycle
    cores: int
    dressings: int
    deal: int  # key of the permutation that deals its cores: recipes of a family with the same cores share it


@cache
def _cycles(level: str) -> tuple[tuple[_Turn, ...], ...]:
    """For each family of the level the turns of its recipes; the recipes are measured here."""
    cycles, count = [], 0
    for family, recipes in _RECIPES[level].items():
        cycle = []
        name = int.from_bytes(blake2b(family.encode(), digest_size=8).digest(), "big")
        for recipe in recipes:
            core, dressing = Draw(0), Draw(0)
            recipe.make(core, Teller(dressing, lambda: 0.0))
            cycle += [
                _Turn(count, recipe, before, core.size, dressing.size, mix(name, core.size))
                for before in range(recipe.weight)
            ]
            count += 1
        cycles.append(tuple(cycle))
    return tuple(cycles)


def _share(split: str, cores: int) -> int:
    """How many of a recipe's cores belong to the split."""
    held_out = -(-cores // HELD_OUT_EVERY)
    return held_out if split == "validation" else cores - held_out


@cache
def capacity(split: str, level: str = "plain") -> int:
    """How many different tasks of a level a split has; every index below it is valid."""
    rounds = min(
        _share(split, turn.cores) * turn.dressings // turn.recipe.weight * len(cycle)
        for cycle in _cycles(level)
        for turn in cycle
    )
    return rounds * len(FAMILIES[level])


@cache
def _family_order(key: int, families: int) -> tuple[int, ...]:
    order = list(range(families))
    Random(key).shuffle(order)
    return tuple(order)


def instruction(seed: int, split: str, index: int, level: str = "plain") -> Task:
    """One task, a pure function of its arguments: the same on every machine, in any order, in any process.

    Args:
        seed: a whole number; another seed gives other tasks in another order.
        split: "train" or "validation"; they share no item, whatever their seeds.
        index: from 0 up to the capacity of the split.
        level: "plain"; "hard", what a model of a few million parameters does not learn in minutes; or "bilingual",
            half of them in Chinese.

    Raises:
        ValueError: unknown split or level.
        IndexError: index outside the split.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: must be one of {', '.join(SPLITS)}")
    if level not in LEVELS:
        raise ValueError(f"level={level!r}: must be one of {', '.join(LEVELS)}")
    if not 0 <= index < capacity(split, level):
        raise IndexError(f"index={index}: the {split} split has tasks 0 to {capacity(split, level) - 1}")
    key = mix(seed, SPLITS.index(split), 1)
    round_, place_in_round = divmod(index, len(FAMILIES[level]))
    which = _order(key, round_, level)[place_in_round]
    cycle = _cycles(level)[which]
    number, at = divmod(round_, len(cycle))
    turn = cycle[at]
    share = _share(split, turn.cores)
    code = permute(number * turn.recipe.weight + turn.before, share * turn.dressings, mix(key, turn.number))
    dressing, rank = divmod(code, share)
    uniform = Random(mix(key, index)).random
    draft = turn.recipe.make(Draw(_core(split, rank, turn)), Teller(Draw(dressing), uniform))
    return Task(
        _messages(draft),
        FAMILIES[level][which],
        draft.answer,
        f"tinyworld {split} {index}" if level == "plain" else f"tinyworld {level} {split} {index}",
    )


def _core(split: str, rank: int, turn: _Turn) -> int:
    """The core with this rank in its split: a fixed permutation of the cores, every HELD_OUT_EVERY-th held out."""
    held_out = split == "validation"
    dealt = rank * HELD_OUT_EVERY if held_out else rank + rank // (HELD_OUT_EVERY - 1) + 1
    return permute(dealt, turn.cores, turn.deal)


def _messages(draft: Draft) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": draft.system}] if draft.system else []
    for turn in draft.turns:
        user = {"role": "user", "content": turn.content}
        if turn.input:
            user["input"] = turn.input
        messages += [user, {"role": "assistant", "content": turn.reply}]
    return messages


def indices(seed: int, split: str, level: str = "plain", families: Collection[str] = ()) -> Iterator[int]:
    """The numbers of the split's tasks of some families, in order; of all families where none is given. Raises
    IndexError where a split has no more of them."""
    key = mix(seed, SPLITS.index(split), 1)
    for round_ in range(capacity(split, level) // len(FAMILIES[level])):
        for place, which in enumerate(_order(key, round_, level)):
            if not families or FAMILIES[level][which] in families:
                yield round_ * len(FAMILIES[level]) + place
    raise IndexError(f"the {split} split has no more {level} tasks of {', '.join(families) or 'any family'}")


def _order(key: int, round_: int, level: str) -> tuple[int, ...]:
    """Which family stands where in a round."""
    # 256 orders are plenty, and few enough to keep.
    return _family_order(mix(key, mix(key, round_) % 256), len(FAMILIES[level]))


def instructions(seed: int, split: str, n: int, level: str = "plain") -> Iterator[Task]:
    """The tasks 0 to n - 1, all different."""
    for index in range(n):
        yield instruction(seed, split, index, level)
