"""What is measured on a rollout from one pass of each output head, against the ways that compute one thing each."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tests.rl_models import EOS, PAD, PROMPTS, VOCABULARY, actor_critic, batch, policy
from tinychat.config.schema import PeftConfig, PeftKind, Precision
from tinychat.engine import evaluation_engine
from tinychat.models.actor_critic import ActorCritic, hidden_and_values, policy_and_values
from tinychat.models.adapters import add_adapter
from tinychat.models.kernels.head_loss import entropy_from_logits
from tinychat.models.logprobs import OutputHead, last_hidden, token_nll
from tinychat.models.vocabulary import WHOLE, Vocabulary
from tinychat.rl.rollout import MEASURES, Experience, to_experience, token_measures
from tinychat.runtime.world import World
from tinychat.stages.policy import Models, Reference, Sampler

ARCHITECTURES = ["gpt2", "llama"]


def experience() -> Experience:
    return to_experience(PROMPTS, [[3, 4, 1], [2, 2, 2, 2, 2], [1], [7, 8]], PAD)


def kl_of(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """Σ_v p_v (log p_v - log q_v), (B, T); a logit of -inf in both adds nothing."""
    logp, logq = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    return (logp.exp() * (logp - logq).nan_to_num()).sum(-1)


def hidden_of(model: Any, rows: Experience) -> Tensor:
    with last_hidden(model) as seen:
        model(input_ids=rows.input_ids, use_cache=False)
    return seen[0]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("tokens_at_once", [1, 4, 100])
def test_each_measure_is_what_its_own_function_says(arch: str, temperature: float, tokens_at_once: int) -> None:
    model, reference, rows = policy(arch), policy(arch, seed=5), experience()
    heads = OutputHead(model), OutputHead(reference)
    for head in heads:
        head.tokens_at_once = tokens_at_once
    hidden, ref_hidden = hidden_of(model, rows), hidden_of(reference, rows)
    found = token_measures(hidden, heads[0], ref_hidden, heads[1], rows.targets, temperature)
    logits, ref_logits = (m(input_ids=rows.input_ids).logits.detach() / temperature for m in (model, reference))
    ids, targets = rows.input_ids, rows.targets
    wanted = {
        "logprobs": -token_nll(model, ids, targets, temperature=temperature),
        "ref_logprobs": -token_nll(reference, ids, targets, temperature=temperature),
        "entropy": entropy_from_logits(logits) * rows.mask,
        "full_kl": kl_of(logits, ref_logits) * rows.mask,
    }
    assert set(found) == set(wanted) == set(MEASURES)
    for name, x in wanted.items():
        torch.testing.assert_close(found[name], x.detach(), atol=1e-5, rtol=1e-5)
        assert not found[name].requires_grad
    assert (wanted["full_kl"][rows.mask] > 1e-4).all(), "two models, else this says nothing"
    without = token_measures(hidden, heads[0], ref_hidden, heads[1], rows.targets, temperature, full_kl=False)
    assert not without.pop("full_kl").any()
    assert all(torch.equal(x, found[name]) for name, x in without.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("own", [True, False])
def test_they_are_the_updates_numbers_to_the_last_bit(own: bool, dtype: torch.dtype) -> None:
    model, rows = actor_critic("gpt2", own), experience()
    head = model.value.score if own else model.value_head
    torch.nn.init.normal_(head.weight)
    with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
        logprobs, values, _ = policy_and_values(model, rows.input_ids, rows.targets, 0.7)
        hidden, early = hidden_and_values(model, rows.input_ids, rows.targets)
        found = token_measures(hidden, OutputHead(model), hidden, OutputHead(model), rows.targets, 0.7)
    assert torch.equal(found["logprobs"], logprobs)
    assert values is not None and early is not None and torch.equal(early, values)
    assert torch.equal(found["ref_logprobs"], found["logprobs"])
    assert not found["full_kl"].any(), "a policy is no distance from itself"


@pytest.mark.parametrize("values", [True, False])
def test_an_adapter_on_the_head_is_the_policys_alone(values: bool) -> None:
    """As stage=ppo measures: the reference is the policy with its adapter off."""
    rows, base = experience(), policy("llama")
    plain = -token_nll(base, rows.input_ids, rows.targets).detach()
    peft = PeftConfig("lora", PeftKind.lora, 4, 8.0, 0.0, ["lm_head"])
    model = add_adapter(policy("llama"), peft)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p)
    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    engine = evaluation_engine(ActorCritic(model, None) if values else model, Precision.fp32, world)
    reference = Reference(cast(Any, None), cast(Any, None), model, VOCABULARY)
    batch = {"input_ids": rows.input_ids, "targets": rows.targets}
    found = Models(engine, reference, WHOLE).measure(batch, temperature=1.0, full_kl=True)
    assert ("values" in found) is values
    torch.testing.assert_close(found["ref_logprobs"], plain)
    adapted = -token_nll(model, rows.input_ids, rows.targets).detach()
    torch.testing.assert_close(found["logprobs"], adapted)
    assert (adapted - plain)[rows.mask].abs().min() > 1e-3
    logits = model(input_ids=rows.input_ids).logits
    torch.testing.assert_close(found["entropy"], entropy_from_logits(logits).detach() * rows.mask)


@pytest.mark.parametrize("holes", [(), (6, 7, 11)])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_no_id_that_is_no_token_is_drawn_or_has_a_probability(
    arch: str, holes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy would take those rows most of the time; sampling, measures and updates agree without them."""
    known = VOCABULARY - 12
    closed = [*range(known, VOCABULARY), *holes]
    monkeypatch.setattr("tinychat.stages.policy.end_ids", lambda tokenizer: (EOS,))
    model = actor_critic(arch, own=False)
    with torch.no_grad():
        model.policy.get_output_embeddings().weight[closed] *= 3
    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    engine = evaluation_engine(model, Precision.fp32, world)
    stage: Any = SimpleNamespace(full_kl=True, temperature=0.7, response_length=12, rollout_batch_size=4)
    reference = Reference.__new__(Reference)
    reference._copy, reference._weights = evaluation_engine(policy(arch, seed=5), Precision.fp32, world), None
    tokenizer: Any = SimpleNamespace(pad_token_id=PAD)
    models = Models(engine, reference, Vocabulary(known, holes))
    sampler = Sampler(stage, tokenizer, models, cast(Any, None))
    rollout = sampler.sample(batch(), seed=1)
    assert not {token for response in rollout.responses for token in response} & set(closed)
    rows = sampler.measure(rollout)
    recorded = torch.cat([torch.tensor(part) for part in rollout.sampled])
    torch.testing.assert_close(rows.fields["logprobs"][rows.mask], recorded, atol=1e-5, rtol=0)
    parts = {"input_ids": rows.input_ids, "targets": rows.targets, "mask": rows.mask}
    torch.testing.assert_close(models.update_logprobs(parts, 0.7)[rows.mask].detach(), recorded, atol=1e-5, rtol=0)
    own, other = (m(rows.input_ids).logits / 0.7 for m in (model.policy, reference._copy.model))
    own, other = (logits.index_fill(-1, torch.tensor(closed), -torch.inf) for logits in (own, other))
    wanted = {"entropy": entropy_from_logits(own), "full_kl": kl_of(own, other)}
    for name, x in wanted.items():
        torch.testing.assert_close(rows.fields[name][rows.mask], x.detach()[rows.mask], atol=1e-4, rtol=1e-4)
