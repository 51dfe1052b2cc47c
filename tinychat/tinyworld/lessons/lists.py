"""Lessons about words and lists of words: what comes where, in which order, of which kind, in which dress."""

from random import Random

from tinychat.tinyworld.grammar import article, capital, number
from tinychat.tinyworld.lessons.common import KIND_OF, PEOPLE, TRAITS, listed, some
from tinychat.tinyworld.tasks.draw import COLOUR, KINDS, OPPOSITES, SIZES, THINGS, WORDS

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
    """All that can be said of a list: its length, its places, its neighbours, its reverse."""
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
    return [f"Words: {listed(words)}.", *some(chance, lines, 4)]


def kinds(chance: Random) -> list[str]:
    """What words name."""
    words = chance.sample(WORDS, chance.randint(3, 6))
    return [f"{capital(chance.choice((word, article(word))))}: {KIND_OF[word].word}." for word in words]


def in_order(chance: Random) -> list[str]:
    """Numbers from the smallest on and from the biggest on: two, four or five, or three with one above nine."""
    lines = []
    for _ in range(chance.randint(3, 5)):
        k = chance.choice((2, 3, 3, 3, 4, 5))
        numbers = chance.sample(range(1, 10), k)
        if k == 3:
            numbers[chance.randrange(3)] = chance.choice((10, 11, 12))
        shown, rising = listed([number(n) for n in numbers]), [number(n) for n in sorted(numbers)]
        ways = [f"The smallest first: {listed(rising)}.", f"The biggest first: {listed(rising[::-1])}."]
        lines.append(f"Numbers: {shown}. {' '.join(chance.sample(ways, 2))}")
    return lines


def tally(chance: Random) -> list[str]:
    """Short lists, and how many words each has."""
    lines = []
    for _ in range(chance.randint(4, 7)):
        k = chance.randint(2, 5)
        words = listed(_plain_list(chance, k))
        ways = (
            f"Words: {words}. How many: {number(k)}.",
            f"Words: {words}. {capital(number(k))} words in this list.",
            f"Words: {words}. Their number: {number(k)}.",
        )
        lines.append(chance.choice(ways))
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
