"""tinychat's part of the PPO benchmark, one variant in a process of its own; started by benchmarks/ppo.py.

The functions that stage=ppo calls, in its order, on prompts of tokens.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from measuring import peak_memory_gb, weights_digest  # beside this file
from omegaconf import OmegaConf
from rl_task import BETAS, CHECKED, EPS, LR, MICRO, TEMPERATURE, Clock, Task

from tinychat.config.rollout_stages import PpoStage
from tinychat.config.schema import Config, DsConfig, OptimConfig, Precision, RewardConfig, RewardPart
from tinychat.data.preferences.prompts import PromptBatch, PromptRow
from tinychat.engine import Engine, StepStats, build_engine
from tinychat.models.vocabulary import vocabulary
from tinychat.rl.rewards import Rewards
from tinychat.rl.rollout import to_experience
from tinychat.runtime.process import keep_freed_memory
from tinychat.runtime.world import World
from tinychat.stages import Context, StopFlag
from tinychat.stages.policy import WHOLE, Models, Reference, Sampler
from tinychat.stages.ppo import algorithm, get_actor_critic
from tinychat.stages.rollouts import step_seed, with_missing_ends
from tinychat.stages.updates import Coefficients, learn
from tinychat.text.tokenizer import load_saved_tokenizer

CONF = Path(__file__).resolve().parent.parent / "conf"
CPU = torch.device("cpu")


def main() -> None:
    task = Task(**json.loads(sys.argv[1]))
    torch.set_num_threads(task.threads)
    print("RESULT", json.dumps(run(task)))


class Loop:
    """Of stages.loop.TrainingLoop what `learn` needs; counts."""

    def __init__(self, engine: Engine):
        self.engine, self.tokens, self.updates = engine, 0, 0

    def train(self, micro_batches: Any, loss_fn: Any, tokens: int, samples: int) -> StepStats:
        self.tokens += tokens
        self.updates += 1
        return self.engine.train_step(micro_batches, loss_fn)


def run(task: Task) -> dict[str, Any]:
    keep_freed_memory()  # as tinychat/launch/worker.py does on a CPU
    config, parents = configuration(task), {"init_from": task.path("policy"), "reward.model": task.path("reward")}
    world = World(rank=0, local_rank=0, size=1, device=CPU)
    context = Context(Path(task.work), world, None, dict(parents), StopFlag(Path(task.work)))
    tokenizer = load_saved_tokenizer(task.path("policy"))
    model = get_actor_critic(config, context, tokenizer)
    weights = weights_digest(model.policy)
    reference = Reference(config, context, model.policy, len(tokenizer))
    engine = build_engine(model, config.optim, config.ds, config.stage, config.precision, world)
    rewards = Rewards(config.reward, context.parents, tokenizer, world, engine.dtype, task.batch)
    sampler = Sampler(config.stage, tokenizer, Models(engine, reference, vocabulary(tokenizer)), rewards)
    ppo = algorithm(config.stage, sampler.models.vocabulary)
    if task.check:
        return {"variant": task.variant, "weights": weights, **said_of(task, sampler, rewards)}
    sampler.end_ids = ()  # every reply has the full length, as PPOTrainer's have
    engine.set_lr(1.0)
    loop, clock, now = Loop(engine), Clock(), Coefficients(config.stage.beta, 0.0)
    for step in range(1, task.total + 1):
        clock.begin()
        ids = task.prompts(step - 1)
        rows = [PromptRow([{"role": "user", "content": ""}], str(index)) for index in range(len(ids))]
        rollout = sampler.sample(PromptBatch(rows, ids, list(range(len(ids)))), step_seed(task.seed, step))
        clock.lap("rollout")
        experience = sampler.measure(rollout)
        sampler.score(rollout)
        rollout.scores = with_missing_ends(config.stage, rollout)
        ppo.advantages(rollout, experience, config.stage.beta)
        clock.lap("scoring")
        learn(config, cast(Any, loop), engine, experience, ppo, step, now)
        clock.lap("update")
    memory = peak_memory_gb()
    return {
        "variant": task.variant,
        "arithmetic": {torch.bfloat16: "bf16", torch.float32: "fp32"}[engine.dtype],
        **clock.summary(task),
        "memory_gb": memory,
        "weights": weights,
        "tokens_per_step": loop.tokens // task.epochs // task.total,
        "updates_per_step": loop.updates // task.total,
    }


def configuration(task: Task) -> Config:
    """What the stage's functions read: conf/stage/ppo.yaml, sized as trl's."""
    changes = {
        "lr": LR,
        "rollout_size": task.batch,
        "rollout_batch_size": task.batch,
        "response_length": task.response,
        "temperature": TEMPERATURE,
        "epochs": task.epochs,
        "batch_size": task.batch,
        "micro_batch_size": MICRO,
        "max_kl": None,
        "value": "shared" if task.shared else "own",
    }
    stage = OmegaConf.merge(OmegaConf.structured(PpoStage), OmegaConf.load(CONF / "stage" / "ppo.yaml").stage, changes)
    optim = OmegaConf.merge(
        OmegaConf.structured(OptimConfig),
        OmegaConf.load(CONF / "optim" / "adamw.yaml"),
        {"betas": list(BETAS), "eps": EPS, "weight_decay": 0.0},
    )
    found = SimpleNamespace(
        stage=OmegaConf.to_object(stage),
        model=SimpleNamespace(arch="gpt2"),
        optim=OmegaConf.to_object(optim),
        ds=DsConfig("none", False, {}),
        peft=WHOLE,
        precision=Precision.auto if task.bf16 else Precision.fp32,
        reward=RewardConfig(
            "model", {"model": RewardPart("model", 1.0, task.path("reward"))}, False, False, None, None
        ),
        seed=task.seed,
    )
    return cast(Config, found)


def said_of(task: Task, sampler: Sampler, rewards: Rewards) -> dict[str, Any]:
    """Log-probabilities and scores of the checked sequences, as a rollout is measured."""
    rows = task.sequences().tolist()
    prompts, responses = [row[: task.prompt] for row in rows], [row[task.prompt :] for row in rows]
    experience = to_experience(prompts, responses, 0)
    parts = {"input_ids": experience.input_ids, "targets": experience.targets, "mask": experience.mask}
    logprobs = sampler.forward(parts)["logprobs"][experience.mask].view(CHECKED, task.response)
    return {"logprobs": logprobs.tolist(), "scores": rewards.scorers["model"].score_ids(rows)}


if __name__ == "__main__":
    main()
