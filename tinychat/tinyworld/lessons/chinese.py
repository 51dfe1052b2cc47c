"""Lessons in Chinese: lists said again, turned around, counted, picked from and sorted, and sums. As in the English
ones their lists are of a make that no task has: a number stands among the words, and there are four numbers to sort."""

from collections.abc import Callable
from random import Random

from tinychat.tinyworld.lexicon.chinese import DIGITS, NAMES, PAIRS, THINGS, WORDS


def copies(chance: Random) -> str:
    """Rows of words, each said again at once: what copying is learnt from."""
    return "\n".join(f"{_row(row)}\n{_row(row)}" for row in (_mixed(chance, 8) for _ in range(4)))


def _row(words: list[str]) -> str:
    return " ".join(words)


def _mixed(chance: Random, most: int) -> list[str]:
    words = chance.sample(WORDS, chance.randint(2, most))
    words.insert(chance.randint(0, len(words)), chance.choice(DIGITS[1:10]))
    return words


def _turned(chance: Random) -> str:
    words = _mixed(chance, 3)
    return f"{_row(words)}。倒过来：{_row(words[::-1])}。"


def _counted(chance: Random) -> str:
    words = _mixed(chance, 4)
    return f"{_row(words)}。一共{DIGITS[len(words)]}个词。"


def _picked(chance: Random) -> str:
    words = _mixed(chance, 4)
    order = chance.sample(range(len(words)), min(3, len(words)))
    return f"{_row(words)}。" + "".join(f"第{DIGITS[n + 1]}个词：{words[n]}。" for n in order)


def _sorted(chance: Random) -> str:
    numbers = chance.sample(range(1, 10), 4)
    falling = chance.random() < 0.5
    way = "从大到小" if falling else "从小到大"
    names = [[DIGITS[n] for n in row] for row in (numbers, sorted(numbers, reverse=falling))]
    return f"{_row(names[0])}。{way}：{_row(names[1])}。"


def _sum(chance: Random) -> str:
    a, b = chance.sample(chance.choice(PAIRS), 2)
    things, who = chance.choice(THINGS), chance.choice(NAMES)
    first, second, both = DIGITS[a], DIGITS[b], DIGITS[a + b]
    return chance.choice(
        (
            f"{first}加{second}等于{both}。",
            f"{first}个{things}和{second}个{things}是{both}个{things}。",
            f"{who}有{first}个{things}，又得到{second}个，现在有{both}个。",
        )
    )


def _bigger(chance: Random) -> str:
    a, b = chance.sample(range(2, 13), 2)
    return f"{DIGITS[a]}和{DIGITS[b]}：大的是{DIGITS[max(a, b)]}，小的是{DIGITS[min(a, b)]}。"


_LINES: tuple[Callable[[Random], str], ...] = (_turned, _counted, _picked, _sorted, _sum, _bigger)


def lesson(chance: Random) -> str:
    """Lines of one sort or of copies."""
    if chance.random() < 1 / 6:
        return copies(chance)
    line = chance.choice(_LINES)
    return "\n".join(line(chance) for _ in range(chance.randint(4, 7)))
