"""Every kind of HTML page that tinychat writes, made of names, data and replies that are markup themselves."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from tinychat.tracking.base import MetricsLog

# Each part ends another place that text may stand in: an attribute, a title, a style, a script, a table, a comment.
HOSTILE = (
    'x\' "><img src=x onerror="window.pwned=1"></title></style></textarea></script><script>window.pwned=1</script>'
    "--><svg onload=window.pwned=1></td></table><a href='javascript:window.pwned=1'>{{ 7 * 7 }} %}&lt;b&gt;"
)
NAME = HOSTILE.replace("/", "|")  # as the name of a folder


def run_folder(outputs: Path, stage: str = "sft", number: int = 1) -> Path:
    """A finished run, every text of whose files is hostile."""
    folder = outputs / NAME[:80] / f"{stage}-{NAME[:150]}" / f"2026-01-01_00-00-0{number}"
    for name in ("tables", "pictures", "checkpoints"):
        (folder / name).mkdir(parents=True)
    config = {
        "run_name": HOSTILE,
        "experiment_name": HOSTILE,
        "seed": number,
        "precision": HOSTILE,
        "init_from": HOSTILE,
        "stage": {"name": stage, "lr": HOSTILE},
        "model": {"name": HOSTILE, "path": HOSTILE},
        "data": {"name": HOSTILE, "path": HOSTILE},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "command.txt").write_text(f"python -m tinychat.train 'data.path={HOSTILE}'\n")
    log = MetricsLog(folder / "metrics.jsonl")
    for step in (0, 1, 2):
        log.append(step, {"eval/loss": 3.0 - step, "train/loss": 3.0 - step, "eval/instruction_accuracy": step / 4})
    metrics = {"eval/instruction_accuracy": 0.5, "eval/loss": 1.0 + number}
    result = {
        "status": "finished",
        "objective": 1.0 + number,
        "objective_name": "eval/loss",
        "metrics": metrics,
        "minutes": 1.0,
        "error": HOSTILE,
        "facts": {HOSTILE: HOSTILE, "curriculum": {HOSTILE: 1}},
    }
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "samples.json").write_text(json.dumps([{"prompt": HOSTILE, "continuation": HOSTILE}]))
    (folder / "lineage.json").write_text(json.dumps({HOSTILE: HOSTILE, "data": {"train": [HOSTILE, {"a": HOSTILE}]}}))
    (folder / "parents.json").write_text(json.dumps({"init_from": str(folder), HOSTILE: HOSTILE}))
    table = {"title": f"Replies {HOSTILE}", "columns": [HOSTILE, "n"], "rows": [[HOSTILE, 1]]}
    (folder / "tables/replies.json").write_text(json.dumps(table))
    return folder


def add_rollouts(run: Path) -> Path:
    """Two of them, whose prompts, replies and all the rest are hostile. The page that the report makes of them."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    (run / "rollouts").mkdir()
    (run / "checkpoints" / "step-000001").mkdir()
    words = Tokenizer(WordLevel({HOSTILE: 0, "b": 1}, unk_token="b"))
    words.save(str(run / "checkpoints" / "step-000001" / "tokenizer.json"))
    row = {"prompt": [0], "response": [0, 1, 0], "score": 1.0, "place": HOSTILE, "kind": HOSTILE, "ended": True}
    row |= {"parts": {HOSTILE: 1.0}, "logprobs": [-1.0, -2.0, -3.0]}
    for step in (1, 2):
        lines = [json.dumps(one) for one in ({}, row, row | {"prompt": [1]})]
        (run / "rollouts" / f"step-{step:06d}.jsonl").write_text("\n".join(lines))
    return run / "rollouts.html"


def make_all(tmp_path: Path) -> list[Path]:
    """The pages of a run, a pipeline, a comparison, rollouts and a sweep (its report, its table and its plots)."""
    outputs = tmp_path / "outputs"
    runs = [run_folder(outputs, number=number) for number in (1, 2)]
    rollouts = add_rollouts(runs[1])
    reports = [_report(run) for run in runs]
    return [*reports, _pipeline(tmp_path, runs), _compare(outputs, tmp_path), rollouts, *_sweep(tmp_path)]


def _report(run: Path) -> Path:
    from tinychat.report.run import write_report

    page = write_report(run)
    assert page is not None
    return page


def _pipeline(tmp_path: Path, runs: list[Path]) -> Path:
    from tinychat.pipeline import report
    from tinychat.pipeline.recipe import Gate, Verdict
    from tinychat.pipeline.steps import Step

    folder = tmp_path / "pipeline"
    folder.mkdir()
    samples = {"policies": {HOSTILE: HOSTILE}, "samples": [{"prompt": HOSTILE, HOSTILE: HOSTILE}]}
    (folder / "samples.json").write_text(json.dumps(samples))
    job: Any = SimpleNamespace(command=lambda folder: HOSTILE)
    recipe: Any = SimpleNamespace(name=HOSTILE)
    verdict = Verdict(Gate(HOSTILE, "eval/loss", "sft", None, ">=", 0.9), 0.5)
    steps = [
        report.StepRun(Step("sft", [], stage="sft"), job, runs[0], HOSTILE),
        report.StepRun(Step("ppo", [], stage="ppo"), job, runs[1], "ran"),
    ]
    report.write(folder, recipe, [verdict], steps, HOSTILE, 60.0)
    return folder / "report.html"


def _compare(outputs: Path, tmp_path: Path) -> Path:
    from tinychat.compare import __main__ as compare

    folder = tmp_path / f"compare-{NAME[:80]}"
    compare.run([NAME[:80], "--outputs", str(outputs), "--output", str(folder)])
    return folder / "report.html"


def _sweep(tmp_path: Path) -> list[Path]:
    import optuna

    from tinychat.report.run import Report, Table, write_pages
    from tinychat.sweeps import results

    folder = tmp_path / "sweep"
    folder.mkdir()
    study = optuna.create_study(study_name=HOSTILE)
    space = {HOSTILE: optuna.distributions.CategoricalDistribution([HOSTILE, "b"])}
    for value, word in ((1.0, HOSTILE), (2.0, "b"), (3.0, HOSTILE)):
        study.add_trial(optuna.trial.create_trial(params={HOSTILE: word}, distributions=space, value=value))
    found = results.rows(study, folder)
    for row in found:
        row.run_dir = row.error = HOSTILE
    results.write_table(folder, found, [HOSTILE], [HOSTILE])
    pictures = results.draw(study, [HOSTILE], folder)
    table = Table("Trials", [HOSTILE], [[HOSTILE]])
    write_pages(folder, Report(HOSTILE, HOSTILE, HOSTILE, [(HOSTILE, HOSTILE)], [(HOSTILE,) * 3], tables=[table]))
    assert pictures
    return [folder / "report.html", folder / "trials.html", folder / results.PAGE]
