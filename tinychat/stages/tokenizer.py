"""stage=tokenizer: train a byte-level BPE on the data, save it for AutoTokenizer, report how well it fits."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace

from tinychat.config.schema import Config, DataConfig, Source
from tinychat.data.chats.sources import chat_source
from tinychat.data.documents.sources import text_source
from tinychat.errors import UserError
from tinychat.runs import folders, lineage
from tinychat.runs.context import Context, StageResult
from tinychat.runtime import manifest
from tinychat.text.report import tokenizer_report
from tinychat.text.tokenizer import train_bpe

log = logging.getLogger("tinychat")


def run(config: Config, context: Context) -> StageResult:
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
    origin = lineage.describe(context.run_dir, context.parents, {"train": {"fingerprint": source.fingerprint()}})
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
    if data.source is not Source.tinyworld or data.path is not None:
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
