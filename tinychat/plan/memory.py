"""How much memory a stage takes on each rank, how long a step, and of what devices: pure functions of its
models and of how they are split.

What a model keeps all the time follows Rajbhandari et al. 2020 (ZeRO), section 3: weights, gradients and optimizer
state, and which of them N ranks share. Activations are those that autograd saves (tinychat.plan.models); without
attention's scores they are some 34 bytes for each token, layer and unit of width in 16 bits (Korthikanti et al. 2022,
equation 2). The output head works in chunks (tinychat.models.logprobs).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from tinychat.config.schema import Config, Device, Precision
from tinychat.config.size_checks import machine_memory
from tinychat.engine.base import resolve_precision
from tinychat.errors import UserError
from tinychat.models.build import matmul_rate
from tinychat.models.kernels.head_loss import CHUNK_ELEMENTS, EXACT_CHUNK_ELEMENTS, KEPT_ELEMENTS
from tinychat.plan.models import START, TEACHER, ModelPlan
from tinychat.runtime.process import LARGE

GB = 1e9


@dataclass(frozen=True)
class Hardware:
    """One device of a rank."""

    name: str
    on_cpu: bool
    memory: float  # bytes
    taken: float  # bytes that the driver, libraries and the interpreter take
    flops: float  # operations per second of dense matrix products in 16 bits, summed in fp32
    flops_fp32: float
    bandwidth: float  # bytes per second from its memory
    link: float  # bytes per second to other ranks' devices and to the host, one way, as reached
    mfu: float  # share of the peak that training is assumed to reach
    per_operator: float  # seconds that starting an operator takes at least

    def peak(self, dtype: torch.dtype) -> float:
        """Operations per second of matrix products in a type."""
        return self.flops_fp32 if dtype is torch.float32 else self.flops


# 3090: NVIDIA's Ampere GA102 whitepaper (tensor cores with fp32 sums; fp32 without TF32); PCIe 4.0 x16, of whose
# 32 GB/s collectives without NVLink reach some 10. H200: its data sheet (SXM), dense; NVLink 900 GB/s both ways.
KNOWN = {
    "3090": Hardware("RTX 3090", False, 24 * 2**30, 0.7 * GB, 71e12, 35.6e12, 936e9, 10e9, 0.3, 8e-6),
    "h200": Hardware("H200", False, 141 * GB, 0.7 * GB, 989e12, 67e12, 4.8e12, 350e9, 0.3, 8e-6),
}
CPU = Hardware("this machine's CPU", True, 0.0, 0.55 * GB, 0.0, 0.0, 15e9, 2e9, 0.5, 2e-6)


def hardware(config: Config) -> Hardware:
    """What `plan` names: true is the device that training would take on this machine; of a CPU only the arithmetic
    that the job would use is measured. Raises UserError."""
    name = str(config.plan).lower()
    if name in KNOWN:
        return KNOWN[name]
    if name not in ("true", "cpu"):
        raise UserError(f"plan={config.plan}: false, true (this machine), cpu, {', '.join(KNOWN)}")
    if name == "true" and config.device is not Device.cpu and torch.cuda.is_available():
        return _gpu_here()
    # fp16, which a CPU does not have, is told by whoever asks what the job computes in.
    precision = Precision.fp32 if config.precision is Precision.fp16 else config.precision
    dtype = resolve_precision(precision, torch.device("cpu"))
    rate = matmul_rate(torch.device("cpu"), dtype)
    return replace(CPU, memory=machine_memory(), flops=rate, flops_fp32=rate)


def _gpu_here() -> Hardware:
    device = torch.device("cuda", 0)
    found = torch.cuda.get_device_properties(device)
    return replace(
        KNOWN["h200"] if "H200" in found.name else KNOWN["3090"],
        name=found.name,
        memory=float(found.total_memory),
        flops=matmul_rate(device, torch.bfloat16),
        flops_fp32=matmul_rate(device, torch.float32),
    )


NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # a weight, its block's scale in 8 bits, the scales' scale (QLoRA, section 3)
KL_ARRAYS = 5 * 4  # fp32 arrays of kl_elements: tinychat.rl.kl.logit_measures
SAMPLED_ARRAYS = (
    4 * 4
)  # fp32 arrays over the vocabulary while a token is drawn: tinychat.models.generation.decode.choose
ALWAYS = "all the time"
FORWARD_BACKWARD = "forward and backward pass"
SAMPLING = "sampling replies"
MEASURING = "measuring without gradients"
BEFORE = "making the replies, before training"  # of data=best_of_n; what training keeps is not there yet


@dataclass(frozen=True)
class Split:
    """How the work and the state are spread."""

    ranks: int
    zero: int | None  # DeepSpeed's stage; None: plain PyTorch
    offload_optimizer: bool
    offload_param: bool
    bucket: float  # elements of DeepSpeed's buffer for gradients
    buckets: int  # how many of them
    live: float  # ZeRO 3: gathered weights at most


@dataclass(frozen=True)
class Work:
    """What passes through the models at a time, on one rank."""

    rows: int  # sequences of a forward pass in training
    accumulation: int  # forward passes of an optimizer step
    length: int  # tokens of a sequence
    targets: int  # tokens with a target in a sequence
    exact: bool  # the loss weighs its tokens one by one, as PPO's does
    checkpointing: bool
    eval_rows: int  # sequences of a forward pass in evaluation
    sampled_rows: int = 0  # replies sampled side by side
    group: int = 1  # of them to one prompt, which is computed once; held-out prompts have one each
    prompt: int = 0  # tokens of their prompts
    response: int = 0  # tokens of those replies
    measured_rows: int = 0  # PPO: sequences of a forward pass over a rollout
    kl_elements: int = 0  # PPO: logits that become probabilities together


@dataclass(frozen=True)
class Item:
    """Bytes of one thing on one rank."""

    name: str
    device: float
    host: float = 0.0
    phase: str = ALWAYS


@dataclass(frozen=True)
class Memory:
    items: list[Item] = field(default_factory=list)

    def of(self, phase: str) -> float:
        """Bytes on the device that are there in one phase alone."""
        return sum(item.device for item in self.items if item.phase == phase)

    @property
    def phases(self) -> dict[str, float]:
        """Bytes on the device at the height of each phase, what is there all the time included."""
        names = dict.fromkeys(item.phase for item in self.items if item.phase != ALWAYS)
        return {name: (self.of(ALWAYS) if name != BEFORE else 0.0) + self.of(name) for name in names}

    @property
    def peak(self) -> float:
        return max(self.phases.values(), default=self.of(ALWAYS))

    @property
    def host(self) -> float:
        return sum(item.host for item in self.items)


def memory(models: Sequence[ModelPlan], split: Split, work: Work, stored: int, computed: int, muon: bool) -> Memory:
    """stored, computed: bytes of a trained weight and of a number of the arithmetic; on a CPU `split.bucket` counts
    only as far as it is used."""
    trained = [model for model in models if model.trained]
    items = _weights(models, split, stored)
    items += _optimizer(trained, split, stored, muon)
    items += _update(trained, split, work, stored, computed)
    items += _step(trained, split, stored, muon)
    items += [item for model in models if model.name == TEACHER for item in _taught(model, work, computed)]
    items += _without_gradient(models, trained, split, work, stored, computed)
    return Memory([item for item in items if item.device or item.host])


def weight_bytes(model: ModelPlan, stored: int) -> float:
    """Of a model's stored weights on one device."""
    return (model.weights - model.quantized) * stored + model.quantized * NF4_BYTES


def shared(split: Split, stage: int) -> int:
    """Among how many ranks ZeRO splits what it splits from this stage on."""
    return split.ranks if split.zero is not None and split.zero >= stage else 1


def _weights(models: Sequence[ModelPlan], split: Split, stored: int) -> list[Item]:
    items = []
    for model in models:
        label = f"weights: {model.name}, {_millions(model.weights)}"
        if not model.trained:  # only measures, outside DeepSpeed, in fp32
            for phase in (SAMPLING, MEASURING) if model.name == START else (ALWAYS,):
                items.append(Item(label, weight_bytes(model, 4), phase=phase))
            continue
        size = weight_bytes(model, stored) / shared(split, 3)
        on_host = split.zero == 3 and split.offload_param
        items.append(Item(label, 0.0 if on_host else size, size if on_host else 0.0))
    return items


def _optimizer(trained: Sequence[ModelPlan], split: Split, stored: int, muon: bool) -> list[Item]:
    """AdamW's two moments, or Muon's one, and the fp32 weights that are updated where others are stored."""
    count = sum(model.trained for model in trained)
    orthogonal = sum(model.orthogonal for model in trained) if muon else 0
    share, on_host = shared(split, 1), offloads(split)
    state = 4.0 * (2 * count - orthogonal) / share
    masters = 4.0 * count / share if has_masters(split, stored) else 0.0
    found = [("optimizer state", state), ("fp32 weights of the optimizer", masters)]
    return [Item(name, 0.0 if on_host else size, size if on_host else 0.0) for name, size in found]


def has_masters(split: Split, stored: int) -> bool:
    """DeepSpeed keeps fp32 weights of its own from stage 1 on in every precision, without stages beside 16 bits."""
    return split.zero is not None and (split.zero > 0 or stored < 4)


def offloads(split: Split) -> bool:
    return split.offload_optimizer and split.zero is not None and split.zero >= 1


def _update(trained: Sequence[ModelPlan], split: Split, work: Work, stored: int, computed: int) -> list[Item]:
    """The height of a forward and backward pass: at the output head, or with activation checkpointing where a block is
    computed again. With one pass to a step gradients come as activations go."""
    phase, on_host, kept_always = FORWARD_BACKWARD, offloads(split), split.zero == 3
    count = sum(model.trained for model in trained)
    activations = sum(_activations(model, work) for model in trained)
    again = max(_block(model, work) for model in trained) if work.checkpointing else 0.0
    logits, head = _head(trained[0], work, stored, computed)
    gradients = _gradients(count, split, work, stored)
    label = "gradients"
    if work.accumulation == 1 and split.zero in (None, 0, 1):
        whole = [model for model in trained if not model.adapter]
        embedding = max((model.embedding for model in whole), default=0) * stored  # a second one, before it is added
        gradients = max(0.0, gradients + embedding - activations - max(logits + head, again))
        label = "gradients, beyond what activations leave free"
    items = [
        Item("activations", activations, phase=phase),
        Item("logits", logits, phase=phase),
        Item("output head: weights and gradient in the arithmetic's type", head, phase=phase),
        Item("a block computed again, beyond these two", max(0.0, again - logits - head), phase=phase),
        Item(label, *((0.0, gradients) if on_host else (gradients, 0.0)), phase=ALWAYS if kept_always else phase),
    ]
    if split.zero in (2, 3):
        size = split.bucket * split.buckets * stored
        items.append(Item("DeepSpeed's buffer of gradients", size, phase=ALWAYS if kept_always else phase))
    if split.zero == 3:
        gathered = min(sum(model.weights for model in trained), split.live) * stored
        items.append(Item("weights gathered from the ranks", gathered, phase=phase))
    return items


def _taught(teacher: ModelPlan, work: Work, computed: int) -> list[Item]:
    """What a teacher needs beside its weights: it reads a micro-batch before the student does, of which its last hidden
    states stay, and gives logits a chunk at a time."""
    tokens = work.rows * work.targets
    chunk = min(tokens * teacher.vocabulary, EXACT_CHUNK_ELEMENTS) * computed
    kept = work.rows * work.length * teacher.width * 4
    return [
        Item("teacher's output head in the arithmetic's type", teacher.head * computed if computed < 4 else 0.0),
        Item("teacher: hidden states and logits", kept + chunk, phase=FORWARD_BACKWARD),
        Item("activations", teacher.in_passing * work.rows, phase="teacher's forward pass"),
    ]


def _activations(model: ModelPlan, work: Work) -> float:
    kept = model.checkpointed if work.checkpointing else model.whole
    return kept.per_row * work.rows + kept.fixed


def _block(model: ModelPlan, work: Work) -> float:
    """Activations of one block."""
    return (model.whole.per_row * work.rows + model.whole.fixed) / max(1, model.layers)


def head_elements(model: ModelPlan, rows: int, targets: int, exact: bool) -> float:
    """Logits that live at once in training: a chunk, or in PPO all where they are few."""
    asked = rows * targets * model.vocabulary
    chunk = EXACT_CHUNK_ELEMENTS if exact else CHUNK_ELEMENTS
    if exact and asked <= KEPT_ELEMENTS:
        return asked
    return min(asked, max(1, chunk // model.vocabulary) * model.vocabulary)


def _head(model: ModelPlan, work: Work, stored: int, computed: int) -> tuple[float, float]:
    """Bytes of (logits, the rest of the output head's work); the first trained model is the one that has a head."""
    if not model.head:
        return 0.0, 0.0
    elements = head_elements(model, work.rows, work.targets, work.exact)
    tokens = work.rows * work.targets
    several = elements < tokens * model.vocabulary
    copy = model.head * computed if computed < stored else 0
    gradient = 0 if model.adapter else model.head * (2 * (4 if several else computed) + computed)
    return elements * computed, copy + gradient + 2 * tokens * model.width * computed


def _gradients(count: int, split: Split, work: Work, stored: int) -> float:
    if split.zero in (None, 0, 1):
        return float(count * stored)
    if offloads(split):
        return (4.0 + stored * (2 if work.accumulation > 1 else 1)) * count / shared(split, 2)
    twice = 2 if work.accumulation > 1 and split.zero == 2 else 1  # the sum so far and the newest
    return float(count * stored * twice) / shared(split, 2)


def _step(trained: Sequence[ModelPlan], split: Split, stored: int, muon: bool) -> list[Item]:
    """The optimizer's step: gradients in fp32 for its part, and for Muon the update gathered whole."""
    count, phase = sum(model.trained for model in trained), "optimizer step"
    kept = 0.0 if split.zero == 3 or offloads(split) else count * stored / shared(split, 2)
    wide = 4.0 * count / shared(split, 1) if has_masters(split, stored) and not offloads(split) else 0.0
    gathered = 4.0 * sum(model.orthogonal for model in trained) if muon and split.zero else 0.0
    return [
        Item("gradients", kept, phase=phase),
        Item("gradients in fp32", wide, phase=phase),
        Item("Muon's update, whole", gathered, phase=phase),
    ]


def _without_gradient(
    models: Sequence[ModelPlan], trained: Sequence[ModelPlan], split: Split, work: Work, stored: int, computed: int
) -> list[Item]:
    """Rollouts, what PPO measures on them, and evaluation."""
    first = trained[0]
    copies = sum(model.trained for model in trained) * computed if computed < stored else 0  # autocast keeps them
    gathered = sum(model.weights for model in trained) * stored if split.zero == 3 else 0
    items = []
    if work.sampled_rows:
        items += _sampling(first, work, stored, computed, SAMPLING)
        items.append(Item("weights gathered from the ranks", gathered, phase=SAMPLING))
    if work.measured_rows:
        phase = MEASURING
        rows = work.measured_rows
        hidden = 2 * rows * work.length * first.width * 4
        elements = rows * work.targets * first.vocabulary
        chunk = 2 * min(LARGE, elements * computed) + KL_ARRAYS * min(work.kl_elements, elements)
        items += [
            Item("activations", max(model.in_passing for model in models) * rows + hidden, phase=phase),
            Item("logits", chunk, phase=phase),
            Item("weights in the arithmetic's type", copies, phase=phase),
            Item("weights gathered from the ranks", min(gathered, split.live * stored), phase=phase),
        ]
    phase = "evaluation"
    head = min(CHUNK_ELEMENTS, work.eval_rows * work.length * first.vocabulary) * computed if first.head else 0.0
    items += [
        Item("activations", first.in_passing * work.eval_rows, phase=phase),
        Item("logits", head, phase=phase),
        Item("weights in the arithmetic's type", copies, phase=phase),
        Item("weights gathered from the ranks", min(gathered, split.live * stored), phase=phase),
    ]
    return items


def _sampling(model: ModelPlan, work: Work, stored: int, computed: int, phase: str) -> list[Item]:
    kv = work.sampled_rows * (work.prompt + work.response) * model.kv_width * computed
    own = (model.weights - (model.embedding if not model.tied else 0)) * computed if computed < stored else 0
    drawn = work.sampled_rows * model.vocabulary * (computed + SAMPLED_ARRAYS)
    prefill = model.in_passing / work.length * work.prompt * work.sampled_rows
    return [
        Item("keys and values (KV cache)", kv, phase=phase),
        Item("logits", drawn, phase=phase),
        Item("activations of the prompts", prefill, phase=phase),
        Item("weights in the arithmetic's type", own, phase=phase),
    ]


def answering(policy: ModelPlan, scorers: Sequence[ModelPlan], start: float, work: Work, computed: int) -> list[Item]:
    """Of data=best_of_n: the policy that answers and the reward models are there before training, in fp32, beside the
    weights that it starts from (`start` bytes on the device)."""
    found = [Item(f"weights: {one.name}, {_millions(one.weights)}", one.weights * 4.0) for one in (policy, *scorers)]
    found += [Item("weights that training starts from", start)]
    found += _sampling(policy, work, 4, computed, BEFORE)
    scored = max((one.in_passing for one in scorers), default=0.0) * work.sampled_rows
    prompts = sum(item.device for item in found if item.name == "activations of the prompts")
    found += [Item("activations of the replies, beyond the prompts'", max(0.0, scored - prompts))]
    return [replace(item, phase=BEFORE) for item in found if item.device]


def _millions(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e5 else f"{math.ceil(number):,}"


OPERATORS_PER_LAYER = 15  # of a step of generation: tinychat.models.kernels.lean
ADAM_BYTES = 28  # read and written for each weight: gradient, fp32 weight and two moments, the last three twice


def body_flops(model: ModelPlan) -> float:
    """Of a forward pass per token, without the output head: a third of forward and backward."""
    return model.flops / 3 - 2.0 * model.head


def training_factor(model: ModelPlan, checkpointing: bool) -> float:
    """Forward and backward pass in forward passes: one for activations' gradients, one for weights', one more where
    activations are computed again. Under an adapter all layers pass gradients on, few weights have one."""
    share = model.trained / max(1, model.weights)
    backward = 2.0 if share == 1 else 1.0 + share if model.adapter else 2.0 * share
    return 1.0 + backward + (1.0 if checkpointing else 0.0)


def update_flops(trained: Sequence[ModelPlan], work: Work) -> float:
    """Of one optimizer step on one rank."""
    total = 0.0
    for model in trained:
        forward = work.length * body_flops(model) + work.targets * 2.0 * model.head
        total += forward * training_factor(model, work.checkpointing)
    return total * work.rows * work.accumulation


def traffic(count: int, whole: int, split: Split, work: Work, stored: int) -> float:
    """Bytes that a rank sends (and receives) for one optimizer step (Rajbhandari et al. 2020, section 7): gradients
    summed and results spread, twice the trained weights; with ZeRO 3 the weights again for each pass."""
    part = (split.ranks - 1) / split.ranks
    if split.zero == 3:
        return part * work.accumulation * (2 * whole + count) * stored
    passes = work.accumulation if split.zero == 2 else 1
    return part * count * stored * (1 + passes)


def update_seconds(
    models: Sequence[ModelPlan], split: Split, work: Work, stored: int, hardware: Hardware, rate: float
) -> dict[str, float]:
    """Of one optimizer step; rate: operations per second that products reach."""
    trained = [model for model in models if model.trained]
    count, whole = sum(model.trained for model in trained), sum(model.weights for model in trained)
    found = {"products": update_flops(trained, work) / rate}
    if split.ranks > 1:
        found["between ranks"] = traffic(count, whole, split, work, stored) / hardware.link
    if offloads(split) and not hardware.on_cpu:
        moved = 2 * stored * count / split.ranks / hardware.link
        found["optimizer on the host"] = moved + ADAM_BYTES * count / split.ranks / CPU.bandwidth
    if split.offload_param and split.zero == 3 and not hardware.on_cpu:
        found["weights from the host"] = 2 * work.accumulation * whole * stored / split.ranks / hardware.link
    return found


def sampling_seconds(
    policy: ModelPlan, replies: int, work: Work, computed: int, hardware: Hardware, rate: float
) -> float:
    """Replies of one rank, `work.sampled_rows` at a time: each token reads all weights and the keys and values so far,
    and starts every operator."""
    read = policy.weights * computed
    kv = work.sampled_rows * (work.prompt + work.response / 2) * policy.kv_width * computed
    products = 2.0 * policy.weights * work.sampled_rows
    token = max((read + kv) / hardware.bandwidth, products / rate)
    token += OPERATORS_PER_LAYER * policy.layers * hardware.per_operator
    prefill = work.prompt * math.ceil(work.sampled_rows / work.group) * body_flops(policy) / rate
    return math.ceil(replies / work.sampled_rows) * (prefill + work.response * token)


def measuring_seconds(models: Sequence[ModelPlan], replies: int, work: Work, rate: float) -> float:
    """A forward pass of every model over the replies of one rank; each head once."""
    heads = 2.0 * sum(model.head for model in models)
    return replies * (work.length * sum(map(body_flops, models)) + work.targets * heads) / rate
