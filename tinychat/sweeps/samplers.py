"""Optuna's samplers and pruners by their names in the configuration."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from tinychat.config.sweep import PrunerKind, SamplerKind, SweepConfig
from tinychat.errors import UserError

MAX_SEED = 2**31


class _PrunedCount:
    """A study in which pruned trials count as complete, with the last value that they measured."""

    def __init__(self, study: optuna.Study):
        self._study = study

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(
        self, deepcopy: bool = True, states: tuple[TrialState, ...] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        if states is not None and TrialState.COMPLETE in states:
            states = (*states, TrialState.PRUNED)
        trials = self._study._get_trials(deepcopy=deepcopy, states=states, use_cache=use_cache)
        return [_completed(trial) if trial.state is TrialState.PRUNED else trial for trial in trials if _usable(trial)]

    get_trials = _get_trials


def _usable(trial: FrozenTrial) -> bool:
    return trial.state is not TrialState.PRUNED or trial.values is not None


def _completed(trial: FrozenTrial) -> FrozenTrial:
    seen = copy.copy(trial)
    seen.state = TrialState.COMPLETE
    return seen


class GaussianProcess(optuna.samplers.GPSampler):
    """Optuna's GPSampler leaves out pruned trials, and so would suggest again what had blown up."""

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        return super().infer_relative_search_space(_PrunedCount(study), trial)  # type: ignore[arg-type]

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, Any]) -> dict[str, Any]:
        return super().sample_relative(_PrunedCount(study), trial, search_space)  # type: ignore[arg-type]


_SAMPLERS: Mapping[SamplerKind, Any] = {
    SamplerKind.gp: GaussianProcess,
    SamplerKind.tpe: optuna.samplers.TPESampler,
    SamplerKind.nsgaii: optuna.samplers.NSGAIISampler,
    SamplerKind.random: optuna.samplers.RandomSampler,
    SamplerKind.grid: optuna.samplers.RandomSampler,  # the points are queued; there is nothing left to draw
}
_PRUNERS: Mapping[PrunerKind, Any] = {
    PrunerKind.none: optuna.pruners.NopPruner,
    PrunerKind.median: optuna.pruners.MedianPruner,
    PrunerKind.hyperband: optuna.pruners.HyperbandPruner,
}


def make_sampler(settings: SweepConfig, number: int) -> optuna.samplers.BaseSampler:
    """The sampler of the trial `number`: seeded anew for each, so that neither a resumed sweep nor a second worker
    draws what was drawn before. What it learns is in the study. The options of a recipe are for its own sampler: one
    chosen in its place that has none leaves them alone. Raises UserError for options it does not have."""
    seed = (settings.seed * 1_000_003 + number * 7919) % MAX_SEED
    options = {} if settings.sampler in (SamplerKind.random, SamplerKind.grid) else settings.sampler_options
    return _made("sampler", settings.sampler, _SAMPLERS[settings.sampler], {"seed": seed, **options})


def make_pruner(settings: SweepConfig) -> optuna.pruners.BasePruner:
    """As for samplers."""
    options = {} if settings.pruner is PrunerKind.none else settings.pruner_options
    return _made("pruner", settings.pruner, _PRUNERS[settings.pruner], options)


def _made(what: str, kind: Any, make: Any, options: Mapping[str, Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what Optuna calls experimental
        try:
            return make(**options)
        except (TypeError, ValueError) as error:
            line = str(error).splitlines()[0]
            raise UserError(f"sweep.{what}={kind.value} with sweep.{what}_options={dict(options)}: {line}") from None
