"""One frozen base in memory under several adapters: a policy's, its value function's, those of reward models.

peft holds adapters of different names side by side in each linear layer; which of them computes is the layer's own
choice (adapters.adapter_in_use). What they compute is what each does on a copy of the base, bit for bit where the base
is stored and multiplied in the same type.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch

from tinychat.config.schema import PeftConfig
from tinychat.models.adapters import (
    adapter_in_use,
    adapter_layers,
    is_adapter,
    is_adapter_folder,
    put_adapter_beside,
    put_saved_adapter_beside,
    read_adapter_base,
    read_adapter_config,
)
from tinychat.models.load import model_folder
from tinychat.models.reward import LAYER, TASK, reward_settings, scoring

VALUE = "value_function"  # name of the adapter whose hidden states the value function reads
SCORE = "reward_model_"  # and of those of reward models, with a number
log = logging.getLogger("tinychat")


def other_base(policy: Any, path: str) -> str:
    """Why the reward model at `path` cannot be computed on the base that this policy's adapter is on; "" where it
    can."""
    folder = model_folder(path)
    if not is_adapter_folder(folder) or read_adapter_config(folder).get("task_type") != TASK:
        return "it is no adapter, but has weights of its own"
    base, own = read_adapter_base(folder), policy.adapter_base
    if base is None or not base.fingerprint or base.fingerprint != own.fingerprint:
        return f"it is an adapter of other weights ({base.address if base else 'unknown'}) than the policy's"
    if own.quantized and not base.quantized:
        return "it learnt on whole weights, and the policy's base is held in 4 bits"
    return ""


def add_value_adapter(policy: Any, peft: PeftConfig, start: str | None) -> None:
    """Put an adapter for a value function beside the policy's: that of the reward model at `start`, an adapter of the
    same base; None: a new one, which computes what the base does. It is trained with the policy's."""
    if start is None:
        put_adapter_beside(policy, VALUE, peft)
    else:
        folder = model_folder(start)
        put_saved_adapter_beside(policy, VALUE, folder, reward_settings(folder).get(LAYER))
    policy.set_requires_grad(VALUE)


class OneBase:
    """The base under a policy, for reward models that are adapters of it."""

    def __init__(self, policy: Any, whole: Callable[[], AbstractContextManager[Any]]):
        """policy: in its engine; whole: inside, the model computes, with whole weights on every rank
        (Engine.generation)."""
        self._policy, self._whole, self._held = policy, whole, 0

    def reward_model(self, path: str) -> tuple[Any, Callable[[], AbstractContextManager[None]]] | None:
        """The reward model in a checkpoint, and inside of what it may be called; None where it cannot be computed on
        this base, which is told."""
        if not is_adapter(self._policy):
            return None
        if why := other_base(self._policy, path):
            log.info("reward model %s is loaded beside the policy: %s", path, why)
            return None
        folder, name = model_folder(path), f"{SCORE}{self._held}"
        self._held += 1
        own = reward_settings(folder)
        head = put_saved_adapter_beside(self._policy, name, folder, own.get(LAYER))
        model, parts = scoring(self._policy.get_base_model(), own, head), take_out(self._policy, name)
        log.info("reward model %s is an adapter of the policy's base, and is computed on it", path)

        @contextlib.contextmanager
        def in_use() -> Iterator[None]:
            with self._whole(), adapter_in_use(self._policy, name), torch.no_grad():
                for place, part in parts:
                    place[name] = part
                try:
                    yield
                finally:
                    take_out(self._policy, name)

        return model, in_use


def take_out(model: Any, name: str) -> list[tuple[Any, Any]]:
    """Weights of an adapter, with the dictionaries that held them: out of use they are no part of a model in training,
    whose engine does not know them (ZeRO 3 asks for its own marks on every parameter)."""
    places = [getattr(layer, kind) for layer in adapter_layers(model) for kind in layer.adapter_layer_names]
    return [(place, place.pop(name)) for place in places if name in place]
