"""Rollouts: sampled replies as tensors, the same for any number of ranks and any batch size."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.rl_models import EOS, PAD, PROMPTS, actor_critic, batch
from tinychat.models.actor_critic import policy_and_values
from tinychat.models.generation.decode import DecodeOptions
from tinychat.models.logprobs import IGNORED
from tinychat.rl.rollout import measure, minibatches, sample_replies, to_experience, write_rollout
from tinychat.runs.rollouts import path_of, read
from tinychat.runtime.world import World

ALONE = World(0, 0, 1, torch.device("cpu"))


class OneOf(World):
    """One of two ranks; what the other says is given."""

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        return rows


def sample(model, world=ALONE, batch_size=2, prompts=PROMPTS, seed=3, group=1):
    options = DecodeOptions(6, (EOS,), seed=seed, group=group)
    return sample_replies(model.policy, batch(prompts), options, PAD, batch_size, world, None)


def test_rows_hold_prompt_and_response() -> None:
    rows = to_experience([[5, 6, 7], [8]], [[9, 1], [2, 3, 4]], PAD)
    assert rows.input_ids.shape == (2, 8)
    assert rows.input_ids[0].tolist() == [5, 6, 7, 9, 1, PAD, PAD, PAD]
    assert rows.targets[0].tolist() == [IGNORED, IGNORED, 9, 1, *[IGNORED] * 4]
    assert rows.targets[1].tolist() == [2, 3, 4, *[IGNORED] * 5]
    assert rows.mask.sum(1).tolist() == [2, 3]
    few = rows.rows(np.array([1]))
    assert few["input_ids"].shape == (1, 8)
    assert few["targets"].tolist() == [rows.targets[1].tolist()]


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
@pytest.mark.parametrize("lora", [False, True])
def test_the_ratio_is_one_under_left_padding_and_lora(arch: str, lora: bool) -> None:
    """Sampling pads prompts on the left and keeps a cache; the update reads whole rows padded on the right."""
    model = actor_critic(arch, lora=lora)
    if lora:
        for name, p in model.policy.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.3)
    rollout = sample(model, batch_size=4)
    rows = to_experience(rollout.prompts, rollout.responses, PAD)
    model.train()
    logprobs = policy_and_values(model, rows.input_ids, rows.targets, 1.0)[0]
    recorded = torch.cat([torch.tensor(part) for part in rollout.sampled])
    torch.testing.assert_close(logprobs[rows.mask], recorded, atol=1e-5, rtol=0)


def test_ranks_and_batches_do_not_change_a_rollout() -> None:
    model = actor_critic()
    whole = sample(model, batch_size=4)
    assert sample(model, batch_size=1).responses == whole.responses
    halves = [sample(model, OneOf(rank, rank, 2, torch.device("cpu"))) for rank in range(2)]
    assert halves[0].responses + halves[1].responses == whole.responses
    assert halves[0].sampled + halves[1].sampled == whole.sampled
    assert halves[0].ended + halves[1].ended == whole.ended
    assert sample(model, seed=4).responses != whole.responses
    assert all(EOS not in response[:-1] for response in whole.responses)


@pytest.mark.parametrize("group", [2, 4])
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:3], PROMPTS[2:3]])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_groups_replies_stand_side_by_side(group: int, prompts: list[list[int]], ranks: int) -> None:
    """They are those to the repeated prompts, on ranks that share a group, too."""
    model = actor_critic()
    wanted = sample(model, batch_size=4, prompts=[prompt for prompt in prompts for _ in range(group)])
    parts = [
        sample(model, OneOf(rank, rank, ranks, torch.device("cpu")), 3, prompts, group=group) for rank in range(ranks)
    ]
    for part in parts:
        assert part.prompts == wanted.prompts
        assert [row.place for row in part.rows] == [f"row {i}" for i in range(len(prompts)) for _ in range(group)]
    assert [response for part in parts for response in part.responses] == wanted.responses
    assert [end for part in parts for end in part.ended] == wanted.ended
    for ours, theirs in zip([row for part in parts for row in part.sampled], wanted.sampled, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_measured_numbers_find_their_rows() -> None:
    """Rows are measured sorted by length, a few at a time, and come back where they were."""
    rows = to_experience(PROMPTS, [[3] * 2, [4] * 9, [5] * 5, [6] * 30], PAD)

    def forward(part):
        assert part["input_ids"].shape == part["mask"].shape
        return {"logprobs": part["targets"].float() / 100 + part["input_ids"][:, :1]}

    measure(rows, forward, ["logprobs"], 3, ALONE)
    wanted = (rows.targets.float() / 100 + rows.input_ids[:, :1]) * rows.mask
    torch.testing.assert_close(rows.fields["logprobs"], wanted)


def test_each_epoch_learns_from_each_reply_once() -> None:
    epochs = [minibatches(12, 4, seed=1, step=5, epoch=epoch) for epoch in range(3)]
    for parts in epochs:
        assert sorted(np.concatenate(parts).tolist()) == list(range(12))
        assert [len(part) for part in parts] == [4, 4, 4]
    assert epochs[0][0].tolist() != epochs[1][0].tolist()
    again = minibatches(12, 4, seed=1, step=5, epoch=2)
    assert [part.tolist() for part in again] == [part.tolist() for part in epochs[2]]
    assert minibatches(12, 4, seed=1, step=6, epoch=2)[0].tolist() != again[0].tolist()


def test_a_rollout_on_disk_can_be_replayed(tmp_path: Path) -> None:
    model = actor_critic()
    rollout = sample(model)
    rows = to_experience(rollout.prompts, rollout.responses, PAD)
    rollout.scores = torch.arange(4.0)
    rollout.parts = {"model": [0.5, 1.5, 2.5, math.nan]}
    rows.fields["ref_logprobs"] = rows.mask * -1.0
    rows.fields["logprobs"] = policy_and_values(model, rows.input_ids, rows.targets, 1.0)[0].detach()
    write_rollout(path_of(tmp_path, 1), rollout, rows, {"seed": 3, "temperature": 1.0})
    facts, *lines = map(json.loads, (tmp_path / "rollouts" / "step-000001.jsonl").read_text().splitlines())
    assert facts == {"seed": 3, "temperature": 1.0}
    assert [line["response"] for line in lines] == rollout.responses
    assert [line["score"] for line in lines] == [0, 1, 2, 3]
    assert all(len(line["logprobs"]) == len(line["response"]) for line in lines)
    for name, numbers in {**rows.fields, "sampled": rollout.sampled}.items():
        for index, line in enumerate(lines):
            wanted = numbers[index] if name == "sampled" else numbers[index][rows.mask[index]].tolist()
            assert line[name] == pytest.approx(wanted, rel=1e-6), name
    replayed = sample(model, seed=facts["seed"])
    assert replayed.responses == [line["response"] for line in lines]
    found = read(tmp_path, 1)
    assert found.columns == ["logprob", "kl"] and found.orders == ["reward", "kl", "length", "model"]
    for index, reply in enumerate(found.replies):
        assert (list(reply.prompt), list(reply.response)) == (rollout.prompts[index], rollout.responses[index])
        assert reply.of("reward") == rollout.scores[index]
        assert reply.of("model") == pytest.approx(rollout.parts["model"][index], nan_ok=True)
        assert reply.of("kl") == pytest.approx(rows.kl()[index].sum().item(), rel=1e-4)
        assert reply.of("length") == rows.mask[index].sum()
