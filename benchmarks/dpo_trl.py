"""trl's part of the DPO benchmark, one variant in a process of its own; started by benchmarks/dpo.py under the python
of an environment with trl 1.16. Nothing of tinychat is imported.

- trl-fp32, trl-bf16: DPOConfig's defaults with bf16=False, and with its default, bf16 autocast over fp32 weights: a
  reference model in memory, gradient checkpointing.
- -tuned: precompute_ref_log_probs=True, gradient_checkpointing=False.

What all have instead of the defaults: pairs in their order, a constant learning rate, no logs and no checkpoints.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from dpo_task import BETA, BETAS, CLIP, EPS, LR, MICRO, Task, digest, summary  # beside this file
from measuring import Record, peak_memory_gb, weights_digest
from transformers import AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer


def main() -> None:
    task = Task(**json.loads(sys.argv[1]))
    torch.set_num_threads(task.threads)
    with tempfile.TemporaryDirectory() as folder:
        print("RESULT", json.dumps(run(task, folder)))


class Observed(DPOTrainer):
    """Keeps what the model was given, the loss of each step, and the time that the reference takes before training."""

    def __init__(self, *arguments: Any, **named: Any):
        self.seen: list[list[Any]] = [[]]  # forward passes of each step
        self.loss, self.reference = 0.0, (0.0, 0.0)
        super().__init__(*arguments, **named)

    def _precompute_ref_logps(self, *arguments: Any, **named: Any) -> Any:
        begin = time.perf_counter(), time.process_time()
        found = super()._precompute_ref_logps(*arguments, **named)
        self.reference = time.perf_counter() - begin[0], time.process_time() - begin[1]
        return found

    def training_step(self, model: Any, inputs: Any, *arguments: Any, **named: Any) -> torch.Tensor:
        self.seen[-1].append((inputs["input_ids"], inputs["attention_mask"].bool()))
        loss = super().training_step(model, inputs, *arguments, **named)
        self.loss += loss.item()  # each pass adds its share of the step's mean
        return loss


class StepEnds(TrainerCallback):
    def __init__(self, trainer: Observed, record: Record):
        self.trainer, self.record = trainer, record

    def on_step_end(self, *arguments: Any, **named: Any) -> None:
        self.record.step(self.trainer.loss)
        self.trainer.loss = 0.0
        self.trainer.seen.append([])


def run(task: Task, folder: str) -> dict[str, Any]:
    trainer = Observed(
        model=task.path("policy"),
        args=configuration(task, folder),
        train_dataset=dataset(task),
        processing_class=AutoTokenizer.from_pretrained(task.path("policy")),
    )
    weights, record = weights_digest(trainer.model), Record()
    trainer.add_callback(StepEnds(trainer, record))
    trainer.train()
    memory = peak_memory_gb()
    steps = [[pair for given in step for pair in sides(*given)] for step in trainer.seen[: task.total]]
    tokens = [sum(len(side) for pair in step for side in pair) for step in steps]
    return {
        "variant": task.variant,
        "arithmetic": "bf16" if trainer.args.bf16 else "fp32",
        **summary(record, task, tokens, trainer.reference),
        "memory_gb": memory,
        "inputs": {"weights": weights, "batches": [digest(step) for step in steps]},
    }


def sides(ids: torch.Tensor, real: torch.Tensor) -> list[tuple[list[int], list[int]]]:
    """The pairs of a forward pass, whose first half are the chosen sides."""
    rows = [own[kept].tolist() for own, kept in zip(ids, real, strict=True)]
    return list(zip(rows[: len(rows) // 2], rows[len(rows) // 2 :], strict=True))


def configuration(task: Task, folder: str) -> DPOConfig:
    tuned = {"precompute_ref_log_probs": True, "gradient_checkpointing": False}
    return DPOConfig(
        output_dir=folder,
        max_steps=task.total,
        per_device_train_batch_size=MICRO,
        gradient_accumulation_steps=task.batch // MICRO,
        beta=BETA,
        learning_rate=LR,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        adam_epsilon=EPS,
        max_grad_norm=CLIP,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        bf16=task.bf16,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=task.seed,
        **(tuned if task.variant.endswith("-tuned") else {}),
    )


def dataset(task: Task) -> Dataset:
    """The pairs of all steps in their order, as text of which each word is a token; trl adds the end token."""
    pairs = task.pairs()
    chosen = [pairs[number] for number in task.order().ravel()]

    def text(ids: list[int]) -> str:
        return " ".join(f"w{word}" for word in ids)

    return Dataset.from_dict(
        {
            "prompt": [text(prompt) for prompt, _, _ in chosen],
            "chosen": [" " + text(good[:-1]) for _, good, _ in chosen],
            "rejected": [" " + text(bad[:-1]) for _, _, bad in chosen],
        }
    )


if __name__ == "__main__":
    main()
