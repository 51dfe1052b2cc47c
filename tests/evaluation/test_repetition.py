"""Repeated words, by hand."""

from __future__ import annotations

import pytest

from tinychat.evaluation.repetition import LONGEST_PHRASE, distinct_2, longest_run


@pytest.mark.parametrize(
    ("replies", "value"),
    [
        (["a b c d"], 1.0),
        (["A b a B"], 2 / 3),  # ab ba ab, and case does not count
        (["a b", "a b"], 0.5),  # replies are alike
        (["你好你好"], 2 / 3),  # characters of scripts without blanks are words
        (["no no no no no"], 1 / 4),
        (["!!!!!"], 1 / 4),
        (["one", ""], None),
        ([], None),
    ],
)
def test_distinct_bigrams_by_hand(replies: list[str], value: float | None) -> None:
    assert distinct_2(replies) == (value if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    ("reply", "length"),
    [
        ("", 0),
        ("the cat sat on the mat", 0),  # twice, not in a row
        ("very very good", 2),
        ("no no no no", 4),
        ("it is it is it is it", 7),  # the last one cut off
        ("it is it", 0),  # said once and a half
        ("I am. I am. You are.", 6),  # marks count
        ("x a b c a b c a b y", 8),
        ("哈哈哈哈", 4),
        ("......", 6),
        ("a a b b b", 3),
    ],
)
def test_the_longest_run_by_hand(reply: str, length: int) -> None:
    assert longest_run(reply) == length


def test_phrases_are_looked_for_up_to_a_length() -> None:
    phrase = [f"w{n}" for n in range(LONGEST_PHRASE)]
    assert longest_run(" ".join(phrase * 2)) == 2 * LONGEST_PHRASE
    assert longest_run(" ".join([*phrase, "w"] * 2)) == 0
