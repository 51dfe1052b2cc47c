"""MLflow loads an exported model without tinychat, answers chats with the replies of the checkpoint, and knows it as a
version beside its run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.chat_models import saved
from tests.reward_models import reward_model, score_texts
from tinychat.errors import UserError
from tinychat.export.__main__ import run
from tinychat.models.scorer import Scorer
from tinychat.tracking.store import load_mlflow, prepare_store, sqlite_uri

ASKED = {"messages": [{"role": "user", "content": "the cat"}], "max_tokens": 12, "temperature": 0}


def loaded(path: Path) -> Any:
    load_mlflow()
    import mlflow

    return mlflow.pyfunc.load_model(str(path))


@pytest.mark.slow
def test_a_policy_answers_chats_exactly_and_is_registered_beside_its_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import tinychat

    run_dir = tmp_path / "outputs" / "mine" / "sft-tiny" / "2026-01-02_03-04-05"
    checkpoint = saved(run_dir / "checkpoints" / "step-000002", "chatml")
    (run_dir / "config.yaml").write_text("stage: {name: sft}\n")
    uri = sqlite_uri(tmp_path / "outputs" / "mlflow.db")
    prepare_store(uri)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiment = client.create_experiment("mine", (tmp_path / "outputs" / "mlartifacts").as_uri())
    run_id = client.create_run(experiment).info.run_id
    (run_dir / "tracking.json").write_text(json.dumps({"uri": uri, "experiment": "mine", "run_id": run_id}))
    run([str(checkpoint), "--to", "mlflow"])
    out = run_dir / "exports" / "step-000002-mlflow"
    assert "registered as models:/mine-sft-tiny/1" in capsys.readouterr().out
    expected = tinychat.load(checkpoint).reply("the cat", greedy=True, max_new_tokens=12)
    model = loaded(out)
    answer = model.predict(ASKED)
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": expected}
    assert answer["choices"][0]["finish_reason"] == "length" and answer["usage"]["completion_tokens"] == 12
    seeded = ASKED | {"temperature": 1.0, "n": 2, "custom_inputs": {"seed": 3}}
    one, two = (model.predict(seeded)["choices"] for _ in range(2))
    assert one == two and one[0]["message"] != one[1]["message"]
    word = expected[3:7]
    cut = model.predict(ASKED | {"stop": [word]})["choices"][0]
    assert cut["message"]["content"] == expected[: expected.index(word)].strip() and cut["finish_reason"] == "stop"
    for wrong, said in ((ASKED | {"messages": []}, "is empty"), (ASKED | {"n": 99}, "n=99: must be 1 to 16")):
        with pytest.raises(Exception, match=said):
            model.predict(wrong)
    (version,) = client.search_model_versions("name='mine-sft-tiny'")
    assert (version.run_id, version.tags["stage"]) == (run_id, "sft")
    source = Path(version.source.removeprefix("file://"))
    assert (source / "MLmodel").read_bytes() == (out / "MLmodel").read_bytes()
    for text in out.rglob("*.py"):
        assert "import tinychat" not in text.read_text() and "from tinychat" not in text.read_text()
    with pytest.raises(UserError, match="exists with other content"):
        run([str(checkpoint), "--to", "mlflow"])


@pytest.mark.slow
def test_a_reward_model_answers_with_its_scores(tmp_path: Path) -> None:
    path = reward_model(tmp_path / "reward")
    run([str(path), "--to", "mlflow", "--out", str(tmp_path / "out")])
    prompt = [{"role": "user", "content": "the cat"}]
    scorer = Scorer(str(path), "cpu", torch.float32, 1)
    expected = score_texts(scorer, [prompt], ["the dog"])  # type: ignore[list-item]
    model = loaded(tmp_path / "out")
    import pandas

    chat = [*prompt, {"role": "assistant", "content": "the dog"}]
    for row in ({"prompt": "the cat", "response": "the dog"}, {"messages": chat}):
        assert model.predict(pandas.DataFrame([row])) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(Exception, match="row 1: has neither messages nor prompt and response"):
        model.predict(pandas.DataFrame([{"text": "the cat"}]))


def test_without_a_chat_template_there_is_nothing_to_answer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no chat template, so that it answers no chat"):
        run([str(saved(tmp_path / "text")), "--to", "mlflow", "--out", str(tmp_path / "out")])
