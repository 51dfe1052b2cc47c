"""python -m tinychat.doctor: a right configuration passes, and each fault built in on purpose is named."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from transformers import GPT2Model

from tests.chat_models import babbler
from tests.conftest import error_line, write_rows
from tests.reward_models import started, stir, write
from tinychat import train
from tinychat.config import schema
from tinychat.config.schema import Config
from tinychat.config.specs import SPECS
from tinychat.doctor import examine as doctor_examine
from tinychat.doctor import first_update
from tinychat.doctor.examine import compare, examine
from tinychat.doctor.findings import CHECKS, Findings, Verdict
from tinychat.doctor.first_update import Trace
from tinychat.engine.base import PlainEngine
from tinychat.engine.checkpoint import Checkpointer
from tinychat.errors import UserError
from tinychat.models.generation import decode
from tinychat.plan.memory import GB
from tinychat.rl.selfcheck import check_draws
from tinychat.runtime.world import World
from tinychat.stages import common, ppo, sft
from tinychat.stages.pairs import ReferenceModel
from tinychat.stages.policy import Reference, Sampler

TINY = (
    "tuned=none", "tracker=none", "precision=fp32", "device=cpu", "data.on_bad_row=fail", "stage.batch_size=4",
    "stage.micro_batch_size=2",
)  # fmt: skip
ROLLOUTS = (
    "stage.rollout_size=16", "stage.rollout_batch_size=16", "stage.response_length=40", "stage.epochs=1",
    "stage.safety_prompts=0", "stage.eval_prompts=2", "data=prompts",
)  # fmt: skip
LABELS = {"chosen_safe": True, "rejected_safe": False}
WORDS = ("the cat", "the dog and", "mat", "on")
REWARDS = """
import random

def length(prompts, replies): return [float(len(reply)) for reply in replies]
def same(prompts, replies): return [0.5] * len(replies)
def chance(prompts, replies): return [random.random() for _ in replies]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints (`llama`, `gpt2`, `reward`), prompts, conversations, pairs and reward functions."""
    folder = tmp_path_factory.mktemp("doctor")
    for arch in ("llama", "gpt2"):
        model, _ = babbler(arch, context=128)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(0.4 if p.dim() > 1 else 1.0)  # near enough to uniform that replies differ, and some end
            if arch == "gpt2":
                model.transformer.wpe.weight.mul_(10.0)  # positions that matter
        write(model, folder / arch)
    rewarding = started(folder / "llama")
    stir(rewarding)
    write(rewarding, folder / "reward")
    prompts = [f"{start} {end}" for start in WORDS for end in ("sat", "and the cat", "on the mat and the dog", "mat")]
    (folder / "prompts.txt").write_text("\n".join(prompts))
    (folder / "held_out.txt").write_text("the mat and the cat\nthe dog sat\n")
    answers = [{"prompt": f"the mat {word}", "reference": "cat", "answer": "word"} for word in ("sat", "and")]
    write_rows(folder / "answers.jsonl", answers)
    (folder / "rewards.py").write_text(REWARDS)
    for name, some in (("train", prompts), ("val", ["the mat and the cat", "the dog sat"])):
        write_rows(folder / f"chats-{name}.jsonl", [{"prompt": one, "response": f"{one[::-1]} cat"} for one in some])
        pairs = [{"prompt": one, "chosen": "the cat sat", "rejected": f"the dog and {one}"} for one in some]
        write_rows(folder / f"pairs-{name}.jsonl", [pair | LABELS for pair in pairs])
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes longer than the rest of a tiny job and is tested elsewhere; the memory of pytest is not a job's."""
    monkeypatch.setattr(first_update, "peak_memory_gb", lambda _device: 0.5)
    monkeypatch.setattr(common, "matmul_rate", lambda *_: 1e12)
    plan = SimpleNamespace(needed=0.6 * GB, hardware=SimpleNamespace(on_cpu=True))
    monkeypatch.setattr(doctor_examine, "estimate", lambda _config: plan)


def words_of(stage: str, made: Path, arch: str = "llama", reward: str = "length") -> tuple[str, ...]:
    """Overrides of a job of a stage."""
    start = (f"stage={stage}", f"init_from={made / arch}", *TINY)
    if SPECS[stage].rollouts:
        data = (f"data.path={made / 'prompts.txt'}", f"data.val_path={made / 'answers.jsonl'}")
        return (*start, *ROLLOUTS, *data, *reward_words(made, reward))
    if SPECS[stage].reads == "documents":
        paths = (f"data.path={made / 'prompts.txt'}", f"data.val_path={made / 'held_out.txt'}")
        return (*start, "data=text", "stage.context_length=16", *paths)
    kind, file = ("chat", "chats") if SPECS[stage].reads == "conversations" else ("preference", "pairs")
    paths = (f"data.path={made / f'{file}-train.jsonl'}", f"data.val_path={made / f'{file}-val.jsonl'}")
    return (*start, f"data={kind}", *paths)


def reward_words(made: Path, reward: str) -> tuple[str, ...]:
    if reward == "model":
        return ("reward=model", f"reward.parts.model.path={made / 'reward'}")
    return ("reward=python", f"reward.parts.python.path={made / 'rewards.py'}:{reward}")


@functools.cache
def job(*overrides: str) -> Config:
    schema.register()
    with initialize_config_dir(train.config_folder()):
        return schema.to_config(compose("config", list(overrides)))


def failed(*overrides: str) -> dict[str, str]:
    """What fails in a job that is examined: check -> what was found."""
    findings = examine(job(*overrides), ranks=False).findings
    return {finding.check: finding.said for finding in findings.failed}


@pytest.mark.parametrize("stage", [name for name, spec in SPECS.items() if spec.trains])
def test_a_right_configuration_passes(made: Path, stage: str) -> None:
    reward = ("model",) if SPECS[stage].rollouts else ()
    more = ("stage.loss=bradley_terry",) if stage == "judge" else ()
    before = set(made.parent.glob("*/checkpoints"))
    examined = examine(job(*words_of(stage, made, "llama", *reward), *more), ranks=False)
    found = {finding.check: finding for finding in examined.findings}
    assert {name: one.said for name, one in found.items() if one.verdict is Verdict.failed} == {}
    assert {name for name, one in found.items() if one.verdict is Verdict.skipped} == {"ranks"}
    expected = {"mask", "end learnt", "micro-batches", "resume", "memory", "first step"}
    expected |= set() if SPECS[stage].reads == "documents" else {"pad token"}
    if SPECS[stage].rollouts:
        expected |= {"dropout", "ratio", "sampler", "draws", "end drawn", "padding", "reward repeats", "reward differs"}
        expected |= {"reference", "kl", "scores of model"}
    elif SPECS[stage].scores:
        expected |= {"scores"}
    elif SPECS[stage].reads != "documents":
        expected |= {"padding", "end drawn"} | ({"start"} if SPECS[stage].reference else set())
    assert expected <= set(found)
    assert examined.example is not None
    assert set(made.parent.glob("*/checkpoints")) == before  # nothing that lasts


# ------------------------------------------------------------------------------------------------- faults on purpose


def with_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ppo.get_policy

    def get_policy(*arguments: Any) -> Any:
        policy = original(*arguments)
        for block in policy.transformer.h:
            block.attn.resid_dropout.p = 0.1
        return policy

    monkeypatch.setattr(ppo, "get_policy", get_policy)


def without_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    original = GPT2Model.forward
    monkeypatch.setattr(
        GPT2Model, "forward", lambda self, *given, position_ids=None, **more: original(self, *given, **more)
    )


def with_pad_as_end(monkeypatch: pytest.MonkeyPatch, module: Any = ppo) -> None:
    original = module.get_chat_tokenizer

    def get_chat_tokenizer(*arguments: Any) -> Any:
        tokenizer = original(*arguments)
        tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    monkeypatch.setattr(module, "get_chat_tokenizer", get_chat_tokenizer)


def with_top_k(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is recorded is the whole distribution's all the same."""
    original = decode.sample

    def sample(probabilities: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        least = probabilities.topk(200).values[:, -1:]
        return original(probabilities * (probabilities >= least), draws)

    monkeypatch.setattr(decode, "sample", sample)


def at_another_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Sampler.sample

    def sample(self: Sampler, *given: Any, **more: Any) -> Any:
        with self.at(self.temperature / 2):
            return original(self, *given, **more)

    monkeypatch.setattr(Sampler, "sample", sample)


def with_a_reference_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Reference.model

    @contextlib.contextmanager
    def model(self: Reference, policy: Any) -> Iterator[Any]:
        with original(self, policy) as reference:
            yield reference.train()

    monkeypatch.setattr(Reference, "model", model)


def with_the_loss_divided_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    original = PlainEngine.train_step

    def train_step(self: PlainEngine, micro_batches: Any, loss_fn: Any) -> Any:
        return original(self, micro_batches, lambda model, batch: loss_fn(model, batch) / len(micro_batches))

    monkeypatch.setattr(PlainEngine, "train_step", train_step)


def with_a_state_that_is_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    original = PlainEngine.load_state

    def load_state(self: PlainEngine, folder: Path) -> None:
        original(self, folder)
        for group in self.optimizer.param_groups:
            group["lr"] *= 0.5

    monkeypatch.setattr(PlainEngine, "load_state", load_state)


FAULTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str, str, set[str]]] = {
    # name: (fault, the check that names it, what it says, others that may notice)
    "dropout": (with_dropout, "dropout", r"dropout of 0\.1 is on in .*resid_dropout", {"ratio", "first step"}),
    "positions": (without_positions, "padding", "padding on the left changes log-probabilities", set()),
    "pad = eos": (with_pad_as_end, "pad token", "the tokenizer's padding is .* which also ends replies", set()),
    "top-k": (with_top_k, "draws", r"tokens are missing that its tail should have given \(top-k", set()),
    "temperature": (at_another_temperature, "sampler", "recorded while sampling are not those", {"draws"}),
    "reference": (with_a_reference_in_training, "reference", "in training mode", set()),
    "loss": (with_the_loss_divided_twice, "micro-batches", "divided twice, by the number of micro-batches", set()),
    "state": (with_a_state_that_is_not_saved, "resume", "weights differ after the same update", set()),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_named(made: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    fault, check, said, others = FAULTS[name]
    fault(monkeypatch)
    found = failed(*words_of("ppo", made, "gpt2"), "stage.value=shared")
    assert check in found, found
    assert re.search(said, found[check]), found[check]
    assert set(found) <= {check, *others}


def test_faults_of_fine_tuning_are_named(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        with_pad_as_end(patched, sft)
        without_positions(patched)
        with_the_loss_divided_twice(patched)
        found = failed(*words_of("sft", made, "gpt2"), "stage.dropout=0")
    assert set(found) == {"pad token", "padding", "micro-batches"}


@pytest.mark.parametrize(("reward", "check"), [("same", "reward differs"), ("chance", "reward repeats")])
def test_rewards_that_teach_nothing_are_named(made: Path, reward: str, check: str) -> None:
    assert set(failed(*words_of("ppo", made, reward=reward), "stage.value_from=policy")) == {check}


def test_groups_of_equal_rewards_are_named_and_only_a_reference_that_is_there_is_looked_at(
    made: Path,
) -> None:
    examined = examine(
        job(*words_of("grpo", made, reward="same"), "stage.beta=0", "stage.missing_end=none"), ranks=False
    )
    found = {one.check: one for one in examined.findings}
    assert [one.check for one in examined.findings.failed] == ["reward differs"]
    assert found["micro-batches"].verdict is Verdict.skipped
    assert not {"reference", "kl"} & set(found)


def test_a_reference_that_is_not_the_start_is_named(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = ReferenceModel.logprobs
    monkeypatch.setattr(ReferenceModel, "logprobs", lambda *given: original(*given) + 0.5)
    found = failed(*words_of("dpo", made))
    assert set(found) == {"start"}
    assert "from the reference's, which it is itself" in found["start"]


def test_dropout_of_fine_tuning_is_no_fault_and_splits_are_not_compared(made: Path) -> None:
    found = {one.check: one for one in examine(job(*words_of("sft", made, "gpt2"), "stage.dropout=0.1")).findings}
    assert not [one for one in found.values() if one.verdict is Verdict.failed]
    assert {name for name, one in found.items() if one.verdict is Verdict.skipped} == {"micro-batches", "ranks"}
    assert "bit for bit" in found["resume"].said


def test_what_the_runs_say_of_the_data_is_told_once(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = (made / "prompts.txt").read_text().splitlines()
    write_rows(tmp_path / "rows.jsonl", [*({"prompt": prompt} for prompt in prompts), {"prompt": ""}])
    words = (*words_of("ppo", made), "stage.value_from=policy", "data.on_bad_row=skip")
    findings = examine(job(*words, f"data.path={tmp_path / 'rows.jsonl'}"), ranks=False).findings
    assert not findings.failed
    assert sum("1 rows that cannot be used left out" in message for message in caplog.messages) == 1
    assert [message for message in caplog.messages if "update again" in message]


def test_memory_beyond_the_plan_is_named(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_update, "peak_memory_gb", lambda _device: 3.0)
    assert set(failed(*words_of("sft", made))) == {"memory"}


def test_a_stage_that_refuses_its_start_is_told(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first checks; before them the job has its own error."""

    def save(*_given: Any) -> None:
        raise UserError("could not save: no space left")

    monkeypatch.setattr(Checkpointer, "save", save)
    assert failed(*words_of("sft", made)) == {"first step": "could not save: no space left"}
    with pytest.raises(UserError, match="nothing"):
        failed(*words_of("sft", made), f"init_from={made / 'nothing'}")


def test_updates_are_compared_by_norm_direction_and_content() -> None:
    def trace(norm: float = 2.0, direction: float = 1.0, parts: int = 2, rows: tuple[int, ...] = (1, 2)) -> Trace:
        return Trace(0.5, norm, parts, torch.tensor([1.0, direction]), list(rows))

    assert "differ by" in compare(trace(), trace(parts=4), "2 and 1", "micro-batches", torch.float32)
    for other, what, said in (
        (trace(1.0, parts=4), "micro-batches", "divided twice, by the number of micro-batches"),
        (trace(1.0), "ranks", "divided twice, by the number of ranks"),
        (trace(1.7), "ranks", "in norm"),
        (trace(direction=1.01), "ranks", "in direction"),
        (trace(rows=(1, 3)), "ranks", "other sequences"),
    ):
        with pytest.raises(UserError, match=said):
            compare(trace(), other, "1 and 2", what, torch.float32)


def test_where_rounding_draws_other_replies_ranks_are_compared_in_fp32(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def on_ranks(config: Config, *_: Any) -> Trace:
        asked.append(config)
        if len(asked) == 1:
            return Trace(0.0, 1.0, 1, None, [1])
        update = first_update.OneUpdate()
        doctor_examine.run_stage(config, Path(config.paths.outputs) / "other", world, parents, update)
        assert update.trace is not None
        return update.trace

    monkeypatch.setattr(doctor_examine, "_on_ranks", on_ranks)
    world, parents = World(0, 0, 1, torch.device("cpu")), {"init_from": str(made / "llama"), "tokenizer": None}
    found = {one.check: one for one in examine(job(*words_of("sft", made), "precision=bf16")).findings}
    assert [config.precision.value for config in asked] == ["bf16", "fp32"]
    assert found["ranks"].verdict is Verdict.passed
    assert "in fp32 (rounding in bfloat16 draws other replies): gradients differ by 0.0e+00" in found["ranks"].said


def test_draws_tell_top_k_top_p_and_temperature_from_the_whole_distribution() -> None:
    """Twenty times each, from 2,000 draws."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(2000, 50, generator=generator) * 1.5
        p = torch.softmax(logits, -1)
        ordered = p.sort(1, descending=True).values
        before = (p[:, None, :] * (p[:, None, :] > p[:, :, None])).sum(-1)
        draw = lambda weights: torch.multinomial(weights, 1, generator=generator)[:, 0]  # noqa: E731, B023
        sigmas, missing = check_draws(p, draw(p))
        assert abs(sigmas) < 5
        assert missing < 15
        for weights in (p * (p >= ordered[:, 24:25]), p * (before < 0.9), torch.softmax(logits / 0.8, -1)):
            with pytest.raises(UserError, match="not drawn from the policy's own distribution"):
                check_draws(p, draw(weights))


def test_every_finding_says_why_it_matters() -> None:
    findings = Findings()
    for name in (*CHECKS, "scores of safety"):
        findings.add(name, False, "x")
    assert findings.table().row_count == len(CHECKS) + 1
    assert all(one.about.why and one.about.change for one in findings)


# -------------------------------------------------------------------------------------------------------- the command


def doctor(warm: Any, folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return warm.run("tinychat.doctor", folder, *overrides)


@pytest.mark.parametrize(
    "wrong",
    ["stage.batchsize=4", "init_from=auto", "data.path=nothing.jsonl"],
)
def test_bad_input_is_told_as_by_training(warm: Any, made: Path, tmp_path: Path, wrong: str) -> None:
    words = [word for word in words_of("sft", made) if word.partition("=")[0] != wrong.partition("=")[0]]
    told = error_line(doctor(warm, tmp_path, *words, wrong))
    assert told == error_line(warm.train(tmp_path, *words, wrong))
    assert list(tmp_path.iterdir()) == []


def test_what_trains_no_model_and_many_runs_are_refused(warm: Any, tmp_path: Path) -> None:
    assert "stage=tokenizer trains no model; there are pretrain, sft" in error_line(
        doctor(warm, tmp_path, "stage=tokenizer")
    )
    assert "-m is many runs" in error_line(doctor(warm, tmp_path, "-m", "stage=sft", "seed=1,2"))


@pytest.mark.slow  # two ranks, each a process that imports everything
def test_the_command_prints_a_table_and_leaves_nothing(warm: Any, made: Path, tmp_path: Path) -> None:
    done = doctor(warm, tmp_path, *words_of("ppo", made), "stage.value_from=policy")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "1 rank and 2: gradients differ by" in " ".join(done.stdout.replace("│", " ").split())
    assert "⟦" in done.stdout
    assert done.stdout.splitlines()[-1] == "no check fails"
    assert list(tmp_path.iterdir()) == []
    wrong = (*words_of("ppo", made, reward="same"), "stage.value_from=policy")
    done = doctor(warm, tmp_path, *wrong)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "1 check fails"
    assert json.dumps("FAIL")[1:-1] in done.stdout
