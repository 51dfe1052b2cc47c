"""MLflow's own pages on a small sweep, in headless Chromium: the runs, three of them compared, charts.

    python -m pytest -n 0 -m ui -s tests/ui        prints where the screenshots are

Needs playwright (pip install -e '.[ui]') and Chromium (apt-get install chromium, or playwright install chromium).
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from tests.conftest import TINY_DATA, TINY_MODEL, TINY_STAGE, environment_of, run_train

pytestmark = [pytest.mark.ui, pytest.mark.timeout(900)]

STUDY = "lr_study"
RATES = ("0.001", "0.003", "0.01")
FILTER = f"tags.`tinychat.study` = '{STUDY}'"  # as docs/compare.md has it


@dataclass(frozen=True)
class Sweep:
    """A tracked sweep: its store, experiment, and names and ids of its runs in MLflow."""

    uri: str
    experiment: str
    parent: str
    children: list[tuple[str, str]]  # run name, run id


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Sweep:
    """Three tiny pretraining runs of one search."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("sweep")
    outputs = folder / "outputs"
    uri = f"sqlite:///{outputs / 'mlflow.db'}"
    tiny = (*TINY_MODEL, *TINY_DATA, *TINY_STAGE, f"tokenizer.path={tokenizer_folder}")
    tracked = ("experiment_name=ui", f"tracker.uri={uri}")
    steps = ("stage.max_steps=6", "stage.eval_every=2", "stage.log_every=1")
    search = (
        "sweep=pretrain_lr",
        f"sweep.study={STUDY}",
        "sweep.sampler=grid",
        "sweep.n_trials=null",
        "sweep.pruner=none",
    )
    lists = (f"stage.lr=choice({','.join(RATES)})", "stage.warmup_steps=1", "stage.min_lr_ratio=0.1")
    done = run_train(folder, "-m", *tiny, *tracked, *steps, *search, *lists, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("ui")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], FILTER)
    [parent] = [run for run in runs if run.data.tags.get("tinychat.kind") == "sweep"]
    trials = sorted(
        (run for run in runs if "tinychat.trial" in run.data.tags), key=lambda run: int(run.data.tags["tinychat.trial"])
    )
    assert [run.data.tags["mlflow.parentRunId"] for run in trials] == [parent.info.run_id] * len(RATES)
    children = [(run.info.run_name, run.info.run_id) for run in trials]
    return Sweep(uri, experiment.experiment_id, parent.info.run_id, children)


@pytest.fixture(scope="module")
def address(sweep: Sweep, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of `mlflow ui` on the sweep's store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = ["--backend-store-uri", sweep.uri, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with open(log, "w") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "ui", *place], env=environment_of(), stdout=file, stderr=file
        )
    try:
        end = time.monotonic() + 180
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None and time.monotonic() < end, log.read_text()[-2000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/#"
    finally:
        server.terminate()
        server.wait(30)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


def runs_page(address: str, sweep: Sweep, **more: str) -> str:
    return (
        f"{address}/experiments/{sweep.experiment}/runs?{urlencode({'searchFilter': FILTER, **more}, quote_via=quote)}"
    )


def unfold(page: Any) -> None:
    """Open the parent's row, and close the panel beside it."""
    page.get_by_role("link", name=STUDY).wait_for()
    close = page.get_by_role("button", name="Close", exact=True)
    if close.count():
        close.first.click()
    page.locator(".ag-row").first.locator("[col-id='attributes.`Run Name`'] button").first.click()


def save(page: Any, folder: Path, name: str) -> None:
    page.mouse.move(5, 995)  # away from what shows a hint
    time.sleep(1)  # moving parts
    page.screenshot(path=folder / f"{name}.png")
    print(f"\nscreenshot: {folder / name}.png")


def test_children_stand_below_their_parent_with_settings_and_metric(
    page: Any, address: str, sweep: Sweep, tmp_path: Path
) -> None:
    page.goto(runs_page(address, sweep))
    page.get_by_role("link", name=STUDY).wait_for()
    assert page.get_by_role("link", name=sweep.children[0][0]).count() == 0  # folded
    unfold(page)
    page.get_by_role("link", name=sweep.children[0][0]).first.wait_for()
    page.get_by_role("button", name="Columns", exact=True).click()
    for column in ("sweep.stage.lr", "eval/loss"):
        page.get_by_placeholder("Search columns").fill(column)
        page.get_by_text(column, exact=True).last.click()
    page.keyboard.press("Escape")
    page.locator(".ag-header").get_by_text("eval/loss").wait_for()
    save(page, tmp_path, "runs")
    shown = page.inner_text(".ag-root").splitlines()
    assert set(RATES) <= set(shown), shown
    assert sum(line == STUDY for line in shown) == 1
    assert sum(line in {name for name, _ in sweep.children} for line in shown) == len(RATES)
    assert "4 matching runs" in page.inner_text("body")


def test_the_table_has_its_columns_at_once(page: Any, address: str, sweep: Sweep, tmp_path: Path) -> None:
    """At the address that `make ui` prints."""
    page.goto(f"{address}/experiments/{sweep.experiment}/runs?viewStateShareKey=tinychat")
    page.get_by_role("link", name=STUDY).wait_for()
    header = page.locator(".ag-header")
    header.get_by_text("headline", exact=True).wait_for()
    save(page, tmp_path, "columns")
    shown = header.inner_text().splitlines()
    assert {"headline", "stage", "model", "data"} <= set(shown), shown
    page.goto(f"{address}/experiments/{sweep.experiment}/runs/{sweep.children[0][1]}")
    page.get_by_text("bits per byte").first.wait_for()  # of the description
    page.get_by_text("tinyworld-train").first.wait_for()
    save(page, tmp_path, "run")


def test_three_trials_compared(page: Any, address: str, sweep: Sweep, tmp_path: Path) -> None:
    ids = json.dumps([run_id for _, run_id in sweep.children])
    page.goto(f"{address}/compare-runs?runs={quote(ids)}&experiments={quote(json.dumps([sweep.experiment]))}")
    page.get_by_text("Comparing 3 Runs from 1 Experiment").wait_for()
    page.locator(".js-plotly-plot").first.wait_for()
    save(page, tmp_path, "compare")
    shown = page.inner_text("body")
    assert "Parallel Coordinates Plot" in shown
    for words in ("stage.lr", "eval/loss", "perf/tokens_per_s", *RATES, *(name for name, _ in sweep.children)):
        assert words in shown, words


def test_a_chart_has_a_line_for_each_trial(page: Any, address: str, sweep: Sweep, tmp_path: Path) -> None:
    page.goto(runs_page(address, sweep))
    unfold(page)  # stays so in the other view
    page.get_by_role("link", name=sweep.children[0][0]).first.wait_for()
    page.goto(runs_page(address, sweep, compareRunsMode="CHART"))
    page.get_by_placeholder("Search metric charts").fill("eval/loss")
    chart = page.locator(".js-plotly-plot", has=page.locator(".scatterlayer .trace")).first
    chart.wait_for()
    page.get_by_text("eval/loss", exact=True).first.wait_for()
    drawn = [trace for trace in chart.locator(".scatterlayer .trace").all() if trace.locator("path.point").count()]
    save(page, tmp_path, "chart")
    assert len(drawn) == len(RATES) + 1  # the parent has the best value so far
