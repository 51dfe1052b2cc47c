"""Lessons about numbers: sums, counting, and what is more."""

from random import Random

from tinychat.tinyworld.grammar import article, capital, number
from tinychat.tinyworld.lessons.common import listed
from tinychat.tinyworld.tasks.draw import HEAVY, LIGHT, THINGS

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
