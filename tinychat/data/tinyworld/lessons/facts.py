"""Lessons about people: who has what, who is where, who did what, and what surely follows."""

from random import Random

from tinychat.data.tinyworld.grammar import article
from tinychat.data.tinyworld.lessons.common import PEOPLE, TRAITS, recalled
from tinychat.data.tinyworld.lexicon.things import LARGE_SIZES, SMALL_SIZES
from tinychat.data.tinyworld.tasks.words import ANIMAL, AT_PLACES, COLOUR, JOB, THINGS

_DEEDS = ("sold", "washed", "found", "borrowed", "mended", "painted", "lost", "bought", "hid")


def owners(chance: Random) -> list[str]:
    """Who has what, of which colour or size, and then the same from the other end."""
    k = chance.randint(3, 5)
    names, things = chance.sample(PEOPLE, k), chance.sample(THINGS, k)
    looks, quality = chance.sample(COLOUR.members, k), "colour"
    if chance.random() < 0.4:
        looks, quality = chance.sample(SMALL_SIZES + LARGE_SIZES, k), "size"
    verb = chance.choice(("has", "carries", "brings", "got", "found"))
    phrases = [article(f"{look} {thing}") for look, thing in zip(looks, things, strict=True)]
    lines = [" ".join(f"{name} {verb} {phrase}." for name, phrase in zip(names, phrases, strict=True))]
    for at in chance.sample(range(k), k):
        name, look, thing = names[at], looks[at], things[at]
        ways = [
            (f"The {quality} of the {thing}", look),
            (f"{name}'s {thing}", look),
            (f"The one who {verb} the {thing}", name),
            (f"The {look} one", chance.choice((name, thing))),
            (f"What {name} {verb}", chance.choice((thing, article(f"{look} {thing}")))),
        ]
        lines.append(recalled(chance, ways))
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


def places(chance: Random) -> list[str]:
    """Who is where, and where is whom."""
    k = chance.randint(3, 5)
    names, spots = chance.sample(PEOPLE, k), chance.sample(AT_PLACES, k)
    verb = chance.choice(("is", "plays", "waits", "sits", "was"))
    lines = [" ".join(f"{name} {verb} {spot}." for name, spot in zip(names, spots, strict=True))]
    for at in chance.sample(range(k), k):
        lines.append(recalled(chance, [(f"The one {spots[at]}", names[at]), (f"{names[at]}'s place", spots[at])]))
    return lines


def deeds(chance: Random) -> list[str]:
    """Who did what with which thing, and then the same from the other end."""
    k = chance.randint(3, 5)
    names, verbs, things = chance.sample(PEOPLE, k), chance.sample(_DEEDS, k), chance.sample(THINGS, k)
    whole = [f"{verb} {article(thing)}" for verb, thing in zip(verbs, things, strict=True)]
    lines = [" ".join(f"{name} {deed}." for name, deed in zip(names, whole, strict=True))]
    for at in chance.sample(range(k), k):
        ways = [
            (f"The one who {chance.choice((verbs[at] + ' something', whole[at]))}", names[at]),
            (f"What {names[at]} {verbs[at]}", things[at]),
            (f"What was {verbs[at]}".replace("was hid", "got hidden"), things[at]),
        ]
        lines.append(recalled(chance, ways))
    return lines


def surely(chance: Random) -> list[str]:
    """What follows from a rule about all people of a trade, and what does not."""
    lines = []
    for _ in range(chance.randint(1, 3)):
        (job, other), (trait, another) = chance.sample(JOB.members, 2), chance.sample(TRAITS, 2)
        name = chance.choice(PEOPLE)
        one, rule = f"{name} is {article(job)}", f"Every {job} is {trait}."
        lines += chance.choice(
            (
                [f"{rule} {one}. {name} is {trait}: yes, surely."],
                [f"{rule} {one}. {name} is {trait}: yes, surely."],
                [f"{rule} {one}. {name} is {another}: no, not surely."],
                [f"{rule} {name} is {article(other)}. {name} is {trait}: no, not surely."],
                [f"{rule} {name} is {trait}. {one}: no, not surely."],
            )
        )
    return lines
