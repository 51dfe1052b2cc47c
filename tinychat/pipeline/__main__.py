"""The recipe in one command: its steps run as jobs, checkpoints are handed on, what is done is skipped.

    python -m tinychat.pipeline stages=pretrain,sft,reward,ppo seed=2 ppo:stage.beta=0.1

Every stage is the job of a `python -m tinychat.train` command, which the report shows. All of them are composed and
checked before the first one runs.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tinychat import train
from tinychat.config.schema import Config, TrackerKind
from tinychat.config.specs import Made, spec_of
from tinychat.errors import UserError
from tinychat.launch import job as launch
from tinychat.launch import outer_launcher
from tinychat.pipeline import recipe, report
from tinychat.pipeline.jobs import AnyJob, Composer, Job, hand_on, needs
from tinychat.pipeline.process import preload, run_forked
from tinychat.pipeline.recipe import Gate, Recipe, Request, Verdict, asking, judge
from tinychat.pipeline.report import PIPELINE, StepRun
from tinychat.pipeline.steps import origin_of
from tinychat.runs import folders, next_steps
from tinychat.runtime import console, gguf, process
from tinychat.runtime.run_files import said_of
from tinychat.runtime.terminal import error_line, masked, say
from tinychat.tracking import RunInfo, Status, Tracker, make_tracker, run_tags
from tinychat.tracking.mlflow_run import HEADLINE, NOTE

_SETTING_OF: dict[Made | None, str] = {Made.tokenizer: "tokenizer.path", Made.reward: "reward.parts.model.path"}
SIDE_BY_SIDE = 4  # models on one page, the last ones: each takes memory
_ANSWER_SECONDS = 60.0  # the first run of all makes the database


def open_parent(folder: Path, config: Config, name: str, commands: Mapping[str, Any]) -> str | None:
    """Make the run, or open that of the same pipeline's earlier start again; its id, None where MLflow is away."""
    again = (folder / "tracking.json").exists()

    def work() -> None:
        tracker = _tracker(folder, config, name, again)
        tracker.start({"commands": dict(commands), "seed": config.seed}, _tags(config))
        tracker.wait_run_id(_ANSWER_SECONDS)

    run_forked(work, "the tracker")
    from tinychat.tracking.mlflow_run import read_identity

    return (read_identity(folder, Path(config.paths.outputs)) or {}).get("run_id")


def close_parent(folder: Path, config: Config, verdicts: Sequence[Verdict], status: str) -> None:
    """Send the gates' metrics and the report, and set the run's status."""

    def work() -> None:
        tracker = _tracker(folder, config, "", again=True)
        words = {f"gate.{verdict.gate.name}": f"{verdict.word} {verdict.gate.wanted}" for verdict in verdicts}
        asked = asking(verdicts)
        told = f"{sum(verdict.word == 'pass' for verdict in asked)} of {len(asked)} gates passed"
        note = "\n".join(f"- {name.removeprefix('gate.')}: {word}" for name, word in words.items())
        tracker.start({}, _tags(config) | words | {HEADLINE: told, NOTE: note})
        # The last gate on a metric is that of the latest stage.
        plain = [v for v in verdicts if v.gate.metric and not v.gate.other]
        tracker.log_metrics(0, {v.gate.metric: v.value for v in plain if v.value is not None})
        for path in sorted(folder.glob("report.*")):
            tracker.log_artifact(path)
        tracker.finish(_status(status))

    try:
        run_forked(work, "the tracker")
    except UserError:  # the report is written; what a stage failed with is the news
        return


def _tracker(folder: Path, config: Config, name: str, again: bool) -> Tracker:
    info = RunInfo(folder, Path(config.paths.outputs), config.experiment_name, name, 0 if again else None)
    alone = replace(config.tracker, system_metrics=False, parent=None, tensorboard=False, wandb=None)  # MLflow's pages
    return make_tracker(alone, info)


def _tags(config: Config) -> dict[str, str]:
    return {**run_tags("pipeline", config.model.name, config.data.name), "mlflow.source.name": "tinychat.pipeline"}


def _status(status: str) -> Status:
    return {"FINISHED": "FINISHED", "KILLED": "KILLED"}.get(status, "FAILED")  # type: ignore[return-value]


_ORPHAN_SECONDS = 60.0  # that a stage whose pipeline has died may take to save


@dataclass
class Pipeline:
    """One command's work and what it has found so far."""

    recipe: Recipe
    request: Request
    chosen: list[str]  # steps to run, in order
    gates: list[Gate]
    jobs: dict[str, AnyJob]  # without parents
    done: dict[str, StepRun] = field(default_factory=dict)
    folder: Path | None = None  # of the report
    started: bool = False  # whether a step has run in this command
    parent: str | None = None  # id of the MLflow run above those of the stages
    began: float = field(default_factory=time.time)
    lock: folders.RunLock | None = None  # of the folder

    @property
    def found(self) -> dict[str, Path | None]:
        """What the steps have made."""
        return {name: run.folder and run.job.product(run.folder) for name, run in self.done.items()}

    @property
    def config(self) -> Config:
        """Of the first stage: what all have alike."""
        jobs = [job for job in (*map(self.jobs.__getitem__, self.chosen), *self.jobs.values()) if isinstance(job, Job)]
        return jobs[0].config

    @property
    def there(self) -> set[str]:
        """Steps that run or have run."""
        return {*self.chosen, *(name for name, made in self.found.items() if made)}

    def needs(self, name: str) -> list[str]:
        return needs(self.jobs[name], self.recipe, self.there)

    def next_job(self, name: str) -> AnyJob | None:
        """The job with its parents; None where one of them has no finished run."""
        job = self.jobs[name]
        if any(not self.found.get(other) for other in self.needs(name)):
            return None
        return job.given(hand_on(job, self.recipe, self.found))

    def finished(self, name: str, job: AnyJob | None) -> Path | None:
        """The run that makes the step unnecessary."""
        anew = name in self.chosen and not self.request.resume
        return None if job is None or anew else job.newest(finished=True)


def run(words: Sequence[str]) -> int:
    """The whole command; the exit status. Raises UserError and Stopped."""
    request = recipe.parse_request(words)
    folder = Path(train.config_folder()) / "pipeline"
    chosen_recipe = recipe.load_recipe(request.recipe, folder)
    if request.help:
        print(recipe.help_text(chosen_recipe, folder))
        return 0
    chosen = recipe.chosen_steps(chosen_recipe, request)
    chosen_recipe = recipe.narrowed(chosen_recipe, chosen)
    gates = recipe.gates_of(chosen_recipe, request)
    with Composer(chosen_recipe, request) as composer:
        jobs = composer.jobs()
    pipeline = Pipeline(chosen_recipe, request, chosen, gates, jobs)
    with gguf.kept_in(pipeline.config.paths.cache):  # plans, programs and the report's samples open models too
        return _carry_out(pipeline, words)


def _carry_out(pipeline: Pipeline, words: Sequence[str]) -> int:
    """What the command asks for; the exit status."""
    if pipeline.config.plan is not False:
        _print_plans(pipeline)
        return 0
    _refuse_missing_parents(pipeline)
    pipeline.folder = _folder_of(pipeline, words)
    lock = pipeline.lock = folders.RunLock(pipeline.folder)
    try:
        status = "FAILED"
        try:
            _run_steps(pipeline)
            report.make_samples(pipeline.folder, pipeline.recipe, list(pipeline.done.values()), pipeline.config.model)
            status = "FINISHED"
        except (launch.Stopped, KeyboardInterrupt):
            status = "KILLED"
            raise
        finally:
            verdicts = _verdicts(pipeline)
            written = _report(pipeline, words, verdicts)
            if pipeline.parent is not None:
                close_parent(pipeline.folder, pipeline.config, verdicts, status)
    finally:
        lock.release()
    return _conclude(pipeline, verdicts, written)


def _print_plans(pipeline: Pipeline) -> None:
    """The estimate of each step that trains, on what the steps before it have made, where they have run. Raises
    UserError."""
    from tinychat.plan.report import print_plan  # torch loads here

    for name, step in pipeline.recipe.steps.items():
        known = pipeline.next_job(name)
        job = known or pipeline.jobs[name]
        pipeline.done[name] = StepRun(step, job, pipeline.finished(name, known), "found")
        if name not in pipeline.chosen:
            continue
        print(f"\n== {name}{f' ({step.called})' if step.called else ''}")
        if isinstance(job, Job) and spec_of(job.config).trains:
            print_plan(job.config)
        else:
            print("trains no model")


def _refuse_missing_parents(pipeline: Pipeline) -> None:
    """Before anything is written: a step that is left out must have a finished run where another one needs it."""
    for name, step in pipeline.recipe.steps.items():
        job = pipeline.next_job(name)
        done = pipeline.finished(name, job)
        if name in pipeline.chosen:
            for other in pipeline.needs(name):
                if other not in pipeline.chosen and not pipeline.found.get(other):
                    key = _SETTING_OF.get(pipeline.recipe.steps[other].makes, "init_from")
                    instead = f", or name a folder: {name}:{key}=FOLDER" if step.stage else ""
                    raise UserError(
                        f"stages={','.join(pipeline.chosen)}: stage {name} needs stage {other}, of which no run "
                        f"with these settings has finished; add it to stages={instead}"
                    )
        pipeline.done[name] = StepRun(step, job or pipeline.jobs[name], done, "found")
    pipeline.done.clear()


def _folder_of(pipeline: Pipeline, words: Sequence[str]) -> Path:
    """The folder of the report: that of the same steps with the same settings, else a new one."""
    outputs, experiment = Path(pipeline.config.paths.outputs), pipeline.config.experiment_name
    settings = {"recipe": pipeline.recipe.name} | {name: job.identity for name, job in pipeline.jobs.items()}
    identity = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    earlier = [path.parent for path in (outputs / experiment / "pipeline").glob(f"*/{PIPELINE}")]
    earlier.sort(key=folders.order_of, reverse=True)
    same = [path for path in earlier if (folders.read_json(path / PIPELINE) or {}).get("identity") == identity]
    try:
        if same and pipeline.request.resume:
            folder = same[0]
        else:
            folder = folders.new_run_dir(outputs, experiment, "pipeline")
            folders.mark_created(folder)
        content = {"identity": identity, "recipe": str(pipeline.recipe.path), "words": list(map(masked, words))}
        folders.write_text_atomic(folder / PIPELINE, json.dumps(content, indent=1))
    except OSError as error:
        raise UserError(f"{said_of(error, outputs)}; choose another folder with paths.outputs=") from None
    return folder


def _run_steps(pipeline: Pipeline) -> None:
    """Step by step: find its run or make it."""
    say(f"pipeline {pipeline.recipe.name}: {', '.join(pipeline.chosen)}; report in {pipeline.folder}")
    for name, step in pipeline.recipe.steps.items():
        job = pipeline.next_job(name)
        folder = pipeline.finished(name, job)
        if name in pipeline.chosen and job is None:
            raise UserError(f"stage {name}: what it is built on has no finished run; add its stage to stages=")
        state = "finished before" if folder else "left out"
        if name in pipeline.chosen and job is not None and folder is None:
            _start_up(pipeline, job)
            origin = origin_of(step, pipeline.recipe.steps, pipeline.there) if step.start else None
            kind = ", ".join(filter(None, [step.called, f"from {origin}" if origin else ""]))
            number = f"({pipeline.chosen.index(name) + 1} of {len(pipeline.chosen)})"
            say(f"\n== {name} {f'({kind}) ' if kind else ''}{number}")
            pipeline.done[name] = StepRun(step, job, None, "did not finish")
            if isinstance(job, Job):
                _wait_for_earlier_start(job)
                run_forked(functools.partial(_train, job, pipeline), f"stage {name}")
            else:
                run_forked(job.run, f"step {name}")
            folder, state = job.newest(finished=True), "ran"
            if folder is None:  # the stage has read the files in conf/ again
                raise UserError(f"stage {name} ran with other settings than were checked; was conf/ edited meanwhile?")
        done = pipeline.done[name] = StepRun(step, job or pipeline.jobs[name], folder, state)
        if name in pipeline.chosen:
            say(f"== {report.headline(done, pipeline.gates)}")


def _wait_for_earlier_start(job: Job) -> None:
    """A stage whose pipeline was killed saves before it ends; where it takes too long its own start names it."""
    unfinished = job.newest(finished=False)
    if unfinished is None or not folders.is_live(unfinished):
        return
    say(f"{job.step.name}: an earlier start is still running in {unfinished}; waiting for it to save and end")
    until = time.monotonic() + _ORPHAN_SECONDS
    while folders.is_live(unfinished) and time.monotonic() < until:
        time.sleep(0.2)


def _start_up(pipeline: Pipeline, job: AnyJob) -> None:
    """Before the first step that really runs: imports, and the MLflow run that its children name."""
    if pipeline.started:
        return
    pipeline.started = True
    jobs = pipeline.jobs
    mlflow = any(isinstance(one, Job) and one.config.tracker.kind is TrackerKind.mlflow for one in jobs.values())
    preload((pipeline.recipe.steps[name].module for name in pipeline.chosen), mlflow)
    if isinstance(job, Job) and job.config.tracker.kind is TrackerKind.mlflow and pipeline.folder is not None:
        name = f"pipeline-{pipeline.recipe.name}"
        commands = {n: shlex.join(map(masked, one.overrides)) for n, one in jobs.items() if isinstance(one, Job)}
        pipeline.parent = open_parent(pipeline.folder, job.config, f"{name} {pipeline.folder.name}", commands)


def _train(job: Job, pipeline: Pipeline) -> None:
    """In the child: the stage's own command."""
    more = [f"resume={'auto' if pipeline.request.resume else 'never'}"]
    if pipeline.parent:
        more.append(f"tracker.parent={pipeline.parent}")
    sys.argv = ["tinychat.train", *job.overrides, *more]
    next_steps.leave_to(pipeline.recipe.name)
    train.main()


def _verdicts(pipeline: Pipeline) -> list[Verdict]:
    wanted = [
        gate for gate in pipeline.gates if pipeline.there.issuperset(gate.stages)
    ]  # stages= leaves the others out
    values = report.measured(list(pipeline.done.values()))
    return [judge(gate, values) for gate in wanted]


def _report(pipeline: Pipeline, words: Sequence[str], verdicts: Sequence[Verdict]) -> bool:
    """Write the report. Where that fails (on a full disk) it is one line: what a stage ended with is the news."""
    command = "python -m tinychat.pipeline " + shlex.join(map(masked, words))
    seconds = time.time() - pipeline.began
    assert pipeline.folder is not None
    step_runs = list(pipeline.done.values())
    try:
        report.write(pipeline.folder, pipeline.recipe, verdicts, step_runs, command, seconds)
    except OSError as error:
        say(f"no report of the pipeline: {said_of(error, pipeline.folder)}")
        return False
    return True


def _conclude(pipeline: Pipeline, verdicts: Sequence[Verdict], written: bool) -> int:
    say("\n== gates" if verdicts else "")
    for line in report.verdict_lines(verdicts):
        say(line)
    failed = [verdict.gate.name for verdict in verdicts if verdict.failed]
    minutes = (time.time() - pipeline.began) / 60
    assert pipeline.folder is not None
    say(f"{minutes:.1f} minutes; report: {pipeline.folder / 'report.html' if written else 'none was written'}")
    for text, command in _to_talk(pipeline):
        say(f"{text}: {next_steps.by_this_python(command)}")
    if failed:
        say(f"FAILED: {len(failed)} of {len(asking(verdicts))} gates: {', '.join(failed)}")
    return 1 if not written or (failed and pipeline.request.strict) else 0


def _to_talk(pipeline: Pipeline) -> Iterator[tuple[str, str]]:
    """Commands, and what they are for: the last model in the terminal, the last ones side by side on a page."""
    steps = pipeline.recipe.steps
    able = [made for name, made in pipeline.found.items() if made and steps[name].trains_policy]
    if not able:
        return
    yield "talk to it", next_steps.talk(able[-1], pipeline.config)
    rewards = [made for name, made in pipeline.found.items() if made and steps[name].makes is Made.reward]
    *before, last = [*able[-SIDE_BY_SIDE:], *rewards[-1:]]
    where = "side by side on a page, http://127.0.0.1:8000"
    yield where, next_steps.talk(last, pipeline.config, "serve", before)


def main() -> None:
    """Console entry. Exit status: 0 all ran, 1 an error (with strict=true a failed gate), 129, 130 or 143 stopped."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    console.take_library_output()
    process.end_without_a_last_look()
    process.end_where_nobody_reads()
    try:
        outer_launcher.refuse("tinychat.pipeline", sys.argv[1:])
        sys.exit(run(sys.argv[1:]))
    except launch.Stopped as stop:
        say("stopped; the same command goes on")
        sys.exit(stop.status)
    except UserError as error:
        sys.exit(error_line(error))
    except BrokenPipeError:  # `| head` has read enough
        process.discard_output()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
