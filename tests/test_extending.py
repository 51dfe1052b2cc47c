"""docs/extending.md as it stands: its files are written, its commands run, and what its sentences promise is looked at.
A custom model, its last part, has tests of its own."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY, TINY_MODEL, error_line, result_of, save_base

PAGE = (REPOSITORY / "docs/extending.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)
FILE = re.compile(r"(?:# |\{# )((?:conf/\w+/)?\w+\.\w+)")
ONE_STEP = ("tracker=none", "precision=fp32", "stage.warmup_steps=0", "stage.micro_batch_size=2", "stage.batch_size=4")
MORE = {  # what makes a command of the page quick
    "tokenizer": ("tracker=none", "data.max_docs=100", "data.max_val_docs=20"),
    "pretrain": (*TINY_MODEL, *ONE_STEP, "stage.max_steps=2", "stage.sample_tokens=4"),
    "sft": (*ONE_STEP, "stage.max_steps=2", "data.max_rows=8", "data.max_val_rows=2", "stage.generate_tokens=4"),
    "ppo": (
        *(*ONE_STEP, "stage.value_from=policy", "stage.rollout_size=8", "stage.response_length=8", "stage.epochs=1"),
        *("stage.eval_prompts=2", "stage.safety_prompts=2", "stage.safety_tokens=4", "stage.generate_tokens=4"),
        *("stage.generate_rows=2", "data.max_rows=8", "data.max_val_rows=2", "stage.eval_rows=2"),
    ),
}


def section(title: str) -> list[tuple[str, str]]:
    """(language, text) of each block of a section."""
    return BLOCK.findall(PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0])


def write_files(folder: Path, title: str) -> None:
    for language, text in section(title):
        if language != "sh":
            named = FILE.match(text)
            assert named, f"the first line of a block says which file it is: {text[:60]}"
            file = folder / named[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)


def commands(title: str) -> list[list[str]]:
    return [
        shlex.split(line)[2:] for language, text in section(title) if language == "sh" for line in text.splitlines()
    ]


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A checkpoint that writes in the instruct template."""
    from transformers import AutoTokenizer

    from tinychat.text.chat_template import set_template

    folder = save_base(tmp_path_factory.mktemp("extending") / "sft", tokenizer_folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    set_template(tokenizer, "instruct")
    tokenizer.save_pretrained(folder)
    return folder


def run(warm: Any, folder: Path, words: list[str], *more: str) -> Any:
    module, *given = words
    if module == "tinychat.train":
        stage = next(word for word in given if word.startswith("stage=")).partition("=")[2]
        done = warm.run(module, folder, *given, *MORE[stage], *more)
    else:
        done = warm.run(module, folder, *given, stdin=b"Hello")
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def newest(folder: Path, stage: str) -> Path:
    return max((folder / "outputs").glob(f"*/{stage}-*/*"), key=lambda path: path.stat().st_mtime)


def test_a_source_of_data(warm: Any, tmp_path: Path) -> None:
    write_files(tmp_path, "A source of data")
    by_address, tokenizer, pretrain = commands("A source of data")
    for words in (by_address, tokenizer, pretrain):
        run(warm, tmp_path, words)
    lineage = json.loads((newest(tmp_path, "pretrain") / "lineage.json").read_text())
    assert lineage["data"]["train"]["documents"] + lineage["data"]["validation"]["documents"] == 500, "its option"
    # With other code the data are others: a run that would go on with them says so.
    source = tmp_path / "my_poems.py"
    source.write_text(source.read_text().replace("tulips", "lilies"))
    stopped = newest(tmp_path, "pretrain")
    result = result_of(stopped)
    (stopped / "result.json").write_text(json.dumps({**result, "status": "stopped"}))
    done = warm.run(pretrain[0], tmp_path, *pretrain[1:], *MORE["pretrain"], f"resume={stopped}")
    assert "learnt from other train and validation data" in error_line(done)
    # A name that tinychat has is not taken away from it.
    shutil.copy(tmp_path / "conf/data/poems.yaml", tmp_path / "conf/data/chat.yaml")
    taken = error_line(warm.train(tmp_path, "stage=sft", "data=chat"))
    assert "conf/data/chat.yaml: the name chat is taken by tinychat's own data=chat; rename it" in taken


def test_a_reward(warm: Any, tmp_path: Path, sft: Path) -> None:
    write_files(tmp_path, "A reward")
    (words,) = commands("A reward")
    run(warm, tmp_path, words, f"init_from={sft}")
    rows = [json.loads(line) for line in (newest(tmp_path, "ppo") / "metrics.jsonl").read_text().splitlines()]
    rewards = [row["rl/reward"] for row in rows if "rl/reward" in row]
    assert len(rewards) == 3
    assert all(reward < 1 for reward in rewards)


def test_a_kind_of_answer(warm: Any, tmp_path: Path, sft: Path) -> None:
    write_files(tmp_path, "A kind of answer")
    (words,) = commands("A kind of answer")
    run(warm, tmp_path, words, f"init_from={sft}")
    assert result_of(newest(tmp_path, "ppo"))["status"] == "finished"
    without = [word for word in words[1:] if "verifiers" not in word]
    said = error_line(warm.train(tmp_path, *without, *MORE["ppo"], f"init_from={sft}"))
    assert 'my_riddles.py:Riddles, row 1: answer is "rhymes"; beside a reference it is one of exact' in said


def test_a_chat_template(warm: Any, tmp_path: Path, sft: Path) -> None:
    from transformers import AutoTokenizer

    write_files(tmp_path, "A chat template")
    train, chat = commands("A chat template")
    run(warm, tmp_path, train, f"init_from={sft}")
    tokenizer = AutoTokenizer.from_pretrained(next(newest(tmp_path, "sft").glob("checkpoints/step-*")))
    told = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}], tokenize=False
    )
    assert told == f"Child: Hi\nRobot: Ho{tokenizer.eos_token}"
    run(warm, tmp_path, chat)
