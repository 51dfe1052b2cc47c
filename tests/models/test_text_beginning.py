"""Training, evaluation and generation begin a text with the same tokens, whatever a tokenizer puts before one; and ids
with holes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.data.documents.test_cache import config, write
from tests.models.test_models import tiny
from tinychat.data.documents import tokens as cache
from tinychat.data.documents.sources import text_source
from tinychat.data.documents.tokens import TokenCache, document_segments, token_cache
from tinychat.errors import UserError
from tinychat.evaluation.held_out import perplexity
from tinychat.models.build import build_model, model_vocab_size
from tinychat.models.generation.generate import continue_texts, prompt_ids
from tinychat.models.generation.sampling import SamplingOptions
from tinychat.runtime.world import World
from tinychat.text.chat_template import encode_chats, encode_prompts, set_template
from tinychat.text.tokenizer import (
    load_saved_tokenizer,
    text_beginning,
    tokenizer_fingerprint,
    train_bpe,
    vocabulary_size,
)

TEXTS = ["the cat sat on the mat", "the dog\nsat on the cat", "a mat"]
CHAT = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]
ALONE = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


def trained() -> PreTrainedTokenizerFast:
    return train_bpe(["the cat and the dog sat on the mat. " * 20], 300, progress=False)


def like_llama(folder: Path, template: str = "<s> $A") -> PreTrainedTokenizerFast:
    """<s> before a text and </s> as its end, as they come back from a folder."""
    tokenizer = trained()
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>", "<|im_start|>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=special)
    tokenizer.save_pretrained(folder)
    return load_saved_tokenizer(str(folder))


def with_holes(folder: Path) -> PreTrainedTokenizerFast:
    """Its special tokens moved to ids far beyond the number of its entries."""
    trained().save_pretrained(folder)
    state = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    for token in state["added_tokens"]:
        token["id"] += 70_000
        state["model"]["vocab"][token["content"]] = token["id"]
    (folder / "tokenizer.json").write_text(json.dumps(state), "utf-8")
    return load_saved_tokenizer(str(folder))


@pytest.fixture(params=["end of text", "<s>", "<s> and </s> around", "</s>", "two tokens"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> PreTrainedTokenizerFast:
    template = {
        "<s>": "<s> $A",
        "<s> and </s> around": "<s> $A </s>",
        "</s>": "</s> $A",
        "two tokens": "<s> <|im_start|> $A",
    }.get(request.param)
    return like_llama(tmp_path / "tokenizer", template) if template else trained()


def made(tokenizer: PreTrainedTokenizerFast, folder: Path) -> TokenCache:
    source = text_source(config(write(folder / "a.jsonl", TEXTS)), "train")
    return token_cache(source, tokenizer, folder / "cache", progress=False)


def test_a_prompt_begins_as_a_document_does(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokens = made(tokenizer, tmp_path).tokens
    stream = np.concatenate([tokens, tokens]).tolist()  # training takes it as a ring
    for text in TEXTS:
        ids = prompt_ids(tokenizer, text)
        assert ids[: len(text_beginning(tokenizer))] == text_beginning(tokenizer)
        wanted = [*ids, tokenizer.eos_token_id]
        assert any(stream[start : start + len(wanted)] == wanted for start in range(len(tokens)))
    assert prompt_ids(tokenizer, "") == text_beginning(tokenizer)


def test_what_is_put_before_a_text_stands_once_before_each_document(tmp_path: Path, monkeypatch: Any) -> None:
    tokenizer = like_llama(tmp_path / "tokenizer")
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    monkeypatch.setattr(cache, "LONGEST", 6)  # documents in parts
    tokens = made(tokenizer, tmp_path).tokens
    documents = np.split(tokens, np.flatnonzero(tokens == eos)[:-1] + 1)
    assert [tokenizer.decode(ids[1:-1]) for ids in documents] == TEXTS
    assert [ids[0] for ids in documents] == [bos] * 3
    assert np.count_nonzero(tokens == bos) == 3


def test_a_prompt_that_spells_the_beginning_has_it_once(tmp_path: Path) -> None:
    tokenizer = like_llama(tmp_path / "tokenizer")
    assert prompt_ids(tokenizer, "<s>the cat") == prompt_ids(tokenizer, "the cat")


def test_the_cache_knows_tokenizers_apart_by_what_they_put_before_a_text(tmp_path: Path) -> None:
    with_it = like_llama(tmp_path / "with")
    without = like_llama(tmp_path / "without", "$A")
    assert made(with_it, tmp_path).path != made(without, tmp_path).path
    assert tokenizer_fingerprint(with_it) != tokenizer_fingerprint(without)
    assert made(without, tmp_path).beginning == ()


def test_a_document_read_by_itself_begins_with_what_is_put_before_it(tmp_path: Path) -> None:
    tokenizer = like_llama(tmp_path / "tokenizer")
    tokens = made(tokenizer, tmp_path).tokens
    found = document_segments(torch.from_numpy(tokens.astype(np.int64))[None], text_beginning(tokenizer)[0])
    begins = tokens == tokenizer.bos_token_id
    assert np.array_equal(found["position_ids"][0].numpy() == 0, begins)
    assert found["segments"].unique().numel() == len(TEXTS)


def test_perplexity_does_not_count_what_is_put_before_a_document(tmp_path: Path) -> None:
    """A model that would be surprised by each <s> and knows all else to a third."""
    tokenizer = like_llama(tmp_path / "tokenizer")
    tokens = made(tokenizer, tmp_path)

    def nll(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        values = torch.where(targets == tokenizer.bos_token_id, 50.0, math.log(3))
        return torch.where(targets == -100, 0.0, values)

    found = perplexity(nll, tokens, 4, 2, ALONE)
    assert found["eval/loss"] == pytest.approx(math.log(3))
    assert found["eval/tokens"] == tokens.n_tokens - len(TEXTS)  # without the first <s> and the two others
    text_tokens = tokens.n_tokens - len(TEXTS)
    assert found["eval/bits_per_byte"] == pytest.approx(math.log2(3) * text_tokens / tokens.n_bytes)
    assert perplexity(nll, tokens, 4, 2, ALONE, 10)["eval/loss"] == pytest.approx(math.log(3))


@pytest.mark.parametrize("template", ["instruct", "chatml"])
def test_conversations_and_prompts_begin_alike(tokenizer: PreTrainedTokenizerFast, template: str) -> None:
    set_template(tokenizer, template)
    (chat,) = encode_chats(tokenizer, [CHAT])
    (prompt,) = encode_prompts(tokenizer, [CHAT[:1]])
    assert chat.ids[: chat.prompt_length].tolist() == prompt
    puts_one = tokenizer.bos_token == "<s>"
    assert prompt.count(tokenizer.convert_tokens_to_ids("<s>")) == puts_one if puts_one else True


def test_a_new_model_says_what_its_texts_begin_with(tmp_path: Path) -> None:
    tokenizer = like_llama(tmp_path / "tokenizer")
    size = model_vocab_size(tiny("llama"), vocabulary_size(tokenizer))
    begin = text_beginning(tokenizer)[0]
    model = build_model(tiny("llama"), size, tokenizer.pad_token_id, tokenizer.eos_token_id, begin)
    assert model.config.bos_token_id == tokenizer.bos_token_id != model.config.eos_token_id


# --- ids with holes


def test_ids_beyond_the_number_of_entries_keep_their_width_and_have_rows(tmp_path: Path) -> None:
    tokenizer = with_holes(tmp_path / "tokenizer")
    assert vocabulary_size(tokenizer) == max(tokenizer.get_vocab().values()) + 1 > 70_000 > len(tokenizer)
    tokens = made(tokenizer, tmp_path).tokens
    assert tokens.max() == tokenizer.eos_token_id > 1 << 16
    assert model_vocab_size(tiny("llama"), vocabulary_size(tokenizer)) >= 70_000


def test_a_token_that_would_share_the_id_of_another_is_refused(tmp_path: Path) -> None:
    """The library gives a new token the number of entries as its id, which is taken where ids have holes."""
    trained().save_pretrained(tmp_path)
    state = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    state["added_tokens"] = state["added_tokens"][:1]
    for token in ("<|pad|>", "<|im_start|>", "<|im_end|>"):
        del state["model"]["vocab"][token]
    (tmp_path / "tokenizer.json").write_text(json.dumps(state), "utf-8")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    del settings["pad_token"], settings["extra_special_tokens"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    with pytest.raises(
        UserError, match=r"holes, so that <\|pad\|>, which it lacks, would get id \d+, that of .*added_tokens"
    ):
        load_saved_tokenizer(str(tmp_path))


def test_only_ids_that_are_tokens_are_generated(tmp_path: Path) -> None:
    tokenizer = with_holes(tmp_path / "tokenizer")
    shape = LlamaConfig(
        vocab_size=vocabulary_size(tokenizer) + 10,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    drawn: list[int] = []
    model = LlamaForCausalLM(shape)
    generate = model.generate

    def kept(*args: Any, **options: Any) -> torch.Tensor:
        output = generate(*args, **options)
        drawn.extend(output[:, args[0].shape[1] :].flatten().tolist())
        return output

    model.generate = kept
    continue_texts(model, tokenizer, ["the"] * 4, SamplingOptions(max_new_tokens=40, seed=0))
    assert drawn
    assert set(drawn) <= set(tokenizer.get_vocab().values())
