"""Lessons of tinyworld: true, reproducible, and without the lists and stories that instructions ask about."""

from __future__ import annotations

import re
from collections import Counter
from itertools import chain, pairwise
from random import Random

import pytest

from tinychat.data.tinyworld import documents, stories
from tinychat.data.tinyworld.grammar import number
from tinychat.data.tinyworld.lessons import LESSONS, lesson, lessons
from tinychat.data.tinyworld.lessons.facts import portrait, who_has
from tinychat.data.tinyworld.lessons.lists import by_kind, in_order, odd_ones, rows, words_in_a_row
from tinychat.data.tinyworld.lessons.numbers import bigger, counting, sums
from tinychat.data.tinyworld.tasks.words import COLOUR, COUNTED, KINDS, SIZES, THINGS, WORDS

MANY = 300
NUMBERS = {number(n): n for n in range(1, 21)}
LABEL = re.compile(r"(?:Words|Row|Again|Now|Here|Count): ")


def drawn(make: object) -> list[list[str]]:
    return [make(Random(seed)) for seed in range(MANY)]  # type: ignore[operator]


def items(text: str) -> list[str]:
    """The words of a list, without its label."""
    return LABEL.sub("", text).rstrip(".").split(" ")


def test_a_lesson_depends_on_nothing_but_its_numbers() -> None:
    forwards = list(lessons(3, 200))
    assert [lesson(3, index) for index in reversed(range(200))] == forwards[::-1]
    assert forwards != list(lessons(4, 200))
    assert len(set(forwards)) > 150


def test_documents_are_rows_and_then_the_stories_in_order_with_lessons_between() -> None:
    told = set(stories(2, "train", 10))
    mixed = list(documents(2, "train", 10, 40))
    assert all(text.startswith("Row: ") for text in mixed[:16])
    mixed = mixed[16:]
    assert [text for text in mixed if text in told] == list(stories(2, "train", 10))
    assert [text for text in mixed if text not in told] == list(lessons(2, 24))
    assert max(len(run) for run in "".join("s" if text in told else "l" for text in mixed).split("s")) <= 3
    assert list(documents(2, "train", 5, 0)) == list(stories(2, "train", 5))


@pytest.mark.parametrize("make", dict.fromkeys(LESSONS), ids=lambda make: make.__name__)
def test_every_lesson_is_lines_of_words(make: object) -> None:
    for lines in drawn(make):
        assert lines
        for line in lines:
            assert re.fullmatch(r"[A-Za-z\"(][^\n{}\[\]|]*", line), line
            assert "  " not in line


def test_lists_are_turned_around_counted_and_picked_from_truly() -> None:
    seen: Counter[str] = Counter()
    for first, *rest in drawn(words_in_a_row):
        words = items(first)
        for line in rest:
            seen[line.split()[0]] += 1
            if line.startswith("Backwards: "):
                assert items(line.removeprefix("Backwards: ")) == words[::-1]
            elif line.startswith("That makes "):
                assert line == f"That makes {number(len(words))} words."
            elif found := re.fullmatch(r"(After|Before) (\S+) (?:comes|stands) (\S+)\.", line):
                step = 1 if found[1] == "After" else -1
                assert words[words.index(found[2]) + step] == found[3]
            elif line.startswith("Once more: "):
                assert items(line.removeprefix("Once more: ")) == words
            elif line.startswith("The last is "):
                assert line == f"The last is {words[-1]}, the first is {words[0]}."
    assert min(seen[word] for word in ("Backwards:", "That", "After", "Before", "Once", "The")) > 50


def test_kinds_are_kept_in_their_order() -> None:
    kinds = {kind.plural: kind.members for kind in KINDS}
    for lines in drawn(by_kind) + drawn(words_in_a_row):
        words: list[str] = []
        for line in lines:
            found = re.fullmatch(r"The (\w+): (.*)\. (\w+) in all\.", line)
            if found is None:
                words = items(line) if LABEL.match(line) else words
            elif found[1] in kinds:
                mine = [word for word in words if word in kinds[found[1]]]
                assert (items(found[2]), found[3].lower()) == (mine, number(len(mine)))


def test_sums_and_orders_are_right() -> None:
    for line in chain.from_iterable(drawn(sums)):
        more = re.fullmatch(r"(\w+)(?: \w+)? and (\w+) more make (\w+)\.", line)
        less = re.fullmatch(r"(\w+)(?: \w+)? without (\w+): (\w+) left\.", line)
        a, b, c = (NUMBERS[word.lower()] for word in (more or less).groups())  # type: ignore[union-attr]
        assert c == (a + b if more else a - b), line
    for line in chain.from_iterable(drawn(in_order)):
        told, how, ordered = re.fullmatch(r"Here: (.*)\. (.*): (.*)\.", line).groups()  # type: ignore[union-attr]
        if told.split(" ")[0] in NUMBERS:
            expected = sorted(items(told), key=NUMBERS.__getitem__)
        elif how.startswith("By the alphabet"):
            expected = sorted(items(told))
        else:
            sized = [re.fullmatch(r"an? (\w+) (.+)", item).groups() for item in told.split(", ")]  # type: ignore[union-attr]
            expected = [thing for _, thing in sorted(sized, key=lambda pair: SIZES.index(pair[0]))]
        assert items(ordered) == (expected[::-1] if how == "From big to small" else expected), line


def test_who_has_what_is_answered_from_the_first_line() -> None:
    for first, *rest in drawn(who_has):
        owned = {thing: name for name, thing in re.findall(r"(\w+) has the (\w+)\.", first)}
        assert len(rest) == len(owned)
        for line in rest:
            if asked := re.fullmatch(r"Who has the (\w+)\? (\w+)\.", line):
                assert owned[asked[1]] == asked[2]
            else:
                name, thing = re.fullmatch(r"What does (\w+) have\? The (\w+)\.", line).groups()  # type: ignore[union-attr]
                assert owned[thing] == name


def test_rows_are_copied() -> None:
    for first, *rest in drawn(rows):
        assert first.startswith("Row: ")
        assert rest
        assert all(line == "Again: " + first.removeprefix("Row: ") for line in rest)


def test_the_bigger_number_is_bigger_and_rows_of_numbers_go_on_evenly() -> None:
    seen = 0
    for line in chain.from_iterable(drawn(bigger)):
        found = re.search(r"bigger number is (\w+), the smaller number is (\w+)|More: (\w+)\. Fewer: (\w+)", line)
        if found:
            big, little = (NUMBERS[word] for word in found.groups() if word)
            seen += 1
            assert big > little
            assert {big, little} == {
                NUMBERS[word.lower()] for word in re.split(r"\W+", line) if word.lower() in NUMBERS
            }
    assert seen > 300
    for line in chain.from_iterable(drawn(counting)):
        if line.startswith("Count: "):
            row = [NUMBERS[word] for word in items(line.split(".")[0])]
            if asked := re.search(r"next number.*: (\w+)\.$", line):
                row.append(NUMBERS[asked[1]])
            assert len({after - before for before, after in pairwise(row)}) == 1


def test_portraits_say_again_what_they_told() -> None:
    for lines in drawn(portrait):
        for told, again in zip(lines[::2], lines[1::2], strict=True):
            for answer in re.findall(r": ([^.:]+)\.", again):
                parts = answer.split(" and ")
                assert all(re.search(rf"\b{part}\b", told, re.IGNORECASE) for part in parts), (told, again)
            for asked, answer in re.findall(r"The (colour|size) of [^.]*?: (\w+)\.", again):
                assert (answer in COLOUR.members) is (asked == "colour")


def test_no_list_or_story_is_one_that_an_instruction_could_have() -> None:
    """By their make: instructions list WORDS alone, or three numbers, and tell of a child with one of THINGS."""
    for lines in drawn(words_in_a_row) + drawn(by_kind) + drawn(rows):
        lists = [items(line) for line in lines if LABEL.match(line)]
        assert lists
        assert all(any(word not in WORDS for word in words) for words in lists)
    assert all(len(items(line.split(". ")[0])) == 5 for line in chain.from_iterable(drawn(odd_ones)))
    for line in chain.from_iterable(drawn(in_order)):
        told = line.split(". ")[0].removeprefix("Here: ")
        assert len(told.split(", ") if ", " in told else told.split(" ")) in (2, 4)
    assert all(lines[0].count(".") >= 3 for lines in drawn(who_has))
    things = re.compile(rf"\b(?:{'|'.join(THINGS)})\b")
    assert not any(things.search(line) for line in chain.from_iterable(drawn(portrait)))
    counted = re.compile(rf"\b(?:{'|'.join(COUNTED)})\b")
    for make in (sums, counting, bigger):
        assert not any(counted.search(line) for line in chain.from_iterable(drawn(make)))
