"""One frozen base in memory under several adapters: a policy's, its value function's, those of reward models; a reward
model may also be a head on the base alone (stage.train_last_layers=0).

peft holds adapters of different names side by side in each linear layer; which of them computes is the layer's own
choice (adapters.adapter_in_use). What they compute is what each does on a copy of the base, bit for bit where the base
is stored and multiplied in the same type.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

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
from tinychat.models.checkpoints import load_config
from tinychat.models.load import model_folder, weight_files
from tinychat.models.reward import LAYER, TASK, reward_settings, scoring, settings
from tinychat.models.word_judge import is_word_judge
from tinychat.runs import folders

VALUE = "value_function"  # name of the adapter whose hidden states the value function reads
SCORE = "reward_model_"  # and of those of reward models, with a number
HEAD = "score.weight"  # transformers' name for the head of a classifier
log = logging.getLogger("tinychat")


def other_base(policy: Any, path: str) -> str:
    """Why the reward model at `path` is no adapter that can be computed on the base that this policy's adapter is on;
    "" where it is one."""
    folder = model_folder(path)
    if not is_adapter_folder(folder) or read_adapter_config(folder).get("task_type") != TASK:
        return "it is no adapter"
    base, own = read_adapter_base(folder), policy.adapter_base
    if base is None or not base.fingerprint or base.fingerprint != own.fingerprint:
        return f"it is an adapter of other weights ({base.address if base else 'unknown'}) than the policy's"
    if own.quantized and not base.quantized:
        return "it learnt on whole weights, and the policy's base is held in 4 bits"
    return ""


def other_weights(policy: Any, path: str) -> str:
    """Why the reward model at `path`, which is no adapter, is no head on the very base that this policy's adapter is
    on; "" where it is one: every weight but the head's is the base's, bit for bit."""
    own = policy.adapter_base
    if own.quantized:
        return "it learnt on whole weights, and the policy's base is held in 4 bits"
    if not own.address:
        return "the policy's base was never saved"
    with contextlib.ExitStack() as files:
        mine, theirs = (_tensors(model_folder(where), files) for where in (path, own.address))
        if HEAD not in mine:
            return "it has no head"
        for name in sorted(set(mine) - {HEAD}):
            if name not in theirs:
                return f"it has weights of its own ({name})"
            one, other = mine[name].get_tensor(name), theirs[name].get_tensor(name)
            if one.dtype != other.dtype or not torch.equal(one, other):
                return f"it is not on the policy's base ({name} differs)"
    return ""


def _tensors(folder: Path, files: contextlib.ExitStack) -> dict[str, Any]:
    """By a weight's name the open file that has it."""
    opened = [files.enter_context(safe_open(str(file), "pt")) for file in weight_files(folder)]
    return {name: file for file in opened for name in list(file.keys())}


def _read_head(folder: Path) -> torch.Tensor:
    with contextlib.ExitStack() as files:
        return _tensors(folder, files)[HEAD].get_tensor(HEAD).float().clone()  # see reward._own_memory


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
    """The base under a policy, for reward models that are adapters of it or heads on it."""

    def __init__(self, policy: Any, whole: Callable[[], AbstractContextManager[Any]]):
        """policy: in its engine; whole: inside, the model computes, with whole weights on every rank
        (Engine.generation)."""
        self._policy, self._whole, self._held = policy, whole, 0

    def reward_model(self, path: str) -> tuple[Any, Callable[[], AbstractContextManager[None]]] | None:
        """The reward model in a checkpoint, and inside of what it may be called; None where it cannot be computed on
        this base, which is told."""
        if not is_adapter(self._policy) or is_word_judge(path):  # the second is refused where it is loaded
            return None
        folder, name, parts = model_folder(path), None, []
        head_alone = not is_adapter_folder(folder)
        if why := (other_weights if head_alone else other_base)(self._policy, path):
            log.info("reward model %s is loaded beside the policy: %s", path, why)
            return None
        if head_alone:
            folders.verify_contents(folder)
            own, head = settings(load_config(path)), _read_head(folder)
        else:
            name = f"{SCORE}{self._held}"
            self._held += 1
            own = reward_settings(folder)
            head = put_saved_adapter_beside(self._policy, name, folder, own.get(LAYER))
            parts = take_out(self._policy, name)
        model = scoring(self._policy.get_base_model(), own, head)
        what = "a head on" if head_alone else "an adapter of"
        log.info("reward model %s is %s the policy's base, and is computed on it", path, what)

        @contextlib.contextmanager
        def in_use() -> Iterator[None]:
            with self._whole(), adapter_in_use(self._policy, name), torch.no_grad():
                for place, part in parts:
                    place[name] = part
                try:
                    yield
                finally:
                    if name is not None:
                        take_out(self._policy, name)

        return model, in_use


def take_out(model: Any, name: str) -> list[tuple[Any, Any]]:
    """Weights of an adapter, with the dictionaries that held them: out of use they are no part of a model in training,
    whose engine does not know them (ZeRO 3 asks for its own marks on every parameter)."""
    places = [getattr(layer, kind) for layer in adapter_layers(model) for kind in layer.adapter_layer_names]
    return [(place, place.pop(name)) for place in places if name in place]
