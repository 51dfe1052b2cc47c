"""Every page that tinychat writes, made of hostile texts and opened in a browser: nothing of them runs or loads.

python -m pytest -n 0 -m ui tests/ui/test_pages.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.hostile_pages import make_all

pytestmark = [pytest.mark.ui, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_all(tmp_path_factory.mktemp("pages"))


def test_nothing_of_a_text_runs_or_is_loaded(page: Any, pages: list[Path]) -> None:
    loaded: list[str] = []
    page.on("request", lambda request: loaded.append(request.url))
    page.on("dialog", lambda dialog: pytest.fail(f"a dialog: {dialog.message}"))
    for path in pages:
        loaded.clear()
        page.goto(path.as_uri())
        for folded in page.locator("details").all():  # what is folded is there all the same
            folded.evaluate("node => node.open = true")
        page.wait_for_timeout(200)
        assert page.evaluate("window.pwned") is None, path
        assert page.evaluate("document.querySelectorAll('[onerror], [onload], a[href^=javascript]').length") == 0, path
        assert [url for url in loaded if not url.startswith(("data:", path.as_uri()))] == [], path


def test_a_link_of_the_pipeline_opens_the_run_s_report(page: Any, pages: list[Path]) -> None:
    run, pipeline = pages[0], pages[2]
    page.goto(pipeline.as_uri())
    page.locator("td a").first.click()
    page.wait_for_url(lambda url: url != pipeline.as_uri())
    assert page.url == run.as_uri() and page.locator("dl.headline dd").first.inner_text() == "50.0 %"


def test_short_cells_stay_on_one_line(page: Any, pages: list[Path]) -> None:
    page.set_viewport_size({"width": 700, "height": 900})
    page.goto(pages[2].as_uri())
    cell = page.get_by_text(">= 0.9", exact=True)
    lines = "node => { const r = document.createRange(); r.selectNodeContents(node); return r.getClientRects().length }"
    assert cell.evaluate(lines) == 1
