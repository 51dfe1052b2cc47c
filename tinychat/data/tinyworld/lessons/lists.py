"""Lessons about words and lists of words: what comes where, in which order, of which kind, in which dress."""

from random import Random

from tinychat.data.tinyworld.grammar import article, capital, number
from tinychat.data.tinyworld.lessons.common import KIND_OF, PEOPLE, TRAITS, listed, some
from tinychat.data.tinyworld.tasks.words import ANIMAL, COLOUR, KINDS, OPPOSITES, SIZES, THINGS, WORDS

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")


def _plain_list(chance: Random, k: int) -> list[str]:
    """k words, at least one of them a name or a thing: no list of an instruction has one."""
    pool = WORDS if chance.random() < 0.4 else sum((kind.members for kind in chance.sample(KINDS, 2)), ())
    strangers = chance.sample(PEOPLE if chance.random() < 0.5 else THINGS, chance.choice((1, 1, 2)))
    words = [*chance.sample(pool, k), *strangers][-k:]
    chance.shuffle(words)
    return words


def _things(chance: Random, k: int) -> list[str]:
    """k things, with a colour or bare."""
    things = chance.sample(THINGS, k)
    return [f"{chance.choice(COLOUR.members)} {thing}" if chance.random() < 0.5 else thing for thing in things]


def rows(chance: Random) -> list[str]:
    """A long row of words, again and again: the shortest way to learn to copy what stands above."""
    k = chance.randint(4, 10)
    words = [*chance.sample(WORDS, k - 3), *chance.sample(PEOPLE, 2), chance.choice(THINGS)]
    chance.shuffle(words)
    return [f"{label}: {listed(words)}" for label in ("Row", *["Again"] * chance.randint(1, 3))]


def growing_list(chance: Random) -> list[str]:
    """A list that grows word by word, at its end or at its beginning."""
    k = chance.randint(3, 6)
    items = _plain_list(chance, k) if chance.random() < 0.5 else _things(chance, k)
    step = 1 if chance.random() < 0.5 else -1
    return [f"Now: {listed(items[: count + 1][::step])}" for count in range(k)]


def words_in_a_row(chance: Random) -> list[str]:
    """All that can be said of a list: its length, its places, its neighbours, its kinds, its reverse."""
    k = chance.randint(2, 6)
    words = _plain_list(chance, k)
    at = chance.randrange(k - 1)
    lines = [
        f"Backwards: {listed(words[::-1])}.",
        f"Backwards: {listed(words[::-1])}.",
        f"Once more: {listed(words)}.",
        f"That makes {number(k)} words.",
        f"That makes {number(k)} words.",
        f"The last is {words[-1]}, the first is {words[0]}.",
        f"After {words[at]} comes {words[at + 1]}.",
        f"Before {words[at + 1]} stands {words[at]}.",
    ]
    order = chance.sample(range(k), min(k, 3))
    lines.append(" ".join(f"The {ORDINALS[place]}: {words[place]}." for place in order))
    for kind in dict.fromkeys(KIND_OF[word] for word in words if word in KIND_OF):
        mine = [word for word in words if KIND_OF.get(word) is kind]
        lines.append(f"The {kind.plural}: {listed(mine)}. {capital(number(len(mine)))} in all.")
    return [f"Words: {listed(words)}.", *some(chance, lines, 4)]


def odd_ones(chance: Random) -> list[str]:
    """Rows of five words in which one is of another kind."""
    lines = []
    for _ in range(chance.randint(3, 5)):
        kind, other = chance.sample(KINDS, 2)
        words, odd = chance.sample(kind.members, 4), chance.choice(other.members)
        words.insert(chance.randrange(5), odd)
        told = (f"All {kind.plural} but {odd}", f"The odd one: {odd}. The others: {kind.plural}", f"The odd one: {odd}")
        lines.append(f"Words: {listed(words)}. {chance.choice(told)}.")
    return lines


def by_kind(chance: Random) -> list[str]:
    """Lists of words of two kinds, and those of each kind alone."""
    lines = []
    for _ in range(chance.randint(1, 3)):
        pair = chance.sample(KINDS, 2)
        words = sum((chance.sample(kind.members, chance.randint(1, 3)) for kind in pair), [chance.choice(PEOPLE)])
        chance.shuffle(words)
        lines.append(f"Words: {listed(words)}.")
        for kind in chance.sample(pair, 2):
            mine = [word for word in words if KIND_OF.get(word) is kind]
            lines.append(f"The {kind.plural}: {listed(mine)}. {capital(number(len(mine)))} in all.")
    return lines


def kinds(chance: Random) -> list[str]:
    """What words name."""
    words = chance.sample(WORDS, chance.randint(3, 6))
    return [f"{capital(chance.choice((word, article(word))))}: {KIND_OF[word].word}." for word in words]


def in_order(chance: Random) -> list[str]:
    """Two or four numbers, animals or sized things, in order."""
    lines = []
    for _ in range(chance.randint(2, 4)):
        which, k = chance.randrange(3), chance.choice((2, 2, 4))
        up, down = "From small to big", "From big to small"
        if which == 0:
            numbers = chance.sample(range(1, 13), k)
            told, rising = [number(n) for n in numbers], [number(n) for n in sorted(numbers)]
        elif which == 1:
            told = chance.sample(ANIMAL.members, k)
            rising, up, down = sorted(told), "By the alphabet", "By the alphabet from its end"
        else:
            sizes, things = chance.sample(SIZES, k), chance.sample(THINGS, k)
            told = [article(f"{size} {thing}") for size, thing in zip(sizes, things, strict=True)]
            ranked = sorted(zip(sizes, things, strict=True), key=lambda pair: SIZES.index(pair[0]))
            rising = [thing for _, thing in ranked]
        falls = which != 1 and chance.random() < 0.5
        shown = (", " if which == 2 else " ").join(told)
        lines.append(f"Here: {shown}. {down if falls else up}: {listed(rising[::-1] if falls else rising)}.")
    return lines


def opposites(chance: Random) -> list[str]:
    """Pairs of opposites, forth and back."""
    words = chance.sample(TRAITS, chance.randint(3, 5))
    return [f"Not {word} but {OPPOSITES[word]}. Not {OPPOSITES[word]} but {word}." for word in words]


def copybook(chance: Random) -> list[str]:
    """The same words in many dresses: twice, in capitals, in brackets, in quotation marks."""
    lines = []
    for _ in range(chance.randint(1, 3)):
        words = f"{chance.choice(SIZES)} {chance.choice(THINGS)}"
        if chance.random() < 0.5:
            words = chance.choice(SIZES + COLOUR.members + WORDS)
        times, count = chance.choice((("Twice", 2), ("Three times", 3), ("Four times", 4)))
        ways = [
            f"In capital letters: {words.upper()}",
            f"In brackets: ({words})",
            f'In quotation marks: "{words}"',
            f"{times}: {listed([words] * count)}",
            f"The same: {words}",
        ]
        lines += [f"Words: {words}", *some(chance, ways, 3)]
    return lines
