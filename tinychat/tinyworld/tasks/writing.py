"""Tasks whose answer is a form: copy, repeat, write in capital letters or brackets, list with commas."""

from functools import partial

from tinychat.tinyworld.grammar import article
from tinychat.tinyworld.lexicon.living import NAMES
from tinychat.tinyworld.tasks.draw import (
    ANIMAL,
    COLOUR,
    SIZES,
    THINGS,
    WORDS,
    Draft,
    Draw,
    Recipe,
    Teller,
    listed,
    one,
    wordings,
)

ASK_COPY = wordings(
    "Repeat this: {material}",
    "Copy these words: {material}",
    "Say exactly this: {material}",
    "Write the same again: {material}",
    "Repeat what is written here.",
    "Copy the text.",
)
_SENTENCES = wordings(
    "{hero} gave {friend} {a_thing}.",
    "{hero} and {friend} found {a_thing}.",
    "{hero} has {a_thing} for {friend}.",
    "{hero} lost {a_thing}, said {friend}.",
    "{friend} and {hero} painted {a_thing}.",
)


def copy_words(core: Draw, tell: Teller, k: int) -> Draft:
    """Core: k words in their order."""
    words = listed(core.sample(WORDS, k))
    return one("exact", tell.ask(ASK_COPY, tell.plain(), words, words))


def copy_sentence(core: Draw, tell: Teller) -> Draft:
    """Core: a thing with size and colour."""
    thing = article(f"{core.pick(SIZES)} {core.pick(COLOUR.members)} {core.pick(THINGS)}")
    sentence = tell.say(_SENTENCES, tell.cast(a_thing=thing))
    return one("exact", tell.ask(ASK_COPY, tell.plain(), sentence, sentence))


_NAMES = tuple(name.word for name in NAMES)
_GREETINGS = (
    "hello", "goodbye", "thank you", "good morning", "well done", "happy birthday", "good night", "welcome",
)  # fmt: skip
_TIMES = ("twice", "three times", "four times")
_REPEAT = wordings(
    "Say the words {material} {times}.",
    "Write {material} {times}.",
    "Repeat {times}: {material}",
    "Say this {times}.",
    "Write the words {times}.",
    "I want to hear this {times}: {material}",
)


def repeat(core: Draw, tell: Teller, greeting: bool) -> Draft:
    """Core: how often (twice to four times), and the words: a greeting and a name, or a colour and a noun."""
    times = core.below(3)
    words = (
        f"{core.pick(_GREETINGS)} {core.pick(_NAMES)}"
        if greeting
        else f"{core.pick(COLOUR.members)} {core.pick(THINGS + ANIMAL.members)}"
    )
    return one("exact", tell.ask(_REPEAT, tell.plain(times=_TIMES[times]), listed([words] * (times + 2)), words))


# What is asked of the answer's form; each line is one form, in several wordings.
_FORMS = {
    "capitals": wordings(
        "Answer in capital letters.", "Write the answer in capital letters.", "Use only capital letters for the answer."
    ),
    "brackets": wordings(
        "Put the answer in brackets.", "Write the answer in brackets.", "Use brackets for the answer."
    ),
    "sentence": wordings("Answer in a whole sentence.", "Write a whole sentence.", "Make the answer a whole sentence."),
    "quotes": wordings(
        "Put the answer in quotation marks.",
        "Write the answer in quotation marks.",
        "Use quotation marks for the answer.",
    ),
}
# Few, since the letters of each are learnt one by one where it is written in capitals.
_SHADES = ("red", "blue", "green", "pink", "white", "black")
_OWNING = wordings("{hero} has {a_thing}.", "{hero} found {a_thing}.", "This is {hero}'s {bare_thing}.")
_LOOK = wordings(
    "[What|Which] {aspect} is the {thing}?",
    "[What|Which] {aspect} is {hero}'s {thing}?",
    "Name the {aspect} of the {thing}.",
)
_LAYOUTS = wordings(
    "{material} {question} {form}", "{question} {form} {material}", "{form} {material} {question}", "{question} {form}"
)
_UNDER_ORDERS = wordings("{material} {question}", "{question} {material}", "{question}")


def answer_in_form(core: Draw, tell: Teller, form: str, system: bool) -> Draft:
    """Core: a thing, its colour and size, and which of them is asked for; the form may stand in a system message."""
    thing, size, colour = core.pick(THINGS), core.pick(SIZES), core.pick(_SHADES)
    aspect, look = ("colour", colour) if core.flip() else ("size", size)
    bare = f"{size} {colour} {thing}"
    slots = tell.asker(thing=thing, aspect=aspect, a_thing=article(bare), bare_thing=bare)
    reply = {
        "capitals": look.upper(),
        "brackets": f"({look})",
        "sentence": f"The {thing} is {look}.",
        "quotes": f'"{look}"',
    }[form]
    story, question, order = (tell.say(ways, slots) for ways in (_OWNING, _LOOK, _FORMS[form]))
    slots = tell.plain(question=question, form=order)
    turn = tell.ask(_UNDER_ORDERS if system else _LAYOUTS, slots, reply, story)
    return Draft("exact", (turn,), order if system else "")


_JOIN = {
    "commas": wordings(
        "Write {material} as a list with commas.",
        "Put commas between the words: {material}.",
        "Write {material} again, but use commas.",
        "Make it a list with commas.",
        "Write the words with commas between them.",
    ),
    "and": wordings(
        "Join these words with and: {material}.",
        "Put the word and between these: {material}.",
        "Write {material} again, but use the word and.",
        "Join the words with and.",
        "Write and between the words.",
    ),
}


def join(core: Draw, tell: Teller, commas: bool) -> Draft:
    """Core: three words in their order, to be joined by "and" or by commas."""
    words = core.sample(WORDS, 3)
    reply = (", " if commas else " and ").join(words)
    return one("exact", tell.ask(_JOIN["commas" if commas else "and"], tell.plain(), reply, listed(words)))


FAMILIES = {
    "copying": (Recipe(partial(copy_words, k=3)), Recipe(partial(copy_words, k=4)), Recipe(copy_sentence, 2)),
    "repeating": (Recipe(partial(repeat, greeting=False)), Recipe(partial(repeat, greeting=True))),
    "format": (
        *(
            Recipe(partial(answer_in_form, form=form, system=system), (1 if system else 2) * (1 + (form == "capitals")))
            for system in (False, True)
            for form in _FORMS
        ),
        *(Recipe(partial(join, commas=commas), 2) for commas in (True, False)),
    ),
}
