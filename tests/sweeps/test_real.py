"""Sweeps of real trials: two ranks each, MLflow above them, models of a few thousand parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.commands.test_ppo import STEP, made  # noqa: F401
from tests.conftest import TORCHRUN

pytestmark = pytest.mark.slow

NO_HYDRA = """
import os, sys

seen = "SEEN"
plain_score = score


def score(prompts, replies):
    way = "launched" if "TORCHELASTIC_RUN_ID" in os.environ else "forked"
    if way == "launched":
        assert not any(name.split(".")[0] == "hydra" for name in sys.modules), "a rank has imported Hydra"
    place = (way, os.environ.get("WORLD_SIZE"), os.environ.get("RANK"), str(os.getpid()))
    open(os.path.join(seen, "-".join(place)), "w").close()
    return plain_score(prompts, replies)
"""


@pytest.fixture(scope="module")
def swept(warm, made: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:  # noqa: F811
    """A search of two trials with two ranks each, tracked."""
    folder = tmp_path_factory.mktemp("swept")
    (folder / "seen").mkdir()
    code = (made / "count.py").read_text() + NO_HYDRA.replace("SEEN", str(folder / "seen"))
    (folder / "reward.py").write_text(code)
    given = [word for word in STEP if word not in ("tracker=none", "stage.rollout_size=8", "stage.epochs=2")]
    words = (
        "-m",
        *given,
        *TORCHRUN,
        f"init_from={made / 'sft'}",
        f"data.path={made / 'prompts.txt'}",
        "reward=python",
        f"reward.parts.python.path={folder / 'reward.py'}:score",
        "sweep=ppo_random",
        "sweep.n_trials=2",
        "sweep.prune_on=[]",
        "stage.rollout_size=8,16",
        "stage.epochs=1",
        "stage.eval_every=0",
        "stage.max_steps=2",
    )
    done = warm.train(folder, *words, fork_ranks="later")
    assert done.returncode == 0, done.stderr[-4000:]
    rows = json.loads((folder / "outputs/sweeps/tinychat-ppo_random/trials.json").read_text())
    table = [dict(zip(rows["columns"], row, strict=True)) for row in rows["data"]]
    return {"folder": folder, "said": done.stderr, "table": table, "words": words}


def test_trials_with_two_ranks_have_folders_and_results_of_their_own(swept: dict[str, Any]) -> None:
    folders = [Path(row["run folder"]) for row in swept["table"]]
    assert len(set(folders)) == 2
    for number, (folder, row) in enumerate(zip(folders, swept["table"], strict=True)):
        told, result = (json.loads((folder / name).read_text()) for name in ("trial.json", "result.json"))
        assert (told["number"], row["state"]) == (number, "complete")
        assert result["status"] == "finished"
        assert result["metrics"]["eval/objective"] == row["eval/objective"]
        assert f"rollout_size: {told['values']['stage.rollout_size']}\n" in (folder / "config.yaml").read_text()
        steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert steps == [1, 2, 2]  # once, not once for each rank; then the evaluation
        assert (folder / "output.txt").exists() is (number == 0)  # of ranks with a launcher
    assert [path for path in swept["folder"].glob("outputs/tinychat/*/*") if path not in folders] == []


def test_no_rank_starts_hydra(swept: dict[str, Any]) -> None:
    """The reward function runs in the ranks and fails where a launcher's rank has loaded Hydra."""
    seen = sorted(path.name.rsplit("-", 1)[0] for path in (swept["folder"] / "seen").iterdir())
    assert seen == ["forked-2-0", "forked-2-1", "launched-2-0", "launched-2-1"]  # two trials of two ranks


@pytest.fixture(scope="module")
def client(swept: dict[str, Any]) -> Any:
    from tinychat.tracking.store import load_mlflow

    load_mlflow()
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{swept['folder'] / 'outputs/mlflow.db'}")


def runs_of(client: Any) -> tuple[Any, list[Any]]:
    experiment = client.get_experiment_by_name("tinychat")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.data.tags.get("tinychat.kind") == "sweep"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(runs) == 1 + len(children)
    return parent, sorted(children, key=lambda run: int(run.data.tags["tinychat.trial"]))


def test_mlflow_has_one_parent_with_all_that_was_found(swept: dict[str, Any], client: Any) -> None:
    parent, children = runs_of(client)
    best = next(row for row in swept["table"] if row["best"])
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["tinychat.study"] == "tinychat-ppo_random"
    assert parent.data.tags["best.trial"] == str(best["trial"])
    assert float(parent.data.tags["best.value"]) == pytest.approx(best["eval/objective"])
    assert float(parent.data.tags["best.stage.lr"]) == pytest.approx(best["stage.lr"])
    assert f"stage.lr={best['stage.lr']}" in parent.data.tags["best.command"]
    assert parent.data.metrics["eval/objective"] == pytest.approx(best["eval/objective"])
    assert parent.data.metrics["sweep/trials"] == 2
    names = {entry.path for entry in client.list_artifacts(parent.info.run_id)}
    wanted = {"report.md", "report.html", "plots.html", "history.png", "trials.csv", "trials.html", "trials.json"}
    assert wanted <= names
    assert "plotly" in (swept["folder"] / "outputs/sweeps/tinychat-ppo_random/plots.html").read_text()[:100_000]
    for child, row in zip(children, swept["table"], strict=True):
        assert child.info.status == "FINISHED"
        assert child.data.tags["tinychat.study"] == "tinychat-ppo_random"
        assert child.data.tags["tinychat.trial"] == str(row["trial"])
        assert float(child.data.params["stage.lr"]) == pytest.approx(row["stage.lr"])
        assert float(child.data.tags["sweep.stage.beta"]) == pytest.approx(row["stage.beta"])
        assert child.data.metrics["eval/objective"] == pytest.approx(row["eval/objective"])


def test_the_winner_is_in_the_model_registry(swept: dict[str, Any], client: Any, tmp_path: Path) -> None:
    _, children = runs_of(client)
    best = next(row for row in swept["table"] if row["best"])
    version = client.get_model_version_by_alias("tinychat-tinychat-ppo_random", "winner")
    assert version.run_id == children[best["trial"]].info.run_id
    assert version.tags["tinychat.trial"] == str(best["trial"])
    files = {Path(entry.path).name for entry in client.list_artifacts(version.run_id, "checkpoint")}
    assert {"model.safetensors", "config.json", "tokenizer.json", "value"} <= files
    assert "trainer_state" not in files


def test_the_same_command_again_runs_nothing_and_stays_one_parent(
    swept: dict[str, Any], client: Any, warm: Any
) -> None:
    done = warm.train(swept["folder"], *swept["words"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 of 2 trials done or running, 0 to go" in done.stderr
    _, children = runs_of(client)
    assert len(children) == 2
    assert len(client.search_model_versions("name='tinychat-tinychat-ppo_random'")) == 1
