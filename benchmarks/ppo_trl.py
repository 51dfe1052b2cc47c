"""trl's part of the PPO benchmark, one variant in a process of its own; started by benchmarks/ppo.py under the python
of an environment with trl 1.12. Nothing of tinychat is imported.

- trl-fp32: PPOConfig with bf16=False.
- trl-bf16: bf16 autocast as `accelerate launch --mixed_precision bf16` switches it on (PPOTrainer in this trl passes
  PPOConfig's bf16=True to nobody).

Set in place of the defaults: temperature 1 (0.7), a constant learning rate, no logs, samples and checkpoints.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset
from measuring import peak_memory_gb, weights_digest  # beside this file
from rl_task import BETAS, EPS, LR, MICRO, TEMPERATURE, Clock, Task
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback


def main() -> None:
    task = Task(**json.loads(sys.argv[1]))
    torch.set_num_threads(task.threads)
    if task.bf16:
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    with tempfile.TemporaryDirectory() as folder:
        print("RESULT", json.dumps(run(task, folder)))


class StepEnds(TrainerCallback):
    def __init__(self, clock: Clock):
        self.clock = clock

    def on_train_begin(self, *arguments: Any, **named: Any) -> None:
        self.clock.begin()

    def on_step_end(self, *arguments: Any, **named: Any) -> None:
        self.clock.lap("update")
        self.clock.begin()


def run(task: Task, folder: str) -> dict[str, Any]:
    from trl.experimental.ppo import PPOTrainer, ppo_trainer

    policy, reference = (AutoModelForCausalLM.from_pretrained(task.path("policy")) for _ in range(2))
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(task.path("reward"), num_labels=1) for _ in range(2)
    )
    value.score.weight.data.zero_()
    weights = weights_digest(policy)
    tokenizer = AutoTokenizer.from_pretrained(task.path("policy"), padding_side="left")
    if task.check:
        return {"variant": task.variant, "weights": weights, **said_of(task, policy, reward, tokenizer.pad_token_id)}
    clock, seen = Clock(), {"tokens": 0, "updates": 0}
    rows = [ids for step in range(task.total) for ids in task.prompts(step)]
    data = Dataset.from_dict({"input_ids": rows})
    trainer = PPOTrainer(
        args=configuration(task, folder),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=data,
        eval_dataset=data.select(range(1)),
        callbacks=[StepEnds(clock)],
    )
    types = set()
    policy.lm_head.register_forward_hook(lambda _m, _i, out: types.add(str(out.dtype)) if out.requires_grad else None)
    with observed(trainer, ppo_trainer, clock, seen, task):
        trainer.train()
    memory = peak_memory_gb()
    return {
        "variant": task.variant,
        "arithmetic": "bf16" if types == {"torch.bfloat16"} else "fp32",
        **clock.summary(task),
        "memory_gb": memory,
        "weights": weights,
        "tokens_per_step": seen["tokens"] // task.total,
        "updates_per_step": seen["updates"] // task.total,
    }


@contextmanager
def observed(trainer: Any, module: Any, clock: Clock, seen: dict[str, int], task: Task) -> Iterator[None]:
    """Inside, the clock knows when the rollout and the scoring of a step end."""
    generate, accumulate, step = module.batch_generation, trainer.accelerator.accumulate, trainer.optimizer.step
    per_update = task.batch // MICRO

    def timed_generate(*arguments: Any, **named: Any) -> Any:
        found = generate(*arguments, **named)
        clock.lap("rollout")
        seen["tokens"] += found[0].shape[0] * (found[0].shape[1] - task.prompt)
        return found

    def timed_accumulate(*arguments: Any, **named: Any) -> Any:
        if "scoring" not in clock.seconds[-1]:
            clock.lap("scoring")
        return accumulate(*arguments, **named)

    def counted_step(*arguments: Any, **named: Any) -> Any:
        seen["passes"] = seen.get("passes", 0) + 1
        seen["updates"] = seen["passes"] // per_update  # the others are skipped while gradients add up
        return step(*arguments, **named)

    module.batch_generation, trainer.accelerator.accumulate = timed_generate, timed_accumulate
    trainer.optimizer.step = counted_step
    try:
        yield
    finally:
        module.batch_generation = generate


def configuration(task: Task, folder: str) -> Any:
    from trl.experimental.ppo import PPOConfig

    return PPOConfig(
        output_dir=folder,
        total_episodes=task.batch * task.total,
        per_device_train_batch_size=MICRO,
        gradient_accumulation_steps=task.batch // MICRO,
        num_mini_batches=1,
        num_ppo_epochs=task.epochs,
        local_rollout_forward_batch_size=task.batch,
        response_length=task.response,
        temperature=TEMPERATURE,
        learning_rate=LR,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        adam_epsilon=EPS,
        lr_scheduler_type="constant",
        num_sample_generations=0,
        gradient_checkpointing=False,
        bf16=task.bf16,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=task.seed,
    )


@torch.no_grad()
def said_of(task: Task, policy: Any, reward: Any, pad_id: int) -> dict[str, Any]:
    """Log-probabilities and scores of the checked sequences, as PPOTrainer computes them."""
    from trl.experimental.ppo.ppo_trainer import forward
    from trl.experimental.utils import get_reward
    from trl.trainer.utils import selective_log_softmax

    ids = torch.from_numpy(task.sequences())
    logits = forward(policy.eval(), ids, pad_id).logits[:, task.prompt - 1 : -1]
    logprobs = selective_log_softmax(logits / (TEMPERATURE + 1e-7), ids[:, task.prompt :])
    scores = get_reward(reward.eval(), ids, pad_id, task.prompt)[1]
    return {"logprobs": logprobs.tolist(), "scores": scores.tolist()}


if __name__ == "__main__":
    main()
