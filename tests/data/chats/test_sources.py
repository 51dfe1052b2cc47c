from __future__ import annotations

import dataclasses
import json
import logging
import os
import random
from pathlib import Path
from typing import Any

import pytest

from tinychat.config.schema import DataConfig, OnBadRow, Preference, TaskLevel
from tinychat.config.stages import MixPart
from tinychat.data.chats.rows import ChatRow, chat_row
from tinychat.data.chats.sources import chat_source
from tinychat.data.files.row_sources import choose
from tinychat.data.files.splits import Split
from tinychat.data.preferences.prompts import prompt_files
from tinychat.data.preferences.sources import preference_source
from tinychat.errors import UserError
from tinychat.evaluation.answers import is_correct
from tinychat.runtime import hub
from tinychat.tinyworld.tasks import instruction

SHARED = Path(os.environ.get("TINYCHAT_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))
needs_samples = pytest.mark.skipif(
    not (SHARED / "alpaca").is_dir(), reason=f"no data samples in {SHARED} (set TINYCHAT_SHARED_DATA)"
)
ROWS = [{"instruction": f"Say {i}.", "input": "", "output": f"{i}"} for i in range(300)]


def config(path: Path | str | None = None, **changes: Any) -> DataConfig:
    values = {
        "name": "own",
        "source": "chat",
        "path": None if path is None else str(path),
        "val_path": None,
        "val_fraction": 0.1,
        "text_column": "text",
        "max_docs": None,
        "lessons": 0.0,
        "demonstrations": 0.0,
        "unsafe_demonstrations": 0.0,
        "max_val_docs": None,
        "max_rows": None,
        "max_val_rows": None,
        "on_bad_row": OnBadRow.fail,
        "preference": Preference.safer,
        "judge_fraction": 0.0,
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


def texts(data: DataConfig, split: Split = "train") -> list[str]:
    return [row.messages[0]["content"] for row in chat_source(data, split).rows()]


def refused(data: DataConfig, split: Split = "train") -> str:
    with pytest.raises(UserError) as caught:
        texts(data, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_rows_and_their_places(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    with caplog.at_level(logging.INFO):
        rows = list(chat_source(config(path, val_path=str(path)), "train").rows())
    assert [row.messages[0]["content"] for row in rows] == [row["instruction"] for row in ROWS]
    assert rows[6].place == f"{path}, line 7"
    assert (rows[6].family, rows[6].answer) == ("", "")
    assert "one turn a row, user from instruction and input, assistant from output" in caplog.text


def test_formats(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    chats = [
        {"messages": [{"role": "user", "content": f"a{i}"}, {"role": "assistant", "content": "b"}]} for i in range(3)
    ]
    pyarrow.parquet.write_table(pa.Table.from_pylist(chats), tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text(json.dumps(chats))
    (tmp_path / "a.csv").write_text('id,prompt,completion\n1,a0,"b\nc"\n2,a1,b\n3,a2,b\n')
    for name in ("a.parquet", "a.json", "a.csv"):
        assert texts(config(tmp_path / name, val_path=str(tmp_path / "a.csv"))) == ["a0", "a1", "a2"]


def test_each_file_has_its_own_layout_and_txt_has_none(tmp_path: Path) -> None:
    write(tmp_path / "own/a.jsonl", [{"prompt": "a", "response": "b"}])
    write(tmp_path / "own/b.jsonl", [{"question": "c", "answer": "d"}])
    (tmp_path / "own/readme.txt").write_text("Words.")
    data = config(tmp_path / "own", val_path=str(tmp_path / "own/a.jsonl"))
    assert texts(data) == ["a", "c"]
    assert "left out" in chat_source(data, "train").description
    assert "readme.txt" in chat_source(data, "train").description
    assert "a txt file has no conversations; use jsonl" in refused(config(tmp_path / "own/readme.txt"))


def test_hold_out_goes_by_the_prompt(tmp_path: Path) -> None:
    """Rows that share the first user message and its input stay together, whatever follows it."""
    again = [{**row, "output": "other"} for row in ROWS]
    path = write(tmp_path / "a.jsonl", ROWS + again)
    train, validation = texts(config(path)), texts(config(path), "validation")
    assert len(train) + len(validation) == 600
    assert set(train).isdisjoint(validation)
    assert 15 <= len(set(validation)) <= 50  # 30 expected, standard deviation 5
    assert texts(config(path, seed=2), "validation") != validation
    with_input = [{**row, "input": "x"} for row in ROWS]
    path = write(tmp_path / "b.jsonl", with_input)
    assert set(texts(config(path), "validation")) != set(validation)  # the input is part of the prompt


def test_own_split_and_val_path(tmp_path: Path) -> None:
    write(tmp_path / "own/train.jsonl", ROWS)
    write(tmp_path / "own/valid.jsonl", ROWS[:2])
    other = write(tmp_path / "b.jsonl", ROWS[5:6])
    assert len(texts(config(tmp_path / "own"))) == 300
    assert texts(config(tmp_path / "own"), "validation") == ["Say 0.", "Say 1."]
    data = config(tmp_path / "own/train.jsonl", val_path=str(other))
    assert (len(texts(data)), texts(data, "validation")) == (300, ["Say 5."])


def test_max_rows_is_a_seeded_choice(tmp_path: Path) -> None:
    shuffled = random.Random(1).sample(ROWS, len(ROWS))
    path, mixed = write(tmp_path / "a.jsonl", ROWS), write(tmp_path / "b.jsonl", shuffled)
    chosen = texts(config(path, max_rows=100))
    assert len(chosen) == 100
    order = [row["instruction"] for row in ROWS]
    assert chosen == sorted(chosen, key=order.index)
    assert chosen != order[:100]
    assert set(texts(config(mixed, max_rows=100))) == set(chosen)
    assert set(texts(config(path, max_rows=50))) < set(chosen)
    assert texts(config(path, max_rows=100, seed=2)) != chosen
    assert len(texts(config(path, max_rows=1000))) == len(texts(config(path)))
    assert set(chosen).isdisjoint(texts(config(path, max_val_rows=10), "validation"))
    assert len(texts(config(path, max_val_rows=10), "validation")) == 10
    assert "data.max_rows=0: must be at least 1" in refused(config(path, max_rows=0))


def test_equal_rows_are_chosen_by_their_number() -> None:
    rows = [
        chat_row([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], str(i)) for i in range(9)
    ]
    assert [row.place for row in choose(rows, 4, 1)] == ["0", "1", "2", "3"]


BAD = [
    ({"instruction": "a", "input": "", "output": ""}, "empty reply (output)"),
    ({"instruction": "a", "input": ""}, "no column 'output'; it has instruction, input"),
    ({"instruction": "a", "input": 3, "output": "b"}, "the input of message 1 is 3, not a string"),
]


@pytest.mark.parametrize(("row", "why"), BAD)
def test_bad_row_ends_the_job_or_is_left_out(
    tmp_path: Path, row: Any, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.jsonl", [*ROWS[:3], row, *ROWS[3:6], row])
    data = config(path, source="alpaca", val_path=str(path))
    assert refused(data).startswith(f"{path}, line 4: {why}; ")
    skipping = dataclasses.replace(data, on_bad_row=OnBadRow.skip)
    source = chat_source(skipping, "train")
    assert len(list(source.rows())) == 6
    assert source.n_bad == 2
    assert f"2 rows that cannot be used left out, the first at {path}, line 4: {why}" in caplog.text
    assert len(texts(dataclasses.replace(skipping, max_rows=6))) == 6


def test_nothing_usable(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "a"}, {"text": "b"}])
    assert refused(config(path)).startswith(f"{path}, line 1: no conversation in the columns text; known are")
    message = refused(config(path, on_bad_row=OnBadRow.skip))
    assert message.startswith(f"no conversations in {path}")
    assert "none of 2 rows can be used, the first at" in message
    assert "no column 'conversations'; it has text" in refused(config(path, source="minimind_sft"))
    one = write(tmp_path / "b.jsonl", ROWS[:1])
    side: Split = "train" if texts_or_none(config(one), "validation") else "validation"
    assert "data.val_fraction=0.1 leaves no" in refused(config(one), side)


def texts_or_none(data: DataConfig, split: Split) -> list[str]:
    try:
        return texts(data, split)
    except UserError:
        return []


def test_sources_without_conversations_and_missing_paths(tmp_path: Path) -> None:
    assert "data=own has documents, not conversations" in refused(config(source="text"))
    assert refused(config()).startswith("data.path is null: data=own needs a file, folder or glob (jsonl, ")
    assert refused(config(tmp_path / "gone")).startswith(f"data.path={tmp_path}/gone: no such")


@pytest.mark.parametrize("shape", ["chat", "preference", "prompts"])
def test_ten_rows_hold_out_one_at_least(tmp_path: Path, shape: str) -> None:
    rows = [{"prompt": f"Say {i}.", "chosen": "a", "rejected": "b", "response": "a"} for i in range(10)]
    rows += [{"prompt": f"Say {i}.", "chosen": "c", "rejected": "d", "response": "c"} for i in range(10)]
    path = write(tmp_path / "a.jsonl", rows)
    for seed in range(10):
        data = config(path, source=shape, seed=seed, val_fraction=0.01, judge_fraction=0)
        find: Any = {"chat": chat_source, "preference": preference_source, "prompts": prompt_files}[shape]
        train, validation = ({row.key() for row in find(data, split).rows()} for split in ("train", "validation"))
        assert len(train) + len(validation) == 10
        assert train
        assert validation
        assert not train & validation


def test_broken_files_end_the_job_even_when_rows_are_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS[:2])
    path.write_text(path.read_text() + "{broken\n")
    assert "line 3: not valid JSON" in refused(config(path, on_bad_row=OnBadRow.skip))


def test_fingerprint_follows_what_decides_the_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)

    def key(split: Split = "train", at: Path = path, **changes: Any) -> str:
        return chat_source(config(at, **changes), split).fingerprint(tmp_path / "memo")

    assert key() == key() == key(at=write(tmp_path / "elsewhere/b.jsonl", ROWS))
    changes: list[dict[str, Any]] = [{"seed": 2}, {"max_rows": 9}, {"on_bad_row": OnBadRow.skip}]
    changes += [{"source": "alpaca"}, {"val_path": str(path)}, {"val_fraction": 0.2}]
    prints = {key(), key("validation"), *(key(**change) for change in changes)}
    prints.add(key(max_rows=9, val_path=str(path)))
    prints.add(key(max_rows=9, val_path=str(path), seed=2))  # the choice's seed, without a hold-out
    write(path, [*ROWS[:-1], {**ROWS[-1], "output": "998"}])  # as many bytes
    assert key() not in prints
    assert len(prints) == 10


def test_tinyworld_is_generated(tmp_path: Path) -> None:
    data = config(source="tinyworld", name="tinyworld", max_rows=3, max_val_rows=2)
    rows = list(chat_source(data, "train").rows())
    tasks = [instruction(1, "train", index) for index in range(3)]
    assert [row.messages for row in rows] == [task.messages for task in tasks]
    assert rows[2] == ChatRow(rows[2].messages, "tinyworld train 2", tasks[2].family, tasks[2].answer)
    assert texts(data, "validation") == [instruction(1, "validation", i).messages[0]["content"] for i in range(2)]
    assert "data.max_rows=null: the generator" in refused(dataclasses.replace(data, max_rows=None))
    prints = {chat_source(d, "train").fingerprint() for d in (data, data, dataclasses.replace(data, max_rows=4))}
    assert len(prints) == 2
    own = write(tmp_path / "a.jsonl", ROWS)
    assert texts(dataclasses.replace(data, val_path=str(own)), "validation")[0].startswith("Say")


def test_hub_offline_says_what_to_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked: list[Any] = []

    def load(repository: str, **options: Any) -> None:
        asked.append((repository, options))
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    message = refused(config(source="alpaca", name="alpaca"))
    assert "tatsu-lab/alpaca cannot be read from the hub (HF_HUB_OFFLINE is set" in message
    assert "pass data.path=FILE, jsonl or another table with instruction, input and output" in message
    assert "conversations" in refused(config(source="minimind_sft"))
    assert asked == [
        ("tatsu-lab/alpaca", {}),
        ("jingyaogong/minimind_dataset", {"data_files": {"train": "sft_mini_512.jsonl"}}),
    ]


def test_hub_rows_are_held_out_and_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A builder over local files stands in for the hub's, which is the same class of object."""
    datasets = pytest.importorskip("datasets")
    write(tmp_path / "train.jsonl", [*ROWS, {"instruction": "a", "input": "", "output": ""}])
    builder = datasets.load_dataset_builder

    def load(repository: str) -> object:
        return builder("json", data_files=str(tmp_path / "train.jsonl"), cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(hub, "is_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    data = config(source="alpaca", name="alpaca", max_rows=20)
    assert refused(data).startswith("tatsu-lab/alpaca, row 301: empty reply (output)")
    data = dataclasses.replace(data, on_bad_row=OnBadRow.skip)
    train, validation = texts(data), texts(data, "validation")
    assert len(train) == 20
    assert set(train).isdisjoint(validation)
    local = texts(config(tmp_path / "train.jsonl", max_rows=20, on_bad_row=OnBadRow.skip))
    assert train == local


PAIRS = [{"prompt": f"Ask {i}.", "chosen": f"yes {i}", "rejected": "no"} for i in range(40)]


def test_preferences_give_their_chosen_replies_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    again, unsafe = {**PAIRS[0], "rejected": "never"}, {**PAIRS[5], "chosen_safe": False}
    train = write(tmp_path / "own/train.jsonl", [*PAIRS[:3], again, unsafe, {**PAIRS[6], "chosen_safe": True}])
    write(tmp_path / "own/valid.jsonl", [{**PAIRS[1], "chosen": "other", "chosen_safe": False}, PAIRS[7]])
    data = config(tmp_path / "own", source="preference")
    with caplog.at_level(logging.INFO):
        rows = list(chat_source(data, "train").rows())
    assert [row.messages[0]["content"] for row in rows] == ["Ask 0.", "Ask 2.", "Ask 6."]  # 1 is held out
    assert rows[0].messages[1] == {"role": "assistant", "content": "yes 0"}
    assert rows[0].place == f"{train}, line 1"
    assert "own: 1 chosen replies that are not labelled safe left out" in caplog.text
    assert texts(data, "validation") == ["Ask 7."]
    assert chat_source(data, "train").description.startswith("the chosen replies of ")
    assert refused(config(write(tmp_path / "a.jsonl", [unsafe]), source="preference")).startswith(
        f"{tmp_path}/a.jsonl ("
    )
    assert len({chat_source(one, "train").fingerprint() for one in (data, config(train, source="preference"))}) == 2


def pku(number: int, safe: list[bool]) -> dict[str, Any]:
    replies = {f"response_{side}": f"{number} {side}" for side in (0, 1)}
    labels = {f"is_response_{side}_safe": safe[side] for side in range(len(safe))}
    return {"prompt": f"Ask {number}.", **replies, **labels, "safer_response_id": 1}


def test_of_pku_only_replies_labelled_safe_are_taken(tmp_path: Path) -> None:
    rows = [pku(0, [False, True]), pku(1, [False, False]), pku(2, [])]
    val = str(write(tmp_path / "val.jsonl", [pku(3, [False, True])]))
    data = config(write(tmp_path / "a.jsonl", rows), source="pku_saferlhf", val_path=val)
    (row,) = chat_source(data, "train").rows()
    assert [message["content"] for message in row.messages] == ["Ask 0.", "0 1"]
    message = refused(dataclasses.replace(data, path=str(write(tmp_path / "b.jsonl", rows[1:]))))
    assert "none of 2 chosen replies is labelled safe (chosen_safe; of pku_saferlhf is_response_0_safe" in message


def mixed(path: Path, mix: dict[str, MixPart], **changes: Any) -> DataConfig:
    return config(path, name="mixed", val_path=str(path), mix=mix, **changes)


def test_other_sources_are_added_to_training_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.jsonl", ROWS[:4])
    pairs = write(tmp_path / "b.jsonl", PAIRS)
    chats = write(tmp_path / "c.jsonl", [*ROWS[9:30], {"instruction": "a", "output": ""}])
    mix = {"safe": MixPart("preference", str(pairs), 5), "more": MixPart("chat", str(chats), None)}
    data = mixed(path, mix, on_bad_row=OnBadRow.skip)
    source = chat_source(data, "train")
    with caplog.at_level(logging.INFO):
        asked = [row.messages[0]["content"] for row in source.rows()]
    more = texts(config(chats, on_bad_row=OnBadRow.skip))
    assert asked == [
        *(row["instruction"] for row in ROWS[:4]),
        *texts(config(pairs, source="preference", max_rows=5)),
        *more,
    ]
    assert f"mixed: 4 conversations of mixed-train, 5 of safe, {len(more)} of more" in caplog.text
    assert (source.n_bad, source.most_rows) == (1, None)
    assert texts(data, "validation") == asked[:4]
    del mix["more"]
    assert chat_source(dataclasses.replace(data, max_rows=3), "train").most_rows == 8


def test_a_mix_decides_the_fingerprint_of_training(tmp_path: Path) -> None:
    path, pairs = write(tmp_path / "a.jsonl", ROWS[:4]), write(tmp_path / "b.jsonl", PAIRS)

    def key(rows: int | None = None, split: Split = "train", of: Path = pairs) -> str:
        return chat_source(mixed(path, {"x": MixPart("preference", str(of), rows)}), split).fingerprint()

    alone = chat_source(mixed(path, {}), "train").fingerprint()
    assert len({key(), key(5), key(of=write(tmp_path / "c.jsonl", PAIRS[1:])), alone}) == 4
    assert key() == key()
    assert key(split="validation") == chat_source(mixed(path, {}), "validation").fingerprint()


def test_errors_of_an_added_source_name_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS[:4])
    pairs = write(tmp_path / "b.jsonl", [{**row, "chosen_safe": False} for row in PAIRS])
    bad = write(tmp_path / "c.jsonl", [{**PAIRS[0], "chosen": "no"}])
    cases = [
        (MixPart("preference", None, 5), "data.mix.x: data.path is null: data=x needs a file, folder or glob ("),
        (MixPart("preference", str(path) + "?", 5), f"data.mix.x: data.path={path}?: no such file"),
        (MixPart("preference", str(pairs), 5), f"data.mix.x: {pairs} ("),
        (MixPart("preference", str(pairs), 0), "data.mix.x: data.max_rows=0: must be at least 1"),
        (MixPart("preference", str(bad), None), f"{bad}, line 1: chosen and rejected are the same text"),
        (MixPart("tinyworld", None, None), "data.mix.x: data.max_rows=null: the generator of data=x never ends"),
        (MixPart("tinystories", None, None), "data.mix.x: data=x has documents, not conversations"),
    ]
    for part, message in cases:
        assert refused(mixed(path, {"x": part})).startswith(message)


@needs_samples
def test_samples_of_alpaca_and_safe_replies() -> None:
    mix = {"safe": MixPart("pku_saferlhf", str(SHARED / "pku_saferlhf"), 500)}
    alpaca = config(SHARED / "alpaca", source="alpaca", on_bad_row=OnBadRow.skip, max_rows=1000, mix=mix)
    rows = list(chat_source(alpaca, "train").rows())
    assert len(rows) == 1500
    assert all("pku_saferlhf" in row.place and len(row.messages) == 2 for row in rows[1000:])
    pku = dataclasses.replace(alpaca, source="pku_saferlhf", path=str(SHARED / "pku_saferlhf"), mix={})
    pairs = {
        row.prompt[0]["content"]: row
        for row in preference_source(dataclasses.replace(pku, max_rows=None), "train").rows()
    }
    assert {row.key() for row in rows[1000:]} <= {row.key() for row in pairs.values()}
    held_out = {row.key() for row in preference_source(pku, "validation").rows()}
    assert held_out.isdisjoint(row.key() for row in rows)
    for source, folder in (("hh_rlhf", "hh_harmless/test.jsonl.gz"), ("minimind_dpo", "minimind/dpo.jsonl")):
        data = config(SHARED / folder, source=source, on_bad_row=OnBadRow.skip, max_rows=50)
        assert len(texts(data)) == 50


@needs_samples
def test_samples() -> None:
    alpaca = config(SHARED / "alpaca", source="alpaca", on_bad_row=OnBadRow.skip)
    source = chat_source(dataclasses.replace(alpaca, max_rows=1000), "train")
    assert len(list(source.rows())) == 1000
    assert source.n_bad == 1  # one row has an empty output
    assert len(texts(alpaca)) + len(texts(alpaca, "validation")) == 4_264
    minimind = config(SHARED / "minimind" / "sft.jsonl", source="minimind_sft")
    assert len(texts(minimind)) + len(texts(minimind, "validation")) == 901
    # found out by itself
    assert texts(dataclasses.replace(minimind, source="chat")) == texts(minimind)
    assert len(texts(config(SHARED / "gsm8k", name="gsm8k"))) > 5_000


def test_gsm8k_is_checked_by_its_last_number_and_its_test_file_validates(tmp_path: Path) -> None:
    rows = [
        {"question": f"{n} and 1?", "answer": f"{n} + 1 = <<{n}+1={n + 1}>>{n + 1}\n#### {n + 1}"} for n in range(8)
    ]
    write(tmp_path / "train.jsonl", rows[:6])
    write(tmp_path / "test.jsonl", rows[6:])
    data = config(tmp_path, source="gsm8k")
    train, validation = (list(chat_source(data, split).rows()) for split in ("train", "validation"))
    assert len(train) == 6
    assert [row.messages[0]["content"] for row in validation] == ["6 and 1?", "7 and 1?"]
    assert {row.answer for row in train + validation} == {"math"}
    assert is_correct("math", "#### 7", validation[0].messages[-1]["content"])
