"""Layers for training on a CPU as functions with their own gradients: RMS norms, and queries and keys (head norm and
rotary embedding).

transformers composes them of some twenty operators in fp32, each a pass through memory, where small models then spend
more time than in their products. The modules, their weights and their files stay transformers' own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tinychat.models.kernels.attention import is_of_transformers
from tinychat.models.kernels.kv_cache import CACHE


def use_fused_norms(model: nn.Module, device: torch.device) -> None:
    """Give a transformers model's RMS norms the faster form on a CPU; their weights and files stay as they are."""
    if device.type != "cpu":
        return
    for module in model.modules():
        known = type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")
        if known and is_of_transformers(module):
            module.forward = _Norm(module)  # type: ignore[method-assign]


class _Norm:
    """The forward of one norm; an object, so that the model can still be copied and pickled."""

    def __init__(self, module: Any):
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        return RMSNorm.apply(x, self.module.weight, self.module.variance_epsilon, dtype)


class RMSNorm(torch.autograd.Function):
    """x / sqrt(mean(x²) + ε) · weight over the last dimension (Zhang and Sennrich 2019), computed in fp32.

    x (..., D) and weight (D,); the result (..., D) has the type that is asked for.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        wide = x.float()
        size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        root = size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # (..., 1)
        ctx.save_for_backward(x, weight, root)
        return torch.mul(wide, root).mul_(weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, root = ctx.saved_tensors
        unit = x.float() * root
        grad = grad.float()
        shared = grad * unit
        grad_weight = shared.flatten(0, -2).sum(0)
        along = (shared @ weight.float()).unsqueeze(-1).div_(-x.shape[-1])  # Σ g·w·u / D, (..., 1)
        grad_x = torch.mul(grad, weight).addcmul_(unit, along).mul_(root)
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), None, None


ATTENTIONS = ("LlamaAttention", "Qwen3Attention")


def use_fused_rotary(model: nn.Module, device: torch.device) -> None:
    """Give the attention of Llama- and Qwen3-shaped transformers models the faster form on a CPU."""
    if device.type != "cpu":
        return
    for module in model.modules():
        if type(module).__name__ in ATTENTIONS and is_of_transformers(module):
            module.forward = _Attention(module)  # type: ignore[method-assign]


class _Attention:
    """The forward of one attention module; an object, so that the model can still be copied and pickled."""

    def __init__(self, module: Any):
        self.module = module

    def __call__(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        **rest: Any,
    ) -> tuple[Tensor, Any]:
        """hidden_states (B, T, C), cosines and sines (B or 1, T, D) -> (B, T, C), and the attention's second result."""
        own = self.module
        if rest.get(CACHE) is not None:  # generation, which has a forward of its own in models.lean
            return type(own).forward(own, hidden_states, position_embeddings, attention_mask, **rest)
        rest.pop(CACHE, None)
        heads = (*hidden_states.shape[:-1], -1, own.head_dim)
        query, key = (
            rotate(linear(hidden_states).view(heads), *position_embeddings, getattr(own, norm, None))
            for linear, norm in ((own.q_proj, "q_norm"), (own.k_proj, "k_norm"))
        )
        value = own.v_proj(hidden_states).view(heads).transpose(1, 2)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(own.config._attn_implementation, sdpa_attention_forward)
        dropout = own.attention_dropout if own.training else 0.0
        window = {"sliding_window": own.sliding_window} if hasattr(own, "sliding_window") else {}
        done, beside = attend(
            own, query, key, value, attention_mask, dropout=dropout, scaling=own.scaling, **window, **rest
        )
        return own.o_proj(done.reshape(*hidden_states.shape[:-1], -1).contiguous()), beside


def rotate(x: Tensor, cos: Tensor, sin: Tensor, norm: Any = None) -> Tensor:
    """x (B, T, H, D), normalised by `norm` (an RMS norm over D) if there is one, then turned by its position (Su et al.
    2021): (B, H, T, D) in x's type."""
    weight, eps = (None, 0.0) if norm is None else (norm.weight, norm.variance_epsilon)
    return _Rotate.apply(x, cos, sin, weight, eps)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        cos, sin = cos.float().unsqueeze(1), sin.float().unsqueeze(1)  # (B or 1, 1, T, D)
        wide, root = _wide(x), None
        if weight is not None:
            size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
            root = size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # (B, H, T, 1)
            wide.mul_(root).mul_(weight)
        ctx.save_for_backward(x, cos, sin, weight, root)
        turned, half = wide * cos, x.shape[-1] // 2
        turned[..., :half].addcmul_(wide[..., half:], sin[..., :half], value=-1)
        turned[..., half:].addcmul_(wide[..., :half], sin[..., half:])
        return turned.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, cos, sin, weight, root = ctx.saved_tensors
        grad, half = grad.float(), x.shape[-1] // 2
        back = grad * cos
        back[..., :half].addcmul_(grad[..., half:], sin[..., half:])
        back[..., half:].addcmul_(grad[..., :half], sin[..., :half], value=-1)
        grad_weight = None
        if weight is not None:
            unit = _wide(x).mul_(root)
            shared = back * unit
            grad_weight = shared.flatten(0, -2).sum(0).to(weight.dtype)
            along = (shared @ weight.float()).unsqueeze(-1).div_(-x.shape[-1])  # Σ g·w·u / D
            back.mul_(weight).addcmul_(unit, along).mul_(root)
        return back.transpose(1, 2).to(x.dtype, memory_format=torch.contiguous_format), None, None, grad_weight, None


def _wide(x: Tensor) -> Tensor:
    """(B, T, H, D) -> (B, H, T, D), a new tensor in fp32."""
    return x.transpose(1, 2).to(torch.float32, memory_format=torch.contiguous_format, copy=True)
