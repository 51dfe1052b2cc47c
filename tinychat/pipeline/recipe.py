"""A pipeline's recipe (conf/pipeline/NAME.yaml), what a command says about it, and the gates that
its steps have to reach, one line each. Imports nothing heavy."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from tinychat.config.specs import recipe_order
from tinychat.config.words import quoted
from tinychat.errors import UserError
from tinychat.pipeline.steps import NAME, PROGRAMS, Step, refuse_wrong_order, words_of
from tinychat.runtime.run_files import at_home
from tinychat.tracking.vocabulary import METRICS

START = ":start"
_COMPARE: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le}
_GATE = re.compile(
    r"^(?P<of>\w+(?::start)?)(?:\s+(?P<by>[-/])\s+(?P<other>\w+(?::start)?))?\s+(?P<metric>[\w/]+)"
    r"(?:\s+(?P<sign>>=|<=)\s+(?P<bound>\S+))?$"
)

Measured = Mapping[str, Mapping[str, float]]  # {"ppo": {metric: last value}, "ppo:start": {metric: first value}}


@dataclass(frozen=True)
class Gate:
    """A metric of `of`, or its difference from `other`'s or ratio to it, compared with a bound; or how many of other
    gates are passed, which all of them have to be."""

    name: str
    metric: str
    of: str  # STAGE or STAGE:start
    other: str | None = None  # what it is compared with first
    sign: str | None = None  # >= or <=; None: nothing is compared
    bound: float | None = None
    by: str = "-"  # how `other` counts: the difference (-) or the ratio (/)
    needs: tuple[Gate, ...] = ()  # instead of a metric

    @property
    def stages(self) -> tuple[str, ...]:
        own = (place.removesuffix(START) for place in (self.of, self.other) if place)
        return tuple(dict.fromkeys([*own, *(stage for gate in self.needs for stage in gate.stages)]))

    @property
    def wanted(self) -> str:
        if self.needs:
            return f"all {len(self.needs)}"
        return "" if self.sign is None else f"{self.sign} {self.bound:g}"

    @property
    def measures(self) -> str:
        if self.needs:
            return f"gates passed of: {', '.join(gate.name for gate in self.needs)}"
        against = {"-": "minus that of", "/": "divided by that of"}[self.by]
        return f"{self.metric} of {self.of}" + (f" {against} {self.other}" if self.other else "")

    def with_bound(self, bound: float | None) -> Gate:
        """The same with another bound; None: only reported. Raises UserError where there is nothing to compare."""
        if bound is None:
            return replace(self, sign=None, bound=None)
        if self.sign is None:
            raise UserError(f"gates.{self.name}={bound:g}: this one has no bound in the recipe, it is only reported")
        if self.needs:
            raise UserError(f"gates.{self.name}={bound:g}: this one needs others, whose bounds can be set; null: none")
        return replace(self, bound=bound)


@dataclass(frozen=True)
class Verdict:
    """A gate and what was found."""

    gate: Gate
    value: float | None  # None: not measured
    low: float | None = None  # 95 % bounds, where the stage gives them
    high: float | None = None

    @property
    def word(self) -> str:
        """pass, fail, not measured, or reported (a gate without a bound)."""
        if self.value is None:
            return "not measured"
        if self.gate.sign is None or self.gate.bound is None:
            return "reported"
        return "pass" if _COMPARE[self.gate.sign](self.value, self.gate.bound) else "fail"

    @property
    def failed(self) -> bool:
        """Whether something was wanted and it is not so, or not known to be so."""
        return self.word == "fail" or (self.word == "not measured" and self.gate.sign is not None)


def asking(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Those of gates that want something; the others only report."""
    return [verdict for verdict in verdicts if verdict.gate.sign is not None]


def parse_gate(name: str, text: str, stages: tuple[str, ...]) -> Gate:
    """The gate that a recipe's line means.

    Raises UserError for a line of another form, an unknown metric, or a stage that is none of `stages`.
    """
    match = _GATE.match(str(text).strip())
    if match is None:
        raise UserError(
            f"gates: {name}: {text!r}: must be STAGE METRIC, then >= or <= and a number, "
            "as 'ppo eval/safe_rate >= 0.95', 'ppo - ppo:start eval/safe_rate >= 0.15' or "
            "'ppo / ppo:start eval/response_ppl <= 1.05'; or names of other gates in [ ], which it needs all"
        )
    of, by, other, metric, sign, bound = match.group("of", "by", "other", "metric", "sign", "bound")
    if metric not in METRICS:
        raise UserError(f"gates: {name}: {metric} is no metric; tinychat/tracking/vocabulary.py lists them")
    gate = Gate(name, metric, of, other, sign, None if bound is None else _number(name, bound), by or "-")
    for stage in gate.stages:
        if stage not in stages:
            raise UserError(f"gates: {name}: {stage} is no stage of this recipe; it has {', '.join(stages)}")
    return gate


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"gates: {name}: the bound {text} is not a number")
    return value


def parse_gates(lines: Mapping[str, Any], stages: tuple[str, ...]) -> list[Gate]:
    """Those of a recipe, {name: line, or list of names of gates before it}. Raises UserError as parse_gate does."""
    found: dict[str, Gate] = {}
    for name, said in lines.items():
        if not isinstance(said, list):
            found[name] = parse_gate(name, said, stages)
            continue
        needs = tuple(found[known(str(other), found, f"gates: {name}: gate (of those before it)")] for other in said)
        if idle := [gate.name for gate in needs if gate.sign is None]:
            raise UserError(f"gates: {name}: {idle[0]} has no bound: it is only reported, and cannot be needed")
        if not needs:
            raise UserError(f"gates: {name}: []: must name the gates that it needs")
        found[name] = _all_of(Gate(name, "", ""), needs)
    return list(found.values())


def _all_of(gate: Gate, needs: tuple[Gate, ...]) -> Gate:
    return replace(gate, needs=needs, sign=">=" if needs else None, bound=float(len(needs)))


def judge(gate: Gate, measured: Measured) -> Verdict:
    """Compare what was measured with what is wanted. A value that is not a number passes no gate."""
    if gate.needs:
        return Verdict(gate, float(sum(judge(one, measured).word == "pass" for one in gate.needs)))
    values = measured.get(gate.of, {})
    value = values.get(gate.metric)
    if gate.other is None:
        low, high = (values.get(f"{gate.metric}_{end}") for end in ("low", "high"))
        return Verdict(gate, value, low, high)
    other = measured.get(gate.other, {}).get(gate.metric)
    if value is None or other is None:
        return Verdict(gate, None)
    if gate.by == "/":
        return Verdict(gate, value / other if other else math.nan)
    return Verdict(gate, value - other)


DEFAULT = "tinyworld"
ALL = "all"
_KEYS = {"name", "common", "stages", "more", "gates", "samples", "sample_tokens"}
_STEP_KEYS = {"stage", "program", "start", "settings"}
_PREFIXED = re.compile(r"^([A-Za-z_]\w*):(.+)$")
_HELP = """\
tinychat.pipeline: the recipe in one command, each stage on the checkpoint of the one before.

  python -m tinychat.pipeline                                  the recipe {name}
  python -m tinychat.pipeline stages=sft,reward,ppo            some of its stages; the others' finished runs are used
  python -m tinychat.pipeline stages=all                       all of them, those that only run where they are named too
  python -m tinychat.pipeline seed=2 ppo:stage.beta=0.1        overrides of every stage that has the key, and of one
  python -m tinychat.pipeline pipeline=FILE.yaml               a recipe of your own

The same command again goes on: finished stages are skipped, one that was interrupted continues, one whose settings
or parents have changed runs anew with everything after it.

  resume=auto|never       never: run every stage anew           strict=true     exit status 1 where a gate fails
  gates.NAME=BOUND|null   another bound; null: only reported    --help          this page, with pipeline= of that recipe
  plan=cpu|3090|h200      memory and time of each stage; nothing runs

Recipes: {recipes}

Recipe {name}: stages and the settings of their jobs ({path})

{stages}{more}

Gates

{gates}
"""


@dataclass(frozen=True)
class Recipe:
    """Steps in order, each with the overrides of its job, and what they have to reach."""

    name: str
    path: Path
    common: list[str]  # overrides of every stage that has the key
    steps: dict[str, Step]
    gates: list[Gate] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)  # prompts that every policy answers for the report
    sample_tokens: int = 64
    more: frozenset[str] = frozenset()  # of the steps, those that run only where stages= names them


@dataclass
class Request:
    """A command line, sorted."""

    recipe: str = DEFAULT
    stages: list[str] | None = None  # names of steps; None: all of the recipe
    resume: bool = True
    strict: bool = False
    help: bool = False
    plain: list[str] = field(default_factory=list)  # overrides of every stage that has the key
    of_step: dict[str, list[str]] = field(default_factory=dict)
    bounds: dict[str, str] = field(default_factory=dict)  # of gates


def parse_request(words: Sequence[str]) -> Request:
    """Sort the words of a command line. Raises UserError for one that is no override."""
    request = Request()
    for word in words:
        key, equals, value = word.partition("=")
        prefix = _PREFIXED.match(key)
        if word in ("-h", "--help"):
            request.help = True
        elif not equals and not (word.startswith("~") or (prefix and prefix.group(2).startswith("~"))):
            raise UserError(f"{word}: not of the form KEY=VALUE (see python -m tinychat.pipeline --help)")
        elif prefix:
            request.of_step.setdefault(prefix.group(1), []).append(word[len(prefix.group(1)) + 1 :])
        elif key == "pipeline":
            request.recipe = value
        elif key == "stages":
            request.stages = [name.strip() for name in value.strip("[]").split(",") if name.strip()]
        elif key == "resume":
            request.resume = _choice(word, {"auto": True, "never": False})
        elif key == "strict":
            request.strict = _choice(word, {"true": True, "false": False})
        elif key.startswith("gates."):
            request.bounds[key.removeprefix("gates.")] = value
        elif key in ("stage", "run_dir", "run_name"):
            raise UserError(f"{word}: for one stage alone, as sft:{word}; stages= picks the stages that run")
        else:
            request.plain.append(quoted(word, sweeps=False))
    return request


def known(name: str, names: Iterable[str], what: str) -> str:
    """`name`, or a UserError with the nearest of `names`."""
    names = list(names)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UserError(f"{what} {name!r} is unknown; there are {', '.join(names)}.{hint}")


def _choice(word: str, values: dict[str, bool]) -> bool:
    key, _, value = word.partition("=")
    if value not in values:
        raise UserError(f"{key}={value}: {' or '.join(values)}")
    return values[value]


def recipes(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_recipe(spec: str, folder: Path) -> Recipe:
    """A recipe by its name in `folder`, or by its file. Raises UserError for what is missing or of another form."""
    path = at_home(spec) if spec.endswith((".yaml", ".yml")) else folder / f"{spec}.yaml"
    if not path.is_file():
        if path.parent == folder:
            known(spec, recipes(folder), "pipeline:")
        raise UserError(f"pipeline={spec}: no such file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not isinstance(content.get("stages"), dict) or not content["stages"]:
        raise UserError(f"{path}: must have stages, each with a list of overrides, as 'sft: [stage.max_steps=3000]'")
    for key in content:
        known(str(key), _KEYS, f"{path}: key")
    more = content.get("more") or {}
    if not isinstance(more, dict) or more.keys() & content["stages"].keys():
        raise UserError(f"{path}: more: must have further stages, each with a list of overrides, as 'dpo: []'")
    steps = _in_order({str(name): _step(path, str(name), said) for name, said in {**content["stages"], **more}.items()})
    for step in steps.values():
        refuse_wrong_order(step, steps, str(path))
    if not any(step.stage for step in steps.values()):
        raise UserError(f"{path}: stages: has programs alone; they need a stage whose checkpoint they read")
    gates = parse_gates({str(name): said for name, said in (content.get("gates") or {}).items()}, tuple(steps))
    return Recipe(
        name=str(content.get("name") or path.stem),
        path=path,
        common=_overrides(path, "common", content.get("common")),
        steps=steps,
        more=frozenset(map(str, more)),
        gates=gates,
        samples=_words(path, "samples", content.get("samples")),
        sample_tokens=int(content.get("sample_tokens") or 64),
    )


def _step(path: Path, name: str, said: Any) -> Step:
    """`sft: [..]`, `sft_long: {stage: sft, start: sft, settings: [..]}` or `export: {program: merge, start: sft}`."""
    if not isinstance(said, dict):
        known(name, recipe_order(), f"{path}: stage")
        return Step(name, _words(path, name, said), stage=name)
    for key in said:
        known(str(key), _STEP_KEYS, f"{path}: {name}: key")
    if not NAME.fullmatch(name):
        raise UserError(f"{path}: {name!r}: a step's name has letters, digits and _ alone, as sft_long")
    if (said.get("stage") is None) == (said.get("program") is None):
        raise UserError(f"{path}: {name}: must have either a stage, as 'stage: sft', or a program, as 'program: merge'")
    start = said.get("start") or []
    start = tuple(_words(path, f"{name}: start", [start] if isinstance(start, str) else start))
    settings = _words(path, f"{name}: settings", said.get("settings"))
    if (stage := said.get("stage")) is not None:
        known(str(stage), recipe_order(), f"{path}: {name}: stage")
        return Step(name, settings, stage=str(stage), start=start)
    known(str(said["program"]), PROGRAMS, f"{path}: {name}: program")
    for word in settings:
        if "=" not in word:
            raise UserError(f"{path}: {name}: settings: {word!r}: not of the form KEY=VALUE, an option of the program")
    return Step(name, settings, program=str(said["program"]), start=start)


def _in_order(steps: dict[str, Step]) -> dict[str, Step]:
    """Steps that are stages by their own name run in the order of the stages; with others among them, of the file."""
    if all(step.name == step.stage and not step.start for step in steps.values()):
        return {name: steps[name] for name in recipe_order() if name in steps}
    return steps


def _overrides(path: Path, key: str, value: Any) -> list[str]:
    return [quoted(word, sweeps=False) for word in _words(path, key, value)]


def _words(path: Path, key: str, value: Any) -> list[str]:
    """A list of texts, with the folder of the recipe in place of {here}."""
    if value is not None and not (isinstance(value, list) and all(isinstance(word, str) for word in value)):
        raise UserError(f"{path}: {key}: must be a list of texts in [ ], found {value!r}")
    return [word.replace("{here}", str(path.parent.absolute())) for word in value or []]


def chosen_steps(recipe: Recipe, request: Request) -> list[str]:
    """The steps to run, in the order of the recipe. Raises UserError for one that it does not have, and for settings
    of one that has to be named and is not."""
    named = request.stages or []
    for name in named:
        known(name, (*recipe.steps, ALL), f"stages={','.join(named)}: recipe {recipe.name}: step")
    for name, words in request.of_step.items():
        known(name, recipe.steps, f"{name}:{words[0]}: recipe {recipe.name}: step")
    usual = [name for name in recipe.steps if name not in recipe.more]
    wanted = recipe.steps if ALL in named else usual if request.stages is None else named
    for name in request.of_step:
        if name in recipe.more and name not in wanted:
            raise UserError(f"step {name}: runs only where stages= names it, as stages={name}")
    return [name for name in recipe.steps if name in wanted]


def narrowed(recipe: Recipe, chosen: Sequence[str]) -> Recipe:
    """The recipe without what runs only where it is named and was not, unless what is left takes its checkpoint by its
    name; and without the gates of that."""
    kept = {name for name in recipe.steps if name not in recipe.more or name in chosen}
    for name in reversed(recipe.steps):
        if name in kept:
            step = recipe.steps[name]
            kept |= {*step.start, *words_of(step, recipe.steps).values()}
    steps = {name: step for name, step in recipe.steps.items() if name in kept}
    gates = [gate for gate in recipe.gates if kept >= set(gate.stages)]
    return replace(recipe, steps=steps, more=recipe.more & kept, gates=gates)


def gates_of(recipe: Recipe, request: Request) -> list[Gate]:
    """The recipe's gates with the bounds of the command."""
    by_key = {gate.name.replace(" ", "_"): gate for gate in recipe.gates}
    for key, text in request.bounds.items():
        known(key, by_key, f"gates.{key}={text}: gate")
        try:
            bound = None if text in ("null", "None") else float(text)
        except ValueError:
            raise UserError(f"gates.{key}={text}: must be a number, or null for none") from None
        by_key[key] = by_key[key].with_bound(bound)
    now = {gate.name: gate for gate in by_key.values()}
    for key, gate in by_key.items():
        if gate.needs and gate.sign is not None:  # with their bounds, without those that nothing is asked of now
            by_key[key] = _all_of(gate, tuple(now[one.name] for one in gate.needs if now[one.name].sign is not None))
    return list(by_key.values())


def help_text(recipe: Recipe, folder: Path) -> str:
    """What --help prints."""
    width = max(10, *(len(name) + 2 for name in recipe.steps))
    lines = {name: f"  {name:<{width}}{_help_line(step)}".rstrip() for name, step in recipe.steps.items()}
    stages = "\n".join(line for name, line in lines.items() if name not in recipe.more)
    more = "\n".join(
        ["", "", "and, where stages= names them", "", *(lines[name] for name in lines if name in recipe.more)]
    )
    longest = max((len(gate.name) for gate in recipe.gates), default=0) + 2
    gates = [f"  {gate.name:<{longest}}{gate.measures} {gate.wanted}" for gate in recipe.gates]
    if recipe.common:
        stages = f"  {'(all)':<{width}}{' '.join(recipe.common)}\n{stages}"
    return _HELP.format(
        name=recipe.name,
        path=recipe.path,
        recipes=", ".join(recipes(folder)),
        stages=stages,
        more=more if recipe.more else "",
        gates="\n".join(line.rstrip() for line in gates) or "  none",
    )


def _help_line(step: Step) -> str:
    origin = f"from {' or '.join(step.start)}" if step.start else ""
    kind = ", ".join(part for part in (step.called, origin) if part)
    return " ".join([*([f"({kind})"] if kind else []), *step.settings])
