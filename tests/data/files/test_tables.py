"""Rows that their file holds but that cannot be taken as they stand, and columns that nobody asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.chats.test_sources import config as chat_config
from tests.data.chats.test_sources import write
from tests.data.documents.test_sources import config as text_config
from tests.data.preferences.test_prompt_files import config as prompt_config
from tinychat.config.schema import OnBadRow
from tinychat.data.chats.files import read_chats
from tinychat.data.chats.rows import ChatRow
from tinychat.data.chats.sources import chat_source
from tinychat.data.documents.sources import text_source
from tinychat.data.files.tables import UNREAD, Meter, Unreadable, read_rows
from tinychat.data.preferences.prompts import prompt_files
from tinychat.data.preferences.sources import preference_source
from tinychat.errors import UserError

SKIP = OnBadRow.skip
SURPLUS = "prompt,response\nWhat is red?,Roses, apples, and some cars.\nWho?,Ada.\n"


def rows(path: Path, columns: tuple[str, ...] | None = None) -> list[Any]:
    return [row for _, row in read_rows(path, Meter(), columns)]


def file(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


def table(path: Path, **columns: Any) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table(columns), path)
    return path


def latin1(values: list[bytes]) -> Any:
    """A column of text that is not UTF-8, as writers without a check leave it."""
    pa = pytest.importorskip("pyarrow")
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_a_csv_row_with_more_fields_than_columns_is_no_row(tmp_path: Path, delimiter: str) -> None:
    path = file(tmp_path / ("a.csv" if delimiter == "," else "a.tsv"), SURPLUS.replace(",", delimiter))
    bad, good = rows(path)
    assert isinstance(bad, Unreadable)
    assert "more fields than the header's 2" in bad.why
    assert "apples" in bad.why
    assert good == {"prompt": "Who?", "response": "Ada."}


def test_empty_trailing_fields_and_an_index_may_pass(tmp_path: Path) -> None:
    assert rows(file(tmp_path / "a.csv", "a,b\n1,2,\n3,4, ,\n")) == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
    assert rows(file(tmp_path / "b.csv", "a,b,\n1,2,\n")) == [{"a": "1", "b": "2"}]
    (bad,) = rows(file(tmp_path / "b.csv", "a,b,\n1,2,3\n"))
    assert isinstance(bad, Unreadable)
    assert rows(file(tmp_path / "c.csv", ",a\n0,x\n")) == [{"": "0", "a": "x"}]  # pandas' index


def test_a_name_that_two_columns_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='2 columns are named "text"; rename all but one'):
        rows(file(tmp_path / "a.csv", "text,id,text\na,1,b\n"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_key_twice_in_one_object_loses_nothing_silently(tmp_path: Path, name: str) -> None:
    one, twice = '{"text": "a"}', '{"text": "b", "more": {"c": 1, "c": 2}}'
    path = file(tmp_path / name, f"{one}\n{twice}\n{one}\n")
    assert rows(path) == [{"text": "a"}, Unreadable('an object has the key "c" twice'), {"text": "a"}]


def test_surplus_fields_of_every_shape_are_bad_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = file(tmp_path / "a.csv", SURPLUS)
    val = str(file(tmp_path / "val.csv", "prompt,response,chosen,rejected,text\nz,z,a,b,c\n"))
    pairs = file(tmp_path / "p.csv", "prompt,chosen,rejected\nWho?,Ada.,Ben, or Cleo.\nWhere?,Here.,There.\n")
    documents = file(tmp_path / "d.csv", "text\nOne, two.\nThree.\n")
    sources = [
        lambda **more: chat_source(chat_config(path, val_path=val, **more), "train").rows(),
        lambda **more: prompt_files(prompt_config(path, val_path=val, **more), "train").rows(),
        lambda **more: preference_source(
            chat_config(pairs, source="preference", val_path=val, judge_fraction=0, **more), "train"
        ).rows(),
        lambda **more: text_source(text_config(documents, val_path=val, **more), "train").documents(),
    ]
    for source in sources:
        with pytest.raises(UserError, match=r"line 2: more fields than the header.*on_bad_row=skip"):
            list(source())
        caplog.clear()
        assert len(list(source(on_bad_row=SKIP))) == 1
        assert "1 rows that cannot be used left out, the first at" in caplog.text


def test_columns_that_are_not_used_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    row = {"prompt": "Why?", "response": "So.", "notes": "n", "id": 3}
    path = write(tmp_path / "a.jsonl", [row | {"prompt": f"Why {i}?"} for i in range(40)])
    for split in ("train", "validation"):
        list(chat_source(chat_config(path), split).rows())  # type: ignore[arg-type]
    (said,) = [record.getMessage() for record in caplog.records if "not used" in record.getMessage()]
    assert said == f"own-train: not used: notes (40 rows), id (40 rows); the first at {path}, line 1"


def test_columns_beside_a_document_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"A tale {i}.", "title": "T"}) + "\n" for i in range(40)))
    with caplog.at_level("INFO"):
        list(text_source(text_config(path), "train").documents())
    assert "only data.text_column is read, not used: title (40 rows)" in caplog.text


def test_parquet_reads_what_is_asked_for_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pa = pytest.importorskip("pyarrow")
    far = pa.array([10**17], pa.timestamp("ms"))
    path = table(tmp_path / "a.parquet", prompt=["Who?"], response=["Ada."], created=far)
    (row,) = rows(path)
    assert isinstance(row["created"], Unreadable)  # who asks for all
    assert row["created"].why.startswith("cannot be read (")
    ((_, row),) = read_chats([("p", row)], None)
    assert isinstance(row, ChatRow)
    assert rows(path, ("prompt",)) == [{"prompt": "Who?", "response": UNREAD, "created": UNREAD}]
    source = chat_source(
        chat_config(path, val_path=str(write(tmp_path / "v.jsonl", [{"prompt": "a", "response": "b"}]))), "train"
    )
    (row,) = source.rows()
    assert [message["content"] for message in row.messages] == ["Who?", "Ada."]
    assert "not used: created (1 rows)" in caplog.text
    # a time inside of what is asked for
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("at", pa.timestamp("ms"))]))
    told = pa.array([[("user", "Who?", 10**17), ("assistant", "Ada.", None)]], kind)
    (told,) = rows(table(tmp_path / "b.parquet", messages=told), ("messages",))
    assert told == {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}]}


def test_parquet_text_that_is_not_utf8_is_a_bad_row(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pa = pytest.importorskip("pyarrow")
    said = latin1([b"Ada.", b"caf\xe9", b"Ben."])
    path = table(tmp_path / "a.parquet", prompt=pa.array(["Who?", "Where?", "Who else?"]), response=said, text=said)
    val = str(write(tmp_path / "v.jsonl", [{"prompt": "a", "response": "b", "text": "c"}]))
    with pytest.raises(UserError, match=r"a\.parquet, row 2: response cannot be read \(.*0xe9"):
        list(chat_source(chat_config(path, val_path=val), "train").rows())
    assert len(list(chat_source(chat_config(path, val_path=val, on_bad_row=SKIP), "train").rows())) == 2
    with pytest.raises(UserError, match=r"a\.parquet, row 2: text cannot be read"):
        list(text_source(text_config(path, val_path=val), "train").documents())
    assert list(text_source(text_config(path, val_path=val, on_bad_row=SKIP), "train").documents()) == ["Ada.", "Ben."]
    assert "1 rows that cannot be used left out" in caplog.text


def test_columns_of_parquet_with_one_name_are_refused(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(
        pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"]), tmp_path / "a.parquet"
    )
    with pytest.raises(UserError, match='2 columns are named "text"'):
        rows(tmp_path / "a.parquet")


def test_a_csv_file_of_excel_is_parted_at_semicolons(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for header, first, want in (
        ("prompt;response", "Hello, you;Hi", {"prompt": "Hello, you", "response": "Hi"}),
        ("\ufeffprompt;response\r", '"a;b";c\r', {"prompt": "a;b", "response": "c"}),
        ("prompt,x;y", "a,b", {"prompt": "a", "x;y": "b"}),
        ('"prompt;response"', "a", {"prompt;response": "a"}),
    ):
        path.write_text(f"{header}\n{first}\n", "utf-8")
        assert [row for _, row in read_rows(path, Meter())] == [want]
