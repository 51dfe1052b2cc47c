"""Headless Chromium for the tests of pages.

Needs playwright (pip install -e '.[ui]') and Chromium (apt-get install chromium, or playwright install chromium).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serve.conftest import client, served  # noqa: F401 (fixtures: a server of models that babble)

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS = 90  # for a page on a busy machine


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium: the system's, else playwright's own. Skips where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install -e '.[ui]'")
    path = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    with api.sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except api.Error as error:
            pytest.skip(f"no Chromium that starts ({str(error).splitlines()[0]}): apt-get install chromium")
        yield started
        started.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 1700, "height": 1000})
    opened.set_default_timeout(SECONDS * 1000)
    yield opened
    opened.close()
