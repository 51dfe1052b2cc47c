"""Questions on a short story of one child: whose, who, what, where, which colour, which size.

The story says several things of one child, each of its own sort: so an answer is found by what sort of word is asked
for, and to find it the story must be read. Stories of two children, where it must also be found out whose is meant,
are in `hard`.
"""

from functools import partial

from tinychat.tinyworld.grammar import Slots, article
from tinychat.tinyworld.lexicon.things import LARGE_SIZES, SMALL_SIZES
from tinychat.tinyworld.tasks.draw import Draft, Draw, Recipe, Teller, Turn, one, wordings
from tinychat.tinyworld.tasks.words import AT_PLACES, COLOUR, THINGS

_SIZES = SMALL_SIZES + LARGE_SIZES
_STORY = wordings(
    "{hero} has {a_thing}. {He} is {at_place}.",
    "{hero} is {at_place}. {He} has {a_thing}.",
    "{hero} plays {at_place} and has {a_thing}.",
    "This morning {hero} got {a_thing}. {He} is {at_place} now.",
    "{hero} sits {at_place} and carries {a_thing}.",
)
_QUESTIONS = {
    "colour": wordings(
        "{material} [What|Which] colour is the {thing}?",
        "{material} Tell me the colour of the {thing}.",
        "[What|Which] colour is the {thing}?",
        "[What|Which] colour is {hero}'s {thing}?",
        "Name the colour of the {thing}[| in the story].",
        "Which colour does the {thing} have? {material}",
    ),
    "size": wordings(
        "{material} [What|Which] size is the {thing}?",
        "{material} How big or small is the {thing}?",
        "[What|Which] size is the {thing}?",
        "[What|Which] size is {hero}'s {thing}?",
        "Name the size of the {thing}[| in the story].",
        "How big or small is the {thing}? {material}",
    ),
    "owner": wordings(
        "{material} Who has the {thing}?",
        "{material} Whose is the {thing}?",
        "Who has the {thing}?",
        "Whose is the {thing}?",
        "Name the child with the {thing}.",
        "To whom does the {thing} belong? {material}",
    ),
    "thing": wordings(
        "{material} What does {hero} have?",
        "{material} Name the thing that {hero} has.",
        "What does {hero} have?",
        "Which thing does {hero} have[| in the story]?",
        "Name the thing that {hero} has.",
        "What does {hero} have? {material}",
    ),
    "where": wordings(
        "{material} Where is {hero}?",
        "{material} In which place is {hero}?",
        "Where is {hero}?",
        "Where can one find {hero}?",
        "Where is {hero}? {material}",
        "Name the place where {hero} is.",
    ),
    "who": wordings(
        "{material} Who is {at_place}?",
        "{material} Name the child {at_place}.",
        "Who is {at_place}?",
        "Which child is {at_place}?",
        "Who is {at_place}? {material}",
    ),
}


def _story(tell: Teller, thing: str, look: str, size: str, place: str) -> tuple[Slots, str]:
    slots = tell.asker(a_thing=article(f"{size} {look} {thing}"), thing=thing, at_place=place)
    return slots, tell.say(_STORY, slots)


def _answer(asked: str, slots: Slots, look: str, size: str) -> str:
    """What is asked for of the story with these slots."""
    found = {"colour": look, "size": size, "thing": slots["thing"], "where": slots["at_place"]}
    return found.get(asked, slots["hero"])


def about(core: Draw, tell: Teller, asked: str) -> Draft:
    """Core: the thing, its colour and its size, and the place."""
    thing, look, size, place = core.pick(THINGS), core.pick(COLOUR.members), core.pick(_SIZES), core.pick(AT_PLACES)
    slots, story = _story(tell, thing, look, size, place)
    turn = tell.ask(_QUESTIONS[asked], slots, _answer(asked, slots, look, size), story)
    return one("exact" if asked == "where" else "word", turn)


_AND = {
    "colour": wordings(
        "And [what|which] colour is it?", "What colour is it?", "And its colour?", "Tell me its colour too.",
        "Which colour does it have?",
    ),
    "size": wordings(
        "And [what|which] size is it?", "What size is it?", "And its size?", "Tell me its size too.",
        "How big or small is it?",
    ),
    "owner": wordings(
        "And who has it?", "Whose is it?", "And whose is it?", "To whom does it belong?", "Name the child who has it.",
    ),
}  # fmt: skip


def ask_on(core: Draw, tell: Teller, first: str, then: str) -> Draft:
    """Core: as for `about`."""
    thing, look, size, place = core.pick(THINGS), core.pick(COLOUR.members), core.pick(_SIZES), core.pick(AT_PLACES)
    slots, story = _story(tell, thing, look, size, place)
    turns: list[Turn] = [
        tell.ask(_QUESTIONS[first], slots, _answer(first, slots, look, size), story),
        tell.ask(_AND[then], slots, _answer(then, slots, look, size)),
    ]
    return Draft("word", tuple(turns))


_DEEDS = ("found", "lost", "hid", "painted", "mended", "bought", "sold", "dropped", "borrowed", "washed")
_DOING = wordings(
    "{hero} {did} {a_thing} {at_place}.",
    "On Monday {hero} {did} {a_thing} {at_place}.",
    "{hero} was {at_place}. {He} {did} {a_thing}.",
    "This is what {hero} did {at_place}: {he} {did} {a_thing}.",
    "While {he} was {at_place}, {hero} {did} {a_thing}.",
)
_WHO_DID = wordings(
    "{material} Who {did} something?",
    "{material} Name the child who {did} something.",
    "Who {did} {a_thing}?",
    "Which child {did} {a_thing}?",
    "Who {did} something? {material}",
)
_WHAT = wordings(
    "{material} What was it that {hero} {did}?",
    "{material} Name the thing that {hero} {did}.",
    "What was it that {hero} {did}?",
    "{material} Which thing was it that {hero} {did}?",
    "Name the thing that {hero} {did}[| in the story].",
)


def do(core: Draw, tell: Teller, asked: str) -> Draft:
    """Core: the deed, the thing, and the place."""
    did, thing, place = core.pick(_DEEDS), core.pick(THINGS), core.pick(AT_PLACES)
    slots = tell.asker(did=did, a_thing=article(thing), at_place=place)
    ways, reply = (_WHO_DID, slots["hero"]) if asked == "who" else (_WHAT, thing)
    return one("word", tell.ask(ways, slots, reply, tell.say(_DOING, slots)))


_TWICE = (("owner", "colour"), ("colour", "owner"), ("colour", "size"), ("size", "colour"), ("thing", "colour"))
FAMILIES = {
    "story colour": (Recipe(partial(about, asked="colour")),),
    "story size": (Recipe(partial(about, asked="size")),),
    "story owner": (Recipe(partial(about, asked="owner")), Recipe(partial(about, asked="thing"))),
    "story place": (Recipe(partial(about, asked="where"), 2), Recipe(partial(about, asked="who"))),
    "story deed": (Recipe(partial(do, asked="who")), Recipe(partial(do, asked="what"))),
    "follow-up story": tuple(Recipe(partial(ask_on, first=first, then=then)) for first, then in _TWICE),
}
