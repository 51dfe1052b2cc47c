"""python -m tinychat.generate: prompts in, replies out."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.chat_models import babbler, saved
from tests.conftest import environment_of, write_rows
from tests.reward_models import LORA, language_model, reward_model, score_texts, stir
from tinychat import score
from tinychat.data.chats.files import find_layout
from tinychat.errors import UserError
from tinychat.generate import __main__ as program
from tinychat.generate import replies as module
from tinychat.models.checkpoints import save_weights, saved_parameters, start_model
from tinychat.models.generation.generate import continue_texts
from tinychat.models.generation.sampling import SamplingOptions
from tinychat.models.scorer import Scorer

ROWS: list[dict[str, Any]] = [
    {"prompt": "the cat", "id": "a", "source": "mine"},
    {"instruction": "sat on", "input": "the mat", "system": "be short"},
    {"messages": [{"role": "user", "content": "the dog"}, {"role": "assistant", "content": "sat"}], "answer": "exact"},
    {"prompt": [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "the mat"))]},
]
SHORT = ["--max-new-tokens", "6"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model beside its language model, of the same tokenizer and template."""
    return reward_model(tmp_path_factory.mktemp("generate") / "rm").with_name("rm-base")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "prompts.jsonl", ROWS)


def ask(capsys: Any, *arguments: Any) -> list[dict[str, Any]]:
    capsys.readouterr()
    program.run([str(argument) for argument in arguments])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_line_for_each_prompt_with_what_its_row_brought(model: Path, prompts: Path, capsys: Any) -> None:
    found = ask(capsys, model, "--prompts", prompts, "--system", "be kind", *SHORT)
    assert [line["id"] for line in found] == ["a", 1, 2, 3]
    assert found[0]["source"] == "mine" and found[0]["system"] == "be kind" and found[0]["prompt"] == "the cat"
    assert (found[1]["prompt"], found[1]["input"], found[1]["system"]) == ("sat on", "the mat", "be short")
    assert (found[2]["prompt"], found[2]["reference"], found[2]["answer"]) == ("the dog", "sat", "exact")
    assert [message["role"] for message in found[3]["prompt"]] == ["system", "user", "assistant", "user"]
    assert all(line["response"] and line["finish"] == "length" and line["tokens"] == 6 for line in found)


def test_the_lines_are_rows_of_score_and_of_chat_data(model: Path, prompts: Path, tmp_path: Path, capsys: Any) -> None:
    reward = model.with_name("rm")
    out = tmp_path / "out.jsonl"
    assert ask(capsys, model, "--prompts", prompts, "--reward", reward, "--out", out, *SHORT) == []
    score.run([str(reward), str(out)])
    for line in map(json.loads, capsys.readouterr().out.splitlines()):
        assert find_layout(line, "here").row(line, "here").messages[-1]["content"] == line["response"]
    own = [json.loads(line)["score"] for line in out.read_text().splitlines()]
    score.run([str(reward), str(out)])
    theirs = [json.loads(line)["score"] for line in capsys.readouterr().out.splitlines()]
    assert own == pytest.approx(theirs, abs=1e-4)


def test_a_seed_gives_the_same_replies_in_any_batch_and_with_more_beside_them(
    model: Path, prompts: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    asked = (model, "--prompts", prompts, *SHORT)
    whole = ask(capsys, *asked, "-n", 3)
    assert len({line["response"] for line in whole}) > 6
    monkeypatch.setattr(module, "CHUNKS", 1)
    for batch_size in (1, 2, 5):
        assert ask(capsys, *asked, "-n", 3, "--batch-size", batch_size) == whole
    assert [line["response"] for line in ask(capsys, *asked)] == [line["response"] for line in whole[::3]]
    fewer = write_rows(tmp_path / "fewer.jsonl", ROWS[:2])
    assert ask(capsys, model, "--prompts", fewer, *SHORT, "-n", 3) == whole[:6]
    assert ask(capsys, *asked, "-n", 3, "--seed", 2) != whole


def test_the_best_replies_are_those_that_the_reward_model_scores_highest(
    model: Path, prompts: Path, capsys: Any
) -> None:
    reward = model.with_name("rm")
    asked = (model, "--prompts", prompts, "--reward", reward, *SHORT)
    every = ask(capsys, *asked, "-n", 5)
    best = ask(capsys, *asked, "--best-of", 5, "-n", 2)
    scorer = Scorer(str(reward), "cpu", torch.float32, 8)
    for place in range(len(ROWS)):
        own, kept = every[place * 5 : place * 5 + 5], best[place * 2 : place * 2 + 2]
        assert kept[0]["scores"] == [line["score"] for line in own]
        assert [line["score"] for line in kept] == sorted(kept[0]["scores"], reverse=True)[:2]
        for line in kept:
            assert own[line["sample"]]["response"] == line["response"]
    line = best[0]
    (score,) = score_texts(scorer, [[{"role": "user", "content": "the cat"}]], [line["response"]])
    assert line["score"] == pytest.approx(score, abs=1e-4)


def test_a_text_is_continued_as_chat_continues_it(tmp_path: Path, capsys: Any) -> None:
    folder = saved(tmp_path / "pretrained")
    texts = tmp_path / "texts.txt"
    texts.write_text("the cat \n\nsat on 从\n")
    found = ask(capsys, folder, "--raw", "--prompts", texts, "--greedy", *SHORT)
    own = continue_texts(*babbler(), ["the cat ", "sat on 从"], SamplingOptions(greedy=True, max_new_tokens=6))
    assert [line["response"] for line in found] == own
    assert [line["prompt"] for line in found] == ["the cat ", "sat on 从"]


def test_a_reply_ends_before_the_first_text_that_stops_it(model: Path, prompts: Path, capsys: Any) -> None:
    asked = (model, "--prompts", prompts, "--max-new-tokens", 24)
    free = ask(capsys, *asked)
    text = free[0]["response"]
    stops = (text[6:8], text[3:5])
    found = ask(capsys, *asked, *(f"--stop={stop}" for stop in stops))
    for line, whole in zip(found, free, strict=True):
        places = [place for stop in stops if (place := whole["response"].find(stop)) >= 0]
        assert line["response"] == whole["response"][: min(places, default=None)].strip()
        assert line["finish"] == ("stop" if places else whole["finish"])
        assert line["tokens"] <= whole["tokens"] if places else line["tokens"] == whole["tokens"]
    assert found[0]["finish"] == "stop" and found[0]["tokens"] < 24


def test_prompts_come_from_a_pipe_in_whatever_shape(model: Path, capsys: Any, monkeypatch: Any) -> None:
    for text, count in (("the cat\n[sat] on\n", 2), (json.dumps(ROWS), 4), ("\n".join(map(json.dumps, ROWS)), 4)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert len(ask(capsys, model, "--prompts", "-", *SHORT)) == count


def test_a_file_cut_short_is_gone_on_with(model: Path, prompts: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "new" / "out.jsonl"
    asked = (model, "--prompts", prompts, "-n", 2, "--out", out, *SHORT)
    ask(capsys, *asked)
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    for left in (b"", b"".join(lines[:3]), b"".join(lines[:4]) + lines[4][:9], whole):
        out.write_bytes(left)
        ask(capsys, *asked, "--resume")
        assert out.read_bytes() == whole
    for left, line in ((lines[2] + lines[3], 1), (b"{}\n", 1), (whole + lines[0], 9)):
        out.write_bytes(left)
        with pytest.raises(UserError, match=f"line {line}: is no reply to prompt"):
            program.run([*map(str, asked), "--resume"])
        assert out.read_bytes() == left
    with pytest.raises(UserError, match="exists; --resume goes on where it ends, --force overwrites it"):
        program.run([*map(str, asked)])
    ask(capsys, *asked, "--force")
    assert out.read_bytes() == whole


def test_what_is_there_stays_until_there_is_something_else(
    model: Path, prompts: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("mine\n")
    monkeypatch.setattr(module.Generator, "replies", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        program.run([str(model), "--prompts", str(prompts), "--out", str(out), "--force"])
    assert out.read_text() == "mine\n"


def test_what_the_reward_model_cannot_read_has_no_score_and_is_told(model: Path, tmp_path: Path, capsys: Any) -> None:
    long = write_rows(tmp_path / "long.jsonl", [{"prompt": "the cat " * 12}])
    reward = ("--reward", model.with_name("rm"), "--temperature", 3)
    (line,) = ask(capsys, model, "--prompts", long, *reward)  # half characters, which take more tokens as text
    assert line["score"] is None and line["response"]
    program.run([str(word) for word in (model, "--prompts", long, *reward, "--best-of", 2)])
    assert "1 lines with score null" in capsys.readouterr().err


def test_an_interruption_leaves_whole_lines(
    model: Path, prompts: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    out = tmp_path / "out.jsonl"
    asked = [str(word) for word in (model, "--prompts", prompts, "--out", out, "--batch-size", 1, *SHORT)]
    monkeypatch.setattr(module, "CHUNKS", 1)
    real, calls = module.Generator.replies, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(module.Generator, "replies", interrupted)
    with pytest.raises(KeyboardInterrupt):
        program.run(asked)
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["a", 1]
    program.run([*asked, "--resume"])
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["a", 1, 2, 3]


def test_an_adapter_is_put_on_the_checkpoint(model: Path, prompts: Path, tmp_path: Path, capsys: Any) -> None:
    put = start_model(str(model), LORA)
    stir(put)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_weights(put, saved_parameters(put), adapter)
    moved = tmp_path / "base"
    moved.symlink_to(model)
    asked = ("--prompts", prompts, "--greedy", *SHORT)
    on_base = ask(capsys, moved, "--adapter", adapter, *asked)
    assert on_base != ask(capsys, model, *asked)
    other = language_model(tmp_path / "other", arch="gpt2")
    for words, said in (
        ([other, "--adapter", adapter], "trained on other weights than those in"),
        ([model, "--adapter", model], "holds no adapter_config.json"),
        ([adapter, "--adapter", adapter], "tokenizer"),
    ):
        with pytest.raises(UserError, match=said):
            program.run([str(word) for word in (*words, *asked)])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompts", "nowhere.txt"], "--prompts nowhere.txt: no such file"),
        (["--prompts", "P", "--best-of", "4"], "--best-of 4: by what? Name a reward model: --reward RM"),
        (["--prompts", "P", "--best-of", "2", "--reward", "RM", "-n", "3"], "--best-of 2: must be at least -n 3"),
        (["--prompts", "P", "--greedy", "-n", "2"], "--greedy gives the same reply each time"),
        (["--prompts", "P", "--temperature", "0"], "--temperature=0.0: must be above 0; greedy takes the likeliest"),
        (["--prompts", "P", "--top-p", "1.5"], "--top-p=1.5: must be above 0 and at most 1"),
        (["--prompts", "P", "--max-new-tokens", "0"], "--max-new-tokens=0: must be at least 1"),
        (["--prompts", "P", "--raw", "--system", "x"], "--system is for chats"),
        (["--prompts", "P", "--stop", ""], "--stop '': is in every text"),
        (["--prompts", "P", "--resume"], "--resume is about --out FILE, which is not given"),
        (["--prompts", "P", "--frobnicate"], "see python -m tinychat.generate --help"),
        (["--prompts", "EMPTY"], "holds no prompts"),
        (["--prompts", "BAD"], "line 2: no prompt in the columns question_text; known are"),
        (["--prompts", "LONG"], "line 1: the prompt has"),
        (["--prompts", "P", "--reward", "BASE"], "is a language model"),
        (["RM", "--prompts", "P"], "is a reward model, not a language model"),
        (["PRETRAINED", "--prompts", "P"], "brings no chat template, so it was not trained to reply; --raw continues"),
    ],
)
def test_what_cannot_work_is_one_line(model: Path, prompts: Path, tmp_path: Path, words: list[str], said: str) -> None:
    files = {"P": prompts, "RM": model.with_name("rm"), "BASE": model}
    (tmp_path / "empty.txt").write_text("\n \n")
    files |= {"EMPTY": tmp_path / "empty.txt", "LONG": write_rows(tmp_path / "long.jsonl", [{"prompt": "cat " * 99}])}
    files["BAD"] = write_rows(tmp_path / "bad.jsonl", [ROWS[0], {"question_text": "x"}])
    if words[0] == "PRETRAINED":
        files["PRETRAINED"] = saved(tmp_path / "pretrained")
    words = [str(files.get(word, word)) for word in words]
    if words[0].startswith("--"):
        words = [str(model), *words]
    with pytest.raises(UserError) as error:
        program.run([*words, "--out", str(tmp_path / "out.jsonl")] if "--resume" not in words else words)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out.jsonl").exists()


def test_help_and_wrong_options_load_no_torch() -> None:
    code = (
        "import sys; from tinychat.generate import __main__ as g; g.wanted_of(g.parse(['CKPT', '--prompts', 'F'])); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment_of(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
