"""Weights held in 4 bits: NF4 with double quantisation (Dettmers et al. 2023, QLoRA), by bitsandbytes.

Only the linear layers inside the blocks are quantised. Embeddings, norms and the output head stay fp32, so nothing has
to be cast before training. The layers compute in the type of autocast where that is on, else in their input's.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from tinychat.errors import UserError
from tinychat.runtime import hub

BLOCK = 64  # weights that share a scale
log = logging.getLogger("tinychat")


def quantization_config(model_config: PreTrainedConfig) -> Any:
    """What transformers' from_pretrained takes for a model of this shape.

    Layers whose input width is no multiple of 64 stay fp32: on a CPU bitsandbytes reads them wrongly, as if a block of
    weights with one scale never went on in the next row. Raises UserError without bitsandbytes, and when no layer is
    left.
    """
    hub.need(*hub.QLORA)
    quiet_bitsandbytes()
    from transformers import BitsAndBytesConfig

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config)
    head, widths = model.get_output_embeddings(), input_widths(model)
    narrow = [name for name, width in widths.items() if width % BLOCK]
    if len(narrow) == len(widths):
        found = ", ".join(str(width) for width in sorted(set(widths.values())))
        raise UserError(
            f"peft=qlora: no linear layer of the model has an input width that is a multiple of {BLOCK} (found "
            f"{found}), which bitsandbytes needs; use peft=lora"
        )
    if narrow:
        log.info("%d of %d linear layers stay fp32: their width is no multiple of %d", len(narrow), len(widths), BLOCK)
    heads = [name for name, module in model.named_modules() if module is head]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=heads + narrow,  # for 4 bits too, whatever its name says
    )


def input_widths(model: torch.nn.Module) -> dict[str, int]:
    """The linear layers that may be held in 4 bits, all but the output head, by name."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return {
        name: module.weight.shape[0] if isinstance(module, Conv1D) else module.weight.shape[1]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    }


def quiet_bitsandbytes() -> None:
    """Without its advice, on import, to install kernels from the hub. Call before anything imports it (peft does)."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def prepare_quantized(model: torch.nn.Module) -> None:
    """Make a freshly loaded 4-bit model right to train and to move to a device."""
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            # On CPUs with AVX512-BF16 a forward pass in eval mode repacks the weight for good, in a layout that has no
            # backward pass: gradients of what lies before the layer would then be None, without an error.
            module.support_avx512bf16_for_cpu = False
            module.register_forward_pre_hook(_follow_autocast)
    # It says that parts are on the CPU on purpose; peft would then spread the model over the devices it finds.
    if hasattr(model, "hf_device_map"):
        del model.hf_device_map


def weights_in(parameter: torch.nn.Parameter) -> int:
    """How many weights a parameter stands for; one of 4 bits is stored as two weights in a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()


def _follow_autocast(layer: Any, arguments: tuple[torch.Tensor, ...]) -> None:
    """bitsandbytes' layers do not know autocast: they compute in a type fixed beforehand."""
    kind, own = arguments[0].device.type, arguments[0].dtype
    layer.compute_dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else own
