"""Tasks in Chinese, of the skills that a small model learns first: sums, comparing, and lists counted, picked from,
turned around and sorted. Numbers go up to 十二; lists have blanks between their words, as the English ones."""

from collections.abc import Callable
from functools import partial

from tinychat.tinyworld.grammar import Slots
from tinychat.tinyworld.lexicon.chinese import DIGITS, NAMES, PAIRS, THINGS, WORDS
from tinychat.tinyworld.tasks.draw import Draft, Draw, Recipe, Teller, listed, one, wordings

_TOGETHER = wordings(
    "{who}问：{a}个{things}加{b}个{things}是几个？",
    "{who}有{a}个{things}，又得到{b}个。现在有几个{things}？",
    "{who}找到{a}个{things}，弟弟找到{b}个，一共几个？",
    "{who}把{a}个{things}和{b}个{things}放在一起。有几个？",
    "{who}问：{a}个{things}和{b}个{things}是几个？",
)
_BIGGER = wordings(
    "{who}数{things}：{a}和{b}，哪个{more}？",
    "{a}个{things}和{b}个{things}，哪个数{more}？{who}想知道。",
    "{who}问：{a}和{b}个{things}，哪个{more}？",
    "说出更{more}的数：{who}有{a}个{things}，妹妹有{b}个。",
    "左边{a}个{things}，右边{b}个。{who}要{more}的数。",
)
_COUNT = wordings(
    "{who}问：下面有几个词？{material}。",
    "数一数这些词：{material}。{who}在听。",
    "{material}。{who}说了几个词？",
    "请帮{who}数词：{material}。",
    "{who}的词：{material}。一共几个？",
    "{who}问：这里有几个词？",
)
_PICK = wordings(
    "{who}问：下面第{n}个词是什么？{material}。",
    "说出第{n}个词：{material}。{who}在听。",
    "{material}。{who}说的第{n}个词是什么？",
    "请告诉{who}第{n}个词：{material}。",
    "{who}的词：{material}。第{n}个呢？",
    "{who}问：第{n}个词是什么？",
)
_TURN = wordings(
    "把这些词倒过来：{material}。{who}在听。",
    "{who}说：请倒着念{material}。",
    "请帮{who}倒过来写：{material}。",
    "{material}。{who}要从后往前念。",
    "{who}的词：{material}。倒过来呢？",
    "{who}说：请把这些词倒过来。",
)
_SORT = wordings(
    "{who}说：请{order}排列{material}。",
    "{order}排好这些数：{material}。{who}在听。",
    "请帮{who}{order}写：{material}。",
    "{material}。{who}要{order}念。",
    "{who}的数：{material}。{order}呢？",
    "{who}说：请{order}排列这些数。",
)


def _somebody(tell: Teller, **slots: str) -> Slots:
    return tell.plain(who=tell.dressing.pick(NAMES), **slots)


def add(core: Draw, tell: Teller) -> Draft:
    """Core: two numbers from 2 to 9 with a sum up to 12, whichever comes first, what is counted, and who asks."""
    a, b = core.pick(PAIRS)
    first, second = (a, b) if tell.uniform() < 0.5 else (b, a)
    slots = tell.plain(things=core.pick(THINGS), who=core.pick(NAMES), a=DIGITS[first], b=DIGITS[second])
    return one("word", tell.ask(_TOGETHER, slots, DIGITS[a + b]))


def compare(core: Draw, tell: Teller) -> Draft:
    """Core: two different numbers from 2 to 12, whichever comes first, what is counted, and bigger or smaller."""
    pair, bigger = [2 + n for n in core.subset(11, 2)], core.flip()
    reply = DIGITS[pair[1 if bigger else 0]]
    things = core.pick(THINGS)
    if tell.uniform() < 0.5:
        pair.reverse()
    slots = _somebody(tell, things=things, more="大" if bigger else "小", a=DIGITS[pair[0]], b=DIGITS[pair[1]])
    return one("word", tell.ask(_BIGGER, slots, reply))


def count(core: Draw, tell: Teller, length: int) -> Draft:
    """Core: the words in their order."""
    words = listed(core.sample(WORDS, length))
    return one("word", tell.ask(_COUNT, _somebody(tell), DIGITS[length], words))


def pick(core: Draw, tell: Teller, length: int) -> Draft:
    """Core: the words in their order, and which one."""
    words, n = core.sample(WORDS, length), core.below(length)
    return one("word", tell.ask(_PICK, _somebody(tell, n=DIGITS[n + 1]), words[n], listed(words)))


def turn_around(core: Draw, tell: Teller, length: int) -> Draft:
    """Core: the words in their order."""
    words = core.sample(WORDS, length)
    return one("list", tell.ask(_TURN, _somebody(tell), listed(words[::-1]), listed(words)))


def sort(core: Draw, tell: Teller) -> Draft:
    """Core: three different numbers from 1 to 9 in their order, and which comes first."""
    numbers, rising = core.sample(range(1, 10), 3), core.flip()
    slots = _somebody(tell, order="从小到大" if rising else "从大到小")
    reply = [DIGITS[n] for n in sorted(numbers, reverse=not rising)]
    return one("list", tell.ask(_SORT, slots, listed(reply), listed([DIGITS[n] for n in numbers])))


def _of_lengths(make: Callable[..., Draft], *lengths: int) -> tuple[Recipe, ...]:
    return tuple(Recipe(partial(make, length=length)) for length in lengths)


FAMILIES = {
    "加法": (Recipe(add),),
    "比较": (Recipe(compare),),
    "数数": _of_lengths(count, 2, 3, 4, 5),
    "挑选": _of_lengths(pick, 3, 4),
    "倒转": _of_lengths(turn_around, 2, 3),
    "排序": (Recipe(sort),),
}
