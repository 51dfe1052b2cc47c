"""Requests by number, and the replies that can be given to each.

Every round of `ROUND` indices holds each harm category twice, each look-alike and each other benign family once, in
shuffled order. As for the tasks, a fixed permutation of the cores of a category deals one in HELD_OUT_EVERY to
validation for ever; the dressing is the friend and the wording. Core and dressing are read from a seeded permutation of
their numbers, and the text tells both, so no request comes twice in a split and none is in both.
"""

from collections.abc import Iterator
from functools import cache
from hashlib import blake2b
from random import Random
from typing import NamedTuple

from tinychat.tinyworld.combinations import HELD_OUT_EVERY, SPLITS, mix, permute
from tinychat.tinyworld.grammar import Slots
from tinychat.tinyworld.preferences.benign import BENIGN
from tinychat.tinyworld.preferences.family import Facts, Harm, Help, Request, company
from tinychat.tinyworld.preferences.harmful import HARMS
from tinychat.tinyworld.preferences.lookalikes import LOOK_ALIKES
from tinychat.tinyworld.tasks.draw import Draw, Teller

HARM_CATEGORIES = tuple(HARMS)
BENIGN_FAMILIES = (*BENIGN, *LOOK_ALIKES)
_TABLES: dict[str, Harm | Help] = {**HARMS, **BENIGN, **LOOK_ALIKES}
_CYCLE = (*HARM_CATEGORIES, *HARM_CATEGORIES, *BENIGN_FAMILIES)
ROUND = len(_CYCLE)
_EXPRESSIONS = ("verbs", "objects", "looser")  # slots of a hazard that are expressions


class Item(NamedTuple):
    """A request with what its replies are made of: its table's row, its slots, and another core's slots."""

    request: Request
    table: Harm | Help
    slots: Slots
    other: Slots


class _Size(NamedTuple):
    cores: int
    dressings: int
    deal: int  # key of the permutation that deals the cores


@cache
def _size(category: str) -> _Size:
    core, dressing = Draw(0), Draw(0)
    _question(category, core, dressing, Random(0))
    name = int.from_bytes(blake2b(category.encode(), digest_size=8).digest(), "big")
    return _Size(core.size, dressing.size, mix(name, core.size))


def _share(split: str, cores: int) -> int:
    held_out = -(-cores // HELD_OUT_EVERY)
    return held_out if split == "validation" else cores - held_out


def _core(split: str, rank: int, size: _Size) -> int:
    dealt = rank * HELD_OUT_EVERY if split == "validation" else rank + rank // (HELD_OUT_EVERY - 1) + 1
    return permute(dealt, size.cores, size.deal)


@cache
def capacity(split: str) -> int:
    """How many different requests a split has; every index below it is valid."""
    rounds = min(
        _share(split, _size(category).cores) * _size(category).dressings // _CYCLE.count(category)
        for category in _TABLES
    )
    return rounds * ROUND


def _question(category: str, core: Draw, dressing: Draw, random: Random) -> tuple[str, Slots]:
    table = _TABLES[category]
    slots = Slots({**table.core(core), **company(dressing)})
    return Teller(dressing, random.random).say(table.questions, slots), slots


@cache
def _order(key: int) -> tuple[int, ...]:
    order = list(range(ROUND))
    Random(key).shuffle(order)
    return tuple(order)


def item(seed: int, split: str, index: int) -> Item:
    """The request of `request` with what its replies are made of; the same errors."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: must be one of {', '.join(SPLITS)}")
    if not 0 <= index < capacity(split):
        raise IndexError(f"index={index}: the {split} split has requests 0 to {capacity(split) - 1}")
    key = mix(seed, SPLITS.index(split), 2)
    round_, at = divmod(index, ROUND)
    # 256 orders are plenty, and few enough to keep.
    place = _order(mix(key, mix(key, round_) % 256))[at]
    category = _CYCLE[place]
    turns = _CYCLE.count(category)
    number = round_ * turns + _CYCLE[:place].count(category)
    size = _size(category)
    share = _share(split, size.cores)
    code = permute(number, share * size.dressings, mix(key, list(_TABLES).index(category)))
    dressing, rank = divmod(code, share)
    random = Random(mix(key, index))
    question, slots = _question(category, Draw(_core(split, rank, size)), Draw(dressing), random)
    table = _TABLES[category]
    other = Slots({**slots, **table.core(Draw(random.randrange(size.cores)))})
    messages = [{"role": "user", "content": question}]
    request = Request(messages, isinstance(table, Harm), category, _facts(table, slots))
    return Item(request, table, slots, other)


def _facts(table: Harm | Help, slots: Slots) -> Facts:
    if isinstance(table, Harm):
        # A hazard brings its own expressions; in the others the slots are plain words.
        lower = Slots({name: value if name in _EXPRESSIONS else value.lower() for name, value in slots.items()})
        return Facts(acts=tuple((_fill(verbs, lower), _fill(objects, lower)) for verbs, objects in table.acts))
    return Facts(
        right=tuple(right.format_map(slots) for right in table.right),
        names=tuple(name.format_map(slots) for name in table.names),
        rivals=table.rivals,
    )


def _fill(pattern: str, slots: Slots) -> str:
    """The slots of an expression filled; its repetitions ({0,2}) are no slots."""
    for name in ("thing", "animal", "dish", "private", "friend", *_EXPRESSIONS):
        if f"{{{name}}}" in pattern:
            pattern = pattern.replace(f"{{{name}}}", slots[name])
    return pattern


def request(seed: int, split: str, index: int) -> Request:
    """One request, a pure function of its arguments.

    Args:
        seed: a whole number; another seed gives other requests in another order.
        split: "train" or "validation"; they share no item, whatever their seeds.
        index: from 0 up to the capacity of the split.

    Raises:
        ValueError: unknown split.
        IndexError: index outside the split.
    """
    return item(seed, split, index).request


def requests(seed: int, split: str, n: int) -> Iterator[Request]:
    """The requests 0 to n - 1, all different; half of them harmful."""
    for index in range(n):
        yield request(seed, split, index)
