"""python -m tinychat.score: rows in, rows with scores out."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import environment_of, write_rows
from tests.reward_models import reward_model, score_texts
from tinychat import score
from tinychat.errors import UserError
from tinychat.models.scorer import Scorer
from tinychat.stages.requests import Judge
from tinychat.text.chat_render import Refused
from tinychat.text.tokenizer import load_saved_tokenizer

PROMPT = [{"role": "user", "content": "the cat"}]
ROWS = [
    {"prompt": "the cat", "response": "the dog", "id": 7},
    {"messages": [*PROMPT, {"role": "assistant", "content": "the dog"}]},
    {"prompt": PROMPT, "response": "sat on 从"},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reward_model(tmp_path_factory.mktemp("score") / "rm")


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_line_for_each_row_with_its_score(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_rows(tmp_path / "rows.jsonl", ROWS)
    score.run([str(model), str(file), "--batch_size=1"])
    said = capsys.readouterr()
    found = lines(said.out)
    expected = score_texts(
        Scorer(str(model), "cpu", torch.float32, 4), [PROMPT] * 3, ["the dog", "the dog", "sat on 从"]
    )
    assert [row["score"] for row in found] == pytest.approx(expected, abs=1e-5)
    assert [{key: value for key, value in row.items() if key != "score"} for row in found] == ROWS
    assert "3 rows scored (standard)" in said.err and "accuracy" not in said.err


def test_pairs_get_both_scores_the_winner_and_an_accuracy(model: Path, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "pairs.json"
    sides = [[*PROMPT, {"role": "assistant", "content": text}] for text in ("sat on", "the dog")]
    pairs = [
        {"prompt": "the cat", "chosen": "the dog", "rejected": "sat on"},
        {"chosen": sides[0], "rejected": sides[1]},
    ]
    file.write_text(json.dumps(pairs))
    score.run([str(model), str(file), "--out", str(tmp_path / "out" / "scored.jsonl")])
    said = capsys.readouterr()
    one, other = lines((tmp_path / "out" / "scored.jsonl").read_text())
    assert said.out == "" and [path.name for path in (tmp_path / "out").iterdir()] == ["scored.jsonl"]
    assert one["score_chosen"] == pytest.approx(other["score_rejected"], abs=1e-6)
    assert {one["wins"], other["wins"]} == {"chosen", "rejected"}
    assert (one["wins"] == "chosen") == (one["score_chosen"] > one["score_rejected"])
    assert "accuracy 50.0% (95 %: 9.5% to 90.5%): the chosen reply scores higher in 1 of 2 pairs" in said.err


def test_rows_come_from_a_pipe(model: Path, monkeypatch: Any, capsys: Any) -> None:
    for text in ("\n".join(map(json.dumps, ROWS)), json.dumps(ROWS)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        score.run([str(model)])
        assert len(lines(capsys.readouterr().out)) == 3


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"prompt": "the cat"}, "line 2: has no 'response' (nor messages, nor chosen and rejected); it has prompt"),
        ({"prompt": 7, "response": "x"}, "line 2: 'prompt' must be a text or a list of messages"),
        ({"prompt": "the cat", "response": " "}, "line 2: empty reply"),
        ({"prompt": "the cat", "chosen": "x", "rejected": "x "}, "line 2: chosen and rejected are the same text"),
        ([1], "line 2: is no object"),
        ({"prompt": "cat " * 80, "response": "x"}, "line 2: prompt and reply have"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(model: Path, tmp_path: Path, bad: Any, said: str) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [ROWS[0], bad])
    with pytest.raises(UserError) as error:
        score.run([str(model), str(file), "--out", str(tmp_path / "out.jsonl")])
    assert str(error.value).startswith(f"{file}, {said}") and "\n" not in str(error.value)
    assert not (tmp_path / "out.jsonl").exists()


NO_SYSTEM = """{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}\
{% if m.role == 'assistant' %}\
{% generation %}{{ m.content + eos_token }}{% endgeneration %}{% else %}{{ m.content + '\n' }}\
{% endif %}{% endfor %}"""


def test_a_row_that_the_template_refuses_is_named(model: Path, tmp_path: Path) -> None:
    picky = tmp_path / "picky"
    shutil.copytree(model, picky)
    tokenizer = load_saved_tokenizer(str(picky))
    tokenizer.chat_template = NO_SYSTEM
    tokenizer.save_pretrained(picky)
    told = [{"role": "system", "content": "the mat"}, *PROMPT]
    file = write_rows(tmp_path / "rows.jsonl", [ROWS[0], {"prompt": told, "response": "the dog"}])
    with pytest.raises(UserError) as error:
        score.run([str(picky), str(file), "--out", str(tmp_path / "out.jsonl")])
    said = str(error.value)
    assert said.startswith(f"{file}, line 2: chat template: ") and "no system role" in said and "system, user" in said
    assert not (tmp_path / "out.jsonl").exists()

    scorer = Scorer(str(picky), "cpu", torch.float32, 4)
    judged = Judge(scorer)([PROMPT, told, PROMPT], ["the dog", "the dog", "the cat " * 80])
    assert judged == [pytest.approx(score_texts(scorer, [PROMPT], ["the dog"])[0]), None, None]
    with pytest.raises(Refused, match="no system role"):
        score_texts(scorer, [told], ["the dog"])


def test_bad_arguments_and_inputs(model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"{broken")))
    for arguments, said in (
        ([str(model), "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        ([str(model), "--batch-size", "0"], "--batch-size 0: must be at least 1"),
        ([str(model), "--frobnicate"], "see python -m tinychat.score --help"),
        ([str(model), "x", "--out", str(tmp_path)], "is a folder; name a file"),
        ([str(model)], "standard input, line 1"),
        ([str(model.with_name("rm-base")), str(write_rows(tmp_path / "r.jsonl", ROWS))], "is a language model"),
    ):
        with pytest.raises(UserError) as error:
            score.run(arguments)
        assert said in str(error.value)


def test_help_and_wrong_options_load_no_torch() -> None:
    code = "import sys; from tinychat import score; score.parse(['CKPT', 'FILE']); assert 'torch' not in sys.modules"
    begin = time.process_time()
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment_of(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert time.process_time() - begin < 5


def test_a_row_with_tool_calls_is_scored_as_text_and_written_as_it_was() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    row = {"messages": [*PROMPT, call, {"role": "tool", "content": "7"}, {"role": "assistant", "content": "Seven."}]}
    read = score.row_of("a.jsonl, line 1", row)
    assert read.content == row
    assert [message["role"] for message in read.prompt] == ["user", "assistant", "user"]
    assert read.prompt[1]["content"] == '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    assert read.replies == ("Seven.",)
