"""One variant of the pretraining benchmark in a process of its own; started by benchmarks/pretrain.py.

Every process builds the same weights and the same batches from one seed, and takes the same steps: mean loss over all
targets, gradient norm clipped at 1, AdamW with the transformers Trainer's default rates (tinychat-muon: Muon as in
conf/optim/muon.yaml). It prints one line, RESULT and a JSON object.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measuring import Record, peak_memory_gb, weights_digest  # beside this file
from omegaconf import OmegaConf
from profiling import profiled
from transformers.activations import ACT2FN

from tinychat.config.schema import DsConfig, ModelConfig, OptimConfig, Precision
from tinychat.config.stages import PretrainStage
from tinychat.engine import Engine, build_engine, resolve_precision
from tinychat.models.build import build_model, matmul_rate, model_vocab_size, training_flops_per_token
from tinychat.models.logprobs import IGNORED, token_nll
from tinychat.runtime.process import keep_freed_memory
from tinychat.runtime.world import World

CONF = Path(__file__).resolve().parent.parent / "conf"
GPT2_ENTRIES = 50_257  # of GPT-2's vocabulary
ADDED_TOKENS = 3  # pad and chat tokens of tokenizer=gpt2; 64 then divides the number of rows
SMALL = {"n_layer": 2, "n_embd": 64, "n_head": 2, "context_length": 128}
SMALL_ENTRIES = 1021
TRAINER_LR, TRAINER_BETAS, EPS, CLIP = 5e-5, (0.9, 0.999), 1e-8, 1.0  # transformers.TrainingArguments
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Task:
    """What one process does."""

    variant: str
    small: bool
    batch: int  # sequences a step
    length: int  # tokens a sequence
    warmup: int  # steps that are not timed
    steps: int  # timed steps
    threads: int
    seed: int
    fp32: bool  # instead of the variant's own arithmetic, to compare losses closely
    trainer_activation: str  # transformers' name of the trainer's GELU
    profile: bool = False

    @property
    def total(self) -> int:
        return self.warmup + self.steps

    @property
    def precision(self) -> Precision:
        return Precision.fp32 if self.fp32 else Precision.auto


# ------------------------------------------------------------------------------------------- the same work for all


def model_config(small: bool) -> ModelConfig:
    """model=gpt6x512, or a tiny one of its shape."""
    node = OmegaConf.merge(OmegaConf.structured(ModelConfig), OmegaConf.load(CONF / "model" / "gpt6x512.yaml"))
    return OmegaConf.to_object(OmegaConf.merge(node, SMALL if small else {}))  # type: ignore[return-value]


def vocabulary(task: Task) -> tuple[int, int]:
    """(entries that occur, rows of the model's embedding)."""
    entries = SMALL_ENTRIES if task.small else GPT2_ENTRIES
    return entries, model_vocab_size(model_config(task.small), entries + ADDED_TOKENS)


def shape_numbers(task: Task) -> dict[str, int]:
    """Rows of the embedding, and the pad and end-of-text tokens in it."""
    entries, rows = vocabulary(task)
    return {"vocab_size": rows, "pad_token_id": entries, "eos_token_id": entries - 1}


@lru_cache(maxsize=1)
def zipf(entries: int) -> np.ndarray:
    """Cumulative probabilities of a vocabulary whose k-th entry is 1/k as frequent as the first."""
    weights = np.cumsum(1 / np.arange(1, entries + 1))
    return weights / weights[-1]


@lru_cache(maxsize=2)
def batch(task: Task, step: int) -> dict[str, torch.Tensor]:
    """The step's `input_ids` and `labels`, (batch, length); labels are the ids, as transformers models take them.

    The first token of a row follows nothing and is no target. Its label says so because the Trainer divides the loss of
    a GPT-2 by the number of all labels, which would make it (length - 1) / length of the others'.
    """
    drawn = np.random.Generator(np.random.PCG64([task.seed, step])).random((task.batch, task.length))
    ids = torch.from_numpy(np.searchsorted(zipf(vocabulary(task)[0]), drawn))
    labels = ids.clone()
    labels[:, 0] = IGNORED
    return {"input_ids": ids, "labels": labels}


def shifted(labels: torch.Tensor) -> torch.Tensor:
    """targets[b, t] follows input_ids[b, t]: what transformers models make of labels inside. The last has none."""
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)], dim=1)


def optim_config(name: str) -> OptimConfig:
    """conf/optim/NAME.yaml; AdamW as transformers' Trainer has it."""
    node = OmegaConf.merge(
        OmegaConf.structured(OptimConfig), OmegaConf.load(CONF / "optim" / f"{name}.yaml"), {"eps": EPS}
    )
    if name == "adamw":
        node = OmegaConf.merge(node, {"betas": list(TRAINER_BETAS), "weight_decay": 0.0})
    return OmegaConf.to_object(node)  # type: ignore[return-value]


def start_model(task: Task, activation: str | None = None) -> Any:
    """tinychat's model with its first weights, a plain transformers GPT2LMHeadModel. `activation` is transformers' name
    of another form of its GELU."""
    torch.manual_seed(task.seed)
    model = build_model(model_config(task.small), **shape_numbers(task))
    if activation:
        model.config.activation_function = activation
        for block in model.transformer.h:
            block.mlp.act = ACT2FN[activation]
    return model


# ------------------------------------------------------------------------------------------------------- variants


def tinychat(task: Task, record: Record, optimizer: str = "adamw") -> Any:
    """tinychat's engine and loss, as stages/pretrain.py calls them."""
    keep_freed_memory()  # as tinychat/launch/worker.py does on a CPU
    stage = PretrainStage(
        name="pretrain",
        lr=TRAINER_LR,
        batch_size=task.batch,
        micro_batch_size=task.batch,
        grad_clip=CLIP,
        activation_checkpointing=False,
    )
    model = start_model(task)
    record_inputs(task, model)
    world = World(rank=0, local_rank=0, size=1, device=CPU)
    engine: Engine = build_engine(
        model,
        optim_config(optimizer),
        DsConfig("none", False, {}),
        stage,
        task.precision,
        world,
    )

    def step(index: int) -> None:
        rows = batch(task, index)
        targets = shifted(rows["labels"])
        count = int((targets != IGNORED).sum())
        engine.set_lr(1.0)
        done = engine.train_step(
            [{"input_ids": rows["input_ids"], "targets": targets}],
            lambda model, part: token_nll(model, **part, for_sum=True).sum() / count,
        )
        record.step(done.loss)

    if task.profile:
        return model, profiled(step, task.warmup, task.total)
    for index in range(task.total):
        step(index)
    return model, None


def tinychat_muon(task: Task, record: Record) -> Any:
    """The same with Muon on the hidden matrices."""
    return tinychat(task, record, "muon")


def trainer(task: Task, record: Record) -> Any:
    """transformers.Trainer with its defaults (fp32 on a CPU); data in order, no logs, no checkpoints."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return task.batch * task.total

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            rows = batch(task, index // task.batch)
            return {key: value[index % task.batch] for key, value in rows.items()}

    class Observed(Trainer):
        def training_step(self, *arguments: Any, **named: Any) -> torch.Tensor:
            self.latest = super().training_step(*arguments, **named)
            return self.latest

    class StepEnds(TrainerCallback):
        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            record.step(float(observed.latest))

    model = start_model(task, task.trainer_activation)
    record_inputs(task, model)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=task.total,
            per_device_train_batch_size=task.batch,
            train_sampling_strategy="sequential",
            lr_scheduler_type="constant",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        observed = Observed(model=model, args=arguments, train_dataset=Rows(), callbacks=[StepEnds()])
        observed.train()
    return model, None


def nanogpt(task: Task, record: Record, fused_head: bool = False) -> Any:
    """The plain loop: bf16 autocast, full logits, fused AdamW."""
    model = start_model(task)
    record_inputs(task, model)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=TRAINER_LR, betas=TRAINER_BETAS, eps=EPS, weight_decay=0.0, fused=True
    )
    for index in range(task.total):
        rows = batch(task, index)
        ids, targets = rows["input_ids"], shifted(rows["labels"]).flatten()
        with torch.autocast("cpu", torch.bfloat16, enabled=not task.fp32):
            if fused_head:
                hidden = model.transformer(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
                loss = F.linear_cross_entropy(hidden, model.lm_head.weight, targets, ignore_index=IGNORED)
            else:
                logits = model(input_ids=ids, use_cache=False).logits.flatten(0, 1)
                loss = F.cross_entropy(logits, targets, ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        record.step(loss.item())
    return model, None


def nanogpt_fused_head(task: Task, record: Record) -> Any:
    """The plain loop with torch's F.linear_cross_entropy in place of full logits."""
    return nanogpt(task, record, fused_head=True)


VARIANTS: dict[str, Callable[[Task, Record], Any]] = {
    "trainer": trainer,
    "nanogpt": nanogpt,
    "nanogpt+linear_cross_entropy": nanogpt_fused_head,
    "tinychat": tinychat,
    "tinychat-muon": tinychat_muon,
}


def arithmetic(task: Task) -> str:
    if task.fp32 or task.variant == "trainer":
        return "fp32"
    if task.variant.startswith("nanogpt"):
        return "bf16"
    return {torch.bfloat16: "bf16", torch.float32: "fp32"}[resolve_precision(task.precision, CPU)]


# -------------------------------------------------------------------------------------------------------- process

inputs: dict[str, Any] = {}  # digests that the parent compares


def record_inputs(task: Task, model: Any) -> None:
    """Digests of the initial weights and of each batch."""
    inputs["weights"] = weights_digest(model)
    inputs["batches"] = [
        hashlib.blake2b(batch(task, index)["input_ids"].numpy(), digest_size=8).hexdigest()
        for index in range(task.total)
    ]


def run(task: Task) -> dict[str, Any]:
    record = Record()
    model, shares = VARIANTS[task.variant](task, record)
    memory = peak_memory_gb()
    tokens = [int((batch(task, index)["labels"] != IGNORED).sum()) for index in range(task.total)]
    dtype = torch.bfloat16 if arithmetic(task) == "bf16" else torch.float32
    return {
        "variant": task.variant,
        "arithmetic": arithmetic(task),
        **record.summary(task.warmup, tokens, task.threads),
        "memory_gb": memory,
        "flops_per_token": training_flops_per_token(model, task.length),
        "matmul_flops_per_s": matmul_rate(CPU, dtype),
        "threads": torch.get_num_threads(),
        "inputs": inputs,
        "profile": shares,
    }


def main() -> None:
    task = Task(**json.loads(sys.argv[1]))
    torch.set_num_threads(task.threads)
    print("RESULT", json.dumps(run(task)))


if __name__ == "__main__":
    main()
