"""The hard level: whose of two, longer sums and differences, sequences, kinds within a list, converses and denials.

To answer, a model must bind each child to its thing and look one of them up, or do two things in one step (tell the
kinds of words and count them). The default level asks for nothing of the kind (see `reading`): models of a few million
parameters stay near one half here, unless they train for far longer.
"""

from functools import partial

from tinychat.tinyworld.grammar import Slots, article, number
from tinychat.tinyworld.lexicon.things import LARGE_SIZES, SMALL_SIZES
from tinychat.tinyworld.tasks import talk
from tinychat.tinyworld.tasks.draw import (
    AT_PLACES,
    COLOUR,
    COUNTED,
    THINGS,
    Draft,
    Draw,
    Recipe,
    Teller,
    Wording,
    one,
    wordings,
)
from tinychat.tinyworld.tasks.numbers import (
    UP_TO_EIGHTEEN,
    add,
    add_heaps,
    count_kind,
    keep_kind,
    next_day,
    next_number,
    odd_one_out,
    sort_sizes,
    sort_words,
    subtract,
)
from tinychat.tinyworld.tasks.reading import syllogism

_SIZES = SMALL_SIZES + LARGE_SIZES
_OWNING = wordings(
    "{hero} has {a_first}. {friend} has {a_second}.",
    "{hero} has {a_first} and {friend} has {a_second}.",
    "{hero} and {friend} meet. {hero} brings {a_first}, {friend} brings {a_second}.",
    "{hero} carries {a_first}, and {friend} carries {a_second}.",
    "Today {hero} got {a_first}. {friend} got {a_second}.",
)
_COLOUR = wordings(
    "{material} [What|Which] colour is the {thing}?",
    "{material} Tell me the colour of the {thing}.",
    "[What|Which] colour is the {thing}?",
    "[What|Which] colour is {owner}'s {thing}?",
    "Name the colour of the {thing}[| in the story].",
    "Which colour does the {thing} have? {material}",
)
_SIZE = wordings(
    "{material} [What|Which] size is the {thing}?",
    "{material} How big or small is the {thing}?",
    "[What|Which] size is the {thing}?",
    "[What|Which] size is {owner}'s {thing}?",
    "Name the size of the {thing}[| in the story].",
    "How big or small is the {thing}? {material}",
)
_OWNER = wordings(
    "{material} Who has the {clue}?",
    "{material} Whose is the {clue}?",
    "Who has the {clue}?",
    "Whose is the {clue}?",
    "Name the child with the {clue}.",
    "To whom does the {clue} belong? {material}",
)


def own(core: Draw, tell: Teller, asked: str) -> Draft:
    """Core: two things, their colours (or sizes), and which of the two is asked about."""
    things = core.sample(THINGS, 2)
    looks = core.sample(_SIZES if asked == "size" else COLOUR.members, 2)
    which = core.below(2)
    slots = tell.cast(
        a_first=f"{article(looks[0])} {things[0]}",
        a_second=f"{article(looks[1])} {things[1]}",
        thing=things[which],
        clue=f"{looks[which]} one" if asked == "owner by colour" else things[which],
    )
    slots["owner"] = slots["friend" if which else "hero"]
    if asked in ("colour", "size"):
        return _on_story(tell, _COLOUR if asked == "colour" else _SIZE, slots, looks[which], _OWNING)
    return _on_story(tell, _OWNER, slots, slots["owner"], _OWNING)


def _on_story(
    tell: Teller, questions: tuple[Wording, ...], slots: Slots, reply: str, story: tuple[Wording, ...]
) -> Draft:
    return one("word", tell.ask(questions, slots, reply, tell.say(story, slots)))


_BEING = wordings(
    "{hero} is {first}. {friend} is {second}.",
    "{hero} is {first} and {friend} is {second}.",
    "{hero} plays {first}. {friend} sits {second}.",
    "{hero} waits {first}, but {friend} is still {second}.",
    "This morning {hero} was {first}, while {friend} was {second}.",
)
_WHERE = wordings(
    "{material} Where is {who}?",
    "{material} In which place is {who}?",
    "Where is {who}?",
    "Where can one find {who}?",
    "Where is {who}? {material}",
    "Name the place where {who} is.",
)
_WHO_IS = wordings(
    "{material} Who is {where}?",
    "{material} Name the child {where}.",
    "Who is {where}?",
    "Which child is {where}?",
    "Who is {where}? {material}",
)


def find(core: Draw, tell: Teller, asked: str) -> Draft:
    """Core: two places and which of the two is asked about, or whose child."""
    places, which = core.sample(AT_PLACES, 2), core.below(2)
    slots = tell.cast(first=places[0], second=places[1], where=places[which])
    slots["who"] = slots["friend" if which else "hero"]
    story = tell.say(_BEING, slots)
    if asked == "where":
        return one("exact", tell.ask(_WHERE, slots, places[which], story))
    return one("word", tell.ask(_WHO_IS, slots, slots["who"], story))


_DEEDS = ("found", "lost", "hid", "painted", "mended", "bought", "sold", "dropped", "borrowed", "washed")
_DOING = wordings(
    "{hero} {did} {a_first}. {friend} {did_too} {a_second}.",
    "{hero} {did} {a_first} and {friend} {did_too} {a_second}.",
    "{hero} {did} {a_first}, but {friend} {did_too} {a_second}.",
    "On Monday {hero} {did} {a_first}. On Tuesday {friend} {did_too} {a_second}.",
    "While {hero} {did} {a_first}, {friend} {did_too} {a_second}.",
)
_WHO_DID = wordings(
    "{material} Who {deed} something?",
    "{material} Name the child who {deed} something.",
    "Who {deed} {a_thing}?",
    "Which child {deed} {a_thing}?",
    "Who {deed} something? {material}",
)
_WHAT = wordings(
    "{material} What was it that {who} {deed}?",
    "{material} Name the thing that {who} {deed}.",
    "What was it that {who} {deed}?",
    "{material} Which thing was it that {who} {deed}?",
    "Name the thing that {who} {deed}[| in the story].",
)


def do(core: Draw, tell: Teller, asked: str) -> Draft:
    """Core: two deeds, two things, and which of the two is asked about."""
    deeds, things, which = core.sample(_DEEDS, 2), core.sample(THINGS, 2), core.below(2)
    slots = tell.cast(
        did=deeds[0],
        did_too=deeds[1],
        deed=deeds[which],
        a_first=article(things[0]),
        a_second=article(things[1]),
        a_thing=article(things[which]),
    )
    slots["who"] = slots["friend" if which else "hero"]
    if asked == "who":
        return _on_story(tell, _WHO_DID, slots, slots["who"], _DOING)
    return _on_story(tell, _WHAT, slots, things[which], _DOING)


_HAVING = wordings(
    "{hero} has {a_first} and {friend} has {a_second}.",
    "{hero} has {a_first}. {friend} has {a_second}.",
    "{hero} brings {a_first}, {friend} brings {a_second}.",
)
_WHO_HAS = wordings("{material} Who has the {thing}?", "Who has the {thing}?", "{material} Whose is the {thing}?")
_LOOK = wordings(
    "{material} [What|Which] colour is the {thing}?",
    "[What|Which] colour is the {thing}?",
    "{material} Name the colour of the {thing}.",
)
_AND_COLOUR = wordings(
    "And [what|which] colour is it?",
    "What colour is it?",
    "And its colour?",
    "Tell me its colour too.",
    "Which colour does it have?",
)
_AND_OTHER = wordings(
    "And the {other}?", "What about the {other}?", "And now the {other}.", "The {other}, too?", "How about the {other}?"
)
_AND_WHO = wordings(
    "And who has it?", "Whose is it?", "And whose is it?", "To whom does it belong?", "Name the child who has it."
)


def ask_on(core: Draw, tell: Teller, case: str) -> Draft:
    """Core: two things, their colours, and which of the two is asked about first."""
    things, colours, which = core.sample(THINGS, 2), core.sample(COLOUR.members, 2), core.below(2)
    slots = tell.cast(
        a_first=article(f"{colours[0]} {things[0]}"),
        a_second=article(f"{colours[1]} {things[1]}"),
        thing=things[which],
        other=things[1 - which],
    )
    owners = (slots["hero"], slots["friend"])
    first, reply, second, last = {
        "who, colour": (_WHO_HAS, owners[which], _AND_COLOUR, colours[which]),
        "colour, who": (_LOOK, colours[which], _AND_WHO, owners[which]),
        "colour, other": (_LOOK, colours[which], _AND_OTHER, colours[1 - which]),
        "who, other": (_WHO_HAS, owners[which], _AND_OTHER, owners[1 - which]),
    }[case]
    asked = tell.ask(first, slots, reply, tell.say(_HAVING, slots))
    return Draft("word", (asked, tell.ask(second, slots, last)))


_AGES = wordings(
    "{hero} is {a} years old and {friend} is {b}. Who is {older}?",
    "{hero} is {a} and {friend} is {b} years old. Which [child|of the two] is {older}?",
    "Who is {older}: {hero}, who is {a}, or {friend}, who is {b}?",
    "{hero} is {a}. {friend} is {b}. Name the {older} [one|child].",
    "{hero}'s cake has {a} candles, {friend}'s cake has {b}. So who is {older}?",
)
_AGES_MATERIAL = wordings("{hero} is {a} years old. {friend} is {b} years old.")
_AGES_ASKED = wordings("Who is {older}?", "Name the {older} child.", "Which of the two is {older}?")
_OWNERS = wordings(
    "{hero} has {a} {things} and {friend} has {b}. Who has {more}?",
    "{hero} found {a} {things}. {friend} found {b}. Who found {more}[| {things}]?",
    "Who has {more} {things}: {hero} with {a} or {friend} with {b}?",
    "{friend} has {b} {things}, {hero} has {a}. Which [child|of the two] has {more}?",
    "Of the {things}, {a} are {hero}'s and {b} are {friend}'s. Name the child with {more}.",
)


def compare_ages(core: Draw, tell: Teller, apart: bool) -> Draft:
    """Core: two different ages from 3 to 14, whichever comes first, and whether the older or younger is asked."""
    pair, older = core.subset(12, 2), core.flip()
    slots = tell.cast(older="older" if older else "younger")
    reply = _in_order(tell, [3 + n for n in pair], older, slots)
    if apart:
        return one("word", tell.ask(_AGES_ASKED, slots, reply, tell.say(_AGES_MATERIAL, slots)))
    return one("word", tell.ask(_AGES, slots, reply))


def compare_counts(core: Draw, tell: Teller) -> Draft:
    """Core: two different numbers from 2 to 16, whichever comes first, what is counted, and more or fewer."""
    pair, more = core.subset(15, 2), core.flip()
    slots = tell.cast(things=core.pick(COUNTED), more="more" if more else "fewer")
    reply = _in_order(tell, [2 + n for n in pair], more, slots)
    return one("word", tell.ask(_OWNERS, slots, reply))


def _in_order(tell: Teller, pair: list[int], more: bool, slots: Slots) -> str:
    """Put the two numbers into {a} and {b} in any order; returns the child who has more, or less."""
    if tell.uniform() < 0.5:
        pair.reverse()
    slots.update(a=number(pair[0]), b=number(pair[1]))
    return slots["hero" if (pair[0] > pair[1]) == more else "friend"]


_CASES = ("who, colour", "colour, who", "colour, other", "who, other")
FAMILIES = {
    "story colour": (Recipe(partial(own, asked="colour")),),
    "story size": (Recipe(partial(own, asked="size")),),
    "story owner": (Recipe(partial(own, asked="owner")), Recipe(partial(own, asked="owner by colour"))),
    "story place": (Recipe(partial(find, asked="where"), 2), Recipe(partial(find, asked="who"))),
    "story deed": (Recipe(partial(do, asked="who")), Recipe(partial(do, asked="what"))),
    "comparing": (
        Recipe(partial(compare_ages, apart=False)),
        Recipe(compare_counts, 2),
        Recipe(partial(compare_ages, apart=True)),
    ),
    "addition": (
        Recipe(partial(add, pairs=UP_TO_EIGHTEEN), 2),
        Recipe(partial(add_heaps, pairs=UP_TO_EIGHTEEN)),
    ),
    "subtraction": (Recipe(partial(subtract, apart=False), 2), Recipe(partial(subtract, apart=True))),
    "sequences": (Recipe(next_number, 2), Recipe(next_day)),
    "counting": tuple(Recipe(partial(count_kind, k=k, others=others)) for k in (1, 2, 3, 4) for others in (1, 2)),
    "sorting": (Recipe(sort_words), Recipe(partial(sort_sizes, k=2)), Recipe(partial(sort_sizes, k=3))),
    "filtering": tuple(Recipe(partial(keep_kind, k=k, others=4 - k)) for k in (1, 2, 3)),
    "odd one out": (Recipe(odd_one_out),),
    "syllogism": tuple(
        Recipe(partial(syllogism, case=case, pets=pets, denied=denied), weight)
        for pets in (True, False)
        for case, denied, weight in (
            ("it follows", False, 3),
            ("it follows", True, 1),
            ("another kind", False, 1),
            ("another trait", False, 1),
            ("turned round", False, 1),
            ("none", False, 1),
            ("none", True, 2),
        )
    ),
    **talk.HARD_FAMILIES,
    "follow-up story": tuple(Recipe(partial(ask_on, case=case)) for case in _CASES),
}
