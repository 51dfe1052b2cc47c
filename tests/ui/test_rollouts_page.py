"""The page of a run's rollouts in Chromium, opened from its file.

python -m pytest -n 0 -m ui tests/ui/test_rollouts_page.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rollouts.runs import PROMPTS, REPLIES, make
from tinychat.report.rollouts import write_rollouts

pytestmark = [pytest.mark.ui, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    written = write_rollouts(make(tmp_path_factory.mktemp("page"), tokenizer_folder))
    assert written is not None
    return written


@pytest.fixture
def opened(page: Any, file: Path) -> Iterator[Any]:
    """The page, which loads nothing and breaks neither its script nor its policy."""
    wrong: list[str] = []
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or wrong.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text))
    page.goto(file.as_uri())
    page.locator("article").first.wait_for()
    yield page
    assert wrong == []


def numbers(page: Any) -> list[str]:
    """Of the replies that are shown, which they are in their file."""
    return re.findall(r"reply (\d)", " ".join(page.locator("article .numbers").all_inner_texts()))


def test_replies_are_sorted_found_and_coloured(opened: Any) -> None:
    assert numbers(opened) == ["3", "1", "2"] and opened.input_value("#step") == "4"
    opened.select_option("#order", "gold")
    assert numbers(opened) == ["2", "1", "3"]
    opened.select_option("#lowest", "1")
    assert numbers(opened) == ["3", "1", "2"]
    text = "".join(opened.locator("article .reply").last.locator(".token").all_text_contents()).replace("∅", "")
    assert text == REPLIES["step-000004"][1].replace("\u202e", "\\u202e").replace("\x1b", "␛"), (
        "as letters, not acted on"
    )
    opened.keyboard.press("ArrowLeft")
    assert opened.input_value("#step") == "1" and opened.locator("#before").is_disabled()
    opened.select_option("#by", "kl")
    first = opened.locator("article .token").first
    colours = {
        node.evaluate("node => getComputedStyle(node).backgroundColor") for node in (first, first.locator("+ *"))
    }
    assert len(colours) == 2, "KL is 1 and -1 in turn"
    assert "up" in first.get_attribute("class") and "down" in first.locator("+ *").get_attribute("class")
    opened.keyboard.press("/")
    opened.keyboard.type("BIG")
    assert numbers(opened) == ["2"]
    opened.fill("#find", "nowhere")
    assert "No reply has that text" in opened.locator("#told").inner_text() and numbers(opened) == []


def test_a_token_tells_all_its_numbers_by_keyboard(opened: Any) -> None:
    opened.select_option("#step", "1")
    opened.locator("article .token").first.focus()
    told = opened.locator("#token")
    assert "log-probability −0.1 (90.5 %)" in told.inner_text() and "KL to the start 1 (× 2.7)" in told.inner_text()
    opened.keyboard.press("ArrowRight")
    assert "log-probability −0.2" in told.inner_text() and "value 2" in told.inner_text()
    assert opened.input_value("#step") == "1", "the arrow was the token's"
    opened.keyboard.press("Escape")
    assert not told.is_visible()


def test_the_same_prompts_beside_each_other_and_over_time(opened: Any) -> None:
    opened.select_option("#heldOut", "1")
    opened.select_option("#against", "0")
    rows = opened.locator(".row")
    assert rows.count() == 3 and rows.first.locator("article").count() == 2
    left, right = (article.bounding_box() for article in rows.first.locator("article").all())
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    heads = rows.first.locator("h2").all_inner_texts()
    assert heads == ["Step 0 (start)", "Step 4"]
    opened.get_by_role("button", name=PROMPTS[2]).click()
    replies = opened.locator("article .reply").all_inner_texts()
    assert [text.strip() for text in replies] == [REPLIES[f"held-out-00000{step}"][2].strip() for step in (0, 4)]
    assert "".join(opened.locator(".token.new").all_text_contents()) == " not"
    opened.keyboard.press("Escape")
    assert rows.count() == 3
    opened.get_by_role("button", name=PROMPTS[0]).click()
    assert "the same reply as at step 0" in opened.locator("article").last.inner_text()


def test_both_languages_on_a_phone_in_the_dark(opened: Any) -> None:
    opened.emulate_media(color_scheme="dark")
    opened.set_viewport_size({"width": 360, "height": 640})
    back = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(int(part) for part in back[4:-1].split(",")) < 200
    opened.select_option("#against", "1")
    seen = []
    for _ in range(2):
        seen.append((opened.evaluate("document.documentElement.lang"), opened.locator("a[href]").inner_text()))
        assert opened.evaluate("document.documentElement.scrollWidth") <= 360
        opened.click("#language")
    assert sorted(seen) == [("en", "Report"), ("zh-CN", "报告")]
    boxes = [article.bounding_box() for article in opened.locator(".row").first.locator("article").all()]
    assert boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"] and boxes[0]["width"] > 300
