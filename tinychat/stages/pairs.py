"""What stages that learn from pairs of replies share: the pairs as tokens, log-probabilities of both sides, and
those of the reference, which are computed once and kept."""

from __future__ import annotations

import contextlib
import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinychat.config.schema import Config
from tinychat.config.specs import spec_of
from tinychat.data.files.caches import cached, if_cached, mapped, synced_file
from tinychat.data.files.splits import Split
from tinychat.data.preferences.sources import preference_source
from tinychat.data.preferences.tokens import UNKNOWN, PreferenceCache, eval_pairs, preference_cache
from tinychat.engine import Batch, Engine
from tinychat.models.adapters import adapter_in_use, is_adapter
from tinychat.models.logprobs import IGNORED, token_nll
from tinychat.models.vocabulary import Vocabulary
from tinychat.runtime.world import World
from tinychat.stages import Context
from tinychat.stages.common import log

VERSION = 1  # of the kept log-probabilities; raised when the same model and tokens would give others
KEPT_AS = "<f4"


def get_pairs(split: Split, tokenizer: Any, length: int, config: Config, context: Context) -> PreferenceCache:
    """The split's pairs as tokens (of the training split this stage's part of the prompts); built by whichever rank or
    run comes first."""
    part = spec_of(config).part if split == "train" else None
    source = preference_source(config.data, split)
    pairs = preference_cache(source, tokenizer, length, Path(config.paths.cache), context.world.is_main, part)
    log.info("%s: %s", split, pairs.describe())
    return pairs


def pair_facts(pairs: PreferenceCache) -> dict[str, Any]:
    """What lineage says of a split."""
    return {"fingerprint": pairs.fingerprint, "pairs": len(pairs), "tokens": pairs.n_tokens}


def side_logprobs(model: Any, batch: Batch, words: Vocabulary) -> tuple[Tensor, Tensor]:
    """Log-probabilities of whole replies, end tokens included, and how many tokens they have: (N, 2) fp32 each, chosen
    and rejected.

    batch: 2N rows as collate_pairs gives them, both sides of all pairs in one forward pass. words: which rows of the
    head are tokens.
    """
    targets = batch["input_ids"][:, 1:].masked_fill(~batch["response_mask"][:, 1:], IGNORED)
    # Padding stands on the right, where no token sees it. Not in rounded sums: differences of log-probabilities count.
    nll = token_nll(model, batch["input_ids"][:, :-1], targets, exact=True, vocabulary=words)
    return -nll.sum(1).view(-1, 2), (targets != IGNORED).sum(1).view(-1, 2)


@dataclass(frozen=True)
class ReferenceModel:
    """The policy as it begins, to be asked before its first step: of a policy with an adapter its base."""

    engine: Engine
    words: Vocabulary
    weights: str  # weights_key of it
    batch_size: int  # pairs per forward pass on one rank

    def logprobs(self, pairs: PreferenceCache, numbers: np.ndarray, cache_dir: Path) -> np.ndarray:
        """(len(pairs), 2) fp32: side_logprobs of the pairs in `numbers`, 0 for others; in evaluation mode and the
        policy's own arithmetic. From the cache, or computed now by all ranks and kept. Every rank calls this, and
        before the policy has learnt or a checkpoint was resumed."""
        world = self.engine.world
        identity = {
            "version": VERSION,
            "pairs": pairs.path.name,  # which says source, tokenizer, template and length
            "left out": len(pairs) - len(numbers),
            "weights": self.weights,
            "arithmetic": str(self.engine.dtype),
            "stored": str(next(self.engine.model.parameters()).dtype),
            "device": world.device.type,
            "vocabulary": [self.words.size, list(self.words.holes)],
        }
        parent, name = cache_dir / "references", pairs.path.name.rpartition("-")[0]

        def load(folder: Path, _meta: dict[str, Any]) -> np.ndarray:
            return np.array(mapped(folder / "logprobs.bin", KEPT_AS, 2 * len(pairs))).reshape(-1, 2)

        found = if_cached(parent, name, identity, load)
        if world.sum(float(found is None))[0] == 0:
            assert found is not None
            log.info("reference: log-probabilities of %s pairs, kept from an earlier run", f"{len(numbers):,}")
            return found
        begin = time.perf_counter()
        values = self._measure(pairs, numbers, world)
        seconds = time.perf_counter() - begin
        log.info("reference: log-probabilities of %s pairs, computed in %.1f s", f"{len(numbers):,}", seconds)

        def write(folder: Path) -> dict[str, Any]:
            with synced_file(folder / "logprobs.bin") as file:
                file.write(values.astype(KEPT_AS).tobytes())
            return {}

        if world.is_main:
            cached(parent, name, identity, load, write)
        world.barrier()
        return values

    def _measure(self, pairs: PreferenceCache, numbers: np.ndarray, world: World) -> np.ndarray:
        found = torch.zeros(len(pairs), 2, device=world.device)
        with self.engine.inference() as model:
            off = adapter_in_use(model, None) if is_adapter(model) else contextlib.nullcontext()
            with off:
                for batch in eval_pairs(pairs, self.batch_size, world.rank, world.size, pairs=numbers):
                    own = batch["pair"][::2].to(world.device)
                    on_device = {key: batch[key].to(world.device) for key in ("input_ids", "response_mask")}
                    values, _ = side_logprobs(model, on_device, self.words)
                    if int(own[0]) != UNKNOWN:
                        found[own] = values
        # Each pair stands in one rank's table alone.
        return world.gather(found[None]).sum(0).cpu().numpy()


def weights_key(model: Any, frozen: bool = False) -> str:
    """A hash of all that a model computes with; of one with an adapter, of its base, and with `frozen` of what is not
    trained. Before an engine parts it."""
    digest = hashlib.blake2b(digest_size=16)
    own = {id(p) for p in model.parameters() if p.requires_grad} if frozen or is_adapter(model) else set()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if id(tensor) in own:
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
