"""The self-check before PPO passes on a right policy, and refuses one that each fault was built into."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tests.rl_models import EOS, PAD, actor_critic, batch, shape
from tinychat.errors import UserError
from tinychat.models.actor_critic import policy_and_values
from tinychat.models.generation.decode import DecodeOptions
from tinychat.models.kernels.attention import use_blocked_attention
from tinychat.models.kernels.shared_prompts import SharedPrompts
from tinychat.models.reward import raw_scores
from tinychat.models.vocabulary import WHOLE
from tinychat.rl.rollout import Rollout, sample_replies
from tinychat.rl.selfcheck import (
    MOST_IN_A_ROW,
    SCORE_TOLERANCE,
    FirstRatios,
    PolicyChecks,
    _compare,
    check_dropout,
    check_replies,
    check_scores,
    check_tokens,
)
from tinychat.runtime.world import World

ALONE = World(0, 0, 1, torch.device("cpu"))


class Policy:
    """A tiny policy and the ways in which PPO calls it."""

    def __init__(self, arch: str = "llama", group: int = 1):
        self.model = actor_critic(arch)
        use_blocked_attention(self.model.policy, torch.device("cpu"))
        use_blocked_attention(self.model.value, torch.device("cpu"))
        options = DecodeOptions(8, (EOS,), temperature=0.8, seed=1, group=group)
        self.rollout = sample_replies(self.model.policy, batch(), options, PAD, 4, ALONE, None)

    @torch.no_grad()
    def logprobs(self, part: dict, temperature: float = 0.8) -> torch.Tensor:
        rows = part["input_ids"], part["targets"]
        return policy_and_values(self.model, *rows, temperature, group=part.get("group"))[0]

    def check(self, **other):
        calls = {"forward": self.logprobs, "update": self.logprobs}
        device = torch.device("cpu")
        checks = PolicyChecks(self.rollout, PAD, 0.8, WHOLE, dtype=torch.float32, device=device, **(calls | other))
        return checks.ratio(), checks.sampler(), checks.padding(self.model.policy)


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_a_right_policy_passes(arch: str, group: int) -> None:
    policy = Policy(arch, group)
    ratio, sampler, padding = policy.check()
    assert ratio == 0
    assert max(sampler, padding) < 1e-5


@pytest.mark.parametrize("shorter", range(8))
def test_replies_of_any_length_are_looked_at(shorter: int) -> None:
    """The last token is no input, so rows of one length in eight are narrower than the replies they were made of."""
    policy = Policy()
    for name in ("responses", "sampled"):
        setattr(policy.rollout, name, [list(row)[: max(1, 8 - shorter)] for row in getattr(policy.rollout, name)])
    assert policy.check()[0] == 0


def test_a_prompt_shared_in_a_wrong_way_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, inputs = Policy("llama", group=2), SharedPrompts.inputs

    def shifted(self: SharedPrompts, input_ids: torch.Tensor) -> dict:
        found = inputs(self, input_ids)
        return found | {"position_ids": torch.arange(len(self.tokens))[None]}

    monkeypatch.setattr(SharedPrompts, "inputs", shifted)
    with pytest.raises(UserError, match="log-probabilities recorded while sampling are not those of the forward pass"):
        policy.check()


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


LENGTHS = {"unlike": (30, 21, 16, 9), "alike": (20, 20, 20, 20)}


def reward_model(arch: str, seed: int, dtype: torch.dtype, reads_padding: bool) -> Callable:
    """Outputs of a reward model, as a Scorer computes them; with `reads_padding` of the row's last column."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(shape(arch, num_labels=1)).eval()
    torch.nn.init.normal_(model.score.weight, std=0.25)

    @torch.no_grad()
    def outputs(sequences: list[list[int]]) -> list[float]:
        width = max(map(len, sequences))
        ids = torch.tensor([sequence + [PAD] * (width - len(sequence)) for sequence in sequences])
        real = torch.tensor([[1] * len(sequence) + [0] * (width - len(sequence)) for sequence in sequences])
        with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            return raw_scores(model, ids, torch.ones_like(real) if reads_padding else real).tolist()

    return outputs


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_reward_models_that_read_padding_are_told_from_right_ones(arch: str, dtype: torch.dtype, lengths: str) -> None:
    """Twenty of each, whatever the lengths of the replies, with and without a known spread of the scores."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        sequences = [torch.randint(2, PAD, (length,), generator=generator).tolist() for length in LENGTHS[lengths]]
        right = reward_model(arch, seed, dtype, reads_padding=False)
        spread = torch.tensor(right([torch.randint(2, PAD, (12,)).tolist() for _ in range(50)])).std().item()
        for known in (spread, None):
            assert check_scores("reward.parts.a", right, sequences, known, dtype) < SCORE_TOLERANCE[dtype]
            with pytest.raises(UserError, match=r"reward\.parts\.a: .* does not read the last real token"):
                check_scores("reward.parts.a", reward_model(arch, seed, dtype, True), sequences, known, dtype)


def test_a_first_ratio_beyond_rounding_is_told_counted_and_ends_a_run_only_when_it_lasts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(UserError, match=r"step 1: the ratio .* training is refused"):
        FirstRatios(torch.bfloat16, {}).check(1, 0.02)
    ratios = FirstRatios(torch.bfloat16, {})
    for step, kl in enumerate([0.0, 0.02, 0.001, *[0.02] * (MOST_IN_A_ROW - 1)], start=1):
        ratios.check(step, kl)
    assert ratios.count == MOST_IN_A_ROW
    assert len(caplog.records) == MOST_IN_A_ROW
    again = FirstRatios(torch.bfloat16, dict(ratios.state))  # a resumed run goes on counting
    with pytest.raises(UserError, match=rf"for the {MOST_IN_A_ROW}th step in a row: .* training is refused"):
        again.check(20, float("nan"))


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
    assert _compare(one, wanted, torch.bfloat16, 0.6, 1.0, "", "") == pytest.approx(0.125 / 0.6)
    with pytest.raises(UserError, match=r"0\.0625 on average"):
        _compare(wanted + 0.0625, wanted, torch.bfloat16, 0.6, 1.0, "", "")
    with pytest.raises(UserError, match=r"up to 0\.7 nats"):
        _compare(one * 0.7 / one[7], wanted, torch.bfloat16, 0.6, 1.0, "", "")
