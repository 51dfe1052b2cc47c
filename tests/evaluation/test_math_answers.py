"""Numbers that replies state, right and wrong, and replies that would trick a verifier; thoughts told from answers."""

from __future__ import annotations

import pytest

from tinychat.evaluation import math_answers
from tinychat.evaluation.answers import is_correct
from tinychat.evaluation.final_answer import Parts, split_reply, stated
from tinychat.evaluation.math_answers import is_number

NESTED = r"\frac{1}{" * 300 + "1" + "}" * 300
# expected, reply
RIGHT = [
    ("4", "4"),
    ("4", "The answer is 4."),
    ("4", "The answer is 4. So the answer is 4."),  # stated twice
    ("4", "What is 1 + 3? It is 4"),  # the question repeated, then answered
    ("0", "0"),
    ("-3", "x = -3"),
    ("-7", "minus seven"),
    ("7", "So there are seven."),
    ("21", "twenty-one"),
    ("205", "two hundred and five"),
    ("7", "Tom has 3. He gets 4.\n7"),
    ("18", "9 * 2 = $18"),
    ("18", "$18.00"),
    ("18", "She makes $18 every day"),
    ("1,000", "1000"),
    ("1000", "1,000 marbles"),
    ("5", "**5**"),
    ("72", "bla 5\n#### 72"),
    ("She has 60 + 12 = <<60+12=72>>72 clips.\n#### 72", "#### 72"),
    ("70000", "#### 70,000"),
    ("1/2", "0.5"),
    ("1/2", r"\boxed{\frac{1}{2}}"),
    ("1/2", "2/4"),
    ("3.5", "3 1/2"),
    ("3.5", r"$3\frac{1}{2}$"),
    ("1/3", "0.333333"),
    (r"\frac{1}{6}", r"\boxed{\dfrac{\frac{1}{2}}{3}}"),
    ("0.5", ".5"),
    ("50%", "0.5"),
    ("0.5", "50 %"),
    ("50", "50%"),
    ("12.5%", "12.5 percent"),
    ("100000", "1e5"),
    ("100000", r"1\times 10^{5}"),
    ("10^5", "100000"),
    ("5 m^2", "The area is 5 m^2"),
    ("0.333333", "1/3"),
    ("2 km", "2000 m"),
    ("2 km", "2"),
    ("0.5 dollars", "50 cents"),
    ("90 minutes", "1.5 hours"),
    ("18", "<think>maybe 5</think>\n18"),
    ("18", "<think>5</think><answer>18</answer>"),
    ("12", "一共十二个"),
    ("105", "答案是一百零五。"),
    ("0.05", "百分之五"),
    ("1/2", "二分之一"),
    ("30000", "3万"),
    ("2026", "二〇二六"),
    ("3.5", "三点五元"),
    ("-5", "负五"),
    ("10", "十分钟"),
    ("9" * 300, "9" * 300),
]
WRONG = [
    ("5", "6"),
    ("7", "-7"),
    ("4", ""),
    ("4", "   \n"),
    ("4", "many"),
    ("7", "7 or 8"),
    ("8", "7 or 8"),
    ("6", "5或6"),
    ("8", "The answer is 7. The answer is 8."),
    ("18", "#### 17\n#### 18"),
    ("18", "<answer>17</answer><answer>18</answer>"),
    ("3", r"\boxed{3} or \boxed{4}"),
    ("4", r"\boxed{3} or \boxed{4}"),
    ("4", "What is 3 + 4?"),  # the question repeated
    ("4", "3 + 4"),
    ("-4", "3 - 4"),
    ("4", r"\boxed{3+4}"),
    ("5", "The answer is not 5"),
    ("5", "答案不是5"),
    ("5", "<think>5"),  # the thought never ends
    ("1/3", "0.33"),
    ("2520000", "2520001"),
    ("10^5", "10"),
    ("2x", "2"),
    ("2", "2x"),
    ("1", "x + 1"),
    ("2", r"\sqrt{2}"),
    ("2", r"2\pi"),
    ("3", "3.0001"),
    ("2 km", "2 m"),
    ("2 kg", "2 m"),
    ("2", "m2"),
    ("3", "m^3"),
    ("2", "1e999"),
    ("1", "1e-999"),
    ("1", "9" * 10_000),
    ("1", "1" * 10_000),
    ("1", "1 " * 5_000 + "or 2"),
    ("1", NESTED),
    ("0", r"\frac{1}{0}"),
    ("0", "1/0"),
    ("10", "十分"),
    ("1", "一些"),
    ("4", r"\boxed{" * 3_000 + "4"),
]


@pytest.mark.parametrize(("expected", "reply"), RIGHT)
def test_numbers_that_are_right(expected: str, reply: str) -> None:
    assert is_correct("math", reply, expected)


@pytest.mark.parametrize(("expected", "reply"), WRONG)
def test_numbers_that_are_wrong(expected: str, reply: str) -> None:
    assert not is_correct("math", reply, expected)


def test_what_is_one_number() -> None:
    assert all(map(is_number, ("7", "three", "1/2", "50 %", "So 3 + 4 = 7.\n#### 7", "二分之一")))
    assert not any(
        map(is_number, ("", "x + 1", "2x", "2a", r"\sqrt{2}", "x^2", "2^3", r"2\pi", "3 and 4", "blue", "3 or 4"))
    )


@pytest.mark.parametrize(
    ("reply", "parts"),
    [
        ("7", Parts("", "7")),
        ("Three and four.\nThat is 7.\n7\n", Parts("Three and four.\nThat is 7.", "7")),
        ("<think>\nHm.\n</think>\n7", Parts("Hm.", "7")),
        ("<think>Hm.</think> So\n<answer> 7 </answer>", Parts("Hm.\nSo", "7")),
        ("Hm.</think>7", Parts("Hm.", "7")),  # the template began the thought
        ("3 + 4 = 7\n#### 7", Parts("3 + 4 = 7", "7")),
        ("<think>3 + 4", Parts("3 + 4", "")),
        ("", Parts("", "")),
    ],
)
def test_a_thought_is_told_from_the_answer(reply: str, parts: Parts) -> None:
    assert split_reply(reply) == parts
    assert split_reply("ant\nbee", by_line=False) == Parts("", "ant\nbee")


def test_what_is_stated() -> None:
    assert stated("The answer is 4. No wait, answer: 5.") == (["4.", "5."], True)
    assert stated(r"\boxed{\frac{1}{2}}") == ([r"\frac{1}{2}"], True)
    assert stated("4?\nIs it 4?") == ([], False)
    assert stated("It is 3.\nIt is 4. Good.") == (["It is 4. Good."], False)


EXPRESSIONS = [
    (r"\sqrt{2}", r"\boxed{\sqrt{2}}", True),
    (r"\sqrt{2}", "The answer is $2^{1/2}$.", True),
    ("x + 1", "1+x", True),
    ("(1, 2)", "(1,2)", True),
    ("x + 1", "x + 2", False),
    (r"\sqrt{2}", "1.5", False),
    ("x + 1", "", False),
    ("x + 1", r"\boxed{x+1} or \boxed{x+2}", False),
    ("x + 1", "9^{9^{9^{9}}}", False),  # for ever
]


@pytest.mark.slow
def test_expressions_are_compared_by_math_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("math_verify")
    monkeypatch.setattr(math_answers, "EXPRESSION_SECONDS", 3.0)
    assert [is_correct("math", reply, expected) for expected, reply, _ in EXPRESSIONS] == [
        right for *_, right in EXPRESSIONS
    ]
    assert math_answers.serves("x + 1")
    assert not math_answers.serves("")


def test_without_math_verify_expressions_are_compared_letter_by_letter_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(math_answers, "has_math_verify", lambda: False)
    assert is_correct("math", r"\boxed{x+1}", "x + 1")
    assert not is_correct("math", "1 + x", "x + 1")
    assert "[math]' compares expressions" in caplog.text
    assert math_answers.serves("7")
    assert not math_answers.serves("x + 1")
