"""The models of a stage without their weights: how many parameters they have, and what their backward pass keeps.

They are built on torch's meta device and of its fake tensors, which have a shape and a type and no memory: the counts
are those of the real models, whatever their architecture, and what autograd saves is found by running the forward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tinychat.config import plugins
from tinychat.config.rollout_stages import ValueKind
from tinychat.config.schema import Config, PeftConfig, PeftKind
from tinychat.config.specs import spec_of
from tinychat.engine.optim import split_parameters
from tinychat.errors import UserError
from tinychat.models.adapters import add_adapter
from tinychat.models.build import training_flops_per_token
from tinychat.models.kernels.attention import (
    attention_can_be_set,
    is_of_transformers,
    plan_blocks,
    use_blocked_attention,
    uses_blocked_attention,
)
from tinychat.models.kernels.layers import use_fused_norms, use_fused_rotary
from tinychat.models.load import attention_of, one_line
from tinychat.models.quantized import BLOCK, input_widths
from tinychat.models.reward import freeze_all_but, up_to_layer

ATTENTION = "tinychat_plan"
TEACHER = "teacher"
START = "the policy as it began"  # of DPO: loaded in the last evaluation alone
BLOCKS_WITHOUT_GRADIENT = 2  # whose activations live at once where nothing is kept for a backward pass: see in_passing


def _causal(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
    """Scaled-dot-product attention as a GPU runs it without padding; fake tensors would get a mask of T x T."""
    return sdpa_attention_forward(module, query, key, value, None, **options)


AttentionInterface.register(ATTENTION, _causal)
AttentionMaskInterface.register(ATTENTION, lambda *_, **__: None)


@dataclass(frozen=True)
class Saved:
    """Bytes that autograd keeps from the forward pass of a model's backbone, without its output head."""

    per_row: int  # for each sequence
    fixed: int  # for each forward pass: autocast's copies of the weights


@dataclass(frozen=True)
class ModelPlan:
    """One model of a stage."""

    name: str
    weights: int
    trained: int
    orthogonal: int  # of the trained, those in matrices that Muon would take
    quantized: int  # weights held in 4 bits
    head: int  # weights of the output head over the vocabulary; 0: there is none
    tied: bool  # the head is the input embedding
    embedding: int  # weights of the input embedding
    vocabulary: int
    width: int
    layers: int
    context: int
    kv_width: int  # elements that the cache of keys and values holds for each token
    flops: float  # of forward and backward pass per token, head included, all weights trained
    whole: Saved  # activations of a training step
    checkpointed: Saved  # the same with activation checkpointing
    adapter: bool  # the trained weights are an adapter's

    @property
    def in_passing(self) -> float:
        """Bytes per sequence of what lives at once in a forward pass that keeps nothing for a backward pass."""
        return BLOCKS_WITHOUT_GRADIENT * self.whole.per_row / max(1, self.layers)


@dataclass(frozen=True)
class Numbers:
    """How the arithmetic is done."""

    weights: torch.dtype  # of the stored weights
    arithmetic: torch.dtype
    on_cpu: bool

    @property
    def autocast(self) -> bool:
        return self.arithmetic is not self.weights


def stage_models(
    config: Config, shape: Any, length: int, numbers: Numbers, teacher: Any | None = None
) -> list[ModelPlan]:
    """Every model that the stage holds, the trained ones first; shape: the transformers configuration of all of them
    but a teacher's, which has one of its own.

    length: tokens of a sequence. Raises UserError for an adapter's targets that the model does not have.
    """
    stage, peft, spec = config.stage, config.peft, spec_of(config)
    if spec.scores:
        return [_reward(shape, length, numbers, peft, stage.train_last_layers, layer=stage.head_layer)]
    trained = _language(shape, length, numbers, peft)
    whole = trained if peft.kind is PeftKind.none else None  # a backbone without an adapter: traced already
    scorers = _scorers(config) if spec.rewards else []
    found = [replace(trained, name="policy")] if spec.reference else [trained]
    if spec.value and stage.value is ValueKind.shared:
        found[0] = replace(found[0], weights=trained.weights + trained.width, trained=trained.trained + trained.width)
    own = spec.value and stage.value is ValueKind.own
    beside = spec.value and stage.value is ValueKind.adapter
    if own or beside or scorers:
        scalar = _reward(shape, length, numbers, like=whole or (None if own else trained))
        found += [replace(scalar, name="value function")] if own else []
    if beside:  # its activations are its own, its weights an adapter's and a head's
        size = trained.trained + trained.width
        found.append(replace(scalar, name="value function", weights=size, trained=size, orthogonal=0, adapter=True))
    # An adapter switched off is the policy that it began with; of given tokens that one is asked before it learns.
    if spec.reference and spec.rollouts and stage.compared and whole:
        found.append(replace(whole, name="reference", trained=0, orthogonal=0))
    if spec.reference and not spec.rollouts and whole and getattr(stage, "kl_prompts", 0) > 0:
        found.append(replace(whole, name=START, trained=0, orthogonal=0))
    if teacher is not None:
        found.append(replace(_language(teacher, length, numbers), name=TEACHER, trained=0, orthogonal=0))
    return found + [replace(scalar, name=name, trained=0, orthogonal=0) for name in scorers]


def answering_models(config: Config, shape: Any, length: int, numbers: Numbers) -> list[ModelPlan]:
    """Of data=best_of_n: the policy that answers, then the reward models; they are there before those of the stage."""
    policy = replace(_language(shape, length, numbers), name="the policy that answers", trained=0, orthogonal=0)
    if not (names := _scorers(config)):
        return [policy]
    scalar = _reward(shape, length, numbers, like=policy)
    return [policy, *(replace(scalar, name=name, trained=0, orthogonal=0) for name in names)]


def _scorers(config: Config) -> list[str]:
    parts = list(plugins.reward_models(config.reward))
    return ["reward model" if len(parts) == 1 else f"reward model {name}" for name in parts]


def _language(shape: Any, length: int, numbers: Numbers, peft: PeftConfig | None = None) -> ModelPlan:
    return _measure(AutoModelForCausalLM, shape, length, numbers, peft, lambda model: _adapted(model, peft))


def _reward(
    shape: Any,
    length: int,
    numbers: Numbers,
    peft: PeftConfig | None = None,
    last: int | None = None,
    like: ModelPlan | None = None,
    layer: int | None = None,
) -> ModelPlan:
    def prepared(model: Any) -> Any:
        if last is not None:
            freeze_all_but(model, last)
        return _adapted(model, peft, "SEQ_CLS")

    shape.num_labels = 1
    if layer is not None:
        shape = up_to_layer(copy.deepcopy(shape), layer)
    return _measure(AutoModelForSequenceClassification, shape, length, numbers, peft, prepared, like)


def _adapted(model: Any, peft: PeftConfig | None, task: str = "CAUSAL_LM") -> Any:
    return model if peft is None or peft.kind is PeftKind.none else add_adapter(model, peft, task)


def _measure(
    kind: Any,
    shape: Any,
    length: int,
    numbers: Numbers,
    peft: PeftConfig | None,
    prepare: Callable[[Any], Any],
    like: ModelPlan | None = None,
) -> ModelPlan:
    """Build a model, count it, and find what a training step on it keeps (`like`: as one of the same backbone does)."""
    with torch.device("meta"):
        base = kind.from_config(shape, attn_implementation=attention_of(kind, shape), dtype=torch.float32)
        flops = training_flops_per_token(base, length)
        quantized = _quantized(base) if peft is not None and peft.kind is PeftKind.qlora else 0
        model = prepare(base).train()
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    tied = head is not None and head.weight is base.get_input_embeddings().weight
    hidden, _ = split_parameters(model)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    if like is not None:
        whole, checkpointed = like.whole, like.checkpointed
    else:
        with FakeTensorMode():
            _make_fake(model, numbers.weights)
            whole = checkpointed = _traced(base, length, numbers)
            if base.supports_gradient_checkpointing:
                base.activation_checkpointing_enable({"use_reentrant": False})
                checkpointed = _traced(base, length, numbers)
    # Layers held in 4 bits keep no copy of their weights for the backward pass.
    kept = quantized * numbers.arithmetic.itemsize if numbers.autocast else 0
    queries = getattr(shape, "num_attention_heads", None)  # a model of the user's own may have no attention
    heads = getattr(shape, "num_key_value_heads", None) or queries or 0
    head_dim = getattr(shape, "head_dim", None) or shape.hidden_size // (queries or 1)
    return ModelPlan(
        name="model",
        weights=sum(size for size, _ in sizes),
        trained=sum(size for size, trained in sizes if trained),
        orthogonal=0 if hasattr(model, "peft_config") else sum(p.numel() for p in hidden),
        quantized=quantized,
        head=0 if head is None else head.weight.numel(),
        tied=tied,
        embedding=base.get_input_embeddings().weight.numel(),
        vocabulary=shape.vocab_size,
        width=shape.hidden_size,
        layers=shape.num_hidden_layers,
        context=shape.max_position_embeddings,
        kv_width=2 * shape.num_hidden_layers * heads * head_dim,
        flops=flops,
        whole=replace(whole, fixed=max(0, whole.fixed - kept)),
        checkpointed=checkpointed,
        adapter=hasattr(model, "peft_config"),
    )


def _make_fake(model: nn.Module, dtype: torch.dtype) -> None:
    """Fake tensors in place of a meta model's: they also know their device. Weights take the type in which they are
    stored; shared ones stay shared. (Module.to does not work on fake tensors.)"""
    made = {p: nn.Parameter(torch.empty(p.shape, dtype=dtype), p.requires_grad) for p in model.parameters()}
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = made[p]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _quantized(model: Any) -> int:
    """Weights that tinychat.models.quantized would hold in 4 bits."""
    widths, modules = input_widths(model), dict(model.named_modules())
    fits = [name for name, width in widths.items() if width % BLOCK == 0 and name != "score"]
    return sum(modules[name].weight.numel() for name in fits)


def _traced(model: Any, length: int, numbers: Numbers) -> Saved:
    """What _saved finds. Raises UserError where code of the user's does not run on tensors without data."""
    try:
        return _saved(model, length, numbers)
    except Exception as error:
        if is_of_transformers(model):
            raise
        raise UserError(
            f"plan: {type(model).__name__} does not run on tensors without data ({type(error).__name__}: "
            f"{one_line(error)}), by which memory is estimated; train a few steps instead: stage.max_steps=3 reports it"
        ) from error


def _saved(model: Any, length: int, numbers: Numbers) -> Saved:
    """What autograd keeps of the backbone of a fake model, told apart by rows of one and two sequences."""
    options: dict[str, Any] = {}
    if attention_can_be_set(model):
        model.set_attn_implementation(ATTENTION)
    if numbers.on_cpu:
        for faster in (use_blocked_attention, use_fused_norms, use_fused_rotary):
            faster(model, torch.device("cpu"))
        options = {"block_plan": plan_blocks(length)} if uses_blocked_attention(model) else {}
    one, two = (_kept_bytes(model, rows, length, numbers, options) for rows in (1, 2))
    return Saved(per_row=two - one, fixed=max(0, 2 * one - two))


def _kept_bytes(model: Any, rows: int, length: int, numbers: Numbers, options: dict[str, Any]) -> int:
    """Bytes of all tensors saved for the backward pass, each storage once, parameters left out."""
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}  # the tensors too: a freed storage's address would be used again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage()._cdata not in own:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    ids = torch.zeros(rows, length, dtype=torch.int64)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        # The lists of operators that autocast casts are alike on both devices for these models.
        torch.autocast("cpu", torch.bfloat16, enabled=numbers.autocast),
    ):
        model.base_model(input_ids=ids, use_cache=False, **options)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
