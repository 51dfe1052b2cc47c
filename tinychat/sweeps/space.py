"""What a sweep varies: from Hydra's words (choice, range, interval) to Optuna's distributions and back;
Optuna's samplers and pruners by their names."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Transformer
from hydra.errors import HydraException
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from tinychat.config.schema import PrunerKind, SamplerKind, SweepConfig
from tinychat.config.words import quoted
from tinychat.errors import UserError

# The plugin's own reading of interval, range and tag(log, ...), which users of hydra-optuna-sweeper know. It has no
# public name: hence the exact version in setup.cfg, and a test that says what to do when another one has moved it.
from hydra_plugins.hydra_optuna_sweeper._impl import create_optuna_distribution_from_override  # isort: skip

EXAMPLE = "'stage.lr=tag(log,interval(1e-5,1e-3))' or stage.lr=1e-5,3e-5"


@dataclass
class Space:
    """Keys and the values that they may have; what the command line fixes for all trials."""

    distributions: dict[str, BaseDistribution] = field(default_factory=dict)
    fixed: list[str] = field(default_factory=list)  # overrides, as they were written

    def points(self) -> list[dict[str, Any]]:
        """Every combination of the listed values, the last key fastest. All distributions are lists."""
        choices = [distribution.choices for distribution in self.distributions.values()]  # type: ignore[attr-defined]
        return [dict(zip(self.distributions, point, strict=True)) for point in itertools.product(*choices)]

    def probes(self) -> list[dict[str, Any]]:
        """A few points in which every listed value and both ends of every interval occur."""
        ends = {name: _ends(distribution) for name, distribution in self.distributions.items()}
        most = max(map(len, ends.values()), default=1)
        return [{name: values[i % len(values)] for name, values in ends.items()} for i in range(most)]

    def nearest(self, values: Mapping[str, Any]) -> dict[str, Any] | None:
        """The point of the space next to these values, one for each key; None where a value is no number and not
        listed."""
        found = {}
        for name, distribution in self.distributions.items():
            value = values[name]
            value = value.name if isinstance(value, Enum) else value  # as a list in the space names it
            listed = distribution.choices if isinstance(distribution, CategoricalDistribution) else None
            if listed and value in listed:
                pass
            elif not all(_is_number(one) for one in (value, *(listed or ()))):
                return None
            elif listed:
                value = min(listed, key=lambda choice: abs(choice - value))  # type: ignore[operator]
            else:
                value = min(max(value, distribution.low), distribution.high)  # type: ignore[attr-defined]
                if isinstance(distribution, IntDistribution):
                    value = distribution.low + round((value - distribution.low) / distribution.step) * distribution.step
            found[name] = value
        return found


def described(distribution: Any) -> str:
    """For people: the values of a list, or the ends of an interval and its scale."""
    if hasattr(distribution, "choices"):
        return ", ".join(str(choice) for choice in distribution.choices)
    scale = ", log" if distribution.log else f", step {distribution.step}" if distribution.step else ""
    return f"{distribution.low:g} to {distribution.high:g}{scale}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _ends(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    return list(dict.fromkeys([distribution.low, distribution.high]))


def read_space(params: Mapping[str, str], arguments: Sequence[str], grid: bool) -> Space:
    """The search space of `sweep.params` and of the command line, which wins; grid: only lists can be searched.

    Raises UserError naming the key for what is no search space.
    """
    space = Space()
    said = [_parsed(argument) for argument in arguments]
    given = {one.get_key_element() for one in said}
    configured = [_parsed(quoted(f"{key}={words}")) for key, words in params.items() if key not in given]
    for override in [*configured, *said]:
        key = override.get_key_element()
        if not override.is_sweep_override():
            space.fixed.append(str(override.input_line))
        elif key == "sweep" or key.startswith("sweep."):
            raise UserError(f"{override.input_line}: a sweep cannot be varied itself; start one after the other")
        else:
            space.distributions[key] = _distribution(override, grid)
    return space


def _parsed(text: str) -> Override:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        line = str(error).splitlines()[0]
        raise UserError(f"search space: {text}: {line}; write it as {EXAMPLE}") from None


def _distribution(override: Override, grid: bool) -> BaseDistribution:
    try:
        if override.is_choice_sweep() or (grid and override.is_discrete_sweep()):
            typed = override.sweep_iterator(transformer=Transformer.identity)
            values = [_value(*both) for both in zip(typed, override.sweep_string_iterator(), strict=True)]
            if not values:
                raise ValueError("no value in it")
            return CategoricalDistribution(list(dict.fromkeys(values)))
        if grid:
            raise ValueError("a grid and a plain multirun need lists, as 1e-5,3e-5; an interval is for sweep=ppo_bayes")
        return create_optuna_distribution_from_override(override)
    except (ValueError, AssertionError, HydraException) as error:
        line = (str(error) or "cannot be searched").splitlines()[0]
        raise UserError(f"search space: {override.input_line}: {line}; write it as {EXAMPLE}") from None


def _value(typed: Any, text: str) -> Any:
    """Numbers and words as they are, which is how plots and tables show them; anything else as Hydra writes it."""
    return typed if isinstance(typed, (bool, int, float, type(None))) else text


def overrides_of(values: Mapping[str, Any]) -> list[str]:
    """A trial's values as words of a command line."""
    return [quoted(f"{name}={word(value)}") for name, value in values.items()]


def word(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


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
