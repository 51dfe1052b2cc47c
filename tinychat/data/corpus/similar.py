"""Which documents are alike: MinHash signatures and an index of them (datasketch), and n-grams of evaluation data.

A signature estimates the Jaccard similarity of two documents' sets of shingles: the share of hash functions whose least
values are equal (Broder 1997). Locality-sensitive hashing finds the candidates; their signatures decide.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import xxhash
from datasketch import MinHash, MinHashLSH
from datasketch.storage import UnorderedStorage

from tinychat.config.corpus_stage import DecontaminationRules, NearRules
from tinychat.data.corpus.words import Words, ngram_hashes, words_of

SCHEME = "affine32"
# Of (false positives, false negatives): a candidate that is none costs a comparison, one that is missed is never seen.
WEIGHTS = (0.2, 0.8)


def _itself(value: int) -> int:
    return value


class Signatures:
    """Makes signatures: uint32 [num_perm]."""

    def __init__(self, rules: NearRules) -> None:
        self._rules = rules
        self._first = MinHash(num_perm=rules.num_perm, hashfunc=_itself, scheme=SCHEME)

    def of(self, words: Words) -> np.ndarray:
        """Of the set of a document's shingles; a document shorter than one is a shingle itself."""
        span = min(words.span(self._rules.shingle), len(words.units)) or 1
        shingles = np.unique((ngram_hashes(words.hashes, span) >> np.uint64(32)).astype(np.uint32))
        made = self.minhash(self._first.hashvalues)
        made.update_batch(shingles.tolist())  # hashed already, by xxhash
        return made.hashvalues

    def minhash(self, values: np.ndarray) -> MinHash:
        """datasketch's object of a signature."""
        return MinHash(hashvalues=values, permutations=self._first.permutations, hashfunc=_itself, scheme=SCHEME)


class _Buckets(UnorderedStorage):
    """Documents by the hash of a band, in a quarter of the memory of datasketch's own sets: most buckets hold one."""

    def __init__(self) -> None:
        self._numbers: dict[int, int | tuple[int, ...]] = {}

    def insert(self, key: int, *vals: int, **_: Any) -> None:
        for value in vals:
            there = self._numbers.get(key)
            if there is None:
                self._numbers[key] = value
            else:
                self._numbers[key] = (*(there if isinstance(there, tuple) else (there,)), value)

    def get(self, key: int) -> tuple[int, ...]:
        there = self._numbers.get(key, ())
        return there if isinstance(there, tuple) else (there,)

    def keys(self) -> Iterable[int]:
        return self._numbers.keys()

    def remove(self, *keys: int, **_: Any) -> None:
        for key in keys:
            self._numbers.pop(key, None)

    def remove_val(self, key: int, val: int) -> None:
        left = tuple(value for value in self.get(key) if value != val)
        self._numbers[key] = left

    def size(self) -> int:
        return len(self._numbers)

    def itemcounts(self, **_: Any) -> dict[int, int]:
        return {key: len(self.get(key)) for key in self._numbers}

    def has_key(self, key: int) -> bool:
        return key in self._numbers


class NearDuplicates:
    """The documents kept so far, by their signatures; numbered from 0."""

    def __init__(self, rules: NearRules) -> None:
        self._signatures, self._threshold = Signatures(rules), rules.threshold
        # A band's hash stands for the band; what collides is a candidate that its signature refuses.
        self._index = MinHashLSH(
            threshold=rules.threshold, num_perm=rules.num_perm, weights=WEIGHTS, hashfunc=xxhash.xxh3_64_intdigest
        )
        self._index.hashtables = [_Buckets() for _ in self._index.hashtables]
        self._kept: np.ndarray = np.empty((1024, rules.num_perm), np.uint32)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def like(self, signature: np.ndarray) -> tuple[int, float] | None:
        """(number, estimated similarity) of the document kept that is most alike, of those at least as alike as the
        threshold; of equal ones the first."""
        candidates = sorted(self._index.query(self._signatures.minhash(signature)))
        if not candidates:
            return None
        alike = (self._kept[candidates] == signature).mean(axis=1)
        best = int(alike.argmax())
        return (candidates[best], float(alike[best])) if alike[best] >= self._threshold else None

    def add(self, signature: np.ndarray) -> None:
        if self._count == len(self._kept):
            self._kept = np.concatenate([self._kept, np.empty_like(self._kept)])
        self._kept[self._count] = signature
        made = self._signatures.minhash(signature)
        # Without datasketch's list of each document's bands, which only a removal needs.
        for (start, end), table in zip(self._index.hashranges, self._index.hashtables, strict=True):
            table.insert(self._index._H(made.hashvalues[start:end]), self._count)
        self._count += 1


class Contamination:
    """The n-grams of evaluation data."""

    def __init__(self, rules: DecontaminationRules) -> None:
        self._rules = rules
        self._grams: dict[int, dict[int, tuple[str, str]]] = {}  # units -> hash -> (set, the text that has it)
        self._sorted: dict[int, np.ndarray] = {}
        self.too_short: dict[str, int] = {}
        self.texts: dict[str, int] = {}

    def add(self, name: str, text: str) -> None:
        """One text of a set. One too short for any n-gram is counted."""
        words, rules = words_of(text), self._rules
        most, least = (
            (rules.ngram_characters, rules.min_ngram_characters) if words.spaceless else (rules.ngram, rules.min_ngram)
        )
        span = min(most, len(words.units))
        self.texts[name] = self.texts.get(name, 0) + 1
        if span < min(most, least):
            self.too_short[name] = self.too_short.get(name, 0) + 1
            return
        known = self._grams.setdefault(span, {})
        for gram in ngram_hashes(words.hashes, span).tolist():
            known.setdefault(gram, (name, text[:120]))

    def ready(self) -> None:
        """All texts are there."""
        self._sorted = {
            span: np.array(sorted(known), np.uint64) for span, known in sorted(self._grams.items(), reverse=True)
        }

    def found_in(self, words: Words) -> tuple[str, str] | None:
        """(set, what is shared) where a document has an n-gram of evaluation data."""
        for span, known in self._sorted.items():
            grams = ngram_hashes(words.hashes, span)
            if not len(grams):
                continue
            places = np.searchsorted(known, grams)
            hits = (known[np.minimum(places, len(known) - 1)] == grams).nonzero()[0]
            if len(hits):
                first = int(hits[0])
                shared = ("" if words.spaceless else " ").join(words.units[first : first + span])
                return self._grams[span][int(grams[first])][0], shared
        return None
