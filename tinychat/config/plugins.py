"""What is plugged in by name: data sources, rewards, verifiers, chat templates, architectures.

tinychat's own are the entries of one table each, in the module that defines them: adding one is an edit there and a
YAML file in conf/. A user's is found by its address, FILE.py:NAME or MODULE:NAME, which the command line or the user's
own YAML gives, never a checkpoint or a file of data. The tables are looked up when a name is asked for, and none of
their modules loads torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from tinychat.config.schema import DATA, BestOfNConfig, Config, DataConfig, RewardConfig, RewardPart
from tinychat.config.specs import spec_of
from tinychat.errors import UserError, no_such
from tinychat.runtime import user_code


class Registry:
    """Things of one kind by their names."""

    def __init__(self, what: str, table: str, adopt: str | None = None) -> None:
        """what: what one is called. table: MODULE:NAME of the dict of tinychat's own. adopt: MODULE:NAME of the
        function (object, address) that makes an entry of what a user's address means, or raises UserError; None:
        addresses mean nothing here."""
        self.what, self._table, self._adopt = what, table, adopt
        self._adopted: dict[tuple[Any, ...], Any] = {}  # by address and settings
        self._named: dict[str, Any] = {}  # a user's, by names that rows of data may say

    @property
    def own(self) -> dict[str, Any]:
        """tinychat's."""
        return _object(self._table)

    def names(self) -> list[str]:
        return [*self.own, *self._named]

    def get(self, name: str, key: str) -> Any:
        """The entry of a name or address; key: the setting that gives it. Raises UserError."""
        known = {**self.own, **self._named}
        if name in known:
            return known[name]
        if self._adopt and ":" in name:
            return self._users(name, key)
        yours = "; one of yours: FILE.py:NAME or MODULE:NAME" if self._adopt else ""
        raise no_such(key, name, self.what, known, yours)

    def named(self, name: str, key: str) -> Any:
        """The entry of a name alone, as rows of data give it: data never name code. Raises UserError."""
        known = {**self.own, **self._named}
        if name not in known:
            raise no_such(key, name, self.what, known)
        return known[name]

    def use(self, addresses: Iterable[str], key: str, **settings: Any) -> None:
        """Take a user's entries under their own names, instead of those taken before. settings: further arguments of
        `adopt`. Raises UserError for a name that is taken already."""
        self._named = {}
        for address in addresses:
            name = address.rpartition(":")[2]
            if name in self.names():
                whose = "tinychat's own" if name in self.own else "another of yours"
                raise UserError(f"{key}: {address}: the name {name} is taken by {whose}; rename it")
            self._named[name] = self._users(address, key, **settings)

    def _users(self, address: str, key: str, **settings: Any) -> Any:
        known = (address, *settings.values())
        if known not in self._adopted:
            try:
                self._adopted[known] = _object(str(self._adopt))(user_code.named(address), address, **settings)
            except UserError as error:
                raise UserError(f"{key}={address}: {error}") from error
        return self._adopted[known]


def _object(address: str) -> Any:
    module, _, name = address.partition(":")
    return getattr(importlib.import_module(module), name)


SOURCES = Registry("data source", "tinychat.data.sources:SOURCES", "tinychat.data.sources:adopt")
REWARDS = Registry("kind of reward", "tinychat.rl.rewards:KINDS")
VERIFIERS = Registry("kind of answer", "tinychat.evaluation.answers:CHECKS", "tinychat.evaluation.answers:adopt")
TEMPLATES = Registry("chat template", "tinychat.text:TEMPLATES")
SHAPES = Registry("architecture", "tinychat.config.shapes:SHAPES")  # a user's own is the entry `custom`
OWN_TEMPLATE = "own"  # in place of a name in TEMPLATES: the template that the tokenizer brings along

# Rows of each kind, and the kinds that they can be made of: of pairs the chosen replies are conversations, and what
# comes before a reply is a prompt.
MADE_OF = {
    "documents": {"documents"},
    "conversations": {"conversations", "preferences"},
    "preferences": {"preferences"},
    "prompts": {"prompts", "preferences", "conversations"},
}


def use_verifiers(data: DataConfig) -> None:
    """Take the user's kinds of answer. Raises UserError as Registry.use does."""
    limits = {"seconds": data.verifier_seconds, "memory": data.verifier_memory_mb * 1e6}
    VERIFIERS.use(data.verifiers, "data.verifiers", **limits)


def source_of(data: DataConfig) -> Any:
    """The tinychat.data.row_sources.DataSource of `data=`. Raises UserError."""
    return SOURCES.get(data.source, "data.source")


def gives(data: DataConfig, rows: str) -> bool:
    """Whether rows of this kind come from the source."""
    return bool(MADE_OF[rows] & set(source_of(data).has))


def sources_of(rows: str) -> list[str]:
    """tinychat's own sources that give rows of this kind by themselves."""
    return [name for name, source in SOURCES.own.items() if MADE_OF[rows] & set(source.has) and name not in DATA]


def prompts_of(data: BestOfNConfig) -> DataConfig:
    """The data whose prompts are answered: the source `data.prompts` with the settings that stand beside it."""
    own = {field.name: getattr(data, field.name) for field in fields(DataConfig)}
    return DataConfig(**{**own, "name": data.prompts, "source": data.prompts, "mix": {}})


def makes_replies(config: Config) -> bool:
    """Whether a policy has to answer before there are rows to learn from."""
    return isinstance(config.data, BestOfNConfig) and config.data.replies is None


def rewarded(config: Config) -> bool:
    """Whether replies are judged by config.reward."""
    return spec_of(config).rewards or makes_replies(config)


def answer_kind(config: Config) -> str | None:
    """The kind of answer that the reward checks every reply by, whatever the rows say; None: theirs, or no reward."""
    if not spec_of(config).rewards:
        return None
    verifiers = [part for name, part in config.reward.parts.items() if reward_kind(name, part).needs_answers]
    return next((kind for part in verifiers if (kind := part.options.get("answer"))), None)


def origins_of(config: Config) -> tuple[str, ...]:
    """The stages whose checkpoints init_from=auto takes: of what a policy has said, one that can reply."""
    spec = spec_of(config)
    return (spec.name,) if isinstance(config.data, BestOfNConfig) else spec.origins


def reward_models(reward: RewardConfig, reads_tokens: bool = False) -> dict[str, str]:
    """The checkpoints of reward models that the parts name, as folders, auto or best: NAME, of an ensemble NAME.0,
    NAME.1, ...; reads_tokens: only those that have the policy's tokenizer."""
    kinds = {name: reward_kind(name, part) for name, part in reward.parts.items()}
    return {
        f"{name}.{place}" if place else name: path
        for name, part in reward.parts.items()
        for place, path in kinds[name].models(part).items()
        if kinds[name].reads_tokens or not reads_tokens
    }


def reward_kind(name: str, part: RewardPart) -> Any:
    """The class in tinychat.rl.rewards of a part. Raises UserError."""
    return REWARDS.get(part.kind, f"reward.parts.{name}.kind")
