"""Lessons about numbers: sums, counting, and what is more."""

from random import Random

from tinychat.data.tinyworld.grammar import article, capital, number
from tinychat.data.tinyworld.lessons.common import PEOPLE, listed, recalled
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
    for _ in range(chance.randint(3, 6)):
        if chance.random() < 0.4:
            day = chance.randrange(7)
            ways = [("The day after", WEEK[(day + 1) % 7]), ("The day before", WEEK[day - 1])]
            lines.append(f"On {WEEK[day]}. {recalled(chance, ways)}")
            continue
        step, k = chance.choice((1, 1, 2)), chance.randint(5, 6)
        begin = chance.randint(1, 20 - step * (k - 1))
        numbers = [number(begin + step * i) for i in range(k)]
        shown, step = (numbers, step) if chance.random() < 0.5 else (numbers[::-1], -step)
        lines.append(f"Count: {listed(shown)}.")
        if chance.random() < 0.6:
            following = number(begin + step * (k - 1) if step > 0 else begin)
            lines[-1] = f"Count: {listed(shown[:-1])}. " + recalled(chance, [("The next number", following)])
    return lines


def bigger(chance: Random) -> list[str]:
    """Which number is more, who of three is older or has more, what is heavy."""
    lines = []
    for _ in range(chance.randint(3, 6)):
        which = chance.choice((0, 1, 1, 1, 1, 1))
        if which == 0:
            lines.append(f"Heavy: {article(chance.choice(HEAVY))}. Light: {article(chance.choice(LIGHT))}.")
        elif which == 1:
            less, more = sorted(chance.sample(range(2, 17), 2))
            big, little = number(more), number(less)
            first, second = chance.sample((big, little), 2)
            lines.append(
                chance.choice(
                    (
                        f"{capital(big)} is more than {little}, {little} is fewer.",
                        f"{capital(first)} and {second}: the bigger number is {big}, the smaller number is {little}.",
                        f"{capital(first)} or {second}. More: {big}. Fewer: {little}.",
                    )
                )
            )
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
            lines.append(f"{', '.join(told)}. {number(few)} and {number(many)}: {high} {above}, {low} {below}.")
    return lines
