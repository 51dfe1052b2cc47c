"""What the tests of the chat program share: tiny models that babble."""

from __future__ import annotations

import copy
import functools
import os
import sys
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tinychat.config.schema import ModelConfig
from tinychat.models.build import build_model
from tinychat.models.checkpoints import save_weights, saved_buffers, saved_parameters
from tinychat.text.chat_template import set_template
from tinychat.text.tokenizer import train_bpe

COMMAND = [sys.executable, "-m", "tinychat.chat"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}


def babbler(arch: str = "llama", context: int = 2048) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A model with random weights whose likeliest token is never an end, and a tokenizer without a chat template."""
    return copy.deepcopy(_babbler(arch, context))


@functools.cache
def _babbler(arch: str, context: int) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    tokenizer = train_bpe(["the cat and the dog sat on the mat, 从前 🎉. " * 20], 300, progress=False)
    shape = ModelConfig(
        name="tiny",
        arch=arch,
        path=None,
        n_layer=2,
        n_embd=32,
        n_head=4,
        n_kv_head=None if arch == "gpt2" else 2,
        n_inner=48,
        context_length=context,
        vocab_size=None,
        tie_embeddings=False,
        dropout=0.0,
        rope_theta=None if arch == "gpt2" else 10000.0,
        init_std=0.3,
        position_init_std=None,
    )
    torch.manual_seed(0)
    model = build_model(shape, 320, tokenizer.pad_token_id, tokenizer.eos_token_id)
    with torch.no_grad():  # scores of the other tokens are random
        for token in tokenizer.all_special_ids:
            model.get_output_embeddings().weight[token] = 0
    return model.eval(), tokenizer


def saved(folder: Path, template: str | None = None) -> Path:
    """A checkpoint folder with a babbler."""
    model, tokenizer = babbler()
    if template:
        set_template(tokenizer, template)
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(model, saved_parameters(model) | saved_buffers(model), folder)
    tokenizer.save_pretrained(folder)
    return folder
