"""Which rows of Alpaca can be checked, and how."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from tests.data.chats.test_sources import config
from tinychat.data.chats.checkable import ANSWERS, kind_of
from tinychat.data.chats.sources import chat_source
from tinychat.evaluation.answers import CHECKS


@pytest.mark.parametrize(
    ("instruction", "given", "reference", "kind"),
    [
        ("Is the sentence below correct? Output yes or no.", "I goes home.", "No", "yes_no"),
        ("Determine if 7 is a prime number.", "", "Yes, 7 is a prime number.", "yes_no"),
        ("Write an uplifting sentence that is true.", "", "No night lasts for ever.", None),
        ("Classify the animal as a mammal or a bird.", "Whale", "Mammal.", "classification"),
        ("Classify the animals as mammals or birds.", "Whale, crow", "Mammal, bird", None),
        ("Classify the animal by its habitat.", "Whale", "Sea", None),  # the labels are not said
        ("Categorize the country: Peru", "Peru", "Peru", None),
        ("Build a classifier that tells either spam or ham.", "", "Spam", None),
        ("Calculate 12 * (3 + 4).", "", "84", "arithmetic"),
        ("Find the average of the numbers.", "2, 4, 9", "The average is 5.", "arithmetic"),
        ("Calculate the area of a circle with radius 3 and height 2.", "", "28.27", None),  # rounded
        ("Generate a number between 1 and 10.", "", "7", None),
        ("Divide 10 by 4 and by 5.", "", "2.5 and 2", None),  # two numbers
        ("What is the capital of Peru?", "", "Lima", "word"),
        ("Give a synonym of happy.", "", "Glad", None),
        ("Which city is the best?", "", "Lima", None),
        ("Sort the words alphabetically.", "pear, fig", "fig, pear", "order"),
        ("Sort the numbers from smallest to largest: 3, 1, 2", "", "1, 2, 3", "order"),
        ("Sort the cities by beauty.", "Rome, Bonn", "Rome, Bonn", None),
        ("Sort the numbers in ascending order.", "3, 1, 2", "1, 2", None),  # one is lost
        ("List the adjectives used in the sentence.", "A red, big car.", "The adjectives are red and big.", "items"),
        ("List the nouns used in the sentence.", "A red, big car.", "car, boat", None),  # not in the text
        ("Sort the numbers so that they form the largest one.", "2, 3", "3, 2", None),  # or 32
        ("Classify the shape as round or square.", "https://example.org/shape.png", "Round", None),  # not seen
        ("Describe the sea.", "", "Blue", None),
    ],
)
def test_a_row_is_taken_where_one_answer_is_right(instruction: str, given: str, reference: str, kind: str) -> None:
    assert kind_of(instruction, given, reference) == kind


def test_every_kind_has_its_check() -> None:
    assert set(ANSWERS.values()) < set(CHECKS)


def test_the_source_has_these_rows_alone_and_says_how_many(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"instruction": f"Calculate {n} + 1.", "input": "", "output": str(n + 1)} for n in range(8)]
    rows += [{"instruction": f"Describe the number {n}.", "input": "", "output": "It is round."} for n in range(8)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = config(tmp_path, source="alpaca_checkable", val_fraction=0.5)
    with caplog.at_level(logging.INFO, "tinychat"):
        found = [row for split in ("train", "validation") for row in chat_source(data, split).rows()]
    assert sorted(row.messages[0]["content"] for row in found) == [f"Calculate {n} + 1." for n in range(8)]
    assert {(row.family, row.answer) for row in found} == {("arithmetic", "number")}
    assert "alpaca_checkable: 8 of 16 conversations can be checked: 8 arithmetic" in caplog.text
    whole = config(tmp_path, source="alpaca", val_fraction=0.5)
    assert chat_source(data, "train").fingerprint() != chat_source(whole, "train").fingerprint()
