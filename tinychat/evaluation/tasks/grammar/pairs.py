"""Minimal pairs: sentences of children's words that differ in one point of grammar, one of them right. After the idea
of BLiMP (Warstadt et al. 2020), with words and patterns of our own. The same pairs on every machine, for ever."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

Pair = tuple[str, str]  # right, wrong
PAIRS = 100  # of each paradigm

ONE = "dog cat rabbit pony mouse girl boy baker farmer sailor teacher neighbour puppy fox king".split()
MANY = "dogs cats rabbits ponies mice girls boys bakers farmers sailors teachers neighbours puppies foxes kings".split()
THING = "key kite coin stone lantern feather basket shell ribbon button marble bucket".split()
THINGS = "keys kites coins stones lanterns feathers baskets shells ribbons buttons marbles buckets".split()
PLACE = "in the garden,beside the lake,on the hill,near the barn,behind the house,at the market".split(",")
FELT = "hungry tired happy proud cold quiet angry afraid".split()
SHE = "Emma Lily Anna Rosa Nora Maya".split()
HE = "Tom Ben Leo Adam Hugo Peter".split()


def agreement() -> Iterator[Pair]:
    """was and were with their subject."""
    for (one, many), felt, place in product(zip(ONE, MANY, strict=True), FELT, PLACE):
        yield f"The {one} {place} was {felt}.", f"The {one} {place} were {felt}."
        yield f"The {many} {place} were {felt}.", f"The {many} {place} was {felt}."


def present() -> Iterator[Pair]:
    """The third person's s."""
    verbs = "play sing run sleep dance work".split()
    for (one, many), verb, place in product(zip(ONE, MANY, strict=True), verbs, PLACE):
        yield f"Every day the {one} {verb}s {place}.", f"Every day the {one} {verb} {place}."
        yield f"Every day the {many} {verb} {place}.", f"Every day the {many} {verb}s {place}."


def attractor() -> Iterator[Pair]:
    """was and were after a noun of the other number, which is not the subject."""
    beside = "beside,behind,near,with".split(",")
    for (one, many), (other, others), where, felt in product(
        zip(ONE, MANY, strict=True), zip(ONE[::-1], MANY[::-1], strict=True), beside, FELT
    ):
        if one != other:
            yield f"The {one} {where} the {others} was {felt}.", f"The {one} {where} the {others} were {felt}."
            yield f"The {many} {where} the {other} were {felt}.", f"The {many} {where} the {other} was {felt}."


def determiner() -> Iterator[Pair]:
    """this and that, these and those with their noun."""
    for name, did, (thing, things), place in product(
        [*SHE, *HE], ["found", "lost", "hid"], zip(THING, THINGS, strict=True), PLACE
    ):
        for single, several in (("this", "these"), ("that", "those")):
            yield f"{name} {did} {single} {thing} {place}.", f"{name} {did} {single} {things} {place}."
            yield f"{name} {did} {several} {things} {place}.", f"{name} {did} {several} {thing} {place}."


def article() -> Iterator[Pair]:
    """a before consonants, an before vowels."""
    vowel = "apple egg orange onion owl old-hat umbrella empty-box orange-scarf ugly-vase".split()
    consonant = "pear cake carrot lemon goat new-hat lantern full-box purple-scarf pretty-vase".split()
    for name, did, place in product([*SHE, *HE], ["saw", "wanted", "found", "drew"], PLACE):
        for right, wrong, nouns in (("an", "a", vowel), ("a", "an", consonant)):
            for noun in nouns:
                noun = noun.replace("-", " ")
                yield f"{name} {did} {right} {noun} {place}.", f"{name} {did} {wrong} {noun} {place}."


def case() -> Iterator[Pair]:
    """Pronouns as subject and as object."""
    gave = ["gave {} a {}", "showed {} the {}", "brought {} a {}"]
    for name, (subject, other), act, thing, place in product(
        [*SHE, *HE], [("he", "him"), ("she", "her"), ("they", "them"), ("we", "us"), ("I", "me")], gave, THING, PLACE
    ):
        yield f"{name} {act.format(other, thing)} {place}.", f"{name} {act.format(subject, thing)} {place}."
        first, wrong = subject[0].upper() + subject[1:], other[0].upper() + other[1:]
        yield f"{first} saw {name} {place} with a {thing}.", f"{wrong} saw {name} {place} with a {thing}."


def reflexive() -> Iterator[Pair]:
    """himself, herself and themselves with what they stand for."""
    people = [("boy", "himself", "herself"), ("girl", "herself", "himself"), ("uncle", "himself", "herself")]
    people += [("aunt", "herself", "himself"), ("boys", "themselves", "himself"), ("girls", "themselves", "herself")]
    people += [
        ("grandma", "herself", "himself"),
        ("grandpa", "himself", "herself"),
        ("friends", "themselves", "itself"),
    ]
    did = "hurt,washed,hid,dried,warmed,laughed at,looked at,was proud of".split(",")
    for (who, right, wrong), act, place in product(people, did, PLACE):
        verb = act.replace("was", "were") if right == "themselves" else act
        yield f"The {who} {verb} {right} {place}.", f"The {who} {verb} {wrong} {place}."


def verb_form() -> Iterator[Pair]:
    """The form that an auxiliary asks for."""
    verbs = [("take", "took", "taken"), ("break", "broke", "broken"), ("see", "saw", "seen"), ("give", "gave", "given")]
    verbs += [("steal", "stole", "stolen"), ("forget", "forgot", "forgotten"), ("draw", "drew", "drawn")]
    for name, (base, past, done), thing, place in product([*SHE, *HE], verbs, THING, PLACE):
        yield f"{name} did not {base} the {thing} {place}.", f"{name} did not {past} the {thing} {place}."
        yield f"{name} had {done} the {thing} {place}.", f"{name} had {base} the {thing} {place}."
        yield f"{name} wanted to {base} the {thing} {place}.", f"{name} wanted to {past} the {thing} {place}."


def order() -> Iterator[Pair]:
    """Adjectives before their noun, and size before colour."""
    for name, did, thing, place in product([*SHE, *HE], ["lost", "hid", "found"], THING, PLACE):
        for size, colour in (("big", "red"), ("little", "yellow"), ("tiny", "blue"), ("large", "green")):
            start = f"{name} {did} a"
            yield f"{start} {colour} {thing} {place}.", f"{start} {thing} {colour} {place}."
            yield f"{start} {size} {colour} {thing} {place}.", f"{start} {colour} {size} {thing} {place}."


def question() -> Iterator[Pair]:
    """The verb before the subject, and do-support."""
    for name, (thing, things), place in product([*SHE, *HE], zip(THING, THINGS, strict=True), PLACE):
        yield f"What did {name} find {place}?", f"What {name} did find {place}?"
        yield f"Where did {name} hide the {thing}?", f"Where did {name} hid the {thing}?"
        yield f"Why is the {thing} {place}?", f"Why the {thing} is {place}?"
        yield f"Were the {things} {place}?", f"Was the {things} {place}?"


def comparison() -> Iterator[Pair]:
    """Comparatives."""
    short = [("fast", "faster"), ("tall", "taller"), ("strong", "stronger"), ("old", "older"), ("small", "smaller")]
    long = "careful careless generous patient impatient polite stubborn".split()
    for who, other in product(ONE, ONE):
        if who == other:
            continue
        for plain, more in short:
            yield f"The {who} was {more} than the {other}.", f"The {who} was {plain} than the {other}."
            yield f"The {who} was as {plain} as the {other}.", f"The {who} was as {more} as the {other}."
        for plain in long:
            yield f"The {who} was more {plain} than the {other}.", f"The {who} was most {plain} than the {other}."


def quantity() -> Iterator[Pair]:
    """many and few with what is counted, much and little with what is not."""
    mass = "water milk soup sugar snow sand honey bread money flour".split()
    for name, things, stuff, place in product([*SHE, *HE], THINGS, mass, PLACE):
        yield f"How many {things} did {name} see {place}?", f"How much {things} did {name} see {place}?"
        yield f"How much {stuff} did {name} see {place}?", f"How many {stuff} did {name} see {place}?"
        yield f"{name} saw a few {things} {place}.", f"{name} saw a little {things} {place}."
        yield f"{name} did not see much {stuff} {place}.", f"{name} did not see many {stuff} {place}."


PARADIGMS: dict[str, Callable[[], Iterator[Pair]]] = {
    make.__name__: make
    for make in (
        *(agreement, present, attractor, determiner, article, case),
        *(reflexive, verb_form, order, question, comparison, quantity),
    )
}


def chosen(paradigm: str) -> list[Pair]:
    """PAIRS of a paradigm, in an order that is chance to it and the same everywhere."""
    pairs = dict(PARADIGMS[paradigm]())
    return sorted(pairs.items(), key=lambda pair: hashlib.sha256(pair[0].encode()).digest())[:PAIRS]


def load(paradigm: str, **_: Any) -> dict[str, Any]:
    """As lm-eval's custom_dataset."""
    from datasets import Dataset

    return {"test": Dataset.from_list([{"right": right, "wrong": wrong} for right, wrong in chosen(paradigm)])}
