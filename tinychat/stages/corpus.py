"""stage=corpus: tokenize both splits into the cache and report sizes, so that a training job later starts at once."""

from __future__ import annotations

from tinychat.config.schema import Config
from tinychat.runs.context import Context, StageResult
from tinychat.stages.common import get_tokenizer, get_tokens


def run(config: Config, context: Context) -> StageResult:
    tokenizer = get_tokenizer(config, context)
    caches = {split: get_tokens(config.data, split, tokenizer, config, context) for split in ("train", "validation")}
    train = caches["train"]
    metrics = {
        "data/tokens": float(train.n_tokens),
        "data/documents": float(train.n_docs),
        "data/bytes": float(train.n_bytes),
    }
    context.log(0, metrics)
    facts = {f"{split} cache": str(cache.path) for split, cache in caches.items()}
    return StageResult(metrics, "data/tokens", facts=facts)
