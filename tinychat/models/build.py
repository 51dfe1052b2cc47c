"""Models from the configuration, what they consist of, the arithmetic of a training step, and how fast the device could
do it at best.

All are transformers' own classes, so that every checkpoint loads wherever transformers models do.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from tinychat.config.schema import ModelConfig
from tinychat.config.shapes import SHAPES, problems, shape_of
from tinychat.errors import UserError
from tinychat.models.custom import configuration
from tinychat.models.load import attention_of, quiet
from tinychat.models.quantized import weights_in

VOCAB_MULTIPLE = 64  # matrix products over a vocabulary that is a multiple of this are faster
# A pretrained model's own tokenizer may be given a padding and chat tokens; more new entries mean a wrong
# tokenizer.
MOST_ADDED_TOKENS = 8


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters. A matrix used at both ends (tied embeddings) counts once."""

    total: int
    embedding: int  # token and position embeddings, and the output head
    other: int  # attention, MLPs, norms: what the arithmetic per token grows with
    trained: int  # that have a gradient


def model_vocab_size(config: ModelConfig, tokenizer_len: int) -> int:
    """Rows of the embedding for a tokenizer of `tokenizer_len` entries: the configured number, or where that
    is null the next multiple of 64. A pretrained model keeps its own, so there it is `tokenizer_len`.

    Raises UserError for a tokenizer with more entries than the model has.
    """
    if shape_of(config).from_weights:
        return tokenizer_len
    if config.vocab_size is None:
        return -(-tokenizer_len // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    if tokenizer_len > config.vocab_size:
        raise UserError(
            f"model.vocab_size={config.vocab_size}: the tokenizer has {tokenizer_len} entries; "
            f"use model.vocab_size={tokenizer_len} or more, or null"
        )
    return config.vocab_size


def build_model(
    config: ModelConfig, vocab_size: int, pad_token_id: int, eos_token_id: int, bos_token_id: int | None = None
) -> PreTrainedModel:
    """The configured model in fp32 with scaled-dot-product attention, ready to train.

    Weights are drawn from torch's global generator, which the caller seeds. Raises UserError for a configuration that
    no model has.
    """
    shape = hf_config(config, vocab_size, pad_token_id, eos_token_id, bos_token_id)
    how = attention_of(AutoModelForCausalLM, shape)
    model = AutoModelForCausalLM.from_config(shape, attn_implementation=how, dtype=torch.float32)
    if config.arch == "gpt2" and config.position_init_std is not None:
        torch.nn.init.normal_(model.transformer.wpe.weight, std=config.position_init_std)
    return model.train()


def grow_vocabulary(model: PreTrainedModel, tokenizer_len: int) -> None:
    """Add embedding rows for special tokens that a pretrained model's tokenizer was given.

    New rows are drawn closely around the mean of those there (Hewitt 2021, "Initializing new word embeddings for
    pretrained language models"; transformers' default), so that a new token's logit is about the mean of the others
    and takes at most its share 1/V of the probability. Rows drawn around zero would have a logit of 0, which is the
    largest by far in models whose logits share a negative offset.

    Raises UserError where more are missing than such tokens explain: then it is another model's tokenizer.
    """
    have = model.get_input_embeddings().weight.shape[0]
    if tokenizer_len <= have:
        return
    if tokenizer_len - have > MOST_ADDED_TOKENS:
        raise UserError(
            f"the tokenizer has {tokenizer_len} entries, the pretrained model {have}; "
            "use the model's own: tokenizer=pretrained tokenizer.path=FOLDER"
        )
    with quiet():  # it explains at length what it does with new rows
        model.resize_token_embeddings(tokenizer_len, pad_to_multiple_of=VOCAB_MULTIPLE)


def hf_config(
    config: ModelConfig, vocab_size: int, pad_token_id: int, eos_token_id: int, bos_token_id: int | None = None
) -> PreTrainedConfig:
    """The configuration in transformers' words. bos_token_id: what a text begins with; None: the end of text, which
    stands between documents."""
    if said := next(problems(config), None):
        raise UserError(said)
    shape = shape_of(config)
    common = {
        "vocab_size": vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.init_std,
        "pad_token_id": pad_token_id,
        "bos_token_id": eos_token_id if bos_token_id is None else bos_token_id,
        "eos_token_id": eos_token_id,
    }
    if shape.own_code:
        return configuration(config, common)
    assert shape.config is not None, f"model.arch={config.arch} is not built from its shape"
    return getattr(transformers, shape.config)(**shape.arguments(config), **common)


def count_parameters(model: nn.Module) -> ParameterCount:
    """Parameters of a model on any device, the meta device included; one held in 4 bits counts as one."""
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is not None:
        embeddings |= {id(p) for p in head.parameters()}
    total = sum(weights_in(p) for p in model.parameters())
    embedding = sum(weights_in(p) for p in model.parameters() if id(p) in embeddings)
    trained = sum(weights_in(p) for p in model.parameters() if p.requires_grad)
    return ParameterCount(total=total, embedding=embedding, other=total - embedding, trained=trained)


def describe(model: PreTrainedModel) -> str:
    """One line in plain words: shape, context, vocabulary, parameters with embeddings apart."""
    count = count_parameters(model)
    return (
        f"{describe_shape(model.config)}: {_millions(count.total)} parameters "
        f"({_millions(count.embedding)} embeddings, {_millions(count.other)} other)"
    )


def describe_shape(shape: PreTrainedConfig) -> str:
    """The same of a configuration, which does not tell the parameters."""
    known = SHAPES.get(shape.model_type)
    name = known.title if known else shape.model_type
    number, shared = getattr(shape, "num_attention_heads", None), getattr(shape, "num_key_value_heads", None)
    heads = f"{number} heads, " if number else ""
    if number and shared not in (None, number):
        heads = f"{number} heads sharing {shared} keys and values, "
    return (
        f"{name}, {shape.num_hidden_layers} layers of width {shape.hidden_size}, {heads}"
        f"context {shape.max_position_embeddings:,} tokens, vocabulary {shape.vocab_size:,}"
    )


def _millions(number: int) -> str:
    return f"{number / 1e6:.2f} M" if number >= 1e5 else f"{number:,}"


MEASURING_SECONDS = 0.5
FEW_TRIES, MANY_TRIES = 3, 30


def training_flops_per_token(model: Any, context_length: int) -> float:
    """Floating-point operations of forward and backward pass per token of a sequence of `context_length`.

    6 for each weight that multiplies (embedding look-ups do not, the output head does), and 6·L·H·T for causal
    attention over an average of T/2 positions (Chowdhery et al. 2022, PaLM, appendix B, halved for the causal mask).
    """
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    weights = sum(weights_in(p) for p in model.parameters() if p.dim() > 1 and id(p) not in looked_up)
    head = model.get_output_embeddings()
    if head is not None and id(head.weight) in looked_up:
        weights += head.weight.numel()
    attention = 6 * model.config.num_hidden_layers * model.config.hidden_size * context_length
    return 6.0 * weights + attention


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of large matrix products, measured here and now: the peak that counts.

    The best of many short tries, so that a busy moment does not count, in half a second or one product. Where products
    are slow (bf16 without instructions for it takes a hundred times as long) smaller ones tell as much. Leaves the
    global random state alone.
    """
    size = 8192 if device.type == "cuda" else 256
    rate, seconds = _best_rate(device, dtype, size, MANY_TRIES if device.type == "cuda" else FEW_TRIES)
    while device.type == "cpu" and size < 1024 and 8 * seconds < MEASURING_SECONDS / FEW_TRIES:
        size *= 2
        rate, seconds = _best_rate(device, dtype, size, MANY_TRIES if size == 1024 else FEW_TRIES)
    return rate


def _best_rate(device: torch.device, dtype: torch.dtype, size: int, tries: int) -> tuple[float, float]:
    """Operations per second and seconds of the fastest product of two matrices of size x size."""
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    best, began = float("inf"), time.perf_counter()
    for _ in range(tries):
        _wait(device)
        start = time.perf_counter()
        torch.mm(left, right)
        _wait(device)
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() - began > MEASURING_SECONDS:
            break
    return 2.0 * size**3 / best, best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
