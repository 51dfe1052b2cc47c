"""Generation against transformers, and its log-probabilities against token_nll."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)

from tinychat.models.generation import decode as module
from tinychat.models.generation.decode import Decoded, DecodeOptions, Filter, choose, decode, prepare, sample
from tinychat.models.kernels import kv_cache
from tinychat.models.kernels.lean import LeanModel, Unsupported, product
from tinychat.models.logprobs import IGNORED, token_nll
from tinychat.models.vocabulary import Vocabulary

VOCABULARY, CONTEXT, PAD, NEW = 130, 64, 129, 12
LLAMA_SHAPE = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": CONTEXT,
}
SHAPES: dict[str, Any] = {
    "gpt2": GPT2Config(n_layer=2, n_embd=32, n_head=2, n_positions=CONTEXT),
    "gpt2, fused gelu, scaled": GPT2Config(
        n_layer=2,
        n_embd=32,
        n_head=2,
        n_positions=CONTEXT,
        activation_function="gelu_pytorch_tanh",
        scale_attn_by_inverse_layer_idx=True,
    ),
    "gpt2, relu": GPT2Config(n_layer=2, n_embd=32, n_head=2, n_positions=CONTEXT, activation_function="relu"),
    "llama, grouped": LlamaConfig(**LLAMA_SHAPE),
    "llama, biases, tied, scaled positions": LlamaConfig(
        **LLAMA_SHAPE,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    ),
    "qwen3": Qwen3Config(**LLAMA_SHAPE, head_dim=16),
}
MAIN = ["gpt2", "llama, grouped", "qwen3"]


def build(name: str) -> Any:
    shape = SHAPES[name]
    shape.vocab_size, shape.initializer_range = VOCABULARY, 0.1
    shape.bos_token_id = shape.eos_token_id = shape.pad_token_id = None
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(shape, attn_implementation="sdpa").eval()
    for parameter in model.parameters():  # biases and norms that do something
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.1)
    return model


@pytest.fixture(params=MAIN)
def model(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    chance = torch.Generator().manual_seed(5)
    return [torch.randint(VOCABULARY - 1, (n,), generator=chance).tolist() for n in (3, 9, 9, 1, 14, 6)]


@pytest.fixture
def own_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a model that the lean arithmetic does not know."""

    def refuse(*arguments: object) -> None:
        raise Unsupported("test")

    monkeypatch.setattr(module, "LeanModel", refuse)


def run(model: Any, prompts: list[list[int]], batch_size: int = 4, dtype: Any = None, **options: Any) -> Decoded:
    chosen = {"max_new_tokens": NEW, "end_ids": (), "seed": 3, **options}
    return decode(model, prompts, DecodeOptions(**chosen), PAD, batch_size, dtype)


def nll_of(model: Any, prompt: list[int], response: list[int], temperature: float = 1.0) -> Tensor:
    """token_nll of the response, unpadded."""
    ids = torch.tensor([prompt + response])
    targets = torch.full_like(ids, IGNORED)
    targets[0, len(prompt) - 1 : -1] = ids[0, len(prompt) :]
    with torch.no_grad():
        return token_nll(model, ids, targets, temperature=temperature)[0, len(prompt) - 1 : -1]


def generated(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    """transformers' greedy tokens, a prompt at a time."""
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        output = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW)
        found.append(output[0, len(prompt) :].tolist())
    return found


# -------------------------------------------------------------------------------------------- against transformers


def test_greedy_tokens_are_those_of_generate(model: Any, prompts: list[list[int]]) -> None:
    assert isinstance(prepare(model), LeanModel)
    assert run(model, prompts, temperature=0).responses == generated(model, prompts)


def test_filters_give_the_distribution_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn from: what choose hands to sample; against the processors of generate, in its order."""
    chance = torch.Generator().manual_seed(2)
    logits = 3 * torch.randn(5, VOCABULARY, generator=chance)
    ids = torch.randint(VOCABULARY, (5, 9), generator=chance)
    seen = torch.zeros(5, VOCABULARY, dtype=torch.bool).scatter_(1, ids, True)
    drawn_from = []
    original = module.sample
    monkeypatch.setattr(module, "sample", lambda p, draws: drawn_from.append(p) or original(p, draws))
    for temperature, top_k, top_p, penalty in ((0.7, 20, 0.8, 1.3), (1.0, 0, 0.5, 1.0), (1.5, 3, 1.0, 0.8)):
        wanted = GenerationConfig(
            do_sample=True, temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=penalty
        )
        processors = GPT2LMHeadModel(SHAPES["gpt2"])._get_logits_processor(wanted, 9, ids)
        options = DecodeOptions(1, (), temperature, filter=Filter(top_k, top_p, penalty))
        chosen, logprobs = choose(logits, torch.rand(5, dtype=torch.float64), options, seen if penalty != 1 else None)
        theirs = processors(ids, logits.clone()).log_softmax(-1)
        torch.testing.assert_close(drawn_from[-1], theirs.exp())
        torch.testing.assert_close(logprobs, theirs.gather(1, chosen[:, None])[:, 0], atol=1e-5, rtol=0)
        assert 1 < (drawn_from[-1] > 0).sum(1).max() < VOCABULARY


def test_a_repetition_penalty_is_that_of_generate(model: Any, prompts: list[list[int]]) -> None:
    """Of prompt and reply, and of rows that stay when others are dropped from the batch."""
    ends = tuple(range(0, VOCABULARY, 5))
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NEW,
            repetition_penalty=1.8,
            eos_token_id=list(ends),
            pad_token_id=PAD,
        )
        found.append(output[0, len(prompt) :].tolist())
    assert run(model, prompts, temperature=0, end_ids=ends, filter=Filter(repetition_penalty=1.8)).responses == found
    assert len(set(map(len, found))) > 2
    twice = run(model, prompts, temperature=0, end_ids=ends, filter=Filter(repetition_penalty=1.8), group=2)
    assert twice.responses == [response for response in found for _ in range(2)]


def test_a_reply_ends_where_it_is_told_to(model: Any, prompts: list[list[int]]) -> None:
    free = run(model, prompts, max_new_tokens=40)
    stopped = run(model, prompts, max_new_tokens=40, filter=Filter(stopped=lambda ids: sum(ids[-2:]) % 7 == 0))
    for whole, cut in zip(free.responses, stopped.responses, strict=True):
        ends = [n for n in range(1, 41) if sum(whole[max(0, n - 2) : n]) % 7 == 0]
        assert cut == whole[: min(ends, default=40)]
    assert len(set(map(len, stopped.responses))) > 2 and not any(stopped.ended)


def test_draws_of_the_callers_are_taken(model: Any, prompts: list[list[int]]) -> None:
    draws = torch.rand(len(prompts), NEW, dtype=torch.float64)
    options = DecodeOptions(NEW, (), seed=1)
    whole = decode(model, prompts, options, PAD, 3, draws=draws).responses
    back = decode(model, prompts[::-1], options, PAD, 2, draws=draws.flip(0)).responses
    assert back[::-1] == whole != decode(model, prompts, options, PAD, 3).responses


@pytest.mark.usefixtures("own_forward")
def test_so_are_those_of_the_models_own_forward(model: Any, prompts: list[list[int]]) -> None:
    assert run(model, prompts, temperature=0).responses == generated(model, prompts)


def test_a_sliding_window_is_left_to_the_model(prompts: list[list[int]]) -> None:
    SHAPES["mistral"] = MistralConfig(**LLAMA_SHAPE, sliding_window=4)
    mistral = build("mistral")
    assert not isinstance(prepare(mistral), LeanModel)
    assert run(mistral, prompts, temperature=0).responses == generated(mistral, prompts)


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "mistral"])
def test_lean_logits_are_the_models(name: str) -> None:
    model = build(name)
    lean = LeanModel(model, None)
    ids = torch.randint(VOCABULARY, (3, 12))
    padding = torch.tensor([0, 5, 2])
    cache = lean.new_cache(padding, 12)
    found = [lean(ids[:, :9], cache)] + [lean(ids[:, t : t + 1], cache) for t in range(9, 12)]
    for row, pad in enumerate(padding.tolist()):
        wanted = model(input_ids=ids[row : row + 1, pad:]).logits[0, -4:]
        torch.testing.assert_close(torch.stack([logits[row] for logits in found]), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MAIN)
@pytest.mark.parametrize("padding", [[0, 5, 2], [0, 0, 0]])
def test_what_stood_in_the_memory_does_not_matter(
    name: str, padding: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps read slots that are not filled yet, here NaN at first; rows that have ended are dropped on the way."""
    buffer = kv_cache._Layer._buffer
    monkeypatch.setattr(kv_cache._Layer, "_buffer", lambda *arguments: buffer(*arguments).fill_(float("nan")))
    model, ids, kept = build(name), torch.randint(VOCABULARY, (3, 60)), torch.tensor([2, 1])
    lean = LeanModel(model, None)
    cache = lean.new_cache(torch.tensor(padding), 60)
    lean(ids[:, :9], cache)
    found = []
    for t in range(9, 60):
        if t == 41:
            cache.keep_rows(kept)
        found.append(lean(ids[:, t : t + 1] if t < 41 else ids[kept, t : t + 1], cache))
    for place, row in enumerate(kept.tolist()):
        wanted = model(input_ids=ids[row : row + 1, padding[row] :]).logits[0, -51:]
        own = [logits[row if len(logits) == 3 else place] for logits in found]
        torch.testing.assert_close(torch.stack(own), wanted, atol=1e-5, rtol=1e-5)


def test_few_sizes_of_attention_occur() -> None:
    lengths = range(1, 2049)
    read = [kv_cache.slots_read(length) for length in lengths]
    assert all(0 <= more - length <= max(15, length / 8) for more, length in zip(read, lengths, strict=True))
    assert read == sorted(read) and len(set(read)) <= 40


# ------------------------------------------------------------------------------------------------ log-probabilities


@pytest.mark.parametrize("temperature", [0, 0.7, 1.0, 1.5])
def test_logprobs_are_those_of_token_nll(model: Any, prompts: list[list[int]], temperature: float) -> None:
    done = run(model, prompts, temperature=temperature)
    for prompt, response, logprobs in zip(prompts, done.responses, done.logprobs, strict=True):
        wanted = -nll_of(model, prompt, response, temperature or 1.0)
        torch.testing.assert_close(torch.tensor(logprobs), wanted, atol=1e-5, rtol=0)


def test_and_those_of_token_nll_under_left_padding(model: Any, prompts: list[list[int]]) -> None:
    done = run(model, prompts, temperature=0.8)
    rows = [prompt + response for prompt, response in zip(prompts, done.responses, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    targets = torch.full_like(ids, IGNORED)
    targets[:, -NEW - 1 : -1] = ids[:, -NEW:]
    with torch.no_grad():
        nll = token_nll(model, ids, targets, (mask.cumsum(1) - 1).clamp(min=0), mask, temperature=0.8)
    torch.testing.assert_close(torch.tensor(done.logprobs), -nll[:, -NEW - 1 : -1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("lean", [True, False])
def test_adapters_count_while_they_are_on(
    model: Any, prompts: list[list[int]], lean: bool, request: pytest.FixtureRequest
) -> None:
    if not lean:
        request.getfixturevalue("own_forward")
    plain = run(model, prompts)
    targets = ["c_attn", "c_proj"] if model.config.model_type == "gpt2" else ["q_proj", "v_proj", "down_proj"]
    adapted = get_peft_model(model, LoraConfig(r=4, lora_dropout=0.5, target_modules=targets, init_lora_weights=False))
    adapted.train()
    done = run(adapted, prompts)
    assert adapted.training
    assert done.responses != plain.responses
    adapted.eval()
    for prompt, response, logprobs in zip(prompts, done.responses, done.logprobs, strict=True):
        torch.testing.assert_close(torch.tensor(logprobs), -nll_of(adapted, prompt, response), atol=2e-5, rtol=0)
    with adapted.disable_adapter():
        assert run(adapted, prompts).responses == plain.responses
    adapted.train()
    assert all(p.grad is None for p in adapted.parameters())
    nll_sum = token_nll(adapted, torch.tensor([prompts[1]]), torch.tensor([prompts[2]])).sum()
    nll_sum.backward()
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad), "it can still be trained"


def test_bf16_is_near_what_autocast_computes(model: Any, prompts: list[list[int]]) -> None:
    done = run(model, prompts, dtype=torch.bfloat16)
    off = []
    with torch.autocast("cpu", torch.bfloat16):
        for prompt, response, logprobs in zip(prompts, done.responses, done.logprobs, strict=True):
            off.append(torch.tensor(logprobs) + nll_of(model, prompt, response))
    assert torch.cat(off).abs().max() < 0.1
    assert torch.cat(off).mean().abs() < 0.01, "no bias"
    assert all(p.dtype is torch.float32 for p in model.parameters())


@pytest.mark.parametrize("lean", [True, False])
def test_a_callers_autocast_changes_nothing(
    model: Any, prompts: list[list[int]], lean: bool, request: pytest.FixtureRequest
) -> None:
    if not lean:
        request.getfixturevalue("own_forward")
    plain = run(model, prompts)
    with torch.autocast("cpu", torch.bfloat16):
        assert run(model, prompts, dtype=torch.float32) == plain


# --------------------------------------------------------------------------------------------------- rows and ends


def test_rows_end_at_the_first_end_token(model: Any, prompts: list[list[int]]) -> None:
    free = run(model, prompts).responses
    ends = (free[0][4], free[4][9])
    done = run(model, prompts, end_ids=ends)
    for whole, response, ended, logprobs in zip(free, done.responses, done.ended, done.logprobs, strict=True):
        first = next((place for place, token in enumerate(whole) if token in ends), None)
        assert response == (whole if first is None else whole[: first + 1])
        assert ended == (first is not None)
        assert len(logprobs) == len(response)
    assert done.ended[0]
    assert not all(done.ended)


def test_nothing_else_in_the_batch_matters(
    model: Any, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = tuple(range(0, VOCABULARY, 7))
    done = run(model, prompts, batch_size=len(prompts), end_ids=ends)
    assert len({len(response) for response in done.responses}) > 2
    for share in (0.0, 1.0):  # rows that ended stay to the end; are dropped at once
        monkeypatch.setattr(module, "COMPACT_BELOW", share)
        for batch_size in (1, 3, 50):
            other = run(model, prompts, batch_size=batch_size, end_ids=ends)
            assert other.responses == done.responses
            assert other.ended == done.ended
            for ours, theirs in zip(other.logprobs, done.logprobs, strict=True):
                assert ours == pytest.approx(theirs, abs=1e-5)


def test_a_list_in_two_parts_gets_the_draws_of_the_whole(model: Any, prompts: list[list[int]]) -> None:
    whole = run(model, prompts).responses
    assert run(model, prompts[:2]).responses + run(model, prompts[2:], first=2).responses == whole
    assert run(model, prompts[2:]).responses != whole[2:]


def test_generation_stops_with_the_last_row(model: Any, prompts: list[list[int]], monkeypatch: Any) -> None:
    steps = []
    original = module.choose
    monkeypatch.setattr(module, "choose", lambda *arguments: steps.append(1) or original(*arguments))
    run(model, prompts[:3], end_ids=tuple(range(VOCABULARY)))
    assert len(steps) == 1


def test_the_context_is_never_left(model: Any) -> None:
    long = [[1] * (CONTEXT - 1), [2] * (CONTEXT - 5), [3] * 4]
    done = run(model, long, max_new_tokens=8)
    assert [len(response) for response in done.responses] == [1, 5, 8]
    assert done.ended == [False] * 3
    for prompt, response, logprobs in zip(long, done.responses, done.logprobs, strict=True):
        torch.testing.assert_close(torch.tensor(logprobs), -nll_of(model, prompt, response), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([1] * CONTEXT, "prompt 1 has 64 tokens, .* context of 64"), ([], "prompt 1 is empty")],
)
def test_prompts_that_cannot_be_continued_are_refused(model: Any, prompt: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(model, [[1], prompt])


@pytest.mark.parametrize(("name", "value"), [("max_new_tokens", 0), ("temperature", -1.0), ("group", 0), ("first", -1)])
def test_bad_options_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}={value}"):
        DecodeOptions(**{"max_new_tokens": 1, "end_ids": (), name: value})


@pytest.mark.parametrize(("name", "value"), [("top_k", -1), ("top_p", 0.0), ("top_p", 1.1), ("repetition_penalty", 0)])
def test_bad_filters_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Filter(**{name: value})  # type: ignore[arg-type]


def test_no_prompts_no_responses(model: Any) -> None:
    assert run(model, []) == Decoded([], [], [])


def test_a_pad_token_beyond_the_embedding_serves(model: Any, prompts: list[list[int]]) -> None:
    options = DecodeOptions(5, (), seed=1)
    assert decode(model, prompts, options, VOCABULARY + 7, 8) == decode(model, prompts, options, 0, 8)


@pytest.mark.parametrize("holes", [(), tuple(range(10, 90))])
def test_what_is_no_token_of_the_tokenizer_is_never_drawn(
    model: Any, prompts: list[list[int]], holes: tuple[int, ...]
) -> None:
    assert max(max(response) for response in run(model, prompts, max_new_tokens=40).responses) >= 100
    done = run(model, prompts, vocabulary=Vocabulary(100, holes))
    drawn = {token for response in done.responses for token in response}
    assert max(drawn) < 100
    assert not drawn & set(holes)
    logits = model(input_ids=torch.tensor([prompts[0]])).logits[0, -1, :100]
    logits[list(holes)] = float("-inf")
    first = logits.log_softmax(-1)
    assert done.logprobs[0][0] == pytest.approx(first[done.responses[0][0]].item(), abs=1e-5)


# ---------------------------------------------------------------------------------------------------------- draws


def test_equal_seeds_give_equal_responses_and_the_global_state_stays(model: Any, prompts: list[list[int]]) -> None:
    torch.manual_seed(9)
    state = torch.get_rng_state()
    done = run(model, prompts)
    torch.rand(3)
    assert run(model, prompts) == done
    assert run(model, prompts, seed=4).responses != done.responses
    assert run(model, prompts, seed=None).responses != run(model, prompts, seed=None).responses
    torch.manual_seed(9)
    run(model, prompts)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [1, 63, 64, 65, 130, 1000])
def test_a_draw_inverts_the_distribution_function(size: int) -> None:
    chance = torch.Generator().manual_seed(size)
    probabilities = torch.softmax(3 * torch.randn(50, size, generator=chance), -1)
    draws = torch.rand(50, generator=chance, dtype=torch.float64)
    edges = probabilities.double().cumsum(-1)
    wanted = (edges <= draws[:, None] * edges[:, -1:]).sum(-1)
    assert torch.equal(sample(probabilities, draws), wanted)


@pytest.mark.parametrize("draw", [0.0, 0.5, 1 - 2**-53])
def test_what_has_no_probability_is_never_drawn(draw: float) -> None:
    for allowed in ([0], [64], [199], [63, 130], [5, 6, 198]):
        probabilities = torch.zeros(1, 200)
        probabilities[0, allowed] = 1 / len(allowed)
        assert sample(probabilities, torch.tensor([draw], dtype=torch.float64)).item() in allowed


def test_draws_follow_the_distribution() -> None:
    probabilities = torch.softmax(torch.randn(1, 70, generator=torch.Generator().manual_seed(0)), -1)
    n = 100_000
    draws = torch.rand(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    counts = sample(probabilities.expand(n, -1), draws).bincount(minlength=70)
    expected = n * probabilities[0]
    chi_squared = ((counts - expected) ** 2 / expected).sum().item()
    assert 35 < chi_squared < 115  # 69 degrees of freedom: mean 69, standard deviation 11.7


# --------------------------------------------------------------------------------------------------------- groups


def assert_same(done: Decoded, wanted: Decoded) -> None:
    """Products of other sizes may round otherwise; the tokens are the same."""
    assert (done.responses, done.ended) == (wanted.responses, wanted.ended)
    for ours, theirs in zip(done.logprobs, wanted.logprobs, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


def repeated(prompts: list[list[int]], group: int) -> list[list[int]]:
    return [prompt for prompt in prompts for _ in range(group)]


ENDS = tuple(range(0, VOCABULARY, 9))  # some rows end early and are dropped


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_groups_replies_are_those_to_the_repeated_prompt(
    model: Any, prompts: list[list[int]], temperature: float
) -> None:
    """Whatever a batch holds: whole groups, or parts of them where a group is larger."""
    options: dict[str, Any] = {"end_ids": ENDS, "temperature": temperature, "first": 4}
    wanted = run(model, repeated(prompts, 3), **options)
    assert len({tuple(response) for response in wanted.responses}) > len(prompts) or not temperature
    for batch_size in (2, 3, 7, 50):
        assert_same(run(model, prompts, batch_size, group=3, **options), wanted)


@pytest.mark.usefixtures("own_forward")
def test_so_they_are_from_the_models_own_forward(prompts: list[list[int]]) -> None:
    SHAPES["mistral"] = MistralConfig(**LLAMA_SHAPE, sliding_window=4)
    for name in ("gpt2", "qwen3", "mistral"):
        model = build(name)
        for batch_size in (2, 6):
            wanted = run(model, repeated(prompts, 3), end_ids=ENDS)
            assert_same(run(model, prompts, batch_size, group=3, end_ids=ENDS), wanted)


def test_so_they_are_with_adapters(model: Any, prompts: list[list[int]]) -> None:
    targets = ["c_attn", "c_proj"] if model.config.model_type == "gpt2" else ["q_proj", "v_proj", "down_proj"]
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    wanted = run(adapted, repeated(prompts, 4))
    assert_same(run(adapted, prompts, 8, group=4), wanted)
    with adapted.disable_adapter():
        assert run(adapted, prompts, 8, group=4).responses != wanted.responses


def test_a_groups_replies_fill_the_context_and_no_more(model: Any) -> None:
    done = run(model, [[1] * (CONTEXT - 1), [3] * 4], 4, group=2, max_new_tokens=8)
    assert [len(response) for response in done.responses] == [1, 1, 8, 8]


@pytest.mark.parametrize(
    ("batch_size", "computed"),
    [
        (8, [(2, 14), (2, 9), (2, 6)]),
        (9, [(2, 14), (2, 9), (2, 6)]),
        (4, [(1, 14), (1, 13), (1, 9), (1, 9), (1, 6), (1, 3)]),
    ],
)
def test_a_groups_prompt_is_computed_once(
    model: Any, batch_size: int, computed: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [[token] * length for token, length in enumerate((14, 13, 9, 9, 6, 3))]
    passes: list[tuple[int, int]] = []
    call = LeanModel.__call__

    def counting(self: LeanModel, input_ids: Tensor, cache: Any) -> Tensor:
        if input_ids.shape[1] > 1:
            passes.append(tuple(input_ids.shape))
        return call(self, input_ids, cache)

    monkeypatch.setattr(LeanModel, "__call__", counting)
    run(model, prompts, batch_size, group=4)
    assert passes == computed


# ------------------------------------------------------------------------------------------------------- products


@pytest.fixture(params=["packed", "plain"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "plain":
        monkeypatch.setattr("tinychat.models.kernels.lean._packing_helps", lambda weight: False)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("gelu", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_products_are_those_of_a_linear_layer(gelu: bool, bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, shift = torch.randn(24, 40, dtype=dtype), torch.randn(40, dtype=dtype) if bias else None
    own = product(weight, shift, gelu)
    for rows in ((1,), (3, 7), (2, 1)):
        x = torch.randn(*rows, 24, dtype=dtype)
        wanted = torch.nn.functional.linear(x, weight.t(), shift)
        if gelu:
            wanted = torch.nn.functional.gelu(wanted, approximate="tanh")
        exact = {"atol": 1e-5, "rtol": 1e-5} if dtype is not torch.bfloat16 else {"atol": 0.06, "rtol": 0.02}
        torch.testing.assert_close(own(x), wanted, **exact)
