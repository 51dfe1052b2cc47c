"""Tasks of two turns, in which the second question leans on the first one and its answer."""

from functools import partial

from tinychat.tinyworld.grammar import number
from tinychat.tinyworld.tasks.draw import Draft, Draw, Recipe, Teller, listed, wordings
from tinychat.tinyworld.tasks.words import COUNTED, WORDS

# Two addends, then what goes away or is added; each step is in the tables of the families of sums and differences.
_GOES = tuple((a, b, c) for a in range(2, 9) for b in range(2, 9) for c in range(2, 9) if 1 <= a + b - c <= 9)
_COMES = tuple((a, b, c) for a in range(2, 9) for b in range(2, 9) for c in range(2, 10) if a + b <= 9)
_GETS = wordings(
    "{hero} has {a} {things} and gets {b} more from {friend}. How many does {he} have now?",
    "{hero} has {a} {things}. {friend} brings {him} {b} more. How many is that?",
    "{hero} found {a} {things} and then {b} more with {friend}. How many did {he} find in all?",
    "{hero} had {a} {things}, then {friend} gave {him} {b}. How many does {he} have?",
    "{hero} takes {a} {things} from {friend} and finds {b} more. How many does {he} have?",
)
_THEN_GOES = wordings(
    "And how many are left if {he} gives {c} away?",
    "Then {he} loses {c}. How many are left?",
    "Now {c} of them get lost. How many remain?",
    "And without {c} of them?",
    "{He} gives {c} back. How many does {he} have now?",
)
_THEN_COMES = wordings(
    "And how many are there if {he} gets {c} more?",
    "Then {he} finds {c} more. How many does {he} have now?",
    "Now {c} more come. How many is that?",
    "And with {c} more?",
    "{friend} adds {c}. How many does {he} have then?",
)


def count_on(core: Draw, tell: Teller, goes: bool) -> Draft:
    """Core: the three numbers and what is counted."""
    a, b, c = core.pick(_GOES if goes else _COMES)
    slots = tell.cast(things=core.pick(COUNTED), a=number(a), b=number(b), c=number(c))
    asked = tell.ask(_GETS, slots, number(a + b))
    return Draft(
        "number", (asked, tell.ask(_THEN_GOES if goes else _THEN_COMES, slots, number(a + b + (-c if goes else c))))
    )


_NTH = wordings(
    "Which word is the {nth} one: {material}?",
    "Name the {nth} word: {material}.",
    "What is the {nth} word?",
    "The list is {material}. What is the {nth} word?",
)
_THEN = {
    "after": wordings(
        "And which word comes after it?", "Which one follows it?", "And the next one?", "What comes right after that?"
    ),
    "before": wordings(
        "And which word comes before it?",
        "Which one stands before it?",
        "And the one before?",
        "What comes right before that?",
    ),
    "last": wordings(
        "And the last one?", "And which word is last?", "Name the last one too.", "What about the last one?"
    ),
    "first": wordings(
        "And the first one?", "And which word is first?", "Name the first one too.", "What about the first one?"
    ),
}


def pick_on(core: Draw, tell: Teller, start: int, then: str) -> Draft:
    """Core: four words in their order."""
    words = core.sample(WORDS, 4)
    last = {"after": start + 1, "before": start - 1, "last": 3, "first": 0}[then]
    slots = tell.plain(nth=("first", "second", "third", "last")[start])
    asked = tell.ask(_NTH, slots, words[start], listed(words))
    return Draft("word", (asked, tell.ask(_THEN[then], slots, words[last])))


def _pick_on(*steps: tuple[int, str]) -> tuple[Recipe, ...]:
    return tuple(Recipe(partial(pick_on, start=start, then=then)) for start, then in steps)


FAMILIES = {"follow-up list": _pick_on((0, "after"), (1, "after"), (0, "last"), (1, "last"), (3, "first"))}
HARD_FAMILIES = {
    "follow-up count": (Recipe(partial(count_on, goes=True)), Recipe(partial(count_on, goes=False))),
    "follow-up list": _pick_on((0, "after"), (1, "after"), (1, "before"), (3, "before")),
}
