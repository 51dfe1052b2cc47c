"""The memory that `plan=` estimates against what real trainings take.

    python benchmarks/memory.py                     # some minutes on one core
    python benchmarks/memory.py --cases 'sft|ppo'   # those whose name matches
    python benchmarks/memory.py --large             # gpt6x512 too, two steps

Every case is a stage's own run in a fork of this process, which has imported everything, up to its last training step.
Measured on rank 0 are the bytes of all live tensors, which is what the formula speaks of, and the resident size beyond
what the process began with, which is also what the heap keeps and libraries lay out anew.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import markdown  # beside this file
from hydra import compose, initialize_config_dir
from memory_run import measure

from tinychat.config import schema
from tinychat.config.specs import spec_of
from tinychat.models.build import build_model, model_vocab_size
from tinychat.plan.estimate import Plan, estimate
from tinychat.plan.memory import GB
from tinychat.text.chat_template import set_template
from tinychat.text.tokenizer import train_bpe
from tinychat.train import config_folder

CONTEXT, RESPONSE = 256, 32
GPT = ("model=gpt6x512", "model.n_layer=4", "model.n_embd=256", "model.n_head=4")  # gpt4x256
LLAMA = ("model=llama2_15m", "model.n_layer=6", "model.n_embd=288")
QWEN = ("model=mini", "model.n_layer=4", "model.n_embd=256", "model.n_head=4", "model.n_inner=1024")
VOCABULARY = "model.vocab_size=8192"
COMMON = (
    "tracker=none",
    "device=cpu",
    "data.max_docs=300",
    "data.max_val_docs=4",
    "data.lessons=0",
    "stage.max_steps=4",
    "stage.log_every=1",
    "stage.eval_every=0",
    "stage.warmup_steps=0",
    "checkpoint.every=0",
    f"model.context_length={CONTEXT}",
)
ROLLOUTS = ("ppo", "grpo")
BUCKET = "+ds.config.zero_optimization.reduce_bucket_size=5e6"  # the default is 1 GB, which a CPU takes only as used
TWO = ("launch=torchrun", "launch.nproc=2")
EVALUATION = "evaluation"  # comes after the last training step: not measured


@dataclass(frozen=True)
class Case:
    name: str
    stage: str
    model: tuple[str, ...]
    more: tuple[str, ...]  # what sets the case apart


BF16, FP32 = "precision=bf16", "precision=fp32"
ADAMW = "optim=adamw"
BATCH = ("stage.batch_size=16", "stage.micro_batch_size=8")
SPLIT = ("stage.batch_size=16", "stage.micro_batch_size=4", *TWO)
CASES = [
    Case("pretrain gpt fp32, AdamW", "pretrain", GPT, (FP32, ADAMW, *BATCH)),
    Case("pretrain gpt bf16, AdamW", "pretrain", GPT, (BF16, ADAMW, *BATCH)),
    Case("pretrain gpt bf16, one pass a step", "pretrain", GPT, (BF16, ADAMW, *BATCH[:1], "stage.micro_batch_size=16")),
    Case("pretrain gpt bf16, Muon", "pretrain", GPT, (BF16, *BATCH)),
    Case("pretrain gpt bf16, checkpointing", "pretrain", GPT, (BF16, *BATCH, "stage.activation_checkpointing=true")),
    Case("pretrain llama bf16, Muon", "pretrain", LLAMA, (BF16, *BATCH)),
    Case("pretrain qwen bf16, Muon", "pretrain", QWEN, (BF16, *BATCH)),
    Case("pretrain gpt bf16, zero2", "pretrain", GPT, (BF16, ADAMW, "ds=zero2", BUCKET, *BATCH)),
    Case("pretrain gpt bf16, zero2_offload", "pretrain", GPT, (BF16, ADAMW, "ds=zero2_offload", BUCKET, *BATCH)),
    Case("pretrain gpt bf16, zero3", "pretrain", GPT, (BF16, ADAMW, "ds=zero3", BUCKET, *BATCH)),
    Case("pretrain gpt fp32, zero1, 2 ranks", "pretrain", GPT, (FP32, ADAMW, "ds=zero1", BUCKET, *SPLIT)),
    Case("pretrain gpt bf16, zero2, 2 ranks", "pretrain", GPT, (BF16, ADAMW, "ds=zero2", BUCKET, *SPLIT)),
    Case("sft gpt bf16, Muon", "sft", GPT, (BF16, *BATCH)),
    Case("sft gpt bf16, LoRA", "sft", GPT, (BF16, ADAMW, "peft=lora", *BATCH)),
    Case("reward gpt bf16, Muon", "reward", GPT, (BF16, *BATCH)),
    Case("ppo gpt bf16", "ppo", GPT, (BF16, *BATCH)),
    Case("ppo gpt fp32", "ppo", GPT, (FP32, *BATCH)),
    Case("grpo gpt bf16", "grpo", GPT, (BF16, *BATCH)),
    Case("grpo gpt bf16, no reference", "grpo", GPT, (BF16, "stage.beta=0", *BATCH)),
    Case("dpo gpt bf16", "dpo", GPT, (BF16, *BATCH)),
]  # fmt: skip
LARGE = Case(
    "pretrain gpt6x512 bf16, Muon",
    "pretrain",
    ("model=gpt6x512",),
    (BF16, "stage.batch_size=4", "stage.micro_batch_size=2", "stage.max_steps=2"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="", help="only those whose name this regular expression finds")
    parser.add_argument("--large", action="store_true", help="gpt6x512 too, which takes minutes")
    options = parser.parse_args()
    schema.register()
    cases = [case for case in CASES + [LARGE] * options.large if re.search(options.cases, case.name)]
    for module in ["peft", "deepspeed", *(f"tinychat.stages.{case.stage}" for case in cases)]:
        importlib.import_module(module)  # not to be measured
    head = ["case", "estimated", "tensors", "estimated / tensors", "resident", "resident / tensors"]
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch))
        for case in cases:
            estimated, found = bench.run(case)
            tensors, resident = found["tensors"], found["resident"]
            sizes = [f"{size / GB:.3f} GB" for size in (estimated, tensors, resident)]
            ratios = [f"{estimated / tensors:.2f}", f"{resident / tensors:.2f}"]
            lines.append([case.name, sizes[0], sizes[1], ratios[0], sizes[2], ratios[1]])
            print(" | ".join(lines[-1]), file=sys.stderr, flush=True)
    print(markdown(head, lines))


class Bench:
    """Runs cases in a folder with a tokenizer, rows that fill the context, and models with random weights."""

    def __init__(self, folder: Path):
        from tinychat.tinyworld import stories

        self.folder = folder
        self.tokenizer = train_bpe(stories(1, "train", 200), 400, progress=False)
        self.tokenizer.save_pretrained(folder / "tokenizer")
        (folder / "reward.py").write_text("def score(prompts, replies):\n    return [0.0] * len(replies)\n")
        self._write_rows()

    def _write_rows(self) -> None:
        """Preferences and conversations that fill the context, and prompts that leave room for a reply."""
        words = "the cat sat on the mat and the dog ran to the old tree in the park "

        def text(tokens: int) -> str:
            long = words * 40
            ids = self.tokenizer(long)["input_ids"][:tokens]
            return self.tokenizer.decode(ids)

        around = 24  # tokens of the template
        pairs = [
            {
                "prompt": f"{n} {text(60)}",
                "chosen": text(CONTEXT - 60 - around),
                "rejected": text(CONTEXT - 62 - around),
            }
            for n in range(60)
        ]
        (self.folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
        chats = []
        for n in range(100):
            said = [("user", f"go {n}"), ("assistant", text(CONTEXT - around))]
            chats.append({"messages": [{"role": role, "content": content} for role, content in said]})
        (self.folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
        prompts = [f"{n} {text(CONTEXT - RESPONSE - around)}" for n in range(80)]
        (self.folder / "prompts.txt").write_text("\n".join(prompts))

    def run(self, case: Case) -> tuple[float, dict[str, float]]:
        """(estimated bytes, measured ones) of a case."""
        words = self._overrides(case)
        number = len(list(self.folder.glob("run-*")))
        return until_evaluation(planned(words)), measure(composed(words), self.folder / f"run-{number}")

    def _overrides(self, case: Case) -> list[str]:
        words = [f"stage={case.stage}", *case.model, VOCABULARY, *COMMON, *case.more]
        words += ["data.val_fraction=0.2"]
        words += [f"tokenizer.path={self.folder / 'tokenizer'}", f"paths.cache={self.folder / 'cache'}"]
        if case.stage in ROLLOUTS:
            words += ["data=prompts", f"data.path={self.folder / 'prompts.txt'}", "reward=python"]
            words += [f"reward.parts.python.path={self.folder / 'reward.py'}:score"]
            words += [f"stage.response_length={RESPONSE}", "stage.rollout_size=16", "stage.epochs=1"]
            words += ["stage.max_kl=null"]
        if case.stage == "ppo":
            words += ["stage.value_from=policy"]
        if case.stage in ("reward", "dpo"):
            words += ["data=preference", f"data.path={self.folder / 'pairs.jsonl'}"]
        if case.stage == "pretrain":
            words += ["stage.samples=[]"]
        if case.stage in ("sft", "dpo", *ROLLOUTS):
            words += ["stage.eval_first=false", "stage.generate_rows=2", "stage.generate_tokens=8"]
        if case.stage in ("dpo", *ROLLOUTS):
            words += ["stage.safety_prompts=0", "stage.judge=null"]
        if case.stage == "sft":
            words += ["data=chat", f"data.path={self.folder / 'chats.jsonl'}"]
        if case == LARGE:
            words += ["model.context_length=1024", "model.vocab_size=50304"]
        if case.stage != "pretrain":
            words += [f"init_from={self._checkpoint(words)}"]
        return words

    def _checkpoint(self, words: list[str]) -> Path:
        """A checkpoint with random weights of the shape that the words ask for."""
        config = composed([word for word in words if not word.startswith(("peft", "reward", "data"))])
        size = model_vocab_size(config.model, len(self.tokenizer))
        folder = self.folder / f"model-{config.model.n_layer}-{config.model.n_embd}-{size}"
        if not folder.exists():
            set_template(self.tokenizer, "instruct")
            model = build_model(config.model, size, self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
            model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
        return folder


def composed(words: list[str]) -> Any:
    with initialize_config_dir(config_folder()):
        return schema.to_config(compose("config", words))


def planned(words: list[str]) -> Plan:
    return estimate(composed([*words, "plan=cpu"]))


def until_evaluation(plan: Plan) -> float:
    """Bytes at the height of what comes before the last evaluation; on a CPU offloaded parts lie there too."""
    wanted = {name: size for name, size in plan.memory.phases.items() if name != EVALUATION}
    if not spec_of(plan.config).rollouts and "sampling replies" in wanted:
        wanted.pop("sampling replies")  # part of the evaluation
    return max(wanted.values()) + plan.memory.host


if __name__ == "__main__":
    main()
