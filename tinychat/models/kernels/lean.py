"""The arithmetic of GPT-2, Llama and Qwen3 for generation, without gradients, on the weights of a transformers model.

A step of generation is a few hundred small operators; transformers' Python around them takes as long as a small
model's arithmetic. Tests hold the logits to those of the transformers models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, LlamaForCausalLM, Qwen3ForCausalLM
from transformers.pytorch_utils import Conv1D

from tinychat.models.kernels.kv_cache import BatchCache

TYPICAL_ROWS = 32  # for which the layout is chosen; any number works, and as fast within some percent


def product(weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Callable[[Tensor], Tensor]:
    """x (..., in) -> x @ weight + bias (..., out), weight (in, out), all of one type; `gelu`: then GELU by its tanh
    formula. No gradients."""
    packed = _packed(weight, bias, gelu) if _packing_helps(weight) else None
    if packed is not None:
        return packed

    def plain(x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        done = flat @ weight if bias is None else torch.addmm(bias, flat, weight)
        done = done.view(*x.shape[:-1], -1)
        return F.gelu(done, approximate="tanh") if gelu else done

    return plain


def _packing_helps(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype is torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype is torch.float32


def _packed(weight: Tensor, bias: Tensor | None, gelu: bool) -> Callable[[Tensor], Tensor] | None:
    operators = torch.ops.mkldnn
    try:
        layout = operators._reorder_linear_weight(weight.t(), TYPICAL_ROWS)
        run = operators._linear_pointwise.default
        then: tuple[str, list, str] = ("gelu", [], "tanh") if gelu else ("none", [], "")
        run(weight.new_zeros(1, len(weight)), layout, bias, *then)
    except (AttributeError, RuntimeError):  # another torch, another processor
        return None
    return lambda x: run(x, layout, bias, *then)


TANH_GELUS = ("gelu_new", "gelu_pytorch_tanh")  # one function; the first is written in many operators
STATIC_ROPE = ("default", "linear", "llama3", "yarn")  # their angles do not depend on the length at hand
Weight = tuple[Tensor, Tensor | None]  # weight (in, out), bias (out,) of a linear layer
Product = Callable[[Tensor], Tensor]
_NO_ANGLES = (torch.empty(0), torch.empty(0))


class Unsupported(Exception):
    """The model has something that this arithmetic does not know."""


class LeanModel:
    """Call it with (input_ids (B, T), cache): logits (B, V) of the last position, keys and values into the cache.

    Products run in `dtype`, all else (norms, residual stream) in the type of the model's weights, as under autocast.
    The weights are read when this is made: afterwards changes of the model are not seen. LoRA adapters that are
    switched on are added to them. Raises Unsupported.
    """

    def __init__(self, model: Any, dtype: torch.dtype | None):
        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        readers: dict[type, Callable[[Any], None]] = {
            GPT2LMHeadModel: self._read_gpt2,
            LlamaForCausalLM: self._read_llama,
            Qwen3ForCausalLM: self._read_llama,
        }
        if type(causal) not in readers:
            raise Unsupported(type(causal).__name__)
        self.config, self.device = causal.config, causal.get_input_embeddings().weight.device
        self._dtype = dtype or causal.get_input_embeddings().weight.dtype
        readers[type(causal)](causal)
        self._head = self._product(causal.get_output_embeddings())

    def __call__(self, input_ids: Tensor, cache: BatchCache) -> Tensor:
        rows, tokens = input_ids.shape
        positions = cache.positions(tokens).flatten()
        x = F.embedding(input_ids.flatten(), self._embedding)
        at = _Pass(rows, tokens, self._bias_of_prompts(cache, tokens), cache)
        if self._positions is None:
            at.cos, at.sin = self._rotation(positions, cache.capacity, x)
        else:
            x = x + F.embedding(positions, self._positions)
        for block in self._blocks:
            x = block(x, at)
        return self._head(self._final_norm(x.view(rows, tokens, -1)[:, -1]).to(self._dtype))

    def new_cache(self, padding: Tensor, capacity: int) -> BatchCache:
        shape, on_cpu = self.config, padding.device.type == "cpu"
        return BatchCache(shape.num_hidden_layers, padding, capacity, shape.max_position_embeddings, on_cpu)

    def _bias_of_prompts(self, cache: BatchCache, tokens: int) -> Tensor | None:
        """Added to the scores, (B, 1, T, S); None where every query sees all slots up to its own, and in a step."""
        if cache.get_seq_length() or not cache.padded:
            return None
        seen = cache.attended(tokens)[:, None, None, :]
        if tokens > 1:  # a padding query sees itself alone: a softmax needs something
            own = torch.eye(tokens, dtype=torch.bool, device=seen.device)
            seen = (seen & torch.ones_like(own).tril_()) | own
        return torch.zeros(seen.shape, dtype=self._dtype, device=seen.device).masked_fill_(~seen, float("-inf"))

    # ------------------------------------------------------------------------------------------------ weights

    def _product(self, *modules: nn.Module, gelu: bool = False) -> Product:
        """Linear layers that share their input, as one."""
        weights, biases = zip(*(_weight_and_bias(module) for module in modules), strict=True)
        weight = weights[0] if len(weights) == 1 else torch.cat([w.t() for w in weights]).t()
        if (biases[0] is None) != all(bias is None for bias in biases):
            raise Unsupported("a bias on some of the layers")
        bias = None if biases[0] is None else torch.cat(biases).to(self._dtype)
        return product(weight.to(self._dtype), bias, gelu)

    def _read_gpt2(self, causal: Any) -> None:
        body = causal.transformer
        if self.config.add_cross_attention or type(body.wte) is not nn.Embedding:
            raise Unsupported("cross-attention or adapted embeddings")
        self._embedding, self._positions = body.wte.weight, body.wpe.weight
        self._final_norm = _layer_norm(body.ln_f)
        self._blocks: list[Any] = [
            _GPT2Block(index, block, self._product, self._dtype) for index, block in enumerate(body.h)
        ]

    def _read_llama(self, causal: Any) -> None:
        body = causal.model
        rope = self.config.rope_parameters["rope_type"]
        kinds = set(getattr(self.config, "layer_types", None) or ()) - {"full_attention"}
        if rope not in STATIC_ROPE or kinds or type(body.embed_tokens) is not nn.Embedding:
            raise Unsupported("positions, sliding windows or adapted embeddings")
        self._embedding, self._positions = body.embed_tokens.weight, None
        self._rotary, self._angles = body.rotary_emb, _NO_ANGLES
        self._final_norm = _rms_norm(body.norm)
        self._blocks = [
            _LlamaBlock(index, block, self._product, self._dtype, self.config)
            for index, block in enumerate(body.layers)
        ]

    def _rotation(self, positions: Tensor, capacity: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines (N, 1, D) of the rotary embedding, from a table made once."""
        if len(self._angles[0]) < capacity:
            cos, sin = self._rotary(like, torch.arange(capacity, device=like.device)[None])
            sign = torch.ones_like(sin[0, 0])
            sign[: len(sign) // 2] = -1
            self._angles = cos[0], sin[0] * sign
        return F.embedding(positions, self._angles[0])[:, None], F.embedding(positions, self._angles[1])[:, None]


@dataclass
class _Pass:
    """What the blocks share in one call: N = B · T tokens side by side."""

    rows: int  # B
    tokens: int  # T
    bias: Tensor | None  # added to the prompts' scores, (B, 1, T, S)
    cache: BatchCache
    cos: Any = None  # (N, 1, D) of the rotary embedding
    sin: Any = None
    step_bias: Tensor | None = None  # in a step: (B · H_kv or 1, 1, S)


class _GPT2Block:
    def __init__(self, index: int, block: Any, product_of: Callable[..., Product], dtype: torch.dtype):
        attention, mlp = block.attn, block.mlp
        fused = attention.config.activation_function in TANH_GELUS
        self._norms = _layer_norm(block.ln_1), _layer_norm(block.ln_2)
        self._qkv, self._out = product_of(attention.c_attn), product_of(attention.c_proj)
        self._up, self._down = product_of(mlp.c_fc, gelu=fused), product_of(mlp.c_proj)
        self._act = None if fused else mlp.act
        self._index, self._heads, self._scale, self._dtype = index, attention.num_heads, attention.scaling, dtype

    def __call__(self, x: Tensor, at: _Pass) -> Tensor:
        """(N, C) -> (N, C)."""
        qkv = self._qkv(self._norms[0](x).to(self._dtype)).view(len(x), 3, self._heads, -1)
        query, key, value = qkv.unbind(1)
        x = x + self._out(_attend(query, key, value, self._index, self._scale, at))
        inner = self._up(self._norms[1](x).to(self._dtype))
        return x + self._down(self._act(inner) if self._act else inner)


class _LlamaBlock:
    def __init__(self, index: int, block: Any, product_of: Callable[..., Product], dtype: torch.dtype, config: Any):
        attention, mlp = block.self_attn, block.mlp
        self._norms = _rms_norm(block.input_layernorm), _rms_norm(block.post_attention_layernorm)
        self._qkv = product_of(attention.q_proj, attention.k_proj, attention.v_proj)
        self._out, self._down = product_of(attention.o_proj), product_of(mlp.down_proj)
        self._up, self._act = product_of(mlp.gate_proj, mlp.up_proj), mlp.act_fn
        self._heads, self._shared = config.num_attention_heads, config.num_key_value_heads
        self._index, self._scale, self._eps, self._dtype = index, attention.scaling, config.rms_norm_eps, dtype
        self._head_norm: Tensor | None = None
        if hasattr(attention, "q_norm"):  # (H + H_kv, D): the weights of queries and keys, normalised together
            own = [attention.q_norm.weight] * self._heads + [attention.k_norm.weight] * self._shared
            self._head_norm = torch.stack(own)

    def __call__(self, x: Tensor, at: _Pass) -> Tensor:
        """(N, C) -> (N, C)."""
        turned = self._heads + self._shared
        qkv = self._qkv(self._norms[0](x).to(self._dtype)).view(len(x), turned + self._shared, -1)
        both, value = qkv.split([turned, self._shared], 1)
        if self._head_norm is not None:
            both = F.rms_norm(both, both.shape[-1:], None, self._eps) * self._head_norm
        both = torch.addcmul(both * at.cos, both.roll(both.shape[-1] // 2, -1), at.sin).to(self._dtype)
        query, key = both.split([self._heads, self._shared], 1)
        x = x + self._out(_attend(query, key, value, self._index, self._scale, at))
        gate, up = self._up(self._norms[1](x).to(self._dtype)).chunk(2, -1)
        return x + self._down(self._act(gate) * up)


# ----------------------------------------------------------------------------------------------------- operators


def _attend(query: Tensor, key: Tensor, value: Tensor, index: int, scale: float, at: _Pass) -> Tensor:
    """query (N, H, D), key and value (N, H_kv, D) of layer `index` -> (N, H · D).

    The prompts come in one call, before anything is in the cache; then one token a row.
    """
    heads, shared, layer = query.shape[1], key.shape[1], at.cache.layers[index]
    if layer.get_seq_length() == 0:
        query, key, value = (part.unflatten(0, (at.rows, at.tokens)).transpose(1, 2) for part in (query, key, value))
        layer.update(key, value)
        if heads != shared:
            key, value = (part.repeat_interleave(heads // shared, 1) for part in (key, value))
        done = F.scaled_dot_product_attention(query, key, value, at.bias, is_causal=at.bias is None, scale=scale)
        return done.transpose(1, 2).flatten(2).flatten(0, 1)
    # Plain products: torch's attention for a CPU takes up to five times as long for single queries.
    if at.step_bias is None:  # the same for every layer
        bias = at.cache.step_bias(query.dtype)
        at.step_bias = bias.repeat_interleave(shared, 0) if at.cache.padded else bias
    keys, values = layer.append(key, value)
    query = query.reshape(at.rows * shared, heads // shared, -1)  # heads that share keys as so many queries
    scores = torch.baddbmm(at.step_bias, query, keys, alpha=scale)
    return torch.bmm(scores.softmax(-1), values).view(at.rows, -1)


def _weight_and_bias(module: nn.Module) -> Weight:
    """Weight as (in, out) and bias of a linear layer of any kind, LoRA's update included."""
    if type(module) is nn.Linear:
        return module.weight.t(), module.bias
    if type(module) is Conv1D:
        return module.weight, module.bias
    if type(module).__module__ == "peft.tuners.lora.layer":  # not those of quantised layers
        return _with_lora(module)
    raise Unsupported(type(module).__name__)


def _with_lora(module: Any) -> Weight:
    base = module.get_base_layer()
    weight, bias = _weight_and_bias(base)
    if module.disable_adapters or module.merged:
        return weight, bias
    for name in module.active_adapters:
        if name not in module.lora_A:
            continue
        if module.lora_variant.get(name) is not None or module.lora_bias.get(name):
            raise Unsupported(f"a variant of LoRA on {type(base).__name__}")
        delta = module.get_delta_weight(name)
        weight = weight + (delta if type(base) is Conv1D else delta.t())
    return weight, bias


def _layer_norm(module: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    shape, weight, bias, eps = module.normalized_shape, module.weight, module.bias, module.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


def _rms_norm(module: Any) -> Callable[[Tensor], Tensor]:
    shape, weight, eps = module.weight.shape, module.weight, module.variance_epsilon
    return lambda x: torch.rms_norm(x, shape, weight, eps)
