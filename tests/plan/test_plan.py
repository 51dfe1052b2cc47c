"""plan=: counts equal to those of real models, memory by hand and against the tensors of a real step, what is said."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from tests.conftest import REPOSITORY, Command
from tinychat.config import checks, schema
from tinychat.config.schema import Config
from tinychat.engine import build_engine
from tinychat.errors import UserError
from tinychat.models import build
from tinychat.models.actor_critic import ActorCritic
from tinychat.models.adapters import add_adapter, trainable_parameters
from tinychat.models.build import build_model, count_parameters
from tinychat.models.kernels.attention import plan_blocks, use_blocked_attention
from tinychat.models.kernels.layers import use_fused_norms, use_fused_rotary
from tinychat.models.logprobs import token_nll
from tinychat.models.reward import as_classifier, freeze_all_but
from tinychat.plan import memory as memory_module
from tinychat.plan.estimate import Plan, estimate, remedies
from tinychat.plan.memory import (
    BEFORE,
    KNOWN,
    NF4_BYTES,
    Memory,
    Split,
    Work,
    body_flops,
    memory,
    sampling_seconds,
    traffic,
    training_factor,
    update_flops,
)
from tinychat.plan.models import ModelPlan, Numbers, Saved, stage_models
from tinychat.plan.report import describe
from tinychat.runtime.world import World

CPU = torch.device("cpu")
SMALL = (
    "tuned=none",
    "model.n_layer=2",
    "model.n_embd=64",
    "model.n_head=2",
    "model.context_length=128",
    "tokenizer.vocab_size=2048",
)
GPT2, LLAMA, QWEN = ("model=gpt6x512",), ("model=llama2_15m", "model.n_kv_head=1"), ("model=mini",)
SHAPES = [(*shape, *SMALL) for shape in (GPT2, LLAMA, QWEN)]


def composed(*words: str) -> Config:
    schema.register()
    with initialize_config_dir(str(REPOSITORY / "conf")):
        return schema.to_config(compose("config", list(words)))


def planned(*words: str) -> Plan:
    config = composed("plan=3090", *words)
    checks.check(config)
    return estimate(config)


def real(config: Config):
    return build_model(config.model, 2048, pad_token_id=1, eos_token_id=0)


# ------------------------------------------------------------------------------------------------------------ counts


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tied", ["true", "false"])
def test_parameters_are_those_of_the_real_model(shape: tuple[str, ...], tied: str) -> None:
    plan = planned(*shape, f"model.tie_embeddings={tied}", "optim=muon")
    model, counted = real(plan.config), plan.models[0]
    assert counted.weights == counted.trained == count_parameters(model).total
    matrices = [p for name, p in model.named_parameters() if (p.dim() == 2 and ".h." in name) or ".layers." in name]
    assert counted.orthogonal == sum(p.numel() for p in matrices if p.dim() == 2)
    assert counted.tied is (tied == "true")


def test_parameters_of_adapters_reward_models_and_ppo() -> None:
    config = composed("stage=sft", "peft=lora", *GPT2, *SMALL)
    adapted = add_adapter(real(config), config.peft)
    config.plan = "3090"
    (model,) = estimate(config).models
    assert (model.trained, model.weights) == trainable_parameters(adapted)
    assert model.orthogonal == 0

    scorer = as_classifier(real(config))
    freeze_all_but(scorer, 1)
    (model,) = planned("stage=reward", "stage.train_last_layers=1", *GPT2, *SMALL).models
    assert (model.trained, model.weights) == trainable_parameters(scorer)

    value = as_classifier(real(config))
    both = ActorCritic(real(config), value)
    models = planned("stage=ppo", *GPT2, *SMALL).models
    assert [model.name for model in models] == ["policy", "value function", "reference", "reward model"]
    assert sum(model.trained for model in models) == count_parameters(both).total
    shared = planned("stage=ppo", "stage.value=shared", "reward=verifier", "data=tinyworld", *GPT2, *SMALL).models
    assert sum(model.trained for model in shared) == count_parameters(ActorCritic(real(config), None)).total
    with_adapter = planned("stage=ppo", "peft=lora", *GPT2, *SMALL).models
    assert [model.name for model in with_adapter] == ["policy", "value function", "reward model"]


def test_a_teacher_has_its_own_shape_and_reads_before_the_student(tmp_path: Path) -> None:
    real(composed(*LLAMA, *SMALL, "model.n_layer=5")).save_pretrained(tmp_path / "teacher")
    words = (
        "stage=sft",
        *LLAMA,
        *SMALL,
        f"paths.outputs={tmp_path}",
        "stage.context_length=128",
        "stage.on_policy=0.5",
    )
    plain = planned(*words[:-1])
    taught = planned(*words, f"stage.teacher={tmp_path / 'teacher'}")
    student, teacher = taught.models
    assert teacher.name == "teacher" and teacher.trained == 0 and teacher.layers == 5
    assert teacher.weights > student.weights == plain.models[0].weights
    assert device(taught.memory, "weights: teacher") == 4 * teacher.weights
    assert taught.memory.phases["teacher's forward pass"] < taught.memory.phases["forward and backward pass"]
    assert taught.seconds["teacher"] > 0 and any("the teacher has the shape of" in line for line in taught.assumed)
    missing = planned(*words, "stage.teacher=auto")
    assert missing.models[1].weights == student.weights
    assert any("stage.teacher=auto: no checkpoint of it yet" in line for line in missing.assumed)


def test_who_answers_for_best_of_n_and_who_judges_are_there_before_training() -> None:
    words = ("stage=sft", *GPT2, *SMALL, "stage.context_length=128")
    plain = planned(*words)
    made = planned(*words, "data=best_of_n", "data.samples=4", "data.max_new_tokens=28", "data.batch_size=32")
    before = {item.name: item.device for item in made.memory.items if item.phase == BEFORE}
    weights = made.models[0].weights
    # A reward model has a score in place of the head over the vocabulary, which is GPT-2's tied embedding here.
    policy, reward = (size for name, size in before.items() if name.startswith("weights: "))
    assert policy == 4 * weights and reward == 4 * (weights + made.models[0].width)
    model = made.models[0]
    assert before["keys and values (KV cache)"] == 32 * 128 * model.kv_width * made.dtype.itemsize
    assert made.memory.phases[BEFORE] == sum(before.values()), "nothing of the training is there yet"
    assert [item for item in made.memory.items if item.phase != BEFORE] == plain.memory.items
    (seconds,) = made.once.values()
    assert seconds > 0 and not plain.once and made.seconds.keys() == plain.seconds.keys()
    assert any(
        line.startswith("before the first step, once: 4 replies each to 2,000 prompts") for line in describe(made)
    )
    judged = planned(*words, "data=best_of_n", "reward=oracle")
    assert not any(item.name.startswith("weights: reward") for item in judged.memory.items)
    there = planned(*words, "data=best_of_n", "data.replies=.")
    assert there.memory.items == plain.memory.items and not there.once


def test_the_start_of_dpo_is_there_in_the_last_evaluation_alone() -> None:
    words = ("stage=dpo", "data=tinyworld", *LLAMA, *SMALL, "stage.context_length=128")
    plan, without = planned(*words), planned(*words, "stage.kl_prompts=0")
    policy, start = plan.models
    assert (start.name, start.weights, start.trained) == ("the policy as it began", policy.weights, 0)
    assert [model.name for model in without.models] == ["policy"]
    later = {name: size - without.memory.phases[name] for name, size in plan.memory.phases.items()}
    phases = ("sampling replies", "measuring without gradients")
    assert {name: size for name, size in later.items() if size} == dict.fromkeys(phases, 4 * start.weights)
    assert plan.seconds["reference, once"] == pytest.approx(without.seconds["reference, once"])
    adapted = planned(*words, "peft=lora")
    assert [model.name for model in adapted.models] == ["policy"], "whose adapter is switched off"


def test_qlora_counts_what_is_held_in_four_bits() -> None:
    plan = planned("stage=sft", "peft=qlora", *GPT2, *SMALL)
    (model,) = plan.models
    in_blocks = 2 * 12 * 64 * 64  # attention 4 d², MLP 8 d², every input width a multiple of 64
    assert model.quantized == in_blocks
    weights = next(item for item in plan.memory.items if item.name.startswith("weights"))
    assert weights.device == pytest.approx((model.weights - in_blocks) * 4 + in_blocks * NF4_BYTES)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("autocast", [True, False])
def test_activations_are_what_autograd_keeps_of_real_tensors(shape: tuple[str, ...], autocast: bool) -> None:
    config, length, rows = composed(*shape), 128, 3
    model = real(config)
    for faster in (use_blocked_attention, use_fused_norms, use_fused_rotary):
        faster(model, CPU)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}
    with (
        torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.setdefault(t.untyped_storage().data_ptr(), t) if t.numel() else t, lambda t: t
        ),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        ids = torch.zeros(rows, length, dtype=torch.int64)
        out = model.base_model(input_ids=ids, use_cache=False, block_plan=plan_blocks(length))
    found = sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in own)
    assert out.last_hidden_state is not None
    numbers = Numbers(torch.float32, torch.bfloat16 if autocast else torch.float32, on_cpu=True)
    (counted,) = stage_models(config, model.config, length, numbers)
    assert counted.whole.per_row * rows + counted.whole.fixed == pytest.approx(found, rel=0.01)
    assert counted.checkpointed.per_row < counted.whole.per_row / 4


# ------------------------------------------------------------------------------------------------------------ memory

MODEL = ModelPlan(
    name="model",
    weights=1000,
    trained=1000,
    orthogonal=600,
    quantized=0,
    head=300,
    tied=True,
    embedding=300,
    vocabulary=30,
    width=10,
    layers=2,
    context=64,
    kv_width=40,
    flops=6000.0,
    whole=Saved(per_row=500, fixed=100),
    checkpointed=Saved(per_row=50, fixed=10),
    adapter=False,
)
ALONE = Split(1, None, False, False, 0, 1, 1e9)
WORK = Work(rows=2, accumulation=2, length=16, targets=16, exact=False, checkpointing=False, eval_rows=1)


def device(found: Memory, start: str) -> float:
    return sum(item.device for item in found.items if item.name.startswith(start))


def by_phase(found: Memory, phase: str, name: str) -> float:
    return sum(item.device + item.host for item in found.items if (item.phase, item.name) == (phase, name))


PASS = "forward and backward pass"


def test_plain_adamw_keeps_sixteen_bytes_a_weight() -> None:
    found = memory([MODEL], ALONE, WORK, stored=4, computed=4, muon=False)
    assert device(found, "weights: ") == 4000
    assert by_phase(found, "all the time", "optimizer state") == 8000
    assert by_phase(found, PASS, "gradients") == 4000
    assert by_phase(found, PASS, "activations") == 2 * 500 + 100
    assert by_phase(found, PASS, "logits") == 2 * 16 * 30 * 4
    assert device(found, "fp32 weights") == 0
    muon = memory([MODEL], ALONE, WORK, stored=4, computed=4, muon=True)
    assert by_phase(muon, "all the time", "optimizer state") == 4 * 600 + 8 * 400


@pytest.mark.parametrize(
    ("zero", "weights", "state", "masters", "gradients"),
    [
        (0, 2000, 8000, 4000, 2000),  # nothing is shared
        (1, 2000, 1000, 500, 2000),
        (2, 2000, 1000, 500, 2 * 250),  # the sum so far and the newest
        (3, 250, 1000, 500, 250),
    ],
)
def test_eight_ranks_share_what_zero_says(zero: int, weights: int, state: int, masters: int, gradients: int) -> None:
    found = memory([MODEL], Split(8, zero, False, False, 100, 1, 1e9), WORK, stored=2, computed=2, muon=False)
    assert device(found, "weights: ") == weights
    assert device(found, "optimizer state") == state
    assert device(found, "fp32 weights") == masters
    when = "all the time" if zero == 3 else PASS
    assert by_phase(found, when, "gradients") == gradients
    assert by_phase(found, PASS, "weights gathered from the ranks") == (2000 if zero == 3 else 0)


def test_offload_moves_state_and_weights_to_the_host() -> None:
    both = memory([MODEL], Split(8, 3, True, True, 100, 1, 1e9), WORK, stored=2, computed=2, muon=False)
    assert device(both, "weights: ") == device(both, "optimizer state") == device(both, "fp32 weights") == 0
    gradients = next(item.host for item in both.items if item.name == "gradients")
    assert both.host == 250 + 1000 + 500 + gradients
    optimizer = memory([MODEL], Split(8, 2, True, False, 100, 1, 1e9), WORK, stored=2, computed=2, muon=False)
    assert device(optimizer, "weights: ") == 2000
    assert device(optimizer, "optimizer state") == 0


def test_logits_live_a_chunk_at_a_time() -> None:
    large = dataclasses.replace(MODEL, vocabulary=50_304, head=50_304 * 10)
    many = dataclasses.replace(WORK, rows=64, length=1024, targets=1024)
    found = memory([large], ALONE, many, stored=4, computed=2, muon=False)
    assert by_phase(found, PASS, "logits") == (2**27 // 50_304) * 50_304 * 2
    replies = dataclasses.replace(many, targets=16, exact=True)  # 51 M logits: kept whole
    found = memory([large], ALONE, replies, stored=4, computed=2, muon=False)
    assert by_phase(found, PASS, "logits") == 64 * 16 * 50_304 * 2
    more = dataclasses.replace(many, targets=64, exact=True)  # 206 M: in smaller chunks
    found = memory([large], ALONE, more, stored=4, computed=2, muon=False)
    assert by_phase(found, PASS, "logits") == (2**25 // 50_304) * 50_304 * 2


def test_keys_and_values_of_rollouts() -> None:
    work = Work(2, 1, 64, 16, True, False, 1, sampled_rows=8, prompt=48, response=16, measured_rows=8)
    found = memory([MODEL], ALONE, work, stored=4, computed=2, muon=False)
    assert by_phase(found, "sampling replies", "keys and values (KV cache)") == 8 * 64 * 40 * 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_estimate_is_near_the_tensors_of_a_real_step(precision: str, checkpointing: bool) -> None:
    sys.path.insert(0, str(REPOSITORY / "benchmarks"))
    try:
        from memory_run import Tensors
    finally:
        sys.path.pop(0)
    words = ("stage.batch_size=16", "stage.micro_batch_size=8", f"precision={precision}", "optim=adamw")
    config = composed(*SHAPES[0], *words, f"stage.activation_checkpointing={str(checkpointing).lower()}", "plan=cpu")
    plan = estimate(config)
    with Tensors() as tensors:
        world = World(0, 0, 1, CPU)
        engine = build_engine(real(config), config.optim, config.ds, config.stage, config.precision, world)
        ids = torch.randint(0, 2048, (8, 128))
        batches = [{"input_ids": ids, "targets": ids}] * 2
        for _ in range(2):
            engine.train_step(batches, lambda model, batch: token_nll(model, **batch, for_sum=True).sum() / 2048)
    assert plan.memory.phases[PASS] == pytest.approx(tensors.peak, rel=0.2)


# -------------------------------------------------------------------------------------------------------------- time


def test_arithmetic_and_traffic_by_hand() -> None:
    assert training_factor(MODEL, False) == 3
    assert training_factor(MODEL, True) == 4
    adapter = dataclasses.replace(MODEL, trained=10, adapter=True)
    assert training_factor(adapter, False) == pytest.approx(2.01)
    # a third of 6000 a token forward, of which the head is 600; backward twice that; 2 rows of 16 tokens, 2 passes
    assert update_flops([MODEL], WORK) == 6000 * 16 * 2 * 2
    two = Split(2, 2, False, False, 0, 1, 1e9)
    assert traffic(1000, 1000, two, WORK, 2) == 0.5 * 1000 * 2 * (1 + 2)  # gradients of 2 passes, weights once
    three = Split(2, 3, False, False, 0, 1, 1e9)
    assert traffic(1000, 1000, three, WORK, 2) == 0.5 * 2 * (2 * 1000 + 1000) * 2
    assert traffic(1000, 1000, ALONE, WORK, 4) == 0


def test_sampling_reads_all_weights_for_each_token() -> None:
    card = KNOWN["3090"]
    work = Work(2, 1, 64, 16, True, False, 1, sampled_rows=8, prompt=0, response=16, measured_rows=8)
    token = (1000 * 2 + 8 * 8 * 40 * 2) / card.bandwidth + 15 * 2 * card.per_operator
    assert sampling_seconds(MODEL, 16, work, 2, card, rate=1e30) == pytest.approx(2 * 16 * token)


def test_the_prompt_of_a_group_is_computed_once() -> None:
    card = KNOWN["3090"]
    alone = Work(2, 1, 64, 16, True, False, 1, sampled_rows=8, prompt=48, response=16, measured_rows=8)
    group = dataclasses.replace(alone, group=4)
    prefills = [sampling_seconds(MODEL, 8, work, 2, card, rate=1e6) for work in (alone, group)]
    assert prefills[0] - prefills[1] == pytest.approx((8 - 2) * 48 * body_flops(MODEL) / 1e6)
    assert memory([MODEL], ALONE, group, 4, 2, False).peak == memory([MODEL], ALONE, alone, 4, 2, False).peak


# ------------------------------------------------------------------------------------------------------ what is said


def test_what_does_not_fit_comes_with_changes_that_do(monkeypatch: pytest.MonkeyPatch) -> None:
    small = dataclasses.replace(KNOWN["3090"], memory=24e6, taken=0.0)
    monkeypatch.setitem(KNOWN, "3090", small)
    words = (*GPT2, *SMALL, "stage.batch_size=64", "stage.micro_batch_size=64", "precision=bf16")
    plan = planned(*words)
    said = "\n".join(describe(plan))
    assert "does NOT fit: needs" in said
    found = remedies(plan)
    assert len(found) == 3
    changes, expected = found[-1]
    assert f"{changes} (" in said
    again = planned(*words[:-2], *changes.split(), words[-1])
    assert again.fits
    assert again.needed == pytest.approx(expected.needed)
    monkeypatch.setitem(KNOWN, "3090", dataclasses.replace(small, memory=24e9))
    assert "fits: needs" in "\n".join(describe(planned(*words)))


def test_the_model_group_stands_in_for_missing_checkpoints(tmp_path: Path) -> None:
    plan = planned("stage=ppo", *GPT2, *SMALL, f"paths.outputs={tmp_path}")
    assert any("init_from=auto" in line and "model=gpt6x512" in line for line in plan.assumed)
    real(plan.config).save_pretrained(tmp_path / "model")
    other = planned(
        "stage=ppo", "tuned=none", "reward=verifier", f"init_from={tmp_path / 'model'}", f"paths.outputs={tmp_path}"
    )
    assert other.models[0].weights == plan.models[0].weights


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["plan=4090"], "plan=4090: false, true (this machine), cpu, 3090, h200"),
        (["plan=cpu", "precision=fp16"], "plan=3090"),
        (["plan=3090", "stage=tokenizer"], "trains no model"),
        (["plan=3090", "model=pretrained", "model.path=/not/there", "stage=sft"], "/not/there"),
    ],
)
def test_what_cannot_be_planned_is_one_line(words: list[str], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        estimate(composed(*words))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_prints_and_leaves_nothing(train: Command, tmp_path: Path) -> None:
    done = train("stage=ppo", *GPT2, *SMALL, "plan=true", "device=cpu")
    assert done.returncode == 0, done.stderr[-2000:]
    for word in (
        "policy",
        "optimizer state",
        "gradients",
        "activations",
        "logits",
        "KV cache",
        "fits: needs",
        "a step",
    ):
        assert word in done.stdout
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_slow_product_is_measured_once_or_thrice_and_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 without instructions for it took a minute and a half of a plan."""
    sizes: list[int] = []
    monkeypatch.setattr(build.time, "perf_counter", lambda: sum(size**3 * 1e-8 for size in sizes))
    monkeypatch.setattr(torch, "mm", lambda left, right: sizes.append(len(left)))
    assert build.matmul_rate(torch.device("cpu"), torch.bfloat16) == pytest.approx(2e8)
    assert set(sizes) == {256}
    assert len(sizes) <= build.FEW_TRIES
    sizes.clear()
    monkeypatch.setattr(build.time, "perf_counter", lambda: sum(size**3 * 1e-11 for size in sizes))
    assert build.matmul_rate(torch.device("cpu"), torch.float32) == pytest.approx(2e11)
    assert sizes.count(1024) == build.MANY_TRIES  # the best of many, where they are quick


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_plan_measures_what_the_job_computes_in_alone(
    precision: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[torch.dtype] = []
    monkeypatch.setattr(memory_module, "matmul_rate", lambda _, dtype: measured.append(dtype) or 1e11)
    assert memory_module.hardware(composed("plan=cpu", f"precision={precision}")).peak(dtype) == 1e11
    assert measured == [dtype]
