"""Ranks whose own data differ: one has more tokens and longer replies than the other. See test_uneven_ranks.

torchrun --standalone --nproc_per_node 2 tests/distributed/uneven_driver.py '["zero3/llama/none"]'
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GemmaConfig, MistralConfig

import tinychat.evaluation.replies
import tinychat.models.logprobs
import tinychat.stages.chats
import tinychat.stages.policy
from tests.rl_models import EOS, PAD, VOCABULARY, batch, shape
from tinychat.config.schema import Device, DsConfig, OptimConfig, OptimKind, PeftConfig, PeftKind, Precision
from tinychat.data.chats.rows import ChatRow
from tinychat.engine import Engine, build_engine
from tinychat.models.actor_critic import ActorCritic, policy_and_values
from tinychat.models.adapters import add_adapter
from tinychat.models.build import count_parameters
from tinychat.models.vocabulary import WHOLE
from tinychat.rl.rollout import MEASURES, VALUES, Rollout, to_experience
from tinychat.runtime.world import World, join_world
from tinychat.stages.chats import HeldOut, HeldOutRows
from tinychat.stages.policy import Models, Reference, Sampler

# One rank's prompts and replies are long, the other's short.
PROMPTS = [[5, 6, 7, 8, 9, 10], [11, 12], [13, 14, 15, 16], [17]]
REPLIES = [[3] * 30, [4] * 20 + [EOS], [5, EOS], [EOS]]
ENDS = (EOS, 28, 36)  # so that replies end at different times
ROW = ChatRow([], "row")
TOKENS_AT_ONCE = 4  # of a head's logits


def language_model(arch: str) -> Any:
    common = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    common |= {"intermediate_size": 24, "max_position_embeddings": 64, "vocab_size": VOCABULARY, "pad_token_id": PAD}
    common |= {"bos_token_id": EOS, "eos_token_id": EOS, "initializer_range": 0.4}
    kinds: dict[str, Any] = {"mistral": MistralConfig, "gemma": GemmaConfig}
    config = kinds[arch](**common, head_dim=8) if arch in kinds else shape(arch)
    return AutoModelForCausalLM.from_config(config)


def run(way: str, world: World) -> dict[str, Any]:
    ds, arch, peft = way.split("/")
    torch.manual_seed(0)
    policy = language_model(arch)
    if peft != "none":
        policy = add_adapter(policy, PeftConfig("lora", PeftKind.lora, 4, 8.0, 0.0, ["q_proj", peft]))
    value = AutoModelForSequenceClassification.from_config(shape("llama", num_labels=1))
    model = ActorCritic(policy, value)
    zero = {"stage": int(ds[-1]), "stage3_param_persistence_threshold": 0} if ds != "none" else {}
    stage: Any = SimpleNamespace(
        lr=0.01, batch_size=4, micro_batch_size=2, grad_clip=1.0, activation_checkpointing=False, temperature=0.7,
        full_kl=True, response_length=30, rollout_batch_size=1,
        per_forward=lambda _ranks: 2, grad_accum_steps=lambda ranks: 2 // ranks,
        eval_batch_size=2, generate_rows=2, generate_tokens=1, generate_batch_size=2, free_replies=False,
    )  # fmt: skip
    optim = OptimConfig("adamw", OptimKind.adamw, [0.9, 0.95], 1e-8, 0.0, None, None, None)
    settings = DsConfig(ds, ds != "none", {"zero_optimization": zero} if zero else {})
    reference_of = Reference.__new__(Reference)
    reference_of._copy = reference_of._weights = None
    if peft == "none":  # as Reference makes it, without the way over a folder
        from tinychat.engine import evaluation_engine

        torch.manual_seed(0)
        reference_of._copy = evaluation_engine(language_model(arch), Precision.fp32, world)
    engine = build_engine(model, optim, settings, stage, Precision.fp32, world)
    tokenizer: Any = SimpleNamespace(pad_token_id=PAD, eos_token_id=EOS)
    models = Models(engine, reference_of, WHOLE)
    sampler = Sampler(stage, tokenizer, models, cast(Any, None))
    found: dict[str, Any] = {"parameters": count_parameters(model).total, "fields": [], "replies": [], "losses": []}
    for _ in range(3):  # ZeRO-3 records the order of modules in the first passes and relies on it afterwards
        rollout = sampler.sample(batch(PROMPTS), seed=1)
        found["replies"].append(rollout.responses)
        given = Rollout(rollout.rows, rollout.prompts, REPLIES, [[0.0] * len(r) for r in REPLIES], [True] * 4)
        experience = sampler.measure(given)
        found["fields"].append([experience.fields[name].double().sum().item() for name in (*MEASURES, VALUES)])
        own = slice(2 * world.rank, 2 * world.rank + 2) if world.size == 2 else slice(0, 4)
        rows = {"ids": experience.input_ids[own], "targets": experience.targets[own]}

        def loss(model: Any, part: dict[str, torch.Tensor]) -> torch.Tensor:
            logprobs, values, *_ = policy_and_values(model, part["ids"], part["targets"], 0.7)
            assert values is not None
            return -(logprobs.sum() - values[part["targets"] >= 0].sum()) / 60

        size = 2 if world.size == 2 else 4
        parts = [{name: value[i : i + size] for name, value in rows.items()} for i in range(0, 4 // world.size, size)]
        found["losses"].append(engine.train_step(parts, loss).loss)
        held_out = HeldOut.__new__(HeldOut)
        held_out.stage, held_out.context = stage, cast(Any, SimpleNamespace(world=world))
        held_out.tokenizer, held_out.caches = tokenizer, cast(Any, [None])
        held_out.parts, held_out.replies = [HeldOutRows("instructions", [ROW, ROW], 1)], {}
        found["losses"].append(held_out.measure(cast(Engine, models), None)["eval/response_loss"])
    engine.close()
    return found


def batches(_chats: Any, _size: int, rank: int, size: int, _most: int | None) -> Any:
    """Held-out replies for two ranks of two: as many batches, not as many tokens."""
    rows = to_experience(PROMPTS, REPLIES, PAD)
    own = slice(2 * rank, 2 * rank + 2) if size == 2 else slice(0, 4)
    yield {"input_ids": rows.input_ids[own], "targets": rows.targets[own]}


def patch(put: Callable[[Any, str, Any], None]) -> None:
    """What needs no text: a tokenizer's facts, and held-out conversations."""
    put(tinychat.stages.policy, "end_ids", lambda _tokenizer: ENDS)
    put(tinychat.stages.chats, "end_ids", lambda _tokenizer: (EOS,))
    put(tinychat.stages.chats, "eval_batches", batches)
    put(tinychat.stages.chats, "replies_to", lambda *_given: [])
    # So that the logits of TOKENS_AT_ONCE rows are as many as may live together.
    put(tinychat.models.logprobs, "LARGE", TOKENS_AT_ONCE * VOCABULARY * 4 + 1)
    put(tinychat.evaluation.replies, "CHUNK_ELEMENTS", TOKENS_AT_ONCE * VOCABULARY)


def main() -> None:
    patch(setattr)
    ways = json.loads(sys.argv[1])
    world = join_world(Device.cpu, timeout_minutes=0.5)
    found = {way: run(way, world) for way in ways}
    if world.is_main:
        print("FOUND", json.dumps(found))
    world.close()
    sys.stdout.flush()
    os._exit(0)  # as tinychat.launch.worker does, for the same reason


if __name__ == "__main__":
    main()
