"""Several sources of documents, mixed by weight into the batches of a training.

Each source is tokenized and cut into blocks by itself (PackedBlocks), so that a small one with a large weight comes
more often, each time from another offset and in another order. Which source a sequence of a batch comes from is a
function of its number and the seed, as its place in the source is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from tinychat.data.batching import Epochs, share_of
from tinychat.data.documents.tokens import PackedBlocks, TokenCache
from tinychat.errors import UserError

ROUND = 1024  # sequences, in which the sources stand in a drawn order; their numbers are exact in each, but for one
GOLDEN = 0.6180339887498949


@dataclass
class MixedTokens:
    """The tokens of one split, by source."""

    parts: dict[str, TokenCache]
    weights: dict[str, float]  # sums to 1
    measured: dict[str, dict[str, float]] = field(default_factory=dict)  # by the latest evaluation of all of it

    @classmethod
    def of(cls, parts: dict[str, TokenCache], weights: Mapping[str, float | None]) -> MixedTokens:
        """weights: None where there is none: as many tokens as there are."""
        given = {name: float(part.n_tokens if weights[name] is None else weights[name]) for name, part in parts.items()}  # type: ignore[arg-type]
        total = sum(given.values())
        return cls(parts, {name: weight / total for name, weight in given.items()})

    @property
    def n_docs(self) -> int:
        return sum(part.n_docs for part in self.parts.values())

    @property
    def n_tokens(self) -> int:
        return sum(part.n_tokens for part in self.parts.values())

    @property
    def fingerprint(self) -> str:
        known = [(name, part.fingerprint, self.weights[name]) for name, part in self.parts.items()]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()

    def shared_out(self, most: int | None) -> Iterator[tuple[str, TokenCache, int | None]]:
        """Each source with its share of the first `most` tokens; None: all."""
        for name, part in self.parts.items():
            yield name, part, None if most is None else max(1, round(most * part.n_tokens / self.n_tokens))

    def together(self, measured: dict[str, dict[str, float]]) -> dict[str, float]:
        """What tinychat.evaluation.held_out.perplexity says of all tokens, from what it says of each source's; those
        are kept in `measured`."""
        self.measured = measured
        tokens = {name: found["eval/tokens"] for name, found in measured.items()}
        total = sum(tokens.values())
        loss = sum(measured[name]["eval/loss"] * count for name, count in tokens.items()) / total
        # As bits over bytes: what is measured of each source stands for all of it.
        sizes = {name: self.parts[name].n_bytes for name in measured}
        bits = sum(measured[name]["eval/bits_per_byte"] * size for name, size in sizes.items()) / sum(sizes.values())
        with np.errstate(over="ignore"):
            ppl = float(np.exp(np.float64(loss)))
        return {"eval/loss": loss, "eval/ppl": ppl, "eval/bits_per_byte": bits, "eval/tokens": total}

    def describe(self) -> str:
        shown = ", ".join(f"{name} {part.n_tokens:,} ({self.weights[name]:.1%})" for name, part in self.parts.items())
        return f"{self.n_docs:,} documents, {self.n_tokens:,} tokens: {shown}"


class MixedBlocks:
    """Training batches of several sources; what PackedBlocks is of one."""

    def __init__(self, tokens: MixedTokens, context_length: int, seed: int) -> None:
        """Raises UserError where a source fills no block."""
        self.names = list(tokens.parts)
        self._blocks: list[PackedBlocks] = []
        for number, (name, part) in enumerate(tokens.parts.items()):
            try:
                self._blocks.append(PackedBlocks(part.tokens, context_length, seed + number))
            except UserError as error:
                raise UserError(f"{name}: {error}, or leave it out: data.weights.{name}=0") from None
        self.n_blocks = sum(blocks.n_blocks for blocks in self._blocks)
        self._edges = np.cumsum([tokens.weights[name] for name in self.names])
        self._edges[-1] = 1.0
        self._offset = float(np.random.Generator(np.random.PCG64(seed % 2**64)).random())
        self._rounds = Epochs(seed, self._draw)
        self._before: np.ndarray = np.zeros(
            (1, len(self.names)), np.int64
        )  # of each round, sequences of each source before it

    def batch(self, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> dict[str, torch.Tensor]:
        """As PackedBlocks.batch."""
        rows = []
        for place in share_of(batch_size, rank, world_size):
            source, number = self._sample(step * batch_size + place)
            rows.append(self._blocks[source].batch(number, 1))
        return {key: torch.cat([row[key] for row in rows]) for key in rows[0]}

    def epoch_of(self, step: int, batch_size: int) -> float:
        """Sequences drawn before `step` over those that there are: an epoch where each source has its natural share."""
        return step * batch_size / self.n_blocks

    def epochs_of(self, step: int, batch_size: int) -> dict[str, float]:
        """Epochs gone through of each source before `step`."""
        number, position = divmod(step * batch_size, ROUND)
        counts = self._counts_before(number) + np.bincount(
            self._rounds[number][0][:position], minlength=len(self.names)
        )
        return {
            name: float(count / blocks.n_blocks)
            for name, count, blocks in zip(self.names, counts, self._blocks, strict=True)
        }

    def _sample(self, sample: int) -> tuple[int, int]:
        """The source of a sequence (0-based, counted over all steps), and the how-manieth of that source it is."""
        number, position = divmod(sample, ROUND)
        sources, ranks = self._rounds[number]
        source = int(sources[position])
        return source, int(self._counts_before(number)[source] + ranks[position])

    def _below(self, rounds: np.ndarray) -> np.ndarray:
        """int64 [rounds, sources]: sequences of a round that are of a source or of one before it.

        Of the grid (k + point) / ROUND, k = 0, 1, ..., those below each edge. Its point is another in every round and
        spread evenly, so that what a weight is more or less than a whole number of sequences comes out right.
        """
        points = (self._offset + rounds * GOLDEN) % 1.0
        below = np.ceil(self._edges[None, :] * ROUND - points[:, None]).clip(0, ROUND).astype(np.int64)
        below[:, -1] = ROUND
        return below

    def _draw(self, random: np.random.Generator, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Of a round: the source of each sequence, and how many of that source come before it in the round."""
        below = self._below(np.array([number]))[0]
        sources = np.asarray(np.searchsorted(below, random.permutation(ROUND), side="right"))
        ranks: np.ndarray = np.empty(ROUND, np.int64)
        for source in range(len(self.names)):
            its = sources == source
            ranks[its] = np.arange(its.sum())
        return sources, ranks

    def _counts_before(self, number: int) -> np.ndarray:
        """int64 [sources]: sequences of each in all rounds before this one."""
        if number >= len(self._before):
            rounds = np.arange(len(self._before) - 1, 2 * number + 1)
            counts = np.diff(self._below(rounds), axis=1, prepend=0)
            more = self._before[-1] + np.cumsum(counts, axis=0)
            self._before = np.concatenate([self._before, more])
        return self._before[number]


def training_blocks(
    tokens: TokenCache | MixedTokens, context_length: int, seed: int, in_order: bool = False
) -> PackedBlocks | MixedBlocks:
    """Raises UserError as they do."""
    if isinstance(tokens, MixedTokens):
        return MixedBlocks(tokens, context_length, seed)
    return PackedBlocks(tokens.tokens, context_length, seed, in_order)
