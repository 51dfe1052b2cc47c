"""What the chat's command line may say for a checkpoint, and which one is then meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.chat_models import saved
from tinychat.chat import __main__ as chat
from tinychat.chat import session
from tinychat.errors import UserError


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two experiments; the newest finished run of each kind is not the newest folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "outputs"
    run(folder, "lab", "sft-mini", "2026-01-01_10-00-00", "sft", number=1)
    run(folder, "lab", "ppo-mini", "2026-01-01_11-00-00", "ppo", number=2)
    run(folder, "lab", "ppo-mini", "2026-01-01_12-00-00", "ppo", number=3, status="failed")
    run(folder, "lab", "reward-mini", "2026-01-01_13-00-00", "reward", number=4)
    run(folder, "lab", "sft-mini", "2026-01-01_09-00-00", "sft", number=5)  # after the clock was set back
    run(folder, "other", "pretrain-mini", "2026-01-01_11-30-00", "pretrain", number=1)
    return folder


def run(
    outputs: Path, experiment: str, name: str, time: str, stage: str, number: int, status: str = "finished"
) -> Path:
    folder = outputs / experiment / name / time
    (folder / "checkpoints/step-000001").mkdir(parents=True)
    (folder / "checkpoints/step-000001/config.json").write_text("{}")
    (folder / "config.yaml").write_text(f"stage: {{name: {stage}}}\n")
    (folder / "result.json").write_text(json.dumps({"status": status, "checkpoint": "checkpoints/step-000001"}))
    (folder / "created.json").write_text(json.dumps({"number": number, "time": f"2026-01-01T{10 + number}:00:00Z"}))
    return folder


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("lab", "lab/sft-mini/2026-01-01_09-00-00"),
        ("outputs/lab", "lab/sft-mini/2026-01-01_09-00-00"),
        ("lab/ppo-mini", "lab/ppo-mini/2026-01-01_11-00-00"),
        ("outputs/lab/ppo-mini", "lab/ppo-mini/2026-01-01_11-00-00"),
        ("lab/reward-mini", "lab/reward-mini/2026-01-01_13-00-00"),  # whoever opens it says what it is
        ("other", "other/pretrain-mini/2026-01-01_11-30-00"),
        ("latest", "lab/sft-mini/2026-01-01_09-00-00"),
        ("outputs/lab/ppo-mini/2026-01-01_12-00-00", "lab/ppo-mini/2026-01-01_12-00-00"),
        ("outputs/other/pretrain-mini/2026-01-01_11-30-00/checkpoints/step-000001",) * 2,
    ],
)
def test_names_mean_the_newest_finished_run(outputs: Path, spec: str, wanted: str) -> None:
    found = Path(session.find(spec, Path("outputs")))
    expected = outputs / wanted.removeprefix("outputs/")
    assert found.resolve() in (expected, expected / "checkpoints/step-000001")


def test_an_experiment_comes_before_a_folder_of_its_name(outputs: Path) -> None:
    (outputs.parent / "lab" / "conf").mkdir(parents=True)
    (outputs.parent / "lab" / "conf" / "config.yaml").write_text("defaults: []\n")
    assert "outputs/lab/sft-mini" in session.find("lab", Path("outputs"))


def test_hub_ids_have_an_owner_or_none(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert session.find("owner/name", outputs) == "owner/name"
    asked = []
    monkeypatch.setattr(session.hub, "repository_folder", lambda name, *_: asked.append(name) or Path("copy"))
    assert session.find("gpt2", outputs) == "copy" and asked == ["gpt2"]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("labb", "experiments lab, other"),
        ("lab/tokenizer", "no finished run of stage pretrain, sft, dpo, ppo, grpo, rlvr"),
        ("outputs/lab/none", "outputs/lab/none: no such folder"),
    ],
)
def test_what_is_not_there_is_one_line(outputs: Path, monkeypatch: pytest.MonkeyPatch, spec: str, words: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run(outputs, "lab", "tokenizer", "2026-01-01_08-00-00", "tokenizer", number=6)
    with pytest.raises(UserError) as problem:
        session.find(spec, outputs)
    assert words in str(problem.value) and "\n" not in str(problem.value)


def test_latest_is_no_reward_model(tmp_path: Path) -> None:
    run(tmp_path / "outputs", "lab", "reward-mini", "2026-01-01_13-00-00", "reward", number=1)
    with pytest.raises(UserError, match="latest: no finished run of stage pretrain"):
        session.find("latest", tmp_path / "outputs")


def test_latest_without_a_run_names_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no runs yet"):
        session.find("latest", tmp_path / "outputs")


def test_the_chat_talks_to_the_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(tmp_path / "mine", "lab", "sft-mini", "2026-01-01_10-00-00", "sft", number=1)
    saved(folder / "checkpoints/step-000001")
    monkeypatch.chdir(tmp_path)
    chat.run(["latest", "--outputs", "mine", "--prompt", "the cat", "--max_new_tokens", "3", "--seed", "1"])
    out, err = capsys.readouterr()
    assert out.startswith("the cat") and "note: latest is mine/lab/sft-mini/2026-01-01_10-00-00" in err
