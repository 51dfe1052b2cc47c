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

from tinychat.tinyworld.combinations import mix
from tinychat.tinyworld.grammar import article, capital, number
from tinychat.tinyworld.lessons import chinese
from tinychat.tinyworld.lexicon.living import NAMES
from tinychat.tinyworld.lexicon.things import LARGE_SIZES, SMALL_SIZES
from tinychat.tinyworld.tasks.draw import (
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
    WORDS,
)

PEOPLE = tuple(name.word for name in NAMES)
TRAITS = tuple(OPPOSITES)
KIND_OF = {word: kind for kind in KINDS for word in kind.members}
# Between what is looked for and what is found there may be many words or none.
_BETWEEN = (
    ":",
    ":",
    ", as we know:",
    ", as it says above:",
    "? That is easy:",
    "? Look again and read:",
    "? Now think of what was told and say it:",
    ", so that nobody forgets it, once more:",
)


def listed(words: list[str]) -> str:
    """As in instructions: with blanks alone between the words."""
    return " ".join(words)


def some(chance: Random, lines: list[str], least: int) -> list[str]:
    """At least that many of the lines, in any order."""
    return chance.sample(lines, chance.randint(min(least, len(lines)), len(lines)))


def recalled(chance: Random, ways: list[tuple[str, str]], least: int = 1, most: int = 3) -> str:
    """Some of the pairs (what is looked for, what is found), as sentences."""
    chosen = chance.sample(ways, chance.randint(least, min(most, len(ways))))
    return " ".join(f"{asked}{chance.choice(_BETWEEN)} {found}." for asked, found in chosen)


_COUNTED = tuple(thing for thing in THINGS if not thing.endswith(("f", "s")))  # made many by an s


def sums(chance: Random) -> list[str]:
    """Sums up to twelve, bare or of things."""
    lines = []
    for _ in range(chance.randint(5, 9)):
        a = chance.randint(2, 9)
        b = chance.randint(2, min(9, 12 - a))
        things = f" {chance.choice(_COUNTED)}s"
        first, second, both = number(a), number(b), number(a + b)
        ways = (
            f"{first} and {second} make {both}.",
            f"{first}{things} and {second}{things} make {both}{things}.",
            f"{first}{things}, then {second} more: {both}.",
            f"{first} plus {second}: {both}.",
        )
        lines.append(capital(chance.choice(ways)))
    return lines


def counting(chance: Random) -> list[str]:
    """Counting rhymes, up and down."""
    lines = []
    for _ in range(chance.randint(2, 4)):
        k = chance.randint(5, 7)
        begin = chance.randint(1, 13 - k)
        numbers = [number(begin + i) for i in range(k)]
        lines.append(f"Count: {listed(numbers if chance.random() < 0.6 else numbers[::-1])}.")
    return lines


def bigger(chance: Random) -> list[str]:
    """Which of two numbers is more, and what is heavy."""
    lines = []
    for _ in range(chance.randint(5, 8)):
        if chance.random() < 0.2:
            heavy, light = chance.choice(HEAVY), chance.choice(LIGHT)
            lines.append(
                chance.choice(
                    (
                        f"Heavy: {article(heavy)}. Light: {article(light)}.",
                        f"Heavier than a child's hand: {heavy}. Lighter: {light}.",
                    )
                )
            )
            continue
        less, more = sorted(chance.sample(range(2, 13), 2))
        big, little = number(more), number(less)
        first, second = chance.sample((big, little), 2)
        facts = chance.choice(
            (
                [f"more: {big}", f"fewer: {little}"],
                [f"the bigger number: {big}", f"the smaller number: {little}"],
                [f"bigger: {big}", f"smaller: {little}"],
            )
        )
        chance.shuffle(facts)
        lines.append(f"{capital(first)} or {second}, {', '.join(facts)}.")
    return lines


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


_ROW = 0x20E5
_LESSON = 0x1E55  # sets the lessons' random numbers apart from the stories'

# Those that a model is slow to learn come more often.
LESSONS: tuple[Callable[[Random], list[str]], ...] = (
    *[rows] * 8,
    *[growing_list] * 1,
    *[words_in_a_row] * 6,
    *[tally] * 6,
    *[kinds] * 1,
    *[in_order] * 6,
    *[sums] * 4,
    *[counting] * 1,
    *[bigger] * 5,
    *[opposites] * 2,
    *[portrait] * 2,
    *[who_has] * 1,
    *[copybook] * 3,
    *[surely] * 4,
    *[alike] * 2,
)


def lesson(seed: int, index: int, bilingual: bool = False) -> str:
    """One lesson, a pure function of its arguments: lines of text. bilingual: every second one is in Chinese."""
    chance = Random(mix(seed, _LESSON, index))
    if bilingual and index % 2:
        return chinese.lesson(chance)
    return "\n".join(chance.choice(LESSONS)(chance))


def copying_lessons(n_lessons: int) -> int:
    """How many of so many lessons teach copying and come before all else."""
    return n_lessons // 2


def row_lesson(seed: int, index: int, bilingual: bool = False) -> str:
    """One lesson of copying, a pure function of its arguments. Read alone at the very beginning, some 250 steps of them
    teach a model to continue what it has seen before; among all else it takes ten times as long."""
    chance = Random(mix(seed, _ROW, index))
    return chinese.copies(chance) if bilingual and index % 2 else "\n".join(rows(chance))


def lessons(seed: int, n: int) -> Iterator[str]:
    """The lessons 0 to n - 1."""
    for index in range(n):
        yield lesson(seed, index)
