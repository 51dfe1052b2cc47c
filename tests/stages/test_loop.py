"""The loop of stages that train: which checkpoints are saved, which score each has, which one is the best."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

from tinychat.engine.base import PlainEngine
from tinychat.errors import UserError
from tinychat.models.logprobs import token_nll
from tinychat.runs import folders
from tinychat.runtime import manifest
from tinychat.runtime.world import World
from tinychat.stages import Context, StopFlag
from tinychat.stages.common import Speedometer
from tinychat.stages.loop import TrainingLoop
from tinychat.tracking import Row

ALONE = World(0, 0, 1, torch.device("cpu"))
BATCH = {"input_ids": torch.tensor([[1, 2, 3]]), "targets": torch.tensor([[2, 3, 4]])}


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tokenizer_folder)


def train(
    run_dir: Path,
    tokenizer: Any,
    losses: dict[int, float],
    whole: float = 9.0,
    prepare: Callable[[Any], None] | None = None,
    **settings: Any,
) -> tuple[TrainingLoop, list[tuple[int, int | None]]]:
    """Train a tiny model; the held-out loss of a step over 5 rows is that of `losses`, over all rows `whole`. Returns
    the loop and the evaluations: (step, rows)."""
    settings = {"max_steps": 6, "eval_every": 2, "every": 5, "keep_last": 1, "keep_best": 1, "first": False} | settings
    stage = SimpleNamespace(
        name="pretrain",
        max_steps=settings["max_steps"],
        eval_every=settings["eval_every"],
        log_every=1,
        lr=0.0,
        warmup_steps=0,
        schedule=None,
        min_lr_ratio=1.0,
    )
    saving = SimpleNamespace(**{key: settings[key] for key in ("every", "keep_last", "keep_best")})
    config: Any = SimpleNamespace(stage=stage, checkpoint=saving, ds=SimpleNamespace(enabled=False))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GPT2Config(n_layer=1, n_embd=8, n_head=1, n_positions=8, vocab_size=400))
    engine = PlainEngine(
        model,
        torch.optim.SGD([{"params": list(model.parameters()), "peak_lr": 0.0}], 0.0),
        ALONE,
        torch.float32,
        grad_clip=0.0,
    )
    context = Context(run_dir, ALONE, None, {}, StopFlag(run_dir))
    seen = []
    with TrainingLoop(config, context, engine, tokenizer, {}, Speedometer(0.0, torch.float32, ALONE)) as loop:

        def measure(most: int | None) -> dict[str, float]:
            seen.append((loop.step, most))
            return {"eval/loss": whole if most is None else losses[loop.step]}

        if settings["first"]:
            loop.evaluate(measure, during=5)
        for _ in loop:
            loop.train([BATCH], lambda model, batch: token_nll(model, **batch).sum(), 3, 1)
            if loop.evaluation_due:
                loop.evaluate(measure, during=5)
            loop.save_if_due(None if prepare is None else lambda: prepare(engine.model))
    return loop, seen


@pytest.fixture(autouse=True)
def _constant_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinychat.stages.loop.lr_factor", lambda step, stage: 1.0)


def scores(run_dir: Path) -> dict[int | None, float | None]:
    return {
        folders.checkpoint_step(path): manifest.checkpoint_score(path) for path in folders.list_checkpoints(run_dir)
    }


def test_the_best_of_all_evaluations_is_kept_wherever_saves_fall(tokenizer: Any, tmp_path: Path) -> None:
    """Saves fall on steps 5 and 6, the best evaluation on step 2."""
    loop, seen = train(tmp_path, tokenizer, {2: 1.0, 4: 2.0, 6: 3.0})
    assert scores(tmp_path) == {2: 1.0, 6: 3.0}
    best = folders.list_checkpoints(tmp_path)[0]
    assert folders.best_checkpoint(tmp_path) == best
    assert loop.result({}).facts["best checkpoint"] == "step-000002, eval/loss 1"
    assert seen == [(2, 5), (4, 5), (6, 5), (6, None)], "the last score is of as many rows as the others"
    assert loop.metrics["eval/loss"] == 9.0, "the stage's result is of all rows"

    assert folders.resolve_checkpoint(str(tmp_path)) == folders.list_checkpoints(tmp_path)[-1]
    assert folders.resolve_checkpoint(f"{tmp_path}/best") == best


def test_the_last_one_may_be_the_best(tokenizer: Any, tmp_path: Path) -> None:
    train(tmp_path, tokenizer, {2: 3.0, 4: 2.0, 6: 1.0}, whole=9.0)
    assert scores(tmp_path) == {6: 1.0}
    assert folders.resolve_checkpoint(f"{tmp_path}/best").name == "step-000006"


def test_nothing_more_is_saved_or_measured_where_the_best_are_not_kept(tokenizer: Any, tmp_path: Path) -> None:
    _, seen = train(tmp_path, tokenizer, {2: 1.0, 4: 2.0, 6: 3.0}, keep_best=0, keep_last=9)
    assert scores(tmp_path) == {5: None, 6: None}
    assert seen == [(2, 5), (4, 5), (6, None)]
    with pytest.raises(UserError, match=rf"{tmp_path}/best: no checkpoint of {tmp_path} has a score .*keep_best"):
        folders.resolve_checkpoint(f"{tmp_path}/best")


def test_the_score_of_the_start_is_no_checkpoints(tokenizer: Any, tmp_path: Path) -> None:
    train(tmp_path, tokenizer, {0: 0.5, 2: 1.0, 4: 2.0, 6: 3.0}, first=True, every=1, keep_last=9)
    assert scores(tmp_path) == {1: None, 2: 1.0, 3: None, 4: 2.0, 5: None, 6: 3.0}


def test_a_resumed_run_keeps_the_best_from_before(tokenizer: Any, tmp_path: Path) -> None:
    train(tmp_path, tokenizer, {2: 1.0, 4: 2.0, 6: 3.0})
    train(tmp_path, tokenizer, {8: 0.5, 10: 4.0}, max_steps=10)
    assert scores(tmp_path) == {8: 0.5, 10: 4.0}
    train(tmp_path, tokenizer, {12: 4.0}, max_steps=12)
    assert scores(tmp_path) == {8: 0.5, 12: 4.0}


def test_what_every_checkpoint_needs_is_done_before_it_is_saved(tokenizer: Any, tmp_path: Path) -> None:
    count = iter(range(1, 99))

    def prepare(model: Any) -> None:
        model.config.fitted = next(count)

    train(tmp_path, tokenizer, {2: 1.0, 4: 2.0, 6: 3.0}, keep_last=9, prepare=prepare)
    found = {
        path.name: (folders.read_json(path / "config.json") or {}).get("fitted")
        for path in folders.list_checkpoints(tmp_path)
    }
    assert found == {"step-000002": 1, "step-000005": 2, "step-000006": 3}


def test_weights_that_give_no_number_are_not_saved(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"eval/loss is nan at step 6; the last good checkpoint is .*step-000005; try a l"
    ):
        train(tmp_path, tokenizer, {2: 1.0, 4: 2.0, 6: 3.0}, whole=math.nan)
    assert set(scores(tmp_path)) == {2, 5}


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "5 of 5 logged steps are gone"), ("", "5 of 5"), ("12", "3 of 5"), ("12x45", "1 of 5"), ("12345", None)],
)
def test_a_resume_says_what_its_curves_lack(
    content: str | None, said: str | None, tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """metrics.jsonl may be gone, emptied or cut short; torn lines alone are told elsewhere."""
    train(tmp_path, tokenizer, {2: 1.0, 4: 1.0, 5: 1.0}, max_steps=5)
    if content is not None:
        rows = [
            "torn" if one == "x" else Row(int(one), 0.0, {"schedule/lr": 1.0}).to_line().decode() for one in content
        ]
        (tmp_path / "metrics.jsonl").write_text("".join(f"{row.strip()}\n" for row in rows))
    caplog.clear()
    train(tmp_path, tokenizer, {6: 1.0}, max_steps=6)
    told = [message for message in caplog.messages if "there is a gap in its curves" in message and "logged" in message]
    assert len(told) == (said is not None) and all(said in message for message in told if said)
