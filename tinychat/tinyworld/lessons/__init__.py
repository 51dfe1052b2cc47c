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
from tinychat.tinyworld.lessons.kinds import (
    alike,
    bigger,
    copybook,
    counting,
    growing_list,
    in_order,
    kinds,
    opposites,
    portrait,
    rows,
    sums,
    surely,
    tally,
    who_has,
    words_in_a_row,
)

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


def lesson(seed: int, index: int) -> str:
    """One lesson, a pure function of its arguments: lines of text."""
    chance = Random(mix(seed, _LESSON, index))
    return "\n".join(chance.choice(LESSONS)(chance))


def copying_lessons(n_lessons: int) -> int:
    """How many of so many lessons teach copying and come before all else."""
    return n_lessons // 2


def row_lesson(seed: int, index: int) -> str:
    """One lesson of copying, a pure function of its arguments. Read alone at the very beginning, some 250 steps of them
    teach a model to continue what it has seen before; among all else it takes ten times as long."""
    return "\n".join(rows(Random(mix(seed, _ROW, index))))


def lessons(seed: int, n: int) -> Iterator[str]:
    """The lessons 0 to n - 1."""
    for index in range(n):
        yield lesson(seed, index)
