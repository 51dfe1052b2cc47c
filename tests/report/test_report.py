"""The report tells what the run folder holds, safely, and leaves out what was not measured."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from tinychat.config.specs import SPECS
from tinychat.report import curves, headline, templates
from tinychat.report import run as report
from tinychat.report.headline import format_value
from tinychat.report.run import _changes, write_report
from tinychat.tracking.base import MetricsLog, Row

CONFIG = """run_name: pretrain-mini-tinyworld
seed: 7
device: auto
precision: fp32
init_from: null
stage: {name: pretrain, lr: 0.003}
model: {name: mini, path: null}
data: {name: text, path: ../my|data}
ds: {name: none}
"""


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    log = MetricsLog(folder / "metrics.jsonl")
    for step in range(1, 21):
        log.append(step, {"train/loss": 5 - step / 10, "schedule/lr": 1e-3, "perf/tokens_per_s": 1000.0 + 30 * step})
        if step % 5 == 0:
            log.append(step, {"eval/loss": 5 - step / 20, "eval/ppl": math.exp(5 - step / 20)})
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "command.txt").write_text("python -m tinychat.train 'data.path=<x>'\n")
    result = {"metrics": {"eval/loss": 4.0, "eval/ppl": 54.598}, "device": "cpu", "parameters": {"total": 4_900_000}}
    (folder / "result.json").write_text(json.dumps(result))
    samples = [{"prompt": "Once", "continuation": " upon <script>alert(1)</script> ```` a | 时间 🙂"}]
    (folder / "samples.json").write_text(json.dumps(samples))
    lineage = {"parent": None, "data": {"train": "sha256:aa"}, "git_commit": "3f2a9c1", "config": {"secret": "x"}}
    (folder / "lineage.json").write_text(json.dumps(lineage))
    return folder


class Page(HTMLParser):
    """Collects text and tags; complains about tags left open."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.words = ""
        self.addresses: list[str] = []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_html_is_one_whole_file_with_everything_escaped(run_dir: Path) -> None:
    assert write_report(run_dir) == run_dir / "report.html"
    page = Page((run_dir / "report.html").read_text())
    assert "script" not in page.tags and "link" not in page.tags
    assert [address[:22] for address in page.addresses] == ["data:image/png;base64,"]
    words = page.words
    assert "pretrain-mini-tinyworld" in words and "python -m tinychat.train 'data.path=<x>'" in words
    assert "<script>alert(1)</script> ```` a | 时间 🙂" in words
    for expected in ("54.598", "4,900,000", "sha256:aa", "3f2a9c1", "perplexity of held-out tokens", "lr: 0.003"):
        assert expected in words, expected
    assert "secret" not in words and "None" not in words


def test_markdown_tables_and_fences_hold(run_dir: Path) -> None:
    write_report(run_dir)
    text = (run_dir / "report.md").read_text()
    assert "![What was logged, over the optimizer steps](curves.png)" in text
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(columns) == 1, table
    assert "`````text\n upon <script>" in text  # longer than the backticks inside
    assert "| device | cpu |" in text  # measured, not the configured auto
    assert (run_dir / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_missing_and_broken_files_are_left_out(tmp_path: Path) -> None:
    assert write_report(tmp_path) is not None
    text = (tmp_path / "report.md").read_text()
    assert "##" not in text and "|" not in text
    for name in ("config.yaml", "result.json", "samples.json", "lineage.json", "metrics.jsonl"):
        (tmp_path / name).write_text('{"cut')
    assert write_report(tmp_path) is not None
    assert "Results" not in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize("damage", ["", '{"a": [', "[[3]]", '{"metrics": 3, "rows": 5}', "\0\0", "folder"])
def test_any_file_may_be_damaged_and_is_named(run_dir: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    (run_dir / "tables").mkdir(exist_ok=True)
    names = ["config.yaml", "command.txt", "metrics.jsonl", "result.json", "samples.json", "tables/replies.json"]
    for name in [*names, "lineage.json"]:
        (run_dir / name).unlink(missing_ok=True)
        (run_dir / name).mkdir() if damage == "folder" else (run_dir / name).write_text(damage)
    assert write_report(run_dir) == run_dir / "report.html"
    assert any("tables/replies.json" in message for message in caplog.messages)


def test_without_a_result_the_last_held_out_metrics_are_shown(run_dir: Path) -> None:
    (run_dir / "result.json").unlink()
    write_report(run_dir)
    results = (run_dir / "report.md").read_text().split("All metrics at the end")[1].split("</details>")[0]
    assert "| eval/ppl | 54.598 |" in results and "train/loss" not in results


def test_what_a_stage_is_judged_by_stands_before_and_after_with_bounds() -> None:
    series = curves.series_of(
        [
            Row(0, 0.0, {"eval/safe_rate": 0.5, "eval/safe_rate_low": 0.4, "eval/safe_rate_high": 0.6, "eval/kl": 0.0}),
            Row(4, 0.0, {"eval/safe_rate": 0.75, "eval/rouge_l": 0.3, "eval/kl": 2.0}),
        ]
    )
    found = {"eval/safe_rate": 0.75, "eval/rouge_l": 0.3, "eval/kl": 2.0, "eval/reply_ended": 1.0}
    changes = _changes("ppo", found, series)
    assert [row[:3] for row in changes] == [("eval/safe_rate", "0.5 (0.4 to 0.6)", "0.75"), ("eval/kl", "0", "2")]
    assert _changes("ppo", found, curves.series_of([Row(4, 0.0, found)])) == []


def test_panels_share_a_quantity_and_leave_out_single_points() -> None:
    rows = [Row(s, 0.0, {"train/loss": 1.0, "rl/reward": s, "perf/memory_gb": 2.0, "data/tokens": s}) for s in (1, 2)]
    rows += [Row(s, 0.0, {"eval/loss": 2.0, "eval/ppl": 3.0}) for s in (2, 2)]
    panels = curves.panels_of(curves.series_of(rows))
    assert panels == [("loss", ["train/loss", "eval/loss"]), ("reward", ["rl/reward"])]
    assert curves.series_of(rows)["eval/loss"] == [(2, 2.0)]


def test_sizes_of_samples_have_no_curve_and_technical_quantities_come_last() -> None:
    names = (
        "schedule/lr",
        "eval/response_tokens",
        "eval/instruction_rows",
        "eval/tokens",
        "rl/unnamed",
        "eval/safe_rate",
    )
    rows = [Row(step, 0.0, dict.fromkeys(names, float(step))) for step in (1, 2)]
    assert [quantity for quantity, _ in curves.panels_of(curves.series_of(rows))] == ["safe_rate", "unnamed", "lr"]


@pytest.mark.parametrize(
    ("metric", "stage", "title"),
    [
        ("train/loss", "pretrain", "loss (nats per token)"),
        ("eval/loss", "reward", "loss (nats per pair)"),
        ("eval/loss", "judge", "loss (nats per reply)"),
        ("train/loss", "ppo", "loss of policy and value (per token)"),
        ("eval/safe_rate_judge", "ppo", "safe rate judge (share)"),
        ("rl/kl", "ppo", "KL to the start (nats per reply)"),
    ],
)
def test_units_are_those_of_the_stage(metric: str, stage: str, title: str) -> None:
    assert curves.title_of(metric, stage) == title


@pytest.mark.parametrize(
    ("quantity", "values", "logarithmic"),
    [
        ("loss", [8.0, 0.05], True),
        ("loss", [8.0, 0.5], False),
        ("loss", [8.0, 0.0], False),
        ("ppl", [9.0, 3.0], True),
        ("lr", [1e-6, 1e-2], False),
        ("kl", [], False),
    ],
)
def test_what_spans_decades_is_logarithmic(quantity: str, values: list[float], logarithmic: bool) -> None:
    assert curves.is_logarithmic(quantity, values) is logarithmic


def test_axes_of_shares() -> None:
    low, high = curves.share_limits([0.1, 0.9])
    assert low <= 0 and high >= 1, "shares that spread: all of 0 to 1"
    low, high = curves.share_limits([0.995, 0.998])
    assert high - low >= 0.05 and high >= 1, "a thousandth does not fill the panel"
    low, high = curves.share_limits([0.5, 0.6])
    assert low == pytest.approx(0.49, abs=0.01) and high == pytest.approx(0.61, abs=0.01)


def test_a_share_that_grows_from_next_to_nothing_is_on_a_linear_axis(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    axes.plot([0, 100], [0.008, 0.966])
    curves.style_axes(axes, "eval/instruction_accuracy", "sft")
    assert axes.get_yscale() == "linear"
    assert axes.get_ylim() == pytest.approx((-0.02, 1.02))


def test_a_mark_stands_where_the_curriculum_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marked = []
    monkeypatch.setattr(curves, "mark", lambda _axes, marks: marked.append(marks))
    rows = [Row(step, 0.0, {"train/loss": 2.0 * step, "schedule/lr": 0.1 * step}) for step in (1, 50, 100)]
    assert curves.write_curves(rows, tmp_path / "curves.png", "pretrain", {"stories": 60, "later": 200})
    assert marked == [{"stories": 60}], "on the loss alone, and only what lies within"


def test_four_figures_samples_and_curves_come_first(run_dir: Path) -> None:
    write_report(run_dir)
    page = Page((run_dir / "report.html").read_text()).words
    order = ["perplexity", "Curves", "Samples", "What was run", "All metrics at the end", "Resolved configuration"]
    places = [page.index(words) for words in order]
    assert places == sorted(places)
    found = {"eval/safe_rate": 0.976, "eval/safe_rate_low": 0.96, "eval/safe_rate_high": 0.99, "rl/kl": 0.5, "x/y": 1.0}
    figures = headline.figures_of("ppo", found, {"eval/safe_rate": [(0, 0.7), (9, 0.976)]})
    assert figures == [
        headline.Figure("eval/safe_rate", "safe replies", "97.6 %", "95 %: 96.0 to 99.0; 70.0 % before"),
        headline.Figure("rl/kl", "KL to the start", "0.5", "nats per reply"),
    ]


def test_headlines_are_metrics_of_their_stage() -> None:
    from tinychat.tracking import vocabulary

    for stage, spec in SPECS.items():
        assert set(spec.headlines) <= set(vocabulary.metrics_of(stage))
    known = {name.rpartition("/")[2] for name in vocabulary.METRICS} | {"acc", "acc_norm"}  # of lm-eval's tasks
    assert known >= vocabulary.QUANTITIES.keys() | vocabulary.TECHNICAL.keys()


def test_columns_of_short_cells_are_not_broken() -> None:
    rows = [[">= 0.95", "x " * 30, "instructions met by it"], ["pass", "", ""]]
    assert templates.kinds_of(["a", "b", "c"], rows) == ["short", "long", "text"]


@pytest.mark.parametrize("name", ["run", "java script:alert(1)", 'a"><b>', "ä#?%"])
def test_links_lead_to_reports_by_a_relative_way(tmp_path: Path, name: str) -> None:
    run, page = tmp_path / name, tmp_path / "pipeline"
    (run / "checkpoints/step-000001").mkdir(parents=True)
    (run / "report.html").touch()
    for folder in (run, run / "checkpoints/step-000001"):
        link = report.Link.to(folder, page)
        assert link.text == str(folder)
        assert link.address.startswith("./../") and not set(link.address) & set('"<>#?:')
        assert (page / unquote(link.address)).resolve() == run / "report.html"


def test_of_checkpoints_measured_beside_it_a_run_names_the_folders(run_dir: Path) -> None:
    result = json.loads((run_dir / "result.json").read_text())
    result["facts"] = {"against": [{"checkpoint": "a/b", "eval/loss": 1.25}, {"checkpoint": "c", "eval/loss": 2.5}]}
    (run_dir / "result.json").write_text(json.dumps(result))
    assert ("against", "a/b, c") in report.collect(run_dir).facts


def test_running_mean_by_hand() -> None:
    assert curves._running_mean([1.0, 2.0, 6.0, 3.0, 3.0], 1) == pytest.approx([1, 3, 11 / 3, 4, 3])


def test_curves_with_non_finite_values_and_many_points(tmp_path: Path) -> None:
    rows = [Row(s, 0.0, {"train/loss": 1 / s if s % 50 else math.inf, "eval/ppl": math.nan}) for s in range(1, 300)]
    assert curves.write_curves(rows, tmp_path / "curves.png")


def test_broken_matplotlib_costs_only_the_picture(run_dir: Path) -> None:
    code = "import sys; sys.modules['matplotlib'] = None; from pathlib import Path; from tinychat.report.run import "
    code += f"write_report; assert write_report(Path({str(run_dir)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "no curves.png" in done.stderr
    page = (run_dir / "report.html").read_text()
    assert "<img" not in page and "54.598" in page


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert write_report(tmp_path / "nothing") is None
    assert "no report" in caplog.text


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345678, "12,345,678"), (3.68571, "3.6857"), (3e-4, "0.0003"), (True, "yes"), ("a_b", "a_b"), (2.0, "2")],
)
def test_format_value(value: object, text: str) -> None:
    assert format_value(value) == text


def test_what_mlflow_shows_of_a_run(run_dir: Path) -> None:
    result = {"status": "finished", "metrics": {"eval/ppl": 54.598, "eval/loss": 4.0}}
    (run_dir / "result.json").write_text(json.dumps(result))
    tags = headline.tags_of(run_dir)
    assert tags["headline"] == "54.6 perplexity"
    assert tags["mlflow.note.content"].startswith("- perplexity **54.6**")
    assert "python -m tinychat.train 'data.path=<x>'" in tags["mlflow.note.content"]
    (run_dir / "result.json").write_text(
        json.dumps({"status": "failed", "error": "no *space*\nTraceback", "metrics": {}})
    )
    assert headline.tags_of(run_dir)["headline"] == "failed: no *space*"
    (run_dir / "result.json").write_text(json.dumps({"status": "stopped", "metrics": {}}))
    assert headline.tags_of(run_dir)["headline"] == "stopped"
