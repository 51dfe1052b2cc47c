"""tinyworld preferences: benign and harmful requests, replies of every sort, and an oracle that scores any text.

`request(seed, split, index)` gives one `Request`, `preference` two replies to it, `demonstration` its best reply, and
`judge(request, reply)` the oracle's score of any text.

Every round of `ROUND` indices holds each harm category twice, each look-alike and each other benign family once, in
shuffled order. As for the tasks, a fixed permutation of the cores of a category deals one in HELD_OUT_EVERY to
validation for ever; the dressing is the friend and the wording. Core and dressing are read from a seeded permutation of
their numbers, and the text tells both, so no request comes twice in a split and none is in both.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from random import Random
from typing import NamedTuple

from tinychat.tinyworld.combinations import HELD_OUT_EVERY, SPLITS, mix, permute
from tinychat.tinyworld.grammar import Slots
from tinychat.tinyworld.preferences.benign import BENIGN, LOOK_ALIKES
from tinychat.tinyworld.preferences.family import Facts, Harm, Help, Request, Wordings, company
from tinychat.tinyworld.preferences.harmful import HARMS
from tinychat.tinyworld.preferences.oracle import OPENERS, PRETEXTS, REWARD_RANGE, OracleScore, judge
from tinychat.tinyworld.tasks.draw import Draw, Teller, wordings

LOOK_ALIKE_FAMILIES = tuple(LOOK_ALIKES)

__all__ = [
    "BENIGN_FAMILIES",
    "HARM_CATEGORIES",
    "LOOK_ALIKE_FAMILIES",
    "REWARD_RANGE",
    "Facts",
    "OracleScore",
    "Preference",
    "Request",
    "capacity",
    "demonstration",
    "judge",
    "preference",
    "preferences",
    "reply",
    "request",
    "requests",
]


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


# (chosen, rejected): how often in twenty.
HARMFUL_PAIRS = {
    ("kind", "steps"): 8,
    ("kind", "turncoat"): 3,
    ("kind", "bare"): 2,
    ("kind", "evasion"): 2,
    ("bare", "steps"): 2,
    ("kind", "urging"): 1,
    ("bare", "evasion"): 1,
    ("evasion", "steps"): 1,
}
BENIGN_PAIRS = {
    ("help", "refusal"): 8,
    ("help", "wrong"): 3,
    ("wrong", "refusal"): 4,
    ("help", "tainted"): 2,
    ("help", "vague"): 1,
    ("help", "harm"): 1,
    ("vague", "refusal"): 1,
}
_EVASIONS = wordings(
    "I do not know.", "Today is a sunny day.", "That is a long story.", "We will see tomorrow.", "Who knows?"
)
_VAGUE = wordings(
    "I do not know.", "You will find a way.", "That is a good question.", "It is up to you.", "We will see tomorrow."
)
_URGING = wordings("Go ahead!", "Just do it, {friend} will never know.", "Go ahead and have fun.", "Yes, do it.")
_UNSAFE = wordings(
    "Steal one from {friend}.",
    "Tell {friend} a lie about it.",
    "Then point at {friend} and laugh.",
    "Call {friend} a silly baby.",
    "Break {friend}'s things.",
)


@dataclass(frozen=True)
class Preference:
    """Two replies to one request, and what the oracle says of them; the chosen one has the higher reward."""

    request: Request
    chosen: str
    rejected: str
    chosen_score: OracleScore
    rejected_score: OracleScore
    kind: str  # "kind over steps", ...: the sorts of the two replies


class _Replies:
    """Replies of each sort to one item; every call draws its wording anew."""

    def __init__(self, of: Item, random: Random) -> None:
        self.item = of
        self.random = random

    def say(self, ways: Wordings, other: bool = False) -> str:
        slots = self.item.slots.copy() if not other else self.item.other
        return Teller(Draw(self.random.getrandbits(60)), self.random.random).say(ways, type(self.item.slots)(slots))

    def joined(self, *parts: Wordings) -> str:
        return " ".join(self.say(part) for part in parts)

    def harmful(self, table: Harm, sort: str) -> str:
        why = self.random.choice(((table.reasons,), (table.instead,), (table.reasons, table.instead)))
        parts: dict[str, tuple[Wordings, ...]] = {
            "kind": (OPENERS, *why),
            "bare": (OPENERS,),
            "evasion": (_EVASIONS,),
            "steps": (table.steps,),
            "turncoat": (OPENERS, *(() if self.random.random() < 0.5 else (table.reasons,)), table.steps),
            "urging": (_URGING,),
        }
        return self.joined(*parts[sort])

    def benign(self, table: Help, sort: str) -> str:
        unsafe = table.unsafe or _UNSAFE
        if sort == "wrong":
            return self.wrong(table)
        if sort == "refusal":
            return self.refusal(table)
        parts: dict[str, tuple[Wordings, ...]] = {
            "help": (table.replies,),
            "vague": (_VAGUE,),
            "tainted": (table.replies, unsafe),
            "harm": (unsafe,),
        }
        return self.joined(*parts[sort])

    def refusal(self, table: Help) -> str:
        """Of a benign request: bare or with a pretext, with what is said against some harmful act (that of the category
        it looks like, where it does), or with the very help that was asked for. So does a policy that refuses too
        much, and a reward model must have seen it to know."""
        way = self.random.choice(("bare", "against", "against", "grudging"))
        if way == "bare":
            return self.joined(OPENERS, *([PRETEXTS] if self.random.random() < 0.5 else []))
        if way == "grudging":
            return self.joined(OPENERS, table.replies)
        near = next((harm for harm, like in zip(HARMS, LOOK_ALIKES.values(), strict=True) if like is table), None)
        harm = HARMS[near if near and self.random.random() < 0.5 else self.random.choice(list(HARMS))]
        slots = type(self.item.slots)({**harm.core(Draw(self.random.getrandbits(60))), **self.item.slots})
        against = self.random.choice((harm.reasons, harm.instead))
        said = Teller(Draw(self.random.getrandbits(60)), self.random.random).say(against, slots)
        return f"{self.say(OPENERS)} {said}"

    def wrong(self, table: Help) -> str:
        """An answer out of another core where the answer differs, else the question once more."""
        slots, other = self.item.slots, self.item.other
        if not table.answer or any(slots[name] == other[name] for name in table.answer):
            return self.item.request.messages[-1]["content"]
        mixed = type(slots)({**slots, **{name: other[name] for name in table.answer}})
        return Teller(Draw(self.random.getrandbits(60)), self.random.random).say(table.replies, mixed)

    def of(self, sort: str) -> str:
        table = self.item.table
        return self.harmful(table, sort) if isinstance(table, Harm) else self.benign(table, sort)


def _replies(seed: int, split: str, index: int, purpose: int) -> _Replies:
    of = item(seed, split, index)
    return _Replies(of, Random(mix(seed, SPLITS.index(split), index, purpose)))


def preference(seed: int, split: str, index: int) -> Preference:
    """The preference with this number: the request of the same number, and two replies to it.

    The errors are those of `request`.
    """
    replies = _replies(seed, split, index, 3)
    request = replies.item.request
    pairs = HARMFUL_PAIRS if request.harmful else BENIGN_PAIRS
    good, bad = replies.random.choices(list(pairs), list(pairs.values()))[0]
    chosen, rejected = replies.of(good), replies.of(bad)
    return Preference(request, chosen, rejected, judge(request, chosen), judge(request, rejected), f"{good} over {bad}")


def preferences(seed: int, split: str, n: int) -> Iterator[Preference]:
    """The preferences 0 to n - 1, to different requests."""
    for index in range(n):
        yield preference(seed, split, index)


def reply(seed: int, split: str, index: int, sort: str) -> str:
    """A reply of one sort to the request with this number; KeyError: no such sort for such a request."""
    return _replies(seed, split, index, 4).of(sort)


def demonstration(seed: int, split: str, index: int) -> list[dict[str, str]]:
    """The messages of the request with this number and a best reply: help, or a refusal with its reason."""
    replies = _replies(seed, split, index, 5)
    request = replies.item.request
    best = replies.of("kind" if request.harmful else "help")
    return [*request.messages, {"role": "assistant", "content": best}]
