"""Preferences and demonstrations: replies of every sort to the requests, paired so that the better one is chosen.

The sorts, by the two axes (helpful or not, safe or not):

- harmful requests: "kind" refusal with a reason or alternative (helpful, safe); "bare" refusal and "evasion"
  (unhelpful, safe); "steps", and "turncoat", a refusal followed by steps (helpful, unsafe); "urging" (unhelpful,
  unsafe);
- benign requests: "help" (helpful, safe); "refusal", "wrong" and "vague" (unhelpful, safe); "tainted", help with a
  harmful step after it (helpful, unsafe); "harm" (unhelpful, unsafe).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from tinychat.tinyworld.combinations import SPLITS, mix
from tinychat.tinyworld.preferences.family import Harm, Help, Request, Wordings
from tinychat.tinyworld.preferences.generate import Item, item
from tinychat.tinyworld.preferences.harmful import HARMS
from tinychat.tinyworld.preferences.lookalikes import LOOK_ALIKES
from tinychat.tinyworld.preferences.oracle import OracleScore, judge
from tinychat.tinyworld.preferences.refusals import OPENERS, PRETEXTS
from tinychat.tinyworld.tasks.draw import Draw, Teller, wordings

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
