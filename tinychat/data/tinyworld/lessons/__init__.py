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
from tinychat.data.tinyworld.lessons.facts import deeds, owners, places, surely, who_has
from tinychat.data.tinyworld.lessons.lists import (
    by_kind,
    copybook,
    growing_list,
    in_order,
    kinds,
    odd_ones,
    opposites,
    words_in_a_row,
)
from tinychat.data.tinyworld.lessons.numbers import bigger, counting, sums

_LESSON = 0x1E55  # sets the lessons' random numbers apart from the stories'

# Those that a model is slow to learn come more often.
LESSONS: tuple[Callable[[Random], list[str]], ...] = (
    *[growing_list] * 2,
    *[words_in_a_row] * 4,
    *[odd_ones] * 1,
    *[by_kind] * 2,
    *[kinds] * 1,
    *[in_order] * 3,
    *[sums] * 3,
    *[counting] * 2,
    *[bigger] * 2,
    *[opposites] * 1,
    *[owners] * 4,
    *[who_has] * 3,
    *[places] * 2,
    *[deeds] * 2,
    *[copybook] * 2,
    *[surely] * 1,
)


def lesson(seed: int, index: int) -> str:
    """One lesson, a pure function of its arguments: lines of text."""
    chance = Random(mix(seed, _LESSON, index))
    return "\n".join(chance.choice(LESSONS)(chance))


def lessons(seed: int, n: int) -> Iterator[str]:
    """The lessons 0 to n - 1."""
    for index in range(n):
        yield lesson(seed, index)
