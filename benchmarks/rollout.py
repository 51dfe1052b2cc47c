"""Generated tokens per second and peak memory of tinychat's decoding against transformers' generate.

python benchmarks/rollout.py                      gpt6x512: 3 rounds, every variant in turn
python benchmarks/rollout.py --model gpt4x256     a small model with 2,048 words, where overhead decides
python benchmarks/rollout.py --profile            where the time of a decoding step goes
python benchmarks/rollout.py --model tiny --rounds 1   tries it out in seconds

Prompts of one length, as many new tokens for each, no end token; tokens are drawn from the whole distribution (in
generate: do_sample=True, top_k=0, the rest by default). The time of a call counts whole: the pass over the prompts and
what tinychat prepares of the weights. Each variant and round is a process of its own; first the greedy tokens in fp32
must be equal. Runs on the CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from harness import (  # beside this file
    Result,
    add_ratios,
    conclude,
    cores,
    describe_machine,
    markdown,
    run_process,
    speed_table,
    summary,
)
from rl_shapes import MODELS, end_and_pad, gpt2_config, prompts

VARIANTS = ("transformers-fp32", "transformers-bf16", "tinychat-fp32", "tinychat-bf16")
KINDS = ("products", "head", "attention", "cache", "sampling", "norms", "other operators", "Python")


@dataclasses.dataclass(frozen=True)
class Task:
    """What one process does."""

    variant: str
    model: str
    batch: int
    prompt: int  # tokens
    new: int  # tokens generated for each prompt
    calls: int  # timed ones; one more before them is not
    threads: int
    seed: int
    greedy: bool = False  # return the greedy tokens in place of times
    profile: bool = False

    @property
    def bf16(self) -> bool:
        return self.variant.endswith("bf16")


# ------------------------------------------------------------------------------------------------------ one process


def run(task: Task) -> Result:
    import torch
    from measuring import peak_memory_gb

    torch.set_num_threads(task.threads)
    generate = _generate_of(task)
    if task.greedy:
        return {"variant": task.variant, "tokens": generate(True)}
    if task.profile:
        generate(False)
        return {"variant": task.variant, "shares": profile(lambda: generate(False))}
    seconds, cpu = [], []
    for _ in range(task.calls + 1):
        begin, begin_cpu = time.perf_counter(), time.process_time()
        rows = generate(False)
        seconds.append(time.perf_counter() - begin)
        cpu.append(time.process_time() - begin_cpu)
        if [len(row) for row in rows] != [task.new] * task.batch:
            raise SystemExit(f"{task.variant}: not {task.new} tokens for each of {task.batch} prompts")
    return {
        "variant": task.variant,
        "arithmetic": "bf16" if task.bf16 else "fp32",
        "tokens_per_s": task.batch * task.new / statistics.median(seconds[1:]),
        "cpu_tokens_per_s": task.batch * task.new * task.calls / sum(cpu[1:]),  # of processor time
        "seconds": seconds,
        "core_share": sum(cpu[1:]) / sum(seconds[1:]) / task.threads,
        "memory_gb": peak_memory_gb(),
    }


def _generate_of(task: Task) -> Callable[[bool], list[list[int]]]:
    """greedy? -> the new tokens of every prompt."""
    import torch
    from transformers import GPT2LMHeadModel

    if task.variant.startswith("tinychat"):
        from tinychat.runtime.process import keep_freed_memory

        keep_freed_memory()  # as tinychat/launch/worker.py does on a CPU
    torch.manual_seed(task.seed)
    config = gpt2_config(task.model)
    config._attn_implementation = "sdpa"
    model = GPT2LMHeadModel(config).eval()
    ids, pad = prompts(task.model, task.batch, task.prompt, task.seed), end_and_pad(task.model)[1]
    if task.variant.startswith("tinychat"):
        from tinychat.models.generation.decode import DecodeOptions, decode

        dtype = torch.bfloat16 if task.bf16 else None

        def ours(greedy: bool) -> list[list[int]]:
            options = DecodeOptions(task.new, (), 0.0 if greedy else 1.0)
            return decode(model, ids.tolist(), options, pad, task.batch, dtype).responses

        return ours
    model.generation_config.eos_token_id = None
    if task.bf16:
        model.to(torch.bfloat16)
    inputs = torch.from_numpy(ids)
    mask = torch.ones_like(inputs)

    def theirs(greedy: bool) -> list[list[int]]:
        more = {"do_sample": False} if greedy else {"do_sample": True, "top_k": 0}
        with torch.no_grad():
            found = model.generate(inputs, attention_mask=mask, max_new_tokens=task.new, pad_token_id=pad, **more)
        return found[:, task.prompt :].tolist()

    return theirs


# --------------------------------------------------------------------------------------------------------- profile


def profile(call: Callable[[], object]) -> dict[str, float]:
    """Shares of the time of one call by kind of work, from torch.profiler, and `us_per_step` without it: a lone
    number. The profiler itself takes time at each operator, so that Python's share is an upper bound."""
    import torch

    begin = time.perf_counter()
    call()
    plain = time.perf_counter() - begin
    with _labelled(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        begin = time.perf_counter()
        call()
        seconds = time.perf_counter() - begin
    spent = dict.fromkeys(KINDS, 0.0)
    for event in found.events():
        if event.name not in KINDS:
            spent[_kind_of(event)] += event.self_cpu_time_total / 1e6
    spent["Python"] = max(0.0, seconds - sum(spent.values()))
    return {kind: value / seconds for kind, value in spent.items()} | {"seconds": plain, "profiled_seconds": seconds}


def _kind_of(event: Any) -> str:
    outer = event
    while outer is not None:
        if outer.name in KINDS:
            return outer.name
        outer = outer.cpu_parent
    if "linear_pointwise" in event.name or event.name in ("aten::addmm", "aten::mm"):
        return "products"
    return "norms" if "layer_norm" in event.name else "other operators"


@contextmanager
def _labelled() -> Iterator[None]:
    """Inside, the parts of tinychat's decoding carry their names in the profile."""
    import torch

    from tinychat.models.generation import decode
    from tinychat.models.kernels import kv_cache, lean

    def named(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def outer(*arguments: Any, **more: Any) -> Any:
            with torch.profiler.record_function(name):
                return inner(*arguments, **more)

        return outer

    def with_named_head(self: Any, *arguments: Any) -> None:
        original(self, *arguments)
        self._head = named("head", self._head)

    original = lean.LeanModel.__init__
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(lean.LeanModel, "__init__", with_named_head))
        for owner, name, kind in (
            (decode, "choose", "sampling"),
            (lean, "_attend", "attention"),
            (kv_cache._Layer, "append", "cache"),
            (kv_cache._Layer, "update", "cache"),
        ):
            stack.enter_context(mock.patch.object(owner, name, named(kind, getattr(owner, name))))
        yield


# ---------------------------------------------------------------------------------------------------------- driver


def main() -> None:
    if sys.argv[1:] and sys.argv[1].startswith("{"):
        print("RESULT", json.dumps(run(Task(**json.loads(sys.argv[1])))))
        return
    options = read_options()
    begin = time.monotonic()
    numbers = ("model", "batch", "prompt", "new", "calls", "threads", "seed")
    task = {key: getattr(options, key) for key in numbers}
    report: dict[str, Any] = {"machine": describe_machine()}
    if options.profile:
        chosen = [variant for variant in options.variants if variant.startswith("tinychat")]
        report["profiles"] = [run_process("rollout.py", task | {"variant": v, "profile": True}) for v in chosen]
        conclude(options, "rollout-profile", report, profile_table(options, report["profiles"]), [], begin)
        return
    libraries = {variant.split("-")[0]: variant for variant in options.variants}  # one of each
    greedy = [run_process("rollout.py", task | {"variant": f"{name}-fp32", "greedy": True}) for name in libraries]
    problems = different(greedy)
    runs: list[Result] = []
    for number in range(0 if problems else options.rounds):
        for variant in options.variants:
            runs.append({"round": number + 1, **run_process("rollout.py", task | {"variant": variant})})
            speed = (
                f"{runs[-1]['tokens_per_s']:,.0f} tokens/s, {runs[-1]['cpu_tokens_per_s']:,.0f} per second of "
                f"processor time, {runs[-1]['memory_gb']:.2f} GB"
            )
            print(f"round {number + 1}: {variant}: {speed}, {runs[-1]['core_share']:.0%} of the cores", flush=True)
    text = "Greedy tokens in fp32 are equal." if len(greedy) > 1 and not problems else ""
    for kind in ("fp32", "bf16"):  # each against transformers in the same arithmetic
        chosen = [variant for variant in options.variants if variant.endswith(kind)]
        if chosen and runs:
            rows = summary(runs, chosen)
            add_ratios(rows, rows[0])
            text += "\n\n" + speed_table(title(options), rows)
            report.setdefault("table", []).extend(rows)
    conclude(options, "rollout", report | {"runs": runs}, text.strip(), problems, begin)


def read_options() -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--model", choices=tuple(MODELS), default="gpt6x512", help="(%(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="prompts side by side (%(default)s)")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of each (%(default)s)")
    parser.add_argument("--new", type=int, default=64, help="tokens generated for each (%(default)s)")
    parser.add_argument("--calls", type=int, default=2, help="timed calls of a process, after another (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="in their order (%(default)s)")
    parser.add_argument("--threads", type=int, default=cores(), help="of every process (all cores: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of weights and prompts (%(default)s)")
    parser.add_argument("--profile", action="store_true", help="of tinychat's variants, in place of the measurement")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"), help="folder (%(default)s)")
    options = parser.parse_args()
    options.variants = options.variants.split(",")
    if unknown := set(options.variants) - set(VARIANTS):
        parser.error(f"--variants {sorted(unknown)[0]}: one of {', '.join(VARIANTS)}")
    if min(options.batch, options.prompt, options.new, options.calls, options.rounds) < 1:
        parser.error("--batch, --prompt, --new, --calls and --rounds are at least 1")
    if options.prompt + options.new > MODELS[options.model]["n_positions"]:
        parser.error(f"--prompt and --new: {options.model} has {MODELS[options.model]['n_positions']} positions")
    return options


def different(greedy: list[Result]) -> list[str]:
    """One line for each that has other greedy tokens than the first."""
    first, *others = greedy
    return [
        f"{other['variant']}: other greedy tokens than {first['variant']} for prompt {row + 1}"
        for other in others
        for row, (own, wanted) in enumerate(zip(other["tokens"], first["tokens"], strict=True))
        if own != wanted
    ]


def title(options: argparse.Namespace) -> str:
    return (
        f"{options.model}, {options.batch} prompts of {options.prompt} tokens, {options.new} new tokens each: medians "
        f"of {options.rounds} rounds of {options.calls} calls"
    )


def profile_table(options: argparse.Namespace, profiles: list[Result]) -> str:
    lines = [
        [p["variant"], f"{p['shares']['seconds'] / options.new * 1e3:.2f}", *(f"{p['shares'][k]:.0%}" for k in KINDS)]
        for p in profiles
    ]
    return (
        f"Where the time of a step of {options.model} with {options.batch} rows goes (the profiler itself makes a call "
        f"longer)\n\n{markdown(['variant', 'ms a step', *KINDS], lines)}"
    )


if __name__ == "__main__":
    main()
