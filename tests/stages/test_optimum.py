"""Every stage that learns from rollouts, and every loss of groups, finds what is best where that is known: a reply of
one word alone, and the better arm of a prompt that the KL penalty holds near the start. In this process, on a model of
a thousand parameters, with the loop's own functions."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.config.test_compose import composed
from tests.rl_models import batch
from tinychat.config.rollout_stages import GroupLoss
from tinychat.config.schema import Config, Precision
from tinychat.engine import StepStats, build_engine, evaluation_engine
from tinychat.models.actor_critic import ActorCritic
from tinychat.models.vocabulary import WHOLE
from tinychat.rl.rollout import Rollout
from tinychat.runtime.world import World
from tinychat.stages import grpo, policy, ppo
from tinychat.stages.policy import Models, Reference, Sampler
from tinychat.stages.rollouts import Clock, kl_controller, next_rollout, with_missing_ends
from tinychat.stages.updates import Coefficients, learn

ALONE = World(0, 0, 1, torch.device("cpu"))
WORDS, EOS, PAD = 10, 8, 9
WORD, OTHER = 3, 5
REPLY = 4  # tokens
Score = Callable[[list[int]], float]

SMALL = (
    "tuned=none", "device=cpu", "precision=fp32", "reward=oracle", "stage.rollout_size=64", "stage.batch_size=64",
    "stage.micro_batch_size=64", "stage.rollout_batch_size=64", "stage.epochs=2", "stage.missing_end=none",
    "stage.max_kl=null", "stage.lr=0.015", "stage.grad_clip=1.0",
)  # fmt: skip
WAYS = {
    "ppo": ("stage=ppo", "stage.value=shared", "stage.value_coef=0.5", "stage.lam=1.0"),
    "rlvr": ("stage=rlvr",),
    **{loss.value: ("stage=grpo", f"stage.loss={loss.value}") for loss in GroupLoss},
    "grpo, its KL in the reward": ("stage=grpo", "stage.kl_in=reward"),
}
SEEDS = [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))]


def language_model() -> Any:
    torch.manual_seed(0)
    shape = LlamaConfig(
        num_hidden_layers=1, hidden_size=16, num_attention_heads=2, num_key_value_heads=1, intermediate_size=16,
        max_position_embeddings=16, vocab_size=WORDS, pad_token_id=PAD, bos_token_id=EOS, eos_token_id=EOS,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(shape)


def trained(config: Config, score: Score, steps: int) -> tuple[Any, list[float]]:
    """The policy after so many rollouts with a reward for the tokens of a reply; the mean reward of each rollout."""
    stage = config.stage
    model, reference = language_model(), Reference.__new__(Reference)
    reference._copy, reference._weights = evaluation_engine(language_model(), Precision.fp32, ALONE), None
    is_ppo = hasattr(stage, "value")
    trainee = ActorCritic(model, None) if is_ppo else model
    engine = build_engine(trainee, config.optim, config.ds, stage, config.precision, ALONE)
    algorithm = ppo.algorithm(stage, WHOLE) if is_ppo else grpo.algorithm(stage, WHOLE, {"score": 1.0})
    tokenizer: Any = SimpleNamespace(pad_token_id=PAD)
    models = Models(engine, reference if stage.compared else None, WHOLE)

    def rewards(
        _rows: Any, _replies: Any, sequences: list[list[int]], _held_out: bool
    ) -> tuple[Tensor, dict[str, list[float]]]:
        found = [score(sequence[len(PROMPT) :]) for sequence in sequences]
        return torch.tensor(found), {"score": found}

    sampler = Sampler(stage, tokenizer, models, cast(Any, SimpleNamespace(score=rewards)))
    prompts: Any = SimpleNamespace(after=lambda _drawn, count: batch([PROMPT] * count))

    def train(parts: Any, loss_fn: Any, _tokens: int, _samples: int) -> StepStats:
        return engine.train_step(parts, loss_fn)

    loop, state, found = cast(Any, SimpleNamespace(train=train)), {"drawn": 0}, []
    now = Coefficients(kl_controller(stage).beta, stage.entropy_coef)
    for step in range(1, steps + 1):
        rollout, _ = next_rollout(config, sampler, prompts, algorithm, step, state, Clock())
        experience = sampler.measure(rollout)
        rollout.scores = with_missing_ends(stage, rollout)
        algorithm.advantages(rollout, experience, now.kl)
        learn(config, loop, engine, experience, algorithm, step, now)
        found.append(mean_reward(rollout))
    return model, found


PROMPT = [2, 7]


def mean_reward(rollout: Rollout) -> float:
    return rollout.rewards.mean().item()


@pytest.fixture(autouse=True)
def ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of replies that are never read as text."""
    monkeypatch.setattr(policy, "end_ids", lambda _tokenizer: (EOS,))
    monkeypatch.setattr(policy, "reply_text", lambda _tokenizer, _response: "")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("way", WAYS)
def test_one_word_is_said_as_often_as_it_can_be(way: str, seed: int) -> None:
    """The best reply never ends and says nothing else: its reward is 1."""
    config = composed(*SMALL, *WAYS[way], f"stage.response_length={REPLY}", "stage.beta=0", f"seed={seed}")
    _, rewards = trained(config, lambda reply: reply.count(WORD) / REPLY, 20)
    assert rewards[0] < 0.3, "the word is one of ten at first, else this says nothing"
    assert sum(rewards[-3:]) / 3 >= 0.9


BETA, ARMS = 0.2, {WORD: 1.0, OTHER: 0.6}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("way", WAYS)
def test_of_two_arms_the_better_one_is_pulled_as_often_as_the_penalty_allows(way: str, seed: int) -> None:
    """For replies of one token the objective E[reward] - β·KL has its maximum, β·log Σ π_ref·exp(reward / β), where the
    policy is π_ref·exp(reward / β) / Σ; both are computed from the logits, without sampling."""
    config = composed(
        *SMALL, *WAYS[way], "stage.response_length=1", "stage.epochs=1", f"stage.beta={BETA}", f"seed={seed}"
    )
    model, _ = trained(config, lambda reply: ARMS.get(reply[0], 0.0), 20)
    rewards = torch.tensor([ARMS.get(token, 0.0) for token in range(WORDS)])
    start, end = (first_token(x) for x in (language_model(), model))
    best = BETA * (start + rewards / BETA).logsumexp(0).item()
    values = [(after.exp() * (rewards - BETA * (after - start))).sum().item() for after in (start, end)]
    assert values[0] < 0.3 * best, "at the start, else this says nothing"
    assert values[1] >= 0.9 * best


@torch.no_grad()
def first_token(model: Any) -> Tensor:
    """(V,) log-probabilities of the token after the prompt."""
    return model(input_ids=torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1)
