from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.chats.test_sources import config as chat_config
from tests.data.chats.test_sources import write
from tinychat.config.schema import DataConfig, OnBadRow
from tinychat.data.chats.rows import BadRow
from tinychat.data.files.splits import HoldOut, Split
from tinychat.data.preferences.prompts import PromptRow, prompt_row, prompt_source
from tinychat.errors import UserError

USER = [{"role": "user", "content": "Why?"}]


def config(path: Path | str | None = None, **changes: Any) -> DataConfig:
    return chat_config(path, **{"source": "prompts", "name": "prompts", **changes})


def prompts(data: DataConfig, split: Split = "train") -> list[str]:
    return [row.messages[-1]["content"] for row in prompt_source(data, split).rows()]


def refused(data: DataConfig, split: Split = "train") -> str:
    with pytest.raises(UserError) as caught:
        prompts(data, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


ROWS = [
    ("Why?", PromptRow(USER, "p")),
    ({"prompt": "Why?", "category": " fire ", "harmful": "yes"}, PromptRow(USER, "p", "fire", True)),
    ({"prompt": USER, "harmful": False}, PromptRow(USER, "p", harmful=False)),
    ({"prompt": json.dumps(USER)}, PromptRow(USER, "p")),
    ({"messages": [*USER, {"role": "assistant", "content": "So."}]}, PromptRow(USER, "p", reference="So.")),
    (
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}], "answer": "word"},
        PromptRow(USER, "p", answer="word", reference="So."),
    ),
    ({"question": "Why?", "answer": "So."}, PromptRow(USER, "p", reference="So.")),
    ({"prompt": "Why?", "reference": "4", "answer": "number"}, PromptRow(USER, "p", answer="number", reference="4")),
    (
        {"instruction": "Why?", "input": "", "system": "Be kind."},
        PromptRow([{"role": "system", "content": "Be kind."}, *USER], "p"),
    ),
    ({"instruction": "Why?", "input": "x"}, PromptRow([{**USER[0], "input": "x"}], "p")),
    ({"prompt": "Why?", "input": "x"}, PromptRow([{**USER[0], "input": "x"}], "p")),
    (
        {"question": "Why?", "system_prompt": "Be kind.", "history": [["Hello", "Hi"]]},
        PromptRow(
            [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": "Hi"},
                *USER,
            ],
            "p",
        ),
    ),
]


@pytest.mark.parametrize(("row", "expected"), ROWS)
def test_what_a_row_gives(row: Any, expected: PromptRow) -> None:
    assert prompt_row(row, "p") == expected


def test_what_is_not_used_of_a_prompt_is_named() -> None:
    assert prompt_row({"prompt": "Why?", "response": "So.", "id": 3, "context": ""}, "p").unused == ("response", "id")
    assert prompt_row({"prompt": "Why?", "category": "a", "harmful": True}, "p").unused == ()


BAD = [
    (3, "3 is not an object"),
    ({"text": "a"}, "no prompt in the columns text; known are prompt, question, instruction, query or messages"),
    ({"prompt": " "}, "empty prompt (prompt)"),
    ({"prompt": 3}, "the content of message 1 (user) is 3, not a string"),
    ({"messages": []}, "no messages"),
    ({"messages": [*USER, *USER]}, "roles out of order: message 2, the user's, follows the user's"),
    ({"prompt": "Why?", "harmful": "perhaps"}, 'harmful is "perhaps", neither true nor false'),
    ({"prompt": "Why?", "category": 3}, "category is 3, not a string"),
    ({"prompt": "Why?", "answer": "number"}, "how a reply is checked, but no column 'reference' says it"),
    ({"prompt": "Why?", "answer": "4", "reference": "4"}, "beside a reference it is one of exact, number, word"),
]


@pytest.mark.parametrize(("row", "why"), BAD)
def test_bad_rows(tmp_path: Path, row: Any, why: str) -> None:
    with pytest.raises(BadRow) as caught:
        prompt_row(row, "p")
    assert why in str(caught.value)
    path = write(tmp_path / "a.jsonl", [{"prompt": "One"}, row])
    other = str(write(tmp_path / "val.jsonl", [{"prompt": "Two"}]))
    data = config(path, val_path=other)
    assert refused(data).startswith(f"{path}, line 2: ")
    assert prompts(dataclasses.replace(data, on_bad_row=OnBadRow.skip)) == ["One"]


def test_formats(tmp_path: Path) -> None:
    other = str(write(tmp_path / "val.jsonl", [{"prompt": "z"}]))
    (tmp_path / "a.txt").write_text("a0\n\n  a1 \na2\n")
    (tmp_path / "a.csv").write_text("prompt,harmful\na0,true\na1,\na2,false\n")
    (tmp_path / "a.json").write_text(
        json.dumps([{"messages": [{"role": "user", "content": f"a{i}"}]} for i in range(3)])
    )
    for name in ("a.txt", "a.csv", "a.json"):
        assert prompts(config(tmp_path / name, val_path=other)) == ["a0", "a1", "a2"]
    rows = list(prompt_source(config(tmp_path / "a.txt", val_path=other), "train").rows())
    assert rows[1].place == f"{tmp_path / 'a.txt'}, line 3"
    harmful = [row.harmful for row in prompt_source(config(tmp_path / "a.csv", val_path=other), "train").rows()]
    assert harmful == [True, None, False]


def test_rows_that_differ_in_what_judges_a_reply_are_different(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = {"prompt": "2 + 2?", "reference": "4", "answer": "number"}
    rows = [first, {**first, "reference": "four", "answer": "word"}, {**first, "reference": "vier"}, first]
    path = write(tmp_path / "a.jsonl", rows)
    other = str(write(tmp_path / "val.jsonl", [{"prompt": "z"}]))
    source = prompt_source(config(path, val_path=other), "train")
    with caplog.at_level("INFO"):
        assert [row.reference for row in source.rows()] == ["4", "four", "vier"]
    assert f"1 rows left out, whose prompt an earlier row has; the first at {path}, line 4" in caplog.text
    write(path, [{"prompt": "2 + 2?", "reference": reference} for reference in ("4", "four")])
    assert len(list(source.rows())) == 2


def test_splits(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": f"Say {i}."} for i in range(300)] + [{"prompt": "Say 1."}])
    train, validation = prompts(config(path)), prompts(config(path), "validation")
    assert sorted(train + validation) == sorted({f"Say {i}." for i in range(300)})
    assert 15 <= len(validation) <= 50  # 30 expected, standard deviation 5
    assert len(prompts(config(path, max_rows=20))) == 20
    write(tmp_path / "own/train.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    write(tmp_path / "own/valid.jsonl", [{"prompt": "a"}])
    assert (prompts(config(tmp_path / "own")), prompts(config(tmp_path / "own"), "validation")) == (["b"], ["a"])
    source = prompt_source(config(path), "train")
    others = (config(path, seed=2), config(path, max_rows=20), config(tmp_path / "own"))
    assert len({source.fingerprint(), *(prompt_source(one, "train").fingerprint() for one in others)}) == 4


def test_nothing_to_read(tmp_path: Path) -> None:
    blank = tmp_path / "a.txt"
    blank.write_text("\n \n")
    assert refused(config(blank)).startswith(f"no prompts in {blank}")
    assert refused(config()).startswith("data.path is null: data=prompts needs a file, folder or glob (txt, jsonl, ")
    blank.write_text("")
    assert "the file is empty (0 bytes)" in refused(config(blank))
    blank.write_text("a\n")
    assert "all 1 prompts are in the validation data too" in refused(config(blank, val_path=str(blank)))
    lacking: Split = "validation" if HoldOut(1, 0.1, "train").keeps("a\0") else "train"
    assert "data.val_fraction=0.1 leaves no" in refused(config(blank), lacking)


def test_rows_with_a_reference_that_name_no_kind_of_answer_have_the_given_one(tmp_path: Path) -> None:
    rows = [
        {"prompt": "1 + 1?", "reference": 2},
        {"prompt": "Red?", "reference": "no", "answer": "yes_no"},
        {"prompt": "Hi"},
    ]
    found = [prompt_row(row, "p", "math") for row in rows]
    assert [(row.reference, row.answer) for row in found] == [("2", "math"), ("no", "yes_no"), ("", "")]


@pytest.mark.parametrize(
    "row", [{"prompt": "a", "answer": "evil.py:f"}, {"prompt": "a", "reference": "b", "answer": "x/evil.py:f"}]
)
def test_a_row_that_names_code_is_refused(row: dict[str, str]) -> None:
    with pytest.raises(
        BadRow, match=r"a file of data names no code; if you trust it, say data.verifiers=\[.*evil.py:f\]"
    ):
        prompt_row(row, "p")
