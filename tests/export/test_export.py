"""An export computes what the checkpoint does, says what the lineage knows, and writes over nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.chat_models import saved
from tests.reward_models import LORA, NONE, language_model, reward_model, started, stir, write
from tinychat.config.stages import Pooling, ScoreRange
from tinychat.errors import UserError
from tinychat.export.__main__ import parse, run
from tinychat.models.actor_critic import ActorCritic
from tinychat.models.checkpoints import load_model, save_weights, start_model
from tinychat.models.one_base import VALUE, add_value_adapter
from tinychat.models.reward import load_reward_model, normalise, raw_scores
from tinychat.text.chat_template import encode_chats, set_template

IDS = torch.randint(5, 300, (2, 9), generator=torch.Generator().manual_seed(1))
CHAT = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "the dog"}]


def logits_of(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


def aligned(model: Any) -> Any:
    """The model with weights out of the file's memory, where they lie at any address: on a CPU the last bit of a
    product depends on that."""
    for p in model.parameters():
        p.data = p.data.clone()
    return model


def export(path: Path, out: Path, *options: str) -> Path:
    run([str(path), "--to", "hf", "--out", str(out), *options])
    return out


def test_a_policy_is_the_same_to_transformers(tmp_path: Path) -> None:
    path = saved(tmp_path / "policy", "chatml")
    out = export(path, tmp_path / "out")
    found, own = AutoModelForCausalLM.from_pretrained(out), load_model(str(path))
    assert torch.equal(logits_of(aligned(found)), logits_of(aligned(own)))
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.apply_chat_template(CHAT, tokenize=False).startswith("<|im_start|>user\nthe cat")
    assert {file.name for file in out.iterdir()} == {
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert str(tmp_path) not in (out / "README.md").read_text(), "no folder of this machine"


def test_an_adapter_is_merged(tmp_path: Path) -> None:
    base = language_model(tmp_path / "base")
    model = start_model(str(base), LORA)
    stir(model)
    path = write(model, tmp_path / "adapter")
    out = export(path, tmp_path / "out")
    assert not (out / "adapter_config.json").exists()
    found = logits_of(AutoModelForCausalLM.from_pretrained(out))
    torch.testing.assert_close(found, logits_of(load_model(str(path))), rtol=1e-5, atol=1e-5)
    assert (found - logits_of(load_model(str(base)))).abs().max() > 0.01


@pytest.mark.parametrize("peft", [NONE, LORA], ids=["full", "adapter"])
@pytest.mark.parametrize("score_range", [ScoreRange.raw, ScoreRange.standard])
def test_a_reward_model_is_a_sequence_classifier(tmp_path: Path, peft: Any, score_range: ScoreRange) -> None:
    path = reward_model(tmp_path / "reward", score_range, peft)
    out = export(path, tmp_path / "out")
    model = load_reward_model(str(path))
    tokenizer = AutoTokenizer.from_pretrained(out)
    (encoded,) = encode_chats(tokenizer, [CHAT])
    ids = torch.tensor(encoded.ids[None], dtype=torch.long)
    with torch.no_grad():
        raw = raw_scores(model, ids, torch.ones_like(ids))
    logits = logits_of(aligned(AutoModelForSequenceClassification.from_pretrained(out)), ids)[:, 0]
    exact = {"rtol": 0, "atol": 0} if peft is NONE else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(logits, raw, **exact)
    config = model.config
    scores, card = normalise(raw, config), (out / "README.md").read_text()
    if score_range is ScoreRange.raw:
        torch.testing.assert_close(logits, scores, **exact)
        assert "The logit is the score" in card
    else:
        torch.testing.assert_close((logits - 0.25) / 2.0, scores, **exact)
        assert "(logit - 0.25) / 2.0" in card
    assert json.loads((out / "config.json").read_text())["problem_type"] == "regression"


def test_padding_changes_no_score(tmp_path: Path) -> None:
    out = export(reward_model(tmp_path / "reward"), tmp_path / "out")
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    texts = ["the cat", "the cat and the dog sat on the mat"]
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.no_grad():
        together = model(**batch).logits[0]
        alone = model(**tokenizer(texts[:1], return_tensors="pt", add_special_tokens=False)).logits[0]
    torch.testing.assert_close(together, alone)


def test_a_head_on_a_lower_layer_is_a_shallower_classifier(tmp_path: Path) -> None:
    model = started(language_model(tmp_path / "base"), head_layer=1)
    stir(model)
    out = export(write(model, tmp_path / "reward"), tmp_path / "out")
    ids = IDS[:1]
    with torch.no_grad():
        raw = raw_scores(model.eval(), ids, torch.ones_like(ids))
    found = aligned(AutoModelForSequenceClassification.from_pretrained(out))
    assert found.config.num_hidden_layers == 1
    torch.testing.assert_close(logits_of(found, ids)[:, 0], raw, rtol=0, atol=0)


@pytest.mark.parametrize("own", [True, False], ids=["own", "shared"])
def test_a_value_function_is_a_sequence_classifier(tmp_path: Path, own: bool) -> None:
    base = language_model(tmp_path / "base")
    model = ActorCritic(load_model(str(base)), started(base) if own else None).eval()
    torch.manual_seed(3)
    head = model.value.score if own else model.value_head
    torch.nn.init.normal_(head.weight)
    folder = tmp_path / "ppo"
    folder.mkdir()
    save_weights(model, dict(model.state_dict()), folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    out = export(folder, tmp_path / "out", "--part", "value")
    with torch.no_grad():
        values = model(input_ids=IDS).state_values
    found = aligned(AutoModelForSequenceClassification.from_pretrained(out))
    torch.testing.assert_close(logits_of(found)[:, 0], values[:, -1], rtol=0, atol=0)
    assert "tinychat_reward" not in json.loads((out / "config.json").read_text())


def test_a_value_function_that_is_an_adapter_is_merged(tmp_path: Path) -> None:
    policy = start_model(str(language_model(tmp_path / "base")), LORA)
    add_value_adapter(policy, LORA, None)
    model = ActorCritic(policy, None, 1.0, VALUE).eval()
    stir(model)
    with torch.no_grad():
        values = model(input_ids=IDS).state_values
    out = export(write(model, tmp_path / "ppo"), tmp_path / "out", "--part", "value")
    found = logits_of(AutoModelForSequenceClassification.from_pretrained(out))[:, 0]
    torch.testing.assert_close(found, values[:, -1], rtol=1e-4, atol=1e-5)
    assert values.std() > 0.01


def test_a_head_on_the_mean_of_all_tokens_is_refused(tmp_path: Path) -> None:
    model = started(language_model(tmp_path / "base"), pooling=Pooling.mean)
    path = write(model, tmp_path / "reward")
    with pytest.raises(UserError, match=r"stage\.pooling=mean.*stage\.pooling=last.*tinychat\.score"):
        export(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_and_the_same_again_is_no_error(tmp_path: Path) -> None:
    path, out = saved(tmp_path / "policy"), tmp_path / "out"
    export(path, out)
    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    export(path, out)
    assert {file.name: file.stat().st_mtime_ns for file in out.iterdir()} == before
    (out / "README.md").write_text("mine")
    with pytest.raises(UserError, match="exists with other content; nothing was written"):
        export(path, out)
    assert (out / "README.md").read_text() == "mine"
    assert not list(tmp_path.glob(".saving-*"))


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tinychat.export.card.write_card", fails)
    with pytest.raises(UserError, match="disk full"):
        export(saved(tmp_path / "policy"), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".saving-*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "onnx"], "invalid choice: 'onnx'"),
        (["--to", "hf", "--type", "f16"], "--type is an option of --to gguf"),
        (["--to", "hub"], "which repository"),
        (["--to", "hub", "--repo", "mine"], "OWNER/NAME"),
        (["--to", "gguf", "--part", "value"], "--to hf"),
    ],
)
def test_options_that_do_not_go_together(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse(["CKPT", *words])


def test_without_a_run_folder_and_a_value_function(tmp_path: Path) -> None:
    path = saved(tmp_path / "policy")
    with pytest.raises(UserError, match="give --out FOLDER"):
        run([str(path), "--to", "hf"])
    with pytest.raises(UserError, match="holds no value function"):
        run([str(path), "--to", "hf", "--part", "value"])


def run_folder(folder: Path) -> Path:
    """A run of PPO in its experiment, whose files say what happened; its checkpoint is returned."""
    run_dir = folder / "outputs" / "mine" / "ppo-tiny-poems" / "2026-01-02_03-04-05"
    checkpoint = saved(run_dir / "checkpoints" / "step-000002", "instruct")
    config = {
        "seed": 7,
        "stage": {"name": "ppo", "response_length": 24, "judge": None},
        "model": {"name": "tiny", "arch": "llama"},
        "data": {"name": "poems", "path": str(folder / "secret" / "poems.jsonl")},
        "peft": {"name": "none"},
    }
    lineage = {
        "run_dir": str(run_dir),
        "parents": {
            "reward.model": str(folder / "outputs/mine/reward-tiny-poems/2026-01-01_00-00-00/checkpoints/step-000009")
        },
        "data": {"train": {"prompts": 300, "fingerprint": "abcdef0123456789"}, "validation": {"prompts": 20}},
        "config": config,
        "versions": {"git_commit": "c0ffee"},
    }
    (checkpoint / "lineage.json").write_text(json.dumps(lineage))
    (run_dir / "config.yaml").write_text(json.dumps(config))
    metrics = {"eval/safe_rate": 0.975, "eval/safe_rate_low": 0.96, "eval/safe_rate_high": 0.98, "train/loss": 1.0}
    result = {"status": "finished", "checkpoint": "checkpoints/step-000002", "metrics": metrics}
    (run_dir / "result.json").write_text(json.dumps(result | {"facts": {"precision": "float32", "device": "cpu"}}))
    return checkpoint


def test_the_card_says_what_the_lineage_knows_and_no_more(tmp_path: Path) -> None:
    checkpoint = run_folder(tmp_path)
    run([str(checkpoint), "--to", "hf"])
    out = checkpoint.parent.parent / "exports" / "step-000002-hf"
    card = (out / "README.md").read_text()
    for line in (
        "# ppo-tiny-poems",
        "| ppo | tiny | poems (poems.jsonl) | 300 prompts, fingerprint abcdef012345 |",
        "reward.model: reward-tiny-poems/2026-01-01\\_00-00-00/step-000009",
        "| eval/safe\\_rate | 97.5 % | 96.0 % to 98.0 % |",
        "- held-out rows of data=poems: 20 prompts",
        "- `stage.response_length=24`",
        "- one run: seed 7, float32, cpu",
        "- tinychat at commit c0ffee",
        "- data=poems: its licence is not recorded in the lineage",
        "Not measured in this run: eval/over_refusal",
    ):
        assert line in card, card
    assert str(tmp_path) not in card and "train/loss" not in card and "license:" not in card
    (checkpoint.parent.parent / "result.json").write_text('{"status": "finished", "checkpoint": "checkpoints/step-9"}')
    run([str(checkpoint), "--to", "hf", "--out", str(tmp_path / "other")])
    card = (tmp_path / "other" / "README.md").read_text()
    assert "What was measured" not in card and "No held-out figures of this checkpoint are recorded" in card


class Hub:
    """Stands for huggingface_hub.HfApi; nothing is sent."""

    calls: ClassVar[list[Any]] = []

    def __init__(self, token: str) -> None:
        self.calls.append(token)

    def create_repo(self, repo: str, **options: Any) -> None:
        self.calls.append((repo, options))

    def upload_folder(self, repo_id: str, folder_path: str, **_: Any) -> str:
        self.calls.append((repo_id, sorted(os.listdir(folder_path))))
        return f"https://huggingface.co/{repo_id}"


def test_the_hub_gets_nothing_unless_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    words = [str(saved(tmp_path / "policy")), "--to", "hub", "--repo", "me/mine", "--out", str(tmp_path / "out")]
    run(words)
    said = capsys.readouterr().out
    assert f"hf upload me/mine {tmp_path / 'out'} . --repo-type model" in said and "nothing was uploaded" in said
    with pytest.raises(UserError, match="hf auth login"):
        run([*words, "--yes"])
    assert Hub.calls == []
    monkeypatch.setenv("HF_TOKEN", "secret")
    run([*words, "--yes", "--private"])
    said = capsys.readouterr().out
    assert "secret" not in said and "uploaded: https://huggingface.co/me/mine" in said
    assert Hub.calls[:2] == ["secret", ("me/mine", {"private": True, "exist_ok": True})]
    assert "model.safetensors" in Hub.calls[2][1]


def test_weights_that_were_changed_are_not_exported(tmp_path: Path) -> None:
    from tinychat.runtime import manifest

    path = saved(tmp_path / "policy")
    manifest.write_manifest(path, None)
    weights = bytearray((path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (path / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"model\.safetensors is not as it was written"):
        export(path, tmp_path / "out")
    assert load_file(path / "model.safetensors") and not (tmp_path / "out").exists()


def test_a_template_of_ones_own_is_kept_as_it_is(tmp_path: Path) -> None:
    path = saved(tmp_path / "policy", "instruct")
    tokenizer = AutoTokenizer.from_pretrained(path)
    set_template(tokenizer, "chatml")
    tokenizer.save_pretrained(path)
    out = export(path, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(out).chat_template == tokenizer.chat_template
