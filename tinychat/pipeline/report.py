"""report.md and report.html of a pipeline: gates, stages, metrics, curves, what the policies
say to the same prompts side by side, lineage, commands.

Made from the files of the stages' run folders; nothing in it was not measured there.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tinychat.config.schema import ModelConfig
from tinychat.config.specs import SPECS, Made, Start, makers
from tinychat.pipeline import picture
from tinychat.pipeline import recipe as gates
from tinychat.pipeline.jobs import Job
from tinychat.pipeline.process import run_forked
from tinychat.pipeline.recipe import Gate, Recipe, Verdict, asking
from tinychat.report.curves import series_of
from tinychat.report.headline import Figure, figures_of, format_value
from tinychat.report.run import Link, render
from tinychat.runs import folders, parents
from tinychat.runtime import run_files
from tinychat.tracking.base import MetricsLog
from tinychat.tracking.vocabulary import METRICS, headlines_of

FILE = "samples.json"


def write_samples(folder: Path, policies: Mapping[str, Path], prompts: Sequence[str], max_new_tokens: int) -> None:
    """samples.json: {"policies": {name: checkpoint}, "samples": [{"prompt": text, NAME: reply, ...}]}.

    policies: name -> run folder, the first ones perhaps without a chat template: they get the last one's. Raises
    UserError for a checkpoint that cannot be read.
    """
    from tinychat.text.tokenizer import load_saved_tokenizer

    checkpoints = {name: folders.resolve_checkpoint(str(run)) for name, run in policies.items()}
    template = load_saved_tokenizer(str(list(checkpoints.values())[-1])).chat_template
    replies = {name: _replies(path, template, prompts, max_new_tokens) for name, path in checkpoints.items()}
    samples = [
        {"prompt": prompt} | {name: said[index] for name, said in replies.items()}
        for index, prompt in enumerate(prompts)
    ]
    content = {"policies": {name: str(path) for name, path in checkpoints.items()}, "samples": samples}
    folders.write_text_atomic(folder / FILE, json.dumps(content, indent=1, ensure_ascii=False))


def read_samples(folder: Path) -> dict[str, Any]:
    """What write_samples has written; {} where there is none, or (said once) none that can be used."""

    def read() -> dict[str, Any] | None:
        found = run_files.read_json(folder / FILE, {"policies": dict, "samples": list})
        names = ("prompt", *(found or {}).get("policies", {}))
        if not all(isinstance(row, dict) and row.keys() >= set(names) for row in (found or {}).get("samples", [])):
            raise run_files.Unreadable(f"{folder / FILE}: samples is no list of replies to prompts")
        return found

    return run_files.if_readable(read) or {}


def _replies(checkpoint: Path, template: str | None, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
    import torch

    from tinychat.models.checkpoints import load_model
    from tinychat.models.generation.decode import DecodeOptions, decode
    from tinychat.models.generation.generate import prompt_ids
    from tinychat.models.vocabulary import vocabulary
    from tinychat.text.chat_template import encode_prompts, end_ids, reply_text
    from tinychat.text.tokenizer import load_saved_tokenizer

    tokenizer = load_saved_tokenizer(str(checkpoint))
    tokenizer.chat_template = tokenizer.chat_template or template
    model = load_model(str(checkpoint)).to("cuda" if torch.cuda.is_available() else "cpu").eval()
    if tokenizer.chat_template:
        ids = encode_prompts(tokenizer, [[{"role": "user", "content": prompt}] for prompt in prompts])
        ends = end_ids(tokenizer)
    else:  # a pipeline that ends with pretraining: the prompts as texts that go on
        ids, ends = [prompt_ids(tokenizer, prompt) for prompt in prompts], (tokenizer.eos_token_id,)
    room = model.config.max_position_embeddings
    fits = [index for index, prompt in enumerate(ids) if 0 < len(prompt) < room]
    options = DecodeOptions(max_new_tokens, ends, temperature=0.0, vocabulary=vocabulary(tokenizer))
    done = decode(model, [ids[index] for index in fits], options, tokenizer.pad_token_id or 0, len(prompts))
    said = dict(zip(fits, done.responses, strict=True))
    if not tokenizer.chat_template:
        return [tokenizer.decode(said.get(index, []), skip_special_tokens=True).strip() for index in range(len(ids))]
    return [reply_text(tokenizer, said.get(index, [])) for index in range(len(ids))]


PIPELINE = "pipeline.json"  # which pipeline a folder is of
_BOUNDS = ("_low", "_high")


@dataclass
class StageRun:
    """A stage of the recipe and its run."""

    stage: str
    job: Job
    folder: Path | None  # of the finished run; None: it has none
    state: str  # ran | finished before | left out | did not finish

    @property
    def result(self) -> dict[str, Any]:
        return (folders.read_result(self.folder) if self.folder else None) or {}


@dataclass
class PipelineReport:
    """What the two templates show; an empty part is left out."""

    title: str
    subtitle: str
    command: str
    gates: list[tuple[str, str, str, str, str]]  # name, verdict, value, wanted, what is measured
    stages: list[tuple[str, str, str, Link]]  # stage, state, minutes, run folder
    metrics: tuple[list[str], list[list[str]]]  # stages; [metric, a cell for each]
    compared: tuple[
        list[str], list[list[str]]
    ]  # the start and each policy that learnt from it; [metric, a cell for each]
    curves: list[tuple[str, str]]  # stage, file in the folder
    policies: list[str]
    samples: list[list[str]]  # prompt, a reply of each policy
    lineage: list[tuple[str, str, Link, str]]  # stage, what it was given, folder, the stage that made it
    commands: list[tuple[str, str]]  # stage, command
    headline: list[Figure] = field(default_factory=list)
    images: dict[str, str] = field(default_factory=dict)  # stage -> PNG in base64


def make_samples(folder: Path, recipe: Recipe, stages: Sequence[StageRun], model: ModelConfig) -> None:
    """Let the policies answer the recipe's prompts, unless those very checkpoints have. model: what they are. Raises
    UserError."""
    able = makers(Made.language)
    policies = {SPECS[run.stage].policy: run.folder for run in stages if run.stage in able and run.folder}
    if not policies or not recipe.samples:
        return
    known = read_samples(folder)
    wanted = {name: str(folders.resolve_checkpoint(str(run))) for name, run in policies.items()}
    if known.get("policies") == wanted and [row["prompt"] for row in known["samples"]] == recipe.samples:
        return

    def make() -> None:
        from tinychat.models import custom

        custom.use(model)
        write_samples(folder, policies, recipe.samples, recipe.sample_tokens)

    run_forked(make, "the samples")


def measured(stages: Sequence[StageRun]) -> dict[str, dict[str, float]]:
    """{stage: its last values, "STAGE:start": the first ones that it logged}; see tinychat.pipeline.recipe."""
    values: dict[str, dict[str, float]] = {}
    for run in stages:
        if run.folder is None:
            continue
        series = series_of(MetricsLog(run.folder / "metrics.jsonl").read())
        values[run.stage + gates.START] = {name: points[0][1] for name, points in series.items()}
        last = {name: points[-1][1] for name, points in series.items()}
        found = run.result.get("metrics") or {}
        values[run.stage] = last | {name: value for name, value in found.items() if value is not None}
    return values


def write(
    folder: Path,
    recipe: Recipe,
    verdicts: Sequence[Verdict],
    stages: Sequence[StageRun],
    command: str,
    seconds: float,
) -> None:
    """Write report.md and report.html into the folder. Raises OSError."""
    saved = read_samples(folder)
    policies = list(saved.get("policies", {}))
    in_all = sum(run.result.get("minutes") or 0.0 for run in stages)
    report = PipelineReport(
        title=f"Pipeline {recipe.name}",
        subtitle=f"{_summary(verdicts)} {in_all:.1f} minutes in stages, {seconds / 60:.1f} in this command.",
        command=command,
        gates=[_gate_row(verdict) for verdict in verdicts],
        stages=[_stage_row(run, folder) for run in stages],
        metrics=_metrics_table(stages),
        compared=_policies_table(stages),
        curves=_curves(folder, stages),
        policies=policies,
        samples=[[row["prompt"], *(row[name] for name in policies)] for row in saved.get("samples", [])],
        lineage=_lineage(stages, folder),
        commands=[(run.stage, run.job.command) for run in stages],
        headline=_headline(measured(stages)),
    )
    runs = {run.stage: run.folder for run in stages if run.folder}
    if picture.write_picture(folder / picture.FILE, runs, policies, saved.get("samples", [])):
        report.curves.append(("the whole recipe", picture.FILE))
    folders.write_text_atomic(folder / "report.md", render("pipeline/pipeline.md.j2", report))
    for stage, file in report.curves:
        report.images[stage] = base64.b64encode((folder / file).read_bytes()).decode()
    folders.write_text_atomic(folder / "report.html", render("pipeline/pipeline.html.j2", report))
    facts = [{"gate": v.gate.name, "verdict": v.word, "value": v.value, "wanted": v.gate.wanted} for v in verdicts]
    folders.write_text_atomic(folder / "gates.json", json.dumps(facts, indent=1))


def verdict_lines(verdicts: Sequence[Verdict]) -> list[str]:
    """For the terminal."""
    width = max((len(verdict.gate.name) for verdict in verdicts), default=0)
    rows = [_gate_row(verdict) for verdict in verdicts]
    return [f"{word:<13} {name:<{width}}  {value} {wanted}".rstrip() for name, word, value, wanted, _ in rows]


def headline(run: StageRun, wanted: Sequence[Gate]) -> str:
    """For the terminal, after a stage: `sft: 3.12 minutes | instruction accuracy 0.934`, what its gates look at."""
    values, result = measured([run]).get(run.stage, {}), run.result
    names = [gate.metric for gate in wanted if gate.of == run.stage] or [str(result.get("objective_name"))]
    found = [f"{name.rpartition('/')[2].replace('_', ' ')} {values[name]:.4g}" for name in names if name in values]
    state = [f"finished already in {run.folder}"] if run.state == "finished before" else []
    parts = [*state, f"{result.get('minutes') or 0.0:.2f} minutes", *dict.fromkeys(found)]
    return f"{run.stage}: {' | '.join(parts)}"


def _summary(verdicts: Sequence[Verdict]) -> str:
    asked = asking(verdicts)
    passed = sum(verdict.word == "pass" for verdict in asked)
    return f"{passed} of {len(asked)} gates passed." if asked else ""


def _gate_row(verdict: Verdict) -> tuple[str, str, str, str, str]:
    bounds = {f"{verdict.gate.metric}_low": verdict.low, f"{verdict.gate.metric}_high": verdict.high}
    value = _with_bounds(verdict.gate.metric, {verdict.gate.metric: verdict.value, **bounds})
    return verdict.gate.name, verdict.word, value, verdict.gate.wanted, verdict.gate.measures


def _headline(values: Mapping[str, Mapping[str, float]]) -> list[Figure]:
    """The first figure of each of the stages that make a policy or what it learns from, the last of them where two
    have the same."""
    figures: dict[str, Figure] = {}
    for stage in makers(Made.language, Made.reward):
        found = values.get(stage, {})
        for metric in headlines_of(stage, found)[:1]:
            bounds = {f"{metric}_{end}" for end in ("low", "high")}
            one = figures_of(stage, {name: v for name, v in found.items() if name in {metric, *bounds}}, {})[0]
            figures[metric] = replace(one, note="; ".join(part for part in (f"stage {stage}", one.note) if part))
    return list(figures.values())


def _stage_row(run: StageRun, folder: Path) -> tuple[str, str, str, Link]:
    minutes = run.result.get("minutes")
    where = Link.to(run.folder, folder) if run.folder else Link("", "")
    return run.stage, run.state, "" if minutes is None else f"{minutes:.2f}", where


def _metrics_table(stages: Sequence[StageRun]) -> tuple[list[str], list[list[str]]]:
    """What the stages measured at their end, a column for each that has run."""
    found = {run.stage: run.result.get("metrics") or {} for run in stages if run.folder}
    names = dict.fromkeys(name for metrics in found.values() for name in metrics if not name.endswith(_BOUNDS))
    ranked = [name for name in METRICS if name in names]
    cells = [[name, *(_cell(metrics.get(name)) for metrics in found.values())] for name in ranked]
    return list(found), cells


# In units of a stage's own loss, reward or KL weight: no two stages have the same.
_OF_A_STAGE = {"eval/loss", "eval/reward", "eval/objective"}


def _policies_table(stages: Sequence[StageRun]) -> tuple[list[str], list[list[str]]]:
    """What the policies are judged by that were trained from one start, side by side; the start's column is what the
    first of them that measured it found at step 0."""
    runs = [run for run in stages if run.folder and _goes_on_from_a_policy(run.stage)]
    if not runs:
        return [], []
    starts: dict[str, float] = {}
    for run in runs:
        assert run.folder is not None
        series = series_of(MetricsLog(run.folder / "metrics.jsonl").read())
        found = {name: points[0][1] for name, points in series.items() if points[0][0] == 0}
        starts = found | starts
    values = measured(runs)
    names = dict.fromkeys(name for run in runs for name in SPECS[run.stage].headlines if _comparable(name))
    columns = [("start", starts), *((SPECS[run.stage].policy, values[run.stage]) for run in runs)]
    rows = [[name, *(_with_bounds(name, found) for _, found in columns)] for name in names]
    minutes = ["minutes of the stage", "", *(f"{run.result.get('minutes') or 0.0:.2f}" for run in runs)]
    return [name for name, _ in columns], [row for row in rows if any(row[2:])] + [minutes]


def _comparable(metric: str) -> bool:
    return metric.startswith("eval/") and metric not in _OF_A_STAGE


def _goes_on_from_a_policy(stage: str) -> bool:
    spec = SPECS[stage]
    return spec.makes is Made.language and spec.start is Start.checkpoint


def _with_bounds(metric: str, found: Mapping[str, float | None]) -> str:
    value = found.get(metric)
    if value is None:
        return ""
    low, high = (found.get(f"{metric}_{end}") for end in ("low", "high"))
    bounds = "" if low is None or high is None else f" ({low:.3g} to {high:.3g})"
    return format_value(float(f"{value:.4g}")) + bounds


def _cell(value: float | None) -> str:
    return "" if value is None else format_value(value)


def _curves(folder: Path, stages: Sequence[StageRun]) -> list[tuple[str, str]]:
    """Copies of the stages' curves: the folder can be taken elsewhere."""
    found = []
    for run in stages:
        source = run.folder / "curves.png" if run.folder else None
        if source is not None and source.is_file():
            (folder / f"curves-{run.stage}.png").write_bytes(source.read_bytes())
            found.append((run.stage, f"curves-{run.stage}.png"))
    return found


def _lineage(stages: Sequence[StageRun], folder: Path) -> list[tuple[str, str, Link, str]]:
    """(stage, what it was given, the folder), from the parents that each run wrote down."""
    names = {str(run.folder.resolve()): run.stage for run in stages if run.folder}
    rows = []
    for run in stages:
        found = parents.told(run.folder) if run.folder else {}
        rows += [(run.stage, what, *_told(str(path), names, folder)) for what, path in found.items() if path]
    return rows


def _told(path: str, names: Mapping[str, str], folder: Path) -> tuple[Link, str]:
    stage = next((stage for run, stage in names.items() if path == run or path.startswith(f"{run}/")), "")
    return Link.to(Path(path), folder), stage
