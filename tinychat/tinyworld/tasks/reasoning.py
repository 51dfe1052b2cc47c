"""Tasks of logic and meaning: what follows from two sentences, opposites."""

from functools import partial

from tinychat.tinyworld.grammar import article
from tinychat.tinyworld.lexicon.people import NAMES, TRAITS
from tinychat.tinyworld.tasks.draw import Draft, Draw, Recipe, Teller, listed, one, wordings
from tinychat.tinyworld.tasks.words import ANIMAL, JOB, OPPOSITES, PETS

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
_AND = wordings(
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
        tell.ask(ways, tell.plain(word=word), OPPOSITES[word]) for ways, word in ((ASK_OPPOSITE, first), (_AND, second))
    ]
    return Draft("word", tuple(asked))


FAMILIES = {
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
