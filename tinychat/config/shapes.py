"""Every architecture that `model=` may name, described once: what it needs, what no model has, what transformers calls
its sizes.

Checks, building, adapters and estimates read these descriptions. A new architecture of transformers is an entry here
and a file conf/model/NAME.yaml; one of a user's own is arch=custom, a file that the command line names (see
tinychat.models.custom). Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from tinychat.config import plugins
from tinychat.config.schema import ModelConfig
from tinychat.runtime.run_files import at_home

RMS_NORM_EPS = 1e-5  # of the RMS norms of Llama-shaped models
ADDRESS = "FILE.py:CONFIG"  # what arch=custom takes: the file and the class of the configuration


@dataclass(frozen=True)
class Shape:
    """One architecture."""

    title: str  # in a sentence
    config: str | None  # transformers' class of its configuration; None: a checkpoint or the user's code brings it
    needs: tuple[str, ...]  # keys of ModelConfig that must not be null
    problems: Callable[[ModelConfig], Iterator[str]]  # a line for each thing that no such model has
    arguments: Callable[[ModelConfig], dict[str, Any]] = field(default=lambda model: {})  # in transformers' words
    weights: Callable[[ModelConfig, int], int | None] = field(default=lambda model, vocabulary: None)
    # ^ the fewest that the model can have with so many tokens; None: not known before it is built
    targets: tuple[str, ...] | None = None  # linear layers that get adapters; None: all but the output head
    from_weights: bool = False  # nothing is built: model.path is a checkpoint
    own_code: bool = False  # the user's: model.path is its address


def shape_of(model: ModelConfig) -> Shape:
    """The description of `model.arch`. Raises UserError for a name that there is not."""
    return plugins.SHAPES.get(model.arch, "model.arch")


def problems(model: ModelConfig) -> Iterator[str]:
    """A line for each value that the architecture cannot have, nulls first."""
    shape = shape_of(model)
    missing = [key for key in shape.needs if getattr(model, key) is None]
    for key in missing:
        yield f"model.{key}=null: model.arch={model.arch} needs a value"
    for key in ("n_layer", "n_embd", "n_head", "n_kv_head", "n_inner", "context_length"):
        if (value := getattr(model, key)) is not None and value < 1:
            missing.append(key)
            yield f"model.{key}={value}: must be at least 1"
    if not missing:
        yield from shape.problems(model)


# ---------------------------------------------------------------------------------------------------- GPT-2


def _heads(model: ModelConfig) -> tuple[int, int]:
    return cast(int, model.n_embd), cast(int, model.n_head)


def _gpt2_problems(model: ModelConfig) -> Iterator[str]:
    width, heads = _heads(model)
    if width % heads:
        yield f"model.n_embd={width}: must be a multiple of model.n_head={heads}"
    if model.n_kv_head not in (None, heads):
        yield f"model.n_kv_head={model.n_kv_head}: GPT-2 has no grouped-query attention; use null"


def _gpt2_arguments(model: ModelConfig) -> dict[str, Any]:
    return {
        "n_layer": model.n_layer,
        "n_embd": model.n_embd,
        "n_head": model.n_head,
        "n_inner": model.n_inner,  # None: 4 * n_embd
        "n_positions": model.context_length,
        "activation_function": "gelu_pytorch_tanh",  # the function of GPT-2's gelu_new in one fused kernel
        "attn_pdrop": model.dropout,
        "resid_pdrop": model.dropout,
        "embd_pdrop": model.dropout,
    }


def _gpt2_weights(model: ModelConfig, vocabulary: int) -> int:
    return _transformer_weights(model, 2, vocabulary, cast(int, model.context_length))


def _transformer_weights(model: ModelConfig, matrices: int, vocabulary: int, positions: int) -> int:
    """Of attention, an MLP of so many matrices and the tables; norms and biases are left out."""
    width, heads = _heads(model)
    inner = (model.n_inner or 4 * width) * matrices
    attention = 2 * width * width + 2 * width * (width // heads) * (model.n_kv_head or heads)
    tables = vocabulary * (1 if model.tie_embeddings else 2) + positions
    return cast(int, model.n_layer) * (attention + inner * width) + tables * width


# ------------------------------------------------------------------------------------- Llama, and Qwen3 like it


def _llama_problems(model: ModelConfig) -> Iterator[str]:
    width, heads = _heads(model)
    if width % heads:
        yield f"model.n_embd={width}: must be a multiple of model.n_head={heads}"
    if heads % cast(int, model.n_kv_head):
        yield f"model.n_head={heads}: must be a multiple of model.n_kv_head={model.n_kv_head}"
    if width // heads % 2:
        yield (
            f"model.n_embd={width}: rotary embeddings need an even width per head, {heads} heads make it "
            f"{width // heads}"
        )


def _llama_arguments(model: ModelConfig) -> dict[str, Any]:
    width, heads = _heads(model)
    return {
        "num_hidden_layers": model.n_layer,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": model.n_kv_head,
        "head_dim": width // heads,
        "intermediate_size": model.n_inner,
        "max_position_embeddings": model.context_length,
        "rms_norm_eps": RMS_NORM_EPS,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "attention_dropout": model.dropout,
    }


def _llama_weights(model: ModelConfig, vocabulary: int) -> int:
    return _transformer_weights(model, 3, vocabulary, 0)


# --------------------------------------------------------------------------- a checkpoint's; the user's own code


def _no_problems(model: ModelConfig) -> Iterator[str]:
    yield from ()


def _custom_problems(model: ModelConfig) -> Iterator[str]:
    """Of what can be said without loading the file, which is not done in the parent process."""
    where, _, name = (model.path or "").rpartition(":")
    if not where or not name:
        yield (
            f"model.path={'null' if model.path is None else model.path}: model=custom needs the class of your "
            f"configuration, as model.path={ADDRESS}"
        )
    elif where.endswith(".py") and not at_home(where).is_file():
        yield f"model.path={model.path}: no such file (looked from {Path.cwd()})"


def _custom_arguments(model: ModelConfig) -> dict[str, Any]:
    """The sizes that are said, by the names that transformers' own configurations have for them."""
    named = {
        "num_hidden_layers": model.n_layer,
        "hidden_size": model.n_embd,
        "num_attention_heads": model.n_head,
        "num_key_value_heads": model.n_kv_head,
        "intermediate_size": model.n_inner,
        "max_position_embeddings": model.context_length,
        "rope_theta": model.rope_theta,
    }
    return {key: value for key, value in named.items() if value is not None}


_LLAMA_NEEDS = ("n_layer", "n_embd", "n_head", "n_kv_head", "n_inner", "context_length", "tie_embeddings", "rope_theta")
_LLAMA = {
    "needs": (*_LLAMA_NEEDS, "init_std"),
    "problems": _llama_problems,
    "arguments": _llama_arguments,
    "weights": _llama_weights,
    "targets": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}
# By name, which is transformers' model_type too where transformers has the architecture.
SHAPES = {
    "gpt2": Shape(
        "GPT-2",
        "GPT2Config",
        ("n_layer", "n_embd", "n_head", "context_length", "tie_embeddings", "init_std"),
        _gpt2_problems,
        _gpt2_arguments,
        _gpt2_weights,
        ("c_attn", "c_proj"),
    ),
    "llama": Shape("Llama", "LlamaConfig", **_LLAMA),  # type: ignore[arg-type]
    "qwen3": Shape("Qwen3", "Qwen3Config", **_LLAMA),  # type: ignore[arg-type]
    "pretrained": Shape("a checkpoint's", None, (), _no_problems, from_weights=True),
    "custom": Shape("your own", None, (), _custom_problems, _custom_arguments, own_code=True),
}
