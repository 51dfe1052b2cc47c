"""The recipe in one command: stages run as jobs, checkpoints are handed on, what is done is skipped.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tinychat import train
from tinychat.config.schema import Config, TrackerKind
from tinychat.config.specs import SPECS, Made, makers
from tinychat.errors import UserError
from tinychat.launch import job as launch
from tinychat.launch import outer_launcher
from tinychat.pipeline import recipe, report
from tinychat.pipeline.jobs import Composer, Job, hand_on, needs
from tinychat.pipeline.process import preload, run_forked
from tinychat.pipeline.recipe import Gate, Recipe, Request, Verdict, asking, judge
from tinychat.pipeline.report import PIPELINE, StageRun
from tinychat.runs import folders, next_steps
from tinychat.runtime import console
from tinychat.runtime.process import end_without_a_last_look
from tinychat.runtime.run_files import said_of
from tinychat.runtime.terminal import error_line, masked, say
from tinychat.tracking import RunInfo, Status, Tracker, make_tracker, run_tags
from tinychat.tracking.mlflow_run import HEADLINE, NOTE

_SETTING_OF: dict[Made | None, str] = {Made.tokenizer: "tokenizer.path", Made.reward: "reward.parts.model.path"}
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
        tracker.log_metrics(0, {v.gate.metric: v.value for v in verdicts if v.value is not None and not v.gate.less})
        for path in sorted(folder.glob("report.*")):
            tracker.log_artifact(path)
        tracker.finish(_status(status))

    try:
        run_forked(work, "the tracker")
    except UserError:  # the report is written; what a stage failed with is the news
        return


def _tracker(folder: Path, config: Config, name: str, again: bool) -> Tracker:
    info = RunInfo(folder, Path(config.paths.outputs), config.experiment_name, name, 0 if again else None)
    return make_tracker(replace(config.tracker, system_metrics=False, parent=None), info)


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
    chosen: list[str]  # stages to run, in order
    gates: list[Gate]
    jobs: dict[str, Job]  # without parents
    done: dict[str, StageRun] = field(default_factory=dict)
    folder: Path | None = None  # of the report
    started: bool = False  # whether a stage has run in this command
    parent: str | None = None  # id of the MLflow run above those of the stages
    began: float = field(default_factory=time.time)
    lock: folders.RunLock | None = None  # of the folder

    @property
    def found(self) -> dict[str, Path | None]:
        return {stage: run.folder for stage, run in self.done.items()}

    def next_job(self, stage: str) -> Job | None:
        """The job with its parents; None where one of them has no finished run."""
        job = self.jobs[stage]
        if any(not self.found.get(name) for name in needs(job, self.recipe)):
            return None
        return job.given(hand_on(job, self.recipe, self.found))

    def finished(self, stage: str, job: Job | None) -> Path | None:
        """The run that makes the stage unnecessary."""
        anew = stage in self.chosen and not self.request.resume
        return None if job is None or anew else job.newest(finished=True)


def run(words: Sequence[str]) -> int:
    """The whole command; the exit status. Raises UserError and Stopped."""
    request = recipe.parse_request(words)
    folder = Path(train.config_folder()) / "pipeline"
    chosen_recipe = recipe.load_recipe(request.recipe, folder)
    if request.help:
        print(recipe.help_text(chosen_recipe, folder))
        return 0
    chosen = recipe.chosen_stages(chosen_recipe, request)
    chosen_recipe = recipe.narrowed(chosen_recipe, chosen)
    gates = recipe.gates_of(chosen_recipe, request)
    with Composer(chosen_recipe, request) as composer:
        jobs = composer.jobs()
    pipeline = Pipeline(chosen_recipe, request, chosen, gates, jobs)
    _refuse_missing_parents(pipeline)
    pipeline.folder = _folder_of(pipeline, words)
    lock = pipeline.lock = folders.RunLock(pipeline.folder)
    try:
        status = "FAILED"
        try:
            _run_stages(pipeline)
            model = pipeline.jobs[chosen[0]].config.model
            report.make_samples(pipeline.folder, pipeline.recipe, list(pipeline.done.values()), model)
            status = "FINISHED"
        except (launch.Stopped, KeyboardInterrupt):
            status = "KILLED"
            raise
        finally:
            verdicts = _verdicts(pipeline)
            written = _report(pipeline, words, verdicts)
            if pipeline.parent is not None:
                close_parent(pipeline.folder, pipeline.jobs[chosen[0]].config, verdicts, status)
    finally:
        lock.release()
    return _conclude(pipeline, verdicts, written)


def _refuse_missing_parents(pipeline: Pipeline) -> None:
    """Before anything is written: a stage that is left out must have a finished run where another one needs it."""
    for stage in pipeline.recipe.stages:
        job = pipeline.next_job(stage)
        done = pipeline.finished(stage, job)
        if stage in pipeline.chosen:
            for name in needs(pipeline.jobs[stage], pipeline.recipe):
                if name not in pipeline.chosen and not pipeline.found.get(name):
                    key = _SETTING_OF.get(SPECS[name].makes, "init_from")
                    raise UserError(
                        f"stages={','.join(pipeline.chosen)}: stage {stage} needs stage {name}, of which no run "
                        f"with these settings has finished; add it to stages=, or name a folder: {stage}:{key}=FOLDER"
                    )
        pipeline.done[stage] = StageRun(stage, job or pipeline.jobs[stage], done, "found")
    pipeline.done.clear()


def _folder_of(pipeline: Pipeline, words: Sequence[str]) -> Path:
    """The folder of the report: that of the same stages with the same settings, else a new one."""
    first = next(iter(pipeline.jobs.values())).config
    outputs, experiment = Path(first.paths.outputs), first.experiment_name
    settings = {"recipe": pipeline.recipe.name} | {stage: job.identity for stage, job in pipeline.jobs.items()}
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


def _run_stages(pipeline: Pipeline) -> None:
    """Stage by stage: find its run or make it."""
    say(f"pipeline {pipeline.recipe.name}: {', '.join(pipeline.chosen)}; report in {pipeline.folder}")
    for stage in pipeline.recipe.stages:
        job = pipeline.next_job(stage)
        folder = pipeline.finished(stage, job)
        if stage in pipeline.chosen and job is None:
            raise UserError(f"stage {stage}: what it is built on has no finished run; add its stage to stages=")
        state = "finished before" if folder else "left out"
        if stage in pipeline.chosen and job is not None and folder is None:
            _start_up(pipeline, job)
            say(f"\n== {stage} ({pipeline.chosen.index(stage) + 1} of {len(pipeline.chosen)})")
            pipeline.done[stage] = StageRun(stage, job, None, "did not finish")
            _wait_for_earlier_start(job)
            run_forked(functools.partial(_train, job, pipeline), f"stage {stage}")
            folder, state = job.newest(finished=True), "ran"
            if folder is None:  # the stage has read the files in conf/ again
                raise UserError(f"stage {stage} ran with other settings than were checked; was conf/ edited meanwhile?")
        done = pipeline.done[stage] = StageRun(stage, job or pipeline.jobs[stage], folder, state)
        if stage in pipeline.chosen:
            say(f"== {report.headline(done, pipeline.gates)}")


def _wait_for_earlier_start(job: Job) -> None:
    """A stage whose pipeline was killed saves before it ends; where it takes too long its own start names it."""
    unfinished = job.newest(finished=False)
    if unfinished is None or not folders.is_live(unfinished):
        return
    say(f"{job.stage}: an earlier start is still running in {unfinished}; waiting for it to save and end")
    until = time.monotonic() + _ORPHAN_SECONDS
    while folders.is_live(unfinished) and time.monotonic() < until:
        time.sleep(0.2)


def _start_up(pipeline: Pipeline, job: Job) -> None:
    """Before the first stage that really runs: imports, and the MLflow run that its children name."""
    if pipeline.started:
        return
    pipeline.started = True
    mlflow = any(other.config.tracker.kind is TrackerKind.mlflow for other in pipeline.jobs.values())
    preload(pipeline.chosen, mlflow)
    if job.config.tracker.kind is TrackerKind.mlflow and pipeline.folder is not None:
        name = f"pipeline-{pipeline.recipe.name}"
        commands = {stage: shlex.join(map(masked, other.overrides)) for stage, other in pipeline.jobs.items()}
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
    there = {*pipeline.chosen, *(stage for stage, folder in pipeline.found.items() if folder)}
    wanted = [gate for gate in pipeline.gates if there.issuperset(gate.stages)]  # stages= leaves the others out
    values = report.measured(list(pipeline.done.values()))
    return [judge(gate, values) for gate in wanted]


def _report(pipeline: Pipeline, words: Sequence[str], verdicts: Sequence[Verdict]) -> bool:
    """Write the report. Where that fails (on a full disk) it is one line: what a stage ended with is the news."""
    command = "python -m tinychat.pipeline " + shlex.join(map(masked, words))
    seconds = time.time() - pipeline.began
    assert pipeline.folder is not None
    stage_runs = list(pipeline.done.values())
    try:
        report.write(pipeline.folder, pipeline.recipe, verdicts, stage_runs, command, seconds)
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
    policy = next((folder for stage in reversed(makers(Made.language)) if (folder := pipeline.found.get(stage))), None)
    if policy:
        say(f"talk to it: {next_steps.talk(policy, next(iter(pipeline.jobs.values())).config)}")
    if failed:
        say(f"FAILED: {len(failed)} of {len(asking(verdicts))} gates: {', '.join(failed)}")
    return 1 if not written or (failed and pipeline.request.strict) else 0


def main() -> None:
    """Console entry. Exit status: 0 all ran, 1 an error (with strict=true a failed gate), 129, 130 or 143 stopped."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    console.take_library_output()
    end_without_a_last_look()
    try:
        outer_launcher.refuse("tinychat.pipeline", sys.argv[1:])
        sys.exit(run(sys.argv[1:]))
    except launch.Stopped as stop:
        say("stopped; the same command goes on")
        sys.exit(stop.status)
    except UserError as error:
        sys.exit(error_line(error))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
