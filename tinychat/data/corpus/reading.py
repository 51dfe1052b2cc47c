"""data=corpus: the chunks of a corpus as documents. Each source has a hold-out of its own, and its own share in what a
model is trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tinychat.config.corpus_stage import weight_problems
from tinychat.config.schema import DataConfig
from tinychat.data.corpus.chunks import Corpus, open_corpus
from tinychat.data.documents.sources import TextSource
from tinychat.data.files.row_sources import DataSource, Found
from tinychat.data.files.splits import Split, SplitFiles, seeded_hold_out, split_files
from tinychat.errors import UserError


class CorpusSource(DataSource):
    """Chunks that stage=corpus wrote."""

    has = ("documents",)
    of_corpus = True

    def files(self, config: DataConfig, split: Split) -> SplitFiles | None:
        return split_files(replace(config, path=None), split)  # data.path is no text's

    def parts(self, config: DataConfig, split: Split) -> dict[str, tuple[TextSource, float | None]]:
        if split == "validation" and config.val_path:
            return {}
        corpus = _opened(config)
        weights = weights_of(config, corpus)
        hold_out = seeded_hold_out(config, split)
        most = config.max_docs if split == "train" else config.max_val_docs
        return {
            name: (
                TextSource(
                    name=f"{config.name}-{name}-{split}",
                    description=f"{held.documents:,} documents of {name} in {corpus.folder}",
                    size_bytes=sum((corpus.folder / chunk.file).stat().st_size for chunk in held.chunks),
                    read=partial(corpus.texts, name),
                    identify=lambda _memo_dir, name=name: corpus.fingerprint(name),  # type: ignore[misc]
                    hold_out=hold_out,
                    max_docs=most,
                ),
                weights[name],
            )
            for name, held in corpus.sources.items()
            if weights[name] != 0
        }

    def made(self, config: DataConfig, split: Split, rows: str) -> Found[Any]:
        parts, corpus = self.parts(config, split), _opened(config)
        shares = {
            name: float(corpus.sources[name].bytes if weight is None else weight) for name, (_, weight) in parts.items()
        }

        def identify(memo_dir: Path | None) -> str:
            prints = [(name, source.fingerprint(memo_dir), shares[name]) for name, (source, _) in parts.items()]
            return json.dumps(prints)

        count = sum(corpus.sources[name].documents for name in parts)
        return Found(
            f"{count:,} documents of {', '.join(parts)} in {corpus.folder}",
            lambda: interleaved({name: source for name, (source, _) in parts.items()}, shares),
            identify,
            size=sum(source.size_bytes or 0 for source, _ in parts.values()),
            count=count,
        )


def interleaved(sources: dict[str, TextSource], shares: dict[str, float]) -> Iterator[str]:
    """Every document once, those of all sources side by side: as long as each has more, their bytes are as `shares`."""
    coming = {name: source.documents() for name, source in sources.items()}
    given = dict.fromkeys(coming, 0)
    while coming:
        name = min(coming, key=lambda name: given[name] / shares[name])
        text = next(coming[name], None)
        if text is None:
            del coming[name]
            continue
        yield text
        given[name] += len(text.encode())


def weights_of(config: DataConfig, corpus: Corpus) -> dict[str, float | None]:
    """The weight of each source: data.weights, else those that the corpus was made with; None: none has one. Raises
    UserError for weights of other sources, and those of which no mixture can be made."""
    if not config.weights:
        return {name: held.weight for name, held in corpus.sources.items()}
    there = ", ".join(corpus.sources)
    if unknown := [name for name in config.weights if name not in corpus.sources]:
        raise UserError(f"data.weights.{unknown[0]}: no such source in {corpus.folder}; it has {there}")
    weights: dict[str, float | None] = {name: config.weights.get(name) for name in corpus.sources}
    for problem in weight_problems("data.weights", weights):
        raise UserError(f"{problem}; 0 leaves a source out" if "has no weight" in problem else problem)
    return weights


def _opened(config: DataConfig) -> Corpus:
    if config.path is None:
        raise UserError(f"data.path=null: data={config.name} needs a corpus: data.path=FOLDER of a run of stage=corpus")
    return open_corpus(config.path)
