"""Matrix products with weights that stay the same for many steps.

A CPU's product of a batch of single tokens reads each weight for few multiplications. oneDNN is up to twice as fast
when it may lay the weights out beforehand; torch.compile does that through the two operators used here, which have
no public name. Where they are missing the plain product serves.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

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
