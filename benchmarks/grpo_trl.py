"""trl's part of the GRPO benchmark, one variant in a process of its own; started by benchmarks/grpo.py under the python
of an environment with trl 1.16. Nothing of tinychat is imported.

- trl-fp32, trl-bf16: GRPOConfig's defaults with bf16=False, and with its default, bf16 autocast over fp32 weights.
- -tuned: gradient_checkpointing=False in place of trl's default.

Set in place of the defaults: loss_type grpo (dapo), beta 0.05 (0) with use_bias_correction_kl (the KL loss whose
gradient is that of the KL), scale_rewards none (group), as stage=grpo has them; a constant learning rate, prompts in
order, no logs and checkpoints.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset
from grpo_task import BETA, CLIP, LR, MAX_GRAD_NORM, noisy, rewarded  # beside this file
from measuring import peak_memory_gb, weights_digest
from rl_task import BETAS, EPS, MICRO, TEMPERATURE, Clock, Task
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


def main() -> None:
    task = Task(**json.loads(sys.argv[1]))
    torch.set_num_threads(task.threads)
    with tempfile.TemporaryDirectory() as folder:
        print("RESULT", json.dumps(run(task, folder)))


class StepEnds(TrainerCallback):
    def __init__(self, clock: Clock):
        self.clock, self.updates = clock, 0

    def on_train_begin(self, *arguments: Any, **named: Any) -> None:
        self.clock.begin()

    def on_step_end(self, *arguments: Any, **named: Any) -> None:
        self.updates += 1
        self.clock.lap("update")
        self.clock.begin()


def run(task: Task, folder: str) -> dict[str, Any]:
    policy = AutoModelForCausalLM.from_pretrained(task.path("policy"))
    weights = weights_digest(policy)
    tokenizer = AutoTokenizer.from_pretrained(task.path("policy"), padding_side="left")
    clock = Clock()
    ends, seen = StepEnds(clock), {"tokens": 0}
    texts = [" ".join(f"w{i}" for i in ids) for step in range(task.total) for ids in task.prompts(step)]
    trainer = GRPOTrainer(
        model=policy,
        reward_funcs=[score],
        args=configuration(task, folder),
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=tokenizer,
        callbacks=[ends],
    )
    if task.check:
        return {"variant": task.variant, "weights": weights, **said_of(task, trainer)}
    types = set()
    policy.transformer.h[0].mlp.c_fc.register_forward_hook(
        lambda _m, _i, out: types.add(str(out.dtype)) if out.requires_grad else None
    )
    with observed(trainer, clock, seen, task):
        trainer.train()
    memory = peak_memory_gb()
    return {
        "variant": task.variant,
        "arithmetic": "bf16" if types == {"torch.bfloat16"} else "fp32",
        **clock.summary(task),
        "memory_gb": memory,
        "weights": weights,
        "tokens_per_step": seen["tokens"] // task.total,
        "updates_per_step": ends.updates // task.total,
    }


def score(prompts: list[str], completions: list[str], **_named: Any) -> list[float]:
    return rewarded(prompts, completions)


@contextmanager
def observed(trainer: Any, clock: Clock, seen: dict[str, int], task: Task) -> Iterator[None]:
    """Inside, the clock knows when the rollout and the scoring of a step end."""
    generate, score = trainer._generate, trainer._generate_and_score_completions

    def timed_generate(prompts: Any) -> Any:
        wanted = [ids for ids in task.prompts(len(clock.seconds) - 1) for _ in range(task.group)]
        found = generate(prompts)
        if list(map(list, found[0])) != wanted:
            raise SystemExit("the trainer has other prompts than the benchmark gave it")
        seen["tokens"] += sum(map(len, found[1]))
        clock.lap("rollout")
        return found

    def timed_score(inputs: Any) -> Any:
        found = score(inputs)
        clock.lap("scoring")
        return found

    trainer._generate, trainer._generate_and_score_completions = timed_generate, timed_score
    yield


def configuration(task: Task, folder: str) -> GRPOConfig:
    return GRPOConfig(
        output_dir=folder,
        max_steps=task.total,
        per_device_train_batch_size=MICRO,
        gradient_accumulation_steps=task.batch // MICRO,
        num_generations=task.group,
        max_completion_length=task.response,
        generation_kwargs={"min_new_tokens": task.response},  # nothing ends a reply
        temperature=TEMPERATURE,
        num_iterations=task.epochs,
        loss_type="grpo",
        beta=BETA,
        use_bias_correction_kl=True,
        epsilon=CLIP,
        scale_rewards="none",
        learning_rate=LR,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        adam_epsilon=EPS,
        max_grad_norm=MAX_GRAD_NORM,
        lr_scheduler_type="constant",
        shuffle_dataset=False,
        gradient_checkpointing=not task.variant.endswith("-tuned"),
        bf16=task.bf16,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=task.seed,
    )


def said_of(task: Task, trainer: Any) -> dict[str, Any]:
    """Log-probabilities of the checked sequences, their loss and the norm of its gradient, as GRPOTrainer computes them
    where the policy that sampled and the reference are others (log-probabilities shifted by given numbers)."""
    ids = torch.from_numpy(task.sequences())
    prompts, replies = ids[:, : task.prompt], ids[:, task.prompt :]
    model = trainer.model.eval()
    with torch.no_grad():
        seen = torch.ones_like(ids)
        logprobs = trainer._get_per_token_logps_and_entropies(model, ids, seen, task.response)[0].float()
    old, reference = (torch.from_numpy(noise) for noise in noisy(task, logprobs.numpy()))
    texts = [" ".join(f"w{word}" for word in row) for row in replies.tolist()]
    scores = torch.tensor(rewarded([], texts))
    inputs = {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": replies,
        "completion_mask": torch.ones_like(replies),
        "advantages": scores - scores.mean(),  # the checked sequences are one group
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
        "num_items_in_batch": torch.tensor(replies.numel()),
    }
    trainer.current_gradient_accumulation_steps = 1
    model.train()
    loss = trainer.compute_loss(model, inputs)
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    return {"logprobs": logprobs.tolist(), "scores": scores.tolist(), "loss": loss.item(), "gradient": norm.item()}


if __name__ == "__main__":
    main()
