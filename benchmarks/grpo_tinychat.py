"""tinychat's part of the GRPO benchmark, one variant in a process of its own; started by benchmarks/grpo.py.

The functions that stage=grpo calls, in its order, on prompts of tokens.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from grpo_task import BETA, CLIP, LR, MAX_GRAD_NORM, noisy, rewarded  # beside this file
from measuring import peak_memory_gb, weights_digest
from omegaconf import OmegaConf
from ppo_tinychat import CONF, CPU, Loop
from rl_task import BETAS, CHECKED, EPS, MICRO, TEMPERATURE, Clock, Task

from tinychat.config.rollout_stages import GrpoStage
from tinychat.config.schema import Config, DsConfig, OptimConfig, Precision, RewardConfig, RewardPart
from tinychat.data.preferences.prompts import PromptBatch, PromptRow
from tinychat.engine import build_engine
from tinychat.models.vocabulary import vocabulary
from tinychat.rl.rewards import Rewards
from tinychat.rl.rollout import Experience, Rollout, to_experience
from tinychat.runtime.process import keep_freed_memory
from tinychat.runtime.world import World
from tinychat.stages import Context, StopFlag
from tinychat.stages.grpo import algorithm
from tinychat.stages.policy import WHOLE, Models, Reference, Sampler, get_policy
from tinychat.stages.rollouts import step_seed, with_missing_ends
from tinychat.stages.updates import Algorithm, Coefficients, learn
from tinychat.text.tokenizer import load_saved_tokenizer

NOW = Coefficients(BETA, 0.0)


def main() -> None:
    task = Task(**json.loads(sys.argv[1]))
    torch.set_num_threads(task.threads)
    print("RESULT", json.dumps(run(task)))


def run(task: Task) -> dict[str, Any]:
    keep_freed_memory()  # as tinychat/launch/worker.py does on a CPU
    config, parents = configuration(task), {"init_from": task.path("policy")}
    world = World(rank=0, local_rank=0, size=1, device=CPU)
    context = Context(Path(task.work), world, None, dict(parents), StopFlag(Path(task.work)))
    tokenizer = load_saved_tokenizer(task.path("policy"))
    policy = get_policy(config, context, tokenizer)
    weights = weights_digest(policy)
    reference = Reference(config, context, policy, len(tokenizer))
    engine = build_engine(policy, config.optim, config.ds, config.stage, config.precision, world)
    rewards = Rewards(config.reward, context.parents, tokenizer, world, engine.dtype, task.batch)
    sampler = Sampler(config.stage, tokenizer, Models(engine, reference, vocabulary(tokenizer)), rewards)
    parts = {name: part.weight for name, part in config.reward.parts.items()}
    grpo = algorithm(config.stage, sampler.models.vocabulary, parts)
    if task.check:
        return {"variant": task.variant, "weights": weights, **said_of(task, sampler, grpo)}
    sampler.end_ids = ()  # every reply has the full length, as trl's have
    engine.set_lr(1.0)
    loop, clock, tokens = Loop(engine), Clock(), 0
    for step in range(1, task.total + 1):
        clock.begin()
        ids = task.prompts(step - 1)
        rows = [PromptRow([{"role": "user", "content": ""}], str(index)) for index in range(len(ids))]
        batch = PromptBatch(rows, ids, list(range(len(ids))))
        rollout = sampler.sample(batch, step_seed(task.seed, step), task.group)
        tokens += rollout.n_tokens
        clock.lap("rollout")
        sampler.score(rollout)
        experience = sampler.measure(rollout)
        rollout.scores = with_missing_ends(config.stage, rollout)
        grpo.advantages(rollout, experience, BETA)
        clock.lap("scoring")
        learn(config, cast(Any, loop), engine, experience, grpo, step, NOW)
        clock.lap("update")
    memory = peak_memory_gb()
    return {
        "variant": task.variant,
        "arithmetic": {torch.bfloat16: "bf16", torch.float32: "fp32"}[engine.dtype],
        **clock.summary(task),
        "memory_gb": memory,
        "weights": weights,
        "tokens_per_step": tokens // task.total,
        "updates_per_step": loop.updates // task.total,
    }


def configuration(task: Task) -> Config:
    """What the stage's functions read: conf/stage/grpo.yaml, sized as trl's."""
    changes = {
        "lr": LR,
        "beta": BETA,
        "group_size": task.group,
        "rollout_size": task.batch,
        "rollout_batch_size": task.batch,
        "response_length": task.response,
        "temperature": TEMPERATURE,
        "epochs": task.epochs,
        "batch_size": task.batch,
        "micro_batch_size": MICRO,
        "clip_low": CLIP,
        "clip_high": CLIP,
        "grad_clip": MAX_GRAD_NORM,
        "missing_end": "none",
        "max_kl": None,
    }
    own = OmegaConf.load(CONF / "stage" / "grpo.yaml").stage
    stage = OmegaConf.merge(OmegaConf.structured(GrpoStage), own, changes)
    optim = OmegaConf.merge(
        OmegaConf.structured(OptimConfig),
        OmegaConf.load(CONF / "optim" / "adamw.yaml"),
        {"betas": list(BETAS), "eps": EPS, "weight_decay": 0.0},
    )
    part = RewardPart("python", 1.0, f"{Path(__file__).parent / 'grpo_task.py'}:rewarded")
    found = SimpleNamespace(
        stage=OmegaConf.to_object(stage),
        model=SimpleNamespace(arch="gpt2"),
        optim=OmegaConf.to_object(optim),
        ds=DsConfig("none", False, {}),
        peft=WHOLE,
        precision=Precision.auto if task.bf16 else Precision.fp32,
        reward=RewardConfig("python", {"python": part}, False, False, None, None),
        seed=task.seed,
    )
    return cast(Config, found)


def said_of(task: Task, sampler: Sampler, grpo: Algorithm) -> dict[str, Any]:
    """Log-probabilities of the checked sequences, their loss and the norm of its gradient, where the policy that
    sampled and the reference are others (log-probabilities shifted by given numbers)."""
    rows = task.sequences().tolist()
    prompts, replies = [row[: task.prompt] for row in rows], [row[task.prompt :] for row in rows]
    experience = to_experience(prompts, replies, 0)
    logprobs = sampler.forward(inputs_of(experience))["logprobs"][experience.mask].view(CHECKED, task.response)
    scores = torch.tensor(rewarded([], [" ".join(f"w{word}" for word in row) for row in replies]))
    shape, mask = experience.mask.shape, experience.mask
    for name, numbers in zip(("logprobs", "ref_logprobs"), noisy(task, logprobs.numpy()), strict=True):
        experience.fields[name] = torch.zeros(shape).masked_scatter(mask, torch.from_numpy(numbers))
    experience.fields["entropy"] = torch.zeros(shape)
    facts = [PromptRow([{"role": "user", "content": ""}], "")] * CHECKED
    known = torch.ones(CHECKED, dtype=torch.bool)
    rollout = Rollout(facts, prompts, replies, [], [False] * CHECKED, scores, known, scores=scores)
    grpo.advantages(rollout, experience, BETA)
    batch = inputs_of(experience) | experience.fields
    model = sampler.models.engine.model.train()
    loss = grpo.loss(model, batch, 1, NOW)[0] / grpo.count(batch)
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return {"logprobs": logprobs.tolist(), "scores": scores.tolist(), "loss": loss.item(), "gradient": norm.item()}


def inputs_of(experience: Experience) -> dict[str, torch.Tensor]:
    return {"input_ids": experience.input_ids, "targets": experience.targets, "mask": experience.mask}


if __name__ == "__main__":
    main()
