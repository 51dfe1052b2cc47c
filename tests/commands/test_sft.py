"""stage=sft through the real command: the same numbers however it is run or interrupted, checkpoints that others can
load, and every kind of file."""

from __future__ import annotations

import csv
import functools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import TORCHRUN, curve, result_of, rows, start_train, wait_until, write_rows
from tests.warm import WarmPython
from tinychat.runs import folders
from tinychat.tinyworld.tasks import instructions

STEPS, EVERY, HELD_OUT = 8, 4, 24
TINY_SFT = (
    "stage=sft",
    "tracker=none",
    "precision=fp32",
    "data.max_rows=150",
    f"data.max_val_rows={HELD_OUT}",
    "stage.lr=0.01",
    "stage.warmup_steps=2",
    f"stage.max_steps={STEPS}",
    "stage.batch_size=4",
    "stage.micro_batch_size=2",
    "stage.log_every=1",
    f"stage.eval_every={EVERY}",
    "stage.eval_rows=null",
    "stage.generate_tokens=6",
    f"checkpoint.every={EVERY}",
    "checkpoint.keep_last=5",
)
SMALL_LORA = ("peft=lora", "peft.r=2", "peft.alpha=8", "optim=adamw")
WAYS = {
    "packed none": (),
    "packed none, two ranks, other micro-batches": (*TORCHRUN, "stage.micro_batch_size=1"),
    "packed zero2": ("ds=zero2", "stage.micro_batch_size=1"),
    "packed zero2, two ranks": ("ds=zero2", *TORCHRUN),
    "packed zero3": ("ds=zero3", "stage.micro_batch_size=4"),
    "packed zero3, two ranks": ("ds=zero3", *TORCHRUN),
    "padded none": ("stage.packing=false",),
    "padded zero2, two ranks": ("stage.packing=false", "ds=zero2", *TORCHRUN),
    "square none": ("stage.length_power=0.5",),
    "square zero2, two ranks": ("stage.length_power=0.5", "ds=zero2", *TORCHRUN, "stage.micro_batch_size=1"),
    "lora none": SMALL_LORA,
    "lora zero2, two ranks": (*SMALL_LORA, "ds=zero2", *TORCHRUN),
}
PLAIN = [name for name in WAYS if name.endswith("none")]
# One way of two ranks is enough for every day: test_trajectory.py has the others on a smaller stage.
QUICK = ("packed zero2, two ranks",)
SLOW = [name for name in WAYS if "square" in name or (("ranks" in name or "zero" in name) and name not in QUICK)]


def named(*names: str) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in names]


@pytest.fixture(scope="module")
def folder(tiny: tuple[str, ...], warm: WarmPython, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs, with the `base` they start from, which has learned enough to babble."""
    folder = tmp_path_factory.mktemp("sft")
    learns = ("stage.max_steps=60", "stage.lr=0.02", "stage.eval_every=0", "checkpoint.every=0", "precision=fp32")
    done = warm.train(folder, "stage=pretrain", *tiny, "model.context_length=256", *learns, "run_dir=base")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def way(folder: Path, warm: WarmPython) -> Callable[[str], Path]:
    """The run of one of WAYS, made when it is first asked for."""

    @functools.cache
    def made(name: str) -> Path:
        command = (*TINY_SFT, "init_from=base", *WAYS[name], f"run_dir='{name}'")
        done = warm.train(folder, *command, fork_ranks=True)
        assert done.returncode == 0, f"{name}: {done.stderr[-3000:]}"
        return folder / name

    return made


def sft(warm: WarmPython, folder: Path, run_dir: str, *overrides: str) -> str:
    """A run in the warm process; what it said."""
    done = warm.train(folder, *TINY_SFT, *overrides, f"run_dir={run_dir}")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def table(run: Path, name: str) -> list[dict[str, Any]]:
    content = json.loads((run / "tables" / f"{name}.json").read_text())
    return [dict(zip(content["columns"], row, strict=True)) for row in content["rows"]]


def last_checkpoint(run: Path) -> Path:
    return folders.list_checkpoints(run)[-1]


# --- the same numbers


@pytest.mark.parametrize("name", named(*[name for name in WAYS if name not in PLAIN]))
def test_losses_are_those_of_one_plain_process(name: str, way: Callable[[str], Path]) -> None:
    run, plain = way(name), way(f"{name.split()[0]} none")
    losses = curve(plain)
    assert list(losses) == list(range(1, STEPS + 1))
    # Steps have other conversations each, so that their losses differ more than learning lowers them.
    assert max(losses.values()) > min(losses.values()) + 0.1, "losses must move, or equality would mean nothing"
    for metric in ("train/loss", "train/grad_norm"):
        assert curve(run, metric) == pytest.approx(curve(plain, metric), abs=1e-4), metric
    for metric in ("schedule/lr", "data/trained_tokens", "data/epoch"):
        assert curve(run, metric) == curve(plain, metric), metric
    measured = [metric for metric in result_of(plain)["metrics"] if metric.startswith("eval/")]
    assert {"eval/response_loss", "eval/token_accuracy", "eval/instruction_accuracy"} < set(measured)
    for metric in measured:
        found = curve(run, metric)
        assert list(found) == [0, EVERY, STEPS]
        assert found == pytest.approx(curve(plain, metric), abs=1e-4, rel=1e-4), metric
    predictions = table(plain, "predictions")
    assert all(row["reply"] for row in predictions), "empty replies would mean nothing"
    assert table(run, "predictions") == predictions


def test_packed_and_padded_batches_measure_the_same_model(way: Callable[[str], Path]) -> None:
    start = {name: curve(way(name), "eval/response_loss") for name in PLAIN}
    assert start["packed none"][0] == start["padded none"][0] == pytest.approx(start["lora none"][0], abs=1e-5)
    for losses in start.values():
        assert losses[STEPS] < losses[0] - 0.1
    trained = {name: sum(curve(way(name), "data/trained_tokens").values()) for name in PLAIN}
    assert trained["packed none"] > 2 * trained["padded none"], "several conversations to a sequence"


TAUGHT = ("init_from=base", "stage.teacher='packed none'", "stage.on_policy=0.5", "stage.on_policy_tokens=8")


@pytest.fixture(scope="module")
def taught(folder: Path, way: Callable[[str], Path], warm: WarmPython) -> Path:
    """A run of one process that learns from the plain one."""
    way("packed none")
    sft(warm, folder, "taught", *TAUGHT)
    return folder / "taught"


@pytest.mark.slow
@pytest.mark.parametrize("split", ["ds=none", "ds=zero2", "ds=zero3"])
def test_two_ranks_learn_from_a_teacher_as_one_process_does(
    split: str, folder: Path, taught: Path, warm: WarmPython
) -> None:
    run = f"taught {split}"
    command = (*TINY_SFT, *TAUGHT, *TORCHRUN, split, "stage.micro_batch_size=1", f"run_dir='{run}'")
    done = warm.train(folder, *command, fork_ranks=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for metric in ("train/loss", "train/grad_norm", "train/kl_teacher", "train/on_policy_kl", "eval/gap_closed"):
        assert curve(taught, metric), metric
        assert curve(folder / run, metric) == pytest.approx(curve(taught, metric), abs=2e-4, rel=2e-4), metric
    for metric in ("train/on_policy_length", "data/trained_tokens", "eval/teacher_loss"):
        assert curve(folder / run, metric) == pytest.approx(curve(taught, metric), rel=1e-5), metric


# --- interrupted


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in ("lora none", "packed zero2")])
def test_killed_it_ends_bit_identically(
    name: str, folder: Path, way: Callable[[str], Path], warm: WarmPython, tmp_path: Path
) -> None:
    straight, run = way(name), tmp_path / "run"
    command = (*TINY_SFT, f"init_from={folder / 'base'}", *WAYS[name], "run_dir=run", "resume=auto")
    process = start_train(tmp_path, *command)
    wait_until(lambda: any(row["step"] > EVERY for row in rows(run)), process)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert not (run / "result.json").exists()
    assert [folders.checkpoint_step(path) for path in folders.list_checkpoints(run)] == [EVERY]
    logged = max(curve(run))
    assert logged > EVERY, "steps after the checkpoint are to be done again"

    done = warm.train(tmp_path, *command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"resumed from run/checkpoints/step-{EVERY:06d}" in done.stderr
    weights = [path for path in last_checkpoint(straight).iterdir() if path.suffix == ".safetensors"]
    assert len(weights) == 1
    for path in weights:
        assert (last_checkpoint(run) / path.name).read_bytes() == path.read_bytes()
    names = {key for row in rows(straight) for key in row if key.startswith(("train/", "eval/", "schedule/", "data/"))}
    assert len(names) > 10
    for metric in names:
        assert curve(run, metric) == curve(straight, metric), metric
    assert table(run, "predictions") == table(straight, "predictions")
    assert result_of(run)["status"] == "finished"


# --- what others make of it


def response_loss(checkpoint: Path) -> float:
    """Nats per token of the held-out replies, by transformers alone: one conversation at a time, no padding."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    model.eval()
    nats, count = 0.0, 0
    for task in instructions(1, "validation", HELD_OUT):
        encoded = tokenizer.apply_chat_template(
            task.messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
        )
        ids, trained = encoded["input_ids"][0], torch.as_tensor(encoded["assistant_masks"]).flatten().bool()
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0]
        targets = trained[1:]
        nats += torch.nn.functional.cross_entropy(logits[:-1][targets], ids[1:][targets], reduction="sum").item()
        count += int(targets.sum())
    return nats / count


@pytest.mark.parametrize("name", named(*PLAIN, "packed zero3", "packed zero3, two ranks", "padded zero2, two ranks"))
def test_transformers_alone_loads_every_checkpoint_and_measures_the_same(name: str, way: Callable[[str], Path]) -> None:
    found = folders.list_checkpoints(way(name))
    assert [folders.checkpoint_step(path) for path in found] == [EVERY, STEPS]
    for step, path in zip((EVERY, STEPS), found, strict=True):
        assert response_loss(path) == pytest.approx(curve(way(name), "eval/response_loss")[step], abs=2e-5)


def test_the_template_is_saved_with_the_tokenizer(way: Callable[[str], Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(last_checkpoint(way("packed none")))
    asked = [{"role": "user", "content": "Add.", "input": "1 and 2"}]
    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert text == "Instruction: Add.\nInput: 1 and 2\nResponse:"


def test_what_a_run_leaves(folder: Path, way: Callable[[str], Path]) -> None:
    run = way("packed none")
    result = result_of(run)
    metrics, facts = result["metrics"], result["facts"]
    assert result["status"] == "finished"
    assert result["objective_name"] == "eval/response_loss"
    assert result["objective"] == metrics["eval/response_loss"] == curve(run, "eval/response_loss")[STEPS]
    for name in ("response_loss", "response_ppl", "token_accuracy", "instruction_accuracy"):
        low, value, high = (metrics[f"eval/{name}{end}"] for end in ("_low", "", "_high"))
        assert low <= value <= high, name
        assert low < high, name
    assert metrics["eval/instruction_rows"] == HELD_OUT
    assert facts["template"] == "instruct"
    assert facts["context length"] == 256
    assert facts["parameters"] == facts["parameters trained"]

    predictions, families = table(run, "predictions"), table(run, "families")
    tasks = list(instructions(1, "validation", HELD_OUT))
    assert [row["expected"] for row in predictions] == [task.messages[-1]["content"] for task in tasks]
    assert sum(row["conversations"] for row in families) == HELD_OUT
    assert {row["task family"] for row in families} == {task.family for task in tasks}
    right = sum(row["score"] for row in predictions)
    assert sum(row["right"] for row in families) == right == pytest.approx(metrics["eval/instruction_accuracy"] * 24)
    report = (run / "report.md").read_text()
    for words in ("Accuracy by task family", "Replies to held-out prompts", families[0]["task family"]):
        assert words in report, words

    lineage = json.loads((run / result["checkpoint"] / "lineage.json").read_text())
    assert lineage["parents"]["init_from"] == str(last_checkpoint(folder / "base").resolve())
    assert lineage["data"]["train"]["conversations"] == 150


# --- adapters


def test_an_adapter_is_small_merges_and_is_trained_further(
    folder: Path, way: Callable[[str], Path], warm: WarmPython, tmp_path: Path
) -> None:
    run = way("lora none")
    checkpoint = last_checkpoint(run)
    (weights,) = checkpoint.rglob("*.safetensors")
    with safe_open(weights, "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no mapping
    assert len(shapes) == 2 * 7 * 2, "A and B of seven linear layers in two blocks"
    assert all("lora_" in name for name in shapes)
    sizes = sum(torch.Size(shape).numel() for shape in shapes.values())
    facts = result_of(run)["facts"]
    assert facts["parameters trained"] == sizes < facts["parameters"] / 5
    assert weights.stat().st_size < (last_checkpoint(folder / "base") / "model.safetensors").stat().st_size / 4

    merged = tmp_path / "merged"
    done = warm.run("tinychat.merge", folder, str(checkpoint), str(merged))
    assert done.returncode == 0, done.stderr[-3000:]
    ids = torch.arange(100)[None] * 3
    adapter, full, base = (
        AutoModelForCausalLM.from_pretrained(path)(input_ids=ids).logits
        for path in (checkpoint, merged, last_checkpoint(folder / "base"))
    )
    assert (adapter - full).abs().max() < 1e-4
    assert (base - full).abs().max() > 0.1
    assert response_loss(merged) == pytest.approx(curve(run, "eval/response_loss")[STEPS], abs=2e-5)

    said = sft(warm, folder, "further", f"init_from='{run}'", *SMALL_LORA, "stage.max_steps=4")
    assert "is trained further" in said
    losses = curve(folder / "further", "eval/response_loss")
    assert losses[0] == pytest.approx(curve(run, "eval/response_loss")[STEPS], abs=1e-5)
    assert losses[4] < losses[0] - 0.02
    assert (last_checkpoint(folder / "further") / "adapter_model.safetensors").is_file()


# --- lengths, templates, regularisation


def test_two_lengths_by_two_commands_with_chatml(folder: Path, warm: WarmPython) -> None:
    short, long = folder / "short", folder / "long"
    lengths = ("stage.context_length=64", "data.on_bad_row=skip")
    said = sft(warm, folder, "short", "init_from=base", "template=chatml", *lengths)
    assert "whose prompts leave no room for a reply in stage.context_length=64" in said
    train = json.loads((short / "lineage.json").read_text())["data"]["train"]
    assert 0 < train["conversations"] < 150
    start = response_loss(last_checkpoint(short))
    sft(warm, folder, "long", "init_from=short", "template=own")

    for run, length in ((short, 64), (long, 256)):
        assert result_of(run)["facts"]["context length"] == length
        assert AutoModelForCausalLM.from_pretrained(last_checkpoint(run)).config.max_position_embeddings == 256
    lineage = json.loads((last_checkpoint(long) / "lineage.json").read_text())
    assert lineage["parents"]["init_from"] == str(last_checkpoint(short).resolve())
    assert lineage["data"]["train"]["conversations"] == 150
    losses = curve(long, "eval/response_loss")
    assert losses[0] == pytest.approx(start, abs=2e-5)
    assert losses[STEPS] < losses[0] - 0.1
    tokenizer = AutoTokenizer.from_pretrained(last_checkpoint(long))
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi."}], tokenize=False)
    assert text == "<|im_start|>user\nHi.<|im_end|>\n"
    ends = AutoModelForCausalLM.from_pretrained(last_checkpoint(long)).generation_config.eos_token_id
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in ends
    assert response_loss(last_checkpoint(long)) == pytest.approx(losses[STEPS], abs=2e-5)


@pytest.mark.parametrize("override", ["stage.dropout=0.3", "stage.label_smoothing=0.2", "stage.length_power=0.5"])
def test_options_of_the_loss_change_training_alone(
    override: str, folder: Path, way: Callable[[str], Path], warm: WarmPython
) -> None:
    run = override.split("=")[0].removeprefix("stage.")
    sft(warm, folder, run, "init_from=base", override)
    plain = way("packed none")
    for metric in ("eval/response_loss", "eval/token_accuracy"):
        assert curve(folder / run, metric)[0] == curve(plain, metric)[0]
    assert abs(curve(folder / run)[1] - curve(plain)[1]) > 1e-4
    assert curve(folder / run)[STEPS] < curve(folder / run)[1] - 0.1


# --- own files


QUICK = ("init_from=base", "stage.max_steps=2", "checkpoint.every=0", "stage.eval_first=false")
NAMES = ("Tom", "Anna", "Ben", "Lily", "Max", "Mia", "Sam", "Zoe")


def conversations(run: Path) -> dict[str, int]:
    data = json.loads((run / "lineage.json").read_text())["data"]
    return {split: facts["conversations"] for split, facts in data.items()}


def test_own_conversations_in_three_layouts(folder: Path, warm: WarmPython) -> None:
    own = folder / "own"
    own.mkdir()
    turns = [("human", "Is {} here?"), ("gpt", "Yes."), ("human", "Who?"), ("gpt", "{} is.")]
    messages, shared = [], []
    for name in NAMES:
        brief = [("system", "Be brief."), *turns]
        messages.append({"messages": [{"role": role, "content": text.format(name)} for role, text in brief]})
        shared.append(
            {"conversations": [{"from": role, "value": text.format(name + "'s cat")} for role, text in turns]}
        )
    write_rows(own / "messages.jsonl", messages)
    (own / "shared.json").write_text(json.dumps(shared))
    with open(own / "asked.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [("prompt", "response"), *((f"Who is {name}?", f"A, friend {name}") for name in NAMES)]
        )

    said = sft(warm, folder, "own-run", *QUICK, "data=chat", "data.path=own", "data.val_fraction=0.3")
    assert "conversations from the column messages" in said
    assert "conversations from the column conversations" in said
    assert "one turn a row, user from prompt, assistant from response" in said
    run = folder / "own-run"
    assert sum(conversations(run).values()) == 3 * len(NAMES)
    metrics = result_of(run)["metrics"]
    assert metrics["eval/open_rows"] == metrics["eval/exact_match_rows"] == conversations(run)["validation"]
    assert "eval/instruction_accuracy" not in metrics
    assert 0 <= metrics["eval/rouge_l_low"] <= metrics["eval/rouge_l"] <= metrics["eval/rouge_l_high"] <= 1
    prompts = [row["prompt"] for row in table(run, "predictions")]
    assert any(prompt.startswith("system: Be brief.\nuser: Is ") for prompt in prompts)
    assert not (run / "tables" / "families.json").exists(), "nothing here can be checked"


def test_alpaca_rows_are_a_seeded_choice(folder: Path, warm: WarmPython) -> None:
    alpaca = [{"instruction": f"Greet {name} {n}.", "input": "", "output": "Hi!"} for name in NAMES for n in range(4)]
    alpaca[3]["input"] = "in the park"
    alpaca[5]["output"] = ""  # as a few of the original's
    (folder / "alpaca.json").write_text(json.dumps(alpaca))
    data = ("data=alpaca", "data.path=alpaca.json", "data.max_rows=10", "data.max_val_rows=3", "data.val_fraction=0.3")
    said = sft(warm, folder, "alpaca-run", *QUICK, *data)
    assert (
        "alpaca-train: 1 rows that cannot be used left out, the first at alpaca.json, row 6 (line 1): empty reply"
        in said
    )
    assert conversations(folder / "alpaca-run") == {"train": 10, "validation": 3}


def test_chinese_conversations(folder: Path, warm: WarmPython) -> None:
    chinese = [
        {
            "conversations": [
                {"role": "user", "content": f"{n}加一是几?"},
                {"role": "assistant", "content": f"答案是{n + 1}。"},
            ]
        }
        for n in range(30)
    ]
    write_rows(folder / "minimind.jsonl", chinese)
    data = ("data=minimind_sft", "data.path=minimind.jsonl", "data.val_fraction=0.4")
    said = sft(warm, folder, "minimind-run", *QUICK, *data)
    assert "答案是" in said, "the example shown at the start"
    found = table(folder / "minimind-run", "predictions")
    expected = {row["conversations"][0]["content"]: row["conversations"][1]["content"] for row in chinese}
    assert found
    assert all(expected[row["prompt"]] == row["expected"] for row in found)
    assert found[0]["expected"] in (folder / "minimind-run" / "report.md").read_text()
