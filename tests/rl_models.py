"""What the tests of reinforcement learning share: a tiny actor-critic and prompts."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config, LlamaConfig

from tinychat.data.preferences.prompts import PromptBatch, PromptRow
from tinychat.models.actor_critic import ActorCritic

VOCABULARY, PAD, EOS = 40, 39, 1
PROMPTS = [[5, 6, 7, 8, 9, 10], [11, 12], [13, 14, 15, 16], [17]]


def shape(arch: str = "llama", **more: Any) -> Any:
    if arch == "gpt2":
        return GPT2Config(
            n_layer=2, n_embd=16, n_head=2, n_positions=64, vocab_size=VOCABULARY, pad_token_id=PAD,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=EOS, eos_token_id=EOS, initializer_range=0.4,
            **more,
        )  # fmt: skip
    return LlamaConfig(
        num_hidden_layers=2, hidden_size=16, num_attention_heads=2, num_key_value_heads=1, intermediate_size=24,
        max_position_embeddings=64, vocab_size=VOCABULARY, pad_token_id=PAD, bos_token_id=EOS, eos_token_id=EOS,
        tie_word_embeddings=True, initializer_range=0.4, **more,
    )  # fmt: skip


def policy(arch: str = "llama", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(shape(arch)).eval()


def actor_critic(arch: str = "llama", own: bool = True, lora: bool = False) -> ActorCritic:
    model = policy(arch)
    if lora:
        from peft import LoraConfig, get_peft_model

        targets = ["c_attn"] if arch == "gpt2" else ["q_proj", "v_proj"]
        model = get_peft_model(
            model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=targets, fan_in_fan_out=arch == "gpt2")
        )
    value = AutoModelForSequenceClassification.from_config(shape(arch, num_labels=1)) if own else None
    return ActorCritic(model, value).eval()


def batch(prompts: list[list[int]] = PROMPTS) -> PromptBatch:
    rows = [PromptRow([{"role": "user", "content": f"prompt {i}"}], f"row {i}") for i in range(len(prompts))]
    return PromptBatch(rows, prompts, list(range(len(prompts))))
