"""Reward models: a transformers *ForSequenceClassification with one output, the head `score` on a language model's
backbone, which scores a prompt with its reply. AutoModelForSequenceClassification loads every full checkpoint.

How the head is read, and how its output becomes a score, stands in config.json (of an adapter: in reward.json):

    "tinychat_reward": {"pooling": "last", "range": "standard", "mean": 0.31, "std": 2.2}

A head may read a lower layer than the last ("head_layer": 20): the backbone then ends there, with its final norm. The
blocks above are neither computed nor kept, so that every reader of the model (and of config.json) sees a shallower one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from tinychat.config.schema import PeftConfig, PeftKind
from tinychat.config.stages import Pooling, ScoreRange
from tinychat.errors import UserError
from tinychat.models.adapters import (
    adapter_is_as,
    is_adapter_folder,
    load_adapter,
    read_adapter_config,
    read_reward_settings,
)
from tinychat.models.checkpoints import load_config, load_model, start_model
from tinychat.models.load import is_classifier, model_folder, read_model
from tinychat.models.logprobs import head_is
from tinychat.models.word_judge import is_word_judge

SETTINGS = "tinychat_reward"  # attribute of the configuration
LAYER = "head_layer"  # in it: after how many blocks the backbone ends; left out where it has all
PLAIN = {"pooling": Pooling.last.value, "range": ScoreRange.raw.value, "mean": 0.0, "std": 1.0}
TASK = "SEQ_CLS"  # peft's name for such models: it trains and saves the head with the adapter


def start_reward_model(
    path: str,
    peft: PeftConfig,
    pooling: Pooling | None,
    dropout: float | None = None,
    train_last_layers: int | None = None,
    entries: int | None = None,
    merged: Path | None = None,
    head_layer: int | None = None,
) -> Any:
    """The reward model a stage trains: the backbone of the language model at `path` with a new head, or the reward
    model there. In evaluation mode, on the CPU; `peft`, `entries` and `merged` are as for checkpoints.start_model.

    pooling: None: a reward model's own, whatever it is; "last" under a new head.
    train_last_layers: only so many blocks, counted from the last, learn, with the final norm and the head; 0: the
        head alone; None: all.
    head_layer: under a new head the backbone ends after so many blocks; None: all, and a reward model's own.
    A new head takes torch's global generator, which the caller seeds.

    Raises UserError as start_model; for a number of blocks the model does not have or that comes with an adapter; for
    a reward model that reads its sequences in another way than `pooling`, or at another layer than `head_layer`.
    """
    if train_last_layers is not None and peft.kind is not PeftKind.none:
        raise UserError(
            f"stage.train_last_layers={train_last_layers}: peft={peft.name} freezes the whole backbone already; leave "
            "it out, or use peft=none"
        )
    known = is_reward(path)
    if known and peft.kind is not PeftKind.none:
        _check_goes_on(path, peft, entries or 0)
    model = start_model(
        path,
        peft,
        dropout,
        merged,
        entries,
        new_adapter=not known,  # that of a language model is merged: the head is new
        load=_load,
        finish=None if known else partial(_with_new_head, layer=head_layer),
        task=TASK,
    )
    found = settings(model.config) if known else PLAIN
    own, own_layer = found["pooling"], found.get(LAYER)
    wanted = own if pooling is None else pooling.value
    if known and wanted != own:
        raise UserError(f"stage.pooling={wanted}: {path} was trained with another; use stage.pooling={own}")
    if known and head_layer not in (None, own_layer):
        raise UserError(
            f"stage.head_layer={head_layer}: {path} was trained with another; use "
            f"stage.head_layer={'null' if own_layer is None else own_layer}"
        )
    layer = {} if (own_layer or head_layer) is None else {LAYER: own_layer or head_layer}
    setattr(model.config, SETTINGS, {**PLAIN, "pooling": wanted, **layer})
    if train_last_layers is not None:
        freeze_all_but(model, train_last_layers)
    return model


def _check_goes_on(path: str, peft: PeftConfig, entries: int) -> None:
    """Raise UserError for a reward model that a new adapter would have to be put on merged or grown: that is written
    for language models alone."""
    grows = entries > load_config(path).vocab_size
    folder = model_folder(path)
    if is_adapter_folder(folder) and (grows or not adapter_is_as(folder, peft)):
        raise UserError(
            f"init_from={path}: an adapter that is not as peft={peft.name} asks; start from it with peft=none, or "
            "with the same peft.r, peft.alpha and peft.targets"
        )
    if grows:
        raise UserError(f"init_from={path}: its vocabulary is smaller than the tokenizer's; train with peft=none")


def load_reward_model(path: str) -> Any:
    """The reward model in a folder or hub repository (an adapter's on its base): fp32, on the CPU, in evaluation mode,
    frozen.

    Raises UserError for a folder that holds none, and as load_model.
    """
    if is_word_judge(path):
        raise UserError(f"{path} is a word judge, which scores text and no tokens; a reward is a model of stage=reward")
    if not is_reward(path):
        raise UserError(f"{path} is a language model, not a reward model; make one with stage=reward init_from={path}")
    return _load(path).requires_grad_(False)


def is_reward(path: str) -> bool:
    """Whether the folder or hub repository holds a reward model or the adapter of one, not a language model."""
    folder = model_folder(path)
    if is_adapter_folder(folder):
        return read_adapter_config(folder).get("task_type") == TASK
    return is_classifier(load_config(path))


def _load(path: str, dropout: float | None = None, quantize: bool = False, is_trainable: bool = False) -> Any:
    """load_model for both kinds of models."""
    if not is_reward(path):
        return _own_memory(load_model(path, dropout, quantize, is_trainable))
    folder = model_folder(path)
    if not is_adapter_folder(folder):
        config = load_config(path)
        if config.num_labels != 1:
            raise UserError(f"model {path}: a classifier of {config.num_labels} classes; a reward model has one output")
        model = read_model(path, AutoModelForSequenceClassification, dropout, quantize)
    else:
        own = reward_settings(folder)

        def base(address: str, *more: Any) -> Any:
            loaded = _load(address, *more)
            return loaded if is_reward(address) else as_classifier(loaded, own.get(LAYER))

        model = load_adapter(folder, dropout, quantize, is_trainable, base)
        setattr(model.config, SETTINGS, own)
    return _own_memory(model)


def reward_settings(folder: Path) -> dict[str, Any]:
    """`settings` of the adapter in a folder."""
    return _checked(read_reward_settings(folder))


def scoring(model: Any, own: dict[str, Any], head: Tensor | None) -> Any:
    """A reward model with this head (1, D) on the very modules of a language model, adapters in them included; own: its
    `settings`. The language model stays as it is. Raises UserError as as_classifier, and without a head."""
    if head is None:
        raise UserError(f"adapter on {model.name_or_path}: has no weights of a head, so it is no reward model")
    twin, body = copy.copy(model), copy.copy(model.base_model)
    twin.config = body.config = copy.deepcopy(model.config)
    twin._modules, body._modules = dict(model._modules), dict(model.base_model._modules)
    setattr(twin, model.base_model_prefix, body)
    device = model.get_input_embeddings().weight.device
    found = as_classifier(twin, own.get(LAYER))
    found.score.weight = nn.Parameter(head.to(device), requires_grad=False)
    setattr(found.config, SETTINGS, own)
    return found


def _own_memory(model: Any) -> Any:
    """The model with weights copied out of the file's memory, where they lie at any address: on a CPU the last bit of a
    product depends on that, and a saved and reloaded model is to give equal scores."""
    for p in model.parameters():
        if p.is_floating_point():
            p.data = p.data.clone()
    return model


def _with_new_head(model: Any, layer: int | None) -> Any:
    """As as_classifier; the head is normal with standard deviation 1 / sqrt(d + 1) (Stiennon et al. 2020)."""
    found = as_classifier(model, layer)
    with torch.no_grad():
        found.score.weight.normal_(std=(found.score.in_features + 1) ** -0.5)
    return found


def as_classifier(model: Any, layer: int | None = None) -> Any:
    """The language model's backbone, up to block `layer` (None: whole), with a head of one output, zero. The language
    model is of no use afterwards.

    Raises UserError for an architecture that transformers has no classifier of, and for a layer it does not have.
    """
    if layer is not None:
        _end_after(model, layer)
    model.config.num_labels = 1
    try:
        with torch.device("meta"):  # its own backbone takes no memory and draws no random numbers
            found = AutoModelForSequenceClassification.from_config(model.config)
        prefix = found.base_model_prefix
        same = type(getattr(found, prefix)) is type(getattr(model, prefix)) and type(found.score) is nn.Linear
    except (ValueError, AttributeError):
        same = False
    if not same:
        raise UserError(
            f"model {model.name_or_path}: transformers has no classifier with a head `score` for "
            f"{model.config.model_type}; start from a gpt2, llama or qwen3 model, or register one of your own with "
            "AutoModelForSequenceClassification"
        )
    setattr(found, prefix, getattr(model, prefix))
    found.config = model.config
    found.score = nn.Linear(found.score.in_features, 1, bias=False, device="meta").to_empty(device="cpu")
    nn.init.zeros_(found.score.weight)
    found.name_or_path = model.name_or_path
    for name in ("is_loaded_in_4bit", "is_quantized", "hf_quantizer", "quantization_method"):
        if name in vars(model):
            setattr(found, name, getattr(model, name))
    return found.eval()


def _end_after(model: Any, layer: int) -> None:
    """Drop the blocks of a language model above the first `layer`; what follows the blocks (the final norm) stays."""
    up_to_layer(model.config, layer)
    name, blocks = _blocks(model.base_model)
    setattr(model.base_model, name, blocks[:layer])


def up_to_layer(config: Any, layer: int) -> Any:
    """The configuration (which is changed) of a backbone that ends after so many blocks. Raises UserError for more than
    there are."""
    most = config.num_hidden_layers
    if not 1 <= layer <= most:
        raise UserError(f"stage.head_layer={layer}: the model has {most} layers; use 1 to {most}, or null for the last")
    config.num_hidden_layers = layer
    if kinds := getattr(config, "layer_types", None):
        config.layer_types = list(kinds)[:layer]
    return config


def _blocks(backbone: Any) -> tuple[str, nn.ModuleList]:
    """The blocks of a transformers backbone, and their name in it."""
    return next((name, part) for name, part in backbone.named_children() if isinstance(part, nn.ModuleList))


def freeze_all_but(model: Any, last: int) -> None:
    """Leave the head and the `last` of the blocks trainable, and with any of them what follows the blocks (the final
    norm).

    Raises UserError for more blocks than there are.
    """
    parts = list(model.base_model.named_children())
    name, blocks = _blocks(model.base_model)
    where = [own for own, _ in parts].index(name)
    if not 0 <= last <= len(blocks):
        raise UserError(f"stage.train_last_layers={last}: the model has {len(blocks)} blocks; use 0 to {len(blocks)}")
    model.base_model.requires_grad_(False)
    after = [part for _, part in parts[where + 1 :]] if last else []
    for part in [*blocks[len(blocks) - last :], *after]:
        part.requires_grad_(True)


def settings(config: Any) -> dict[str, Any]:
    """pooling, range, mean, std and where it is not the last head_layer of a reward model's configuration; another
    tool's models are read plainly.

    Raises UserError for values that make no scores.
    """
    return _checked(getattr(config, SETTINGS, None))


def _checked(own: Any) -> dict[str, Any]:
    own = own or {}
    found = {**PLAIN, **own} if isinstance(own, dict) else own
    try:
        Pooling(found["pooling"]), ScoreRange(found["range"])
        if not (math.isfinite(found["mean"]) and 0 < found["std"] < math.inf and found.get(LAYER, 1) >= 1):
            raise ValueError
    except (TypeError, ValueError):
        raise UserError(
            f"{SETTINGS} of a reward model is {own!r}; it needs pooling (last or mean), range (raw, standard or unit), "
            "a mean and a std above 0, and head_layer, where it is there, a number of layers"
        ) from None
    return found


def set_normalisation(model: Any, mean: float, std: float, score_range: ScoreRange) -> None:
    """Say how the head's output becomes a score (see normalise); it is saved with the model."""
    found = {**settings(model.config), "range": score_range.value, "mean": float(mean), "std": float(std)}
    setattr(model.config, SETTINGS, found)


def normalise(raw: Tensor, config: Any) -> Tensor:
    """Scores of what raw_scores returns, (B,): as it is (raw), (raw - mean) / std (standard), or the logistic function
    of that (unit)."""
    found = settings(config)
    if found["range"] == ScoreRange.raw.value:
        return raw
    standard = (raw - found["mean"]) / found["std"]
    return standard.sigmoid() if found["range"] == ScoreRange.unit.value else standard


def raw_scores(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The head's output on the last real token, or on the mean of all real ones (config: pooling).

    input_ids, attention_mask (B, T): padding on the left or the right; positions are counted from the first real token.
    model: a reward model, possibly wrapped (DDP, DeepSpeed). Returns (B,) fp32.
    """
    return _read(model, input_ids, attention_mask, lambda _: None)


def head_inputs(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """What the head reads (B, D) fp32, of which head_scores makes raw_scores (B,); arguments as there."""
    seen: list[Tensor] = []
    _read(model, input_ids, attention_mask, seen.append)
    return seen[0].float()


def head_scores(model: Any, pooled: Tensor) -> Tensor:
    """(B, D) of head_inputs -> (B,) fp32."""
    return in_fp32(_head_of(getattr(model, "module", model)), pooled)[:, 0]


def _read(model: Any, input_ids: Tensor, attention_mask: Tensor, see: Callable[[Tensor], None]) -> Tensor:
    """raw_scores; `see` is shown what the head reads."""
    mask = attention_mask.bool()
    inner = getattr(model, "module", model)
    head, pooling = _head_of(inner), settings(inner.config)["pooling"]
    rows, place = torch.arange(len(mask), device=mask.device), torch.arange(mask.shape[1], device=mask.device)

    def pooled(hidden: Tensor) -> Tensor:
        if pooling == Pooling.last.value:
            return hidden[rows, (place * mask).argmax(1)]
        kept = hidden.float().masked_fill(~mask[..., None], 0.0)
        return kept.sum(1) / mask.sum(1, keepdim=True)

    def score(hidden: Tensor, _own: Any) -> Tensor:
        # The model takes one position of this, by a rule of its own (the last that is not the padding token).
        found = pooled(hidden)
        see(found)
        return in_fp32(head, found)[:, None].expand(-1, mask.shape[1], -1)

    more: dict[str, Any] = {}
    # Padding on the right is seen by no real token: without a mask the faster attention serves.
    if not bool(mask[:, 0].all()):
        more = {"attention_mask": mask.long(), "position_ids": (mask.long().cumsum(1) - 1).clamp(min=0)}
    with head_is(head, score):  # from inside the model's own forward
        return model(input_ids=input_ids, use_cache=False, **more).logits[:, 0]


def in_fp32(head: Any, hidden: Tensor) -> Tensor:
    """What a linear head without bias makes of hidden states (..., D), multiplied in fp32 whatever the autocast."""
    with torch.autocast(hidden.device.type, enabled=False):
        return F.linear(hidden.float(), head.weight.float())


def _head_of(model: Any) -> Any:
    """The linear layer `score`; with an adapter the copy that is trained."""
    copies = getattr(model.score, "modules_to_save", None)
    return model.score if copies is None else copies[model.active_adapter]
