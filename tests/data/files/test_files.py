from __future__ import annotations

from pathlib import Path

import pytest

from tinychat.data.files.splits import find_files, find_splits, format_of
from tinychat.errors import UserError


def make(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x", "utf-8")
    return folder


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.txt", "txt"),
        ("a.b.TXT.gz", "txt"),
        ("a.jsonl.gz", "jsonl"),
        ("a.ndjson", "jsonl"),
        ("a.json", "json"),
        ("a.csv.gz", "csv"),
        ("a.tsv", "tsv"),
        ("a.parquet", "parquet"),
        ("a.parquet.gz", None),
        ("a.gz", None),
        ("a.md", None),
        ("README", None),
    ],
)
def test_formats(name: str, kind: str | None) -> None:
    assert format_of(Path(name)) == kind


def test_folder_is_searched_with_subfolders_but_not_hidden_ones(tmp_path: Path) -> None:
    make(tmp_path, "b.txt", "sub/a.jsonl", ".git/c.txt", ".d.txt", "README.md")
    assert names(find_files(str(tmp_path))) == ["b.txt", "a.jsonl"]


def test_glob(tmp_path: Path) -> None:
    make(tmp_path, "a1.txt", "a2.txt", "b.txt", "a3.png")
    assert names(find_files(f"{tmp_path}/a*")) == ["a1.txt", "a2.txt"]


def test_one_file_is_training_whatever_its_name(tmp_path: Path) -> None:
    make(tmp_path, "validation.jsonl", "train.jsonl")
    splits = find_splits(str(tmp_path / "validation.jsonl"))
    assert names(splits.train) == ["validation.jsonl"]
    assert splits.validation == []


@pytest.mark.parametrize(
    ("found", "train", "validation", "left_out"),
    [
        # the layout of tinystories here: the head of the validation split is neither training nor the split
        (
            ["train.jsonl.gz", "validation.jsonl.gz", "validation_head.txt"],
            ["train.jsonl.gz"],
            ["validation.jsonl.gz"],
            ["validation_head.txt"],
        ),
        # a clone of the hub's TinyStories
        (
            [
                "TinyStories-train.txt",
                "TinyStories-valid.txt",
                "data/train-00000-of-00002-2d5a1467fff1081b.parquet",
                "data/train-00001-of-00002-5852b56a2bd28fd9.parquet",
                "data/validation-00000-of-00001-869c898b519ad725.parquet",
            ],
            [
                "train-00000-of-00002-2d5a1467fff1081b.parquet",
                "train-00001-of-00002-5852b56a2bd28fd9.parquet",
            ],
            ["validation-00000-of-00001-869c898b519ad725.parquet"],
            ["TinyStories-train.txt", "TinyStories-valid.txt"],
        ),
        (
            ["wiki.train.txt", "wiki.valid.txt", "wiki.test.txt"],
            ["wiki.train.txt"],
            ["wiki.valid.txt"],
            ["wiki.test.txt"],
        ),
        (["train/a.txt", "train/b.txt", "val/a.txt"], ["a.txt", "b.txt"], ["a.txt"], []),
        (["train_1.csv", "train_2.csv"], ["train_1.csv", "train_2.csv"], [], []),
        (["stories.txt", "val.txt"], ["stories.txt"], ["val.txt"], []),
        (["train.txt", "notes.txt"], ["train.txt"], [], ["notes.txt"]),
        # words that only look like the name of a split
        (
            ["testament.txt", "valley.txt", "trains.txt"],
            ["testament.txt", "trains.txt", "valley.txt"],
            [],
            [],
        ),
    ],
)
def test_splits_of_a_folder(
    tmp_path: Path, found: list[str], train: list[str], validation: list[str], left_out: list[str]
) -> None:
    splits = find_splits(str(make(tmp_path, *found)))
    assert (names(splits.train), names(splits.validation), names(splits.left_out)) == (
        train,
        validation,
        left_out,
    )


def test_glob_is_divided_too_unless_it_names_one_split(tmp_path: Path) -> None:
    folder = make(tmp_path / "test", "train.jsonl", "valid.jsonl")  # the folder's own name decides nothing
    splits = find_splits(f"{folder}/*.jsonl")
    assert (names(splits.train), names(splits.validation)) == (["train.jsonl"], ["valid.jsonl"])
    assert names(find_splits(f"{folder}/val*").train) == ["valid.jsonl"]


def refused(path: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        find_splits(str(path))
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_errors_name_the_path_and_what_works(tmp_path: Path) -> None:
    assert "no such file or folder" in refused(tmp_path / "missing")
    assert "no such file or folder" in refused(f"{tmp_path}/*.txt")
    assert "it is empty" in refused(tmp_path)
    make(tmp_path, "a.pdf", "b.md")
    message = refused(tmp_path)
    assert ".md, .pdf" in message
    assert "jsonl" in message
    assert "a.pdf" in refused(tmp_path / "a.pdf")
    assert "none of the 1 matches" in refused(f"{tmp_path}/*.pdf")
    (tmp_path / "c.txt").touch()
    assert "empty (0 bytes)" in refused(tmp_path / "c.txt")
    assert "empty (0 bytes)" in refused(tmp_path)
