"""RLHF with PPO in one file, to be read from top to bottom.

    python examples/ppo_loop.py                                      # on what `make run` has left in outputs/
    python examples/ppo_loop.py --policy FOLDER --reward FOLDER      # or on a policy and a reward model of yours

A policy answers requests, a reward model scores the answers, and the policy makes those likelier that scored better
than expected, without moving far from what it was. `stage=ppo` takes the same steps with the same functions, and has
what a long run needs beside: checkpoints, several processes, schedules, self-checks, alarms, evaluation.

Shapes stand at the end of names: N replies of a rollout, B replies of an update, T columns. A row is a prompt and its
reply, padded on the right; the mask is true where the next token belongs to the reply.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinychat.config.schema import DsConfig, OptimConfig, OptimKind, PeftConfig, PeftKind, Precision
from tinychat.config.stages import TrainLoop
from tinychat.data.preferences.tokens import SeededOrder
from tinychat.engine import Batch, build_engine, evaluation_engine
from tinychat.errors import UserError
from tinychat.models.actor_critic import ActorCritic, policy_and_values
from tinychat.models.checkpoints import load_model
from tinychat.models.generation.decode import DecodeOptions, decode
from tinychat.models.logprobs import token_nll
from tinychat.models.reward import start_reward_model
from tinychat.models.scorer import Scorer
from tinychat.models.vocabulary import vocabulary
from tinychat.rl.advantages import apply_eos_penalty, gae, per_token_rewards, whiten
from tinychat.rl.losses import ppo_policy_loss, value_loss
from tinychat.rl.rollout import measure, minibatches, to_experience
from tinychat.runs import folders
from tinychat.runtime.world import World
from tinychat.text.chat_template import encode_prompts, end_ids, reply_text
from tinychat.text.tokenizer import load_saved_tokenizer
from tinychat.tinyworld.preferences import requests

SEED = 0
STEPS = 12  # rollouts
ROLLOUT = 128  # replies per rollout (N)
BATCH = 64  # replies per update (B)
EPOCHS = 3  # times each reply is learnt from
RESPONSE = 40  # tokens of a reply at most
TEMPERATURE = 1.0  # divides the logits, wherever probabilities are computed
LR = 6e-4  # for 1.4 million parameters; some 1e-6 for pretrained models of a billion
BETA = 0.5  # weight of the KL penalty: how dearly the policy pays for leaving its start
EOS_PENALTY = 1.0  # taken from the score of a reply that did not end in time
GAMMA, LAM = 1.0, 0.95  # discount of later rewards; how far advantages trust rewards (1) or the value function (0)
CLIP, VALUE_CLIP, VALUE_COEF = 0.2, 0.2, 0.5
PRECISION = Precision.auto  # bf16 where the machine has it
HELD_OUT, SHOWN = 200, 5  # requests that are answered before and after; how many of those are printed

Conversation = list[dict[str, str]]  # [{"role": "user", "content": ...}]
NO_ADAPTER = PeftConfig("none", PeftKind.none, None, None, None, None)


def ppo(policy: str, reward: str, asked: list[Conversation], held_out: list[Conversation]) -> ActorCritic:
    """Train the policy of a checkpoint folder against a reward model's; returns it with its value function."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    world = World(rank=0, local_rank=0, size=1, device=device)
    tokenizer = load_saved_tokenizer(policy)
    # Only what the tokenizer knows is drawn: a model may have more rows than there are tokens.
    words, ends, pad = vocabulary(tokenizer), end_ids(tokenizer), tokenizer.pad_token_id
    prompts = encode_prompts(tokenizer, asked)

    # Four models. Two learn: the policy, and the value function, which starts as the reward model with its head at 0
    # and guesses, before each token, what the reply will be worth. Two stay as they are: the reference, which is the
    # policy before training, and the reward model. Dropout is off in all: a ratio of probabilities has to be 1 before
    # anything is learnt.
    model = ActorCritic(load_model(policy, dropout=0.0), start_reward_model(reward, NO_ADAPTER, None, dropout=0.0))
    loop = TrainLoop(lr=LR, batch_size=BATCH, micro_batch_size=BATCH, grad_clip=1.0, activation_checkpointing=False)
    optim = OptimConfig("adamw", OptimKind.adamw, [0.9, 0.95], 1e-5, 0.0, None, None, None)
    engine = build_engine(model, optim, DsConfig("none", False, {}), loop, PRECISION, world)
    reference = evaluation_engine(load_model(policy, dropout=0.0), PRECISION, world)
    scorer = Scorer(reward, device, engine.dtype, ROLLOUT)
    scorer.check_tokenizer(tokenizer, policy)  # it reads the policy's tokens as they are

    def answers() -> list[str]:
        """The likeliest reply to each of the held-out requests."""
        greedy = DecodeOptions(RESPONSE, ends, temperature=0.0, vocabulary=words)
        with engine.generation() as whole:
            done = decode(whole.policy, encode_prompts(tokenizer, held_out), greedy, pad, ROLLOUT, engine.dtype)
        return [reply_text(tokenizer, reply) for reply in done.responses]

    def measured(batch: Batch) -> Batch:
        """What is known of each reply token before learning: its log-probability under the policy and under the
        reference, and the value."""
        ids_BT, targets_BT = batch["input_ids"], batch["targets"]
        with engine.inference() as whole, reference.inference() as before:
            logprobs_BT, values_BT, _ = policy_and_values(whole, ids_BT, targets_BT, TEMPERATURE, words)
            assert values_BT is not None  # ActorCritic has a value function
            ref_BT = -token_nll(before, ids_BT, targets_BT, temperature=TEMPERATURE, exact=True, vocabulary=words)
        return {"logprobs": logprobs_BT, "ref_logprobs": ref_BT, "values": values_BT}

    def loss(model: Any, batch: Batch) -> Tensor:
        """The mean over an update's reply tokens: each weighs alike, whichever reply it stands in."""
        mask_BT = batch["mask"]
        logprobs_BT, values_BT, _ = policy_and_values(model, batch["input_ids"], batch["targets"], TEMPERATURE, words)
        # ratio = exp(new log-probability - old one): 1 in the first update. A token with a positive advantage becomes
        # likelier, but beyond a ratio of 1.2 nothing more is gained: the advantages are those of the old policy, and
        # say little of one far from it. Likewise below 0.8 where the advantage is negative.
        policy_BT, _ = ppo_policy_loss(logprobs_BT, batch["logprobs"], batch["advantages"], mask_BT, CLIP, CLIP)
        assert values_BT is not None
        value_BT, _ = value_loss(values_BT, batch["values"], batch["returns"], mask_BT, VALUE_CLIP)
        return (policy_BT.sum() + VALUE_COEF * value_BT.sum()) / mask_BT.sum()

    at_first = answers()
    order = SeededOrder(len(prompts), SEED)  # each prompt once an epoch, shuffled
    for step in range(1, STEPS + 1):
        began = time.perf_counter()

        # 1. Rollout. Sampled from the whole distribution: with top-k or top-p the probabilities below would be those of
        # another policy than the one that wrote the replies.
        chosen = [prompts[index] for index in order.items(step - 1, ROLLOUT)]
        options = DecodeOptions(RESPONSE, ends, TEMPERATURE, SEED * 1_000_003 + step, words)
        with engine.generation() as whole:
            written = decode(whole.policy, chosen, options, pad, ROLLOUT, engine.dtype)
        replies = to_experience(chosen, written.responses, pad)
        mask_NT = replies.mask

        # 2. Measure. Not the log-probabilities recorded while sampling, but those of a forward pass as the updates make
        # it: in bf16 the two differ by rounding, and the ratio would not be 1 at first.
        measure(replies, measured, ("logprobs", "ref_logprobs", "values"), ROLLOUT, world)

        # 3. Score. One number a reply. Of a reply that did not end nobody knows what it would have become: it pays.
        sequences = [prompt + reply for prompt, reply in zip(chosen, written.responses, strict=True)]
        reward_N = torch.tensor(scorer.score_ids(sequences))
        scores_N = apply_eos_penalty(reward_N, torch.tensor(written.ended), "subtract", EOS_PENALTY)

        # 4. Advantages. The reward of a token is -beta times its KL (estimated by log policy - log reference), that of
        # the last one has the score on top. How much better a token turned out than the value function had guessed, is
        # its advantage; the returns are what the value function should have said.
        kl_NT = replies.kl("k1")
        rewards_NT = per_token_rewards(scores_N, kl_NT, BETA, mask_NT)
        advantages_NT, returns_NT = gae(rewards_NT, replies.fields["values"], mask_NT, GAMMA, LAM)
        # To mean 0 and standard deviation 1 over the rollout: the size of a step does not depend on the rewards' unit.
        replies.fields |= {"advantages": whiten(advantages_NT, mask_NT), "returns": returns_NT}

        # 5. Learn. Each reply EPOCHS times, in a new order each time.
        for epoch in range(EPOCHS):
            for rows in minibatches(ROLLOUT, BATCH, SEED, step, epoch):
                batch = {name: part.to(device) for name, part in replies.rows(rows).items()}
                done = engine.train_step([batch], loss)

        print(
            f"step {step:3d} | reward {reward_N.mean():6.3f} | KL {kl_NT.sum() / ROLLOUT:6.3f} nats a reply | ended "
            f"{sum(written.ended) / ROLLOUT:4.0%} | loss {done.loss:7.4f} | {time.perf_counter() - began:.1f} s",
            flush=True,
        )

    both = [pair for pair in zip(held_out, at_first, answers(), strict=True) if pair[1] != pair[2]]
    print(f"\n{len(both)} of {len(held_out)} held-out requests get another reply than before. The first of them:")
    for messages, before, after in both[:SHOWN]:
        print(f"\nasked:  {messages[-1]['content']}\nbefore: {before}\nafter:  {after}")
    return model


def newest(stage: str) -> str:
    """The checkpoint of the newest finished run of a stage in outputs/."""
    runs = folders.matching_runs(Path("outputs"), "tinychat", lambda run: run["stage"]["name"] == stage, finished=True)
    found = folders.first_usable(runs)
    if found is None:
        raise UserError(f"outputs/ has no finished run of stage={stage}: `make run` makes one, or name a folder")
    return str(found)


def main() -> None:
    parser = argparse.ArgumentParser(description="PPO-RLHF in one file")
    parser.add_argument("--policy", help="checkpoint or run folder of a fine-tuned model; the newest stage=sft run")
    parser.add_argument("--reward", help="of a reward model with the same tokenizer; the newest stage=reward run")
    given = parser.parse_args()
    policy, reward = (
        str(folders.resolve_checkpoint(folder)) if folder else newest(stage)
        for folder, stage in ((given.policy, "sft"), (given.reward, "reward"))
    )
    print(f"policy: {policy}\nreward: {reward}")
    asked = [request.messages for request in requests(1, "train", STEPS * ROLLOUT)]
    held_out = [request.messages for request in requests(1, "validation", HELD_OUT)]
    ppo(policy, reward, asked, held_out)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
