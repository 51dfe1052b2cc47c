"""The entrypoint: compose the configuration, check it, start the job, return its objective.

    python -m tinychat.train stage=pretrain model=mini

Imports only schema, checks, launch and runs, so that `--help` and a typing mistake answer at once.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from tinychat.config import checks, schema, words
from tinychat.config.explain import check_taken, explain
from tinychat.errors import UserError
from tinychat.launch import job as launch
from tinychat.launch import outer_launcher
from tinychat.runs import next_steps
from tinychat.runtime import console, gguf, process
from tinychat.runtime.run_files import disk_full, said_of
from tinychat.runtime.terminal import error_line
from tinychat.sweeps import StudySweeper


def config_folder() -> str:
    """conf/, which is tinychat/conf in an installed wheel and a link of that name in a checkout."""
    folder = Path(__file__).resolve().parent / "conf"
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is missing or no folder; get tinychat's files again, links included (git clone)")
    return str(folder.resolve())


def users_folder() -> Path | None:
    """conf/ in the folder where one works; None where it is a whole configuration: tinychat's own, that of another
    checkout, another program's."""
    folder = Path.cwd() / "conf"
    return folder if folder.is_dir() and not (folder / "config.yaml").exists() else None


class UsersConfig(SearchPathPlugin):
    """What tinychat's conf/ has not is looked for in the user's: `data=poems` in conf/data/poems.yaml."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if folder := users_folder():
            search_path.append("yours", f"file://{folder}")


def register() -> None:
    """What Hydra is to know before it composes."""
    schema.register()
    OmegaConf.register_resolver("tinychat.groups", groups, replace=True)
    for plugin in (StudySweeper, UsersConfig):
        Plugins.instance().register(plugin)


def groups() -> str:
    """A line for each config group: its options, and the words that conf/config.yaml has for it."""
    folder, users = Path(config_folder()), users_folder()
    defaults = (folder / "config.yaml").read_text(encoding="utf-8")
    lines = []
    for group, said in re.findall(r"^  - (\w+): \S+ # (.+)$", defaults, re.M):
        found = [folder / group, *([users / group] if users else [])]
        options = sorted({path.stem for place in found for path in place.glob("*.yaml")})
        lines.append(f"  {group:<11}{said}\n             {', '.join(options)}")
    return "\n".join(lines)


def job(node: DictConfig) -> float | None:
    """One job of a single run or multirun; returns the stage's objective for a sweeper."""
    config = schema.to_config(node)
    if config.sweep is not None and not launch.in_multirun():
        again = f"python -m tinychat.train -m {shlex.join(sys.argv[1:])}"
        raise UserError(f"sweep={config.sweep.name} is many runs: {again}")
    checks.check(config)
    with gguf.kept_in(config.paths.cache):
        if config.plan is not False:
            from tinychat.plan.report import print_plan  # torch loads here

            print_plan(config)
            return None
        return launch.run_job(config, node)


def run(said: Sequence[str]) -> Path:
    """One job in this process, as `python -m tinychat.train` runs it with these words; its run folder. Raises UserError
    for what that command would refuse or end with, and Stopped."""
    register()
    folder, before = Path(config_folder()), sys.argv
    try:
        if flags := [word for word in said if word.startswith("-")]:
            raise UserError(f"{flags[0]}: only settings, KEY=VALUE, are taken here; flags are the command line's")
        overrides = words.ready(list(said), folder)
        check_taken(overrides, folder, users_folder())
        with initialize_config_dir(str(folder)):
            node = compose("config", overrides, return_hydra_config=True)
        HydraConfig.instance().set_config(node)
        with open_dict(node):
            del node["hydra"]
        config = schema.to_config(node)
        if config.sweep is not None or config.plan is not False or config.launch.dry_run or not config.launch.wait:
            raise UserError(
                "sweep=, plan=, launch.dry_run= and launch.wait=false are the command line's: here one job runs"
            )
        checks.check(config)
        sys.argv = ["tinychat.train", *said]  # what the run folder keeps as its command
        with gguf.kept_in(config.paths.cache):
            done = launch.run_in_folder(config, node)
        assert done is not None
        return done
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from None
    except launch.JobFailed as error:
        raise UserError(str(error)) from error
    finally:
        sys.argv = before
        HydraConfig.instance().cfg = None


def main() -> None:
    """Console entry. Exit status: 0 done, 1 an error that was explained, 129, 130 or 143 stopped by a signal."""
    command("tinychat.train", job)


def command(program: str, job: Callable[[DictConfig], float | None]) -> None:
    """The command line of a program that takes the words of this one: compose, and do what `job` does with it. Ends the
    process where something is wrong, in one line."""
    errors: list[Exception] = []

    def single_or_multi(node: DictConfig) -> float | None:
        """The job. In a single run its error goes around Hydra, which would print a line of its own before it."""
        if launch.in_multirun():
            return job(node)
        try:
            return job(node)
        except Exception as error:
            errors.append(error)
            return None

    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come to us; explain() prints them
    console.take_library_output()
    process.end_without_a_last_look()
    process.end_where_nobody_reads()
    register()
    try:
        outer_launcher.refuse(program, sys.argv[1:])
        if (script := words.script(sys.argv[1:])) is not None:
            print(script, flush=True)
            return
        sys.argv[1:] = words.ready(sys.argv[1:], Path(config_folder()))
        check_taken(sys.argv[1:], Path(config_folder()), users_folder())
        hydra.main(config_path=config_folder(), config_name="config")(single_or_multi)()
        if errors:
            raise errors[0]
    except launch.Stopped as stop:
        if not launch.in_multirun():  # a sweep says how it goes on
            next_steps.tell_stopped()
        sys.exit(stop.status)
    except (UserError, launch.JobFailed) as error:
        sys.exit(error_line(error))
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(error_line(explain(error)))
    except BrokenPipeError:  # `| head` has read enough
        process.discard_output()
    except OSError as error:  # after Hydra's own, some of which are OSErrors: its run folder cannot be made
        if errors and not disk_full(error):
            raise
        sys.exit(error_line(f"{said_of(error)}; choose another folder with paths.outputs="))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
