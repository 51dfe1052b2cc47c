"""One rank of one job: the resolved configuration in, one stage run, result.json out. Imports no Hydra.

python -m tinychat.launch.worker RUN_DIR     (started by launch.guard; RANK and WORLD_SIZE from the launcher)
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tinychat.config import plugins
from tinychat.config.schema import Config, Device, Precision, TokenizerKind, to_config
from tinychat.config.specs import JUDGES, spec_of
from tinychat.engine.base import resolve_precision
from tinychat.engine.optim import warmup_of
from tinychat.errors import UserError
from tinychat.models import custom
from tinychat.report import headline
from tinychat.report import run as report
from tinychat.runs import failures, folders, parents, trial
from tinychat.runtime import console, gguf, terminal
from tinychat.runtime.console import setup_logging
from tinychat.runtime.manifest import verifying
from tinychat.runtime.process import Interrupted, end_with_parent, keep_freed_memory
from tinychat.runtime.run_files import disk_full, said_of
from tinychat.runtime.world import LostContact, World, answering, join_world, seed_everything
from tinychat.stages import Context, StageResult, StopFlag
from tinychat.tracking import STATUS_OF, RunInfo, Tracker, make_tracker, run_tags

PAGES = ("report.md", "report.html", "rollouts.html", "curves.png")  # of a run folder, for the tracker


def choices(config: Config, found: Mapping[str, str | None], world: World) -> Iterator[str]:
    """Lines for the log of a run. found: its parents (tinychat.runs.parents)."""
    for key, path in _parents(config, found):
        yield f"{key} took {_from(path)}" if path else f"{key} found none"
    stage, spec = config.stage, spec_of(config)
    if spec.has_model:
        if config.device is Device.auto:
            yield f"device=auto took {world.device}"
        if config.precision is Precision.auto:
            name = str(resolve_precision(config.precision, world.device)).removeprefix("torch.")
            yield f"precision=auto took {name}"
    if spec.trains and warmup_of(stage) != stage.warmup_steps:
        yield (
            f"stage.warmup_steps={stage.warmup_steps} is more than stage.max_steps={stage.max_steps}: "
            f"the warm-up takes {warmup_of(stage)} steps"
        )


def _parents(config: Config, found: Mapping[str, str | None]) -> Iterator[tuple[str, str | None]]:
    """(setting, what it stands for) of those that name no folder."""
    if config.init_from in parents.AUTO and found.get("init_from"):
        yield f"init_from={config.init_from}", found["init_from"]
    if config.tokenizer.kind is TokenizerKind.bpe and config.tokenizer.path is None and found.get("tokenizer"):
        yield "tokenizer.path=null", found["tokenizer"]
    if config.data.path is None and found.get("corpus"):
        yield "data.path=null", found["corpus"]
    for key in (*JUDGES, "teacher"):
        if key in found and (named := getattr(config.stage, key, None)) in parents.AUTO:
            yield f"stage.{key}={named}", found.get(key)
    if spec_of(config).rewards:
        for name, path in plugins.reward_models(config.reward).items():
            if path in parents.AUTO:
                yield f"reward.parts.{name}.path={path}", found.get(f"reward.{name}")


def _from(spec: str) -> str:
    """A checkpoint with the time at which its run ended."""
    path = Path(spec)
    run_dir = next((folder for folder in path.parents if (folder / folders.RESULT).is_file()), None)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    if run_dir is None:
        return str(shown)
    ended = time.localtime((run_dir / folders.RESULT).stat().st_mtime)
    return f"{shown}, of a run that ended {time.strftime('%Y-%m-%d %H:%M', ended)}"


log = logging.getLogger("tinychat")


def run(run_dir: Path, insist: bool = True) -> int:
    """Run the stage of a prepared run folder on this rank.

    Returns the exit status: 0 done, 128 + signal when it was told to stop and has saved. What goes wrong is raised.
    """
    if not (run_dir / folders.CONFIG).exists():
        raise UserError(
            f"{run_dir / folders.CONFIG} is missing; with several nodes run_dir must lie on a disk they share"
        )
    config = to_config(OmegaConf.create(terminal.restored(folders.read_config(run_dir), run_dir)))
    with (
        answering(config.launch.timeout_minutes),
        verifying(config.checkpoint.verify),
        gguf.kept_in(config.paths.cache),
    ):
        return _run_as_rank(config, run_dir, insist)


def _run_as_rank(config: Config, run_dir: Path, insist: bool) -> int:
    world = join_world(config.device, config.launch.timeout_minutes)
    if world.device.type == "cpu":
        keep_freed_memory()
    lock = folders.RunLock(run_dir) if world.is_main else None
    setup_logging(run_dir, world.rank)
    plugins.use_verifiers(config.data)
    stop = StopFlag(run_dir, speaks=world.is_main)
    try:
        with stop.listening(insist):
            return _run_stage(config, run_dir, world, stop)
    except Exception as error:
        if isinstance(error, UserError):
            raise
        if disk_full(error):
            raise UserError(f"{said_of(error, run_dir)}; free space, then resume=auto") from error
        if _of_folder(run_dir, error):
            raise UserError(f"{said_of(error)}; mend or remove it, then resume=auto") from error
        raise
    finally:
        world.close()
        if lock is not None:
            lock.release()


def _of_folder(run_dir: Path, error: Exception) -> bool:
    """Whether the file system refused a file of the run folder (a folder in its place, a mode, a disk that is read
    only): the folder's matter, not the program's."""
    name = getattr(error, "filename", None) if isinstance(error, OSError) else None
    return isinstance(name, str) and Path(name).absolute().is_relative_to(run_dir.absolute())


def _run_stage(config: Config, run_dir: Path, world: World, stop: StopFlag) -> int:
    start = time.perf_counter()
    seed_everything(config.seed)
    found = parents.read(run_dir)
    if found is None:
        raise UserError(
            f"{run_dir / parents.FILE}: is missing; start the run again with resume=auto, which makes it anew"
        )
    took = list(choices(config, found, world))
    config = parents.with_corpus(config, found)
    tracker = _start_tracker(config, run_dir, found) if world.is_main else None
    context = Context(run_dir, world, tracker, found, stop)
    log.info("%s in %s", config.stage.name, run_dir)
    for line in took:
        log.info("%s", line)
    status, result, problem = "failed", StageResult(), None
    try:
        stage = function_of(config)
        stop.patient = False  # a stage that can save says so
        result = stage(config, context)
        status = "pruned" if result.stopped and context.pruning else "stopped" if result.stopped else "finished"
        problem = context.pruned if status == "pruned" else None
    except Interrupted:
        status, result = "stopped", StageResult(stopped=True)
    except (SystemExit, KeyboardInterrupt) as error:  # of a library: it would end the command without a word
        problem = f"{type(error).__name__}({error!s}) was raised in stage={config.stage.name}, where no signal came"
        raise RuntimeError(problem) from error
    except BaseException as error:
        problem = str(error) or type(error).__name__
        raise
    finally:
        stop.patient = True
        if tracker is not None:
            minutes = (time.perf_counter() - start) / 60
            content = _content(run_dir, result, status, problem, minutes)
            _write_result(run_dir, content)
            _finish(run_dir, tracker, content)
    return 128 + stop.signal_number if result.stopped and stop.signal_number else 0


def function_of(config: Config) -> Callable[[Config, Context], StageResult]:
    """What runs the job's stage; a user's model code is known from here on."""
    custom.use(config.model)
    module, _, function = spec_of(config).run.partition(":")
    return getattr(importlib.import_module(module), function)


def _start_tracker(config: Config, run_dir: Path, found: dict[str, str | None]) -> Tracker:
    # With the folder's name, which is the time: runs of one name are told apart.
    name = trial.title(run_dir, f"{config.run_name or folders.default_run_name(config)} {run_dir.name}")
    folders.remove_leftovers(run_dir)  # of an earlier start that was killed; the folder is ours alone now
    resume_step = folders.resume_step(run_dir)
    info = RunInfo(run_dir, Path(config.paths.outputs), config.experiment_name, name, resume_step)
    tracker = make_tracker(config.tracker, info)
    versions = parents.versions()
    tags = run_tags(
        config.stage.name,
        config.model.name,
        config.data.name,
        found.get("init_from"),
        versions.get("git_commit"),
    )
    tags |= trial.tags(run_dir)
    tracker.start(folders.read_config(run_dir), tags)
    return tracker


def _content(run_dir: Path, result: StageResult, status: str, problem: str | None, minutes: float) -> dict[str, Any]:
    """Of result.json. `report` stays null until there is one."""
    return {
        "status": status,
        "objective": result.metrics.get(result.objective) if result.objective else None,
        "objective_name": result.objective,
        "metrics": result.metrics,
        "checkpoint": os.path.relpath(result.checkpoint, run_dir) if result.checkpoint else None,
        "minutes": round(minutes, 3),
        "error": None if problem is None else terminal.masked(problem),
        "facts": result.facts,
        "report": None,
    }


def _write_result(run_dir: Path, content: dict[str, Any]) -> None:
    try:
        folders.write_text_atomic(run_dir / folders.RESULT, json.dumps(content, indent=1))
    except OSError as error:
        if content["status"] == "finished":
            raise
        log.warning("%s", said_of(error))  # what made the stage fail is the news


def _finish(run_dir: Path, tracker: Tracker, content: dict[str, Any]) -> None:
    """Report and last uploads; a failure here must not hide or undo what the stage did."""
    try:
        if page := report.write_report(run_dir):
            _write_result(run_dir, content | {"report": page.name})
        for name in (*PAGES, folders.RESULT, folders.LINEAGE, "log.txt"):
            if (run_dir / name).exists():
                tracker.log_artifact(run_dir / name)
        tracker.describe(headline.tags_of(run_dir))
    except Exception as error:
        log.warning("report: %s: %s", type(error).__name__, said_of(error))
    tracker.finish(STATUS_OF[content["status"]])


def main() -> None:
    """A rank in a process of its own. An error is written beside the run for the parent to print, once."""
    console.take_library_output()
    run_dir, rank = Path(sys.argv[1]), int(os.environ.get("RANK", 0))
    # Without its guard a rank cannot be stopped any more; a process of its own still saves.
    end_with_parent(signal.SIGKILL if "RANK" in os.environ else signal.SIGTERM)
    try:
        status = run(run_dir, insist=False)
    except BaseException as error:
        told = None if isinstance(error, UserError) else traceback.format_exc()
        failures.write(run_dir, rank, str(error), told, echo=isinstance(error, LostContact))
        status = 1
    # At once: the interpreter's own shutdown would wait for the other ranks after an error, and after a success it now
    # and then aborts in a thread of the process group ("terminate called without an active exception").
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
