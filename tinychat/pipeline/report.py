"""report.md and report.html of a pipeline: gates, steps, metrics, curves, what the policies
say to the same prompts side by side, lineage, commands.

Made from the files of the steps' run folders; nothing in it was not measured there.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tinychat.config.schema import ModelConfig
from tinychat.config.specs import SPECS, Made, Start
from tinychat.pipeline import picture
from tinychat.pipeline import recipe as gates
from tinychat.pipeline.jobs import AnyJob
from tinychat.pipeline.process import run_forked
from tinychat.pipeline.recipe import Gate, Recipe, Verdict, asking
from tinychat.pipeline.steps import Step
from tinychat.report.curves import series_of
from tinychat.report.headline import Figure, figures_of, format_value
from tinychat.report.run import MEASURED, Link, with_bounds
from tinychat.report.templates import render
from tinychat.runs import folders, parents
from tinychat.runtime import run_files
from tinychat.tracking.base import MetricsLog
from tinychat.tracking.vocabulary import METRICS, headlines_of

FILE = "samples.json"
UNCHATTED = " The pretrained model has never seen a conversation; it continues the prompt."


def write_samples(folder: Path, policies: Mapping[str, str], prompts: Sequence[str], max_new_tokens: int) -> None:
    """samples.json: {"policies": {name: checkpoint}, "samples": [{"prompt": text, NAME: reply, ...}]}.

    policies: name -> checkpoint, the first ones perhaps without a chat template: they get the last one's. Raises
    UserError for a checkpoint that cannot be read.
    """
    from tinychat.text.tokenizer import load_saved_tokenizer

    template = load_saved_tokenizer(list(policies.values())[-1]).chat_template
    replies = {name: _replies(path, template, prompts, max_new_tokens) for name, path in policies.items()}
    samples = [
        {"prompt": prompt} | {name: said[index] for name, said in replies.items()}
        for index, prompt in enumerate(prompts)
    ]
    content = {"policies": dict(policies), "samples": samples}
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


def _replies(checkpoint: str, template: str | None, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
    import torch

    from tinychat.models.checkpoints import load_model
    from tinychat.models.generation.decode import DecodeOptions, decode
    from tinychat.models.generation.generate import prompt_ids
    from tinychat.models.vocabulary import vocabulary
    from tinychat.text.chat_template import encode_prompts, end_ids, reply_text
    from tinychat.text.tokenizer import load_saved_tokenizer

    tokenizer = load_saved_tokenizer(checkpoint)
    tokenizer.chat_template = tokenizer.chat_template or template
    model = load_model(checkpoint).to("cuda" if torch.cuda.is_available() else "cpu").eval()
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
class StepRun:
    """A step of the recipe and its run."""

    step: Step
    job: AnyJob
    folder: Path | None  # of the finished run; None: it has none
    state: str  # ran | finished before | left out | did not finish

    @property
    def name(self) -> str:
        return self.step.name

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
    asked: str  # how they were asked
    lineage: list[tuple[str, str, Link, str]]  # stage, what it was given, folder, the stage that made it
    commands: list[tuple[str, str]]  # stage, command
    headline: list[Figure] = field(default_factory=list)
    images: dict[str, str] = field(default_factory=dict)  # stage -> PNG in base64


def make_samples(folder: Path, recipe: Recipe, steps: Sequence[StepRun], model: ModelConfig) -> None:
    """Let the policies answer the recipe's prompts, unless those very checkpoints have. model: what they are. Raises
    UserError."""
    if not recipe.samples or not any(run.step.trains_policy and run.folder for run in steps):
        return
    known, policies = read_samples(folder), answering(steps)
    if known.get("policies") == policies and [row["prompt"] for row in known["samples"]] == recipe.samples:
        return

    def make() -> None:
        from tinychat.models import custom

        custom.use(model)
        write_samples(folder, policies, recipe.samples, recipe.sample_tokens)

    run_forked(make, "the samples")


def answering(steps: Sequence[StepRun]) -> dict[str, str]:
    """Name -> checkpoint of what is asked, in the steps' order: the policies that they have trained, and models that a
    step has measured and none has made, as they come. Raises UserError for a checkpoint that is gone."""
    made = [run.folder.resolve() for run in steps if run.folder]
    found = {}
    for run in steps:
        measured = (run.result.get("facts") or {}).get(MEASURED)
        if run.step.trains_policy and run.folder:
            found[run.step.label] = str(folders.resolve_checkpoint(str(run.folder)))
        elif measured and not {*made} & {*Path(measured).resolve().parents}:
            found[run.name] = measured
    return found


def measured(steps: Sequence[StepRun]) -> dict[str, dict[str, float]]:
    """{step: its last values, "STEP:start": the first ones that it logged}; see tinychat.pipeline.recipe."""
    values: dict[str, dict[str, float]] = {}
    for run in steps:
        if run.folder is None:
            continue
        series = series_of(MetricsLog(run.folder / "metrics.jsonl").read())
        values[run.name + gates.START] = {name: points[0][1] for name, points in series.items()}
        last = {name: points[-1][1] for name, points in series.items()}
        found = run.result.get("metrics") or {}
        values[run.name] = last | {name: value for name, value in found.items() if value is not None}
    return values


def write(
    folder: Path,
    recipe: Recipe,
    verdicts: Sequence[Verdict],
    steps: Sequence[StepRun],
    command: str,
    seconds: float,
) -> None:
    """Write report.md and report.html into the folder. Raises OSError."""
    saved = read_samples(folder)
    policies = list(saved.get("policies", {}))
    in_all = sum(run.result.get("minutes") or 0.0 for run in steps)
    trained = [SPECS[run.step.stage or run.name] for run in steps if run.step.trains_policy and run.folder]
    pretrained = any(spec.reads == "documents" for spec in trained)
    report = PipelineReport(
        title=f"Pipeline {recipe.name}",
        subtitle=f"{_summary(verdicts)} {in_all:.1f} minutes in stages, {seconds / 60:.1f} in this command.",
        command=command,
        gates=[_gate_row(verdict) for verdict in verdicts],
        stages=[_step_row(run, folder) for run in steps],
        metrics=_metrics_table(steps),
        compared=_policies_table(steps),
        curves=_curves(folder, steps),
        policies=policies,
        samples=[[row["prompt"], *(row[name] for name in policies)] for row in saved.get("samples", [])],
        asked=f"Greedy replies.{UNCHATTED if pretrained else ''}",
        lineage=_lineage(steps, folder),
        commands=[(run.name, run.job.command(run.folder)) for run in steps],
        headline=_headline(steps),
    )
    runs = {run.name: (run.step.stage, run.folder) for run in steps if run.folder and run.step.stage}
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


def headline(run: StepRun, wanted: Sequence[Gate]) -> str:
    """For the terminal, after a stage: `sft: 3.12 minutes | instruction accuracy 0.934`, what its gates look at."""
    values, result = measured([run]).get(run.name, {}), run.result
    names = [gate.metric for gate in wanted if gate.of == run.name] or [str(result.get("objective_name"))]
    found = [f"{name.rpartition('/')[2].replace('_', ' ')} {values[name]:.4g}" for name in names if name in values]
    state = [f"finished already in {run.folder}"] if run.state == "finished before" else []
    parts = [*state, f"{result.get('minutes') or 0.0:.2f} minutes", *dict.fromkeys(found)]
    return f"{run.name}: {' | '.join(parts)}"


def _summary(verdicts: Sequence[Verdict]) -> str:
    asked = asking(verdicts)
    passed = sum(verdict.word == "pass" for verdict in asked)
    return f"{passed} of {len(asked)} gates passed." if asked else ""


def _gate_row(verdict: Verdict) -> tuple[str, str, str, str, str]:
    bounds = {f"{verdict.gate.metric}_low": verdict.low, f"{verdict.gate.metric}_high": verdict.high}
    value = with_bounds(verdict.gate.metric, {verdict.gate.metric: verdict.value, **bounds})
    return verdict.gate.name, verdict.word, value, verdict.gate.wanted, verdict.gate.measures


def _headline(steps: Sequence[StepRun]) -> list[Figure]:
    """The first figure of each of the steps that make a policy or what it learns from, the last of them where two
    have the same."""
    figures: dict[str, Figure] = {}
    values = measured(steps)
    for run in steps:
        if run.step.stage is None or run.step.makes not in (Made.language, Made.reward):
            continue
        found = values.get(run.name, {})
        for metric in headlines_of(run.step.stage, found)[:1]:
            bounds = {f"{metric}_{end}" for end in ("low", "high")}
            one = figures_of(run.step.stage, {n: v for n, v in found.items() if n in {metric, *bounds}}, {})[0]
            what = f"{'stage' if run.name == run.step.stage else 'step'} {run.name}"
            figures[metric] = replace(one, note="; ".join(part for part in (what, one.note) if part))
    return list(figures.values())


def _step_row(run: StepRun, folder: Path) -> tuple[str, str, str, Link]:
    minutes = run.result.get("minutes")
    where = Link.to(run.folder, folder) if run.folder else Link("", "")
    kind = f" ({run.step.called})" if run.step.called else ""
    return run.name + kind, run.state, "" if minutes is None else f"{minutes:.2f}", where


def _metrics_table(steps: Sequence[StepRun]) -> tuple[list[str], list[list[str]]]:
    """What the steps measured at their end, a column for each that has run."""
    found = {run.name: run.result.get("metrics") or {} for run in steps if run.folder}
    names = dict.fromkeys(name for metrics in found.values() for name in metrics if not name.endswith(_BOUNDS))
    ranked = [*(name for name in METRICS if name in names), *(name for name in names if name not in METRICS)]
    cells = [[name, *(_cell(metrics.get(name)) for metrics in found.values())] for name in ranked]
    return list(found), cells


# In units of a stage's own loss, reward or KL weight: no two stages have the same.
_OF_A_STAGE = {"eval/loss", "eval/reward", "eval/objective"}


def _policies_table(steps: Sequence[StepRun]) -> tuple[list[str], list[list[str]]]:
    """What the policies are judged by that went on from another one, and those of a stage that there are several of,
    side by side. Before those of one start stands what the first of them that measured it found at step 0."""
    stages = [run.step.stage for run in steps if run.folder]
    runs = [run for run in steps if run.folder and (_goes_on(run.step) or stages.count(run.step.stage) > 1)]
    runs = [run for run in runs if run.step.trains_policy]
    if not runs:
        return [], []
    values = measured(runs)
    begins: dict[str | None, list[StepRun]] = {}
    for run in runs:
        assert run.folder is not None
        begins.setdefault(parents.told(run.folder).get("init_from"), []).append(run)
    columns: list[tuple[str, Mapping[str, float]]] = []
    minutes: list[str] = []
    for group in begins.values():
        starts: dict[str, float] = {}
        for run in group:
            assert run.folder is not None
            series = series_of(MetricsLog(run.folder / "metrics.jsonl").read())
            starts = {name: points[0][1] for name, points in series.items() if points[0][0] == 0} | starts
        columns.append(("start" if len(begins) == 1 else f"start of {group[0].step.label}", starts))
        columns += [(run.step.label, values[run.name]) for run in group]
        minutes += ["", *(f"{run.result.get('minutes') or 0.0:.2f}" for run in group)]
    headlines = (name for run in runs for name in SPECS[run.step.stage or run.name].headlines)
    names = [name for name in dict.fromkeys(headlines) if _comparable(name)]
    names = [name for name in names if any(name in values[run.name] for run in runs)]
    rows = [[name, *(with_bounds(name, found) for _, found in columns)] for name in names]
    return [name for name, _ in columns], [*rows, ["minutes of the step", *minutes]]


def _comparable(metric: str) -> bool:
    return metric.startswith("eval/") and metric not in _OF_A_STAGE


def _goes_on(step: Step) -> bool:
    return bool(step.start) or (step.stage is not None and SPECS[step.stage].start is Start.checkpoint)


def _cell(value: float | None) -> str:
    return "" if value is None else format_value(value)


def _curves(folder: Path, steps: Sequence[StepRun]) -> list[tuple[str, str]]:
    """Copies of the stages' curves: the folder can be taken elsewhere."""
    found = []
    for run in steps:
        source = run.folder / "curves.png" if run.folder else None
        if source is not None and source.is_file():
            (folder / f"curves-{run.name}.png").write_bytes(source.read_bytes())
            found.append((run.name, f"curves-{run.name}.png"))
    return found


def _lineage(steps: Sequence[StepRun], folder: Path) -> list[tuple[str, str, Link, str]]:
    """(stage, what it was given, the folder), from the parents that each run wrote down."""
    names = {str(run.folder.resolve()): run.name for run in steps if run.folder}
    rows = []
    for run in steps:
        found = parents.told(run.folder) if run.folder else {}
        rows += [(run.name, what, *_told(str(path), names, folder)) for what, path in found.items() if path]
    return rows


def _told(path: str, names: Mapping[str, str], folder: Path) -> tuple[Link, str]:
    stage = next((stage for run, stage in names.items() if path == run or path.startswith(f"{run}/")), "")
    return Link.to(Path(path), folder), stage
