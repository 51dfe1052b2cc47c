"""The two models of the benchmarks of reinforcement learning, and their prompts."""

from __future__ import annotations

from typing import Any

import numpy as np

ADDED_TOKENS = 2  # an end token and padding, behind the words
# Where arithmetic decides, where overhead decides, and one to try the benchmark out (no measure of anything). Words
# ("entries") and added tokens are a multiple of 64, as model_vocab_size rounds to: of a row that is no token tinychat
# takes no logit into account, other libraries do.
MODELS: dict[str, dict[str, int]] = {
    "gpt6x512": {"n_layer": 6, "n_embd": 512, "n_head": 8, "n_positions": 1024, "entries": 50_304 - ADDED_TOKENS},
    "gpt4x256": {"n_layer": 4, "n_embd": 256, "n_head": 4, "n_positions": 256, "entries": 2_048 - ADDED_TOKENS},
    "tiny": {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 256, "entries": 256 - ADDED_TOKENS},
}


def end_and_pad(name: str) -> tuple[int, int]:
    entries = MODELS[name]["entries"]
    return entries, entries + 1


def vocabulary(name: str) -> int:
    """Rows of the embedding."""
    return MODELS[name]["entries"] + ADDED_TOKENS


def gpt2_config(name: str) -> Any:
    """transformers' configuration of the model, as model=gpt6x512 has it: GELU in one kernel, no dropout, SDPA."""
    from transformers import GPT2Config

    shape = {key: value for key, value in MODELS[name].items() if key != "entries"}
    end, pad = end_and_pad(name)
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2Config(
        **shape,
        **rates,
        vocab_size=vocabulary(name),
        activation_function="gelu_pytorch_tanh",
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
    )


def prompts(name: str, rows: int, length: int, seed: int) -> np.ndarray:
    """(rows, length) words, each as likely as the other."""
    return np.random.Generator(np.random.PCG64(seed)).integers(0, MODELS[name]["entries"], (rows, length))
