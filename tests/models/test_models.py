"""Models: the configured shapes, parameter counts, checkpoints that load elsewhere, broken folders,
generation."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.config.test_compose import composed
from tests.conftest import configured_parameters
from tinychat.config.schema import ModelConfig, PeftConfig, PeftKind
from tinychat.errors import UserError
from tinychat.models.build import (
    build_model,
    count_parameters,
    describe,
    grow_vocabulary,
    model_vocab_size,
)
from tinychat.models.checkpoints import load_config, load_model, pretrained_path, start_model
from tinychat.models.generation.generate import (
    IncrementalText,
    SamplingOptions,
    continue_texts,
    fit_to_context,
    prompt_ids,
    stream_text,
)
from tinychat.stages.tokenizer import SAMPLES
from tinychat.text.tokenizer import encode_documents, train_bpe

CONF = Path(__file__).parents[2] / "conf" / "model"


def tiny(arch: str, **changes) -> ModelConfig:
    config = ModelConfig(
        name="tiny",
        arch=arch,
        path=None,
        n_layer=2,
        n_embd=32,
        n_head=4,
        n_kv_head=None if arch == "gpt2" else 2,
        n_inner=None if arch == "gpt2" else 48,
        context_length=64,
        vocab_size=None,
        tie_embeddings=True,
        dropout=0.0,
        rope_theta=None if arch == "gpt2" else 10000.0,
        init_std=0.02,
        position_init_std=None,
    )
    return dataclasses.replace(config, **changes)


def built(arch: str = "llama", seed: int = 0, vocab: int = 320, **changes):
    torch.manual_seed(seed)
    return build_model(tiny(arch, **changes), vocab, pad_token_id=1, eos_token_id=0).eval()


def from_conf(name: str) -> ModelConfig:
    return composed(f"model={name}").model


NO_ADAPTER = PeftConfig("none", PeftKind.none, None, None, None, None)


def logits(model, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, use_cache=False).logits


SCRATCH = ["gpt2", "llama", "qwen3"]
IDS = torch.arange(40).reshape(2, 20)


# --- conf/model


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_is_whole_and_starts_with_its_command(path):
    lines = path.read_text().removeprefix("# @package _global_\n").splitlines()  # another group's default is chosen too
    assert lines[0].startswith("# python -m tinychat.train ")
    assert f"model={path.stem}" in lines[0]
    loaded = OmegaConf.load(path)
    inherits = "pretrained" in loaded.get("defaults", ())
    assert inherits or set(loaded.get("model", loaded)) == {field.name for field in dataclasses.fields(ModelConfig)}
    assert from_conf(path.stem).name == path.stem


@pytest.mark.parametrize(
    ("name", "vocabulary", "total", "embedding"),
    [
        # 2048*192 + 3*(192*192*2 + 2*192*64 + 3*192*384 + 2*192 + 2*64) + 192
        ("mini", 2048, 1_353_408, 393_216),
        # 50304*512 + 1024*512 + 6*(12*512*512 + 13*512) + 2*512
        ("gpt6x512", 50304, 45_195_264, 26_279_936),
        # the published 124,439,808 and 47 * 768 for rounding 50,257 entries up
        ("gpt2_100m", 50304, 124_475_904, 39_419_904),
        ("llama2_15m", 32000, 15_191_712, 9_216_000),  # stories15M of llama2.c
        ("minimind2_104m", 6400, 104_030_976, 4_915_200),  # MiniMind2's 104 M
    ],
)
def test_parameter_counts(name, vocabulary, total, embedding):
    count = configured_parameters(from_conf(name), vocabulary)
    assert (count.total, count.embedding, count.other) == (total, embedding, total - embedding)


def test_mini_is_small():
    assert configured_parameters(from_conf("mini"), 4096).total <= 5_000_000


# --- building


@pytest.mark.parametrize("arch", SCRATCH)
@pytest.mark.parametrize("tied", [True, False])
def test_counted_without_allocation_is_what_is_built(arch, tied):
    config = tiny(arch, tie_embeddings=tied)
    count = count_parameters(build_model(config, 320, 1, 0))
    assert configured_parameters(config, 320) == count
    positions = 64 * 32 if arch == "gpt2" else 0
    assert count.embedding == 320 * 32 * (1 if tied else 2) + positions


@pytest.mark.parametrize("arch", SCRATCH)
def test_built_as_configured(arch):
    model = built(arch, dropout=0.1)
    shape = model.config
    assert (shape.num_hidden_layers, shape.hidden_size, shape.num_attention_heads) == (2, 32, 4)
    assert shape.max_position_embeddings == 64
    assert (shape.bos_token_id, shape.eos_token_id, shape.pad_token_id) == (0, 0, 1)
    assert shape._attn_implementation == "sdpa"
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    rates = {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}
    rates |= {getattr(m, "attention_dropout", 0.1) for m in model.modules()} - {0.1}
    assert rates <= {0.1}
    if arch != "gpt2":
        assert shape.num_key_value_heads == 2
        assert shape.head_dim == 8
        assert shape.rope_parameters["rope_theta"] == 10000.0
    assert model.get_input_embeddings().weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert built(arch, init_std=0.1).get_input_embeddings().weight.std().item() == pytest.approx(0.1, rel=0.1)
    assert "2 layers of width 32" in describe(model)


@pytest.mark.parametrize("arch", SCRATCH)
def test_same_seed_same_weights_and_a_fresh_model_guesses_evenly(arch):
    one, two, other = built(arch, 1), built(arch, 1), built(arch, 2)
    assert torch.equal(logits(one, IDS), logits(two, IDS))
    assert not torch.equal(logits(one, IDS), logits(other, IDS))
    loss = torch.nn.functional.cross_entropy(logits(one, IDS).flatten(0, 1), (IDS * 7 + 20).flatten())
    assert loss.item() == pytest.approx(math.log(320), abs=0.15)


@pytest.mark.parametrize("arch", SCRATCH)
def test_a_later_token_changes_nothing_before_it(arch):
    model = built(arch)
    changed = IDS.clone()
    changed[:, 10] = 99
    assert torch.allclose(logits(model, IDS)[:, :10], logits(model, changed)[:, :10], atol=1e-6)
    assert not torch.allclose(logits(model, IDS)[:, 10:], logits(model, changed)[:, 10:], atol=1e-4)


def test_gpt2s_fused_activation_is_gelu_new():
    model = built("gpt2", init_std=0.5)
    assert model.config.activation_function == "gelu_pytorch_tanh"
    published = built("gpt2", init_std=0.5)
    from transformers.activations import ACT2FN

    for block in published.transformer.h:
        block.mlp.act = ACT2FN["gelu_new"]
    assert torch.allclose(logits(model, IDS), logits(published, IDS), atol=1e-4)


@pytest.mark.parametrize("key", ["n_layer", "n_inner", "n_kv_head", "rope_theta", "tie_embeddings", "init_std"])
def test_a_null_that_the_architecture_needs_is_named(key):
    with pytest.raises(UserError, match=f"model.{key}=null"):
        build_model(tiny("llama", **{key: None}), 320, 1, 0)


@pytest.mark.parametrize(
    ("arch", "changes", "words"),
    [
        ("gpt2", {"n_head": 5}, "model.n_embd=32: must be a multiple of model.n_head=5"),
        ("gpt2", {"n_kv_head": 2}, "no grouped-query attention"),
        ("llama", {"n_kv_head": 3}, "must be a multiple of model.n_kv_head=3"),
        ("qwen3", {"n_head": 32, "n_kv_head": 32}, "even width per head"),
    ],
)
def test_shapes_that_no_model_has_are_named(arch, changes, words):
    with pytest.raises(UserError, match=words):
        build_model(tiny(arch, **changes), 320, 1, 0)


def test_a_pretrained_model_needs_a_path():
    with pytest.raises(UserError, match=r"model\.path=null"):
        pretrained_path(tiny("pretrained"))


def test_vocabulary_is_rounded_up_kept_or_refused():
    config = tiny("llama")
    assert [model_vocab_size(config, size) for size in (4096, 4097, 50260)] == [4096, 4160, 50304]
    assert model_vocab_size(tiny("llama", vocab_size=5000), 4097) == 5000
    assert model_vocab_size(tiny("pretrained"), 50258) == 50258
    with pytest.raises(UserError, match=r"model.vocab_size=4096: the tokenizer has 4097 entries"):
        model_vocab_size(tiny("llama", vocab_size=4096), 4097)


# --- loading


@pytest.fixture(params=SCRATCH)
def checkpoint(request, tmp_path):
    model = built(request.param)
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


def test_a_checkpoint_loads_here_and_with_transformers_alone(checkpoint):
    model, folder = checkpoint
    ours = load_model(str(folder))
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(ours, IDS), logits(model, IDS))
    assert torch.equal(logits(theirs, IDS), logits(model, IDS))
    assert ours.config.to_dict().items() >= {"vocab_size": 320, "tie_word_embeddings": True}.items()
    assert ours.get_output_embeddings().weight is ours.get_input_embeddings().weight
    activation = "gelu_pytorch_tanh" if ours.config.model_type == "gpt2" else "silu"
    assert activation in (getattr(ours.config, "activation_function", ""), getattr(ours.config, "hidden_act", ""))
    assert next(ours.parameters()).dtype == torch.float32


def test_half_precision_weights_are_loaded_as_fp32(tmp_path):
    built().to(torch.bfloat16).save_pretrained(tmp_path)
    assert {p.dtype for p in load_model(str(tmp_path)).parameters()} == {torch.float32}


def test_weights_in_several_files(tmp_path):
    model = built(n_inner=96)
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert torch.equal(logits(load_model(str(tmp_path)), IDS), logits(model, IDS))
    sorted(tmp_path.glob("model-*.safetensors"))[1].unlink()
    with pytest.raises(UserError, match="holds no model-00002"):
        load_model(str(tmp_path))


def test_dropout_replaces_the_checkpoints_own(tmp_path):
    built("gpt2", dropout=0.1).save_pretrained(tmp_path)
    model = start_model(pretrained_path(tiny("pretrained", path=str(tmp_path))), NO_ADAPTER, dropout=0.0).train()
    assert torch.equal(model(IDS).logits, model(IDS).logits)
    kept = load_model(str(tmp_path)).train()
    assert not torch.equal(kept(IDS).logits, kept(IDS).logits)


def test_a_pretrained_model_grows_for_a_few_special_tokens_only(tmp_path):
    model = built(vocab=300)
    model.save_pretrained(tmp_path)
    same = start_model(str(tmp_path), NO_ADAPTER, entries=290)
    assert same.get_input_embeddings().weight.shape[0] == 300
    grown = start_model(str(tmp_path), NO_ADAPTER, entries=303)
    assert grown.get_input_embeddings().weight.shape[0] == grown.config.vocab_size == 320
    assert torch.equal(logits(grown, IDS)[..., :300], logits(model, IDS))
    with pytest.raises(UserError, match="the tokenizer has 400 entries, the pretrained model 300"):
        grow_vocabulary(load_model(str(tmp_path)), 400)


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_take_no_probability_from_the_old_ones(tied, tmp_path):
    """Logits of published models share a large negative offset (GPT-2's lie around -100): a row near zero would have
    the largest logit of all."""
    model = built(vocab=300, tie_embeddings=tied).eval()
    with torch.no_grad():
        model.model.norm.weight[0] = 0.0
        model.get_output_embeddings().weight[:, 0] = -1.0
        shared = 30.0 * torch.eye(32)[0]  # in every hidden state: all logits are lower by 30

        def lift(_module, _inputs, out):
            return out + shared

        before = nll(model, lift)
        grow_vocabulary(model, 301)
        after = nll(model, lift)
    assert model.get_output_embeddings().weight.shape[0] == 320
    assert before <= after < before + math.log(320 / 300) + 0.01, "20 more rows take at most their share"


def nll(model, lift) -> float:
    """Nats per token of IDS, `lift` applied to the last hidden states."""
    handle = model.model.norm.register_forward_hook(lift)
    try:
        out = model(IDS).logits[:, :-1]
    finally:
        handle.remove()
    return torch.nn.functional.cross_entropy(out.flatten(0, 1), IDS[:, 1:].flatten()).item()


ODD = [
    {"num_hidden_layers": 10**9},  # would go on for minutes
    {"num_hidden_layers": 0},
    {"hidden_size": -4},
    {"num_attention_heads": 7},
    {"num_attention_heads": "four"},
    {"vocab_size": None},
    {"vocab_size": True},
    {"max_position_embeddings": 0},
    {"pad_token_id": 10**9},
    {"hidden_act": "nope"},
    {"architectures": 7},
    {"rope_parameters": {"rope_type": "odd"}},
    {"_attn_implementation": "nope"},
]


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_odd_values_in_config_json_are_one_line_that_names_the_file(odd, tmp_path):
    built().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **odd}))
    for use in (
        lambda: load_config(str(tmp_path)),
        lambda: load_model(str(tmp_path)),
    ):
        with pytest.raises(UserError, match=rf"^model {file}: ") as caught:
            use()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused_by_name(value, tmp_path):
    model = built()
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = value
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds numbers that are not finite"):
        load_model(str(tmp_path))


def spoil(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    tensors = load_file(weights) if weights.is_file() else {}
    name = sorted(tensors)[2]
    if how == "missing":
        del tensors[name]
    elif how == "left over":
        tensors["other.weight"] = torch.zeros(1)
    elif how == "another shape":
        tensors[name] = tensors[name][:1].clone()
    save_file(tensors, weights, metadata={"format": "pt"})
    content = weights.read_bytes()
    if how == "cut short":
        weights.write_bytes(content[:-100])
    elif how == "header cut":
        weights.write_bytes(content[:50])
    elif how == "nothing":
        weights.write_bytes(b"")
    elif how == "pickle":
        torch.save(tensors, folder / "pytorch_model.bin")
        weights.unlink()
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "broken config":
        (folder / "config.json").write_text("{")
    elif how == "unknown":
        (folder / "config.json").write_text(json.dumps({"model_type": "no_such_model"}))
    elif how == "not text":
        (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    elif how == "code":
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.M"}}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "mine.py").write_text("raise SystemExit('code was run')")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", "weights missing: "),
        ("left over", "weights that the model does not have: other.weight"),
        ("another shape", "weights of another shape"),
        ("cut short", "cut short"),
        ("header cut", "cut short"),
        ("nothing", "cut short"),
        ("pickle", "pytorch_model.bin is not read"),
        ("no config", "holds no config.json"),
        ("broken config", "broken JSON"),
        ("unknown", "no_such_model"),
        ("not text", "cannot be loaded|make no language model"),
        ("code", "config.json"),
    ],
)
def test_broken_checkpoints_are_one_line_errors(checkpoint, how, words, capfd):
    _, folder = checkpoint
    spoil(folder, how)
    with pytest.raises(UserError, match=words) as error:
        load_model(str(folder))
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)
    assert capfd.readouterr().err == ""  # no table from transformers beside it


def test_a_folder_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="no such folder"):
        load_model(str(tmp_path / "nowhere"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        load_model(str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"no-such/model: HF_HUB_OFFLINE is set"):
        load_model("no-such/model")


# --- generation


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["the cat and the dog sat on the mat. " * 20], 300, progress=False)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request):
    return built(request.param, init_std=0.3)


def greedy_by_hand(model, tokenizer, prompt: str, new_tokens: int) -> str:
    """The likeliest token, one at a time, without a cache."""
    ids = prompt_ids(tokenizer, prompt)
    start = len(ids)
    for _ in range(new_tokens):
        ids = [*ids, int(logits(model, torch.tensor([ids]))[0, -1, : len(tokenizer)].argmax())]
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


PROMPTS = ["the cat", "the dog sat on the mat and", "", "on"]


def test_greedy_is_the_likeliest_token_one_at_a_time_in_any_batch(model, tokenizer):
    options = SamplingOptions(max_new_tokens=12, greedy=True)
    expected = [greedy_by_hand(model, tokenizer, prompt, 12) for prompt in PROMPTS]
    assert continue_texts(model, tokenizer, PROMPTS, options) == expected
    assert ["".join(stream_text(model, tokenizer, prompt, options)) for prompt in PROMPTS] == expected
    assert continue_texts(model, tokenizer, [], options) == []


def test_a_seed_gives_the_same_text_again_streamed_or_not(model, tokenizer):
    options = SamplingOptions(max_new_tokens=20, temperature=1.5, seed=3)
    [text] = continue_texts(model, tokenizer, ["the cat"], options)
    assert continue_texts(model, tokenizer, ["the cat"], options) == [text]
    assert "".join(stream_text(model, tokenizer, "the cat", options)) == text
    assert continue_texts(model, tokenizer, ["the cat"], dataclasses.replace(options, seed=4)) != [text]
    free = dataclasses.replace(options, seed=None)
    assert continue_texts(model, tokenizer, ["the cat"], free) != continue_texts(model, tokenizer, ["the cat"], free)


def test_generating_leaves_the_random_state_and_the_mode_alone(model, tokenizer):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    model.train()
    continue_texts(model, tokenizer, ["the"], SamplingOptions(max_new_tokens=5, seed=1))
    list(stream_text(model, tokenizer, "the", SamplingOptions(max_new_tokens=5)))
    assert model.training
    model.eval()
    assert torch.equal(torch.rand(3), expected)


def test_options_reach_the_model(model, tokenizer):
    def text(**options) -> str:
        return continue_texts(model, tokenizer, ["the cat"], SamplingOptions(max_new_tokens=25, **options))[0]

    likeliest = text(greedy=True)
    assert text(top_k=1, temperature=5.0) == likeliest
    assert text(top_p=1e-6, temperature=5.0) == likeliest
    assert text(temperature=1e-4) == likeliest
    assert text(temperature=5.0, seed=0) != likeliest
    assert text(temperature=0.3, seed=0, repetition_penalty=5.0) != text(temperature=0.3, seed=0)


BROUGHT = [
    {"num_beams": 4},  # streamed text was empty
    {"num_beams": "four"},
    {"min_p": 0.9},
    {"guidance_scale": 3.0},
    {"sequence_bias": [[[5], 100.0]]},
    {"exponential_decay_length_penalty": [1, 2.0]},
    {"stop_strings": ["a"]},
    {"dola_layers": "high"},
    {"return_dict_in_generate": True},
    {"max_time": 0.0},
]


@pytest.mark.parametrize("brought", BROUGHT, ids=str)
def test_generation_settings_that_a_checkpoint_brings_change_no_reply(brought, tokenizer, tmp_path, caplog):
    model = built(init_std=0.3)
    options = SamplingOptions(max_new_tokens=8, seed=1)
    expected = continue_texts(model, tokenizer, ["the cat"], options)
    assert not caplog.messages
    model.save_pretrained(tmp_path)
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **brought}))
    model = load_model(str(tmp_path))
    assert continue_texts(model, tokenizer, ["the cat"], options) == expected
    assert ["".join(stream_text(model, tokenizer, "the cat", options))] == expected
    [(key, value)] = brought.items()
    assert getattr(model.generation_config, key) == value, "the model keeps it"
    told = [text for text in caplog.messages if "its generation settings are not used" in text]
    assert len(told) == (key != "return_dict_in_generate") and all(f"{key}=" in text for text in told)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"eos_token_id": [0, "b"]}', "eos_token_id in generation_config.json holds 'b', which is no token's number"),
        ("{", r"generation_config\.json: broken JSON"),
        ("[1]", r"generation_config\.json: holds no JSON object"),
    ],
)
def test_generation_settings_that_mean_nothing_are_one_line(content, says, tokenizer, tmp_path):
    built().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(UserError, match=says):
        continue_texts(load_model(str(tmp_path)), tokenizer, ["the"], SamplingOptions(max_new_tokens=2))


def test_only_tokens_of_the_tokenizer_are_generated(tokenizer):
    model = built(init_std=0.3)
    assert model.config.vocab_size > len(tokenizer)
    with torch.no_grad():
        model.get_output_embeddings().weight[len(tokenizer) :] *= 100  # tied: never looked up
    [text] = continue_texts(model, tokenizer, ["the"], SamplingOptions(max_new_tokens=30, temperature=2.0, seed=0))
    assert text


def test_generation_ends_at_an_end_of_text(tokenizer):
    model = built(init_std=0.3, tie_embeddings=False)
    with torch.no_grad():  # every position's likeliest token is the end of text
        model.get_output_embeddings().weight.zero_()
    assert continue_texts(model, tokenizer, PROMPTS, SamplingOptions(max_new_tokens=9, greedy=True)) == [""] * 4
    assert list(stream_text(model, tokenizer, "on", SamplingOptions(max_new_tokens=9, greedy=True))) == []


@pytest.mark.parametrize(
    ("prompt", "new", "context", "expected"),
    [
        (10, 20, 64, (10, 20)),  # all fits
        (50, 20, 64, (44, 20)),  # the prompt's beginning goes
        (10, 200, 64, (10, 54)),  # as far as the context goes
        (100, 200, 64, (32, 32)),  # half and half
        (64, 1, 64, (63, 1)),
        (1, 63, 64, (1, 63)),
        (5, 5, 2, (1, 1)),
    ],
)
def test_what_fits_into_the_context(prompt, new, context, expected):
    assert fit_to_context(prompt, new, context) == expected


def test_prompts_and_texts_longer_than_the_context(model, tokenizer):
    for prompt in ("the cat " * 200, "the"):
        options = SamplingOptions(max_new_tokens=1000, temperature=1.0, seed=0)
        [text] = continue_texts(model, tokenizer, [prompt], options)
        assert text
        assert "".join(stream_text(model, tokenizer, prompt, options)) == text


def test_closing_a_stream_stops_the_generation(model, tokenizer):
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    pieces = stream_text(model, tokenizer, "the", SamplingOptions(max_new_tokens=60, temperature=1.0, seed=0))
    next(pieces)
    pieces.close()
    handle.remove()
    done = len(calls)
    assert done < 60
    assert len(calls) == done


def test_an_error_while_streaming_reaches_the_reader(model, tokenizer):
    def fail(*_):
        raise RuntimeError("out of memory")

    handle = model.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(stream_text(model, tokenizer, "the", SamplingOptions(max_new_tokens=5)))
    handle.remove()


@pytest.mark.parametrize("text", SAMPLES.values())
def test_incremental_decoding_gives_whole_characters_and_the_same_text(tokenizer, text):
    ids = encode_documents(tokenizer, [text])[0]
    decoder = IncrementalText(tokenizer, prompt_ids(tokenizer, "a prompt 中"))
    pieces = [decoder.add(token) for token in ids]
    assert "".join(pieces) + decoder.rest() == text
    assert "\ufffd" not in "".join(pieces)
    assert len([piece for piece in pieces if piece]) > len(text) / 4  # as they come, not at the end


def test_incremental_decoding_of_half_characters(tokenizer):
    torch.manual_seed(0)
    ids = torch.randint(4, len(tokenizer), (400,)).tolist()
    decoder = IncrementalText(tokenizer, [])
    text = "".join(decoder.add(token) for token in ids) + decoder.rest()
    assert text == tokenizer.decode(ids)
    assert decoder.rest() == ""


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temperature", 0.0),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("repetition_penalty", 0.0),
        ("max_new_tokens", 0),
        ("seed", -1),
    ],
)
def test_options_that_cannot_work_are_named(option, value):
    with pytest.raises(UserError, match=f"{option}="):
        SamplingOptions(**{option: value})


def test_learned_positions_start_at_their_own_scale() -> None:
    quiet = built("gpt2", position_init_std=0.002).transformer.wpe.weight.std().item()
    assert quiet == pytest.approx(0.002, rel=0.2)
    assert built("gpt2").transformer.wpe.weight.std().item() == pytest.approx(0.02, rel=0.2)
