"""A model of the user's own: a transformers configuration and its classes, registered with transformers by a file that
the command line names. Never by a checkpoint: what lies in a folder is not run. An architecture of transformers itself
is named as transformers:LlamaConfig.

What the stages ask of such a model is asked of its classes when they are loaded, and tried on a few tokens before it is
trained: a mask that is ignored or a future that is seen would show in no message, only in the numbers.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from tinychat.config.schema import ModelConfig
from tinychat.config.shapes import shape_of
from tinychat.errors import UserError
from tinychat.models.kernels.kv_cache import CACHE
from tinychat.models.load import DROPOUTS
from tinychat.models.logprobs import segment_mask, token_nll
from tinychat.runtime import user_code

INPUTS = ("input_ids", "attention_mask", "position_ids", "use_cache")  # what stages call a model with
GIVEN = ("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings")  # what they read of it
TRIED, FIRST = 12, 5  # tokens of a trial; of the first of two packed sequences
ROUNDING = 1e-3  # of the spread of the logits: fp32 is far below, whatever is computed from other tokens far above


_loaded: dict[str, tuple[type[PreTrainedConfig], str]] = {}  # by model_type: the class and its address


def use(model: ModelConfig) -> None:
    """Load the code of arch=custom, so that its checkpoints open. Raises UserError as load_classes."""
    if shape_of(model).own_code:
        load_classes(str(model.path), f"model.path={model.path}")


def load_classes(address: str, setting: str) -> type[PreTrainedConfig]:
    """The class of the configuration that FILE.py:CONFIG or MODULE:CONFIG means, with its model registered. `setting`
    begins the message of the UserError for code that cannot be loaded and for classes that no stage could use."""
    try:
        config: Any = user_code.named(address)
    except UserError as error:
        raise UserError(f"{setting}: {error}") from error
    if problem := _problem(config):
        raise UserError(f"{setting}: {problem}")
    other = _loaded.setdefault(config.model_type, (config, address))
    if other[0] is not config:  # transformers takes the second one without a word
        raise UserError(f"{setting}: its model_type {config.model_type!r} is taken by {other[1]}; choose another")
    return config


def _problem(config: Any) -> str | None:
    """Why no model can be made of what an address means."""
    if not isinstance(config, type) or not issubclass(config, PreTrainedConfig):
        return "is no class derived from transformers' PreTrainedConfig; name the model's configuration, not the model"
    kind, name = str(getattr(config, "model_type", "")), config.__name__
    if not kind:
        return f'{name} has no model_type; give it one, as model_type = "{name.removesuffix("Config").lower()}"'
    if kind in CONFIG_MAPPING_NAMES and CONFIG_MAPPING[kind] is not config:
        return f"the model_type {kind!r} of {name} is taken by an architecture of transformers; choose another"
    lines = f'AutoConfig.register("{kind}", {name}) and AutoModelForCausalLM.register({name}, YOUR_MODEL)'
    if kind not in CONFIG_MAPPING or config not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return f"{name} is not registered with transformers; end the file with {lines}"
    model = MODEL_FOR_CAUSAL_LM_MAPPING[config]
    if not issubclass(model, PreTrainedModel):
        return f"{model.__name__} is not derived from transformers' PreTrainedModel"
    takes = inspect.signature(model.forward).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values()):
        return f"{model.__name__}.forward takes no **kwargs, which stages and transformers pass more options in"
    if missing := [word for word in INPUTS[:3] if word not in takes]:
        return (
            f"{model.__name__}.forward takes no {', no '.join(missing)}; stages call it with {', '.join(INPUTS)} "
            "(packed and padded rows are told by mask and positions)"
        )
    return None


def _generation_problem(model: Any) -> str | None:
    if not model.can_generate():
        return "has no generate; derive it from transformers' GenerationMixin too"
    if CACHE not in inspect.signature(model.forward).parameters:
        return f"its forward takes no {CACHE}, transformers' cache of what earlier tokens left, which generation needs"
    return None


def configuration(model: ModelConfig, common: dict[str, Any]) -> PreTrainedConfig:
    """The configuration of arch=custom. common: what is said of every model, in transformers' words; None: the class's
    own value. Raises UserError for arguments that it does not have or take."""
    setting = f"model.path={model.path}"
    kind = load_classes(str(model.path), setting)
    known, given = _arguments(kind), shape_of(model).arguments(model)
    for key in model.options:
        if key not in known:
            raise UserError(f"model.options.{key}: {kind.__name__} has no such argument; it has {', '.join(known)}")
    for key, value in given.items():
        if key not in known:
            raise UserError(f"{setting}: {kind.__name__} has no {key}, which is {value} here; leave it null in model=")
    given |= {key: value for key, value in common.items() if value is not None} | dict(model.options)
    try:
        with user_code.running():
            config = kind(**given)
    except UserError as error:
        raise UserError(f"{setting}: {kind.__name__} refuses its values: {error}") from error
    for key in GIVEN:
        value = getattr(config, key, None)
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{setting}: {key} of {kind.__name__} is {value!r}; every stage reads it as a whole number")
    if config.vocab_size != common["vocab_size"]:
        raise UserError(
            f"{setting}: {kind.__name__} is given vocab_size={common['vocab_size']} and has {config.vocab_size}"
        )
    if not hasattr(config, "tie_word_embeddings"):
        config.tie_word_embeddings = False
    rates = [name for name in DROPOUTS if hasattr(config, name)]
    if model.dropout and not rates:
        raise UserError(f"model.dropout={model.dropout}: {kind.__name__} has none of {', '.join(DROPOUTS)}; use 0")
    for name in rates:
        setattr(config, name, model.dropout)
    return config


def _arguments(kind: type[PreTrainedConfig]) -> list[str]:
    """Names that a configuration takes by its own words: transformers keeps every other one without a look at it."""
    found: dict[str, None] = {}
    for part in kind.__mro__[: kind.__mro__.index(PreTrainedConfig)]:
        named = inspect.signature(part.__init__).parameters.values()  # type: ignore[misc]
        found |= {p.name: None for p in named if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name != "self"}
    return [*found, *(key for key in kind.attribute_map if key not in found)]


# ------------------------------------------------------------------------------------------------- on a few tokens


def try_out(model: Any, packs: bool, generates: bool) -> None:
    """Raise UserError where a model (fp32, on the CPU) computes something else than stages take it to.

    packs: several sequences stand in a row, blind to each other. generates: replies are sampled, in left-padded batches
    and with a cache. Weights that are zero hide what they multiply: they are something else meanwhile.
    """
    name = type(model).__name__
    if generates and (problem := _generation_problem(model)):
        raise UserError(f"{name}: {problem}")
    was_training = model.training
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), _without_zeros(model.eval()):
            torch.manual_seed(0)
            with user_code.running("on a few tokens"):
                problem = next(_differences(model, packs, generates), None)
    except user_code.UserCodeError as error:
        raise UserError(f"{name}: {error}") from error
    finally:
        model.train(was_training)
    if problem:
        raise UserError(f"{name}: {problem}")


@contextlib.contextmanager
def _without_zeros(model: Any) -> Iterator[None]:
    zeros = [p for p in model.parameters() if not p.is_meta and not bool(p.any())]
    try:
        for p in zeros:
            p.normal_(std=0.1)
        yield
    finally:
        for p in zeros:
            p.zero_()


def _differences(model: Any, packs: bool, generates: bool) -> Iterator[str]:
    length = min(TRIED, model.config.max_position_embeddings)
    rows, cut = model.config.vocab_size, min(FIRST, length - 1)
    ids = torch.randint(rows, (2, length))
    whole = _logits(model, ids)
    if whole.shape != (2, length, rows):
        yield f"its logits are {tuple(whole.shape)} for tokens {(2, length)}, not (2, {length}, {rows})"
    spread = float(whole.std())

    def differ(one: Tensor, other: Tensor) -> bool:
        return not bool(((one - other).abs() <= ROUNDING * spread).all())

    later = ids.clone()
    later[:, -1] = (later[:, -1] + 1) % rows
    if differ(_logits(model, later)[:, :-1], whole[:, :-1]):
        yield "what it says of a token depends on later ones; it is to look back only"
    targets = ids.roll(-1, 1)
    expected = F.cross_entropy(whole.flatten(0, 1), targets.flatten(), reduction="none").view(2, length)
    if differ(token_nll(model, ids, targets), expected):
        yield (
            "its logits are not what get_output_embeddings() gives: losses are taken there, so forward must return "
            "that layer's output as it is"
        )
    if packs:
        segments = (torch.arange(length) >= cut).long().expand(2, -1) + 1
        places = torch.cat([torch.arange(cut), torch.arange(length - cut)]).expand(2, -1)
        packed = _logits(model, ids, attention_mask=segment_mask(segments), position_ids=places)
        if differ(packed[:, cut:], _logits(model, ids[:, cut:])):
            yield (
                "a packed sequence sees the one before it: attention_mask may be (B, 1, T, T), True where a token may "
                "look, and position_ids begin anew; heed them, or train on whole rows (stage.isolate_documents=false, "
                "stage.packing=false)"
            )
    if not generates:
        return
    mask = torch.cat([torch.zeros(2, 3), torch.ones(2, length)], 1)[:, : model.config.max_position_embeddings].long()
    padding = mask.shape[1] - length
    if padding:
        left = torch.cat([ids[:, :padding], ids], 1)
        places = (mask.cumsum(1) - 1).clamp(min=0)
        if differ(_logits(model, left, attention_mask=mask, position_ids=places)[:, padding:], whole):
            yield "padding on the left changes what it says: attention_mask (B, T) is 0 there; heed it"
    cache = DynamicCache(config=model.config)
    first = {"attention_mask": torch.ones_like(ids[:, :cut]), "position_ids": torch.arange(cut).expand(2, -1)}
    rest = {"attention_mask": torch.ones_like(ids), "position_ids": torch.arange(cut, length).expand(2, -1)}
    _logits(model, ids[:, :cut], use_cache=True, **first, **{CACHE: cache})
    if differ(_logits(model, ids[:, cut:], use_cache=True, **rest, **{CACHE: cache}), whole[:, cut:]):
        yield f"with a {CACHE} it says something else than without: keys and values of earlier tokens are to be in it"


def _logits(model: Any, ids: Tensor, **more: Any) -> Tensor:
    options = {"attention_mask": None, "position_ids": None, "use_cache": False} | more
    return model(input_ids=ids, **options).logits.float()
