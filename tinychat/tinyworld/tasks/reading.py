"""Questions on a short story of one child: whose, who, what, where, which colour, which size;
and of logic and meaning: what follows from two sentences, opposites.

The story says several things of one child, each of its own sort: so an answer is found by what sort of word is asked
for, and to find it the story must be read. Stories of two children, where it must also be found out whose is meant,
are in `hard`.
"""

from functools import partial

from tinychat.tinyworld.grammar import Slots, article
from tinychat.tinyworld.lexicon.living import NAMES, TRAITS
from tinychat.tinyworld.lexicon.things import LARGE_SIZES, SMALL_SIZES
from tinychat.tinyworld.tasks.draw import (
    ANIMAL,
    AT_PLACES,
    COLOUR,
    JOB,
    OPPOSITES,
    PETS,
    THINGS,
    Draft,
    Draw,
    Recipe,
    Teller,
    Turn,
    listed,
    one,
    wordings,
)

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
_READING = {
    "story colour": (Recipe(partial(about, asked="colour")),),
    "story size": (Recipe(partial(about, asked="size")),),
    "story owner": (Recipe(partial(about, asked="owner")), Recipe(partial(about, asked="thing"))),
    "story place": (Recipe(partial(about, asked="where"), 2), Recipe(partial(about, asked="who"))),
    "story deed": (Recipe(partial(do, asked="who")), Recipe(partial(do, asked="what"))),
    "follow-up story": tuple(Recipe(partial(ask_on, first=first, then=then)) for first, then in _TWICE),
}


_TRAITS = tuple(trait.word for trait in TRAITS)
_NAMES = tuple(name.word for name in NAMES)
_FOLLOWS = wordings(
    "{material} Does it follow that {claim}?",
    "{material} Can we be sure that {claim}?",
    "{material} Must it be true that {claim}?",
    "Does it follow that {claim}?",
    "Do we know [for sure|from this] that {claim}?",
    "{material} Is it certain that {claim}?",
)


def syllogism(core: Draw, tell: Teller, case: str, pets: bool, denied: bool = False) -> Draft:
    """Core: the kind and the trait of the first sentence, and the kind or trait that differs in the second.

    `denied`: the claim is that somebody is not so, which follows from a sentence with "no".
    """
    kinds = ANIMAL.members if pets else JOB.members
    kind, other = core.sample(kinds, 2) if case == "another kind" else (core.pick(kinds), "")
    trait, claimed = core.sample(_TRAITS, 2) if case == "another trait" else [core.pick(_TRAITS)] * 2
    who = tell.dressing.pick(PETS if pets else _NAMES)
    fact = f"{who} is {article(other or kind)}."
    claim = f"{who} is {'not ' * denied}{claimed}"
    if case == "turned round":
        fact, claim = f"{who} is {trait}.", f"{who} is {article(kind)}"
    story = f"{'No' if case == 'none' else 'Every'} {kind} is {trait}. {fact}"
    reply = "yes" if (case, denied) in (("it follows", False), ("none", True)) else "no"
    return one("yes_no", tell.ask(_FOLLOWS, tell.plain(claim=claim), reply, story))


_WORDS = tuple(sorted(OPPOSITES))
_CONTRAST = wordings(
    "{hero} is {word}. The {job} {friend} is the opposite. What is {friend} like?",
    "{friend} the {job} is the opposite of {hero}, who is {word}. What is {friend} like?",
    "{hero} is {word}, but {friend} the {job} is not at all like that. Say in one word what {friend} is.",
    "{hero} and the {job} {friend} are opposites. {hero} is {word}. And {friend}?",
    "If {hero} is {word} and the {job} {friend} is the opposite, what is {friend}?",
)
_TWO = wordings(
    "Give the opposites of {material}.",
    "What are the opposites of {material}?",
    "Name the opposites of these words: {material}.",
    "Write the opposite of each word.",
    "Turn [these words|the words] into their opposites: {material}.",
)
ASK_OPPOSITE = wordings(
    "What is the opposite of {word}?",
    "Name the opposite of {word}.",
    "Which word means the opposite of {word}?",
    "Give me the opposite of the word {word}.",
    "Say the word that is the opposite of {word}.",
)
_AND_OF = wordings(
    "And of {word}?", "And the opposite of {word}?", "Now {word}.", "And what is the opposite of {word}?", "And {word}?"
)


def contrast(core: Draw, tell: Teller) -> Draft:
    """Core: a word and the job of the person who is the opposite."""
    word = core.pick(_WORDS)
    slots = tell.cast(word=word, job=core.pick(JOB.members))
    return one("word", tell.ask(_CONTRAST, slots, OPPOSITES[word]))


def two_opposites(core: Draw, tell: Teller, turns: bool) -> Draft:
    """Core: two words in their order; asked for at once, or in two turns."""
    first, second = core.sample(_WORDS, 2)
    if not turns:
        reply = listed([OPPOSITES[first], OPPOSITES[second]])
        return one("list", tell.ask(_TWO, tell.plain(), reply, listed([first, second])))
    asked = [
        tell.ask(ways, tell.plain(word=word), OPPOSITES[word])
        for ways, word in ((ASK_OPPOSITE, first), (_AND_OF, second))
    ]
    return Draft("word", tuple(asked))


_REASONING = {
    "syllogism": tuple(
        Recipe(partial(syllogism, case=case, pets=pets), weight)
        for pets in (True, False)
        for case, weight in (("it follows", 3), ("another kind", 2), ("none", 1))
    ),
    "opposites": (
        Recipe(contrast),
        Recipe(partial(two_opposites, turns=False)),
        Recipe(partial(two_opposites, turns=True)),
    ),
}
FAMILIES = {**_READING, **_REASONING}
