"""What policy and reference say of each token that was sampled, from one pass of each model and each output head."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor

from tinychat.models.logprobs import IGNORED, OutputHead
from tinychat.rl.kl import kl_and_entropy

MEASURES = ("logprobs", "ref_logprobs", "entropy", "full_kl")


@torch.no_grad()
def token_measures(
    hidden: Tensor,
    head: OutputHead,
    ref_hidden: Tensor,
    ref_head: OutputHead,
    targets: Tensor,
    temperature: float = 1.0,
    full_kl: bool = True,
    as_reference: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> dict[str, Tensor]:
    """MEASURES of each target: its log-probability under both, the policy's entropy before it was chosen, and the exact
    KL(policy || reference), 0 unless `full_kl` asks for it.

    The log-probabilities are those that an update computes, bit by bit where it works on as many tokens at a time. The
    logits of `tokens_at_once` tokens live at a time, and only where there is a target: no (B, T, V) tensor exists.

    Args:
        hidden, ref_hidden: (B, T, D), (B, T, D') last hidden states, from which the heads make logits.
        targets: (B, T), IGNORED where nothing is asked.
        temperature: divides both logits.
        as_reference: entered for each call of ref_head, which may be the policy's own without its adapter.

    Returns:
        (B, T) fp32 each, in nats, without gradient; 0 where the target is IGNORED.
    """
    kept = targets != IGNORED
    own, reference, wanted = hidden[kept], ref_hidden[kept], targets[kept]
    found = {name: torch.zeros(len(wanted), device=hidden.device) for name in MEASURES}
    size = min(head.tokens_at_once, ref_head.tokens_at_once)
    for start in range(0, len(wanted), size):
        part = slice(start, start + size)
        logits = head.logits(own[part])
        with as_reference():
            ref_logits = ref_head.logits(reference[part])
        kl, entropy = kl_and_entropy(logits, ref_logits if full_kl else None, temperature)
        found["full_kl"][part], found["entropy"][part] = kl, entropy
        found["logprobs"][part] = -head.nll(logits, wanted[part], temperature)
        found["ref_logprobs"][part] = -ref_head.nll(ref_logits, wanted[part], temperature)
    return {name: torch.zeros(targets.shape, device=x.device).masked_scatter(kept, x) for name, x in found.items()}
