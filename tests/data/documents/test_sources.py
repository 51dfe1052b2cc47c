from __future__ import annotations

import dataclasses
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from tinychat.config.schema import DataConfig, register
from tinychat.data.documents import sources
from tinychat.data.documents.sources import HoldOut, cut_end, text_source
from tinychat.errors import UserError
from tinychat.runtime import hub

ROOT = Path(__file__).parents[3]
SHARED = Path(os.environ.get("TINYCHAT_SHARED_DATA", ROOT.parent / "shared" / "data"))
needs_samples = pytest.mark.skipif(
    not (SHARED / "tinystories").is_dir(), reason=f"no data samples in {SHARED} (set TINYCHAT_SHARED_DATA)"
)
TEXTS = [f"Story {i} of a cat." for i in range(400)]


def config(path: Path | str | None = None, **changes: object) -> DataConfig:
    values = {
        "name": "own",
        "source": "text",
        "path": None if path is None else str(path),
        "val_path": None,
        "val_fraction": 0.1,
        "text_column": "text",
        "max_docs": None,
        "lessons": 0.0,
        "max_val_docs": None,
        "seed": 1,
    }
    return DataConfig(**{**values, **changes})  # type: ignore[arg-type]


def write(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    return path


def both(data: DataConfig) -> tuple[list[str], list[str]]:
    return list(text_source(data, "train").documents()), list(text_source(data, "validation").documents())


def refused(data: DataConfig, split: sources.Split = "train") -> str:
    with pytest.raises(UserError) as caught:
        list(text_source(data, split).documents())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_hold_out_parts_the_documents(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", TEXTS)
    train, validation = both(config(path))
    assert sorted(train + validation) == sorted(TEXTS)
    assert 20 < len(validation) < 65  # 40 expected, standard deviation 6
    assert both(config(path)) == (train, validation)
    assert both(config(path, seed=2))[1] != validation
    larger = both(config(path, val_fraction=0.3))[1]
    assert set(validation) < set(larger)


def test_equal_documents_land_on_the_same_side(tmp_path: Path) -> None:
    train, validation = both(config(write(tmp_path / "a.jsonl", TEXTS + [f"{text}\n" for text in TEXTS])))
    assert {text.strip() for text in train}.isdisjoint(text.strip() for text in validation)


def test_growing_the_corpus_moves_no_document(tmp_path: Path) -> None:
    before = both(config(write(tmp_path / "a.jsonl", TEXTS[:200])))
    after = both(config(write(tmp_path / "a.jsonl", TEXTS)))
    assert set(before[0]) < set(after[0])
    assert set(before[1]) < set(after[1])


def test_own_split_and_val_path_need_no_hold_out(tmp_path: Path) -> None:
    write(tmp_path / "own/train.jsonl", TEXTS)
    write(tmp_path / "own/valid.jsonl", ["held out"])
    write(tmp_path / "other/test.jsonl", ["test"])
    write(tmp_path / "b.jsonl", ["elsewhere"])
    assert both(config(tmp_path / "own")) == (TEXTS, ["held out"])
    assert both(config(tmp_path / "own", val_path=str(tmp_path / "b.jsonl"))) == (TEXTS, ["elsewhere"])
    assert both(config(tmp_path / "own/train.jsonl", val_path=str(tmp_path / "own"))) == (TEXTS, ["held out"])
    assert "no training files" in refused(config(tmp_path / "other"))
    assert both(config(tmp_path / "own/valid.jsonl", val_path=str(tmp_path / "b.jsonl")))[0] == ["held out"]


def test_limits(tmp_path: Path) -> None:
    train, validation = both(config(write(tmp_path / "a.jsonl", TEXTS), max_docs=7, max_val_docs=3))
    whole_train, whole_validation = both(config(tmp_path / "a.jsonl"))
    assert (train, validation) == (whole_train[:7], whole_validation[:3])


def test_a_limit_stops_the_reading(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", TEXTS)
    path.write_bytes(path.read_bytes() + b"\xff\xff not read\n")
    assert len(list(text_source(config(path, max_docs=5), "train").documents())) == 5
    assert "line 401" in refused(config(path))


def test_description_and_size(tmp_path: Path) -> None:
    for name in ("train.jsonl", "validation.jsonl", "validation_head.txt"):
        write(tmp_path / name, TEXTS)
    source = text_source(config(tmp_path), "train")
    assert source.name == "own-train"
    assert source.size_bytes == (tmp_path / "train.jsonl").stat().st_size
    assert "train.jsonl" in source.description
    assert "left out" in source.description
    assert "validation_head.txt" in source.description


def test_fingerprint_follows_text_and_settings_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", TEXTS)
    memo = tmp_path / "cache"
    prints = {text_source(config(path), "train").fingerprint(memo)}
    moved = write(tmp_path / "elsewhere" / "b.jsonl", TEXTS)
    assert {text_source(config(moved), "train").fingerprint(memo)} == prints
    for changes in ({"seed": 2}, {"val_fraction": 0.2}, {"max_docs": 9}, {"text_column": "body"}):
        prints.add(text_source(config(path, **changes), "train").fingerprint(memo))
    prints.add(text_source(config(path), "validation").fingerprint(memo))
    write(path, [*TEXTS[:-1], TEXTS[-1].replace("cat", "dog")])  # as many bytes
    prints.add(text_source(config(path), "train").fingerprint(memo))
    assert len(prints) == 7
    # neither is used where the source has its own split
    write(tmp_path / "own/train.jsonl", TEXTS)
    write(tmp_path / "own/valid.jsonl", TEXTS)
    own = config(tmp_path / "own")
    again = dataclasses.replace(own, seed=2, val_fraction=0.3)
    assert text_source(own, "train").fingerprint() == text_source(again, "train").fingerprint()


def test_fingerprint_is_remembered_but_never_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tinychat.data.files import splits

    path, memo = write(tmp_path / "a.jsonl", TEXTS), tmp_path / "cache"
    digests = []
    digest = splits._digest
    monkeypatch.setattr(splits, "_digest", lambda file: digests.append(file.name) or digest(file))
    first = text_source(config(path), "train").fingerprint(memo)
    assert text_source(config(path), "validation").fingerprint(memo) != first
    assert len(digests) == 1
    stat = path.stat()
    write(path, [text.replace("cat", "dog") for text in TEXTS])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, same time of change
    assert text_source(config(path), "train").fingerprint(memo) != first
    for file in (memo / "hashes").iterdir():
        file.write_text("{")
    assert text_source(config(path), "train").fingerprint(memo) != first
    assert len(digests) == 3


def test_nothing_to_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blank = write(tmp_path / "blank.jsonl", ["", " "])
    assert f"no documents in {blank}" in refused(config(blank))
    one = write(tmp_path / "one.jsonl", ["only one"])
    side: sources.Split = "train" if HoldOut(1, 0.1, "validation").keeps("only one") else "validation"
    message = refused(config(one), side)
    assert "data.val_fraction=0.1" in message
    assert "data.val_path" in message
    with caplog.at_level(logging.WARNING):
        list(text_source(config(write(tmp_path / "some.jsonl", ["", *TEXTS])), "train").documents())
    assert "1 blank rows left out" in caplog.text
    assert "some.jsonl, line 1" in caplog.text


@pytest.mark.parametrize("count", [2, 3, 10])
def test_few_documents_hold_out_one_at_least(tmp_path: Path, count: int, caplog: pytest.LogCaptureFixture) -> None:
    for seed in range(30):
        caplog.clear()
        path = write(tmp_path / "a.jsonl", TEXTS[:count])
        train, validation = both(config(path, seed=seed, val_fraction=0.05))
        assert sorted(train + validation) == sorted(TEXTS[:count])
        assert train
        assert validation
        falls = {HoldOut(seed, 0.05, "train").keeps(text) for text in TEXTS[:count]}
        assert ("of " + str(count) + " rows would leave one side empty" in caplog.text) == (len(falls) == 1)
        # in whatever order, equal ones on one side
        again = both(config(write(path, [*reversed(TEXTS[:count]), TEXTS[0]]), seed=seed, val_fraction=0.05))
        assert [sorted(set(side)) for side in again] == [sorted(train), sorted(validation)]


def test_hold_out_of_many_is_by_each_text_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", TEXTS)
    train, validation = both(config(path))
    assert validation == [text for text in TEXTS if HoldOut(1, 0.1, "validation").keeps(text)]
    assert train == [text for text in TEXTS if HoldOut(1, 0.1, "train").keeps(text)]


def test_rows_are_held_back_only_until_both_sides_have_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", TEXTS)
    path.write_bytes(path.read_bytes() + b"not JSON\n")
    documents = text_source(config(path), "train").documents()
    assert len([next(documents) for _ in range(300)]) == 300  # of the 400 before it


def test_of_a_document_alone_the_end_is_held_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "book.txt"
    path.write_text("".join(f"Line {i} of the only tale.\n" for i in range(200)))
    ((start,), (end,)) = both(config(path))
    assert start + end == path.read_text().strip("\n")
    assert start.endswith(" of the only tale.\n")
    assert len(end) == pytest.approx(0.1 * len(start + end), rel=0.1)
    assert f"one document alone: its last {len(end)} characters are held out" in caplog.text
    assert cut_end("a" * 100, 0.1) == ("a" * 90, "a" * 10)


@pytest.mark.parametrize("fraction", [0.0, 0.6, -1.0])
def test_val_fraction_out_of_range(tmp_path: Path, fraction: float) -> None:
    path = write(tmp_path / "a.jsonl", TEXTS)
    assert f"data.val_fraction={fraction}" in refused(config(path, val_fraction=fraction))


def test_paths_that_are_missing_name_their_key(tmp_path: Path) -> None:
    assert refused(config()).startswith("data.path is null")
    assert refused(config(tmp_path / "gone")).startswith(f"data.path={tmp_path}/gone: no such")
    path = write(tmp_path / "a.jsonl", TEXTS)
    assert refused(config(path, val_path="gone"), "validation").startswith("data.val_path=gone: no such")


def test_file_that_goes_away(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", TEXTS)
    source = text_source(config(path), "train")
    path.unlink()
    for read in (source.fingerprint, lambda: list(source.documents())):
        with pytest.raises(UserError, match=r"a\.jsonl: cannot be read \(No such file"):
            read()


@pytest.fixture
def hub_config(monkeypatch: pytest.MonkeyPatch) -> Iterator[DataConfig]:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    probe = hub.is_reachable
    probe.cache_clear()
    yield config(source="tinystories", name="tinystories")
    probe.cache_clear()


def test_hub_that_does_not_answer_is_refused_at_once(hub_config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    start = time.monotonic()
    message = refused(hub_config)
    assert time.monotonic() - start < hub.PROBE_SECONDS + 1
    assert "does not answer" in message
    assert "data.path=" in message


def test_hub_that_hangs_is_refused_in_three_seconds(hub_config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def hang(*args: object, **kwargs: object) -> None:
        over.wait(20)
        raise OSError("given up")

    monkeypatch.setattr(hub.urllib.request, "urlopen", hang)
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.2)
    start = time.monotonic()
    assert "does not answer" in refused(hub_config)
    assert time.monotonic() - start < 2
    over.set()


def test_hub_offline_without_a_copy(hub_config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hub, "is_reachable", lambda: pytest.fail("asked the network"))

    def load(repository: str) -> None:
        raise ConnectionError(f"Couldn't reach {repository} (offline mode is enabled)")

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    message = refused(hub_config)
    assert "HF_HUB_OFFLINE is set" in message
    assert "data.path=" in message


def test_hub_reads_its_split_and_skips_blank_rows(
    hub_config: DataConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A builder over local files stands in for the hub's, which is the same class of object."""
    datasets = pytest.importorskip("datasets")
    write(tmp_path / "train.jsonl", ["a", "", "b", "c"])
    write(tmp_path / "validation.jsonl", ["v"])
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation")}
    builder = datasets.load_dataset_builder

    def load(repository: str) -> object:
        assert repository == "roneneldan/TinyStories"
        return builder("json", data_files=files, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(hub, "is_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    assert both(hub_config) == (["a", "b", "c"], ["v"])
    limited = dataclasses.replace(hub_config, max_docs=2)  # streamed
    assert list(text_source(limited, "train").documents()) == ["a", "b"]
    prints = {text_source(data, "train").fingerprint() for data in (hub_config, hub_config, limited)}
    assert len(prints) == 2
    assert "it has text" in refused(dataclasses.replace(hub_config, text_column="story"))


def test_generator_needs_a_number() -> None:
    assert "data.max_docs=null" in refused(config(source="tinyworld"))


def test_generator() -> None:
    pytest.importorskip("tinychat.tinyworld", exc_type=ImportError)
    data = config(source="tinyworld", max_docs=30, max_val_docs=10)
    train, validation = both(data)
    assert (len(train), len(validation)) == (30, 10)
    assert set(train).isdisjoint(validation)
    ways = (data, data, dataclasses.replace(data, seed=2), dataclasses.replace(data, lessons=1.0))
    assert len({text_source(way, "train").fingerprint() for way in ways}) == 3


def test_lessons_stand_between_training_stories_alone() -> None:
    data = config(source="tinyworld", max_docs=30, max_val_docs=10)
    train, validation = both(dataclasses.replace(data, lessons=2.5))
    told = set(both(data)[0])
    assert len(train) == 30 + 75
    assert len([text for text in train if text in told]) == 30
    assert validation == both(data)[1]


@needs_samples
def test_tinystories_folder() -> None:
    train = text_source(config(SHARED / "tinystories"), "train")
    validation = text_source(config(SHARED / "tinystories"), "validation")
    assert sum(1 for _ in train.documents()) == 8_337
    assert train.meter.bytes_read == train.size_bytes
    assert sum(1 for _ in validation.documents()) == 1_185
    assert "validation_head.txt" in train.description


@needs_samples
def test_minimind_file_and_running_text() -> None:
    train, validation = both(config(SHARED / "minimind" / "pretrain.jsonl"))
    assert len(train) + len(validation) == 632
    running = text_source(config(SHARED / "tinystories" / "validation_head.txt"), "train")
    lengths = [len(text) for text in running.documents()]
    assert len(lengths) > 50
    assert max(lengths) < 16_000


@pytest.mark.parametrize("name", ["tinyworld", "tinystories", "text"])
def test_config_files_fill_the_dataclass(name: str) -> None:
    path = ROOT / "conf" / "data" / f"{name}.yaml"
    assert path.read_text("utf-8").startswith("# python -m tinychat.train ")
    register()  # of what is computed from other keys
    loaded = OmegaConf.load(path)
    # These are given where there are any; by themselves there are none.
    unsaid = ("mix", "options", "weights")
    assert list(loaded) == [item.name for item in dataclasses.fields(DataConfig) if item.name not in unsaid]
    whole = OmegaConf.create(
        {"data": OmegaConf.merge(OmegaConf.structured(DataConfig), loaded)}
    )  # as its keys are named
    data = OmegaConf.to_object(whole.data)
    assert isinstance(data, DataConfig)
    assert (data.name, data.source) == (name, name)


def test_the_first_part_of_a_curriculum_is_its_lessons_of_copying() -> None:
    """Counted in tokens of the very stream that pretraining reads in order."""
    data = config(source="tinyworld", max_docs=4, lessons=2.5)
    texts = list(text_source(data, "train").documents())
    lengths = [len(text.split()) for text in texts]
    tokens = np.concatenate([np.append(np.ones(length, np.int64), 0) for length in lengths])
    tokenizer: Any = SimpleNamespace(eos_token_id=0)
    assert len(texts) == 14 and all(text.startswith("Row:") for text in texts[:5])
    assert sources.leading_tokens(data, tokens, tokenizer) == sum(lengths[:5]) + 5
    assert sources.leading_tokens(dataclasses.replace(data, lessons=0.0), tokens, tokenizer) == 0
