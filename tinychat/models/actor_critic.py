"""Policy and value function as one module: one engine trains both, with one optimizer and one gradient norm.

value=own      a second backbone with a scalar head (a transformers *ForSequenceClassification)
value=shared   a scalar head on the policy's last hidden states
value=adapter  a scalar head on those of a second adapter on the policy's base (tinychat.models.one_base)

A policy that learns without a value function is a causal language model by itself; the functions below take both.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.utils import ModelOutput

from tinychat.models.adapters import adapter_in_use, save_adapter, used_adapter
from tinychat.models.kernels.shared_prompts import shared_prompts
from tinychat.models.logprobs import IGNORED, head_is, head_returns_nll, inner_model, last_hidden
from tinychat.models.reward import in_fp32
from tinychat.models.vocabulary import WHOLE, Vocabulary

VALUE_FOLDER = "value"  # beside the policy's files in a checkpoint
VALUE_HEAD_FILE = "value_head.safetensors"  # in it, where the backbone is the policy's
POLICY, VALUE, HEAD = "policy.", "value.", "value_head."


@dataclass
class ActorCriticOutput(ModelOutput):
    """A dictionary too, in which DeepSpeed finds the tensors."""

    logits: Tensor | None = None  # (B, T, V)
    state_values: Tensor | None = None  # (B, T) fp32; not `values`, which is a dictionary's own


class ActorCritic(nn.Module):
    """Call it with tokens: `.logits` of the policy, `.state_values` (B, T) fp32, the value before each next token.

    It answers what training engines ask of a transformers model (config, output embeddings, adapters) for its policy.
    """

    def __init__(self, policy: Any, value: Any | None, critic_lr_ratio: float = 1.0, value_adapter: str | None = None):
        """value: a classification model with one label, whose head is set to zero; None: a head on the policy, or with
        value_adapter on the hidden states of the policy's adapter of this name."""
        super().__init__()
        self.policy, self.value, self._adapter = policy, value, value_adapter
        if value is None:
            width = policy.get_output_embeddings().weight.shape[1]
            self.value_head = nn.Linear(width, 1, bias=False)
            nn.init.zeros_(self.value_head.weight)
        else:
            nn.init.zeros_(value.score.weight)
        own = [p for name, p in policy.named_parameters() if f".{value_adapter}." in name]
        for p in (*(self.value_head if value is None else value).parameters(), *own):
            p.lr_ratio = critic_lr_ratio
        if hasattr(policy, "peft_config"):  # what tells an adapter from other models
            self.peft_config = policy.peft_config

    @property
    def parts(self) -> list[Any]:
        """The transformers models in it."""
        return [self.policy] if self.value is None else [self.policy, self.value]

    @property
    def config(self) -> Any:
        return self.policy.config

    def get_input_embeddings(self) -> Any:
        return self.policy.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        return self.policy.get_output_embeddings()

    def activation_checkpointing_enable(self, options: dict[str, Any]) -> None:
        if self._adapter is not None:  # what is computed again backward is so by the adapter that computed it

            def contexts() -> tuple[Any, Any]:
                return contextlib.nullcontext(), adapter_in_use(self.policy, used_adapter(self.policy))

            options = {**options, "context_fn": contexts}
        for part in self.parts:
            part.activation_checkpointing_enable(options)

    def forward(
        self,
        input_ids: Tensor,
        use_cache: bool = False,
        detach_values: bool = False,
        policy_alone: bool = False,
        **inputs: Any,
    ) -> ActorCriticOutput:
        """detach_values: what is learnt from the values does not reach the policy (under value=shared). policy_alone:
        the same, and the value function sees the first token alone (state_values (1, 1)): engines wait for a gradient
        of every weight."""
        valued = input_ids[:1, :1] if policy_alone else input_ids
        with last_hidden(self.policy, logits=True) as seen:
            logits = self.policy(input_ids=input_ids, use_cache=use_cache, **inputs).logits
        if self._adapter is not None:
            head, backbone = self.value_head, self.policy.get_base_model().base_model
            with adapter_in_use(self.policy, self._adapter):
                hidden = backbone(input_ids=valued, use_cache=False, **inputs).last_hidden_state
        elif self.value is None:
            head, hidden = self.value_head, seen[0].detach() if detach_values or policy_alone else seen[0]
            hidden = hidden[:1, :1] if policy_alone else hidden
        else:
            head = self.value.score
            hidden = self.value.base_model(input_ids=valued, use_cache=False, **inputs).last_hidden_state
        with head_is(head, lambda hidden, _: in_fp32(head, hidden)):  # as the reward's
            values = head(hidden)
        return ActorCriticOutput(logits=logits, state_values=values.squeeze(-1).float())

    def save_parts(self, weights: dict[str, Tensor], folder: Path, save: Any) -> None:
        """The policy into the folder itself, as it is without a value function; that into VALUE_FOLDER.

        weights: the whole state by name; save: (model, weights, folder), for one transformers model.
        """
        parts: dict[str, dict[str, Tensor]] = {POLICY: {}, VALUE: {}, HEAD: {}}
        for name, weight in weights.items():
            prefix = next(prefix for prefix in parts if name.startswith(prefix))
            parts[prefix][name.removeprefix(prefix)] = weight
        save(self.policy, parts[POLICY], folder)
        (folder / VALUE_FOLDER).mkdir()
        if self._adapter is not None:
            save_adapter(self.policy, parts[POLICY], folder / VALUE_FOLDER, self._adapter, parts[HEAD]["weight"])
        elif self.value is None:
            save_file(parts[HEAD], folder / VALUE_FOLDER / VALUE_HEAD_FILE)
        else:
            save(self.value, parts[VALUE], folder / VALUE_FOLDER)


def policy_of(model: Any) -> Any:
    """The causal language model: that of an ActorCritic, or the model itself."""
    return model.policy if isinstance(model, ActorCritic) else model


def hidden_and_values(
    model: Any, input_ids: Tensor, targets: Tensor, group: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """One forward pass of a policy or an ActorCritic (possibly wrapped) without its output head.

    input_ids, targets (B, T), whole rows or padded on the right; group as policy_and_values. Returns the policy's last
    hidden states (B, T, D), from which the head makes logits, and the values (B, T) fp32 of every position, None where
    there is no value function.
    """
    inner = getattr(model, "module", model)
    shared = shared_prompts(policy_of(inner), targets, group, IGNORED)
    inputs = {"input_ids": input_ids} if shared is None else shared.inputs(input_ids)
    with last_hidden(inner) as seen:
        out = model(use_cache=False, **inputs)
    hidden, values = seen[0], getattr(out, "state_values", None)
    if shared is None:
        return hidden, values
    return shared.rows(hidden), None if values is None else shared.rows(values)


def reply_nll(model: Any, input_ids: Tensor, targets: Tensor) -> Tensor:
    """Sum of the negative log-likelihoods, in nats, of the targets under a policy or that of an ActorCritic (possibly
    wrapped), as stage=sft learns from them; a value function gets a gradient of zero.

    input_ids, targets (B, T), padded on the right: as for tinychat.models.logprobs.token_nll.
    """
    inner = inner_model(model)
    alone = {"policy_alone": True} if isinstance(inner, ActorCritic) else {}
    with head_returns_nll(inner, targets, for_sum=True):
        out = model(input_ids=input_ids, use_cache=False, **alone)
    values = getattr(out, "state_values", None)
    return out.logits.sum() if values is None else out.logits.sum() + 0.0 * values.sum()


def policy_and_values(
    model: Any,
    input_ids: Tensor,
    targets: Tensor,
    temperature: float,
    vocabulary: Vocabulary = WHOLE,
    entropy: bool = False,
    detach_values: bool = False,
    group: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What one forward pass of a policy or an ActorCritic (possibly wrapped) says of each target.

    input_ids, targets, vocabulary: as for tinychat.models.logprobs.token_nll, whose numbers these are.
    detach_values: of an ActorCritic; what is learnt from the values does not reach the policy.
    group: (B,) a number that neighbours which begin with one prompt, up to the first target, have in common; it is then
        computed once for them where the model can (tinychat.models.kernels.shared_prompts).

    Returns:
        logprobs: (B, T) fp32 of the targets, 0 where there is none, at the temperature; with gradient.
        values: (B, T) fp32 of every position; with gradient; None where there is no value function.
        entropy: (B, T) fp32 of the policy's next token where there is a target, else 0, in nats, with
            gradient; None unless asked for.
    """
    inner = getattr(model, "module", model)
    inputs = {"input_ids": input_ids} | ({"detach_values": True} if detach_values else {})
    shared = shared_prompts(policy_of(inner), targets, group, IGNORED)
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            head_returns_nll(inner, targets, temperature, exact=True, vocabulary=vocabulary, entropy=entropy)
        )
        if shared is not None:
            inputs |= shared.inputs(input_ids)
            stack.enter_context(head_is(inner.get_output_embeddings(), lambda x, own: own(shared.rows(x))))
        out = model(use_cache=False, **inputs)
    values = getattr(out, "state_values", None)
    if shared is not None and values is not None:
        values = shared.rows(values)
    if entropy:
        nll, spread = out.logits.unbind(-1)
        return -nll, values, spread
    return -out.logits, values, None
