"""A corpus is what its documents and rules say, however it was made: with helpers, in small chunks, killed in between;
and it is read as it was written, or not at all."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.config.test_compose import composed
from tests.data.corpus.test_filters import ZH
from tinychat.config import data_checks
from tinychat.config.schema import Config
from tinychat.data.corpus.chunks import open_corpus
from tinychat.data.corpus.collect import EXAMPLES, Collector
from tinychat.data.corpus.reading import CorpusSource
from tinychat.data.corpus.sources import corpus_sources
from tinychat.data.documents.sources import text_source
from tinychat.data.look import SPLITS
from tinychat.errors import UserError

QUICK = ("stage.language.identify=false", "stage.workers=0")


def story(rng: random.Random) -> str:
    """120 words in six sentences, no two stories alike."""
    words = ["the", "and", *("".join(rng.choices("bcdfgaeiou", k=5)) for _ in range(18))]
    return " ".join(" ".join(rng.sample(words, 19)) + f" n{rng.randrange(10**9)}." for _ in range(6))


def write(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources: stories of which some come twice or nearly so, among junk; and Chinese ones."""
    folder, rng = tmp_path_factory.mktemp("texts"), random.Random(0)
    stories = [story(rng) for _ in range(60)]
    texts = [*stories, *stories[:5], *(text.replace("n", "changed n", 1) for text in stories[10:16])]
    texts += ["too short.", "{} {} {}"] * 4
    rng.shuffle(texts)
    write(folder / "web.jsonl", texts)
    shuffled = ["".join(rng.sample(ZH, len(ZH))) for _ in range(3)]
    write(folder / "zh.jsonl", [ZH, *shuffled, stories[0]])
    return folder


def config_of(folder: Path, *settings: str) -> Config:
    sources = ", ".join(f"{name}: {{source: text, path: {folder}/{name}.jsonl}}" for name in ("web", "zh"))
    return composed("stage=corpus", f"+stage.sources={{{sources}}}", *QUICK, *settings)


def make(run_dir: Path, config: Config, stop_after: int | None = None) -> tuple[Collector, bool]:
    """stop_after: batches after which it is told to stop."""
    asked = iter(range(10**6))
    run_dir.mkdir(exist_ok=True)
    collector = Collector(run_dir, config.stage, corpus_sources(config), None, ["identity"], None)
    return collector, collector.run(lambda: stop_after is not None and next(asked) >= stop_after)


def content(run_dir: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (run_dir / "corpus").iterdir()}


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Collector]:
    run_dir = tmp_path_factory.mktemp("made") / "run"
    collector, whole = make(run_dir, config_of(folder, "stage.chunk_mb=0.005"))
    assert whole
    return run_dir, collector


def test_what_is_left_out_is_counted_with_examples(made: tuple[Path, Collector]) -> None:
    found = made[1].found
    web, zh = found.tallies["web"], found.tallies["zh"]
    assert web.left_out["exact"][0] == 5 and web.left_out["near"][0] == 6
    assert web.left_out["c4.braces"][0] == 4 and web.left_out["c4.min_sentences"][0] == 4
    assert (web.read, web.held.documents) == (79, 60)
    assert zh.left_out["exact"][0] == 1, "what an earlier source had is a duplicate"
    assert all(len(examples) <= EXAMPLES for examples in found.examples.values())
    near = next(why for _, _, why, _ in found.examples["near"])
    assert near.endswith(tuple("0123456789")) and "% like web:" in near
    assert len(web.held.chunks) > 2 and sum(chunk.documents for chunk in web.held.chunks) == 60


def test_helpers_change_nothing(made: tuple[Path, Collector], folder: Path, tmp_path: Path) -> None:
    assert make(tmp_path, config_of(folder, "stage.chunk_mb=0.005", "stage.workers=2"))[1]
    assert content(tmp_path) == content(made[0])


def test_stopped_anywhere_and_gone_on_with_gives_the_same_bytes(
    made: tuple[Path, Collector], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinychat.data.corpus.collect.BATCH_DOCUMENTS", 7)
    config, starts = config_of(folder, "stage.chunk_mb=0.005"), 0
    while not make(tmp_path, config, stop_after=3)[1]:
        starts += 1
        assert starts < 50
    assert starts >= 3
    assert content(tmp_path) == content(made[0])
    assert make(tmp_path, config)[1], "killed before its last lines: nothing is made again"
    assert content(tmp_path) == content(made[0])


def test_what_was_begun_with_other_rules_is_not_gone_on_with(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinychat.data.corpus.collect.BATCH_DOCUMENTS", 7)
    config = config_of(folder, "stage.chunk_mb=0.001")
    assert not make(tmp_path, config, stop_after=1)[1]
    with pytest.raises(UserError, match=r"begun with other documents or rules.*resume=never"):
        Collector(tmp_path, config.stage, corpus_sources(config), None, ["another"], None)


def test_where_nothing_is_left_the_rule_and_an_example_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"nothing is left of web: all 79 documents.*stage\.gopher\.min_words 71.*as web:\d+: "
    ):
        make(tmp_path, config_of(folder, "stage.gopher.min_words=500"))
    own = f"+stage.sources={{web: {{source: text, path: {folder}/web.jsonl, rules: {{gopher: {{min_words: 500}}}}}}}}"
    with pytest.raises(UserError, match=r"loosen stage\.sources\.web\.rules\.gopher\.min_words"):
        make(tmp_path / "own", composed("stage=corpus", own, *QUICK))


def test_each_source_is_cleaned_by_its_own_rules_also_by_helpers(folder: Path, tmp_path: Path) -> None:
    """And nothing of data= is asked for, where stage.sources are given."""
    web = "{gopher: {use: false}, c4: {min_sentences: 0, braces: false}, repetition: {use: false}}"
    sources = (
        f"+stage.sources={{zh: {{source: text, path: {folder}/zh.jsonl}}, "
        f"web: {{source: text, path: {folder}/web.jsonl, rules: {web}}}}}"
    )
    config = composed("stage=corpus", "data=text", "data.path=none", sources, *QUICK)
    assert not list(data_checks.problems(config))
    found = []
    for workers in (0, 2):
        collector, whole = make(tmp_path / str(workers), replace_workers(config, workers))
        assert whole
        found.append(collector.found.tallies)
    assert found[0] == found[1]
    assert found[0]["zh"].left_out == {} and found[0]["zh"].held.documents == 5
    # The junk stays, once each; what the source before it had is a duplicate here.
    assert found[0]["web"].held.documents == 61 and set(found[0]["web"].left_out) == {"exact", "near"}


def replace_workers(config: Config, workers: int) -> Config:
    return replace(config, stage=replace(config.stage, workers=workers))


def data_of(run_dir: Path, *settings: str) -> Any:
    return replace(composed("data=corpus", *settings).data, path=str(run_dir / "corpus"))


def test_a_corpus_is_read_side_by_side_with_a_hold_out_of_each_source(made: tuple[Path, Collector]) -> None:
    data = data_of(made[0], "data.val_fraction=0.2")
    parts: dict[str, dict[str, set[str]]] = {}
    for split in SPLITS:
        found = CorpusSource().parts(data, split)
        parts[split] = {name: set(source.documents()) for name, (source, _) in found.items()}
    for name, count in (("web", 60), ("zh", 4)):
        assert len(parts["train"][name]) + len(parts["validation"][name]) == count
    assert all(texts for side in parts.values() for texts in side.values())
    assert not parts["train"]["web"] & parts["validation"]["web"]
    mixed = list(text_source(data, "train").documents())
    assert set(mixed) == parts["train"]["web"] | parts["train"]["zh"]
    places = [place for place, text in enumerate(mixed) if text in parts["train"]["zh"]]
    assert places[0] < 20 and places[-1] > len(mixed) / 2, "the small source is spread over the large one"
    other = text_source(replace(data, weights={"web": 1.0, "zh": 0.0}), "train")
    assert set(other.documents()) == parts["train"]["web"]
    assert other.fingerprint() != text_source(data, "train").fingerprint()


def test_weights_that_make_no_mixture_are_refused(made: tuple[Path, Collector]) -> None:
    for weights, says in (
        ({"web": 1.0}, "data.weights: zh has no weight.*0 leaves a source out"),
        ({"web": 1.0, "zh": 1.0, "books": 1.0}, r"data\.weights\.books: no such source.*it has web, zh"),
        ({"web": 0.0, "zh": 0.0}, "the weights sum to 0"),
        ({"web": -1.0, "zh": 2.0}, "none may be negative"),
    ):
        with pytest.raises(UserError, match=says):
            CorpusSource().parts(replace(data_of(made[0]), weights=weights), "train")


def test_a_chunk_that_was_changed_is_named(made: tuple[Path, Collector], tmp_path: Path) -> None:
    damaged = tmp_path / "corpus"
    damaged.mkdir()
    for path in (made[0] / "corpus").iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    chunk = damaged / "web-00001.parquet"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    with pytest.raises(UserError, match=r"web-00001\.parquet is not as it was written.*stage=corpus"):
        list(text_source(data_of(tmp_path), "train").documents())
    chunk.write_bytes(whole[:-20])
    with pytest.raises(UserError, match=r"web-00001\.parquet has \d+ bytes, \d+ were written"):
        open_corpus(str(damaged))
    chunk.unlink()
    with pytest.raises(UserError, match=r"web-00001\.parquet is missing"):
        open_corpus(str(damaged))
    with pytest.raises(UserError, match=r"no checkpoint|no corpus"):
        open_corpus(str(tmp_path))
