"""Yes, no, unknown and the letters of choices: what is right, what is wrong, and what would trick a verifier."""

from __future__ import annotations

import pytest

from tinychat.evaluation import answers
from tinychat.evaluation.answers import is_correct

# kind, expected, reply
RIGHT = [
    ("logic", "yes", "Yes"),
    ("logic", "yes", "Yes, Tom is not taller."),
    ("logic", "yes", "yes, there is no milk"),
    ("logic", "yes", "True."),
    ("logic", "yes", "Yes. Yes."),
    ("logic", "yes", "yes " * 5_000),
    ("logic", "yes", "Is Tom tall? Yes."),
    ("logic", "yes", "All cats are animals.\nSo the answer is yes."),
    ("logic", "yes", "<think>No? Yes.</think>Yes"),
    ("logic", "yes", r"\boxed{\text{Yes}}"),
    ("logic", "yes", "**Yes**"),
    ("logic", "yes", "It is not false"),
    ("logic", "True", "yes"),
    ("logic", "是", "是的，他不是老师。"),
    ("logic", "是", "对"),
    ("logic", "yes", "答案是：是"),
    ("logic", "yes", "没错"),
    ("logic", "no", "No, it does not follow."),
    ("logic", "no", "It is not true."),
    ("logic", "no", "Not correct"),
    ("logic", "no", "#### false"),
    ("logic", "不是", "不是"),
    ("logic", "no", "不对，他是学生"),
    ("logic", "no", "不可能"),
    ("logic", "no", "不"),
    ("logic", "no", "否。"),
    ("logic", "unknown", "Unknown."),
    ("logic", "unknown", "It is not certain"),
    ("logic", "unknown", "Not necessarily."),
    ("logic", "unknown", "We cannot know."),
    ("logic", "unknown", "It cannot be determined"),
    ("logic", "unknown", "I don’t know."),
    ("logic", "不一定", "不一定"),
    ("logic", "不一定", "不一定是"),
    ("logic", "unknown", "无法确定。"),
    ("logic", "unknown", "可能"),
    ("choice", "B", "B"),
    ("choice", "B", "b."),
    ("choice", "B", "(B)"),
    ("choice", "B. Paris", "B"),
    ("choice", "B", "B) Paris, because it is a city"),
    ("choice", "B", "The answer is B."),
    ("choice", "B", "The answer is B. The answer is B."),
    ("choice", "B", "答案是B"),
    ("choice", "B", "选B"),
    ("choice", "B", r"\boxed{B}"),
    ("choice", "B", "<think>A or C</think>\nB"),
    ("choice", "B", "A dog is an animal.\nB"),
    ("choice", "B", "B\nIt is a city."),
    ("choice", "A", "A because it is first"),
    ("choice", "AC", "A, C"),
    ("choice", "A and C", "CA"),
    ("regex", r"^(red|blue)$", "blue"),
    ("regex", r"\d{3}", "<think>12</think>It is 123."),
    ("exact", "RED", "<think>red</think> RED"),
    ("word", "red", "It is the first.\n#### Red."),
    ("list", "ant, bee", "<think>Two words.</think>ant and bee"),
]
WRONG = [
    ("logic", "yes", ""),
    ("logic", "yes", "No"),
    ("logic", "yes", "Yes and no"),
    ("logic", "no", "yes and no"),
    ("logic", "no", "Yes. No."),
    ("logic", "yes", "yes no"),
    ("logic", "yes", "yes/no"),
    ("logic", "yes", "Yes or no?"),
    ("logic", "yes", "Is it true that Tom is tall?"),  # the question repeated
    ("logic", "yes", "Yesterday"),
    ("logic", "yes", "<think>Yes"),
    ("logic", "yes", "Tom is tall."),
    ("logic", "yes", "maybe yes, maybe no"),
    ("logic", "yes", "not yes"),
    ("logic", "yes", "not true"),
    ("logic", "yes", "no, " * 5_000 + "yes"),
    ("logic", "blue", "blue"),
    ("logic", "是", "不一定"),
    ("logic", "是", "不一定是"),
    ("logic", "是", "不是"),
    ("logic", "是", "是不是"),
    ("logic", "是", "是也不是"),
    ("logic", "是", "是，不是"),
    ("logic", "是", "是否"),
    ("logic", "是", "对于他来说很难"),
    ("logic", "是", "可能是"),
    ("logic", "不是", "不一定"),
    ("logic", "不是", "没错"),
    ("logic", "不一定", "一定"),
    ("logic", "不一定", "不是"),
    ("choice", "B", ""),
    ("choice", "B", "A"),
    ("choice", "B", "A or B"),
    ("choice", "B", "both A and B"),
    ("choice", "B", "The answer is A. The answer is B."),
    ("choice", "C", "A. red\nB. blue\nC. green"),  # the question repeated
    ("choice", "B", "Is it B?"),
    ("choice", "A", "A dog"),
    ("choice", "I", "I think so"),
    ("choice", "B", "Bob"),
    ("choice", "B", "ABCD"),
    ("choice", "AC", "A"),
    ("choice", "B", "B" * 10_000),
    ("choice", "blue", "blue"),
    ("regex", r"^(red|blue)$", "green"),
    ("regex", r"^(red|blue)$", ""),
    ("regex", r"(a|aa)+$", "a" * 200 + "b"),  # backtracks for ever
    ("regex", r"^(x+x+)+y$", "x" * 10_000),
    ("exact", "RED", "<think>RED"),
]


@pytest.mark.parametrize(("kind", "expected", "reply"), RIGHT)
def test_replies_that_are_right(kind: str, expected: str, reply: str) -> None:
    assert is_correct(kind, reply, expected)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "PATTERN_SECONDS", 0.05)


@pytest.mark.parametrize(("kind", "expected", "reply"), WRONG)
def test_replies_that_are_wrong(kind: str, expected: str, reply: str) -> None:
    assert not is_correct(kind, reply, expected)
