"""The loop of stages that learn from rollouts: without a value function, and written out in examples/ppo_loop.py."""

from __future__ import annotations

import copy
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.chat_models import babbler
from tests.conftest import REPOSITORY
from tests.reward_models import LORA, started, stir, write
from tinychat.config import schema
from tinychat.config.schema import Config, Precision
from tinychat.engine import Batch, StepStats
from tinychat.errors import UserError
from tinychat.models.generation import decode
from tinychat.models.kernels.kv_cache import BatchCache
from tinychat.rl.losses import Sums
from tinychat.rl.rollout import to_experience
from tinychat.runs.rollouts import read, steps_of
from tinychat.runtime.world import World
from tinychat.stages import Context, StageResult, StopFlag, grpo, ppo
from tinychat.stages.updates import Algorithm, Coefficients, learn

ALONE = World(0, 0, 1, torch.device("cpu"))
GROUP = 4
PROMPTS = [f"{start} {end}" for start in ("the cat", "the dog and", "mat") for end in ("sat", "and", "on", "the mat")]
STEP = (
    "tuned=none", "tracker=none", "data=prompts", "data.on_bad_row=fail", "precision=fp32", "device=cpu",
    "stage.rollout_size=8", "stage.rollout_batch_size=8", "stage.batch_size=4", "stage.micro_batch_size=4",
    "stage.response_length=8", "stage.epochs=2", "stage.max_steps=2", "stage.schedule=constant",
    "stage.warmup_steps=0", "stage.eval_first=false", "stage.safety_prompts=0", "stage.eval_prompts=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a policy (`sft`), a reward model (`reward`), prompts and a reward function."""
    folder = tmp_path_factory.mktemp("rollouts")
    model, _ = babbler(context=64)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.4 if p.dim() > 1 else 1.0)  # near enough to uniform that replies differ
    write(model, folder / "sft")
    rewarding = started(folder / "sft")
    stir(rewarding)
    write(rewarding, folder / "reward")
    (folder / "train.txt").write_text("\n".join(PROMPTS))
    (folder / "held_out.txt").write_text("the dog sat\nthe mat and the cat\n")
    chats = ({"messages": [*asked(text), {"role": "assistant", "content": "the cat sat"}]} for text in PROMPTS)
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    (folder / "length.py").write_text("def score(prompts, replies): return [float(len(reply)) for reply in replies]")
    return folder


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def surroundings(made: Path, run_dir: Path, *overrides: str, stage: str = "ppo") -> tuple[Config, Context]:
    schema.register()
    data = (f"data.path={made / 'train.txt'}", f"data.val_path={made / 'held_out.txt'}")
    with initialize_config_dir(str(REPOSITORY / "conf")):
        node = compose("config", [f"stage={stage}", *STEP, *data, *overrides])
    run_dir.mkdir(exist_ok=True)
    OmegaConf.save(node, run_dir / "config.yaml")
    parents: dict[str, str | None] = {"init_from": str(made / "sft"), "reward.model": str(made / "reward")}
    return schema.to_config(node), Context(run_dir, ALONE, None, parents, StopFlag(run_dir))


def without_values(made: Path, run_dir: Path, *overrides: str) -> StageResult:
    reward = ("reward=python", f"reward.parts.python.path={made / 'length.py'}:score", f"stage.group_size={GROUP}")
    config, context = surroundings(made, run_dir, *reward, *overrides, stage="grpo")
    return grpo.run(config, context)


def test_conversations_are_learnt_beside_rewards_and_unread_without_a_weight(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken, found = tmp_path / "broken.jsonl", {}
    broken.write_text("no row")
    of = ("stage.ptx.source=chat", "stage.ptx.path=")
    ways = {
        "none": (),
        "off": (of[0], f"{of[1]}{broken}"),
        "on": ("stage.ptx.coef=1", of[0], f"{of[1]}{made}/chats.jsonl"),
    }
    with caplog.at_level("INFO"):
        for name, ptx in ways.items():
            few = ("stage.lr=1e-3", "stage.max_steps=1", "stage.epochs=1")
            found[name] = without_values(made, tmp_path / name, *few, *ptx)
    assert "stage.ptx.coef=0: nothing is learnt from stage.ptx.source=chat" in caplog.text
    assert [name for name, done in found.items() if "rl/ptx_loss" in done.metrics] == ["on"]
    weights = {name: load_file(f"{done.checkpoint}/model.safetensors") for name, done in found.items()}
    for name, wanted in weights["none"].items():
        assert torch.equal(weights["off"][name], wanted)
        assert not torch.equal(weights["on"][name], wanted)
    lineage = json.loads((tmp_path / "on" / "lineage.json").read_text())["data"]["ptx"]
    assert lineage["conversations"] == len(PROMPTS) - 1, "one is held out"


@pytest.mark.parametrize("peft", ["none", "lora"])
def test_a_policy_learns_without_a_value_function(made: Path, tmp_path: Path, peft: str) -> None:
    done = without_values(made, tmp_path / "run", f"peft={peft}", "stage.lr=1e-3")
    assert done.checkpoint is not None
    assert not (done.checkpoint / "value").exists()
    assert done.metrics["rl/updates"] == 4
    assert done.metrics["rl/kl"] != 0, "the second rollout is measured by a policy that has learnt"
    assert {"eval/objective", "eval/kl", "rl/policy_loss", "rl/clip_frac", "rl/entropy"} <= set(done.metrics)
    assert not {"rl/value_loss", "rl/value_clip_frac", "rl/explained_variance"} & set(done.metrics)
    _, *replies = map(json.loads, (tmp_path / "run" / "rollouts" / "step-000002.jsonl").read_text().splitlines())
    assert "advantages" in replies[0]
    assert "values" not in replies[0]
    assert steps_of(tmp_path / "run", held_out=True) == [2], "no evaluation at the start, one at the end"
    held_out = read(tmp_path / "run", 2, held_out=True)
    assert held_out.mean("reward") == pytest.approx(done.metrics["eval/reward"], rel=1e-4)
    assert held_out.mean("kl") == pytest.approx(done.metrics["eval/kl"], rel=1e-4)
    assert [reply.of("python") for reply in held_out.replies] == [reply.score for reply in held_out.replies]
    if peft == "none":
        after, before = AutoModelForCausalLM.from_pretrained(done.checkpoint), load_file(made / "sft/model.safetensors")
        assert any(not torch.equal(weight, before[name]) for name, weight in after.state_dict().items())


FAULTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "temperature": (decode, "tempered", lambda own: lambda logits, by: own(logits, 0.95 * by)),
    "positions": (BatchCache, "positions", lambda own: lambda cache, tokens: own(cache, tokens) - int(tokens == 1)),
    "mask": (BatchCache, "attended", lambda own: lambda cache, tokens: torch.ones_like(own(cache, tokens))),
}


@pytest.mark.slow
def test_rounding_of_a_deep_policy_is_no_fault_and_hides_none(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """bf16 rounds more over 16 layers than two ways of computing may differ by in a small model; faults that are
    smaller than that are refused all the same, as they show in fp32."""
    shape = copy.deepcopy(babbler(context=64)[0].config)
    shape.num_hidden_layers, shape.layer_types, shape.initializer_range = 16, None, 0.3
    torch.manual_seed(0)
    write(AutoModelForCausalLM.from_config(shape), tmp_path / "deep")

    def trained(name: str) -> None:
        reward = ("reward=python", f"reward.parts.python.path={made / 'length.py'}:score", f"stage.group_size={GROUP}")
        config, context = surroundings(
            made, tmp_path / name, *reward, "precision=bf16", "stage.max_steps=1", stage="grpo"
        )
        context.parents["init_from"] = str(tmp_path / "deep")
        grpo.run(config, context)

    with caplog.at_level("INFO"):
        trained("right")
    assert "deep enough that rounding" in caplog.text
    assert "sampling and update disagree" not in caplog.text
    for name, (where, what, wrong) in FAULTS.items():
        with monkeypatch.context() as patched:
            patched.setattr(where, what, wrong(getattr(where, what)))
            with pytest.raises(UserError, match=r"self-check: .* training is refused"):
                trained(name)


@pytest.fixture(scope="module")
def adapted(made: Path) -> Path:
    """The adapter of a reward model on the policy."""
    rewarding = started(made / "sft", LORA)
    stir(rewarding)
    return write(rewarding, made / "adapted")


def on_one_base(stage: str, made: Path, adapted: Path, run_dir: Path, *overrides: str) -> Path:
    """A run of two steps; its last checkpoint."""
    own = ("stage.value=adapter",) if stage == "ppo" else (f"stage.group_size={GROUP}",)
    more = ("peft=lora", "peft.r=4", "reward=model", "checkpoint.every=1", "stage.lr=1e-2", *own)
    config, context = surroundings(made, run_dir, *more, *overrides, stage=stage)
    context.parents["reward.model"] = str(adapted)
    torch.manual_seed(0)  # of the new adapter
    done = {"ppo": ppo, "grpo": grpo}[stage].run(config, context).checkpoint
    assert done is not None and done.name == "step-000002"
    return done


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_on_one_base_a_run_learns_what_it_learns_with_separate_models(
    made: Path, adapted: Path, tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    with caplog.at_level("INFO"):
        found = on_one_base(stage, made, adapted, tmp_path / "one")
    assert "is an adapter of the policy's base, and is computed on it" in caplog.text
    monkeypatch.setattr("tinychat.models.one_base.OneBase.reward_model", lambda *_: None)
    wanted = on_one_base(stage, made, adapted, tmp_path / "separate")
    same(found, wanted)
    rollouts = [(tmp_path / name / "rollouts" / "step-000002.jsonl").read_text() for name in ("one", "separate")]
    assert rollouts[0] == rollouts[1], "replies, values, scores, log-probabilities"


def same(found: Path, wanted: Path) -> None:
    """Whether checkpoints hold the same adapters, that of the value function too."""
    files = sorted(str(file.relative_to(wanted)) for file in wanted.rglob("adapter_model.safetensors"))
    assert files == sorted(str(file.relative_to(found)) for file in found.rglob("adapter_model.safetensors"))
    for file in files:
        assert (found / file).read_bytes() == (wanted / file).read_bytes()


def test_on_one_base_a_resumed_run_goes_on_bit_for_bit(made: Path, adapted: Path, tmp_path: Path) -> None:
    """With conversations in its updates too."""
    ptx = ("stage.ptx.coef=0.5", "stage.ptx.source=chat", f"stage.ptx.path={made / 'chats.jsonl'}")
    ptx += ("stage.ptx.batch_size=3",)
    wanted = on_one_base("ppo", made, adapted, tmp_path / "whole", *ptx)
    for name in ("config.yaml", "checkpoints/step-000001"):
        source, copied = tmp_path / "whole" / name, tmp_path / "again" / name
        copied.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, copied)
    found = on_one_base("ppo", made, adapted, tmp_path / "again", *ptx)
    same(found, wanted)
    assert (found / "value" / "adapter_model.safetensors").is_file()


def test_without_a_penalty_no_reference_is_loaded(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor is a KL measured. One reply in four has no reward, and those to many prompts are all worth the same."""
    monkeypatch.setattr("tinychat.stages.rollouts.Reference", None)
    (tmp_path / "some.py").write_text(
        "def score(prompts, replies):\n"
        "    values = [None if place % 4 == 3 else float('mat' not in prompt) * len(reply)\n"
        "              for place, (prompt, reply) in enumerate(zip(prompts, replies))]\n"
        "    return values\n"
    )
    more = (f"reward.parts.python.path={tmp_path / 'some.py'}:score", "stage.beta=0", "stage.refill=1")
    with caplog.at_level("INFO"):
        done = without_values(
            made, tmp_path / "run", *more, "stage.loss=dapo", "stage.missing_end=mask", "stage.lr=1e-3"
        )
    found = done.metrics
    assert not {"rl/kl", "rl/kl_full", "eval/kl", "rl/kl_loss", "rl/return"} & found.keys()
    assert found["eval/objective"] == found["eval/reward"]
    assert found["rl/reward_missing"] == 0.25
    _, *replies = map(json.loads, (tmp_path / "run" / "rollouts" / "step-000002.jsonl").read_text().splitlines())
    assert [any(reply["advantages"]) for reply in replies[3::4]] == [False, False], "no reward, no advantage"
    assert "ref_logprobs" not in replies[0] and "learnt" in replies[0]
    told = [line for line in caplog.messages if "no spread after 1 refills" in line]
    assert told, "the mat's replies are all worth the same"


@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_an_updates_loss_is_divided_by_what_the_algorithm_counts(micro_batch_size: int) -> None:
    """In all its replies, however they are split into micro-batches."""
    experience = to_experience([[5, 6], [7], [8], [9, 10, 11]], [[1], [1, 2, 3], [1, 2], [4] * 9], pad_id=0)
    losses: list[float] = []

    def loss(_model: Any, batch: Batch, _step: int, _now: Coefficients) -> tuple[Tensor, Sums]:
        tokens = batch["mask"].sum().float()
        return 10 * tokens, {"tokens": tokens, "kl_k3": 0.5 * tokens, "ratio": 2 * tokens}

    def train(parts: list[Batch], loss_fn: Any, _tokens: int, _samples: int) -> StepStats:
        losses.append(sum(loss_fn(None, part).item() for part in parts))
        return StepStats(losses[-1], 0.0)

    stage = SimpleNamespace(
        rollout_size=4, batch_size=2, micro_batch_size=micro_batch_size, epochs=1, max_kl=None, temperature=1.0
    )
    config: Any = SimpleNamespace(stage=stage, seed=0)
    loop: Any = SimpleNamespace(train=train)
    engine: Any = SimpleNamespace(world=ALONE, rest=lambda: None)
    algorithm = Algorithm(lambda *_: {}, loss, count=lambda batch: len(batch["mask"]))
    now = Coefficients(0.1, 0.0)
    _, found = learn(config, loop, engine, experience, algorithm, step=1, now=now)
    assert sum(losses) == 10 * 15 / 2  # 15 reply tokens in updates of two replies
    assert found == {"rl/approx_kl": 0.5, "rl/ratio": 2.0, "rl/updates": 2.0, "rl/first_kl": 0.5}
    stage.max_kl = 0.4
    assert learn(config, loop, engine, experience, algorithm, step=1, now=now)[1]["rl/updates"] == 1


def test_the_example_makes_the_updates_of_the_stage(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Same prompts, seed and settings: the same weights after two rollouts of four updates each, bit for bit."""
    spec = importlib.util.spec_from_file_location("ppo_loop", REPOSITORY / "examples" / "ppo_loop.py")
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    values: dict[str, Any] = {"SEED": 3, "STEPS": 2, "ROLLOUT": 8, "BATCH": 4, "EPOCHS": 2, "RESPONSE": 8, "LR": 1e-3}
    for name, value in values.items():
        monkeypatch.setattr(example, name, value)
    monkeypatch.setattr(example, "PRECISION", Precision.fp32)
    same = {
        "lr": example.LR, "temperature": example.TEMPERATURE, "beta": example.BETA, "eos_penalty": example.EOS_PENALTY,
        "gamma": example.GAMMA, "lam": example.LAM, "clip_low": example.CLIP, "clip_high": example.CLIP,
        "value_clip": example.VALUE_CLIP, "value_coef": example.VALUE_COEF, "max_kl": "null",
    }  # fmt: skip
    config, context = surroundings(made, tmp_path / "run", "seed=3", *(f"stage.{key}={x}" for key, x in same.items()))
    done = ppo.run(config, context)
    assert done.checkpoint is not None
    capsys.readouterr()
    prompts = [asked(text) for text in PROMPTS]
    model = example.ppo(str(made / "sft"), str(made / "reward"), prompts, prompts[:2])
    said, found = capsys.readouterr().out, done.metrics
    for part in (
        f"step   2 | reward {found['rl/reward']:6.3f} | KL {found['rl/kl']:6.3f} nats a reply | ended",
        f"| loss {found['train/loss']:7.4f} |",
        "of 2 held-out requests get another reply",
    ):
        assert part in said, part
    for part, folder in ((model.policy, done.checkpoint), (model.value, done.checkpoint / "value")):
        wanted = load_file(folder / "model.safetensors")
        weights = {name: p for name, p in part.named_parameters() if name in wanted}
        assert len(weights) > 10
        for name, weight in weights.items():
            assert torch.equal(weight, wanted[name]), name
