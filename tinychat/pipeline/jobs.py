"""The jobs of a pipeline: overrides sorted out and composed, checkpoints handed on, finished runs found again.

A step's run is found by its configuration (runs.config_identity), in which the folders of its parents stand. So a
step whose settings or parents have changed has no run yet, and two pipelines with different settings never mix.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import signal
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from shlex import join
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tinychat import train
from tinychat.config import checks, plugins, schema
from tinychat.config.explain import check_taken, check_tuned, explain, nearest_key
from tinychat.config.specs import JUDGES, Made, spec_of
from tinychat.config.words import as_value, quoted
from tinychat.errors import UserError
from tinychat.pipeline.recipe import Recipe, Request
from tinychat.pipeline.steps import PROGRAMS, ROLES, WORD, Step, earlier, nearest, origin_of, words_of
from tinychat.runs import folders, parents
from tinychat.runtime.terminal import masked

_EVERYWHERE = {field.name for field in fields(schema.Config)}  # keys and groups that every job has

Value = str | list[str] | None  # of what a job is handed on


@dataclass(frozen=True)
class Job:
    """A step that is a stage, composed."""

    step: Step
    overrides: list[str]  # of its command
    config: schema.Config
    resolved: dict[str, Any]  # as a run folder's config.yaml has it
    words: dict[str, str] = field(default_factory=dict)  # settings with {NAME}, what an earlier step has made

    @property
    def identity(self) -> str:
        return folders.config_identity(self.resolved)

    def command(self, _folder: Path | None) -> str:
        return "python -m tinychat.train " + join(map(masked, self.overrides))

    def product(self, folder: Path) -> Path:
        """What its run in a folder is to the steps that build on it."""
        return folder

    def given(self, handed: Mapping[str, Any]) -> Job:
        """The same with its parents. Nothing else may be in `handed`: it is not checked again."""
        resolved = OmegaConf.create(self.resolved)
        for key, value in handed.items():
            OmegaConf.update(resolved, key, value)
        added = {_key(word) for word in self.overrides if word.startswith("+")}
        more = [f"{'+' if key in added else ''}{key}={as_value(value)}" for key, value in handed.items()]
        words = _last_of_each([*self.overrides, *more])
        config, tree = schema.to_config(resolved), OmegaConf.to_container(resolved)
        return replace(self, overrides=words, config=config, resolved=tree)  # type: ignore[arg-type]

    def newest(self, finished: bool) -> Path | None:
        """The newest run of this very configuration that has finished, or that has not."""
        outputs, experiment = Path(self.config.paths.outputs), self.config.experiment_name
        return folders.newest_run(
            outputs, experiment, lambda other: folders.config_identity(other) == self.identity, finished=finished
        )


SETTINGS = "step.json"  # of a program's run: what it is found again by
PROMPTS = "prompts.txt"  # the recipe's samples as a file, where a setting says {samples}


@dataclass(frozen=True)
class ProgramJob:
    """A step that runs another program than tinychat.train, in a folder OUTPUTS/EXPERIMENT/PROGRAM-NAME/TIME."""

    step: Step
    options: dict[str, str]  # with words {NAME} until what they stand for is `given`
    outputs: Path
    experiment: str
    known: dict[str, str]  # values of words that are known before any step has run: seed
    samples: list[str]  # the recipe's prompts
    handed: dict[str, str] = field(default_factory=dict)  # {word: path}; "start": the checkpoint it reads

    @property
    def identity(self) -> str:
        return hashlib.sha256(json.dumps(self._settings(), sort_keys=True).encode()).hexdigest()[:16]

    def _settings(self) -> dict[str, Any]:
        words = {word for value in self.options.values() for word in WORD.findall(value)}
        known = {word: value for word, value in (self.known | self.handed).items() if word in {*words, "start"}}
        samples = self.samples if "samples" in words else None
        said = {"program": self.step.program, "options": self.options, "words": known, "samples": samples}
        return folders.moved(said, str(self.outputs), folders.OUTPUTS)

    def command(self, folder: Path | None) -> str:
        words = self.arguments(folder or Path("FOLDER"))
        return f"python -m tinychat.{self.step.program} {join(map(masked, words))}"

    def arguments(self, folder: Path) -> list[str]:
        """Of the program, for a run in a folder."""
        values = self.known | self.handed | {"out": str(self.product(folder)), "samples": str(folder / PROMPTS)}

        def filled(word: str) -> str:
            return WORD.sub(lambda match: values.get(match[1], match[0]), word)

        words = [filled(word) for word in PROGRAMS[str(self.step.program)].arguments]
        for key, value in self.options.items():
            if value not in ("false", "null"):
                words += [f"-{key}" if len(key) == 1 else f"--{key.replace('_', '-')}"]
                words += [] if value == "true" else [filled(value)]
        return words

    def product(self, folder: Path) -> Path:
        return folder / PROGRAMS[str(self.step.program)].out

    def given(self, handed: Mapping[str, Any]) -> ProgramJob:
        return replace(self, handed=dict(handed))

    def newest(self, finished: bool) -> Path | None:
        """The newest run of this very program with these words that has finished, or that has not."""
        found = (self.outputs / self.experiment / self._name).glob(f"*/{SETTINGS}")
        for folder in sorted((path.parent for path in found), key=folders.order_of, reverse=True):
            same = (folders.read_json(folder / SETTINGS) or {}).get("identity") == self.identity
            if same and ((folders.read_result(folder) or {}).get("status") == "finished") == finished:
                return folder
        return None

    @property
    def _name(self) -> str:
        return f"{self.step.program}-{self.step.name}"

    def check(self) -> None:
        """Raises UserError for options that the program does not take."""
        importlib.import_module(self.step.module).parse(self.arguments(Path("FOLDER")))

    def run(self) -> None:
        """In a process of its own: the program in a new folder. Its settings are written first, and its result, with
        what it has measured, when it has ended well."""
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _frame: sys.exit(128 + number))
        began = time.time()
        folder = folders.new_run_dir(self.outputs, self.experiment, self._name)
        folders.mark_created(folder)
        text = json.dumps(self._settings() | {"identity": self.identity}, indent=1, ensure_ascii=False)
        folders.write_text_atomic(folder / SETTINGS, text)
        folders.write_text_atomic(folder / folders.COMMAND, self.command(folder) + "\n")
        folders.write_text_atomic(folder / PROMPTS, "".join(f"{prompt}\n" for prompt in self.samples))
        found = {"init_from": self.handed["start"], "tokenizer": None}
        parents.write(folder, found | {n: p for n, p in self.handed.items() if n != "start"}, self.outputs)
        figures = importlib.import_module(self.step.module).run(self.arguments(folder)) or {}
        result = {"status": "finished", "metrics": figures, "minutes": (time.time() - began) / 60}
        folders.write_text_atomic(folder / folders.RESULT, json.dumps(result, indent=1))


AnyJob = Job | ProgramJob
Found = Mapping[str, Path | None]  # step -> what its finished run has made; None: it has none (yet)


class Composer:
    """Composes jobs; a context manager, as Hydra's initialisation is."""

    def __init__(self, recipe: Recipe, request: Request):
        self._recipe, self._request = recipe, request
        self._folder = train.config_folder()
        self._groups = {path.name for path in Path(self._folder).iterdir() if path.is_dir()}
        train.register()
        self._initialised = initialize_config_dir(self._folder)

    def __enter__(self) -> Composer:
        self._initialised.__enter__()
        return self

    def __exit__(self, *problem: Any) -> None:
        self._initialised.__exit__(*problem)

    def jobs(self) -> dict[str, AnyJob]:
        """Every step's job without parents, checked. Raises one UserError with all that is wrong, step by step."""
        problems, jobs = [], {}
        taken: set[str] = set()
        for name, step in self._recipe.steps.items():
            if step.program:
                continue
            try:
                plain = self._taken_by(step)
                taken.update(plain)
                jobs[name] = self._job(step, plain)
                checks.check(jobs[name].config)
                _check_start(jobs[name])
            except UserError as error:
                problems.append(f"stage {name}: {error}")
        if not problems:
            problems = [_unknown(word, jobs) for word in self._request.plain if word not in taken]
        if problems:
            raise UserError("\n       ".join(dict.fromkeys(problems)))
        first = next(iter(jobs.values())).config
        return {name: jobs.get(name) or self._program(step, first) for name, step in self._recipe.steps.items()}

    def _job(self, step: Step, plain: Sequence[str]) -> Job:
        said = [f"stage={step.stage}", *step.settings, *plain, *self._request.of_step.get(step.name, ())]
        known = {*ROLES, *(other.name for other in earlier(step, self._recipe.steps))}
        words, overrides = {}, []
        for word in _last_of_each(said):
            key, _, value = word.partition("=")
            if known.isdisjoint(WORD.findall(value)):
                overrides.append(quoted(word, sweeps=False))
            else:
                words[_key(word)] = value
                overrides.append(f"{key}={as_value(value)}")
        check_tuned(overrides, Path(self._folder))
        check_taken(overrides, Path(self._folder), train.users_folder())
        node = self._compose(overrides)
        try:
            config = schema.to_config(node)
        except OmegaConfBaseException as error:
            raise UserError(explain(error)) from None
        if config.launch.dry_run or not config.launch.wait:
            raise UserError(
                "launch.dry_run=true and launch.wait=false leave nothing that the next stage could build on"
            )
        if config.stage.name != step.stage:
            raise UserError(f"its settings make stage={config.stage.name}: {' '.join(overrides)}")
        # As launch.run_job writes it into the run folder.
        resolved = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(node, resolve=True)))
        return Job(step, overrides, config, resolved, words)  # type: ignore[arg-type]

    def _program(self, step: Step, config: schema.Config) -> ProgramJob:
        """config: of a stage of the same pipeline."""
        words = [*step.settings, *self._request.of_step.get(step.name, ())]
        options = dict(word.split("=", 1) for word in words if "=" in word)
        outputs, known = Path(config.paths.outputs), {"seed": str(config.seed)}
        job = ProgramJob(step, options, outputs, config.experiment_name, known, self._recipe.samples)
        able = {*known, "samples", *ROLES, *(other.name for other in earlier(step, self._recipe.steps))}
        try:
            for word in (word for value in options.values() for word in WORD.findall(value)):
                if word not in able or (word in ROLES and word not in _words(job, self._recipe)):
                    raise UserError(f"{{{word}}} stands for no earlier step; there are {', '.join(sorted(able))}")
            job.check()
        except UserError as error:
            raise UserError(f"step {step.name}: {error}") from None
        return job

    def _compose(self, overrides: list[str]) -> DictConfig:
        try:
            return compose("config", overrides)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(explain(error)) from None

    def _taken_by(self, step: Step) -> list[str]:
        """The overrides meant for every stage, the recipe's and the command's, whose key this stage has."""
        plain = [*self._recipe.common, *self._request.plain]
        unclear = [word for word in plain if _key(word) not in _EVERYWHERE and word[:1] not in "+~"]
        if not unclear:
            return plain
        choices = [quoted(word, sweeps=False) for word in (*step.settings, *plain) if _key(word) in self._groups]
        node = self._compose(_last_of_each([f"stage={step.stage}", *choices]))
        return [w for w in plain if w not in unclear or _key(w) in self._groups or _has(node, _key(w))]


def _check_start(job: Job) -> None:
    """Raise UserError where a policy has to answer and nothing says which step's: the nearest that the stage can start
    from was never taught to."""
    if plugins.makes_replies(job.config) and not job.step.start and _open_start(job):
        raise UserError(
            f"data={job.config.data.name}: whose replies? Give the step `start:`, an earlier step whose policy answers "
            "and learns on, or init_from=FOLDER"
        )


def _unknown(word: str, jobs: Mapping[str, Job]) -> str:
    keys = {key: None for job in jobs.values() for key in _leaves(job.resolved)}
    near = nearest_key(_key(word), keys)
    return f"{word}: no stage has this key." + (f" Did you mean {near}?" if near else "")


def hand_on(job: AnyJob, recipe: Recipe, found: Found) -> dict[str, Any]:
    """What gives a job its parents among `found`: settings of a stage, whose own ones that name a checkpoint already
    stay as they are, and words of a program."""
    steps = recipe.steps
    there = {name for name, made in found.items() if made}
    origin = origin_of(job.step, steps, there)
    words = {word: str(found[name]) for word, name in _words(job, recipe).items() if found.get(name)}
    if isinstance(job, ProgramJob):
        return words | ({"start": str(found[origin])} if origin in there else {})
    config = job.config

    def last(made: Made) -> Path | None:
        name = nearest(made, job.step, steps, there.__contains__)
        return found[name] if name else None

    handed: dict[str, Value] = {}
    for key, value in job.words.items():
        handed[key] = WORD.sub(lambda match: words.get(match[1], match[0]), value)
    if _wants_corpus(job) and (run := last(Made.corpus)):
        handed["data.path"] = str(run)
    if _wants_tokenizer(job) and (run := last(Made.tokenizer)):
        handed["tokenizer.path"] = str(run)
    if _open_start(job) and origin in there:
        handed["init_from"] = _handed(found[origin], config.init_from)
    if run := last(Made.reward):
        handed |= {f"reward.parts.{name}.path": _handed(run, spec) for name, spec in _open_rewards(job).items()}
    policy = getattr(config.data, "policy", None)
    if policy in parents.AUTO and origin in there:
        handed["data.policy"] = _handed(found[origin], policy)
    for key, made in JUDGES.items():
        if (judge := getattr(config.stage, key, None)) in parents.AUTO:
            run = last(made)  # without a judge of its own none: never another pipeline's
            handed[f"stage.{key}"] = _handed(run, judge) if run else None
    if getattr(config.stage, "against", None) == []:
        policies = [other.name for other in earlier(job.step, steps) if other.trains_policy and other.name != origin]
        handed["stage.against"] = [str(found[name]) for name in reversed(policies) if name in there]
    return handed


def needs(job: AnyJob, recipe: Recipe, there: Collection[str] = ()) -> list[str]:
    """The steps of the recipe without whose runs a job cannot start. there: those that run or have run."""
    steps = recipe.steps
    wanted: list[str | None] = list(_words(job, recipe).values())
    if isinstance(job, ProgramJob):
        wanted.append(origin_of(job.step, steps, there))
    else:
        wanted.append(nearest(Made.corpus, job.step, steps) if _wants_corpus(job) else None)
        wanted.append(nearest(Made.tokenizer, job.step, steps) if _wants_tokenizer(job) else None)
        wanted.append(origin_of(job.step, steps, there) if _open_start(job) else None)
        wanted.append(nearest(Made.reward, job.step, steps) if _open_rewards(job) else None)
    return list(dict.fromkeys(name for name in wanted if name))


def _words(job: AnyJob, recipe: Recipe) -> dict[str, str]:
    """The words in its settings that stand for earlier steps, as its command may have changed them."""
    values = job.options if isinstance(job, ProgramJob) else job.words
    return words_of(replace(job.step, settings=list(values.values())), recipe.steps)


def _open_start(job: Job) -> bool:
    """Whether the recipe says which checkpoint it starts from, and not its own settings."""
    return job.config.init_from in parents.AUTO or (bool(job.step.start) and job.config.init_from is None)


def _wants_corpus(job: Job) -> bool:
    """Whether its documents are those of a corpus that it does not name."""
    data = job.config.data
    return spec_of(job.config).makes is not Made.corpus and plugins.source_of(data).of_corpus and not data.path


def _wants_tokenizer(job: Job) -> bool:
    """Whether it starts from no checkpoint, which would bring one, and names none."""
    tokenizer = job.config.tokenizer
    named = tokenizer.path or job.config.init_from or job.step.start
    return spec_of(job.config).needs_tokenizer and tokenizer.kind is schema.TokenizerKind.bpe and not named


def _open_rewards(job: Job) -> dict[str, str]:
    """The parts of its reward that are a reward model, the newest there is; and which checkpoint of that."""
    models = plugins.reward_models(job.config.reward) if plugins.rewarded(job.config) else {}
    return {name: path for name, path in models.items() if path in parents.AUTO}


def _handed(run: Path | None, spec: str | None) -> str:
    """A run's checkpoint for `spec` of parents.AUTO."""
    return f"{run}/{folders.BEST}" if spec == folders.BEST else str(run)


def _key(word: str) -> str:
    """`+a.b=1` -> a.b"""
    return word.lstrip("+~").partition("=")[0].partition("@")[0]


def _last_of_each(words: Sequence[str]) -> list[str]:
    """Of several overrides of one key the last, at its place: Hydra takes one choice a group."""
    last = {_key(word): index for index, word in enumerate(words)}
    return [word for index, word in enumerate(words) if last[_key(word)] == index]


def _has(node: DictConfig, key: str) -> bool:
    """Whether a key can be set: it is there, or under a free mapping such as ds.config."""
    parent, _, leaf = key.rpartition(".")
    try:
        where = OmegaConf.select(node, parent) if parent else node
    except OmegaConfBaseException:
        return False
    return isinstance(where, DictConfig) and leaf in list(where.keys())


def _leaves(tree: Any, prefix: str = "") -> list[str]:
    if isinstance(tree, dict) and tree:
        return [leaf for key, value in tree.items() for leaf in (f"{prefix}{key}", *_leaves(value, f"{prefix}{key}."))]
    return []
