"""A GGUF file holds the model bit for bit, the tokenizer that splits alike, and the template; what llama.cpp would
compute otherwise is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from tokenizers import pre_tokenizers

from tests.chat_models import babbler
from tests.reward_models import reward_model, write
from tinychat.errors import UserError
from tinychat.export.__main__ import run
from tinychat.export.gguf import TYPES, plain_template, shape_of, split_name
from tinychat.export.modelfile import go_template
from tinychat.models.checkpoints import load_model
from tinychat.models.gguf import convert
from tinychat.text.chat_template import set_template
from tinychat.text.tokenizer import load_saved_tokenizer, vocabulary_size

gguf = pytest.importorskip("gguf")
IDS = torch.randint(5, 300, (2, 9), generator=torch.Generator().manual_seed(1))
TEXTS = ["the cat  and 123 dogs", "it's 从前 🎉\n\n <|im_end|> on the mat", "  a"]
CHATS = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ],
]


def exported(path: Path, out: Path, kind: str = "f32") -> Path:
    run([str(path), "--to", "gguf", "--type", kind, "--out", str(out)])
    (file,) = out.glob("*.gguf")
    return file


@pytest.mark.parametrize("arch", ["gpt2", "llama", "qwen3"])
def test_read_back_it_is_the_model(arch: str, tmp_path: Path) -> None:
    path = write(babbler(arch, context=64)[0], tmp_path / arch, "chatml")
    convert(exported(path, tmp_path / "out"), tmp_path / "back")
    before, after = load_model(str(path)), load_model(str(tmp_path / "back"))
    with torch.no_grad():
        ours, theirs = before(IDS).logits, after(IDS).logits
    tokenizer, other = load_saved_tokenizer(str(path)), load_saved_tokenizer(str(tmp_path / "back"))
    rows = vocabulary_size(tokenizer)
    assert rows == theirs.shape[-1] < ours.shape[-1], "rows that no token has are left out"
    torch.testing.assert_close(theirs, ours[..., :rows], rtol=1e-5, atol=1e-5)
    read = dict(after.named_parameters())
    for name, weight in before.named_parameters():
        assert torch.equal(read.pop(name), weight[:rows] if weight.shape[0] == ours.shape[-1] else weight), name
    assert not read
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == other(text)["input_ids"]
    ends = [(one.bos_token_id, one.eos_token_id, one.pad_token_id) for one in (tokenizer, other)]
    assert ends[0] == ends[1]
    for chat in CHATS:
        assert other.apply_chat_template(chat) == tokenizer.apply_chat_template(chat)


def test_types_and_what_stays_in_fp32(tmp_path: Path) -> None:
    path, found = write(babbler("gpt2", context=64)[0], tmp_path / "gpt2"), {}
    for kind in TYPES:
        reader = gguf.GGUFReader(exported(path, tmp_path / kind, kind))
        found[kind] = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert set(found["f32"].values()) == {"F32"}
    matrix, narrow = "blk.0.attn_qkv.weight", "blk.0.ffn_down.weight"  # rows of 32, and of 48
    assert [found[kind][matrix] for kind in TYPES] == ["F32", "F16", "Q8_0"]
    assert found["q8_0"][narrow] == "F16", "rows that do not part into blocks"
    assert found["q8_0"]["position_embd.weight"] == found["f16"]["blk.0.attn_norm.weight"] == "F32"


def test_special_tokens_and_the_beginning_of_a_text(tmp_path: Path) -> None:
    def fields(template: str | None) -> Any:
        path = write(babbler(context=64)[0], tmp_path / str(template), template)
        reader = gguf.GGUFReader(exported(path, tmp_path / f"{template}-out"))
        return lambda key: reader.fields[f"tokenizer.ggml.{key}"].contents()

    chat, text = fields("chatml"), fields(None)
    tokens, kinds = chat("tokens"), chat("token_type")
    special = {token: index for index, token in enumerate(tokens) if kinds[index] == 3}
    assert special == {"<|endoftext|>": 0, "<|pad|>": 1, "<|im_start|>": 2, "<|im_end|>": 3}
    assert (chat("pre"), chat("eos_token_id"), chat("eot_token_id"), chat("padding_token_id")) == ("gpt-2", 0, 3, 1)
    assert not chat("add_bos_token"), "the template writes what a conversation begins with"
    assert text("add_bos_token"), "the end of text stands before a text in training"


@pytest.mark.parametrize("template", ["chatml", "instruct"])
def test_templates_of_other_engines_write_the_same(template: str) -> None:
    """llama.cpp's without the marks of replies, and Ollama's, which is Go's; here its few words are put into Jinja."""
    tokenizer = babbler()[1]
    set_template(tokenizer, template)
    plain = plain_template(tokenizer)
    assert "generation" not in plain.replace("add_generation_prompt", "")
    go = go_template(tokenizer)
    assert go is not None
    ends: list[str] = []

    def word(match: re.Match[str]) -> str:
        said = match[1].strip()
        if said == "end":
            return "{% end" + ends.pop() + " %}"
        if said.startswith("range"):
            ends.append("for")
            return "{% for one in messages %}"
        if equal := re.fullmatch(r"(else )?if eq \.Role (\".*\")", said):
            if not equal[1]:
                ends.append("if")
            return "{% " + ("elif" if equal[1] else "if") + f" one.role == {equal[2]} " + "%}"
        return "{% else %}" if said == "else" else "{{ one." + said.removeprefix(".").lower() + " }}"

    as_jinja = re.sub(r"\{\{(.*?)\}\}", word, go)
    for chat in CHATS:
        expected = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert jinja2.Template(as_jinja, keep_trailing_newline=True).render(messages=chat) == expected
        tokenizer.chat_template, before = plain, tokenizer.chat_template
        assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == expected
        tokenizer.chat_template = before


def test_the_modelfile_names_file_context_and_ends(tmp_path: Path) -> None:
    file = exported(write(babbler(context=64)[0], tmp_path / "chat", "chatml"), tmp_path / "out", "f16")
    said = (file.parent / "Modelfile").read_text()
    assert file.name == "chat-f16.gguf"
    for line in (f"FROM ./{file.name}", "PARAMETER num_ctx 64", 'PARAMETER stop "<|im_end|>"', "PARAMETER top_k 0"):
        assert line in said.splitlines()


def test_a_shape_that_llama_cpp_computes_otherwise_is_refused() -> None:
    config = babbler()[0].config
    config.rope_parameters = {"rope_type": "yarn", "rope_theta": 1.0}
    with pytest.raises(UserError, match="no rotary positions of type yarn; use --to hf"):
        shape_of(config)
    config.model_type = "mamba"
    with pytest.raises(UserError, match="'mamba' is none of gpt2, llama, qwen3"):
        shape_of(config)
    config = babbler("gpt2")[0].config
    config.activation_function = "relu"
    with pytest.raises(UserError, match="activation_function=relu"):
        shape_of(config)


def test_a_tokenizer_without_a_name_for_its_split_is_refused() -> None:
    tokenizer = babbler()[1]
    assert split_name(tokenizer) == "gpt-2"
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    assert split_name(tokenizer) == "smollm"
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(UserError, match="no name for how this tokenizer splits text"):
        split_name(tokenizer)


def test_a_number_too_large_for_f16_is_refused(tmp_path: Path) -> None:
    model = babbler(context=64)[0]
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    path = write(model, tmp_path / "large")
    with pytest.raises(UserError, match=r"ffn_up\.weight holds 1e\+05.*--type f32"):
        exported(path, tmp_path / "out", "f16")
    assert not (tmp_path / "out").exists()


def test_a_reward_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"llama\.cpp has no such classifier"):
        exported(reward_model(tmp_path / "reward"), tmp_path / "out")
