"""RMS normalisation for training on a CPU: one function with its own gradient in place of some fifteen operators.

transformers writes it out (square, mean, root, two products), and under autocast each matrix that reads the result
rounds it again. Here the result comes in the products' type, and fewer arrays pass through memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def use_fused_norms(model: nn.Module, device: torch.device) -> None:
    """Give a transformers model's RMS norms the faster form on a CPU; their weights and files stay as they are."""
    if device.type != "cpu":
        return
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
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
