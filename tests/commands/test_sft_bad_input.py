"""What can be wrong with conversations, with the checkpoint stage=sft starts from and with its adapter: one line says
it, status 1, no checkpoint is made and none is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Command, error_line, result_of, run_train, save_base, write_rows
from tests.warm import WarmPython
from tinychat.text.tokenizer import train_bpe
from tinychat.tinyworld import stories

QUICK = (
    "stage=sft",
    "tracker=none",
    "precision=fp32",
    "stage.max_steps=1",
    "stage.warmup_steps=0",
    "stage.batch_size=2",
    "stage.micro_batch_size=2",
    "stage.eval_first=false",
    "stage.generate_rows=2",
    "stage.generate_tokens=2",
)
OWN = ("data=chat", "data.path=own.jsonl", "data.val_fraction=0.3")
SKIP = "data.on_bad_row=skip"


@pytest.fixture(scope="module")
def base(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("bad") / "base", tokenizer_folder)


def chat(user: Any, reply: Any, roles: tuple[str, str] = ("user", "assistant")) -> dict[str, Any]:
    return {"messages": [{"role": roles[0], "content": user}, {"role": roles[1], "content": reply}]}


GOOD = [chat(f"Who is friend {n}?", "Tom.") for n in range(20)]
LONG = "Once upon a time there was a dog. " * 60


def refused(command: Command, folder: Path, base: Path, *overrides: str, begun: bool = True) -> str:
    """The error line of a run in `folder` that failed, leaving its own folder without a checkpoint (none where it was
    refused before it had `begun`) and `base` as it was."""
    before = {path: path.read_bytes() for path in base.rglob("*") if path.is_file()}
    line = error_line(command(folder, *QUICK, f"init_from={base}", *overrides, "run_dir=run"))
    if begun:
        result = result_of(folder / "run")
        assert result["status"] == "failed"
        assert result["error"] in line
        assert not (folder / "run" / "checkpoints").exists()
    else:
        assert not (folder / "run").exists()
    assert {path: path.read_bytes() for path in base.rglob("*") if path.is_file()} == before
    return line


# --- rows


ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "empty reply": (chat("Who?", " \n"), "empty reply (message 2)"),
    "roles out of order": (chat("Tom.", "Who?", ("assistant", "user")), "roles out of order: message 1, the assistant"),
    "unknown role": (chat("Who?", "Tom.", ("user", "robot")), 'message 2 has the unknown role "robot"; the roles are'),
    "missing column": ({"text": "Who? Tom."}, "no column 'messages'; it has text"),
    "non-string content": (chat("How many?", 3), "the content of message 2 (assistant) is 3, not a string"),
    "prompt too long": (chat(LONG, "Tom."), "too many for stage.context_length=256, which may be raised"),
}


@pytest.mark.parametrize("name", list(ROWS))
def test_a_row_that_cannot_be_used_is_named(name: str, base: Path, warm: WarmPython, tmp_path: Path) -> None:
    row, why = ROWS[name]
    write_rows(tmp_path / "own.jsonl", [*GOOD[:7], row, *GOOD[7:]])
    # The first of them also from a cold start.
    command = run_train if name == "empty reply" else warm.train
    line = refused(command, tmp_path, base, *OWN, begun=name == "prompt too long")
    assert line.startswith("error: own.jsonl, line 8: ")
    assert why in line
    assert line.endswith("mend or remove this row, or leave such rows out: data.on_bad_row=skip")


def test_rows_left_out_and_cut_are_counted(base: Path, warm: WarmPython, tmp_path: Path) -> None:
    cut = [chat(f"Tell me story {n}.", LONG) for n in range(5)]
    write_rows(tmp_path / "own.jsonl", [*GOOD, *(row for row, _ in ROWS.values()), *cut])
    write_rows(tmp_path / "held.jsonl", GOOD[:3])
    data = (*OWN, "data.val_path=held.jsonl", SKIP)
    done = warm.train(tmp_path, *QUICK, f"init_from={base}", *data, "run_dir=run")
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stderr
    assert "5 rows that cannot be used left out, the first at own.jsonl, line 21: empty reply (message 2)" in said
    assert "1 conversations (3.8 %) left out, whose prompts leave no room for a reply in stage.context_l" in said
    assert "25 conversations" in said
    assert "5 cut to the context, 1 too long, 5 unusable" in said
    facts = result_of(tmp_path / "run")["facts"]
    assert (facts["conversations"], facts["conversations cut"]) == (25, 5)


def test_nothing_left_to_train_on(base: Path, warm: WarmPython, tmp_path: Path) -> None:
    write_rows(tmp_path / "own.jsonl", [chat("Who?", "") for _ in range(4)])
    line = refused(warm.train, tmp_path, base, *OWN, SKIP, begun=False)
    assert "none of 4 rows can be used, the first at own.jsonl, line 1: empty reply" in line


@pytest.mark.parametrize(
    ("name", "content", "data", "words"),
    [
        ("asked.csv", "who,said\nTom,Hi\n", "chat", ["asked.csv, line 2", "columns who, said; known are messages"]),
        ("alpaca.json", '[{"instruction": "Go."}]', "alpaca", ["alpaca.json, row 1", "no column 'output'"]),
    ],
)
def test_files_of_another_kind(
    name: str, content: str, data: str, words: list[str], base: Path, warm: WarmPython, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    line = refused(warm.train, tmp_path, base, f"data={data}", f"data.path={name}", "data.on_bad_row=fail", begun=False)
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data=text", "data.path=."], ["data=text has no conversations, which stage=sft takes; use data=", "alpaca"]),
        (["data=chat"], ["data.path=null: data=chat needs a file"]),
        (["init_from=null"], ["init_from=null: stage=sft starts from a checkpoint"]),
        (["init_from=auto"], ["init_from=auto: no finished pretrain run", "python -m tinychat.train stage=pretrain"]),
    ],
    ids=lambda value: " ".join(value) if "=" in value[0] else "",
)
def test_what_is_seen_before_anything_is_made(
    overrides: list[str], words: list[str], base: Path, warm: WarmPython, tmp_path: Path
) -> None:
    start = [] if overrides[0].startswith("init_from") else [f"init_from={base}"]
    line = error_line(warm.train(tmp_path, *QUICK, *start, *overrides, "run_dir=run"))
    for word in words:
        assert word in line
    assert not (tmp_path / "run").exists()


# --- checkpoints and adapters


SOME = ("data.max_rows=12", "data.max_val_rows=4")


def test_a_base_of_another_tokenizer(base: Path, tmp_path: Path) -> None:
    train_bpe(stories(7, "train", 50), 350, progress=False).save_pretrained(tmp_path / "other")
    line = refused(run_train, tmp_path, base, *SOME, "tokenizer.path=other")
    assert "tokenizer=" in line
    assert f"the checkpoint {base} was trained with another one" in line
    assert "leave out tokenizer=..." in line


def test_a_folder_with_another_models_tokenizer(tokenizer_folder: Path, warm: WarmPython, tmp_path: Path) -> None:
    mixed = save_base(tmp_path / "mixed", tokenizer_folder)
    train_bpe(stories(7, "train", 600), 700, progress=False).save_pretrained(mixed)
    line = refused(warm.train, tmp_path, mixed, *SOME)
    assert "tokenizer has 700 entries" in line
    assert "448" in line


def test_templates_that_are_not_there(base: Path, warm: WarmPython, tmp_path: Path) -> None:
    line = refused(warm.train, tmp_path, base, *SOME, "template=own")
    assert "template=own: this tokenizer brings no chat template" in line


def test_lora_targets_that_match_nothing(base: Path, tmp_path: Path) -> None:
    line = refused(run_train, tmp_path, base, *SOME, "peft=lora", "peft.targets=[c_attn]")
    assert "peft.targets=['c_attn']: c_attn is no linear layer of this model" in line
    for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
        assert name in line


def test_an_adapter_on_the_wrong_base(tokenizer_folder: Path, warm: WarmPython, tmp_path: Path) -> None:
    lora = ("peft=lora", "optim=adamw", *SOME)
    save_base(tmp_path / "base", tokenizer_folder)
    done = warm.train(tmp_path, *QUICK, *lora, "init_from=base", "run_dir=adapter")
    assert done.returncode == 0, done.stderr[-3000:]
    (adapter,) = (tmp_path / "adapter" / "checkpoints").glob("step-*")

    save_base(tmp_path / "base", tokenizer_folder, seed=1)
    line = refused(run_train, tmp_path, tmp_path / "adapter", *lora)
    assert "trained on other weights than those now in its base" in line
    assert str(adapter) in line
