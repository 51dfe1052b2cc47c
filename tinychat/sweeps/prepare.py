"""Everything that is checked before the first trial: settings, search space, and that trials can be composed."""

from __future__ import annotations

import difflib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tinychat.config import checks, schema
from tinychat.config.explain import explain, nearest_key
from tinychat.config.schema import Config, KeepCheckpoints, PrunerKind, SamplerKind, SweepConfig
from tinychat.config.specs import spec_of
from tinychat.errors import UserError
from tinychat.runs import folders, parents
from tinychat.sweeps.space import Space, overrides_of, read_space
from tinychat.tracking.vocabulary import goal_of, metrics_of, without_bounds

FOLDER = "sweeps"  # under the outputs
ALARMS = ("kl", "entropy", "eos", "length", "clip", "sampler", "gold", "fall")
FEW = 12  # points of a grid are all composed before the first trial, of more only some (each takes 0.3 s)
# Keys under which another value would make eval/objective another measure, and the key that keeps it the same.
_FIXED_BY = {
    "stage.objective_beta": ("stage.beta", "stage.kl", "stage.kl_target", "stage.kl_horizon"),
    "stage.objective_temperature": ("stage.temperature",),
}
# Stand for checkpoints, which are compared instead.
_PARENT_KEYS = ("init_from", "stage.judge", "stage.second_judge", "stage.teacher", "tokenizer.path")


@dataclass
class Plan:
    """A sweep that can start."""

    settings: SweepConfig
    config: Config  # of a trial with the defaults of what is swept
    space: Space
    plain: bool  # nothing is searched: every combination runs
    points: list[dict[str, Any]] | None  # of a grid
    objective: list[str]
    directions: list[str]
    folder: Path


def prepare(master: DictConfig, context: HydraContext, arguments: Sequence[str]) -> Plan:
    """From the command to a plan. Raises UserError (or Hydra's errors) before anything is written."""
    config = schema.to_config(without_hydra(master))
    plain = config.sweep is None
    settings = config.sweep or _plain_settings(config)
    grid = settings.sampler is SamplerKind.grid
    space = read_space(settings.params, arguments, grid)
    if not plain:
        _check_settings(settings, config)
        if not space.distributions:
            raise UserError(
                f"sweep={settings.name}: the search space is empty: sweep.params has no key that the command line does "
                "not fix; give one, as 'stage.lr=tag(log,interval(1e-5,1e-3))'"
            )
    _check_keys(space, master, context)
    points = space.points() if grid else None
    first = _compose_all(space, points, context, master)
    objective, directions = _objective(settings, first)
    if not plain:
        _check_objective(settings, objective, directions, space, first)
    folder = Path(config.paths.outputs) / FOLDER / settings.study
    return Plan(settings, first, space, plain, points, objective, directions, folder)


def without_hydra(node: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(node, [str(key) for key in node if key != "hydra"])


def _plain_settings(config: Config) -> SweepConfig:
    return SweepConfig(
        name="multirun",
        study=f"{config.run_name or folders.default_run_name(config)}-{time.strftime('%Y-%m-%d_%H-%M-%S')}",
        storage=None,
        sampler=SamplerKind.grid,
        seed=0,
        own_first=False,
        n_trials=None,
        objective=None,
        direction=None,
        pruner=PrunerKind.none,
        prune_on=[],
        max_failures=2**31,
        keep_checkpoints=KeepCheckpoints.all,
        register=None,
        quiet=False,
    )


def _check_settings(settings: SweepConfig, config: Config) -> None:
    if settings.n_trials is None and settings.sampler is not SamplerKind.grid:
        raise UserError("sweep.n_trials=null: how many trials? Only sweep.sampler=grid knows; use sweep.n_trials=20")
    if settings.n_trials is not None and settings.n_trials <= 0:
        raise UserError(f"sweep.n_trials={settings.n_trials}: how many trials there are to be in all, at least 1")
    if settings.max_failures < 1:
        raise UserError(f"sweep.max_failures={settings.max_failures}: at least 1")
    for problem in checks.plain_name("sweep.study", settings.study):
        raise UserError(problem)
    for name in settings.prune_on:
        if name not in ALARMS:
            raise UserError(f"sweep.prune_on={name}: no such alarm{_near(name, ALARMS)}; there are {', '.join(ALARMS)}")
    if config.run_dir is not None:
        raise UserError(f"run_dir={config.run_dir}: each trial has a folder of its own; leave it out")


def _check_keys(space: Space, master: DictConfig, context: HydraContext) -> None:
    """Every swept key is a key or a group of the configuration."""
    from tinychat.launch.job import flatten

    known = list(flatten(OmegaConf.to_container(without_hydra(master), resolve=False)))
    known = [key for key in known if not key.startswith("sweep.")]
    for key in space.distributions:
        plain = key.lstrip("+").split("@")[0]
        if key.startswith("+") or context.config_loader.get_group_options(plain):
            continue
        if OmegaConf.select(master, plain, default=...) is ... and plain not in known:
            stage = master.stage.name
            near = nearest_key(plain, known)
            there = ", ".join(name for name in known if name.startswith("stage."))
            hint = f", did you mean {near}?" if near else f"; stage={stage} has {there}"
            raise UserError(f"search space: stage={stage} has no key {plain}{hint}")


def _near(word: str, words: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.75)
    return f", did you mean {near[0]}?" if near else ""


def _compose_all(
    space: Space, points: list[dict[str, Any]] | None, context: HydraContext, master: DictConfig
) -> Config:
    """Compose and check trials, all of a small grid, else some with the ends of every interval; the first of them."""
    first: Config | None = None
    for values in points if points is not None and len(points) <= FEW else space.probes():
        words = overrides_of(values)
        try:
            node = context.config_loader.load_sweep_config(master, [*space.fixed, *words])
            config = schema.to_config(without_hydra(node))
            checks.check(config)
        except UserError as error:
            raise UserError(f"a trial with {' '.join(words)}: {error}") from None if words else error
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(f"a trial with {' '.join(words)}: {explain(error)}") from None
        first = first or config
    assert first is not None
    return first


def _objective(settings: SweepConfig, config: Config) -> tuple[list[str], list[str]]:
    objective = list(settings.objective) if settings.objective is not None else [spec_of(config).objective]
    if settings.direction is not None:
        return objective, list(settings.direction)
    return objective, [goal_of(name) for name in objective]


def _check_objective(
    settings: SweepConfig, objective: list[str], directions: list[str], space: Space, config: Config
) -> None:
    stage = config.stage.name
    known = metrics_of(stage)
    if not objective:
        raise UserError("sweep.objective=[]: at least one metric, or null for the stage's own")
    for name in objective:
        if name not in known:
            listed = ", ".join(without_bounds(known))
            raise UserError(
                f"sweep.objective={name}: stage={stage} does not log it{_near(name, known)}; it logs {listed}"
            )
    if len(directions) != len(objective):
        raise UserError(f"sweep.direction={directions}: one for each of sweep.objective={objective}")
    for direction in directions:
        if direction not in ("minimize", "maximize"):
            raise UserError(f"sweep.direction={direction}: minimize or maximize")
    if settings.pruner is not PrunerKind.none and len(objective) > 1:
        raise UserError(
            f"sweep.pruner={settings.pruner.value}: several objectives have no order to prune by; use sweep.pruner=none"
        )
    if settings.pruner is not PrunerKind.none and not getattr(config.stage, "eval_every", 0):
        raise UserError(
            f"sweep.pruner={settings.pruner.value} looks at evaluations during training, and there are none: give "
            "stage.eval_every=STEPS, or use sweep.pruner=none"
        )
    if "eval/objective" in objective:
        for key, moves in _FIXED_BY.items():
            swept = [name for name in moves if name in space.distributions]
            if swept and getattr(config.stage, key.removeprefix("stage.")) is None:
                raise UserError(
                    f"search space: {swept[0]} changes what eval/objective measures; fix that with {key}=NUMBER"
                )


def facts_of(master: DictConfig, space: Space, config: Config) -> dict[str, Any]:
    """What must be alike in all trials of a study: the configuration without what is swept and what does not change
    results; and the checkpoints. Raises UserError where one of these is missing."""
    from tinychat.launch.job import flatten

    flat: Mapping[str, Any] = flatten(OmegaConf.to_container(without_hydra(master), resolve=True, enum_to_str=True))
    swept = tuple(key.lstrip("+") for key in space.distributions)
    kept = {
        key: value
        for key, value in flat.items()
        if key.split(".")[0] not in (*folders.NOT_IDENTITY, *swept)
        and key not in (*swept, *_PARENT_KEYS)
        and not (key.startswith("reward.parts.") and key.endswith((".path", ".options.paths")))
    }
    found = parents.find_parents(config, space.fixed)
    outputs = Path(config.paths.outputs)
    kept = folders.moved(kept, str(outputs), folders.OUTPUTS)
    return kept | {
        f"parents.{k}": path for k, path in folders.moved(found, str(outputs.resolve()), folders.OUTPUTS).items()
    }
