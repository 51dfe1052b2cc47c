"""The jobs of a pipeline: overrides sorted out and composed, checkpoints handed on, finished runs found again.

A stage's run is found by its configuration (runs.config_identity), in which the folders of its parents stand. So a
stage whose settings or parents have changed has no run yet, and two pipelines with different settings never mix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
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
from tinychat.config.specs import SPECS, Made, makers, spec_of
from tinychat.config.words import as_value
from tinychat.errors import UserError
from tinychat.pipeline.recipe import Recipe, Request
from tinychat.runs import folders, parents
from tinychat.runtime.terminal import masked

_EVERYWHERE = {field.name for field in fields(schema.Config)}  # keys and groups that every job has

Value = str | list[str] | None  # of what a job is handed on


@dataclass(frozen=True)
class Job:
    """One stage, composed."""

    stage: str
    overrides: list[str]  # of its command
    config: schema.Config
    resolved: dict[str, Any]  # as a run folder's config.yaml has it

    @property
    def identity(self) -> str:
        return folders.config_identity(self.resolved)

    @property
    def command(self) -> str:
        return "python -m tinychat.train " + join(map(masked, self.overrides))

    def given(self, handed: Mapping[str, Value]) -> Job:
        """The same with its parents. Nothing else may be in `handed`: it is not checked again."""
        resolved = OmegaConf.create(self.resolved)
        for key, value in handed.items():
            OmegaConf.update(resolved, key, value)
        words = _last_of_each([*self.overrides, *(f"{key}={as_value(value)}" for key, value in handed.items())])
        return replace(self, overrides=words, resolved=OmegaConf.to_container(resolved))  # type: ignore[arg-type]

    def newest(self, finished: bool) -> Path | None:
        """The newest run of this very configuration that has finished, or that has not."""
        outputs, experiment = Path(self.config.paths.outputs), self.config.experiment_name
        return folders.newest_run(
            outputs, experiment, lambda other: folders.config_identity(other) == self.identity, finished=finished
        )


Found = Mapping[str, Path | None]  # stage -> its finished run's folder; None: it has none (yet)


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

    def jobs(self) -> dict[str, Job]:
        """Every stage's job without parents, checked. Raises one UserError with all that is wrong, stage by stage."""
        problems, jobs = [], {}
        taken: set[str] = set()
        for stage in self._recipe.stages:
            try:
                plain = self._taken_by(stage)
                taken.update(plain)
                jobs[stage] = self._job(stage, plain)
                checks.check(jobs[stage].config)
            except UserError as error:
                problems.append(f"stage {stage}: {error}")
        if not problems:
            problems = [_unknown(word, jobs) for word in self._request.plain if word not in taken]
        if problems:
            raise UserError("\n       ".join(dict.fromkeys(problems)))
        return jobs

    def _job(self, stage: str, plain: Sequence[str]) -> Job:
        own = self._recipe.stages[stage]
        overrides = _last_of_each([f"stage={stage}", *own, *plain, *self._request.of_stage.get(stage, ())])
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
        if config.stage.name != stage:
            raise UserError(f"its settings make stage={config.stage.name}: {' '.join(overrides)}")
        # As launch.run_job writes it into the run folder.
        resolved = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(node, resolve=True)))
        return Job(stage, overrides, config, resolved)  # type: ignore[arg-type]

    def _compose(self, overrides: list[str]) -> DictConfig:
        try:
            return compose("config", overrides)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(explain(error)) from None

    def _taken_by(self, stage: str) -> list[str]:
        """The overrides meant for every stage, the recipe's and the command's, whose key this stage has."""
        plain = [*self._recipe.common, *self._request.plain]
        unclear = [word for word in plain if _key(word) not in _EVERYWHERE and word[:1] not in "+~"]
        if not unclear:
            return plain
        choices = [word for word in (*self._recipe.stages[stage], *plain) if _key(word) in self._groups]
        node = self._compose(_last_of_each([f"stage={stage}", *choices]))
        return [w for w in plain if w not in unclear or _key(w) in self._groups or _has(node, _key(w))]


def _unknown(word: str, jobs: Mapping[str, Job]) -> str:
    keys = {key: None for job in jobs.values() for key in _leaves(job.resolved)}
    near = nearest_key(_key(word), keys)
    return f"{word}: no stage has this key." + (f" Did you mean {near}?" if near else "")


def hand_on(job: Job, recipe: Recipe, found: Found) -> dict[str, Value]:
    """The settings that give a job its parents among `found`; what its own settings name already stays as it is."""
    config, stage = job.config, job.stage
    handed: dict[str, Value] = {}
    if _wants_tokenizer(job) and (run := _last(Made.tokenizer, found)):
        handed["tokenizer.path"] = str(run)
    origin = origin_of(stage, recipe, found)
    if config.init_from in parents.AUTO and origin:
        handed["init_from"] = _handed(found[origin], config.init_from)
    if run := _last(Made.reward, found):
        handed |= {f"reward.parts.{name}.path": _handed(run, spec) for name, spec in _open_rewards(job).items()}
    judge = getattr(config.stage, "judge", None)
    if judge in parents.AUTO:  # without a judge of its own none: never another pipeline's
        run = _last(Made.judge, found)
        handed["stage.judge"] = _handed(run, judge) if run else None
    if getattr(config.stage, "against", None) == []:
        policies = makers(Made.language)
        handed["stage.against"] = [str(found[name]) for name in policies if found.get(name) and name != origin]
    return handed


def needs(job: Job, recipe: Recipe) -> list[str]:
    """The stages of the recipe without whose runs a job cannot start."""
    wanted = [name for name in makers(Made.tokenizer) if name in recipe.stages][-1:] if _wants_tokenizer(job) else []
    if job.config.init_from in parents.AUTO:
        wanted += [name for name in _origins(job.stage) if name in recipe.stages][:1]
    if _open_rewards(job):
        wanted += [name for name in makers(Made.reward) if name in recipe.stages][-1:]
    return wanted


def _origins(stage: str) -> list[str]:
    """The stages whose checkpoints it may start from, but for itself: in a recipe it runs once."""
    return [name for name in SPECS[stage].origins if name != stage]


def _last(made: Made, found: Found) -> Path | None:
    """The run of the last stage that has made such a checkpoint."""
    return next((run for name in reversed(makers(made)) if (run := found.get(name))), None)


def origin_of(stage: str, recipe: Recipe, found: Found) -> str | None:
    """The stage whose checkpoint another one starts from."""
    return next((name for name in _origins(stage) if name in recipe.stages and found.get(name)), None)


def _wants_tokenizer(job: Job) -> bool:
    """Whether it starts from no checkpoint, which would bring one, and names none."""
    tokenizer = job.config.tokenizer
    named = tokenizer.path or job.config.init_from
    return spec_of(job.config).needs_tokenizer and tokenizer.kind is schema.TokenizerKind.bpe and not named


def _open_rewards(job: Job) -> dict[str, str]:
    """The parts of its reward that are a reward model, the newest there is; and which checkpoint of that."""
    models = plugins.reward_models(job.config.reward) if spec_of(job.config).rewards else {}
    return {name: part.path for name, part in models.items() if part.path in parents.AUTO}


def _handed(run: Path | None, spec: str) -> str:
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
