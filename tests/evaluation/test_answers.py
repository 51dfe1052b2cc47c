"""Answers judged by hand, and ROUGE-L against the textbook's table."""

from __future__ import annotations

import random
from decimal import Decimal

import pytest

from tinychat.errors import UserError
from tinychat.evaluation.answers import (
    common_subsequence,
    credit,
    is_correct,
    last_number,
    list_items,
    normalise,
    rouge_l,
    words,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Red.\n", "red"),
        ("“The  RED\tball!”", "the red ball"),
        ("**blue**", "blue"),
        ("(green)", "green"),
        ("\uff32\uff45\uff44\u3002", "red"),  # full-width letters and full stop
        ("don't", "don't"),
        ("-5", "-5"),
        ("- five", "five"),
        ("50%", "50%"),
        ("#1", "#1"),
        ("Straße", "strasse"),
        ("...", ""),
        ("", ""),
        ("「红色」。", "红色"),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_exact_is_to_the_letter_but_for_blanks() -> None:
    assert is_correct("exact", " (RED)\n ball ", "(RED) ball")
    assert not is_correct("exact", "(red) ball", "(RED) ball")
    assert not is_correct("exact", "RED ball", "(RED) ball")


def test_a_word_keeps_articles_and_order() -> None:
    kind = "word"
    assert is_correct(kind, " the Red ball. ", "The red ball")
    assert not is_correct(kind, "red ball", "the red ball")
    assert not is_correct(kind, "ball the red", "the red ball")
    assert not is_correct(kind, "", "red")
    assert not is_correct(kind, "It is red.", "red"), "the answer is asked for, not a text that holds it"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The answer is 12.", "12"),
        ("3 + 4 = 7", "7"),
        ("7", "7"),
        ("-7", "-7"),
        ("\u22127", "-7"),  # the sign called minus
        ("10-4", "4"),
        ("(3)-4", "4"),
        ("x=-3", "-3"),
        ("5 - 3", "3"),
        ("+8", "8"),
        ("1,234 apples", "1234"),
        ("12,345,678", "12345678"),
        ("1,2,3", "3"),
        ("1,2345", "2345"),
        ("3.50", "3.5"),
        ("0.5.", "0.5"),
        ("$1,250.75!", "1250.75"),
        ("seven", "7"),
        ("Seventeen", "17"),
        ("twenty-one", "21"),
        ("ninety nine", "99"),
        ("minus five", "-5"),
        ("negative twelve", "-12"),
        ("She had 5 and now has three.", "3"),
        ("four 2", "2"),
        ("zero", "0"),
        ("forty", "40"),
        ("我有5个苹果", "5"),
        ("\uff11\uff12", "12"),  # full-width digits
        ("often someone weighs a tent", None),
        ("seventyish", None),
        ("b2", None),
        ("none", None),
        ("", None),
    ],
)
def test_last_number(text: str, value: str | None) -> None:
    assert last_number(text) == (None if value is None else Decimal(value))


def test_numbers_are_compared_by_value() -> None:
    assert is_correct("number", "So there are seven.", "7")
    assert is_correct("number", "7.0", "7")
    assert is_correct("number", "1,000", "1000")
    assert not is_correct("number", "-7", "7")
    assert not is_correct("number", "7 or 8", "7")
    assert not is_correct("number", "many", "7")
    assert not is_correct("number", "many", "some"), "no number is no agreement"


def test_yes_and_no_are_the_first_word() -> None:
    assert is_correct("yes_no", "Yes, Tom is taller.", "yes")
    assert is_correct("yes_no", '"no"', "No.")
    assert not is_correct("yes_no", "No, yes", "yes")
    assert not is_correct("yes_no", "Yesterday", "yes")
    assert not is_correct("yes_no", "I think yes", "yes")
    assert not is_correct("yes_no", "", "no")


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("ant, bee, cat", ["ant", "bee", "cat"]),
        ("Ant, bee, and cat.", ["ant", "bee", "cat"]),
        ("ant and bee and cat", ["ant", "bee", "cat"]),
        ("ant; bee\ncat", ["ant", "bee", "cat"]),
        ("1. ant\n2. bee\n3) cat", ["ant", "bee", "cat"]),
        ("- ant\n- bee", ["ant", "bee"]),
        ("sand, band", ["sand", "band"]),
        ("the red hat, a cup", ["the red hat", "a cup"]),
        ("苹果、梨，桃", ["苹果", "梨", "桃"]),
        ("3, 1, 2", ["3", "1", "2"]),
        ("", []),
    ],
)
def test_list_items(text: str, items: list[str]) -> None:
    assert list_items(text) == items


def test_lists_have_an_order() -> None:
    assert is_correct("list", "ant\nbee and cat", "ant, bee, cat")
    assert not is_correct("list", "bee, ant, cat", "ant, bee, cat")
    assert not is_correct("list", "ant, bee", "ant, bee, cat")
    assert not is_correct("list", "ant, bee, cat, dog", "ant, bee, cat")


@pytest.mark.parametrize("kind", ["", "essay"])
def test_other_kinds_are_refused(kind: str) -> None:
    with pytest.raises(UserError, match="no such kind of answer; there are exact, number, word"):
        is_correct(kind, "a", "a")


# ------------------------------------------------------------------------------------------------------- ROUGE-L


def test_rouge_by_hand() -> None:
    # Lin 2004, section 3: "police killed the gunman" against two summaries; subsequences of 3 and of 2 words.
    reference = "police killed the gunman"
    assert rouge_l("police kill the gunman", reference) == pytest.approx(3 / 4)
    assert rouge_l("the gunman kill police", reference) == pytest.approx(2 / 4)
    # 2 common words, of 2 and of 4: precision 1, recall 1/2.
    assert rouge_l("Police, GUNMAN!", reference) == pytest.approx(2 / 3)
    assert rouge_l(reference, reference) == 1
    assert rouge_l("", reference) == rouge_l(reference, "?!") == rouge_l("", "") == 0


def test_chinese_japanese_and_korean_count_by_characters() -> None:
    assert words("我有3个GPU！") == ["我", "有", "3", "个", "gpu"]
    assert words("ひらカナ 한국") == ["ひ", "ら", "カ", "ナ", "한", "국"]
    assert words("don't stop_now é") == ["don", "t", "stop", "now", "é"]
    assert rouge_l("我爱你", "我也爱你") == pytest.approx(2 * 3 / 7)


def test_common_subsequence_is_the_textbooks() -> None:
    chance = random.Random(1)
    for _ in range(200):
        first, second = ([chance.choice("abcd") for _ in range(chance.randrange(80))] for _ in range(2))
        table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
        for i, a in enumerate(first):
            for j, b in enumerate(second):
                table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
        assert common_subsequence(first, second) == table[-1][-1]


@pytest.mark.parametrize(
    ("reply", "expected", "right"),
    [
        ("Positive", "positive.", True),
        ("**Positive**", "Positive", True),
        ("The sentiment of the sentence is positive.", "Positive", True),
        ("Answer: Positive", "positive", True),
        ("The answer is:\n\nPositive\n\nIt sounds glad.", "positive", True),
        ("It can be classified as a declarative sentence.", "Declarative.", True),
        ("Opinion, because it says what somebody thinks.", "opinion", True),
        ("The capital of France is Paris. It lies on the Seine.", "Paris", True),
        ("A novel.", "Novel", True),
        ("The sentiment is not positive.", "Positive", False),
        ("Positive or negative.", "Positive", False),
        ("The sentiment is positive or negative.", "negative", False),
        ("It is negative. It is not positive", "positive", False),
        ("", "positive", False),
        ("I think that the word positive is nice.", "positive", False),
    ],
)
def test_what_is_stated_is_the_end_of_a_first_sentence_that_says_so(reply: str, expected: str, right: bool) -> None:
    assert is_correct("stated", reply, expected) is right


@pytest.mark.parametrize(
    ("reply", "expected", "share"),
    [
        ("big, red", "red and big", 1.0),
        ("The adjectives are:\n1. Red\n2. Big", "The adjectives used are red and big.", 1.0),
        ("red", "red and big", 0.5),
        ("red, big, old, new", "red, big", 0.5),
        ("", "red", 0.0),
    ],
)
def test_items_in_any_order(reply: str, expected: str, share: float) -> None:
    assert credit("set", reply, expected) == share
