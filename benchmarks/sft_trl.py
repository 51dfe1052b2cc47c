"""trl's part of the fine-tuning benchmark, one variant in a process of its own; started by benchmarks/sft.py under the
python of an environment with trl 1.16. Nothing of tinychat is imported.

- trl: SFTConfig's defaults: padding, bf16 autocast over fp32 weights, gradient checkpointing.
- trl-tuned: packing on (trl's default strategy, which lays all rows of a batch end to end), no gradient checkpointing.
- trl-tuned-accumulated: the same, a packed row at a time, as many of them to a step.

What all have instead of the defaults: rows in their order, a constant learning rate, no logs and no checkpoints.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from measuring import Record, peak_memory_gb, weights_digest  # beside this file
from sft_task import BETAS, CLIP, EPS, IGNORED, LR, PACKED, Conversation, Task, conversations, read_rows, step_digest
from transformers import AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

Inputs = dict[str, Any]


def main() -> None:
    task = Task(**json.loads(sys.argv[1]))
    torch.set_num_threads(task.threads)
    with tempfile.TemporaryDirectory() as folder:
        print("RESULT", json.dumps(run(task, folder)))


class Observed(SFTTrainer):
    """Keeps what the model was given and the loss of each step."""

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self.seen: list[list[Inputs]] = [[]]  # forward passes of each step
        self.loss = 0.0

    def training_step(self, model: Any, inputs: Inputs, *arguments: Any, **named: Any) -> torch.Tensor:
        self.seen[-1].append({key: value for key, value in inputs.items() if torch.is_tensor(value)})
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
    warnings.simplefilter("always")
    trainer = Observed(
        model=task.model,
        args=configuration(task, folder),
        train_dataset=dataset(task),
        processing_class=AutoTokenizer.from_pretrained(task.model),
    )
    weights, record = weights_digest(trainer.model), Record()
    trainer.add_callback(StepEnds(trainer, record))
    trainer.train()
    memory = peak_memory_gb()
    steps = [[c for inputs in step for c in given(inputs)] for step in trainer.seen[: task.total]]
    tokens = [sum(len(ids) for ids, _ in step) for step in steps]
    return {
        "variant": task.variant,
        "rows": task.rows,
        "arithmetic": "bf16" if trainer.args.bf16 else "fp32",
        **record.summary(task.warmup, tokens, task.threads),
        "memory_gb": memory,
        "threads": torch.get_num_threads(),
        "inputs": {"weights": weights, "batches": [step_digest(step) for step in steps]},
        "attention": trainer.model.config._attn_implementation,
        "leak": leak(trainer.model, trainer.seen[0][0]) if task.fp32 and task.rows == PACKED else None,
    }


def configuration(task: Task, folder: str) -> SFTConfig:
    passes = task.batch if task.variant.endswith("accumulated") else 1
    tuned: dict[str, Any] = {"packing": True, "gradient_checkpointing": False} if task.rows == PACKED else {}
    if task.rows == PACKED:  # packed beforehand as tinychat packs them, so that a step has the same conversations
        tuned["dataset_kwargs"] = {"skip_prepare_dataset": True}
    return SFTConfig(
        output_dir=folder,
        max_steps=task.total,
        max_length=task.length,
        per_device_train_batch_size=task.batch // passes,
        gradient_accumulation_steps=passes,
        learning_rate=LR,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        adam_epsilon=EPS,
        max_grad_norm=CLIP,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **({"bf16": False} if task.fp32 else {}),
        **tuned,
    )


def dataset(task: Task) -> Dataset:
    """The rows of all steps, tokenized: with a mask of the replies, or packed with the sizes of what is in them."""
    rows = read_rows(Path(task.work) / f"{task.rows}.npz")[: task.batch * task.total]
    ids, labels = ([np.concatenate([c[part] for c in row]).tolist() for row in rows] for part in (0, 1))
    if task.rows == PACKED:
        sizes = [[len(ids) for ids, _ in row] for row in rows]
        return Dataset.from_dict({"input_ids": ids, "labels": labels, "seq_lengths": sizes})
    masks = [[int(label != IGNORED) for label in row] for row in labels]
    return Dataset.from_dict({"input_ids": ids, "assistant_masks": masks})


def given(inputs: Inputs) -> list[Conversation]:
    """The conversations of one forward pass, read from the tensors that the model was given."""
    if "attention_mask" in inputs:  # a conversation to a row
        numbers = inputs["attention_mask"]
    else:  # all end to end in one row; positions restart
        numbers = (inputs["position_ids"] == 0).cumsum(1)
    parts = inputs["input_ids"], inputs["labels"], numbers
    return [c for row in zip(*(part.numpy() for part in parts), strict=True) for c in conversations(*row)]


def leak(model: Any, inputs: Inputs) -> float:
    """How much the second conversation's hidden states change (relative to the largest) with the first one's tokens."""
    ids, positions = inputs["input_ids"], inputs["position_ids"]
    first, second = [*(positions[0] == 0).nonzero().flatten().tolist(), ids.shape[1]][1:3]
    other = ids.clone()
    other[:, :first] = ids[:, 1 : first + 1].roll(3, 1)
    with torch.no_grad():
        model.eval()
        one, two = (
            model.base_model(input_ids=some[:, :second], position_ids=positions[:, :second], use_cache=False)[0][
                :, first:
            ]
            for some in (ids, other)
        )
    return float((one - two).abs().max() / one.abs().max())


if __name__ == "__main__":
    main()
