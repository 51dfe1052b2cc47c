"""Lessons about numbers: sums, counting, and what is more."""

from random import Random

from tinychat.data.tinyworld.grammar import article, capital, number
from tinychat.data.tinyworld.lessons.common import PEOPLE, listed
from tinychat.data.tinyworld.tasks.words import HEAVY, LIGHT, THINGS, WEEK

_COUNTED = tuple(thing for thing in THINGS if not thing.endswith(("f", "s")))  # made many by an s


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
        lines.append(listed(numbers if chance.random() < 0.5 else numbers[::-1]) + ".")
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
            names, counts = chance.sample(PEOPLE, 3), chance.sample(range(2, 17), 3)
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
            lines.append(f"{listed(told)}. {number(few)} and {number(many)}: {high} {above}, {low} {below}.")
    return lines
