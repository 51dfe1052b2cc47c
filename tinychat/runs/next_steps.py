"""What a finished run ends with: where its checkpoint and report are, and the commands that go on from there."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import tinychat
from tinychat.config.plugins import answer_kind, source_of
from tinychat.config.schema import Config, TokenizerKind
from tinychat.config.shapes import shape_of
from tinychat.config.specs import SPECS, Made, recipe_order, spec_of
from tinychat.config.words import for_shell
from tinychat.runtime.terminal import say

_KEPT = ("model=", "model.", "tokenizer=", "tokenizer.", "experiment_name=", "paths.", "tracker")
_DATA = ("data=", "data.")
_parts: list[str] = []  # at most one: what the runs of this process are a part of


def leave_to(whole: str) -> None:
    """The runs of this process are a part of `whole`, a recipe, which says itself how it goes on."""
    _parts[:] = [whole]


def tell(config: Config, run_dir: Path, result: Mapping[str, Any], said: Sequence[str]) -> None:
    """Print the lines to stderr, after the log's."""
    for name, text in lines(config, run_dir, result, said):
        say(f"{name + ':':<12}{text}")


def tell_stopped() -> None:
    """How a run that was told to stop goes on."""
    if not _parts:
        say("stopped; the same command with resume=auto goes on from what was saved")


def lines(config: Config, run_dir: Path, result: Mapping[str, Any], said: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name, path or command). said: the overrides of the run's command, of which those that the next one needs are
    repeated."""
    stage = spec_of(config)
    if result.get("checkpoint"):
        yield "checkpoint", str(run_dir / result["checkpoint"])
    report = run_dir / "report.html"
    yield "report", str(report) if report.exists() else f"none could be written, see {run_dir / 'log.txt'}"
    if _parts:
        return
    if stage.makes is Made.language:
        yield "talk to it", talk(run_dir, config)
    family = _family(said)
    # An experiment of several stages goes on with one of its own, where it has one that this leads to.
    later = [name for name in recipe_order() if stage.name in SPECS[name].origins and name in family]
    following = stage.next if stage.next in family or not later else later[0]
    if stage.makes is Made.corpus and following and config.tokenizer.kind is not TokenizerKind.bpe:
        following = SPECS[following].next  # there is a tokenizer
    if following:
        kept = (*_KEPT, *_DATA) if stage.next_data else _KEPT
        kept = (*kept, "experiment=") if following in family else kept
        words = [word for word in said if word.lstrip("+").startswith(kept)]
        words = ["data=corpus", *words] if stage.makes is Made.corpus else words
        wanted = getattr(config.stage, "pass_k", [])  # stage=eval measures it only where it is asked for
        if wanted and "pass_k" in {field.name for field in fields(SPECS[following].settings)}:
            words.append(f"stage.pass_k=[{','.join(map(str, wanted))}]")
            named = any(word.startswith("data.answer=") for word in words)
            # What the reward says for all of them, rows need not.
            if (kind := answer_kind(config)) and not named and "prompts" in source_of(config.data).has:
                words.append(f"data.answer={kind}")
        yield "next", for_shell(["python", "-m", "tinychat.train", f"stage={following}", *words])
    else:
        elsewhere = [] if config.paths.outputs == "outputs" else ["--outputs", config.paths.outputs]
        words = ["python", "-m", "tinychat.compare", config.experiment_name, "--stage", stage.name, *elsewhere]
        yield "next", shlex.join(words)


def _family(said: Sequence[str]) -> set[str]:
    """The stages that the command's experiment has settings of, in a folder beside its file."""
    name = next((word.partition("=")[2] for word in said if word.startswith("experiment=")), "")
    homes = (Path(tinychat.__file__).parent / "conf", Path("conf")) if name else ()
    return {file.stem for home in homes for file in (home / "experiment" / name).glob("*.yaml")}


def talk(run_dir: Path, config: Config, program: str = "chat", others: Sequence[Path] = ()) -> str:
    """The command; others: checkpoints before it, of the same kind of model."""
    named = shape_of(config.model).own_code and not str(config.model.path).startswith("transformers:")
    code = ["--model-code", str(config.model.path)] if named else []
    return shlex.join(["python", "-m", f"tinychat.{program}", *code, *map(str, others), str(run_dir)])


def by_this_python(command: str) -> str:
    """A command that begins with python, as it works here, where `python` may be none or another one: `make run` is
    for people who have activated no environment."""
    found, own = shutil.which("python"), Path(sys.executable)
    if found and Path(found).parent.resolve() == own.parent.resolve():
        return command
    here = Path.cwd()
    return shlex.quote(str(own.relative_to(here) if own.is_relative_to(here) else own)) + command.removeprefix("python")
