"""A document as words, also where no spaces part them; and hashes of its n-grams.

Chinese, Japanese, Thai, Lao, Burmese and Khmer are written without spaces. There a unit is a character, and rules that
count words take SPACELESS_WORD characters as one: the mean length of a Chinese word in running text.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import xxhash

SPACELESS_WORD = 1.5  # characters
SPACELESS_SHARE = 0.2  # of a document's characters, white space left out: from here on it counts as spaceless
SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana and Han
)
_UNIT = re.compile(rf"[{SPACELESS}]|[^\W{SPACELESS}]+")
_ONE = re.compile(rf"[{SPACELESS}]")
_BREAK = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
# What Unicode calls control characters, but for tab and line end; and marks that show nothing: byte order mark, zero
# width space. Joiners stay: Persian and emoji are spelt with them.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\ufeff\ufffe\uffff]")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)


def normalised(text: str, form: str | None, line_ends: bool, control_characters: bool) -> str:
    """The text in one Unicode form, with \\n as the only line end and without control characters; white space around
    it is taken off. form: NFC, NFKC, NFD, NFKD; None: as it is."""
    if line_ends:
        text = _BREAK.sub("\n", text)
    if control_characters:
        text = _CONTROL.sub("", text)
    if form is not None and not text.isascii():
        text = unicodedata.normalize(cast(Any, form), text)
    return text.strip()


@dataclass(frozen=True)
class Words:
    """A document's units, in small letters."""

    units: list[str]
    spaceless: bool

    @property
    def count(self) -> float:
        """Words; of a spaceless document SPACELESS_WORD characters are one."""
        if not self.spaceless:
            return float(len(self.units))
        return len(self.units) - self.single.sum() * (1 - 1 / SPACELESS_WORD)

    @functools.cached_property
    def single(self) -> np.ndarray:
        """bool [units]: which are characters of a script without spaces."""
        return np.array([len(unit) == 1 and _ONE.match(unit) is not None for unit in self.units], bool)

    @property
    def mean_length(self) -> float | None:
        """Characters of a word that is parted by spaces, on average; None where there are none such."""
        lengths = np.fromiter(map(len, self.units), np.int64, len(self.units))
        if self.single.any():
            lengths = lengths[~self.single]
        return float(lengths.mean()) if len(lengths) else None

    def span(self, words: int) -> int:
        """So many words in units."""
        return int(words * SPACELESS_WORD + 0.5) if self.spaceless else words

    @functools.cached_property
    def hashes(self) -> np.ndarray:
        """uint64 [units]."""
        return hashes_of(self.units)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """int64 [units]: characters of each; of a spaceless document at most 2, or a few Latin words would outweigh
        all that is written around them."""
        found = np.fromiter(map(len, self.units), np.int64, len(self.units))
        return np.minimum(found, 2) if self.spaceless else found


def words_of(text: str) -> Words:
    units = _UNIT.findall(text.lower())
    if text.isascii():
        return Words(units, False)
    single = len(_ONE.findall(text))
    return Words(units, single > 0 and single >= SPACELESS_SHARE * sum(map(len, units)))


def hashes_of(units: Sequence[str]) -> np.ndarray:
    """uint64 [units]."""
    digest = xxhash.xxh3_64_intdigest
    return np.array([digest(unit.encode()) for unit in units], np.uint64)


def ngram_hashes(hashes: np.ndarray, n: int) -> np.ndarray:
    """uint64 [N - n + 1]: of each run of n units, from the hashes [N] of the units. Empty where there are fewer."""
    if len(hashes) < n:
        return hashes[:0]
    rest = len(hashes) - n + 1
    found = hashes[:rest].copy()
    for place in range(1, n):
        # Each step mixes, so that the order counts and a sum of two n-grams says nothing of a third.
        found = (found ^ (found >> np.uint64(29))) * _MULTIPLIER + hashes[place : place + rest]
    return (found ^ (found >> np.uint64(32))) * _MIX
