"""Tasks about numbers: sums and differences of counted things, comparing, sequences."""

from tinychat.tinyworld.grammar import article, number
from tinychat.tinyworld.tasks.draw import Draft, Draw, Recipe, Teller, listed, one, wordings
from tinychat.tinyworld.tasks.words import AT_PLACES, COUNTED, HEAVY, LIGHT, WEEK

# Two addends with a sum up to twelve, and, for the hard level, up to eighteen.
UP_TO_TWELVE = tuple((a, b) for a in range(2, 10) for b in range(a, 10) if a + b <= 12)
UP_TO_EIGHTEEN = tuple((a, b) for a in range(2, 10) for b in range(a, 10))
_TOGETHER = wordings(
    "{hero} has {a} {things} and {friend} has {b}. How many {things} do they have [together|in all]?",
    "{hero} has {a} {things}. {friend} gives {him} {b} more. How many [|{things} ]does {hero} have now?",
    "{hero} found {a} {things} and {friend} found {b}. How many did they find [together|in all]?",
    "There are {a} {things} in {hero}'s bag and {b} in {friend}'s bag. How many is that [together|in all]?",
    '{hero} asks {friend}: "How many are {a} {things} plus {b} {things}?"',
    "{hero} puts {a} {things} into a box. {friend} puts {b} [more|others] into it. How many are in the box?",
    "Add the {things} of {hero} and {friend}: {a} and {b}.",
)
_HEAPS = wordings("{hero} has {a} {things}. {friend} has {b} {things}.", "{hero}: {a} {things}. {friend}: {b}.")
_HEAPS_ASKED = wordings(
    "How many are there [together|in all]?",
    "Add the two numbers.",
    "What do the two children have together?",
    "{material} How many is that [together|in all]?",
    "{material} Add the two.",
)


def add(core: Draw, tell: Teller, pairs: tuple[tuple[int, int], ...] = UP_TO_TWELVE) -> Draft:
    """Core: two numbers from 2 to 9, whichever comes first, and what is counted."""
    a, b = core.pick(pairs)
    slots = tell.cast(things=core.pick(COUNTED))
    first, second = (a, b) if tell.uniform() < 0.5 else (b, a)
    slots.update(a=number(first), b=number(second))
    return one("number", tell.ask(_TOGETHER, slots, number(a + b)))


def add_heaps(core: Draw, tell: Teller, pairs: tuple[tuple[int, int], ...] = UP_TO_TWELVE) -> Draft:
    """Core: as for `add`; the question and the numbers may come in separate fields."""
    a, b = core.pick(pairs)
    slots = tell.cast(things=core.pick(COUNTED))
    first, second = (a, b) if tell.uniform() < 0.5 else (b, a)
    slots.update(a=number(first), b=number(second))
    return one("number", tell.ask(_HEAPS_ASKED, slots, number(a + b), tell.say(_HEAPS, slots)))


_LEFT = wordings(
    "{hero} has {had} {things}. {He} gives {gave} to {friend}. How many [are left|does {hero} still have]?",
    "{hero} had {had} {things}, and {friend} took {gave} of them. How many are left?",
    "{hero} and {friend} had {had} {things} and lost {gave} of them. How many do they still have?",
    '{hero} asks {friend}: "How many are {had} {things} minus {gave} {things}?"',
    "There were {had} {things} in {hero}'s bag until {friend} ran off with {gave}. How many are still there?",
    "From {had} {things} {hero} picks {gave} for {friend}. How many [remain|stay behind]?",
    "{friend} got {gave} of {hero}'s {had} {things}. How many does {hero} have left?",
)
_LEFT_ASKED = wordings(
    "How many are left?",
    "How many does the first child still have?",
    "What remains?",
    "{material} How many [are left|remain]?",
    "{material} Now count again: how many does {hero} have?",
)
_GAVE = wordings(
    "{hero} had {had} {things}. {He} gave {gave} to {friend}.",
    "{hero} had {had} {things}. {friend} got {gave} of them.",
)


def subtract(core: Draw, tell: Teller, apart: bool) -> Draft:
    """Hard. Core: what was given (2 to 7), what is left (1 to 8), what is counted."""
    gave, left = 2 + core.below(6), 1 + core.below(8)
    slots = tell.cast(things=core.pick(COUNTED), had=number(gave + left), gave=number(gave))
    if apart:
        return one("number", tell.ask(_LEFT_ASKED, slots, number(left), tell.say(_GAVE, slots)))
    return one("number", tell.ask(_LEFT, slots, number(left)))


_NUMBERS = wordings(
    "{hero} asks: which is {more}, {a} {things} or {b} {things}?",
    "{hero} sees {a} {things} here and {b} there. Which number is {bigger}?",
    "Which number is {bigger}: {a} or {b}? {hero} counts {things}.",
    "Name the {bigger} number of {hero}'s {things}: {a} or {b}.",
    "There are {a} {things} in one bag and {b} {things} in the other. {hero} wants {more}. How many are that?",
)
_WEIGHTS = wordings(
    "{hero} asks: which is {heavier}, {a_first} or {a_second}?",
    "{hero} [lifts|carries] {a_first} and {a_second}. Which [|of them ]is {heavier}?",
    "{hero} has {a_first} and {a_second}. Name the {heavier} thing.",
    "What is {heavier} for {hero} to carry: {a_first} or {a_second}?",
    "{hero} weighs {a_first} and {a_second}. Which one is {heavier}?",
)


def compare_numbers(core: Draw, tell: Teller) -> Draft:
    """Core: two different numbers from 2 to 12, whichever comes first, what is counted, and more or fewer."""
    pair, more = [2 + n for n in core.subset(11, 2)], core.flip()
    slots = tell.asker(
        things=core.pick(COUNTED), more="more" if more else "fewer", bigger="bigger" if more else "smaller"
    )
    reply = number(pair[1 if more else 0])
    if tell.uniform() < 0.5:
        pair.reverse()
    slots.update(a=number(pair[0]), b=number(pair[1]))
    return one("number", tell.ask(_NUMBERS, slots, reply))


def compare_weights(core: Draw, tell: Teller) -> Draft:
    """Core: a heavy and a light thing, and which of them is asked for."""
    pair, heavier = [core.pick(HEAVY), core.pick(LIGHT)], core.flip()
    reply = pair[0 if heavier else 1]
    if tell.uniform() < 0.5:
        pair.reverse()
    slots = tell.asker(heavier="heavier" if heavier else "lighter", a_first=article(pair[0]), a_second=article(pair[1]))
    return one("word", tell.ask(_WEIGHTS, slots, reply))


# First number and step; the fifth number is still within 1 to 20.
_STARTS = tuple((start, step) for step in (1, 2, -1) for start in range(1, 21) if 1 <= start + 4 * step <= 20)
_NEXT = wordings(
    "{hero} counts {things}: {material}. [What|Which number] comes next?",
    "{hero} counted {things} and wrote {material}. Which number [must follow|is the next one]?",
    "[Go on|Carry on] with the numbers of {hero}'s {things}: {material}.",
    "{hero} puts {things} into a row and says {material}. Say the next number.",
    "What comes after {material} when {hero} counts {things}?",
    "These are the numbers of {hero}'s {things}. Which one is next?",
)


def next_number(core: Draw, tell: Teller) -> Draft:
    """Hard. Core: the first number, the step (1, 2 or back by 1), whether three or four are shown, what is counted."""
    (start, step), shown = core.pick(_STARTS), 3 + core.below(2)
    slots = tell.asker(things=core.pick(COUNTED))
    row = listed([number(start + step * n) for n in range(shown)])
    return one("number", tell.ask(_NEXT, slots, number(start + step * shown), row))


_DAYS = wordings(
    "{hero} was {at_place} on {day}. {friend} was there {next}. [What|Which] day was that?",
    "{hero} is {at_place} on {day}, and {friend} is there {next}. Name {friend}'s day.",
    "On {day} {hero} played {at_place}. {friend} played there {next}. On which day?",
    "{hero} waited {at_place} on {day}, but {friend} came {next}. When did {friend} come?",
    "{hero}'s birthday is on {day}. {friend} is {at_place} {next}. [What|Which] day is that?",
)


def next_day(core: Draw, tell: Teller) -> Draft:
    """Hard. Core: a day, whether the day after or before is asked for, and a place."""
    day, after = core.below(7), core.flip()
    slots = tell.cast(day=WEEK[day], next="the day after" if after else "the day before", at_place=core.pick(AT_PLACES))
    return one("word", tell.ask(_DAYS, slots, WEEK[(day + (1 if after else -1)) % 7]))


FAMILIES = {
    "addition": (Recipe(add, 2), Recipe(add_heaps)),
    "comparing": (
        Recipe(compare_numbers, 2),
        Recipe(compare_weights),
    ),
}
