from __future__ import annotations

import csv
import gzip
import json
import random
import tracemalloc
from pathlib import Path

import pytest

from tinychat.data.documents import sources
from tinychat.data.documents.sources import Meter, read_documents
from tinychat.errors import UserError

TEXTS = ["One day.\n\nA cat sat.", "二つ目 🐈", 'a "quoted", one\nwith lines']


def read(path: Path, column: str = "text") -> list[str]:
    return list(read_documents(path, column))


def refused(path: Path, column: str = "text") -> str:
    with pytest.raises(UserError) as caught:
        read(path, column)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def jsonl(texts: list[str]) -> str:
    return "".join(json.dumps({"id": i, "text": text}, ensure_ascii=False) + "\n" for i, text in enumerate(texts))


def write(path: Path, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_jsonl(tmp_path: Path, suffix: str) -> None:
    assert read(write(tmp_path / f"a.jsonl{suffix}", jsonl(TEXTS).replace("\n", "\n\n"))) == TEXTS


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("indent", [None, 2])
def test_json_list_and_concatenated_objects(tmp_path: Path, suffix: str, indent: int | None) -> None:
    rows = [{"text": text, "nested": [{"text": "]"}]} for text in TEXTS]
    assert read(write(tmp_path / f"list.json{suffix}", json.dumps(rows, indent=indent))) == TEXTS
    together = "\n".join(json.dumps(row, indent=indent) for row in rows)
    assert read(write(tmp_path / f"many.json{suffix}", together)) == TEXTS


def test_json_across_the_buffer(tmp_path: Path) -> None:
    texts = [f"{i} " + "长" * 3_000 for i in range(1_200)] + ["x" * 3_000_000, "end"]
    assert read(write(tmp_path / "a.json", json.dumps([{"text": text} for text in texts]))) == texts


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.csv.gz", ","), ("a.tsv", "\t")])
def test_csv(tmp_path: Path, name: str, delimiter: str) -> None:
    plain = tmp_path / "plain"
    with open(plain, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([["id", "text"], *([i, text] for i, text in enumerate(TEXTS))])
    assert read(write(tmp_path / name, plain.read_bytes())) == TEXTS


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    texts = TEXTS * 700  # more than one batch
    pyarrow.parquet.write_table(pa.table({"id": list(range(len(texts))), "text": texts}), tmp_path / "a.parquet")
    meter = Meter()
    assert list(read_documents(tmp_path / "a.parquet", "text", meter)) == texts
    assert meter.bytes_read == pytest.approx((tmp_path / "a.parquet").stat().st_size, rel=0.01)


def test_text_column_and_blank_rows(tmp_path: Path) -> None:
    meter = Meter()
    path = write(tmp_path / "a.jsonl", '{"body": "a"}\n{"body": ""}\n{"body": " \\n"}\n{"body": " b\\n"}\n')
    assert list(read_documents(path, "body", meter)) == ["a", " b\n"]
    assert (meter.skipped, meter.first_skipped) == (2, f"{path}, line 2")


def test_txt_with_separators(tmp_path: Path) -> None:
    dump = (
        "One.\r\n\r\nTwo.\r\n<|endoftext|>\r\n\r\nThree <|endoftext|> inline.\r\n"
        "<|endoftext|>\r\n \r\n<|endoftext|>\r\n"
    )
    want = ["One.\n\nTwo.", "Three <|endoftext|> inline."]
    assert read(write(tmp_path / "a.txt", dump)) == want
    assert read(write(tmp_path / "a.txt.gz", "\ufeff" + dump)) == want


def test_long_document_between_separators_stays_whole(tmp_path: Path) -> None:
    long = "A line.\n\n" * 20_000 + "The end."
    assert read(write(tmp_path / "a.txt", f"{long}\n<|endoftext|>\nB")) == [long, "B"]


def test_txt_without_separators_is_one_document_or_running_text(tmp_path: Path) -> None:
    essay = "\n\n".join(f"Paragraph {i}." for i in range(2_000))
    assert read(write(tmp_path / "essay.txt", essay)) == [essay]
    novel = "\n\n".join(f"Paragraph {i}, " + "long lines\n" * 20 + "and its end." for i in range(2_000))
    pieces = read(write(tmp_path / "novel.txt", novel))
    assert "\n\n".join(pieces) == novel
    assert {len(piece) // sources.PIECE for piece in pieces[:-1]} == {1}
    assert all(piece.startswith("Paragraph") for piece in pieces)


def test_txt_of_one_line_loses_nothing(tmp_path: Path) -> None:
    text = "字" * 200_000
    pieces = read(write(tmp_path / "a.txt", text))
    assert "".join(pieces) == text
    assert len(pieces) > 3


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
@pytest.mark.parametrize("between", ["\n\n", "\n", " ", ""])
def test_a_document_that_is_too_long_comes_in_parts_cut_at_the_best_place(
    tmp_path: Path, name: str, between: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "LONGEST", 100)
    sentence = "word 字." if between != " " else "word字."
    text = between.join([sentence] * 60)
    content = jsonl([text, "short"]) if name == "a.jsonl" else f"{text}\n<|endoftext|>\nshort"
    meter = Meter()
    *parts, last = read_documents(write(tmp_path / name, content), "text", meter)
    assert last == "short"
    assert "".join(parts) == text
    assert max(map(len, parts)) <= 100
    assert all(part.endswith(between) for part in parts[:-1])
    assert len(parts) < 2 * len(text) / 100 + 1
    assert meter.cut == 1
    assert meter.first_cut == f"{tmp_path / name}, line 1"


def test_one_line_without_an_end_is_cut_which_the_meter_counts_once(tmp_path: Path) -> None:
    meter = Meter()
    path = write(tmp_path / "a.txt", "short\n" + "字" * 300_000 + "\nend")
    parts = list(read_documents(path, "text", meter))
    assert "".join(parts) == "short\n" + "字" * 300_000 + "end"  # line ends around a document are dropped
    assert len(parts) > 4
    assert (meter.cut, meter.first_cut) == (1, f"{path}, line 2")


def test_large_files_are_streamed(tmp_path: Path) -> None:
    row = json.dumps({"text": "story " * 200}) + "\n"
    write(tmp_path / "a.jsonl", row * 20_000)  # 24 MB
    write(tmp_path / "a.json", "[" + ",".join([row] * 20_000) + "]")
    for name in ("a.jsonl", "a.json"):
        tracemalloc.start()
        assert sum(1 for _ in read_documents(tmp_path / name, "text")) == 20_000
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8e6, name


def test_meter_counts_the_bytes_on_disk(tmp_path: Path) -> None:
    for path in (
        write(tmp_path / "a.jsonl", jsonl(TEXTS * 500)),
        write(tmp_path / "a.txt.gz", "line\n" * 9_999),
    ):
        meter = Meter()
        list(read_documents(path, "text", meter))
        assert meter.bytes_read == path.stat().st_size


def test_missing_column_names_those_there(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "x"}\n{"instruction": "x", "output": "y"}\n')
    message = refused(path)
    assert "line 2" in message
    assert "instruction, output" in message
    assert "data.text_column=instruction" in message
    assert "'body'" in refused(write(tmp_path / "a.csv", "id,text\n1,x\n"), "body")


def test_missing_column_of_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table({"id": [1], "story": ["x"]}), tmp_path / "a.parquet")
    assert "id, story" in refused(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("name", "content", "place", "found"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": null}\n', "line 2", "null"),
        ("a.jsonl", '{"text": ["x"]}\n', "line 1", '["x"]'),
        ("a.json", '[\n{"text": "x"},\n{"text": 7}]', "row 2 (line 3)", "7"),
        ("a.csv", "id,text\n1,x\n2\n", "line 3", "null"),
    ],
)
def test_text_that_is_no_string(tmp_path: Path, name: str, content: str, place: str, found: str) -> None:
    message = refused(write(tmp_path / name, content))
    assert f"{place}: text is {found}, not a string" in message


def test_half_a_surrogate_pair(tmp_path: Path) -> None:
    assert "line 1" in refused(write(tmp_path / "a.jsonl", '{"text": "\\ud83d"}\n'))


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.csv", "a.json"])
def test_broken_utf8(tmp_path: Path, name: str) -> None:
    head = b"text\nok\nok\n" if name == "a.csv" else b'{"text": "ok"}\n' * 3
    message = refused(write(tmp_path / name, head + b'{"text": "caf\xe9"}\n'))
    assert f"line 4, byte {len(head) + 13} (0xe9)" in message
    assert "iconv" in message


def test_utf8_cut_short_and_utf16(tmp_path: Path) -> None:
    assert "line 1, byte 3 (0xe4)" in refused(write(tmp_path / "a.txt", b"abc\xe4\xbd"))
    assert "UTF-16" in refused(write(tmp_path / "b.txt", "text".encode("utf-16")))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.gz", "a.json.gz", "a.csv.gz"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.999])
def test_gz_cut_short(tmp_path: Path, name: str, kept: float) -> None:
    noise = random.Random(1)
    texts = [str(noise.random()) for _ in range(5_000)]
    whole = gzip.compress(("\n".join(["text", *texts]) if name == "a.csv.gz" else jsonl(texts)).encode())
    path = tmp_path / name
    path.write_bytes(whole[: int(len(whole) * kept)])
    assert "cut short" in refused(path)


def test_gz_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(jsonl(TEXTS).encode())
    assert "not a sound gzip file" in refused(path)
    data = bytearray(gzip.compress(jsonl(TEXTS * 100).encode()))
    data[60:70] = b"\xff" * 10
    path.write_bytes(data)
    assert "not a sound gzip file" in refused(path)


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": "y"\n', "line 2"),
        ("a.jsonl", '[\n{"text": "x"}\n]', "line 1"),
        ("a.jsonl", '"just a string"\n', "line 1"),
        ("a.json", '[{"text": "x"},\n{"text": y}]', "row 2 (line 2)"),
        ("a.json", '[{"text": "x"}, {"text": "y', "row 2 (line 1)"),
        ("a.json", '[{"text": "x"},\n{"text": "y"}', "after row 2"),
        ("a.json", '{"text": "x"}\n3', "row 2 (line 2)"),
        ("a.json", '[{"text": "x"}] [{"text": "x"}]', "row 2"),
        ("a.csv", 'text\nfine\n"never closed\n', "line 3"),
        ("a.csv", 'text\n"a"b\n', "line 2"),
        ("a.csv", '"text"x\n', "line 1"),
    ],
)
def test_invalid_json_and_csv(tmp_path: Path, name: str, content: str, place: str) -> None:
    assert place in refused(write(tmp_path / name, content))


def test_parquet_cut_short(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.table({"text": TEXTS * 100}), path)
    path.write_bytes(path.read_bytes()[:-20])
    assert "not a whole Parquet file" in refused(path)
    path.write_bytes(b"")
    assert "not a whole Parquet file" in refused(path)
