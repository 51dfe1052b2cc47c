"""Conversations beside rewards: what an update's gradient is then, and which conversations may be learnt from."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.config.test_compose import composed
from tests.reward_models import LORA
from tests.rl_models import PAD, PROMPTS, actor_critic, policy
from tinychat.config.stages import MixPart
from tinychat.data.chats.sources import chat_source, of_beside, ptx_data
from tinychat.engine import Batch, StepStats
from tinychat.errors import UserError
from tinychat.models.actor_critic import ActorCritic, policy_and_values, policy_of
from tinychat.models.adapters import add_adapter
from tinychat.models.logprobs import IGNORED, token_nll
from tinychat.models.one_base import VALUE, add_value_adapter
from tinychat.models.vocabulary import WHOLE
from tinychat.rl.losses import Sums
from tinychat.rl.rollout import to_experience
from tinychat.runtime.world import World
from tinychat.stages.ptx import Conversations, measured_on, without_measured
from tinychat.stages.updates import Algorithm, Coefficients, learn

ALONE = World(0, 0, 1, torch.device("cpu"))
COEF = 0.7


class Given(Conversations):
    """The same three conversations in every update."""

    def __init__(self, coef: float):
        torch.manual_seed(5)
        self.coef, self.asked = coef, list[int]()
        self.rows = {"input_ids": torch.randint(2, PAD, (3, 6)), "targets": torch.randint(2, PAD, (3, 6))}
        self.rows["targets"][:, :2] = IGNORED
        self.rows["targets"][1, 4:] = IGNORED

    def of_update(self, number: int, world: World) -> Batch:
        self.asked.append(number)
        return self.rows

    def tokens(self, number: int) -> float:
        return float((self.rows["targets"] != IGNORED).sum())


def gradients(model: Any) -> dict[str, Tensor]:
    """Of the latest backward passes, which are forgotten."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def updated(model: Any, ptx: Given | None, learns: bool = True) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The gradients of the updates of a step, two epochs of two updates, and what is logged of them."""

    def loss(model: Any, batch: Batch, _step: int, _now: Coefficients) -> tuple[Tensor, Sums]:
        logprobs, values, _ = policy_and_values(model, batch["input_ids"], batch["targets"], 0.7, WHOLE)
        mask = batch["mask"]
        of_value = 0.0 if values is None else (values * mask).square().sum()
        tokens = mask.sum().float()
        return (logprobs * batch["advantages"]).sum() * learns + of_value, {"tokens": tokens, "kl_k3": 0.0 * tokens}

    def train(parts: list[Batch], loss_fn: Any, _tokens: int, _samples: int) -> StepStats:
        for part in parts:
            loss_fn(model, part).backward()
        return StepStats(0.0, 0.0)

    rows = to_experience(PROMPTS, [[3, 4, 1], [2, 2, 2, 2, 2], [1], [7, 8]], PAD)
    torch.manual_seed(0)
    rows.fields["advantages"] = torch.randn(rows.mask.shape) * rows.mask
    stage = SimpleNamespace(rollout_size=4, batch_size=2, micro_batch_size=2, epochs=2, max_kl=None)
    config: Any = SimpleNamespace(stage=stage, seed=0)
    loop: Any = SimpleNamespace(train=train)
    engine: Any = SimpleNamespace(world=ALONE, rest=lambda: None)
    algorithm = Algorithm(lambda *_: {}, loss, policy_learns=lambda _step: learns)
    found = learn(config, loop, engine, rows, algorithm, 3, Coefficients(0.1, 0.0), ptx)[1]
    return gradients(model), found


def models() -> dict[str, Any]:
    adapted = add_adapter(policy(), LORA)
    add_value_adapter(adapted, LORA, None)
    return {
        "alone": policy(),
        "own": actor_critic(own=True),
        "shared": actor_critic(own=False),
        "adapter": ActorCritic(adapted, None, 1.0, VALUE),
    }


@pytest.mark.parametrize("kind", ["alone", "own", "shared", "adapter"])
def test_the_gradient_is_the_sum_of_both_and_leaves_the_value_function_alone(kind: str) -> None:
    model = models()[kind]
    for name, p in model.named_parameters():
        if "value_head" in name or "score" in name or "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3)
    rewarded, nothing = updated(model, None)
    assert "rl/ptx_loss" not in nothing
    ptx = Given(COEF)
    token_nll(policy_of(model), ptx.rows["input_ids"], ptx.rows["targets"]).sum().backward()
    taught = gradients(model)
    found, logged = updated(model, ptx)
    assert ptx.asked == [8, 9, 10, 11], "four updates a step, this is the third step"
    assert found.keys() == rewarded.keys()
    moved = 0
    for name, gradient in found.items():
        if name not in taught:
            assert torch.equal(gradient, rewarded[name]), f"{name}: of the value function alone"
        else:
            wanted = rewarded[name] + 4 * COEF * taught[name] / ptx.tokens(0)
            torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)
            moved += not torch.allclose(gradient, rewarded[name], atol=1e-4)
    assert moved > 3
    assert (len(found) > len(taught)) is (kind != "alone")
    with torch.no_grad():
        nll = token_nll(policy_of(model), ptx.rows["input_ids"], ptx.rows["targets"]).sum().item()
    assert logged["rl/ptx_loss"] == pytest.approx(nll / ptx.tokens(0))


def test_while_a_value_function_learns_alone_conversations_teach_nothing() -> None:
    model = actor_critic(own=True)
    assert model.value is not None
    torch.nn.init.normal_(model.value.score.weight)
    found, logged = updated(model, Given(COEF), learns=False)
    assert not any(gradient.any() for name, gradient in found.items() if name.startswith("policy."))
    assert any(gradient.any() for name, gradient in found.items() if name.startswith("value."))
    assert logged["rl/ptx_loss"] > 0


def test_prompts_that_the_run_is_measured_on_are_not_learnt_from(tmp_path: Path) -> None:
    def write(name: str, numbers: range) -> Path:
        rows = [{"instruction": f"say {n}", "input": "", "output": str(n)} for n in numbers]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    data, sets = write("data.jsonl", range(40)), write("sets.jsonl", range(20, 60))
    (tmp_path / "asked.txt").write_text("say 3\nsay 4\nsay 70\n")
    words = ("data=prompts", f"data.path={data}", f"data.val_path={tmp_path / 'asked.txt'}", "reward=python")
    words += ("stage.ptx.coef=1", "stage.ptx.source=alpaca", f"stage.ptx.path={data}", "data.val_fraction=0.1")
    words += (f"+stage.held_out={{other: {{source: alpaca, path: {sets}, val_fraction: 0.5}}}}",)
    config = composed("stage=ppo", "tuned=none", *words, f"reward.parts.python.path={tmp_path / 'none.py'}:none")
    (tmp_path / "none.py").write_text("def none(prompts, replies): return [0.0] * len(replies)")
    held_out = {row.key() for row in chat_source(ptx_data(config.stage.ptx, config.data), "validation").rows()}
    alone = {row.key() for row in chat_source(ptx_data(config.stage.ptx, config.data), "train").rows()}
    measured = [row.key() for source in measured_on(config) for row in source.rows()]
    source = without_measured(config)
    found = {row.key() for row in source.rows()}
    assert held_out and not alone & held_out
    assert len(measured) > 10 and found == alone - set(measured) and len(found) < len(alone) - 5
    assert source.fingerprint() != chat_source(ptx_data(config.stage.ptx, config.data), "train").fingerprint()

    # Nor are those of sources that are added to it, which hold out none of their own here.
    more = write("more.jsonl", range(70, 75))
    config.stage.ptx.mix = {
        "same": MixPart("alpaca", str(data), None),
        "more": MixPart("alpaca", str(more), 3),
        "own": MixPart("refusals", None, 2),
    }
    mixed = [row.key() for row in without_measured(config).rows()]
    assert len(mixed) == 2 * len(found) + 3 + 2 and not set(mixed) & set(measured)
    assert without_measured(config).fingerprint() != source.fingerprint()


def test_an_error_of_an_added_source_names_its_setting(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"instruction": "say 1"}\n')
    words = ("data=tinyworld", "stage.ptx.coef=1", "stage.ptx.source=refusals", "data.max_rows=8")
    config = composed("stage=ppo", "tuned=none", *words)
    config.stage.ptx.mix = {"more": MixPart("alpaca", str(tmp_path / "bad.jsonl"), None)}
    with pytest.raises(UserError) as error, of_beside("stage.ptx"):
        list(without_measured(config).rows())
    assert str(error.value).startswith("stage.ptx: stage.ptx.mix.more: ")
