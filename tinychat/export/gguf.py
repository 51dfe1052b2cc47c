"""A model as a GGUF file, which llama.cpp, Ollama and LM Studio load: weights, tokenizer and chat template in one.

What llama.cpp computes of a file is decided by names: of the architecture, of tensors, of the way a tokenizer splits
text. What has no such name is refused, for it would become another model without a word. Conventions are those of
llama.cpp's conversion/ (llama.py, gpt2.py, qwen.py); tinychat.models.gguf reads the files back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinychat.errors import UserError
from tinychat.models.gguf import splits
from tinychat.models.load import one_line
from tinychat.text.chat_render import template_of
from tinychat.text.chat_template import end_token_id
from tinychat.text.tokenizer import text_beginning, vocabulary_size

TYPES = ("f32", "f16", "q8_0")
INSTEAD = "use --to hf"
BLOCK = 32  # numbers that q8_0 stores with one scale, all of one row
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama.cpp's types of tokens
GENERATION = re.compile(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}")


@dataclass(frozen=True)
class Shape:
    """An architecture as llama.cpp has it."""

    problems: Callable[[Any], Iterator[str]]  # of a transformers configuration: what llama.cpp computes otherwise
    describe: Callable[[Any, Any], None]  # (writer, configuration): its sizes
    matrix: Callable[[str, torch.Tensor, Any], torch.Tensor]  # a weight, by transformers' name, as it is stored


# ------------------------------------------------------------------------------------------------- architectures


def _gpt2_problems(config: Any) -> Iterator[str]:
    if config.activation_function not in ("gelu_new", "gelu_pytorch_tanh"):
        yield f"activation_function={config.activation_function}"
    if not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx:
        yield "attention that is scaled in another way"


def _describe_gpt2(writer: Any, config: Any) -> None:
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def _gpt2_matrix(name: str, weight: torch.Tensor, _config: Any) -> torch.Tensor:
    """Its Conv1D layers hold (in, out) matrices."""
    return weight.T if re.search(r"\.(c_attn|c_proj|c_fc)\.weight$", name) else weight


def _rotary_problems(config: Any) -> Iterator[str]:
    rope = config.rope_parameters or {}
    if rope.get("rope_type", "default") != "default":
        yield f"rotary positions of type {rope['rope_type']}"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        yield f"partial_rotary_factor={rope['partial_rotary_factor']}"
    if config.hidden_act != "silu":
        yield f"hidden_act={config.hidden_act}"
    if getattr(config, "use_sliding_window", False):
        yield "a sliding window"


def _describe_rotary(writer: Any, config: Any) -> None:
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(width)
    writer.add_key_length(width)
    writer.add_value_length(width)


def _llama_matrix(name: str, weight: torch.Tensor, config: Any) -> torch.Tensor:
    """llama.cpp rotates pairs of neighbours in a Llama's queries and keys, transformers pairs half a head apart."""
    found = re.search(r"\.(q|k)_proj\.(weight|bias)$", name)
    if not found:
        return weight
    heads = config.num_attention_heads if found[1] == "q" else config.num_key_value_heads
    return weight.reshape(heads, 2, len(weight) // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _as_it_is(_name: str, weight: torch.Tensor, _config: Any) -> torch.Tensor:
    return weight


SHAPES = {
    "gpt2": Shape(_gpt2_problems, _describe_gpt2, _gpt2_matrix),
    "llama": Shape(_rotary_problems, _describe_rotary, _llama_matrix),
    "qwen3": Shape(_rotary_problems, _describe_rotary, _as_it_is),
}


def shape_of(config: Any) -> Shape:
    """Raises UserError for a model that llama.cpp would compute otherwise."""
    shape = SHAPES.get(config.model_type)
    if shape is None:
        raise UserError(
            f"--to gguf: the architecture {config.model_type!r} is none of {', '.join(SHAPES)}, which are written "
            f"here; {INSTEAD}, and llama.cpp's convert_hf_to_gguf.py on the folder"
        )
    if problem := next(shape.problems(config), None):
        raise UserError(f"--to gguf: llama.cpp's {config.model_type} has no {problem}; {INSTEAD}")
    return shape


# ------------------------------------------------------------------------------------------------------ tokenizer


def split_name(tokenizer: Any) -> str:
    """llama.cpp's name (tokenizer.ggml.pre) of the way a byte-level BPE splits text before it merges. Raises UserError
    for another kind of tokenizer, and a way that has no name."""
    backend = tokenizer.backend_tokenizer
    kind = type(backend.model).__name__
    if kind != "BPE" or getattr(backend.model, "byte_fallback", False):
        raise UserError(
            f"--to gguf: only byte-level BPE tokenizers are written; this one is of the kind {kind}; {INSTEAD}"
        )
    normalizer = type(backend.normalizer).__name__ if backend.normalizer is not None else None
    own = str(backend.pre_tokenizer)
    for name, known in splits().items():
        if own == str(known) and normalizer in ((None, "NFC") if name == "qwen2" else (None,)):
            return name
    more = f", after {normalizer}" if normalizer else ""
    raise UserError(
        f"--to gguf: llama.cpp has no name for how this tokenizer splits text ({own[:120]}{more}); {INSTEAD}"
    )


def _add_tokenizer(writer: Any, tokenizer: Any, rows: int) -> None:
    kinds = tokenizer.added_tokens_decoder
    known = {index: token for token, index in tokenizer.get_vocab().items()}
    tokens, types = [], []
    for index in range(rows):
        token = known.get(index)
        tokens.append(f"[PAD{index}]" if token is None else token)
        added = kinds.get(index)
        types.append(
            UNUSED if token is None else NORMAL if added is None else CONTROL if added.special else USER_DEFINED
        )
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split_name(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    ids = {
        writer.add_bos_token_id: tokenizer.bos_token_id,
        writer.add_eos_token_id: tokenizer.eos_token_id,
        writer.add_pad_token_id: tokenizer.pad_token_id,
        writer.add_unk_token_id: tokenizer.unk_token_id,
    }
    for add, value in ids.items():
        if value is not None and value < rows:
            add(value)
    beginning = text_beginning(tokenizer)
    writer.add_add_eos_token(False)
    if not tokenizer.chat_template:  # what stands before a text in training; a chat template writes it itself
        writer.add_add_bos_token(beginning == [tokenizer.bos_token_id])
        return
    writer.add_add_bos_token(False)
    writer.add_uint32("tokenizer.ggml.eot_token_id", end_token_id(tokenizer))
    writer.add_chat_template(plain_template(tokenizer))


def plain_template(tokenizer: Any) -> str:
    """The chat template without the marks of replies, which transformers alone knows: a comment in their place, which
    takes the same blanks away."""
    return GENERATION.sub(r"{#\1 \2#}", template_of(tokenizer))


# --------------------------------------------------------------------------------------------------------- weights


def _tensors(model: Any, shape: Shape, rows: int) -> Iterator[tuple[str, np.ndarray]]:
    """Each weight once, by llama.cpp's name, fp32. Rows of the vocabulary that no token has are left out."""
    import gguf

    config = model.config
    architecture = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == config.model_type)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for own, weight in model.named_parameters():
        name = names.get_name(own, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise UserError(f"--to gguf: llama.cpp's {config.model_type} has no place for {own}; {INSTEAD}")
        value = shape.matrix(own, weight.detach(), config)
        if name in ("token_embd.weight", "output.weight"):
            value = value[:rows]
        yield name, value.float().contiguous().numpy()


def _stored(name: str, value: np.ndarray, kind: str) -> tuple[np.ndarray, Any]:
    """As llama.cpp's converter stores it: vectors and positions as they are, matrices in the type that is asked for,
    and in f16 where their rows do not part into blocks."""
    import gguf

    types = gguf.GGMLQuantizationType
    if kind == "f32" or value.ndim < 2 or name == "position_embd.weight":
        return value, types.F32
    if kind == "q8_0" and value.shape[-1] % BLOCK == 0:
        return gguf.quantize(value, types.Q8_0), types.Q8_0
    if (most := float(np.abs(value).max())) > float(np.finfo(np.float16).max):
        raise UserError(f"--type {kind}: {name} holds {most:.3g}, which is too large for f16; use --type f32")
    return value.astype(np.float16), types.F16


def write_gguf(model: Any, tokenizer: Any, file: Path, kind: str, name: str, licence: str | None) -> None:
    """The model (fp32) and its tokenizer as one file. kind: of TYPES; licence: where it is known. Raises UserError for
    what llama.cpp would compute or split otherwise, and where the file cannot be written."""
    import gguf

    config, shape = model.config, shape_of(model.config)
    rows = min(vocabulary_size(tokenizer), int(model.get_input_embeddings().weight.shape[0]))
    stored = {"f32": gguf.LlamaFileType.ALL_F32, "f16": gguf.LlamaFileType.MOSTLY_F16}
    writer = gguf.GGUFWriter(None, config.model_type)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    if licence:
        writer.add_license(licence)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(rows)
    writer.add_file_type(stored.get(kind, gguf.LlamaFileType.MOSTLY_Q8_0))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    shape.describe(writer, config)
    _add_tokenizer(writer, tokenizer, rows)
    for tensor, value in _tensors(model, shape, rows):
        data, how = _stored(tensor, value, kind)
        writer.add_tensor(tensor, data, raw_dtype=how)
    try:
        writer.write_header_to_file(file)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    except OSError as error:
        raise UserError(f"could not write {file}: {one_line(error)}") from None
    finally:
        writer.close()
