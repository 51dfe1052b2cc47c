"""The sources of a corpus that is to be made."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tinychat.config.schema import Config
from tinychat.data.documents.sources import TextSource, text_source
from tinychat.errors import UserError


@dataclass(frozen=True)
class Source:
    """Where documents come from; what becomes of them is said by CorpusRules.rules_of its name."""

    name: str
    texts: TextSource
    weight: float | None


def corpus_sources(config: Config) -> dict[str, Source]:
    """Those of stage.sources, else the training documents of data=; found, not yet read. None of them are held out:
    that is done where the corpus is read. Raises UserError."""
    stage, data = config.stage, config.data
    settings = {
        name: replace(
            data,
            name=name,
            source=one.source,
            path=one.path,
            text_column=one.text_column or data.text_column,
            max_docs=one.max_docs,
            options=one.options,
            val_path=None,
            lessons=0.0,
        )
        for name, one in stage.sources.items()
    } or {data.name: data}
    found: dict[str, Source] = {}
    for name, own in settings.items():
        try:
            texts = text_source(own, "train", whole=True)
        except UserError as error:
            if not stage.sources:
                raise
            said, key = str(error), f"stage.sources.{name}"
            raise UserError(f"{key}.{said[5:]}" if said.startswith("data.") else f"{key}: {said}") from None
        one = stage.sources.get(name)
        found[name] = Source(name, texts, one.weight if one else None)
    return found
