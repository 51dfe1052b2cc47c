"""llama.cpp itself loads the files: the same tokens, logits within the format's precision, the same greedy text, and
the chat template in its own engine. By xllamacpp, whose wheel brings llama.cpp built, and by llama-cpp-python, which
builds it."""

from __future__ import annotations

import gc
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.chat_models import babbler
from tests.export.test_gguf_file import CHATS, TEXTS, exported
from tests.reward_models import write
from tinychat.models.checkpoints import load_model
from tinychat.text.tokenizer import load_saved_tokenizer, vocabulary_size

pytestmark = pytest.mark.export
IDS = [9, 260, 17, 280, 45, 266]
NEW = 12
# Largest difference of a log-probability, of models with random weights and large logits; of f32 rounding alone, and
# of GPT-2 what its GELU adds, which llama.cpp looks up in f16.
WITHIN = {"f32": 1e-4, "f16": 0.06, "q8_0": 1.0}
GPT2_WITHIN = 1e-2
LIKELY = -12.0  # log-probabilities below are left out: the server's own numbers are rounded there


class Server:
    """llama.cpp on one file, asked over HTTP on the loopback interface."""

    def __init__(self, file: Path) -> None:
        engine = pytest.importorskip("xllamacpp")
        params = engine.CommonParams()
        params.model.path = str(file)
        params.n_ctx, params.n_parallel, params.n_gpu_layers = 64, 1, 0
        params.warmup, params.fit_params, params.verbosity = False, False, -1
        params.cache_type_k = params.cache_type_v = engine.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = engine.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._server = engine.Server(params)

    def ask(self, path: str, **said: Any) -> Any:
        request = urllib.request.Request(
            self._server.listening_address + path, json.dumps(said).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def greedy(self, prompt: list[int], new: int) -> list[int]:
        """The tokens of a greedy continuation."""
        said = self.ask("/completion", prompt=prompt, n_predict=new, temperature=0, return_tokens=True)
        return said["tokens"]

    def logprobs(self, prompt: list[int], rows: int) -> torch.Tensor | None:
        """(rows,) of the next token; None where the likeliest is a part of a character, of which the server tells
        nothing before the rest has come."""
        said = self.ask("/completion", prompt=prompt, n_predict=1, temperature=0, n_probs=rows, cache_prompt=False)
        if "completion_probabilities" not in said:
            return None
        found = torch.full((rows,), float("-inf"))
        for one in said["completion_probabilities"][0]["top_logprobs"]:
            found[one["id"]] = one["logprob"]
        return found


@pytest.fixture(params=["gpt2", "llama", "qwen3"])
def checkpoint(request: Any, tmp_path: Path) -> Iterator[Path]:
    yield write(babbler(request.param, context=64)[0], tmp_path / request.param, "chatml")
    gc.collect()


@torch.no_grad()
def greedy(model: Any, rows: int) -> tuple[list[int], torch.Tensor]:
    """NEW tokens after IDS, and the log-probabilities (NEW, rows) of each of them's place."""
    ids, logprobs = list(IDS), []
    for _ in range(NEW):
        logprobs.append(F.log_softmax(model(input_ids=torch.tensor([ids])).logits[0, -1, :rows], -1))
        ids.append(int(logprobs[-1].argmax()))
    return ids[len(IDS) :], torch.stack(logprobs)


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0"])
def test_logits_are_within_the_formats_precision_and_greedy_text_is_equal(
    checkpoint: Path, kind: str, tmp_path: Path
) -> None:
    server = Server(exported(checkpoint, tmp_path / "out", kind))
    rows = vocabulary_size(load_saved_tokenizer(str(checkpoint)))
    tokens, logprobs = greedy(load_model(str(checkpoint)), rows)
    within = max(WITHIN[kind], GPT2_WITHIN if checkpoint.name == "gpt2" else 0.0)
    compared = 0
    for place in range(NEW):
        found = server.logprobs(IDS + tokens[:place], rows)
        if found is not None:
            likely = logprobs[place] > LIKELY
            assert (found - logprobs[place])[likely].abs().max() < within, (place, kind)
            compared += 1
    assert compared > NEW // 2
    if kind != "q8_0":
        assert server.greedy(IDS, NEW) == tokens


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0"])
def test_llama_cpp_python_gives_the_same_logits_and_text(checkpoint: Path, kind: str, tmp_path: Path) -> None:
    engine = pytest.importorskip("llama_cpp")
    file = exported(checkpoint, tmp_path / "out", kind)
    f32 = engine.GGML_TYPE_F32
    model = engine.Llama(str(file), n_ctx=64, logits_all=True, flash_attn=False, type_k=f32, type_v=f32, verbose=False)
    rows = vocabulary_size(load_saved_tokenizer(str(checkpoint)))
    tokens, logprobs = greedy(load_model(str(checkpoint)), rows)
    model.eval(IDS + tokens)
    found = F.log_softmax(torch.from_numpy(model.scores[len(IDS) - 1 :][:NEW, :rows].copy()), -1)
    within = max(WITHIN[kind], GPT2_WITHIN if checkpoint.name == "gpt2" else 0.0)
    assert (found - logprobs)[logprobs > LIKELY].abs().max() < within
    model.reset()
    said = [token for _, token in zip(range(NEW), model.generate(IDS, temp=0.0), strict=False)]
    if kind != "q8_0":
        assert said == tokens


def test_tokens_and_templates_are_the_tokenizers(checkpoint: Path, tmp_path: Path) -> None:
    server, tokenizer = Server(exported(checkpoint, tmp_path / "out")), load_saved_tokenizer(str(checkpoint))
    for text in TEXTS:
        assert (
            server.ask("/tokenize", content=text, add_special=False, parse_special=True)["tokens"]
            == (tokenizer(text)["input_ids"])
        )
    for chat in CHATS:
        assert server.ask("/apply-template", messages=chat)["prompt"] == tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True
        )


def test_a_pretrained_model_is_given_the_beginning_of_a_text(tmp_path: Path) -> None:
    path = write(babbler(context=64)[0], tmp_path / "text", None)
    server = Server(exported(path, tmp_path / "out"))
    tokens = server.ask("/tokenize", content="the cat", add_special=True)["tokens"]
    tokenizer = load_saved_tokenizer(str(path))
    assert tokens == [tokenizer.eos_token_id, *tokenizer("the cat")["input_ids"]]
