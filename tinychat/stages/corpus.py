"""stage=corpus: documents of several sources, filtered, deduplicated and decontaminated, as parquet chunks; and what
became of the rest, told with examples."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinychat.config.corpus_stage import CorpusRules
from tinychat.config.schema import Config
from tinychat.data.corpus import evaluation_sets
from tinychat.data.corpus.cleaning import check_languages
from tinychat.data.corpus.collect import Collector, Found, totals
from tinychat.data.corpus.sources import Source, corpus_sources
from tinychat.data.files.splits import hash_file
from tinychat.runs import folders, parents
from tinychat.runtime import user_code
from tinychat.runtime.run_files import at_home
from tinychat.stages import Context, StageResult
from tinychat.stages.common import write_table
from tinychat.text.tokenizer import encode_documents, load_tokenizer, tokenizer_fingerprint

log = logging.getLogger("tinychat")
REPORT = "corpus_report.json"
NOT_DECIDING = ("name", "workers")  # of the stage's settings: they change nothing in what is kept


def run(config: Config, context: Context) -> StageResult:
    stage, cache = config.stage, Path(config.paths.cache)
    check_languages(stage)
    sources = corpus_sources(config)
    tokenizer = counting_tokenizer(config, context)
    fingerprints = {name: source.texts.fingerprint(cache) for name, source in sources.items()}
    contamination = evaluation_sets.contamination(stage.decontaminate, config.data)
    count: Callable[[list[str]], int] | None = None
    if tokenizer is not None:
        count = lambda texts: sum(map(len, encode_documents(tokenizer, texts)))  # noqa: E731
    identity = [
        {key: value for key, value in asdict(stage).items() if key not in NOT_DECIDING},
        fingerprints,
        evaluation_sets.fingerprints(stage.decontaminate, config.data, cache),
        tokenizer_fingerprint(tokenizer) if tokenizer is not None else None,
        [
            [
                hash_file(at_home(rules.blocklist), None) if rules.blocklist else None,
                [hash_file(path, None) for path in user_code.sources(rules.function)] if rules.function else None,
            ]
            for rules in map(stage.rules_of, sources)
        ],
    ]
    collector = Collector(context.run_dir, stage, sources, contamination, _plain(identity), count)
    origin = parents.describe(
        context.run_dir, context.parents, {name: {"fingerprint": value} for name, value in fingerprints.items()}
    )
    folders.write_text_atomic(context.run_dir / folders.LINEAGE, json.dumps(origin, indent=1))
    context.stop.patient = True
    if not collector.run(context.should_stop):
        return StageResult(stopped=True)
    found = collector.found
    write_report(context, stage, sources, found, tokenizer is not None)
    metrics = metrics_of(found)
    if collector.speed:
        metrics["perf/text_mb_per_s"] = collector.speed
    context.log(0, metrics)
    collector.tidy()
    counted = "tokens" if tokenizer is not None else "bytes and characters (tokens: tokenizer=gpt2 or tokenizer.path=)"
    return StageResult(metrics, "data/documents", collector.folder, facts={"counted": counted})


def _plain(value: Any) -> Any:
    """As JSON has it: keys are texts, enums their words."""
    return json.loads(json.dumps(value, default=lambda one: getattr(one, "value", str(one))))


def counting_tokenizer(config: Config, context: Context) -> Any:
    """The tokenizer that counts tokens; None where the settings name none: the one of the experiment is trained on the
    corpus."""
    if config.tokenizer.kind.value == "bpe" and not config.tokenizer.path:
        return None
    return load_tokenizer(config.tokenizer, context.parents["tokenizer"])


def metrics_of(found: Found) -> dict[str, float]:
    held = [tally.held for tally in found.tallies.values()]
    read = sum(tally.read for tally in found.tallies.values())
    documents = sum(one.documents for one in held)
    metrics = {
        "data/documents": float(documents),
        "data/bytes": float(sum(one.bytes for one in held)),
        "data/kept": documents / max(1, read),
    }
    if all(one.tokens is not None for one in held):
        metrics["data/tokens"] = float(sum(one.tokens or 0 for one in held))
    return metrics


def own_rules(stage: CorpusRules, source: str) -> dict[str, Any]:
    """The rules of a source that are not the stage's: `gopher.min_words` -> 5."""
    common, own = (_plain(asdict(stage.rules_of(name))) for name in ("", source))
    changed: dict[str, Any] = {}
    for rule, value in own.items():
        if isinstance(value, dict):
            changed |= {f"{rule}.{key}": one for key, one in value.items() if one != common[rule][key]}
        elif value != common[rule]:
            changed[rule] = value
    return changed


def write_report(context: Context, stage: CorpusRules, sources: dict[str, Source], found: Found, counted: bool) -> None:
    """The run's corpus_report.json and tables: what remains of each source and which rules were its own, what was left
    out by which rule, with examples, and what was changed in what remains. The log has the numbers of both."""
    documents, sizes = totals(found)
    remains = [
        {
            "source": name,
            "documents read": tally.read,
            "kept": tally.held.documents,
            "share": round(tally.held.documents / max(1, tally.read), 4),
            "bytes": tally.held.bytes,
            "characters": tally.held.characters,
            **({"tokens": tally.held.tokens} if counted else {}),
            "weight": tally.held.weight,
            "languages": tally.held.languages,
            "rules of its own": own_rules(stage, name),
        }
        for name, tally in found.tallies.items()
    ]
    read = sum(tally.read for tally in found.tallies.values())
    left_out = [
        {
            "rule": f"stage.{rule}",
            "documents": count,
            "share": round(count / max(1, read), 4),
            "bytes": sizes[rule],
            "by source": {
                name: tally.left_out[rule][0] for name, tally in found.tallies.items() if rule in tally.left_out
            },
            "examples": [
                {"id": place, "why": why, "text": text} for _, place, why, text in found.examples.get(rule, ())
            ],
        }
        for rule, count in documents.most_common()
    ]
    changed: dict[str, list[int]] = {}
    for tally in found.tallies.values():
        for what, (times, where) in tally.taken_out.items():
            count = changed.setdefault(what, [0, 0])
            count[0] += times
            count[1] += where
    content = {
        "remains": remains,
        "left out": left_out,
        "changed": {what: {"times": times, "documents": where} for what, (times, where) in sorted(changed.items())},
        "read from": {name: source.texts.description for name, source in sources.items()},
    }
    folders.write_text_atomic(context.run_dir / REPORT, json.dumps(content, indent=1, ensure_ascii=False))
    tell(context, content)


def tell(context: Context, content: dict[str, Any]) -> None:
    """The report's content as tables, and in the log."""
    columns = [key for key in content["remains"][0] if key not in ("languages", "rules of its own")]
    rows = [
        [
            *(one[key] for key in columns),
            _listed(one["languages"]),
            ", ".join(
                f"{rule}={json.dumps(value, ensure_ascii=False)}" for rule, value in one["rules of its own"].items()
            ),
        ]
        for one in content["remains"]
    ]
    write_table(context, "1_remains", "What remains", [*columns, "languages", "rules of its own"], rows)
    rows = [
        [*(one[key] for key in ("rule", "documents", "share", "bytes")), _listed(one["by source"])]
        for one in content["left out"]
    ]
    write_table(context, "2_left_out", "What was left out", ["rule", "documents", "share", "bytes", "of"], rows)
    rows = [
        [one["rule"], example["id"], example["why"], example["text"]]
        for one in content["left out"]
        for example in one["examples"]
    ]
    columns = ["rule", "document", "why", "its beginning"]
    write_table(context, "3_examples", "Examples of what was left out", columns, rows)
    rows = [[what, *count.values()] for what, count in content["changed"].items()]
    write_table(context, "4_changed", "What was changed in documents that stayed", ["what", "times", "documents"], rows)
    for one in content["remains"]:
        tokens = f", {one['tokens']:,} tokens" if "tokens" in one else ""
        log.info(
            "%s: %s of %s documents, %s bytes%s", one["source"], f"{one['kept']:,}", f"{one['documents read']:,}",
            f"{one['bytes']:,}", tokens,
        )  # fmt: skip
    for one in content["left out"]:
        log.info("left out by %s: %s (%.1f%%)", one["rule"], f"{one['documents']:,}", 100 * one["share"])


def _listed(counts: dict[str, int]) -> str:
    """The five largest: `en 12,000, zh 300`."""
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda item: -item[1])[:5])
