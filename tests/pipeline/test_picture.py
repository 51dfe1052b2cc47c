"""recipe.png, from run folders of a few lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tinychat.pipeline import picture
from tinychat.pipeline.picture import panels_of, write_picture

SAMPLES = [{"prompt": f"Is {n} $ or 5 $ more?", "SFT": "yes " * 60, "PPO": ""} for n in range(5)]
MET = {"eval/instruction_accuracy": 0.5, "eval/instruction_accuracy_low": 0.4, "eval/instruction_accuracy_high": 0.6}
LOGGED = {
    "pretrain": {0: {"train/loss": 7.0}, 50: {"train/loss": 4.0}, 100: {"train/loss": float("nan"), "eval/ppl": 9.0}},
    "sft": {0: MET, 10: MET | {"eval/instruction_accuracy": 0.9}},
    "reward": {5: {"eval/reward_accuracy": 0.9}},
    "ppo": {1: {"rl/kl": 0.0, "rl/reward": 0.1}, 2: {"rl/kl": 0.4, "rl/reward": 0.3}},
}


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, tuple[str, Path]]:
    for stage, rows in LOGGED.items():
        (tmp_path / stage).mkdir()
        lines = [json.dumps({"step": step, "time": 0.0} | metrics) for step, metrics in rows.items()]
        (tmp_path / stage / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    facts = {"curriculum": {"stories after lessons": 40}}
    (tmp_path / "pretrain" / "result.json").write_text(json.dumps({"status": "FINISHED", "facts": facts}))
    return {stage: (stage, tmp_path / stage) for stage in LOGGED}


def test_a_panel_for_what_has_a_curve_and_a_figure_for_each_stage(runs: dict[str, tuple[str, Path]]) -> None:
    panels = panels_of(runs)
    assert [(panel.stage, list(panel.curves)) for panel in panels] == [
        ("pretrain", ["train/loss"]),
        ("sft", ["eval/instruction_accuracy"]),
        ("ppo", ["rl/reward"]),
        ("ppo", ["rl/kl"]),
    ]
    assert [panel.headline for panel in panels[:2]] == ["perplexity: 9", "instructions met: 90.0 %"]
    assert panels[3].headline == "", "a stage's figure stands once"
    logged = {step: MET | {"eval/accuracy": 0.1 * step, "eval/pass_at_8": 0.9} for step in (0, 4)}
    lines = [json.dumps({"step": step, "time": 0.0} | metrics) for step, metrics in logged.items()]
    (runs["sft"][1] / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (panel,) = panels_of({"rlvr": ("rlvr", runs["sft"][1])})
    assert (list(panel.curves), panel.headline) == (["eval/accuracy"], "answers right: 40.0 %")
    assert panels[0].marks == {"stories after lessons": 40}


@pytest.mark.filterwarnings("error")
def test_curves_and_replies_are_drawn(
    runs: dict[str, tuple[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    draw = picture._draw
    monkeypatch.setattr(picture, "_draw", lambda *parts: drawn.append(draw(*parts)) or drawn[0])
    assert write_picture(tmp_path / "recipe.png", runs, ["SFT", "PPO"], SAMPLES)
    assert (tmp_path / "recipe.png").read_bytes().startswith(b"\x89PNG")
    assert len(drawn[0].axes) == 4
    said = [text.get_text() for text in drawn[0].texts]
    assert said[:3] == ["prompt", "SFT", "PPO"]
    assert [line for line in said if "more?" in line] == [row["prompt"] for row in SAMPLES[:3]]
    assert said.count("(no reply)") == 3, "an empty reply is said"
    assert sum(line.endswith("…") for line in said) == 3, "a long one ends in an ellipsis"
    assert all(0 < text.get_position()[1] < 1 for text in drawn[0].texts)


def test_titles_are_no_wider_than_their_panels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the longest, and of one that fits in no size: there the stage's name alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    logged = {
        "grpo": {step: {"eval/safe_rate": 0.9, "eval/over_refusal": 0.1} for step in (0, 9)},
        "dpo": {step: {"train/chosen_logprobs": -9.0, "train/rejected_logprobs": -8.0} for step in (1, 9)},
    }
    for stage, rows in logged.items():
        (tmp_path / stage).mkdir()
        lines = [json.dumps({"step": step, "time": 0.0} | metrics) for step, metrics in rows.items()]
        (tmp_path / stage / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    figure = picture._draw(panels_of({stage: (stage, tmp_path / stage) for stage in logged}), [], [])
    renderer = FigureCanvasAgg(figure).get_renderer()
    titles = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert set(titles) == {"GRPO: safe replies, benign requests refused", "DPO"}
    for axes in figure.axes:
        assert axes._left_title.get_window_extent(renderer).width <= axes.get_window_extent(renderer).width


def test_nothing_to_draw_and_a_folder_that_is_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not write_picture(tmp_path / "recipe.png", {}, [], [])
    assert not write_picture(tmp_path / "gone" / "recipe.png", {}, ["SFT", "PPO"], SAMPLES)
    assert "no recipe.png" in caplog.text
