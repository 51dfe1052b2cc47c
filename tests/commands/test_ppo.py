"""stage=ppo through the command, on models of a few thousand parameters."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.chat_models import babbler
from tests.conftest import TORCHRUN, run_train
from tests.reward_models import LORA, started, stir, write
from tinychat.models.checkpoints import save_weights, saved_buffers, saved_parameters
from tinychat.text.chat_template import set_template

COUNT = """
def score(prompts, replies):
    return [float(sum(word == "cat" for word in reply.replace("cat", " cat ").split())) for reply in replies]
"""
STEP = (
    "stage=ppo",
    "tracker=none",
    "data=prompts",
    "stage.value_from=policy",
    "stage.rollout_size=8",
    "stage.batch_size=4",
    "stage.micro_batch_size=2",
    "stage.response_length=8",
    "stage.epochs=2",
    "stage.max_steps=3",
    "stage.warmup_steps=0",
    "stage.eval_first=false",
    "stage.safety_prompts=0",
    "precision=fp32",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a policy (`sft`), prompts and a reward function."""
    folder = tmp_path_factory.mktemp("ppo")
    model, tokenizer = babbler(context=64)
    model.config.initializer_range = 0.02
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.4 if p.dim() > 1 else 1.0)  # near enough to uniform that it can learn anything
    set_template(tokenizer, "instruct")
    (folder / "sft").mkdir()
    save_weights(model, saved_parameters(model) | saved_buffers(model), folder / "sft")
    tokenizer.save_pretrained(folder / "sft")
    words = ("the cat", "the dog and", "mat", "dog sat on the mat")
    (folder / "prompts.txt").write_text("\n".join(f"{word} {more}" for word in words for more in ("sat", "and", "on")))
    (folder / "count.py").write_text(COUNT)
    said = ({"prompt": f"the {word} {n}", "response": "sat on the mat " * n} for word in words for n in (1, 2, 3))
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    return folder


def ppo(warm, made: Path, out: Path, *overrides: str, fails: bool = False, **options: bool):
    reward = ("reward=python", f"reward.parts.python.path={made / 'count.py'}:score")
    given = (*STEP, f"init_from={made / 'sft'}", f"data.path={made / 'prompts.txt'}")
    given = given if any(word.startswith("reward=") for word in overrides) else (*given, *reward)
    done = warm.train(out, *given, f"run_dir={out / 'run'}", *overrides, **options)
    assert (done.returncode != 0) is fails, done.stderr[-3000:]
    return done


def metrics(out: Path, name: str) -> list[float]:
    rows = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    return [float(row[name]) for row in rows if name in row]


def weights(out: Path, step: int = 3) -> dict[str, torch.Tensor]:
    folder = out / "run" / "checkpoints" / f"step-{step:06d}"
    value = load_file(folder / "value" / "model.safetensors")
    return load_file(folder / "model.safetensors") | {f"value.{name}": tensor for name, tensor in value.items()}


def test_a_run_leaves_a_policy_with_its_records(warm, made: Path, tmp_path: Path) -> None:
    done = ppo(warm, made, tmp_path)
    assert "self-check passed" in done.stderr
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000003"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    assert model.config.vocab_size >= len(tokenizer)
    assert tokenizer.chat_template
    assert metrics(tmp_path, "rl/kl")[0] == pytest.approx(0, abs=1e-5)
    assert metrics(tmp_path, "rl/kl_full")[0] == pytest.approx(0, abs=1e-5)
    assert metrics(tmp_path, "rl/sampler_gap")[0] < 1e-4
    assert metrics(tmp_path, "rl/updates") == [4, 4, 4]
    facts, *replies = map(json.loads, (tmp_path / "run" / "rollouts" / "step-000003.jsonl").read_text().splitlines())
    assert facts["step"] == 3
    assert len(replies) == 8
    assert {"logprobs", "ref_logprobs", "values", "advantages", "returns", "score"} <= set(replies[0])
    assert len(metrics(tmp_path, "eval/objective")) == 1
    report = (tmp_path / "run" / "report.md").read_text()
    assert "Replies of the last rollout" in report and "(rollouts.html)" in report
    assert '"step":3,"heldOut":true' in (tmp_path / "run" / "rollouts.html").read_text()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["objective_name"] == "eval/objective"


@pytest.fixture(scope="module")
def one_base(warm, made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, ...]]:
    """A run whose value function and reward model are adapters on the policy's base, and its words."""
    rewarding = started(made / "sft", LORA)
    stir(rewarding)
    write(rewarding, made / "adapted")
    words = ("peft=lora", "peft.r=4", "stage.value=adapter", "stage.value_from=reward", "stage.lr=1e-2")
    words = (*words, "reward=model", f"reward.parts.model.path={made / 'adapted'}", "stage.max_steps=2")
    out = tmp_path_factory.mktemp("one_base")
    assert "is computed on it" in ppo(warm, made, out, *words).stderr
    return out, words


@pytest.mark.slow
@pytest.mark.parametrize(
    "split",
    [("ds=zero0",), ("ds=zero1",), ("ds=zero2",), ("ds=zero3",), TORCHRUN, ("ds=zero3", *TORCHRUN)],
    ids=" ".join,
)
def test_on_one_base_every_split_trains_alike(
    warm, made: Path, one_base: tuple[Path, tuple[str, ...]], tmp_path: Path, split: tuple[str, ...]
) -> None:
    out, words = one_base
    ppo(warm, made, tmp_path, *words, *split, fork_ranks=True)
    for name in ("rl/reward", "rl/kl", "rl/value_loss", "rl/policy_loss"):
        assert metrics(tmp_path, name) == pytest.approx(metrics(out, name), abs=1e-4, rel=1e-3), name
    for file in ("adapter_model.safetensors", "value/adapter_model.safetensors"):
        found, wanted = (load_file(way / "run/checkpoints/step-000002" / file) for way in (tmp_path, out))
        assert found.keys() == wanted.keys()
        assert max((found[name] - wanted[name]).abs().max().item() for name in wanted) < 1e-3


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))])
def test_a_reward_for_one_word_is_learnt(warm, made: Path, tmp_path: Path, seed: int) -> None:
    more = ("stage.max_steps=25", "stage.lr=0.01", "stage.rollout_size=16", "stage.batch_size=8", "stage.beta=0.0")
    # The word is said once a rollout at first: with lam below 1 it is the draw that decides how soon it is found.
    more = (*more, "stage.micro_batch_size=8", "stage.max_kl=null", "stage.lam=1.0")
    ppo(warm, made, tmp_path, *more, f"seed={seed}")
    rewards = metrics(tmp_path, "rl/reward")
    assert sum(rewards[-5:]) / 5 > 1.0 + 2 * sum(rewards[:5]) / 5


@pytest.fixture(scope="module")
def plain(warm, made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one plain process."""
    out = tmp_path_factory.mktemp("plain")
    ppo(warm, made, out)
    return out


@pytest.mark.parametrize(
    "split",
    [
        ("stage.micro_batch_size=1",),
        ("stage.rollout_batch_size=3",),
        pytest.param(TORCHRUN, marks=pytest.mark.slow),
        pytest.param(("ds=zero1", *TORCHRUN), marks=pytest.mark.slow),
        pytest.param(("ds=zero2",), marks=pytest.mark.slow),
        ("ds=zero3", *TORCHRUN),
    ],
    ids=" ".join,
)
def test_every_split_trains_alike(warm, made: Path, plain: Path, tmp_path: Path, split: tuple[str, ...]) -> None:
    more = ("stage.micro_batch_size=1",) if TORCHRUN[0] in split else ()
    ppo(warm, made, tmp_path, *split, *more, fork_ranks=True)
    for name in ("rl/reward", "rl/kl", "rl/value_loss", "rl/policy_loss", "train/loss", "rl/approx_kl"):
        assert metrics(tmp_path, name) == pytest.approx(metrics(plain, name), abs=1e-4, rel=1e-3), name
    if "ds=zero3" not in split:
        found, wanted = weights(tmp_path), weights(plain)
        assert found.keys() == wanted.keys()
        assert max((found[name] - wanted[name]).abs().max().item() for name in wanted) < 1e-3


@pytest.mark.slow
def test_every_split_learns_alike_from_conversations_too(warm, made: Path, tmp_path: Path) -> None:
    """Ranks, micro-batches and ZeRO stages, with a value function of its own, in which they must teach nothing."""
    ptx = ("stage.ptx.coef=0.5", "stage.ptx.source=chat", f"stage.ptx.path={made / 'chats.jsonl'}")
    few = (*ptx, "stage.ptx.batch_size=6", "stage.lr=1e-3", "stage.critic_warmup=1", "stage.micro_batch_size=")
    (tmp_path / "one").mkdir()
    ppo(warm, made, tmp_path / "one", *few[:-1], f"{few[-1]}4")
    wanted = weights(tmp_path / "one")
    losses = metrics(tmp_path / "one", "rl/ptx_loss")
    assert losses[-1] < losses[0] - 0.02
    assert len(losses) == 3
    for split in ((), TORCHRUN, *((f"ds=zero{stage}", *TORCHRUN) for stage in range(4)), ("ds=zero3_offload",)):
        out = tmp_path / "-".join(("split", *(split[:1] or ("none",)), str(len(split)))).replace("=", "-")
        out.mkdir()
        ppo(warm, made, out, *split, *few[:-1], f"{few[-1]}1", fork_ranks=True)
        for name in ("rl/ptx_loss", "rl/reward", "rl/value_loss", "train/loss", "train/grad_norm"):
            assert metrics(out, name) == pytest.approx(metrics(tmp_path / "one", name), abs=1e-4, rel=1e-3), (
                name,
                split,
            )
        if "zero3" not in "".join(split):
            found = weights(out)
            assert max((found[name] - wanted[name]).abs().max().item() for name in wanted) < 1e-3, split


@pytest.mark.slow
def test_two_ranks_learn_one_multiplier(warm, made: Path, tmp_path: Path) -> None:
    """Of a reward under a constraint, from the mean cost of all replies: the ranks' own means differ."""
    (made / "safe.py").write_text(
        "def helps(prompts, replies): return [float(r.count('a')) for r in replies]\n"
        "def safe(prompts, replies): return [0.1 * len(p) - len(r) for p, r in zip(prompts, replies)]"
    )
    parts = [f"reward.parts.{name}.{key}" for name in ("helpfulness", "cost") for key in ("kind=python", "path=")]
    reward = ("reward=lagrangian", parts[0], f"{parts[1]}{made / 'safe.py'}:helps", parts[2])
    more = (*reward, f"{parts[3]}{made / 'safe.py'}:safe", "reward.cost_limit=5", "reward.multiplier.rate=0.02")
    more = (*more, "reward.normalise=true", "stage.micro_batch_size=1", "stage.max_steps=3")
    found = []
    for name, ranks in (("one", ()), ("two", TORCHRUN)):
        (tmp_path / name).mkdir()
        ppo(warm, made, tmp_path / name, *more, *ranks, fork_ranks=True)
        found.append([metrics(tmp_path / name, f"rl/{what}") for what in ("lagrange_multiplier", "cost", "reward")])
    for one, two in zip(*found, strict=True):
        assert two == pytest.approx(one, abs=1e-5)
    assert len(set(found[0][0])) == 3, "it moves"


@pytest.mark.parametrize(
    "choice",
    [
        ("stage.value=shared", "stage.activation_checkpointing=true"),
        ("peft=lora", "peft.r=2"),
        ("peft=lora", "peft.r=2", "ds=zero2", "precision=bf16"),
        ("stage.kl=adaptive", "stage.kl_estimator=k3", "stage.whiten_rewards=true", "stage.missing_end=floor"),
        ("stage.entropy_coef=0.01", "stage.dual_clip=3.0", "stage.clip_high=0.3", "stage.value_clip=null"),
        ("stage.critic_warmup=1", "stage.full_kl=false", "stage.temperature=0.7"),
        ("precision=bf16",),
    ],
    ids=" ".join,
)
def test_switches_work(warm, made: Path, tmp_path: Path, choice: tuple[str, ...]) -> None:
    ppo(warm, made, tmp_path, "stage.max_steps=2", *choice)
    first = metrics(tmp_path, "rl/kl")[0]
    assert first == pytest.approx(0, abs=1e-4 if "precision=bf16" not in choice else 0.2)
    if "stage.critic_warmup=1" in choice:
        assert metrics(tmp_path, "rl/kl")[1] == pytest.approx(0, abs=1e-5)  # the policy has not moved yet
    if "peft=lora" in choice:
        folder = tmp_path / "run" / "checkpoints" / "step-000002"
        assert (folder / "adapter_model.safetensors").is_file()
        assert (folder / "adapter_model.safetensors").stat().st_size < 60_000


@pytest.mark.parametrize("where", ["update", pytest.param("rollout", marks=pytest.mark.slow)])
def test_killed_in_a_step_it_ends_bit_identically(warm, made: Path, plain: Path, tmp_path: Path, where: str) -> None:
    """The process kills itself where it hurts; the same command again ends as if nothing had happened."""
    trap = tmp_path / "trap.py"
    trap.write_text(COUNT + KILLER)
    fuse = tmp_path / "fuse"
    reward = (f"reward.parts.python.path={trap}:score",)
    variables = {"TINYCHAT_TEST_FUSE": str(fuse), "TINYCHAT_TEST_WHERE": where}
    fuse.write_text("3")
    given = (*STEP, f"init_from={made / 'sft'}", f"data.path={made / 'prompts.txt'}", "reward=python", *reward)
    done = run_train(tmp_path, *given, "checkpoint.every=1", f"run_dir={tmp_path / 'run'}", **variables)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "run" / "checkpoints" / "step-000001").is_dir()
    assert not (tmp_path / "run" / "result.json").exists()
    fuse.unlink()
    done = run_train(tmp_path, *given, "checkpoint.every=1", f"resume={tmp_path / 'run'}", **variables)
    assert done.returncode == 0, done.stderr[-3000:]
    found, wanted = weights(tmp_path), weights(plain)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert metrics(tmp_path, "rl/reward") == metrics(plain, "rl/reward")


KILLER = """

import os, pathlib, signal

fuse = pathlib.Path(os.environ.get("TINYCHAT_TEST_FUSE", "/nonexistent"))
plain_score = score


def burn():
    if fuse.exists():
        left = int(fuse.read_text()) - 1
        fuse.write_text(str(left))
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


if os.environ.get("TINYCHAT_TEST_WHERE") == "rollout":

    def score(prompts, replies):
        burn()
        return plain_score(prompts, replies)

else:
    import tinychat.stages.ppo as ppo

    plain_loss, calls = ppo.ppo_loss, []

    def ppo_loss(*arguments):
        calls.append(1)
        if len(calls) > 12:
            burn()
        return plain_loss(*arguments)

    ppo.ppo_loss = ppo_loss
"""


def test_the_objective_can_be_measured_alike_whatever_the_penalty_and_temperature(
    warm, made: Path, tmp_path: Path
) -> None:
    found = []
    for temperature in ("0.5", "1.5"):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        more = ("stage.objective_beta=0.3", "stage.objective_temperature=1.0", "stage.eval_first=true")
        ppo(warm, made, tmp_path, "stage.max_steps=1", f"stage.temperature={temperature}", "stage.beta=0.01", *more)
        start, end = (metrics(tmp_path, f"eval/{name}") for name in ("reward", "kl"))
        assert metrics(tmp_path, "eval/objective") == pytest.approx(
            [r - 0.3 * k for r, k in zip(start, end, strict=True)]
        )
        found.append(start[0])
    assert found[0] == found[1]  # of the policy that both start from


@pytest.mark.slow
def test_a_trial_of_a_sweep_ends_at_an_alarm_with_a_last_evaluation(warm, made: Path, tmp_path: Path) -> None:
    words = ("-m", "sweep=ppo_grid", "sweep.prune_on=[eos]", "stage.lr=1e-4,2e-4", "stage.beta=0.05", "stage.epochs=1")
    given = [word for word in STEP if word != "stage.epochs=2"]
    more = (
        f"init_from={made / 'sft'}",
        f"data.path={made / 'prompts.txt'}",
        "reward=python",
        "stage.response_length=1",
    )
    done = warm.train(
        tmp_path, *given, *more, f"reward.parts.python.path={made / 'count.py'}:score", *words, "sweep.n_trials=1"
    )
    assert "replies no longer end" in done.stderr, done.stderr[-3000:]
    (result,) = (json.loads(path.read_text()) for path in tmp_path.glob("outputs/tinychat/*/*/result.json"))
    assert result["status"] == "pruned"
    assert result["objective"] == result["metrics"]["eval/objective"]


def test_bad_input_is_one_clear_line(warm, made: Path, tmp_path: Path) -> None:
    def says(*overrides: str) -> str:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return ppo(warm, made, tmp_path, *overrides, fails=True).stderr.strip().splitlines()[-1]

    (tmp_path / "nan.py").write_text("def score(prompts, replies): return [float('nan')] * len(replies)")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "long.txt").write_text("".join(f"{word} sat on the mat " * 40 + "\n" for word in ("cat", "dog")))
    assert "the score is nan for the reply" in says(f"reward.parts.python.path={tmp_path / 'nan.py'}:score")
    assert "prompts" in says(f"data.path={tmp_path / 'empty.txt'}")
    assert "longer than the" in says(f"data.path={tmp_path / 'long.txt'}")
    assert "no such file" in says("reward.parts.python.path=nothing.py:score")
    assert "stage.rollout_size=6 is no multiple of stage.batch_size=4; use 8" in says("stage.rollout_size=6")
    assert "is a language model" in says("reward=model", f"reward.parts.model.path={made / 'sft'}")
    missing = says("reward=model", "init_from=auto", f"paths.outputs={tmp_path / 'none'}")
    assert "python -m tinychat.train stage=sft" in missing
    assert "python -m tinychat.train stage=reward" in missing


def test_a_held_out_prompt_without_an_answer_is_refused_before_anything_is_trained(
    warm, made: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": f"the cat {i}", "reference": "sat", "answer": "word"} for i in range(12)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "val.jsonl").write_text('{"prompt": "the dog"}\n')
    data = (f"data.path={tmp_path}/train.jsonl", f"data.val_path={tmp_path}/val.jsonl")
    more = (f"init_from={made / 'sft'}", "reward=verifier", f"run_dir={tmp_path / 'run'}")
    done = warm.train(tmp_path, *STEP, *data, *more)
    assert done.returncode == 1
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "the verifier needs prompts with a checkable answer" in said
    assert f"{tmp_path}/val.jsonl, line 1 has none" in said
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
