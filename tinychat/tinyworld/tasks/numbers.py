"""Tasks about numbers: sums and differences of counted things, comparing, sequences; and tasks on a list:
counting, picking, sorting, reversing, telling the kind."""

from functools import partial

from tinychat.tinyworld.grammar import article, number
from tinychat.tinyworld.tasks.draw import (
    ANIMAL,
    AT_PLACES,
    COUNTED,
    HEAVY,
    KINDS,
    LIGHT,
    SIZES,
    THINGS,
    WEEK,
    WORDS,
    Draft,
    Draw,
    Kind,
    Recipe,
    Teller,
    listed,
    one,
    wordings,
)

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


_NUMBER_FAMILIES = {
    "addition": (Recipe(add, 2), Recipe(add_heaps)),
    "comparing": (
        Recipe(compare_numbers, 2),
        Recipe(compare_weights),
    ),
}


_COUNT = wordings(
    "How many words are [in this list|these]: {material}?",
    "Count these words: {material}.",
    "Look at this list: {material}. How many words does it have?",
    "How many words are there?",
    "Count the words[| in the list].",
    "Here is a list: {material}. How long is it?",
)
_COUNT_KIND = wordings(
    "How many {kinds} are in this list: {material}?",
    "Count only the {kinds}: {material}.",
    "Look at this list: {material}. How many {kinds} does it have?",
    "How many of [these|the words] are {kinds}?",
    "Count the {kinds}[| in the list].",
)


def count_words(core: Draw, tell: Teller, k: int) -> Draft:
    """Core: the list, k words in their order."""
    words = core.sample(WORDS, k)
    return one("number", tell.ask(_COUNT, tell.plain(), number(k), listed(words)))


def count_kind(core: Draw, tell: Teller, k: int, others: int) -> Draft:
    """Hard. Core: the list in its order, k words of the kind that is asked for and some of one other kind."""
    kind, words, _ = _mixed(core, k, others)
    return one("number", tell.ask(_COUNT_KIND, tell.plain(kinds=kind.plural), number(k), listed(words)))


def _mixed(core: Draw, k: int, others: int) -> tuple[Kind, list[str], list[str]]:
    """A kind, a list with k of its words and some of another kind, and those k alone in the same order."""
    kind, other = core.sample(KINDS, 2)
    mine, rest = core.sample(kind.members, k), core.sample(other.members, others)
    places = core.subset(k + others, k)
    ours, theirs = iter(mine), iter(rest)
    return kind, [next(ours) if at in places else next(theirs) for at in range(k + others)], mine


_ONLY = wordings(
    "Name only the {kinds}: {material}.",
    "Which of these [words |]are {kinds}: {material}?",
    "Write down the {kinds} and leave out the rest: {material}.",
    "From this list keep only the {kinds}: {material}.",
    "Pick out the {kinds}.",
    "Which words of the list are {kinds}?",
)
_ODD = wordings(
    "Which word is the odd one out: {material}?",
    "One word does not belong here: {material}. Which one?",
    "Find the odd one out: {material}.",
    "Which word does not fit[| in]?",
    "Name the word that is not like the others.",
    "Three of these belong together: {material}. Name the other one.",
)
_KIND = wordings(
    "What is the word {word}: {material}?",
    "Which does the word {word} name: {material}?",
    "Does the word {word} stand for {material}?",
    "What does the word {word} name?",
    "Choose what the word {word} names.",
    "Say what sort of word {word} is: {material}.",
)


def keep_kind(core: Draw, tell: Teller, k: int, others: int) -> Draft:
    """Hard. Core: the words in their order and which of their two kinds is wanted."""
    kind, words, wanted = _mixed(core, k, others)
    return one("list", tell.ask(_ONLY, tell.plain(kinds=kind.plural), listed(wanted), listed(words)))


def odd_one_out(core: Draw, tell: Teller) -> Draft:
    """Hard. Core: four words in their order."""
    _, words, odd = _mixed(core, 1, 3)
    return one("word", tell.ask(_ODD, tell.plain(), odd[0], listed(words)))


def tell_kind(core: Draw, tell: Teller) -> Draft:
    """Core: a word and the three kinds in their order."""
    kind = core.pick(KINDS)
    word = core.pick(kind.members)
    offered = core.sample([other for other in KINDS if other is not kind], 2)
    offered.insert(core.below(3), kind)
    first, second, third = (article(other.word) for other in offered)
    return one("word", tell.ask(_KIND, tell.plain(word=word), kind.word, f"{first}, {second} or {third}"))


_NTH = wordings(
    "Which word is the {nth} one: {material}?",
    "Name the {nth} word: {material}.",
    "The list is {material}. What is the {nth} word?",
    "Say the {nth} word of this list: {material}.",
    "What is the {nth} word[| in the list]?",
    "Pick the {nth} [word|one].",
)
_REVERSE = wordings(
    "Reverse [this list|these words]: {material}.",
    "Say these words backwards: {material}.",
    "Go from the last word to the first: {material}.",
    "Turn [this|the] list around: {material}.",
    "Write the words in reverse order.",
    "Put the list in reverse order.",
    "Begin with the last word: {material}.",
)


def pick_nth(core: Draw, tell: Teller, k: int) -> Draft:
    """Core: the list, k words in their order, and the position asked for."""
    words = core.sample(WORDS, k)
    nth = core.pick(("first", "second", "last") if k == 3 else ("first", "second", "third", "last"))
    at = ("first", "second", "third").index(nth) if nth != "last" else -1
    return one("word", tell.ask(_NTH, tell.plain(nth=nth), words[at], listed(words)))


def reverse(core: Draw, tell: Teller, k: int) -> Draft:
    """Core: the list, k words in their order."""
    words = core.sample(WORDS, k)
    return one("list", tell.ask(_REVERSE, tell.plain(), listed(words[::-1]), listed(words)))


_SORT_NUMBERS = wordings(
    "[Sort|Order] these numbers for {hero}, the {smallest} first: {material}.",
    "{hero} wants these numbers in order, the {smallest} first: {material}.",
    "Write {hero}'s numbers in order and start with the {smallest}: {material}.",
    "Put {hero}'s numbers in order, the {smallest} first.",
    "Sort the numbers of {hero}. Begin with the {smallest}.",
)
_SORT_WORDS = wordings(
    "{hero} wants these words in alphabetical order: {material}.",
    "Sort {hero}'s words by the alphabet: {material}.",
    "{hero} wrote {material}. Sort the words from a to z.",
    "Put {hero}'s words in alphabetical order.",
    "How does {hero} sort these by the alphabet: {material}?",
)
_SORT_SIZES = wordings(
    "Sort these by size, {smallest} first: {material}.",
    "Here are {material}. Name the things in order, the {smallest} one first.",
    "Put these in order and start with the {smallest}: {material}.",
    "Name the things by size. Begin with the {smallest}.",
    "Which order do they have by size, {smallest} first?",
)


def sort_numbers(core: Draw, tell: Teller) -> Draft:
    """Core: three numbers from 1 to 9, whatever their order, and the direction."""
    numbers, rising = core.subset(9, 3), core.flip()
    shown = listed([number(1 + n) for n in tell.dressing.sample(numbers, 3)])
    reply = listed([number(1 + n) for n in (numbers if rising else numbers[::-1])])
    return one("list", tell.ask(_SORT_NUMBERS, tell.asker(smallest="smallest" if rising else "biggest"), reply, shown))


def sort_words(core: Draw, tell: Teller) -> Draft:
    """Hard. Core: three animals, whatever their order."""
    words = [ANIMAL.members[at] for at in core.subset(len(ANIMAL.members), 3)]
    shown = listed(tell.dressing.sample(words, 3))
    return one("list", tell.ask(_SORT_WORDS, tell.asker(), listed(words), shown))


def sort_sizes(core: Draw, tell: Teller, k: int) -> Draft:
    """Hard. Core: k things with as many sizes, whatever their order, and the direction."""
    things, sizes, rising = core.sample(THINGS, k), [SIZES[at] for at in core.subset(len(SIZES), k)], core.flip()
    pairs = [f"{article(size)} {thing}" for size, thing in zip(sizes, things, strict=True)]
    shown = ", ".join(tell.dressing.sample(pairs, k))
    slots = tell.plain(smallest="smallest" if rising else "biggest")
    return one("list", tell.ask(_SORT_SIZES, slots, listed(things if rising else things[::-1]), shown))


_LIST_FAMILIES = {
    "counting": tuple(Recipe(partial(count_words, k=k)) for k in (2, 3, 4, 5)),
    "sorting": (Recipe(sort_numbers),),
    "reversing": (Recipe(partial(reverse, k=2)), Recipe(partial(reverse, k=3), 2), Recipe(partial(reverse, k=4))),
    "picking": tuple(Recipe(partial(pick_nth, k=k)) for k in (3, 4, 5)),
    "kinds": (Recipe(tell_kind),),
}
FAMILIES = {**_NUMBER_FAMILIES, **_LIST_FAMILIES}
