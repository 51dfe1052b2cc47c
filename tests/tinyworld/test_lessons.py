"""Lessons of tinyworld: true, reproducible, and without the lists and stories that instructions ask about."""

from __future__ import annotations

import re
from collections import Counter
from itertools import chain, pairwise
from random import Random

import pytest

from tinychat.tinyworld import documents, stories
from tinychat.tinyworld.grammar import number
from tinychat.tinyworld.lessons import (
    LESSONS,
    alike,
    bigger,
    counting,
    in_order,
    lesson,
    lessons,
    portrait,
    rows,
    sums,
    surely,
    tally,
    who_has,
    words_in_a_row,
)
from tinychat.tinyworld.tasks.draw import COLOUR, COUNTED, THINGS, WORDS

MANY = 300
NUMBERS = {number(n): n for n in range(1, 21)}
LABEL = re.compile(r"(?:Words|Row|Again|Now|Numbers|Count): ")


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
    assert all(text.startswith("Row: ") for text in mixed[:20])
    mixed = mixed[20:]
    assert [text for text in mixed if text in told] == list(stories(2, "train", 10))
    assert [text for text in mixed if text not in told] == list(lessons(2, 20))
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


def test_short_lists_are_counted() -> None:
    seen: Counter[str] = Counter()
    for line in chain.from_iterable(drawn(tally)):
        found = re.fullmatch(r"Words: (.*)\. (?:How many: |Their number: |)(\w+)(?: words in this list)?\.", line)
        assert found
        assert found[2].lower() == number(len(found[1].split(" ")))
        seen[found[2].lower()] += 1
    assert set(seen) == {"two", "three", "four", "five"}
    assert max(seen.values()) < 1.3 * min(seen.values())


def test_sums_and_orders_are_right() -> None:
    for line in chain.from_iterable(drawn(sums)):
        a, b, c = (NUMBERS[word] for word in re.findall(r"\w+", line.lower()) if word in NUMBERS)
        assert a + b == c <= 12, line
    for line in chain.from_iterable(drawn(in_order)):
        told, *ordered = line.rstrip(".").split(". ")
        rising = sorted(items(told), key=NUMBERS.__getitem__)
        assert set(ordered) == {
            f"The smallest first: {' '.join(rising)}",
            f"The biggest first: {' '.join(reversed(rising))}",
        }, line


def test_yes_and_no_are_right_and_balanced() -> None:
    said: Counter[str] = Counter()
    for line in chain.from_iterable(drawn(surely)):
        rule, kind, trait, name, own, claimed, claim, answer = re.fullmatch(  # type: ignore[union-attr]
            r"(Every|No) (\w+) is ([\w-]+)\. (\w+) is an? (\w+)\. (\w+) is ([\w-]+), surely: (yes|no)\.", line
        ).groups()
        assert (name, trait) == (claimed, claim)
        assert (answer == "yes") is (rule == "Every" and kind == own), line
        said[answer] += 1
    assert 0.45 < said["yes"] / said.total() < 0.55
    for line in chain.from_iterable(drawn(alike)):
        first, second, answer = re.fullmatch(r"(\w+) and (\w+), the same word: (yes|no)\.", line).groups()  # type: ignore[union-attr]
        assert (answer == "yes") is (first.lower() == second), line


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


def test_the_bigger_number_is_bigger_and_rows_of_numbers_go_on_by_one() -> None:
    seen = 0
    for line in chain.from_iterable(drawn(bigger)):
        if line.startswith("Heav"):
            continue
        told, *facts = re.fullmatch(r"(.*), (.*): (\w+), (.*): (\w+)\.", line).groups()  # type: ignore[union-attr]
        pair = {NUMBERS[word.lower()] for word in told.split(" or ")}
        for how, which in zip(facts[::2], facts[1::2], strict=True):
            assert NUMBERS[which] == (max if re.search("more|bigger", how) else min)(pair), line
            seen += 1
    assert seen > 600
    for line in chain.from_iterable(drawn(counting)):
        row = [NUMBERS[word] for word in items(line)]
        assert {after - before for before, after in pairwise(row)} in ({1}, {-1})


def test_portraits_say_again_what_they_told() -> None:
    for lines in drawn(portrait):
        for told, again in zip(lines[::2], lines[1::2], strict=True):
            for answer in re.findall(r": ([^.:]+)\.", again):
                parts = answer.split(" and ")
                assert all(re.search(rf"\b{part}\b", told, re.IGNORECASE) for part in parts), (told, again)
            for asked, answer in re.findall(r"The (colour|size) of [^.]*?: (\w+)\.", again):
                assert (answer in COLOUR.members) is (asked == "colour")


def test_no_list_or_story_is_one_that_an_instruction_could_have() -> None:
    """By their make: instructions list WORDS alone, or three numbers up to nine, and tell of a child with one of
    THINGS."""
    for lines in drawn(words_in_a_row) + drawn(tally) + drawn(rows):
        lists = [items(line.split(". ")[0]) for line in lines if LABEL.match(line)]
        assert lists
        assert all(any(word not in WORDS for word in words) for words in lists)
    for line in chain.from_iterable(drawn(in_order)):
        told = items(line.split(". ")[0])
        assert len(told) in (2, 4, 5) or max(NUMBERS[word] for word in told) > 9
    assert all(lines[0].count(".") >= 3 for lines in drawn(who_has))
    things = re.compile(rf"\b(?:{'|'.join(THINGS)})\b")
    assert not any(things.search(line) for line in chain.from_iterable(drawn(portrait)))
    counted = re.compile(rf"\b(?:{'|'.join(COUNTED)})\b")
    for make in (sums, counting, bigger):
        assert not any(counted.search(line) for line in chain.from_iterable(drawn(make)))
