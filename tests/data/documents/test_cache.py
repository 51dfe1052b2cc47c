from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tinychat.config.schema import DataConfig
from tinychat.data.documents import tokens as cache
from tinychat.data.documents.sources import TextSource, text_source
from tinychat.data.documents.tokens import token_cache
from tinychat.data.files import caches
from tinychat.errors import UserError
from tinychat.runtime import manifest

EOS = "<|endoftext|>"
TEXTS = ["A cat sat.", "二つ目 🐈", f"It says {EOS} here.", "line\n" * 30]


def make_tokenizer(vocab_size: int = 300) -> PreTrainedTokenizerFast:
    """A small byte-level BPE."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOS, "<|pad|>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(["the cat sat on the mat and the cat was fat"] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=EOS, pad_token="<|pad|>")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def write(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    return path


def config(path: Path, **changes: Any) -> DataConfig:
    values = {
        "name": "own",
        "source": "text",
        "path": str(path),
        "val_path": str(path),
        "val_fraction": 0.1,
        "text_column": "text",
        "max_docs": None,
        "lessons": 0.0,
        "max_val_docs": None,
        "seed": 1,
    }
    return DataConfig(**{**values, **changes})


@pytest.fixture
def source(tmp_path: Path) -> TextSource:
    return text_source(config(write(tmp_path / "a.jsonl", TEXTS)), "train")


def documents_of(tokens: np.ndarray, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    ends = np.flatnonzero(tokens == tokenizer.eos_token_id)
    assert ends[-1] == len(tokens) - 1
    return [tokenizer.decode(part[:-1]) for part in np.split(tokens, ends[:-1] + 1)]


def only_whole_caches(folder: Path) -> bool:
    return all(path.suffix == ".lock" or (path / "meta.json").exists() for path in (folder / "tokens").iterdir())


def test_tokens_are_the_documents_with_an_end_after_each(
    source: TextSource, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    made = token_cache(source, tokenizer, tmp_path / "cache", progress=False)
    # the end-of-text that a text spells out is letters like any other: no fifth document
    assert documents_of(made.tokens, tokenizer) == TEXTS
    assert made.tokens.dtype == np.uint16
    assert made.n_docs == len(TEXTS)
    assert made.n_tokens == len(made.tokens)
    assert made.n_bytes == sum(len(text.encode()) for text in TEXTS)
    assert made.fingerprint == source.fingerprint()
    assert only_whole_caches(tmp_path / "cache")
    assert f"4 documents, {made.n_tokens:,} tokens" in made.describe()
    with pytest.raises(ValueError, match="read-only"):
        made.tokens[0] = 1


def test_chunks_and_parts_change_nothing(
    source: TextSource, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = token_cache(source, tokenizer, tmp_path / "one", progress=False)
    monkeypatch.setattr(cache, "CHUNK", 7)
    chunked = token_cache(source, tokenizer, tmp_path / "two", progress=False)
    assert np.array_equal(whole.tokens, chunked.tokens)
    monkeypatch.setattr(cache, "LONGEST", 12)
    parts = token_cache(source, tokenizer, tmp_path / "three", progress=False)
    assert documents_of(parts.tokens, tokenizer) == TEXTS
    assert (parts.n_docs, parts.n_bytes) == (whole.n_docs, whole.n_bytes)


def test_wide_vocabulary_is_uint32(source: TextSource, tmp_path: Path) -> None:
    wide = make_tokenizer()
    wide.add_tokens([f"<new{i}>" for i in range(1 << 16)])
    made = token_cache(source, wide, tmp_path / "cache", progress=False)
    assert made.tokens.dtype == np.uint32
    assert documents_of(made.tokens, wide) == TEXTS


def test_made_once_then_loaded(
    source: TextSource, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = token_cache(source, tokenizer, tmp_path / "cache", progress=False)
    monkeypatch.setattr(cache, "encode_documents", lambda *args: pytest.fail("tokenized again"))
    second = token_cache(source, tokenizer, tmp_path / "cache", progress=False)
    assert second.path == first.path
    assert np.array_equal(second.tokens, first.tokens)


def test_made_again_when_text_tokenizer_or_settings_change(
    source: TextSource, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, path = tmp_path / "cache", tmp_path / "a.jsonl"

    def made(data: DataConfig, split: Any = "train", using: PreTrainedTokenizerFast = tokenizer) -> Path:
        return token_cache(text_source(data, split), using, folder, progress=False).path

    paths = [token_cache(source, tokenizer, folder, progress=False).path]
    assert made(config(path)) == paths[0]
    paths += [
        made(config(path), "validation"),
        made(config(path, max_docs=2)),
        made(config(path, val_path=None)),
    ]
    paths += [made(config(path, val_path=None, seed=5)), made(config(path), using=make_tokenizer(270))]
    write(path, [*TEXTS[:-1], "LINE\n" * 30])  # as long as before
    paths.append(made(config(path)))
    monkeypatch.setattr(cache, "CACHE_VERSION", 0)
    paths.append(made(config(path)))
    assert len(set(paths)) == len(paths)


@pytest.mark.parametrize(
    "damage", ["cut", "meta", "missing", "empty", "flipped", "meta flipped", "no sums", "a folder"]
)
def test_damaged_cache_is_made_again(
    source: TextSource,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    damage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = token_cache(source, tokenizer, tmp_path / "cache", progress=False)
    want = np.array(made.tokens)
    file = made.path / "tokens.bin"
    if damage == "cut":
        os.truncate(file, file.stat().st_size - 2)
    elif damage == "meta":
        (made.path / "meta.json").write_text("{")
    elif damage == "missing":
        file.unlink()
    elif damage == "flipped":
        flip(file)
    elif damage == "meta flipped":  # the bytes of text, of which eval/bits_per_byte is made
        meta = (made.path / "meta.json").read_text()
        assert f'"n_bytes": {made.n_bytes}' in meta
        (made.path / "meta.json").write_text(
            meta.replace(f'"n_bytes": {made.n_bytes}', f'"n_bytes": {made.n_bytes + 1}')
        )
    elif damage == "no sums":  # of a version that had none
        meta = json.loads((made.path / "meta.json").read_text())
        (made.path / "meta.json").write_text(
            json.dumps({k: v for k, v in meta.items() if not k.startswith("checksum")})
        )
    elif damage == "a folder":
        (made.path / "meta.json").unlink()
        (made.path / "meta.json").mkdir()
    else:
        os.truncate(file, 0)
    again = token_cache(source, tokenizer, tmp_path / "cache", progress=False)
    assert np.array_equal(again.tokens, want)
    assert again.n_bytes == made.n_bytes
    assert ("damaged" in caplog.text) == (damage != "missing")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_checksums_may_be_left_out(
    source: TextSource, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = token_cache(source, tokenizer, tmp_path / "cache", progress=False)
    flip(made.path / "tokens.bin")
    with manifest.verifying(False):
        token_cache(source, tokenizer, tmp_path / "cache", progress=False)
    assert not caplog.text
    token_cache(source, tokenizer, tmp_path / "cache", progress=False)
    assert "damaged (tokens.bin is not as it was written) and will be made again" in caplog.text


def test_failure_in_the_middle_leaves_nothing(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jsonl", TEXTS)
    path.write_bytes(path.read_bytes() + b"\xff\n")
    monkeypatch.setattr(cache, "CHUNK", 5)  # some is written before the error
    with pytest.raises(UserError, match="line 5, byte"):
        token_cache(text_source(config(path), "train"), tokenizer, tmp_path / "cache", progress=False)
    assert [item.suffix for item in (tmp_path / "cache" / "tokens").iterdir()] == [".lock"]


def test_full_disk(
    source: TextSource, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(caches.os, "fsync", full)
    with pytest.raises(UserError, match=r"paths\.cache=.*disk is full.*MB free") as caught:
        token_cache(source, tokenizer, tmp_path / "cache", progress=False)
    assert "\n" not in str(caught.value)
    assert [item.suffix for item in (tmp_path / "cache" / "tokens").iterdir()] == [".lock"]


def test_cache_folder_that_cannot_be(source: TextSource, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"paths\.cache=.*file"):
        token_cache(source, tokenizer, tmp_path / "file" / "cache", progress=False)


def test_tokenizer_without_an_end(source: TextSource, tmp_path: Path) -> None:
    endless = make_tokenizer()
    endless.eos_token = None
    with pytest.raises(UserError, match="end-of-text"):
        token_cache(source, endless, tmp_path / "cache", progress=False)


def test_progress_in_plain_lines(
    source: TextSource,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tinychat.data.files import caches

    monkeypatch.setattr(caches, "LINE_EVERY", 0.0)
    with caplog.at_level(logging.INFO, "tinychat"):
        token_cache(source, tokenizer, tmp_path / "cache", progress=True)
        lines = caplog.text
        caplog.clear()
        token_cache(source, tokenizer, tmp_path / "silent", progress=False)
    assert "a.jsonl" in lines
    assert "100%, 4 documents" in lines
    assert "M tokens, " in lines
    assert not caplog.text


# ---- several processes: each runs this file as a script, so that all use one tokenizer and one source ----


def run_beside(folder: Path, gate: str = "") -> subprocess.Popen[str]:
    """Start a process that makes or loads the cache; a gate stops it before the second document until the
    file of this name is there."""
    repository = str(Path(__file__).parents[3])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([repository, os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, __file__, str(folder), gate]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(folder: Path, pattern: str) -> Path:
    for _ in range(1_200):
        for path in folder.glob(pattern):
            return path
        time.sleep(0.1)
    raise AssertionError(f"no {pattern} came in two minutes")


@pytest.mark.slow
def test_two_processes_at_once_make_one_cache(tmp_path: Path) -> None:
    first = run_beside(tmp_path, "go")
    wait_for(tmp_path, "cache/tokens/*.tmp/tokens.bin")
    second = run_beside(tmp_path)
    assert second.stderr is not None
    assert "another process is tokenizing own-train; waiting" in second.stderr.readline()
    (tmp_path / "go").touch()
    outputs = [process.communicate(timeout=120) for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0], outputs
    made, loaded = (json.loads(out) for out, _ in outputs)
    assert (made["made"], loaded["made"]) == (True, False)
    assert made["tokens"] == loaded["tokens"]
    assert only_whole_caches(tmp_path / "cache")


@pytest.mark.slow
def test_killed_in_the_middle_then_made(tmp_path: Path) -> None:
    killed = run_beside(tmp_path, "never")
    half = wait_for(tmp_path, "cache/tokens/*.tmp/tokens.bin").parent
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    assert half.exists()
    process = run_beside(tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["made"]
    assert only_whole_caches(tmp_path / "cache")


def _main(folder: Path, gate: str) -> None:
    path = folder / "a.jsonl"
    if not path.exists():
        write(path, TEXTS)
    source = text_source(config(path), "train")
    read, made = source.read, []

    def gated(meter: Any) -> Iterator[str]:
        made.append(True)
        for number, text in enumerate(read(meter)):
            while gate and number and not (folder / gate).exists():
                time.sleep(0.05)
            yield text

    source.read = gated
    tokens = token_cache(source, make_tokenizer(), folder / "cache", progress=False).tokens
    print(json.dumps({"made": bool(made), "tokens": tokens.tolist()}))


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2])
