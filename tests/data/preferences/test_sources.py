from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from tests.conftest import REPOSITORY
from tinychat.config import checks, schema
from tinychat.config.schema import DataConfig, OnBadRow, Preference, TaskLevel
from tinychat.data.files.splits import Split
from tinychat.data.preferences.sources import Part, preference_source
from tinychat.errors import UserError
from tinychat.runtime import hub

SHARED = Path(os.environ.get("TINYCHAT_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))
needs_samples = pytest.mark.skipif(
    not (SHARED / "pku_saferlhf").is_dir(), reason=f"no data samples in {SHARED} (set TINYCHAT_SHARED_DATA)"
)
ROWS = [{"prompt": f"Say {i}.", "chosen": "yes", "rejected": "no"} for i in range(300)]
BAD = {"prompt": "Say.", "chosen": "same", "rejected": "same"}


def config(path: Path | str | None = None, **changes: Any) -> DataConfig:
    values = {
        "name": "own",
        "source": "preference",
        "path": None if path is None else str(path),
        "val_path": None,
        "val_fraction": 0.1,
        "text_column": "text",
        "max_docs": None,
        "lessons": 0.0,
        "max_val_docs": None,
        "max_rows": None,
        "max_val_rows": None,
        "on_bad_row": OnBadRow.fail,
        "preference": Preference.safer,
        "judge_fraction": 0.3,
        "level": TaskLevel.plain,
        "families": [],
        "answer": None,
        "seed": 1,
    }
    return DataConfig(**{**values, **changes})


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def prompts(data: DataConfig, split: Split = "train", part: Part | None = None) -> list[str]:
    return [row.prompt[0]["content"] for row in preference_source(data, split).rows(part)]


def refused(data: DataConfig, split: Split = "train", part: Part | None = None) -> str:
    with pytest.raises(UserError) as caught:
        prompts(data, split, part)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_rows_their_places_and_formats(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS[:3])
    other = str(write(tmp_path / "val.jsonl", ROWS[9:10]))
    rows = list(preference_source(config(path, val_path=other), "train").rows())
    assert [(row.prompt[0]["content"], row.chosen, row.rejected) for row in rows][2] == ("Say 2.", "yes", "no")
    assert rows[2].place == f"{path}, line 3"
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected,category\nSay 0.,yes,no,drugs\n")
    (row,) = preference_source(config(tmp_path / "a.csv", val_path=other), "train").rows()
    assert (row.prompt, row.category) == ([{"role": "user", "content": "Say 0."}], "drugs")
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS[:3]), tmp_path / "a.parquet")
    assert prompts(config(tmp_path / "a.parquet", val_path=other)) == ["Say 0.", "Say 1.", "Say 2."]
    (tmp_path / "a.txt").write_text("Words.")
    assert "a txt file has no preferences; use jsonl" in refused(config(tmp_path / "a.txt"))


def test_bad_rows_are_named_or_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.jsonl", [*ROWS[:6], BAD, {**BAD, "chosen": ""}, *ROWS[6:]])
    assert refused(config(path)) == (
        f"{path}, line 7: chosen and rejected are the same text; mend or remove this row, or leave such rows out: "
        "data.on_bad_row=skip"
    )
    source = preference_source(config(path, on_bad_row=OnBadRow.skip), "train")
    assert 250 < len(list(source.rows())) < 300
    assert source.n_bad == 2
    assert f"2 rows that cannot be used left out, the first at {path}, line 7: chosen and rejected" in caplog.text
    path = write(tmp_path / "b.jsonl", [BAD])
    message = refused(config(path, on_bad_row=OnBadRow.skip))
    assert message.startswith(f"no preferences in {path}")
    assert ": none of 1 rows can be used, the first at" in message


def test_hold_out_goes_by_the_prompt(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS + [{**row, "chosen": "sure"} for row in ROWS])
    train, validation = prompts(config(path)), prompts(config(path), "validation")
    assert len(train) + len(validation) == 600
    assert set(train).isdisjoint(validation)
    assert 15 <= len(set(validation)) <= 50  # 30 expected, standard deviation 5
    assert prompts(config(path, max_val_rows=7), "validation") != validation[:7]
    assert len(prompts(config(path, max_val_rows=7), "validation")) == 7


def test_training_lacks_the_prompts_of_other_validation_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "own/train.jsonl", ROWS)
    held_out = write(tmp_path / "own/valid.jsonl", [BAD, *({**row, "chosen": "other"} for row in ROWS[:2])])
    skip = config(tmp_path / "own", on_bad_row=OnBadRow.skip)
    assert prompts(skip) == [f"Say {i}." for i in range(2, 300)]
    assert "own-train: 2 rows left out whose prompts are in the validation data" in caplog.text
    assert prompts(skip, "validation") == ["Say 0.", "Say 1."]
    assert prompts(config(path, val_path=str(held_out)))[0] == "Say 2."  # the bad row is validation's to refuse
    assert "the validation data too; pass other data.val_path" in refused(config(path, val_path=str(path)))


def test_test_files_validate_pku_and_hh_alone(tmp_path: Path) -> None:
    rows = [
        {"chosen": f"\n\nHuman: {i}\n\nAssistant: a", "rejected": f"\n\nHuman: {i}\n\nAssistant: b"} for i in range(9)
    ]
    write(tmp_path / "own/harmless/train.jsonl", rows[:6])
    write(tmp_path / "own/harmless/test.jsonl", rows[6:])
    hh = config(tmp_path / "own", source="hh_rlhf")
    assert prompts(hh) == [*"012345"]
    assert prompts(hh, "validation") == [*"678"]
    assert "left out" not in preference_source(hh, "validation").description
    own = dataclasses.replace(hh, source="preference", val_fraction=0.5)  # a test set is not looked at
    assert sorted(prompts(own) + prompts(own, "validation")) == [*"012345"]
    write(tmp_path / "own/harmless/dev.jsonl", rows[:1])
    assert (prompts(hh, "validation"), prompts(hh)) == (["0"], [*"12345"])


def test_parts_share_no_prompt(tmp_path: Path) -> None:
    """A judge's share of about 0.3 of the prompts, the reward model's is the rest; validation has no parts."""
    path = write(tmp_path / "a.jsonl", ROWS + [{**row, "chosen": "sure"} for row in ROWS])
    data = config(path)
    reward, judge, both = prompts(data, part="reward"), prompts(data, part="judge"), prompts(data)
    assert sorted(reward + judge) == sorted(both)
    assert set(reward).isdisjoint(judge)
    assert 50 < len(set(judge)) < 115  # 81 expected of 270, standard deviation 7.5
    assert prompts(data, "validation", "judge") == prompts(data, "validation", "reward") == prompts(data, "validation")
    other = dataclasses.replace(data, seed=2, val_path=str(write(tmp_path / "val.jsonl", [{**ROWS[0], "prompt": "x"}])))
    assert set(prompts(other, part="judge")) != set(prompts(dataclasses.replace(other, seed=1), part="judge"))
    # fewer rows, then shares of them
    few = dataclasses.replace(data, max_rows=100)
    assert len(prompts(few, part="reward")) + len(prompts(few, part="judge")) == 100
    none = dataclasses.replace(data, judge_fraction=0.0)
    assert prompts(none, part="reward") == both
    assert "data.judge_fraction=0: no training rows are kept for a judge" in refused(none, part="judge")
    assert "data.judge_fraction=1" in refused(dataclasses.replace(data, judge_fraction=1.0), part="judge")
    tiny = dataclasses.replace(data, judge_fraction=1e-9)
    assert "data.judge_fraction=1e-09 leaves no judge rows in" in refused(tiny, part="judge")


def test_judge_share_is_no_part_of_the_hold_out(tmp_path: Path) -> None:
    """One hash for both would put all of a judge's prompts among the ones that are held out."""
    path = write(tmp_path / "a.jsonl", ROWS)
    data = config(path, val_fraction=0.5, judge_fraction=0.4)
    assert len(prompts(data, part="judge")) > 20  # 60 expected


def test_fingerprint_follows_what_decides_the_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    val = write(tmp_path / "val.jsonl", ROWS[:2])

    def key(split: Split = "train", part: Part | None = None, **changes: Any) -> str:
        return preference_source(config(path, **changes), split).fingerprint(tmp_path / "memo", part)

    assert key() == key() == key(judge_fraction=0.5) == key(preference=Preference.better)
    changes: list[dict[str, Any]] = [{"seed": 2}, {"max_rows": 9}, {"on_bad_row": OnBadRow.skip}]
    changes += [{"source": "pku_saferlhf"}, {"source": "pku_saferlhf", "preference": Preference.better}]
    changes += [{"val_fraction": 0.2}, {"val_path": str(val)}]
    prints = {key(), key("validation"), key(part="judge"), key(part="reward"), key(part="judge", judge_fraction=0.5)}
    prints |= {key(**change) for change in changes}
    assert len(prints) == 12
    write(val, ROWS[1:3])  # training lacks other prompts now
    assert key(val_path=str(val)) not in prints


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> None:
    def preferences(seed: int, split: str, n: int) -> Iterator[SimpleNamespace]:
        for i in range(n):
            messages = [{"role": "user", "content": f"{seed} {split} {i}"}]
            yield SimpleNamespace(
                request=SimpleNamespace(messages=messages, category="fire" if i % 2 else "", harmful=bool(i % 2)),
                chosen="No.",
                rejected="Take a match.",
                chosen_score=SimpleNamespace(safe=True),
                rejected_score=SimpleNamespace(safe=i % 2 == 0),
            )

    module = ModuleType("tinychat.tinyworld.preferences")
    module.preferences = preferences  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tinychat.tinyworld.preferences", module)


@pytest.mark.usefixtures("world")
def test_tinyworld_is_generated(tmp_path: Path) -> None:
    data = config(source="tinyworld", name="tinyworld", max_rows=3, max_val_rows=2)
    rows = list(preference_source(data, "train").rows())
    assert [row.prompt[0]["content"] for row in rows] == ["1 train 0", "1 train 1", "1 train 2"]
    assert (rows[1].category, rows[1].harmful, rows[1].chosen_safe, rows[1].rejected_safe) == (
        "fire",
        True,
        True,
        False,
    )
    assert (rows[0].harmful, rows[0].rejected_safe, rows[0].request.messages) == (False, True, rows[0].prompt)
    assert rows[2].place == "tinyworld train 2"
    assert prompts(data, "validation") == ["1 validation 0", "1 validation 1"]
    assert "data.max_rows=null: the generator" in refused(dataclasses.replace(data, max_rows=None))
    own = write(tmp_path / "a.jsonl", ROWS)
    assert prompts(dataclasses.replace(data, val_path=str(own)), "validation")[0].startswith("Say")


def test_other_sources_and_missing_paths(tmp_path: Path) -> None:
    assert "data=own has no preferences (a prompt, a chosen" in refused(config(source="alpaca"))
    assert refused(config()).startswith("data.path is null: data=own needs a file, folder or glob (jsonl, ")
    assert refused(config(tmp_path / "gone")).startswith(f"data.path={tmp_path}/gone: no such")
    assert "data.max_rows=0: must be at least 1" in refused(config(tmp_path, max_rows=0))


def test_hub_offline_says_what_to_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def load(repository: str, **options: Any) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    for source, words in (
        ("pku_saferlhf", ("PKU-Alignment/PKU-SafeRLHF cannot be read", "safer_response_id")),
        ("hh_rlhf", ("Anthropic/hh-rlhf cannot be read", "chosen and rejected, each a transcript")),
        ("minimind_dpo", ("jingyaogong/minimind_dataset cannot be read", "[{role, content}]")),
    ):
        message = refused(config(source=source))
        assert all(word in message for word in (*words, "pass data.path=FILE"))


def test_hub_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A builder over local files stands in for the hub's: its test split validates, and training lacks it."""
    datasets = pytest.importorskip("datasets")
    rows = [
        {"chosen": f"\n\nHuman: {i}\n\nAssistant: a", "rejected": f"\n\nHuman: {i}\n\nAssistant: b"} for i in range(9)
    ]
    files = {"train": str(write(tmp_path / "x.jsonl", rows)), "test": str(write(tmp_path / "y.jsonl", rows[7:]))}
    builder = datasets.load_dataset_builder

    def load(repository: str) -> object:
        return builder("json", data_files=files, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(hub, "is_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    data = config(source="hh_rlhf", name="hh_rlhf")
    assert prompts(data) == [*"0123456"]
    assert prompts(data, "validation") == [*"78"]
    assert next(preference_source(data, "validation").rows()).place == "Anthropic/hh-rlhf, row 1"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data=preference"], "data.path=null: data=preference needs a file, folder or glob"),
        (["data=hh_rlhf", "data.judge_fraction=1"], "data.judge_fraction=1.0: at least 0 and below 1, such as 0.3"),
        (["data=prompts", "stage=sft"], "data=prompts has no conversations, which stage=sft takes"),
        (["data=minimind_dpo"], "data=minimind_dpo has no documents, which stage=pretrain takes"),
    ],
)
def test_configuration_is_checked_before_anything_is_read(overrides: list[str], expected: str) -> None:
    schema.register()
    with initialize_config_dir(str(REPOSITORY / "conf")):
        composed = schema.to_config(compose("config", overrides))
    with pytest.raises(UserError) as caught:
        checks.check(composed)
    assert expected in str(caught.value)


@needs_samples
def test_samples() -> None:
    pku = config(SHARED / "pku_saferlhf", source="pku_saferlhf")
    train = list(preference_source(pku, "train").rows())
    assert (len(train), len(prompts(pku, "validation"))) == (2_723, 333)  # of the test file
    assert all(row.chosen_safe and row.rejected_safe is False for row in train)  # as the notes on the sample say
    better = dataclasses.replace(pku, preference=Preference.better)
    assert "line 1: no column 'better_response_id' (the more helpful reply), which" in refused(better)
    full = config(SHARED / "pku_saferlhf" / "full_schema.jsonl", source="pku_saferlhf", val_path=pku.path)
    safer = list(preference_source(full, "train").rows())
    helpful = list(preference_source(dataclasses.replace(full, preference=Preference.better), "train").rows())
    assert [row.prompt for row in safer] == [row.prompt for row in helpful]
    assert sum(one.chosen != other.chosen for one, other in zip(safer, helpful, strict=True)) == 13
    hh = config(SHARED / "hh_harmless" / "test.jsonl.gz", source="hh_rlhf")
    assert "test.jsonl.gz, line 69: chosen: empty reply (message 4)" in refused(hh)
    source = preference_source(dataclasses.replace(hh, on_bad_row=OnBadRow.skip), "train")
    held_out = preference_source(dataclasses.replace(hh, on_bad_row=OnBadRow.skip), "validation")
    assert len(list(source.rows())) + len(list(held_out.rows())) + source.n_bad == 1_931
    assert source.n_bad == 11
    dpo = config(SHARED / "minimind" / "dpo.jsonl", source="minimind_dpo")
    assert len(prompts(dpo)) + len(prompts(dpo, "validation")) == 322
    assert prompts(dataclasses.replace(dpo, source="preference")) == prompts(dpo)  # found out by itself
