"""The self-check before PPO passes on a right policy, and refuses one that each fault was built into."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.unit.rl_models import EOS, PAD, actor_critic, batch
from tinychat.errors import UserError
from tinychat.models.actor_critic import policy_and_values
from tinychat.models.decode import DecodeOptions
from tinychat.rl.rollout import Rollout, sample_replies
from tinychat.rl.selfcheck import _compare, check_dropout, check_replies, check_tokens, self_check
from tinychat.world import World

ALONE = World(0, 0, 1, torch.device("cpu"))


class Policy:
    """A tiny policy and the ways in which PPO calls it."""

    def __init__(self, arch: str = "llama"):
        self.model = actor_critic(arch)
        options = DecodeOptions(8, (EOS,), temperature=0.8, seed=1)
        self.rollout = sample_replies(self.model.policy, batch(), options, PAD, 4, ALONE, None)

    @torch.no_grad()
    def logprobs(self, part: dict, temperature: float = 0.8) -> torch.Tensor:
        return policy_and_values(self.model, part["input_ids"], part["targets"], temperature)[0]

    def check(self, **other):
        calls = {"forward": self.logprobs, "update": self.logprobs, "policy": self.model.policy, "score": None}
        return self_check(self.rollout, PAD, 0.8, dtype=torch.float32, device=torch.device("cpu"), **(calls | other))


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_a_right_policy_passes(arch: str) -> None:
    policy = Policy(arch)
    found = policy.check(score=lambda sequences: [float(sequence[-1]) for sequence in sequences])
    assert found.ratio == 0
    assert max(found.sampler, found.padding) < 1e-5
    assert "passed" in found.describe()


def test_dropout_is_found() -> None:
    policy = Policy("gpt2")
    check_dropout(policy.model)
    policy.model.policy.transformer.h[0].attn.attn_dropout.p = 0.1
    with pytest.raises(UserError, match=r"dropout of 0\.1 is on in policy\.transformer\.h\.0\.attn"):
        check_dropout(policy.model)

    def update(part: dict) -> torch.Tensor:
        policy.model.train()
        return policy.logprobs(part)

    with pytest.raises(UserError, match="ratio of new to old probability is not 1"):
        policy.check(update=update)


def test_another_temperature_in_the_rollout_is_found() -> None:
    policy = Policy()
    other = lambda part: policy.logprobs(part, temperature=1.0)  # noqa: E731
    with pytest.raises(UserError, match="recorded while sampling are not those"):
        policy.check(forward=other, update=other)


def test_a_model_that_ignores_positions_is_found() -> None:
    policy = Policy("gpt2")
    original = policy.model.policy.forward

    def forward(*, position_ids=None, **inputs):
        return original(**inputs)

    policy.model.policy.forward = forward
    with pytest.raises(UserError, match="padding on the left changes"):
        policy.check()


def test_a_reward_model_that_reads_padding_is_found() -> None:
    with pytest.raises(UserError, match="does not read the last real token"):
        Policy().check(score=lambda sequences: [float(max(map(len, sequences)))] * len(sequences))


def test_padding_that_ends_replies_is_found() -> None:
    check_tokens(SimpleNamespace(pad_token_id=3, pad_token="<pad>"), (1, 2))
    for pad in (1, None):
        with pytest.raises(UserError, match="the tokenizer's padding is"):
            check_tokens(SimpleNamespace(pad_token_id=pad, pad_token="<eos>"), (1, 2))


def test_replies_are_cut_behind_their_end() -> None:
    rows = batch([[5], [6]]).rows
    check_replies(Rollout(rows, [[5], [6]], [[3, EOS], [3, 4]], [[0, 0], [0, 0]], [True, False]), (EOS,))
    with pytest.raises(UserError, match="row 1 goes on behind its end token"):
        check_replies(Rollout(rows, [[5], [6]], [[3, EOS], [EOS, 4]], [[0, 0], [0, 0]], [True, True]), (EOS,))


def test_rounding_at_a_low_temperature_is_no_fault() -> None:
    """One token of fifty at a logit that bf16 rounds by an eighth, as in sampled replies; the mean is small."""
    wanted = torch.zeros(50)
    one = wanted.clone()
    one[7] = 0.125 / 0.6
    assert _compare(one, wanted, torch.bfloat16, 0.6, "", "") == pytest.approx(0.125 / 0.6)
    with pytest.raises(UserError, match=r"0\.0625 on average"):
        _compare(wanted + 0.0625, wanted, torch.bfloat16, 0.6, "", "")
    with pytest.raises(UserError, match=r"up to 0\.7 nats"):
        _compare(one * 0.7 / one[7], wanted, torch.bfloat16, 0.6, "", "")
