"""stage=tokenizer: train a byte-level BPE on the data, save it for AutoTokenizer, report how well it fits."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerFast

from tinychat.config.plugins import source_of
from tinychat.config.schema import Config, DataConfig
from tinychat.data.chats.sources import chat_source
from tinychat.data.documents.sources import text_source
from tinychat.errors import UserError
from tinychat.runs import folders, parents
from tinychat.runtime import manifest
from tinychat.stages import Context, StageResult
from tinychat.text.tokenizer import decode_exactly, encode_documents, tokenizer_fingerprint, train_bpe

SAMPLES = {
    "English": "She sells 12 sea-shells; don't they cost $3.50?",
    "spaces": "  two  spaces\n\n\ttab, and a trailing space ",
    "Chinese": "从前有一只小猫，它喜欢在花园里玩。",
    "Traditional Chinese": "龍年快樂，萬事如意！「你好」",
    "emoji": "🎉 👩‍👩‍👧‍👦 🇨🇳 👍🏽",
    "mixed": "Tom说：“hello，世界” 🐱 naïve café — Привет — مرحبا",
    "special tokens as text": "<|endoftext|><|im_start|>user<|im_end|><|pad|>",
}
LONGEST = 8


@dataclass(frozen=True)
class TokenizerReport:
    """Measures of one tokenizer on some documents."""

    vocab_size: int
    fingerprint: str
    special_tokens: dict[str, int]
    documents: int
    bytes: int  # of UTF-8
    tokens: int
    bytes_per_token: float  # the higher, the shorter a text gets
    tokens_per_word: float  # words are what white space parts: says little about Chinese
    unknown_tokens: int  # 0 by construction for byte-level tokenizers
    vocabulary_used: float  # share of the entries that occur
    documents_exact: int  # documents that decode to the very same text
    samples_exact: dict[str, bool]  # the same for each of SAMPLES
    longest_tokens: list[str]  # of those that occur

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def metrics(self) -> dict[str, float]:
        """The numbers among them, under the names a tracker gets."""
        names = ("bytes_per_token", "tokens_per_word", "unknown_tokens", "vocabulary_used")
        values = {f"tokenizer/{name}": float(getattr(self, name)) for name in names}
        return values | {"tokenizer/documents_exact": self.documents_exact / max(self.documents, 1)}

    def rows(self) -> list[tuple[str, str]]:
        """(measure, value) for a table."""
        broken = [name for name, exact in self.samples_exact.items() if not exact]
        special = ", ".join(f"{token} {index}" for token, index in self.special_tokens.items())
        measured = f"{self.documents:,} documents, {self.bytes:,} bytes, {self.tokens:,} tokens"
        return [
            ("vocabulary", f"{self.vocab_size:,} entries, {self.vocabulary_used:.1%} of them in use here"),
            ("special tokens", special),
            ("measured on", measured),
            ("bytes per token", f"{self.bytes_per_token:.3f}"),
            ("tokens per word", f"{self.tokens_per_word:.3f}"),
            ("unknown tokens", f"{self.unknown_tokens:,}"),
            ("documents that decode exactly", f"{self.documents_exact:,} of {self.documents:,}"),
            ("samples that decode exactly", f"all but {', '.join(broken)}" if broken else ", ".join(SAMPLES)),
            ("longest tokens in use", " ".join(repr(token) for token in self.longest_tokens)),
        ]

    def lines(self) -> list[str]:
        """The same rows as aligned text."""
        width = max(len(name) for name, _ in self.rows())
        return [f"{name:<{width}}  {value}" for name, value in self.rows()]


def tokenizer_report(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> TokenizerReport:
    """Measure on `texts`, which the tokenizer should not have been trained on."""
    encoded = encode_documents(tokenizer, texts)
    used: Counter[int] = Counter(token for ids in encoded for token in ids)
    tokens, n_bytes = sum(used.values()), sum(len(text.encode("utf-8")) for text in texts)
    unknown = tokenizer.unk_token_id
    plain = [token for token in used if token not in tokenizer.all_special_ids]
    longest = sorted(plain, key=lambda token: (-len(tokenizer.convert_ids_to_tokens(token)), token))[:LONGEST]
    return TokenizerReport(
        vocab_size=len(tokenizer),
        fingerprint=tokenizer_fingerprint(tokenizer),
        special_tokens=dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)),
        documents=len(texts),
        bytes=n_bytes,
        tokens=tokens,
        bytes_per_token=n_bytes / max(tokens, 1),
        tokens_per_word=tokens / max(sum(len(text.split()) for text in texts), 1),
        unknown_tokens=0 if unknown is None else used[unknown],
        vocabulary_used=len(used) / len(tokenizer),
        documents_exact=sum(decode_exactly(tokenizer, ids) == text for ids, text in zip(encoded, texts, strict=True)),
        samples_exact={name: round_trips(tokenizer, sample) for name, sample in SAMPLES.items()},
        longest_tokens=[decode_exactly(tokenizer, [token]) for token in longest],
    )


def round_trips(tokenizer: PreTrainedTokenizerFast, text: str) -> bool:
    """Whether decoding its tokens gives back every character of `text`."""
    return decode_exactly(tokenizer, encode_documents(tokenizer, [text])[0]) == text


log = logging.getLogger("tinychat")


def run(config: Config, context: Context) -> StageResult:
    if not context.world.is_main:  # a launcher of several ranks, as a recipe has it for all its stages: one makes it
        return StageResult()
    source = text_source(config.data, "train")
    limit = None if config.tokenizer.train_mb is None else int(config.tokenizer.train_mb * 1e6)
    entries = config.tokenizer.vocab_size
    if entries is None:
        raise UserError("tokenizer.vocab_size=null: stage=tokenizer needs the number of entries, as 4096")
    log.info("training a BPE of %d entries on %s", entries, source.description)
    texts = itertools.chain(first_bytes(source.documents(), limit), world_conversations(config.data))
    tokenizer = train_bpe(texts, entries, progress=sys.stderr.isatty())

    folder = context.run_dir / "tokenizer"
    temporary = context.run_dir / ".saving-tokenizer"
    shutil.rmtree(temporary, ignore_errors=True)
    tokenizer.save_pretrained(temporary)
    origin = parents.describe(context.run_dir, context.parents, {"train": {"fingerprint": source.fingerprint()}})
    (temporary / folders.LINEAGE).write_text(json.dumps(origin, indent=1), encoding="utf-8")
    manifest.write_manifest(temporary, score=None)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)

    held_out = list(itertools.islice(text_source(config.data, "validation").documents(), config.stage.report_docs))
    found = tokenizer_report(tokenizer, held_out)
    for line in found.lines():
        log.info("%s", line)
    (context.run_dir / "tokenizer_report.json").write_text(json.dumps(found.to_dict(), indent=1, ensure_ascii=False))
    context.log(0, found.metrics())
    return StageResult(found.metrics(), "tokenizer/bytes_per_token", folder, facts={"vocabulary": len(tokenizer)})


def world_conversations(data: DataConfig) -> Iterator[str]:
    """Every message of the generated world's instructions, and of as many demonstrations (half of those to harmful
    requests unsafe, as preferences are), so that words which stories lack have tokens too."""
    if data.path is not None or not {"documents", "conversations"} <= set(source_of(data).has):
        return
    for share in (0.0, 1.0):
        for row in chat_source(replace(data, demonstrations=share, unsafe_demonstrations=0.5, mix={}), "train").rows():
            for message in row.messages:
                yield from (text for key, text in message.items() if key != "role" and text)


def first_bytes(texts: Iterator[str], limit: int | None) -> Iterator[str]:
    """Documents until `limit` bytes of UTF-8 have been given; None: all."""
    total = 0
    for text in texts:
        yield text
        total += len(text.encode())
        if limit is not None and total >= limit:
            return
