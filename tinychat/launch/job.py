"""One job: choose its run folder, start its ranks, bring back its result. Hydra has already run, once, in the parent.

inline     this very process (in a multirun, one process for each job, so that its memory is freed)
torchrun   tinychat.launch.ranks: torch.distributed.run
deepspeed  tinychat.launch.ranks: DeepSpeed's launcher
slurm      tinychat.launch.slurm: a job of its own for each run

Ranks start from the run folder and import no Hydra.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tinychat.config.schema import Config, LaunchKind
from tinychat.config.words import for_shell
from tinychat.errors import UserError
from tinychat.launch import preflight, ranks, slurm
from tinychat.launch.outer_launcher import is_of_launcher
from tinychat.launch.ranks import JobFailed, Stopped
from tinychat.runs import failures, folders, next_steps, parents, trial
from tinychat.runtime import terminal
from tinychat.runtime.run_files import Unreadable, said_of
from tinychat.runtime.terminal import say

__all__ = ["JobFailed", "Stopped", "forget_launcher", "in_multirun", "overrides", "run_in_folder", "run_job"]


def run_job(config: Config, node: DictConfig) -> float | None:
    """run_in_folder, and the objective of the stage; None where there is no result."""
    run_dir = run_in_folder(config, node)
    return (folders.read_result(run_dir) or {}).get("objective") if run_dir else None


def run_in_folder(config: Config, node: DictConfig) -> Path | None:
    """Make or find the run folder, start the ranks; the folder, in which the result is.

    None where there is no result: launch.dry_run=true, launch.wait=false, and on all nodes but the first. Raises
    UserError, JobFailed or Stopped.
    """
    if config.launch.dry_run:
        print(_plan(config))
        return None
    # As it will be read back from the run folder: enums as words, numbers as YAML has them.
    resolved = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(node, resolve=True)))
    shown = terminal.masked_tree(resolved)
    made = _missing_folders(config)
    with _writable():
        run_dir, done = _choose_run_dir(config, shown)
    if done is not None:
        trial.begin(run_dir)
        changed = preflight.changed_data(config, run_dir)
        since = f", with other {' and '.join(changed)} than there are now" if changed else ""
        say(f"finished already: {run_dir}{since} (resume=never trains anew)")
        _mend_report(run_dir, done)
        _tell_next(config, run_dir, done)
        from tinychat.tracking import close_cut_off

        close_cut_off(config.tracker, Path(config.paths.outputs), config.experiment_name)
        return run_dir
    with _claimed(config, run_dir, made):
        if config.launch.node_rank == 0:
            with _writable():
                _write_inputs(run_dir, config, resolved)
        if not _start(config, run_dir):
            return None
        result = folders.read_result(run_dir)
    if result is None:
        raise JobFailed(f"{run_dir}: the job ended without a {folders.RESULT}")
    _tell_next(config, run_dir, result)
    return run_dir


@contextlib.contextmanager
def _claimed(config: Config, run_dir: Path, made: list[Path]) -> Iterator[None]:
    """Keep the folder from before anything is written there until the ranks have ended, and give the start a name that
    its ranks know. Of a job that is started on each node, the first does. made: folders above it that this job made;
    where nothing comes to be started, nothing is left of them."""
    outer = os.environ.pop(failures.START, None)
    try:
        if config.launch.node_rank:
            yield
            return
        with _writable():
            try:
                lock = folders.start_lock(run_dir)
            except OSError:
                _remove_empty(run_dir, made)
                raise
        try:
            with _writable():
                os.environ[failures.START] = failures.begin(run_dir)
            yield
        except BaseException:
            _remove_if_new(run_dir, made)
            raise
        finally:
            lock.release()
    finally:
        os.environ.pop(failures.START, None)
        if outer is not None:
            os.environ[failures.START] = outer


def _tell_next(config: Config, run_dir: Path, result: dict[str, Any]) -> None:
    """How it goes on from a run that has finished; a sweep says that once for all of its trials."""
    if result.get("status") == "finished" and not in_multirun():
        next_steps.tell(config, run_dir, result, overrides())


def _mend_report(run_dir: Path, result: dict[str, Any]) -> None:
    """Of a finished run without a report (killed at its end, or on a full disk) make it now."""
    if "report" not in result or result["report"] is not None or folders.is_live(run_dir):
        return
    from tinychat.report.run import write_report

    with _writable():
        if page := write_report(run_dir):
            folders.write_text_atomic(run_dir / folders.RESULT, json.dumps(result | {"report": page.name}, indent=1))


def _start(config: Config, run_dir: Path) -> bool:
    """Run the ranks to their end. Returns whether there is a result to read."""
    if config.launch.kind is LaunchKind.slurm:
        return slurm.run(config, run_dir)
    if config.launch.kind is not LaunchKind.inline or in_multirun():
        ranks.run(config, run_dir)
        return config.launch.node_rank == 0  # which reports
    from tinychat.launch import worker  # torch and transformers load here

    forget_launcher()
    status = worker.run(run_dir)
    if status:
        raise Stopped(status)
    return True


def forget_launcher() -> None:
    """Take the variables of an outer launcher away: they would have this process, a whole job, wait for others."""
    for name in filter(is_of_launcher, list(os.environ)):
        del os.environ[name]


def _plan(config: Config) -> str:
    """What would be started, as a line or script of shell. TIME stands for the moment of the start."""
    name = config.run_name or folders.default_run_name(config)
    run_dir = Path(config.run_dir or Path(config.paths.outputs) / config.experiment_name / name / "TIME")
    if config.launch.kind is LaunchKind.slurm:
        return slurm.script(config, run_dir)
    return ranks.describe(config, run_dir)


@contextlib.contextmanager
def _writable() -> Iterator[None]:
    """What the file system refuses becomes a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{said_of(error)}; choose another folder with paths.outputs= or run_dir=") from None


def _choose_run_dir(config: Config, resolved: dict[str, Any]) -> tuple[Path, dict | None]:
    """The run folder, and the result of a run that is to be resumed but has already finished."""
    outputs = Path(config.paths.outputs)
    if config.resume == "never":
        if config.run_dir is None:
            return _new_folder(config), None
        return _fresh_folder(Path(config.run_dir), config), None
    identity = folders.config_identity(resolved)

    def wanted(other: dict[str, Any]) -> bool:
        return folders.config_identity(other) == identity

    if config.resume == "auto" and config.run_dir is None:
        finished = folders.newest_run(outputs, config.experiment_name, wanted, finished=True)
        run_dir = folders.newest_run(outputs, config.experiment_name, wanted, finished=False)
        if finished and (run_dir is None or folders.order_of(finished) > folders.order_of(run_dir)):
            return finished, folders.read_result(finished)
        if run_dir is None:
            why = _why_anew(config, resolved)
            run_dir = _new_folder(config)
            say(why)
    else:
        run_dir = Path(config.run_dir if config.resume == "auto" else config.resume)  # type: ignore[arg-type]
        if config.resume == "auto" and not (run_dir / folders.CONFIG).exists():
            return _fresh_folder(run_dir, config), None
        _refuse_other_configuration(run_dir, resolved)
        result = folders.read_result(run_dir)
        if result and result.get("status") == "finished":
            return run_dir, result
    return run_dir, None


def _new_folder(config: Config) -> Path:
    """A folder for a run that begins. Raises UserError, and makes none, where something refuses the job."""
    preflight.check(config, overrides())
    name = config.run_name or folders.default_run_name(config)
    return folders.new_run_dir(Path(config.paths.outputs), config.experiment_name, name)


def _fresh_folder(run_dir: Path, config: Config) -> Path:
    if config.launch.node_rank == 0 and (run_dir / folders.CONFIG).exists():
        folders.start_lock(run_dir).release()  # raises for one that runs, naming the process
        raise UserError(
            f"run_dir={run_dir} already holds a run, nothing was written; add resume=auto to continue it, "
            "or choose another folder"
        )
    if config.launch.node_rank == 0:
        preflight.check(config, overrides())
    run_dir.mkdir(parents=True, exist_ok=True)
    return run_dir


def _refuse_other_configuration(run_dir: Path, resolved: dict[str, Any]) -> None:
    if not (run_dir / folders.CONFIG).exists():
        raise UserError(f"resume={run_dir}: no {folders.CONFIG} there, so it is not a run folder")
    try:
        other = folders.read_config(run_dir)
    except Unreadable as error:
        raise UserError(
            f"resume={run_dir}: {error}; only a run whose configuration is known is continued (to go on from its "
            "weights: init_from=FOLDER)"
        ) from None
    if folders.config_identity(other) == folders.config_identity(resolved):
        return
    raise UserError(
        f"resume={run_dir}: a run continues only with its own configuration; changed: {_changed(other, resolved)}"
        " (to go on from its weights with other settings: init_from=FOLDER)"
    )


def _changed(other: dict[str, Any], resolved: dict[str, Any]) -> str:
    """The settings in which two configurations would compute different things, the first five of them."""
    old, new = flatten(folders.deciding(other)), flatten(folders.deciding(resolved))
    said = [
        f"{key}={old.get(key)} there, {new.get(key)} now"
        for key in sorted(set(old) | set(new))
        if old.get(key) != new.get(key)
    ]
    return "; ".join(said[:5]) + (f" and {len(said) - 5} more" if len(said) > 5 else "")


def _why_anew(config: Config, resolved: dict[str, Any]) -> str:
    """What resume=auto says where no run has this configuration: the newest unfinished one of the stage has another."""
    outputs = Path(config.paths.outputs)

    def of_stage(other: dict[str, Any]) -> bool:
        stage = other.get("stage")
        return isinstance(stage, dict) and stage.get("name") == config.stage.name

    other = folders.newest_run(outputs, config.experiment_name, of_stage, finished=False)
    if other is None:
        where = f"experiment_name={config.experiment_name} has no unfinished run of stage={config.stage.name}"
        return f"resume=auto: {where}, so one begins"
    return (
        f"resume=auto: a new run begins, as {other}, the newest unfinished one of stage={config.stage.name}, has other "
        f"settings: {_changed(folders.read_config(other), resolved)}"
    )


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree:
        return {name: leaf for key, value in tree.items() for name, leaf in flatten(value, f"{prefix}{key}.").items()}
    return {prefix[:-1]: tree}


def _write_inputs(run_dir: Path, config: Config, resolved: Any) -> None:
    """config.yaml, parents.json and command.txt. A resumed run keeps its parents; of its configuration, what may
    differ between a run and its continuation (runs.NOT_IDENTITY) is the new command's. Without passwords, which have a
    file of their own."""
    if not (run_dir / folders.CONFIG).exists():
        found = parents.find_parents(config, overrides())
        terminal.keep(run_dir, resolved)
        parents.write(run_dir, found, Path(config.paths.outputs))
        if run_dir.absolute().parent.parent == (Path(config.paths.outputs) / config.experiment_name).absolute():
            folders.mark_created(run_dir)
    else:
        parents.keep(run_dir, config, overrides())
        terminal.keep(run_dir, resolved)
    text = OmegaConf.to_yaml(OmegaConf.create(terminal.masked_tree(resolved)))
    folders.write_text_atomic(run_dir / folders.CONFIG, text)
    with open(run_dir / folders.COMMAND, "a", encoding="utf-8") as file:
        file.write(f"{_command()}\n")
    trial.begin(run_dir)
    # What an earlier start ended with must not be taken for this one's.
    for old in (run_dir / folders.RESULT, run_dir / folders.STOP):
        old.unlink(missing_ok=True)


def _missing_folders(config: Config) -> list[Path]:
    """Folders above a run's that are not there yet, the innermost first."""
    outputs = Path(config.paths.outputs)
    inner = outputs / config.experiment_name / (config.run_name or folders.default_run_name(config))
    above = [Path(config.run_dir), *Path(config.run_dir).parents] if config.run_dir else [inner, *inner.parents]
    return [folder for folder in above if not folder.exists()]


def _remove_if_new(run_dir: Path, made: list[Path]) -> None:
    """Remove the folder of a run that could not start, and those that were made for it, where nothing else is in
    them."""
    if (run_dir / folders.CONFIG).exists():
        return
    names = {failures.START_FILE, folders.START_LOCK}
    written = names | {parents.FILE, terminal.FILE, folders.CREATED}
    if {path.name for path in run_dir.iterdir()} <= written:
        names = written
    for name in names:
        with contextlib.suppress(OSError):
            (run_dir / name).unlink()
    _remove_empty(run_dir, made)


def _remove_empty(run_dir: Path, made: list[Path]) -> None:
    with contextlib.suppress(OSError):
        for folder in dict.fromkeys([run_dir, *made]):
            folder.rmdir()


def _command() -> str:
    return "python -m tinychat.train " + for_shell(map(terminal.masked, sys.argv[1:]))


def overrides() -> list[str]:
    """What the command line says about this job."""
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def in_multirun() -> bool:
    """Whether Hydra runs several jobs (-m)."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
