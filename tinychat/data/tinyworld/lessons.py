"""Lessons: documents that say a few things in several ways, as a copybook or a nursery rhyme does.

Stories alone teach a small model words and grammar, but hardly to look things up: nothing in them is asked for twice.
A lesson states facts (a list, who owns what, some sums) and then says again what follows from them, so that most of its
words can be found in, or worked out from, what stands before them. Models that have read lessons learn to follow
instructions in a fraction of the time. Lessons are training data only, and none gives away the answer to a held-out
instruction: they are not worded as questions, and their lists and facts are of a make that no instruction has (longer,
or with a word of another sort in them). What is too small a table to be split (sums, opposites, which word is an
animal) is told, as it is in the training instructions.
"""

from collections.abc import Callable, Iterator
from random import Random

from tinychat.data.tinyworld.combinations import mix
from tinychat.data.tinyworld.grammar import article, capital, number
from tinychat.data.tinyworld.lexicon.people import NAMES
from tinychat.data.tinyworld.lexicon.things import LARGE_SIZES, SMALL_SIZES
from tinychat.data.tinyworld.tasks.words import (
    ANIMAL,
    AT_PLACES,
    COLOUR,
    HEAVY,
    JOB,
    KINDS,
    LIGHT,
    OPPOSITES,
    SIZES,
    THINGS,
    WEEK,
    WORDS,
)

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
_NAMES = tuple(name.word for name in NAMES)
_TRAITS = tuple(OPPOSITES)
_KIND_OF = {word: kind for kind in KINDS for word in kind.members}
_COUNTED = tuple(thing for thing in THINGS if not thing.endswith(("f", "s")))  # made many by an s
_DEEDS = ("sold", "washed", "found", "borrowed", "mended", "painted", "lost", "bought", "hid")
_LESSON = 0x1E55  # sets the lessons' random numbers apart from the stories'


def lesson(seed: int, index: int) -> str:
    """One lesson, a pure function of its arguments: lines of text."""
    chance = Random(mix(seed, _LESSON, index))
    return "\n".join(chance.choice(LESSONS)(chance))


def lessons(seed: int, n: int) -> Iterator[str]:
    """The lessons 0 to n - 1."""
    for index in range(n):
        yield lesson(seed, index)


def _listed(words: list[str]) -> str:
    return ", ".join(words)


def _some(chance: Random, lines: list[str], least: int) -> list[str]:
    """At least that many of the lines, in any order."""
    return chance.sample(lines, chance.randint(min(least, len(lines)), len(lines)))


def _plain_list(chance: Random, k: int) -> list[str]:
    """k words, at least one of them a name or a thing: no list of an instruction has one."""
    pool = WORDS if chance.random() < 0.4 else sum((kind.members for kind in chance.sample(KINDS, 2)), ())
    strangers = chance.sample(_NAMES if chance.random() < 0.5 else THINGS, chance.choice((1, 1, 2)))
    words = [*chance.sample(pool, k), *strangers][-k:]
    chance.shuffle(words)
    return words


def _things(chance: Random, k: int) -> list[str]:
    """k things, with a colour or bare."""
    things = chance.sample(THINGS, k)
    return [f"{chance.choice(COLOUR.members)} {thing}" if chance.random() < 0.5 else thing for thing in things]


def growing_list(chance: Random) -> list[str]:
    """A list that grows word by word, at its end or at its beginning."""
    k = chance.randint(3, 6)
    items = _plain_list(chance, k) if chance.random() < 0.5 else _things(chance, k)
    step = 1 if chance.random() < 0.5 else -1
    return [_listed(items[: count + 1][::step]) for count in range(k)]


def words_in_a_row(chance: Random) -> list[str]:
    """All that can be said of a list: its length, its places, its neighbours, its kinds, its reverse."""
    k = chance.randint(2, 6)
    words = _plain_list(chance, k)
    at = chance.randrange(k - 1)
    lines = [
        f"Backwards: {_listed(words[::-1])}.",
        f"Backwards: {_listed(words[::-1])}.",
        f"Once more: {_listed(words)}.",
        f"That makes {number(k)} words.",
        f"The last is {words[-1]}, the first is {words[0]}.",
        f"After {words[at]} comes {words[at + 1]}.",
        f"Before {words[at + 1]} stands {words[at]}.",
    ]
    order = chance.sample(range(k), min(k, 3))
    lines.append(" ".join(f"The {ORDINALS[place]}: {words[place]}." for place in order))
    for kind in dict.fromkeys(_KIND_OF[word] for word in words if word in _KIND_OF):
        mine = [word for word in words if _KIND_OF.get(word) is kind]
        lines.append(f"The {kind.plural}: {_listed(mine)}. {capital(number(len(mine)))} in all.")
    return [f"{_listed(words)}.", *_some(chance, lines, 4)]


def odd_ones(chance: Random) -> list[str]:
    """Rows of five words in which one is of another kind."""
    lines = []
    for _ in range(chance.randint(2, 4)):
        kind, other = chance.sample(KINDS, 2)
        words, odd = chance.sample(kind.members, 4), chance.choice(other.members)
        words.insert(chance.randrange(5), odd)
        lines.append(f"{_listed(words)}: all {kind.plural} but {odd}.")
    return lines


def by_kind(chance: Random) -> list[str]:
    """Lists of words of two kinds, and those of each kind alone."""
    lines = []
    for _ in range(chance.randint(1, 3)):
        pair = chance.sample(KINDS, 2)
        words = sum((chance.sample(kind.members, chance.randint(1, 3)) for kind in pair), [chance.choice(_NAMES)])
        chance.shuffle(words)
        lines.append(f"{_listed(words)}.")
        for kind in chance.sample(pair, 2):
            mine = [word for word in words if _KIND_OF.get(word) is kind]
            lines.append(f"The {kind.plural}: {_listed(mine)}. {capital(number(len(mine)))} in all.")
    return lines


def kinds(chance: Random) -> list[str]:
    """What words name."""
    words = chance.sample(WORDS, chance.randint(3, 6))
    return [f"{capital(chance.choice((word, article(word))))}: {_KIND_OF[word].word}." for word in words]


def in_order(chance: Random) -> list[str]:
    """Two or four numbers, animals or sized things, in order."""
    lines = []
    for _ in range(chance.randint(2, 4)):
        which, k = chance.randrange(3), chance.choice((2, 4))
        up, down = "From small to big", "From big to small"
        if which == 0:
            numbers = chance.sample(range(1, 21), k)
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
        lines.append(f"{_listed(told)}. {down if falls else up}: {_listed(rising[::-1] if falls else rising)}.")
    return lines


def sums(chance: Random) -> list[str]:
    """Sums and differences, bare or of things."""
    lines = []
    for _ in range(chance.randint(4, 7)):
        a, b = chance.randint(2, 9), chance.randint(1, 9)
        what = f" {chance.choice(_COUNTED)}s" if chance.random() < 0.3 else ""
        if chance.random() < 0.5:
            lines.append(f"{capital(number(a))}{what} and {number(b)} more make {number(a + b)}.")
        else:
            lines.append(f"{capital(number(a + b))}{what} without {number(b)}: {number(a)} left.")
    return lines


def counting(chance: Random) -> list[str]:
    """Counting rhymes, up and down, by ones, twos and threes, and the days of the week."""
    lines = []
    for _ in range(chance.randint(2, 4)):
        if chance.random() < 0.3:
            day = chance.randrange(7)
            lines.append(
                f"{WEEK[day]}, and the day after is {WEEK[(day + 1) % 7]}. Before {WEEK[day]} was {WEEK[day - 1]}."
            )
            continue
        step, k = chance.choice((1, 1, 2, 3)), chance.randint(5, 6)
        begin = chance.randint(1, 20 - step * (k - 1))
        numbers = [number(begin + step * i) for i in range(k)]
        lines.append(_listed(numbers if chance.random() < 0.5 else numbers[::-1]) + ".")
    return lines


def bigger(chance: Random) -> list[str]:
    """Which number is more, who of three is older or has more, what is heavy."""
    lines = []
    for _ in range(chance.randint(2, 4)):
        which = chance.randrange(4)
        if which == 0:
            lines.append(f"Heavy: {article(chance.choice(HEAVY))}. Light: {article(chance.choice(LIGHT))}.")
        elif which == 1:
            less, more = sorted(chance.sample(range(2, 17), 2))
            lines.append(f"{capital(number(more))} is more than {number(less)}, {number(less)} is less.")
        else:
            names, counts = chance.sample(_NAMES, 3), chance.sample(range(2, 17), 3)
            told = [
                f"{name} {'is' if which == 2 else 'has'} {number(n)}" for name, n in zip(names, counts, strict=True)
            ]
            (low, few), (high, many) = chance.choice(
                [
                    ((a, m), (b, n))
                    for a, m in zip(names, counts, strict=True)
                    for b, n in zip(names, counts, strict=True)
                    if m < n
                ]
            )
            above, below = ("older", "younger") if which == 2 else ("more", "fewer")
            lines.append(f"{_listed(told)}. {number(few)} and {number(many)}: {high} {above}, {low} {below}.")
    return lines


def opposites(chance: Random) -> list[str]:
    """Pairs of opposites, forth and back."""
    words = chance.sample(_TRAITS, chance.randint(3, 5))
    return [f"Not {word} but {OPPOSITES[word]}. Not {OPPOSITES[word]} but {word}." for word in words]


def owners(chance: Random) -> list[str]:
    """Who has what, of which colour and size, and then the same from the other end."""
    k = chance.randint(3, 6)
    names, things = chance.sample(_NAMES, k), chance.sample(THINGS, k)
    looks, quality = chance.sample(COLOUR.members, k), "coloured"
    if chance.random() < 0.4:
        looks, quality = chance.sample(SMALL_SIZES + LARGE_SIZES, k), "sized"
    verb = chance.choice(("has", "carries", "brings", "got", "found"))
    phrases = [article(f"{look} {thing}") for look, thing in zip(looks, things, strict=True)]
    lines = [" ".join(f"{name} {verb} {phrase}." for name, phrase in zip(names, phrases, strict=True))]
    for at in chance.sample(range(k), k):
        name, look, thing = names[at], looks[at], things[at]
        ways = [
            f"The {thing} is {look}.",
            f"The {thing} is {name}'s.",
            f"{name}'s {thing} is {look}.",
            f"The {look} one belongs to {name}.",
            f"Whose {thing}? {name}'s. How is it {quality}? {capital(look)}.",
        ]
        lines.append(" ".join(chance.sample(ways, chance.randint(1, 3))))
    return lines


def who_has(chance: Random) -> list[str]:
    """Who has what, and nothing else: the shortest way to learn to look something up."""
    k = chance.randint(3, 6)
    names, things = chance.sample(_NAMES, k), chance.sample((*THINGS, *ANIMAL.members), k)
    lines = [" ".join(f"{name} has the {thing}." for name, thing in zip(names, things, strict=True))]
    for at in chance.sample(range(k), k):
        ways = (f"Who has the {things[at]}? {names[at]}.", f"What does {names[at]} have? The {things[at]}.")
        lines.append(chance.choice(ways))
    return lines


def places(chance: Random) -> list[str]:
    """Who is where, and where is whom."""
    k = chance.randint(3, 5)
    names, spots = chance.sample(_NAMES, k), chance.sample(AT_PLACES, k)
    verb = chance.choice(("is", "plays", "waits", "sits", "was"))
    lines = [" ".join(f"{name} {verb} {spot}." for name, spot in zip(names, spots, strict=True))]
    for at in chance.sample(range(k), k):
        ways = [f"{capital(spots[at])} {verb} {names[at]}.", f"{names[at]}? {capital(spots[at])}."]
        lines.append(" ".join(_some(chance, ways, 1)))
    return lines


def deeds(chance: Random) -> list[str]:
    """Who did what with which thing, and then the same from the other end."""
    k = chance.randint(3, 5)
    names, verbs, things = chance.sample(_NAMES, k), chance.sample(_DEEDS, k), chance.sample(THINGS, k)
    whole = [f"{verb} {article(thing)}" for verb, thing in zip(verbs, things, strict=True)]
    lines = [" ".join(f"{name} {deed}." for name, deed in zip(names, whole, strict=True))]
    for at in chance.sample(range(k), k):
        ways = [
            f"The one who {whole[at]}: {names[at]}.",
            f"What {names[at]} {verbs[at]}: {article(things[at])}.",
            f"Somebody {verbs[at]} something: {names[at]}, {article(things[at])}.",
        ]
        lines.append(" ".join(_some(chance, ways, 1)))
    return lines


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
            f"{times}: {_listed([words] * count)}",
            f"The same: {words}",
        ]
        lines += [words, *_some(chance, ways, 3)]
    return lines


def surely(chance: Random) -> list[str]:
    """What follows from a rule about all people of a trade, and what does not."""
    lines = []
    for _ in range(chance.randint(1, 3)):
        (job, other), (trait, another) = chance.sample(JOB.members, 2), chance.sample(_TRAITS, 2)
        name = chance.choice(_NAMES)
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


# Those that a model is slow to learn come more often.
LESSONS: tuple[Callable[[Random], list[str]], ...] = (
    *[growing_list] * 1,
    *[words_in_a_row] * 3,
    *[odd_ones] * 1,
    *[by_kind] * 2,
    *[kinds] * 1,
    *[in_order] * 2,
    *[sums] * 2,
    *[counting] * 2,
    *[bigger] * 2,
    *[opposites] * 1,
    *[owners] * 4,
    *[who_has] * 3,
    *[places] * 3,
    *[deeds] * 2,
    *[copybook] * 1,
    *[surely] * 1,
)
