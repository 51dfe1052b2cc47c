"""Tasks on a list: counting, picking, sorting, reversing, telling the kind; and, in `hard`, kinds within a list."""

from functools import partial

from tinychat.tinyworld.grammar import article, number
from tinychat.tinyworld.tasks.draw import Draft, Draw, Recipe, Teller, listed, one, wordings
from tinychat.tinyworld.tasks.words import ANIMAL, KINDS, SIZES, THINGS, WORDS, Kind

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


FAMILIES = {
    "counting": tuple(Recipe(partial(count_words, k=k)) for k in (2, 3, 4, 5)),
    "sorting": (Recipe(sort_numbers),),
    "reversing": (Recipe(partial(reverse, k=2)), Recipe(partial(reverse, k=3), 2), Recipe(partial(reverse, k=4))),
    "picking": tuple(Recipe(partial(pick_nth, k=k)) for k in (3, 4, 5)),
    "kinds": (Recipe(tell_kind),),
}
