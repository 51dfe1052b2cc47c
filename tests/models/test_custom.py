"""Models of a user's own: loaded where they are named, tried on a few tokens, refused in one line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from tests.custom_models import write_model
from tests.models.test_models import IDS, NO_ADAPTER, built, from_conf, logits
from tinychat.config import shapes
from tinychat.config.schema import ModelConfig
from tinychat.errors import UserError
from tinychat.models.build import build_model, count_parameters, describe
from tinychat.models.checkpoints import load_config, load_model
from tinychat.models.custom import load_classes, try_out
from tinychat.models.generation.decode import DecodeOptions, decode
from tinychat.models.kernels.attention import attention_can_be_set, use_blocked_attention
from tinychat.models.kernels.layers import use_fused_norms
from tinychat.models.load import write_weights
from tinychat.models.reward import start_reward_model
from tinychat.runtime import run_files

CPU = torch.device("cpu")
REGISTERED = 'AutoConfig.register("alibi", AlibiConfig)\n'


def custom(path: str, **changes: Any) -> ModelConfig:
    return dataclasses.replace(from_conf("custom"), path=path, **changes)


def model_of(folder: Path, spoilt: dict[str, str] | None = None, **changes: Any) -> Any:
    torch.manual_seed(0)
    return build_model(custom(write_model(folder, spoilt), **changes), 320, pad_token_id=1, eos_token_id=0).eval()


def refused(path: str, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        build_model(custom(path, **changes), 320, pad_token_id=1, eos_token_id=0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_sizes_and_options_reach_the_class(tmp_path: Path) -> None:
    sizes = {"n_layer": 3, "n_embd": 32, "n_head": 2, "context_length": 64, "init_std": 0.5, "tie_embeddings": True}
    model = model_of(tmp_path, options={"steepest": 0.25}, **sizes)
    found = model.config
    assert (found.num_hidden_layers, found.hidden_size, found.num_attention_heads) == (3, 32, 2)
    assert (found.max_position_embeddings, found.vocab_size, found.steepest) == (64, 320, 0.25)
    assert (found.pad_token_id, found.eos_token_id) == (1, 0)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.model.embed_tokens.weight.std().item() == pytest.approx(0.5, rel=0.1)
    assert count_parameters(model).embedding == 320 * 32
    assert "3 layers of width 32, 2 heads, context 64" in describe(model)
    assert model_of(tmp_path / "own").config.num_hidden_layers == 2, "sizes that are null are those of the class"


def test_an_architecture_of_transformers_is_named_by_its_configuration() -> None:
    """The same model as arch=llama makes, with tinychat's faster arithmetic too."""
    sizes = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_kv_head": 2, "n_inner": 64, "context_length": 64}
    named = dataclasses.replace(from_conf("llama2_style"), **sizes)
    own = dataclasses.replace(from_conf("llama2_15m"), **sizes)
    models = []
    for config in (named, own):
        torch.manual_seed(0)
        models.append(build_model(config, 320, pad_token_id=1, eos_token_id=0).eval())
    assert torch.equal(logits(models[0], IDS), logits(models[1], IDS))
    assert type(models[0].config).__name__ == "LlamaConfig"
    assert attention_can_be_set(models[0])
    try_out(models[0], packs=True, generates=True)
    assert "LlamaConfig has no such argument" in refused("transformers:LlamaConfig", options={"rms_nrm_eps": 1e-5})


def test_what_is_saved_loads_here_and_elsewhere(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    (tmp_path / "saved").mkdir()
    write_weights(model, model.state_dict(), tmp_path / "saved")
    for found in (load_model(str(tmp_path / "saved")), AutoModelForCausalLM.from_pretrained(tmp_path / "saved")):
        assert torch.equal(logits(found.eval(), IDS), logits(model, IDS))
    assert load_config(str(tmp_path / "saved")).hidden_size == 64


def test_a_reward_model_of_it(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    (tmp_path / "saved").mkdir()
    write_weights(model, model.state_dict(), tmp_path / "saved")
    scorer = start_reward_model(str(tmp_path / "saved"), NO_ADAPTER, None)
    assert torch.equal(scorer.model.embed_tokens.weight, model.model.embed_tokens.weight)
    line = "AutoModelForSequenceClassification.register(AlibiConfig, AlibiForSequenceClassification)\n"
    without = model_of(tmp_path / "other", {line: ""})
    (tmp_path / "without").mkdir()
    write_weights(without, without.state_dict(), tmp_path / "without")
    with pytest.raises(UserError, match="AutoModelForSequenceClassification"):
        start_reward_model(str(tmp_path / "without"), NO_ADAPTER, None)


def test_a_checkpoint_does_not_make_its_code_run(tmp_path: Path) -> None:
    built().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "of_my_own"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"'of_my_own' .*model=custom model\.path=FILE\.py:CONFIG") as caught:
        load_model(str(tmp_path))
    assert "--model-code FILE.py:CONFIG" in str(caught.value)
    (tmp_path / "my.py").write_text("raise SystemExit('code was run')")
    told = {"config": {"model": {"arch": "custom", "path": f"{tmp_path}/my.py:C"}}}
    (tmp_path / "lineage.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=r"model\.path=\S+/my\.py:C, other programs --model-code \S+/my\.py:C"):
        load_model(str(tmp_path))


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("spoilt", "name", "says"),
    [
        ({"class Block(nn.Module):": "class Block(nn.Module:"}, "AlibiConfig", "SyntaxError"),
        ({}, "AlibyConfig", "has no 'AlibyConfig'"),
        ({}, "AlibiForCausalLM", "no class derived from transformers' PreTrainedConfig"),
        ({'model_type = "alibi"': 'model_type = ""', REGISTERED: ""}, "AlibiConfig", "has no model_type"),
        ({'"alibi"': '"gpt2"'}, "AlibiConfig", "'gpt2' is already used by a Transformers config"),
        (
            {'model_type = "alibi"': 'model_type = "gpt2"', REGISTERED: ""},
            "AlibiConfig",
            "the model_type 'gpt2' of AlibiConfig is taken by an architecture of transformers",
        ),
        ({REGISTERED: ""}, "AlibiConfig", "is not registered with transformers; end the file with AutoConfig.register"),
        (
            {"AutoModelForCausalLM.register(AlibiConfig, AlibiForCausalLM)\n": ""},
            "AlibiConfig",
            "AutoModelForCausalLM.register(AlibiConfig, YOUR_MODEL)",
        ),
        (
            {"input_ids, attention_mask=None, position_ids=None,": "input_ids, attention_mask=None,"},
            "AlibiConfig",
            "AlibiForCausalLM.forward takes no position_ids",
        ),
        ({"use_cache=None, **more": "use_cache=None"}, "AlibiConfig", "AlibiForCausalLM.forward takes no **kwargs"),
    ],
)
def test_code_that_is_no_model_is_one_line(spoilt: dict[str, str], name: str, says: str, tmp_path: Path) -> None:
    path = write_model(tmp_path, spoilt).replace("AlibiConfig", name)
    said = refused(path)
    assert says in said
    assert said.startswith(f"model.path={path}: ")
    with pytest.raises(UserError, match=r"^--model-code x: "):
        load_classes(path, "--model-code x")


def test_a_model_type_that_another_file_of_the_command_took(tmp_path: Path) -> None:
    first = write_model(tmp_path / "first", {'"alibi"': '"twice"'})
    load_classes(first, "model.path=first")
    said = refused(write_model(tmp_path / "second", {'"alibi"': '"twice"'}))
    assert f"its model_type 'twice' is taken by {first}; choose another" in said


def test_values_that_the_class_does_not_have(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    assert "model.options.steepst: AlibiConfig has no such argument; it has vocab_size," in refused(
        path, options={"steepst": 1.0}
    )
    assert "AlibiConfig has no num_key_value_heads, which is 1 here" in refused(path, n_kv_head=1)
    assert "model.dropout=0.1: AlibiConfig has none of" in refused(path, dropout=0.1)
    raises = write_model(tmp_path / "raises", {"  # the slope of the first head": "; self.odd = 1 / 0"})
    assert "AlibiConfig refuses its values: ZeroDivisionError" in refused(raises)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (None, "model.path=null: model=custom needs the class of your configuration, as model.path=FILE.py:CONFIG"),
        ("my.py", "model.path=my.py: model=custom needs"),
        ("nowhere.py:C", "model.path=nowhere.py:C: no such file"),
    ],
)
def test_what_the_parent_process_can_see_of_the_address(path: str | None, says: str) -> None:
    assert next(shapes.problems(custom(path))).startswith(says)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- on a few tokens

NO_GENERATE = {"AlibiForCausalLM(AlibiPreTrained, GenerationMixin)": "AlibiForCausalLM(AlibiPreTrained)"}
NO_CACHE = {
    "cache=None, use_cache=None, **more": "use_cache=None, **more",
    "0 if cache is None else cache.get_seq_length()": "0",
    "x = layer(x, bias, cache)": "x = layer(x, bias, None)",
    "(last_hidden_state=self.norm(x), cache=cache)": "(last_hidden_state=self.norm(x))",
    "self.model(input_ids, attention_mask, position_ids, cache)": "self.model(input_ids, attention_mask)",
    ", cache=out.cache": "",
}
SEES_ALL = {"(key <= query)[None, None]": "(key >= 0)[None, None, None] & (query >= 0)"}


def test_the_example_does_all_that_stages_ask(tmp_path: Path) -> None:
    model = model_of(tmp_path).train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    try_out(model, packs=True, generates=True)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    ("spoilt", "says"),
    [
        (SEES_ALL, "depends on later ones"),
        (
            {"logits=self.lm_head(out.last_hidden_state)": "logits=2 * self.lm_head(out.last_hidden_state)"},
            "losses are taken there",
        ),
        ({"mask if mask.dim() == 4 else": "seen if mask.dim() == 4 else"}, "a packed sequence sees the one before it"),
        ({"mask[:, None, None])": "seen)"}, "padding on the left changes what it says"),
        ({"k, v = cache.update(": "cache.update("}, "RuntimeError on a few tokens"),
        ({"past = 0 if cache is None else cache.get_seq_length()": "past = 0"}, "on a few tokens"),
        (NO_GENERATE, "has no generate; derive it from transformers' GenerationMixin too"),
        (NO_CACHE, "its forward takes no "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_would_show_in_the_numbers_alone_is_refused(spoilt: dict[str, str], says: str, tmp_path: Path) -> None:
    model = model_of(tmp_path, spoilt)
    with pytest.raises(UserError, match=r"^AlibiForCausalLM: ") as caught:
        try_out(model, packs=True, generates=True)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spoilt", [NO_GENERATE, NO_CACHE], ids=["no generate", "no cache"])
def test_a_model_that_cannot_generate_is_trained_where_nothing_is_sampled(
    spoilt: dict[str, str], tmp_path: Path
) -> None:
    try_out(model_of(tmp_path, spoilt), packs=True, generates=False)


def test_weights_that_are_zero_hide_nothing(tmp_path: Path) -> None:
    """A head or block that begins at zero would let a look into the future pass."""
    model = model_of(tmp_path, SEES_ALL)
    for layer in model.model.layers:
        layer.out.weight.data.zero_()
        layer.down.weight.data.zero_()
    with pytest.raises(UserError, match="depends on later ones"):
        try_out(model, packs=False, generates=False)
    assert not model.model.layers[0].out.weight.any()


# -------------------------------------------------------------------------------------------------------- kernels


def test_what_does_not_know_the_model_says_so_once_and_leaves_it_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_files, "_told", set())
    model = model_of(tmp_path)
    assert not attention_can_be_set(model)
    for _ in range(2):
        use_blocked_attention(model, CPU)
        done = decode(model, [[3, 4], [5, 6, 7]], DecodeOptions(4, (), 0.0), 1, 2)
    assert model.config._attn_implementation == "sdpa"
    told = [record.getMessage() for record in caplog.records if "AlibiForCausalLM" in record.getMessage()]
    assert len(told) == 2
    assert "its attention is its own code" in told[0]
    assert "generation calls its own forward" in told[1]
    ids = [3, 4]
    for _ in range(4):
        ids.append(int(logits(model, torch.tensor([ids]))[0, -1].argmax()))
    assert done.responses[0] == ids[2:], "left-padded, with a cache, the same greedy reply"


def test_a_norm_of_the_same_name_keeps_its_own_arithmetic() -> None:
    class LlamaRMSNorm(nn.Module):
        variance_epsilon = 1e-5

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    norm = LlamaRMSNorm()
    use_fused_norms(nn.Sequential(norm), CPU)
    assert torch.equal(norm(torch.zeros(2)), torch.ones(2))
