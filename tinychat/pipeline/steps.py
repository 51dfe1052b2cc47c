"""The steps of a recipe: stages, several of one stage beside each other, and other programs of tinychat; and which
earlier step hands a later one its checkpoint. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from tinychat.config.specs import SPECS, Made, makers
from tinychat.errors import UserError

# In a setting, {NAME} is what an earlier step of that name has made; these words are the nearest earlier step that has
# made such a thing. A step's name wins.
ROLES = {"policy" if made is Made.language else made.value: made for made in Made}
WORD = re.compile(r"\{([A-Za-z_]\w*)\}")
NAME = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class Program:
    """A program of tinychat that a step may run. `parse(arguments)` of its module refuses wrong ones, `run(arguments)`
    does the work and may return what it has measured, {metric: value}."""

    module: str
    arguments: tuple[str, ...]  # {start} is the checkpoint, {out} what it writes; the step's settings follow as options
    out: str  # in the folder of the step's run
    makes: Made | None = None


PROGRAMS = {
    "generate": Program("tinychat.generate.__main__", ("{start}", "--out", "{out}"), "replies.jsonl"),
    "merge": Program("tinychat.merge", ("{start}", "{out}"), "model", Made.language),
}


@dataclass(frozen=True)
class Step:
    """A part of a recipe, by its name: a job of tinychat.train, or another program."""

    name: str
    settings: list[str]  # of its command, KEY=VALUE
    stage: str | None = None
    program: str | None = None
    start: tuple[str, ...] = ()  # steps whose checkpoint it takes, the most wanted first; (): the nearest it can

    @property
    def makes(self) -> Made | None:
        return PROGRAMS[self.program].makes if self.program else SPECS[self.stage or self.name].makes

    @property
    def module(self) -> str:
        """What its process imports."""
        return PROGRAMS[self.program].module if self.program else SPECS[self.stage or self.name].run.partition(":")[0]

    @property
    def trains_policy(self) -> bool:
        return self.stage is not None and self.makes is Made.language

    @property
    def label(self) -> str:
        """What its policy is called beside others."""
        return SPECS[self.name].policy if self.name == self.stage else self.name

    @property
    def called(self) -> str:
        """Its kind, where the name does not say it."""
        return f"program {self.program}" if self.program else "" if self.name == self.stage else f"stage {self.stage}"


Steps = Mapping[str, Step]  # in the order in which they run


def earlier(step: Step, steps: Steps) -> Iterator[Step]:
    """Those before it, the nearest first; of a step that is not among them all."""
    names = list(steps)
    end = names.index(step.name) if step.name in steps else len(names)
    return (steps[name] for name in reversed(names[:end]))


def nearest(made: Made, step: Step, steps: Steps, there: Callable[[str], bool] = lambda name: True) -> str | None:
    """The nearest earlier stage that makes such a checkpoint, of those that are `there`."""
    able = makers(made)
    return next((other.name for other in earlier(step, steps) if other.stage in able and there(other.name)), None)


def origin_of(step: Step, steps: Steps, there: Collection[str]) -> str | None:
    """The step whose checkpoint it starts from; None: no step's. there: those that run or have run, which decides
    where a recipe names several."""
    if step.start:
        return next((name for name in step.start if name in there), step.start[0])
    if step.program:
        return nearest(Made.language, step, steps)
    wanted = SPECS[step.stage or step.name].starts_from
    if isinstance(wanted, Made):
        return nearest(wanted, step, steps)
    # but for its own stage: to go on from another run of that has to be said
    able = [name for name in wanted if name != step.stage]
    return next((other.name for stage in able for other in earlier(step, steps) if other.stage == stage), None)


def words_of(step: Step, steps: Steps) -> dict[str, str]:
    """The words {NAME} in its settings that stand for earlier steps, and which these are."""
    found = {}
    before = {other.name for other in earlier(step, steps)}
    for word in (word for setting in step.settings for word in WORD.findall(setting)):
        if word in before:
            found[word] = word
        elif word in ROLES and (name := nearest(ROLES[word], step, steps)):
            found[word] = name
    return found


def refuse_wrong_order(step: Step, steps: Steps, path: str) -> None:
    """Raises UserError for a `start` that is no earlier policy, and for a step that stands before the only ones that
    it could start from: it would take an older run's checkpoint in silence."""
    before = {other.name: other for other in earlier(step, steps)}
    able = [name for name, other in before.items() if other.makes is Made.language]
    if step.start and step.stage and not SPECS[step.stage].has_model:
        raise UserError(f"{path}: {step.name}: start: stage={step.stage} starts from no checkpoint; leave it out")
    for name in step.start:
        if name not in able:
            there = ", ".join(reversed(able)) or "none"
            raise UserError(f"{path}: {step.name}: start: {name} is no earlier step with a policy; there are: {there}")
    if step.program and not step.start and not able:
        raise UserError(f"{path}: {step.name}: program {step.program} needs a policy, and no earlier step makes one")
    named = any(setting.startswith("init_from=") for setting in step.settings)
    if step.start or step.program or named or origin_of(step, steps, ()):
        return
    origins = SPECS[step.stage or step.name].origins
    later = [other for other in steps.values() if other.name not in before and other.stage in origins]
    if later := [other for other in later if other.stage != step.stage]:
        raise UserError(
            f"{path}: {step.name} stands before {later[0].name}, which it starts from; named steps run in the order "
            "of the file"
        )
