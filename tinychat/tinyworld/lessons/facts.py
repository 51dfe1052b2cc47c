"""Lessons about people: who has what, who is where, who did what, and what surely follows."""

from random import Random

from tinychat.tinyworld.grammar import article, capital
from tinychat.tinyworld.lessons.common import PEOPLE, TRAITS, recalled
from tinychat.tinyworld.lexicon.things import LARGE_SIZES, SMALL_SIZES
from tinychat.tinyworld.tasks.draw import ANIMAL, AT_PLACES, COLOUR, HEAVY, JOB, LIGHT, THINGS

# What no instruction says that a child has.
_OTHERS = tuple(word for word in (*ANIMAL.members, *HEAVY, *LIGHT) if word not in THINGS)


def portrait(chance: Random) -> list[str]:
    """What one child has, of which colour and size, and where; then the same again, asked for by its sort."""
    lines = []
    for _ in range(chance.randint(1, 3)):
        name, thing, look = chance.choice(PEOPLE), chance.choice(_OTHERS), chance.choice(COLOUR.members)
        size, spot = chance.choice(SMALL_SIZES + LARGE_SIZES), chance.choice(AT_PLACES)
        verb = chance.choice(("has", "carries", "found", "sees", "draws"))
        phrase = article(f"{size} {look} {thing}")
        told = (
            f"{name} {verb} {phrase} {spot}.",
            f"{name} is {spot}. There {name} {verb} {phrase}.",
            f"It is {phrase} that {name} {verb} {spot}.",
            f"{capital(spot)} {name} {verb} {phrase}.",
        )
        ways = [
            (f"The colour of the {thing}", look),
            (f"The size of the {thing}", size),
            (f"The place of {name}", spot),
            (f"The child with the {thing}", name),
            (f"The child {spot}", name),
            (f"What {name} {verb}", thing),
            (f"{name}'s {thing}", chance.choice((f"{size} and {look}", look, size))),
        ]
        lines += [chance.choice(told), recalled(chance, ways, 2, 5)]
    return lines


def who_has(chance: Random) -> list[str]:
    """Who has what, and nothing else: the shortest way to learn to look something up."""
    k = chance.randint(3, 6)
    names, things = chance.sample(PEOPLE, k), chance.sample((*THINGS, *ANIMAL.members), k)
    lines = [" ".join(f"{name} has the {thing}." for name, thing in zip(names, things, strict=True))]
    for at in chance.sample(range(k), k):
        ways = (f"Who has the {things[at]}? {names[at]}.", f"What does {names[at]} have? The {things[at]}.")
        lines.append(chance.choice(ways))
    return lines


def surely(chance: Random) -> list[str]:
    """What follows from a rule about all people of a trade, and what does not."""
    lines = []
    for _ in range(chance.randint(3, 5)):
        (job, other), trait = chance.sample(JOB.members, 2), chance.choice(TRAITS)
        name = chance.choice(PEOPLE)
        rule, claim = f"Every {job} is {trait}.", f"{name} is {trait}, surely:"
        lines.append(
            chance.choice(
                (
                    f"{rule} {name} is {article(job)}. {claim} yes.",
                    f"{rule} {name} is {article(job)}. {claim} yes.",
                    f"{rule} {name} is {article(other)}. {claim} no.",
                    f"No {job} is {trait}. {name} is {article(job)}. {claim} no.",
                )
            )
        )
    return lines


def alike(chance: Random) -> list[str]:
    """Whether two words are the same: what a rule about all people of a trade is first to be asked."""
    lines = []
    for _ in range(chance.randint(5, 8)):
        first, second = chance.sample((*JOB.members, *ANIMAL.members, *COLOUR.members), 2)
        same = chance.random() < 0.5
        lines.append(f"{capital(first)} and {first if same else second}, the same word: {'yes' if same else 'no'}.")
    return lines
