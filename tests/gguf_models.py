"""GGUF files of a few kilobytes, written as llama.cpp's converter writes a transformers model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<empty_output>"]  # SmolLM2's first and last
MERGES = [("Ġ", "t"), ("Ġ", "Ġ"), ("Ġt", "o"), ("1", "2"), ("a", "b")]
TOKENS = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in MERGES)]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' "
    "+ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_PROMPT = TEMPLATE.partition("{% if add")[0]  # and none for the reply that is to follow
CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
NAMES = {  # transformers' -> llama.cpp's
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
WIDTH, HEADS, SHARED, LAYERS = 32, 4, 2, 2


def tiny_model(architecture: str = "llama", tied: bool = True) -> Any:
    """A model of some ten thousand parameters whose numbers a block of 32 in 8 bits holds exactly."""
    torch.manual_seed(0)
    config = CONFIGS[architecture](
        vocab_size=len(TOKENS),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=SHARED,
        head_dim=WIDTH // HEADS,
        max_position_embeddings=512,
        rope_theta=1234.0,
        tie_word_embeddings=tied,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:  # blocks of 32: a scale that is a power of two, and whole numbers up to 127
                whole = torch.randint(-126, 127, (p.numel() // 32, 32))
                whole[:, 0] = 127
                p.copy_((whole.float() / 1024).view_as(p))
            else:
                p.copy_(1 + torch.randint(-8, 9, p.shape) / 64)
    return model


def write_gguf(
    path: Path,
    model: Any | None = None,
    *,
    tokens: list[str] | None = None,
    pre: str | None = "smollm",
    template: str | None = TEMPLATE,
    padding: int = 2,
    quantized: bool = False,
    architecture: str | None = None,
    more: dict[str, Any] | None = None,
    extra: dict[str, np.ndarray] | None = None,
) -> Path:
    """The model (tiny_model) as a GGUF file. more: strings of metadata; extra: tensors beside the model's."""
    import gguf

    model = tiny_model() if model is None else model
    config, kind = model.config, architecture or model.config.model_type
    tokens = TOKENS if tokens is None else tokens
    writer = gguf.GGUFWriter(path, kind)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(1234.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_key_length(WIDTH // HEADS)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    if pre:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(padding)
    if template:
        writer.add_chat_template(template)
    for key, value in (more or {}).items():
        writer.add_string(key, value)
    tensors = {_name(name): _permuted(name, p, kind) for name, p in model.named_parameters()}
    for name, value in {**tensors, **(extra or {})}.items():
        if quantized and value.ndim == 2:
            q8 = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(value, q8), raw_dtype=q8)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _name(name: str) -> str:
    module, _, kind = name.rpartition(".")
    if module.startswith("model.layers."):
        _, _, number, *rest = module.split(".")
        return f"blk.{number}.{NAMES['.'.join(rest)]}.{kind}"
    return f"{NAMES[module]}.{kind}"


def _permuted(name: str, p: torch.Tensor, kind: str) -> np.ndarray:
    """Rows of queries and keys of a Llama as llama.cpp rotates them: pairs beside each other, not half a head apart
    (convert_hf_to_gguf.py, LlamaModel.permute)."""
    value = p.detach().numpy()
    heads = {"q_proj": HEADS, "k_proj": SHARED}.get(name.split(".")[-2])
    if kind != "llama" or heads is None:
        return value
    halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(value.shape))


def hub_tokenizer() -> Tokenizer:
    """The same vocabulary as SmolLM2's tokenizer.json on the hub has it: digits one by one, then GPT-2's split."""
    made = Tokenizer(models.BPE({token: index for index, token in enumerate(TOKENS)}, MERGES))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(SPECIAL)
    return made
