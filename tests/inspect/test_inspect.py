"""What `python -m tinychat.inspect` says of files: those that others publish, and those that users bring."""

from __future__ import annotations

import gzip
import io
import json
import shlex
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from tests.conftest import REPOSITORY, write_rows
from tests.data.corpus.test_filters import WU
from tests.data.test_layouts import LAYOUTS, WITH_CALLS, kind_of
from tinychat.config import schema
from tinychat.config.schema import Config
from tinychat.data.corpus.chunks import Chunk, Held, write_chunk, write_corpus
from tinychat.data.look import look
from tinychat.errors import UserError
from tinychat.inspect import __main__ as program
from tinychat.inspect import layouts, measure, show, survey
from tinychat.inspect.layouts import Known

CHATS = [{"prompt": f"What is {i}? Please say.", "response": f"It is {i}, of course – no doubt."} for i in range(12)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in CHATS)


def inspected(path: Path | str, capsys: Any, *options: str, status: int = 0) -> dict[str, Any]:
    """What --json gives, and the exit status."""
    code = 0
    try:
        program.run([str(path), "--outputs", "/nonexistent", "--json", *options])
    except SystemExit as ended:
        code = int(str(ended.code))
    assert code == status
    return json.loads(capsys.readouterr().out)


def said(path: Path, capsys: Any) -> str:
    """Why the one file there cannot be trained on."""
    facts = inspected(path, capsys, status=1)
    assert not facts["usable"]
    (seen,) = facts["files"]
    return seen["problem"]


@pytest.mark.parametrize(
    ("name", "source", "row"),
    [(name, source, row) for name, source, row, *_ in LAYOUTS],
    ids=[f"{name} {number}" for number, (name, *_) in enumerate(LAYOUTS)],
)
def test_a_layout_is_known(tmp_path: Path, name: str, source: str, row: Any, capsys: Any) -> None:
    path = write_rows(tmp_path / "a.jsonl", [row, {**row, "id": "2"}])
    (group,) = inspected(path, capsys)["layouts"]
    assert (group["layout"], group["shape"], group["usable"], group["broken"]) == (name, kind_of(source), 2, 0)
    assert group["equal_rows"] == 1
    for stage, command in group["commands"].items():
        words = shlex.split(command)
        assert words == ["python", "-m", "tinychat.train", f"stage={stage}", f"data={source}", f"data.path={path}"]


def test_what_trains_on_rows_of_their_shape_comes_first() -> None:
    assert layouts.PLAIN.stages() == ("pretrain", "corpus", "tokenizer")
    assert layouts.CHUNKS.stages() == ("pretrain", "tokenizer"), "a corpus is made of no corpus"
    pairs = Known("prompt, chosen, rejected", "preferences", "preference")
    assert pairs.stages() == ("reward", "dpo", "sft", "ppo", "grpo"), "a judge learns from labels"
    assert pairs.stages(labelled=True)[:3] == ("reward", "judge", "dpo")
    asked = Known("prompts", "prompts", "prompts", checkable=True)
    assert asked.stages() == ("rlvr", "ppo", "grpo")


@pytest.mark.parametrize("beside", ["", "corpus", "corpus/web-00000.parquet", "corpus/*.parquet"])
def test_the_chunks_of_a_corpus_are_read_as_a_corpus(tmp_path: Path, beside: str, capsys: Any) -> None:
    folder = tmp_path / "run" / "corpus"
    folder.mkdir(parents=True)
    rows = [("A rose is red.", "web", "en", f"web:{n}") for n in range(3)]
    write_chunk(folder / "web-00000.parquet", rows)
    write_corpus(folder, {"web": Held(documents=3, bytes=42, chunks=[Chunk("web-00000.parquet", 3, 42)])})
    (tmp_path / "run" / "result.json").write_text(json.dumps({"status": "finished", "checkpoint": "corpus"}))
    facts = inspected(tmp_path / "run" / beside, capsys)
    assert [seen["path"] for seen in facts["files"]] == [str(folder / "web-00000.parquet")]
    (group,) = facts["layouts"]
    assert (group["usable"], group["columns_not_used"], group["before"]) == (3, {}, None)
    command = f"python -m tinychat.train stage=pretrain data=corpus data.path={folder}"
    assert group["commands"]["pretrain"] == command and "corpus" not in group["commands"]
    assert config_of(command).data.source == "corpus"


OF_SOURCES = {source: row for _, source, row, *_ in LAYOUTS}


@pytest.mark.parametrize("source", ["text", "chat", "preference", "pku_saferlhf", "prompts"])
def test_the_command_reads_the_file(tmp_path: Path, source: str, capsys: Any) -> None:
    other = json.loads(json.dumps(OF_SOURCES[source]).replace("Hello", "Good day"))
    path = write_rows(tmp_path / "a.jsonl", [OF_SOURCES[source], other])
    (group,) = inspected(path, capsys)["layouts"]
    more = ["data.judge_fraction=0", *(["stage.judge=null"] if source == "prompts" else [])]
    look(config_of(next(iter(group["commands"].values())), *more), kind_of(source))  # type: ignore[arg-type]


def config_of(command: str, *more: str) -> Config:
    schema.register()
    with initialize_config_dir(str(REPOSITORY / "conf")):
        return schema.to_config(compose("config", [*shlex.split(command)[3:], *more]))


def test_lengths_duplicates_splits_and_samples(tmp_path: Path, capsys: Any) -> None:
    rows = [*CHATS, CHATS[0], {**CHATS[1], "response": "Another."}, {"prompt": "Hi", "response": "", "x": 1}]
    write_rows(tmp_path / "train.jsonl", rows)
    write_rows(tmp_path / "valid.jsonl", CHATS[:3])
    facts = inspected(tmp_path, capsys)
    (group,) = facts["layouts"]
    assert [seen["split"] for seen in facts["files"]] == ["train", "validation"]
    assert (group["rows"], group["usable"], group["broken"]) == (18, 17, 1)
    assert group["equal_rows"] == 4  # one in training, and validation's three
    assert group["first_equal_row"] == f"{tmp_path}/train.jsonl, line 13"
    assert group["equal_prompts"] == 5
    assert group["prompts_in_training_and_others"] == 3
    assert group["first_broken"] == [f"{tmp_path}/train.jsonl, line 15: empty reply (response)"]
    assert group["reasons"] == {"empty reply (response)": 1}
    assert group["replies"] == {"1": 17}
    assert group["roles"] == {"user": 17, "assistant": 17}
    assert group["commands"]["sft"].endswith(f"data=chat data.path={tmp_path} data.on_bad_row=skip")
    lengths = group["lengths"]
    assert lengths["unit"] == "characters"
    assert sum(count for *_, count in lengths["histogram"]) == lengths["rows"] == 17
    assert lengths["most"] == max(len(row["prompt"]) + len(row["response"]) for row in CHATS)
    assert group["characters"] == sum(len(row["prompt"]) + len(row["response"]) for row in [*rows[:-1], *CHATS[:3]])
    (first,), *_ = group["samples"]
    trained = [part["text"] for part in first["parts"] if part["trained"]]
    assert trained == [f" {CHATS[0]['response']}<|endoftext|>"]


def test_of_a_pair_the_last_reply_is_trained_and_the_longer_side_counts(tmp_path: Path, capsys: Any) -> None:
    before = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: "
    path = write_rows(tmp_path / "a.jsonl", [{"chosen": f"{before}yes", "rejected": f"{before}never"}])
    (group,) = inspected(path, capsys)["layouts"]
    (sides,) = group["samples"]
    texts = [[part["text"] for part in side["parts"] if part["trained"]] for side in sides]
    assert texts == [[" yes<|endoftext|>"], [" never<|endoftext|>"]]
    assert group["lengths"]["most"] == len("abc") + len("never")


def test_tokens_with_a_tokenizer(tmp_path: Path, tokenizer_folder: Path, capsys: Any) -> None:
    path = write_rows(tmp_path / "a.jsonl", CHATS)
    facts = inspected(path, capsys, "--tokenizer", str(tokenizer_folder), "--template", "chatml")
    (group,) = facts["layouts"]
    assert facts["tokenizer"] == str(tokenizer_folder)
    assert group["lengths"]["unit"] == "tokens"
    sample = group["samples"][0][0]
    assert sample["parts"][0]["text"].startswith("<|im_start|>user\n")
    assert sample["tokens"] == group["lengths"]["least"] or sample["tokens"] <= group["lengths"]["most"]


def test_tool_calls_are_found_and_the_command_shows_them(tmp_path: Path, capsys: Any) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"messages": WITH_CALLS}])
    (group,) = inspected(path, capsys)["layouts"]
    assert (group["usable"], group["broken"], group["with_tool_calls"]) == (1, 0, 1)
    assert "data.tool_calls=text" in group["commands"]["sft"]


def test_a_folder_of_several_layouts(tmp_path: Path, capsys: Any) -> None:
    write_rows(tmp_path / "chats.jsonl", CHATS)
    write_rows(tmp_path / "more.jsonl", CHATS)
    write_rows(tmp_path / "pairs.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    (tmp_path / "notes.txt").write_text("Notes.\n\nMore.\n")
    (tmp_path / "asked.txt").write_text("How are you?\nWho is Ada?\n")
    facts = inspected(tmp_path, capsys)
    by_name = {group["layout"]: group for group in facts["layouts"]}
    assert set(by_name) == {"prompt and completion", "prompt, chosen, rejected", "plain text"}
    assert "2 files of this layout lie among others" in by_name["prompt and completion"]["before"]
    assert f"data.path={tmp_path}/pairs.jsonl" in by_name["prompt, chosen, rejected"]["commands"]["dpo"]
    assert "ppo" not in by_name["plain text"]["commands"]  # notes have a blank line
    (alone,) = inspected(tmp_path / "asked.txt", capsys)["layouts"]
    assert "data=prompts" in alone["commands"]["ppo"]
    assert "data=text" in alone["commands"]["pretrain"]


def test_rows_are_read_up_to_a_number(tmp_path: Path, capsys: Any) -> None:
    path = write_rows(tmp_path / "a.jsonl", CHATS)
    facts = inspected(path, capsys, "--rows", "5")
    assert facts["files"][0]["rows"] == 5
    assert not facts["files"][0]["read_to_its_end"]
    assert inspected(path, capsys, "--rows", "12")["files"][0]["read_to_its_end"]


def test_the_sample_is_drawn_from_all_rows(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(survey, "SAMPLE", 10)
    monkeypatch.setattr(survey, "MOST", 50)
    monkeypatch.setattr(show, "MOST", 50)
    path = write_rows(tmp_path / "a.jsonl", [{"text": f"text number {i}"} for i in range(200)])
    (group,) = inspected(path, capsys)["layouts"]
    assert (group["usable"], group["sampled_rows"], group["remembered_rows"]) == (200, 10, 50)
    numbers = [int(row[0]["parts"][0]["text"].split()[2].split("<")[0]) for row in group["samples"]]
    assert max(numbers) > 30


def packed(text: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.jsonl", text)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        (
            "a.jsonl",
            LINES.encode("utf-16"),
            "is written in UTF-16; convert it: iconv -f UTF-16 -t UTF-8 a.jsonl > NEW.jsonl",
        ),
        ("a.jsonl", LINES.encode("utf-16-be"), "is written in UTF-16BE; convert it"),
        ("a.jsonl", LINES.encode("cp1252"), "is written in WINDOWS-1252; convert it"),
        ("a.csv", "text;n\nGrößere Öfen für Äpfel;1\n".encode("cp1252"), "is written in WINDOWS-1252"),
        ("a.jsonl", '{"text": "你好吗，我很好，谢谢你。"}\n'.encode("gbk"), "is written in GB18030; convert it"),
        (
            "a.jsonl",
            json.dumps(CHATS, indent=1).encode(),
            "is one list of JSON objects, not an object a line; end its name in .json",
        ),
        ("a.jsonl", packed(LINES), "is a zip archive; unpack it: unzip"),
        ("a.jsonl", gzip.compress(LINES.encode(), mtime=0), "is compressed with gzip; end its name in .gz"),
        ("a.jsonl.gz", LINES.encode(), "is a text that is not compressed; take .gz from its name"),
        ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:60], "compressed file cut short"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS, not the file itself"),
        ("a.jsonl", b"<!DOCTYPE html><html></html>", "is a web page"),
        ("a.csv", b"prompt\tresponse\na\tb\n", "is parted by tabs; end its name in .tsv"),
        ("a.txt", LINES.encode(), "holds JSON; end its name in .jsonl"),
        ("a.jsonl", b"\n \n", "holds no rows"),
        (
            "a.jsonl",
            b'{"foo": "some text", "n": 1}\n',
            "no layout that is known; its columns are foo, n; as documents: data=text data.text_column=foo",
        ),
        ("a.jsonl", b"7\n8\n", "line 1: no row of the first is an object with columns"),
        ("a.csv", b"a,b\n1,2\n", "no layout that is known; its columns are a, b; rename them"),
    ],
)
def test_files_that_cannot_be_read_are_told_what_they_are(
    tmp_path: Path, name: str, content: bytes, why: str, capsys: Any
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    problem = said(path, capsys)
    assert why in problem
    assert str(path) in problem


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b"\xef\xbb\xbf" + LINES.encode()),
        ("a.jsonl", LINES.replace("\n", "\r\n").encode()),
        ("a.json", json.dumps(CHATS).encode()),
        ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
        (
            "a.csv",
            ("\ufeffprompt;response\r\n" + "".join(f"Was ist {i};Es ist, ja, {i}\r\n" for i in range(12))).encode(),
        ),
    ],
)
def test_files_of_other_programs_that_can_be_read(tmp_path: Path, name: str, content: bytes, capsys: Any) -> None:
    (tmp_path / name).write_bytes(content)
    (group,) = inspected(tmp_path / name, capsys)["layouts"]
    assert (group["layout"], group["usable"], group["broken"]) == ("prompt and completion", 12, 0)


def test_a_line_that_is_no_json_ends_a_training_and_is_no_end_here(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(LINES + "{broken\n" + LINES)
    facts = inspected(path, capsys, status=1)
    assert "a.jsonl, line 13: not valid JSON" in facts["files"][0]["problem"]
    (group,) = facts["layouts"]
    assert (group["usable"], group["broken"]) == (24, 1)
    assert group["before"] == "mend a.jsonl, which ends every training"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["nothere"], "nothere: no such file or folder"),
        (["a.jsonl", "--rows", "0"], "--rows 0: must be at least 1"),
        (["a.jsonl", "--row", "5"], "unrecognized arguments: --row 5; see python -m tinychat.inspect --help"),
        (["a.xyz"], "a.xyz: cannot be read; its name says nothing that is known"),
        (["empty.jsonl"], "the file is empty"),
        (["a.jsonl", "--tokenizer", "nothere/x/y"], "nothere/x/y: no such folder"),
        (["a.jsonl", "--template", "chatm"], "Did you mean chatml?"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, monkeypatch: Any, arguments: list[str], why: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "a.jsonl", CHATS)
    (tmp_path / "a.xyz").write_text("x")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError) as caught:
        program.run(arguments)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_scripts_where_languages_cannot_be_told(monkeypatch: Any) -> None:
    monkeypatch.setattr(measure.importlib.util, "find_spec", lambda name: None)
    texts = [
        "你好吗？我很好，谢谢你。",
        "Hello, how are you my friend?",
        "Как дела, мой друг сегодня?",
        "こんにちは、元気ですか。",
        "안녕하세요, 잘 지내세요? 반갑습니다",
    ]
    shares, how = measure.languages_of([(text, 1.0) for text in texts])
    assert shares == dict.fromkeys(("Chinese characters", "Latin", "Cyrillic", "Japanese", "Korean"), 0.2)
    assert how.startswith("by script; by language with py3langid: pip install")


def test_short_chinese_with_latin_in_it_is_chinese() -> None:
    """py3langid alone says Wu, as it does in stage=corpus."""
    shares, _ = measure.languages_of([(WU, 1.0)])
    assert shares == {"zh": 1.0}


def test_the_tables(tmp_path: Path, capsys: Any) -> None:
    """As a person sees them; control characters of the data are shown, not obeyed."""
    path = write_rows(
        tmp_path / "a.jsonl", [{"prompt": "\x1b[2J", "response": "x"}, *CHATS, {"prompt": "a", "response": 3}]
    )
    program.run([str(path), "--outputs", "/nonexistent"])
    out = capsys.readouterr().out
    for part in (
        "read it: python -m tinychat.train stage=sft data=chat data.path=",
        "14, 13 can be used, 1 cannot",
        "a.jsonl, line 14: response is 3, not a string",
        "█",
        "⟦ It is 7, of course – no doubt.<|endoftext|>⟧",
        "␛[2J",
    ):
        assert part in out
    assert "\x1b" not in out
