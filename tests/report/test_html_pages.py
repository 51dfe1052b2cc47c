"""No page makes markup of what it tells: names, commands, data, replies. tests/ui opens the same pages in a browser."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.hostile_pages import HOSTILE, make_all


class Injected(HTMLParser):
    """Counts what only the hostile text can bring into a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.words = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if any(name.startswith("on") for name in values) or tag == "svg" or "pwned" in str(attributes):
            # a name in an address or an alternative text stays within its quotes
            inside = {name for name, value in values.items() if value and "pwned" in value}
            if tag in ("svg", "script") or not inside <= {"alt", "href"} or str(values.get("href")).startswith("java"):
                self.found.append(f"{tag} {attributes}")

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_all(tmp_path_factory.mktemp("pages"))


def test_nothing_becomes_markup(pages: list[Path]) -> None:
    for path in pages:
        page = Injected(path.read_text(encoding="utf-8"))
        assert page.found == [], path
        if path.name == "rollouts.html":
            assert page.words.count("\\u003cimg src=x onerror=") >= 3, "a prompt, a token, a part of the reward"
        elif path.name != "plots.html":
            assert HOSTILE[:60] in page.words or path.parent.name.startswith("compare"), path


def test_a_study_s_name_is_text_in_the_title_of_its_plots(pages: list[Path]) -> None:
    page = pages[-1].read_text(encoding="utf-8")
    assert page.index("</title>") < page.index("</head>") < page.index("<script")
