"""The server's page in Chromium: models that babble are talked to side by side.

python -m pytest -n 0 -m ui tests/ui/test_serve_page.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.conftest import Client, serving

pytestmark = [pytest.mark.ui, pytest.mark.timeout(900)]
HOSTILE = "<img src=x onerror='window.pwned = 1'><script>window.pwned = 1</script> &amp;"


@pytest.fixture
def opened(page: Any, client: Client) -> Iterator[Any]:
    """The page, which loads nothing from elsewhere and breaks no policy."""
    own, wrong = f"http://127.0.0.1:{client.port}/", []
    page.on("request", lambda request: request.url.startswith((own, "data:", "blob:")) or wrong.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: "Content Security Policy" in said.text and wrong.append(said.text))
    page.goto(own)
    page.locator("#models input").nth(1).wait_for()
    page.locator("summary").click()
    page.fill("#max_tokens", "12")
    page.fill("#seed", "3")
    page.locator("summary").click()
    yield page
    assert wrong == []


def send(page: Any, text: str) -> None:
    """With Enter, and wait for all of the turn, its score too."""
    page.fill("#line", text)
    page.keyboard.press("Enter")
    page.locator(".turn").last.locator(".foot .score, .foot .error").wait_for()  # or why there is none
    page.locator("#send").wait_for()


def test_checkpoints_side_by_side(opened: Any, client: Client, tmp_path: Path) -> None:
    send(opened, "the dog")
    assert float(opened.locator(".score").inner_text().removeprefix("score")) < 100
    opened.click("#anew")
    for text in (HOSTILE, "the dog"):
        send(opened, text)
    assert opened.evaluate("window.pwned") is None
    assert opened.locator(".asked").all_inner_texts() == [HOSTILE, "the dog"]
    heads = opened.locator(".turn").last.locator("h2").all_inner_texts()
    assert [head.split()[0].lower() for head in heads] == ["chatty", "writer"]
    reply = opened.locator(".reply .body").first.inner_text()
    asked = {"model": "chatty", "messages": [{"role": "user", "content": HOSTILE}], "max_tokens": 12}
    answer = client.ask("/v1/chat/completions", {**asked, "seed": 3, "temperature": 0.8})[1]
    assert " ".join(reply.split()) == " ".join(answer["choices"][0]["message"]["content"].split())
    with opened.expect_download() as download:
        opened.click("#export")
    rows = [json.loads(line) for line in Path(download.value.path()).read_text().splitlines()]
    assert [row["model"] for row in rows] == ["chatty", "writer"]
    roles = [message["role"] for message in rows[0]["messages"]]
    assert roles == ["user", "assistant"] * 2 and rows[0]["messages"][0]["content"] == HOSTILE
    assert all("the model takes 64" in one["judge"] for one in rows[0]["scores"])


def test_probabilities_and_what_else_the_model_thought_of(opened: Any) -> None:
    send(opened, "the cat")
    whole = opened.locator(".reply .body").first.inner_text()
    opened.check("#coloured")
    tokens = opened.locator(".reply").first.locator(".token")
    assert tokens.count() == 12
    assert " ".join("".join(tokens.all_text_contents()).split()) == " ".join(whole.split())
    tokens.first.focus()
    opened.keyboard.press("ArrowRight")
    opened.keyboard.press("Enter")
    rows = opened.locator("#likeliest tr")
    assert rows.count() in (8, 9) and opened.locator("#likeliest tr.taken").count() >= 1
    opened.keyboard.press("Escape")
    assert not opened.locator("#likeliest").is_visible()
    assert opened.evaluate("document.activeElement.className") == "token"


def test_a_reply_is_stopped_and_asked_for_again(opened: Any, client: Client) -> None:
    opened.locator("summary").click()
    opened.fill("#max_tokens", "2000")
    opened.fill("#temperature", "0")
    opened.fill("#line", "the cat")
    opened.locator("#line").press("Enter")
    opened.locator("#stopping").wait_for()
    opened.keyboard.press("Escape")
    opened.locator("#send").wait_for()
    opened.fill("#max_tokens", "0")
    opened.click("#again")
    opened.locator(".error").first.wait_for()
    assert "max_tokens=0: must be from 1 to 2048" in opened.locator(".error").first.inner_text()
    assert client.gauge("running") == 0


def test_both_languages_on_a_phone_in_the_dark(opened: Any) -> None:
    opened.emulate_media(color_scheme="dark")
    opened.set_viewport_size({"width": 360, "height": 640})
    back = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(int(part) for part in back[4:-1].split(",")) < 200
    seen = []
    for _ in range(2):
        seen.append((opened.evaluate("document.documentElement.lang"), opened.locator("#send").inner_text()))
        assert opened.evaluate("document.documentElement.scrollWidth") <= 360
        opened.click("#language")
    assert sorted(seen) == [("en", "Send"), ("zh-CN", "发送")]
    send(opened, "the mat")
    boxes = [reply.bounding_box() for reply in opened.locator(".reply").all()]
    assert boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"] and boxes[0]["width"] > 300


def test_a_key_is_asked_for(page: Any, served: list[Any]) -> None:
    with serving(served, key="secret") as client:
        page.goto(f"http://127.0.0.1:{client.port}/")
        page.locator(".error").wait_for()
        assert page.locator("#key").is_visible() and page.locator("#models input").count() == 0
        page.fill("#key", "secret")
        page.locator("#key").press("Tab")
        page.locator("#models input").first.wait_for()
