"""From (seed, split, index) to the one combination that a story tells: held-out cores and a permuted count.

A story's *combination* is its plot, trait, place, topic, hero and friend. The first four are its *core*. Each
core belongs to one split for ever: a stable hash of its words puts about one in HELD_OUT_EVERY into
validation, whatever the seed, so a model meets every word in training but never these cores. Train and
validation are thus disjoint.

Within a split, index → combination is one-to-one: every round of len(PLOTS) indices holds each plot once, in
shuffled order, and the number of the round is sent by a permutation to a position among all the combinations
of that plot. No story is remembered, and any index can be had alone. Since a text tells its combination (a
test reads it back), no two texts are equal.
"""

from functools import cache
from hashlib import blake2b
from random import Random

from tinychat.tinyworld.lexicon.living import NAMES
from tinychat.tinyworld.plots import PLOTS
from tinychat.tinyworld.scene import Combination, Plot

SPLITS = ("train", "validation")
HELD_OUT_EVERY = 16
_PAIRS = len(NAMES) * (len(NAMES) - 1)  # ordered pairs of different names
_MASK = (1 << 64) - 1


def held_out(plot: str, trait: str, place: str, topic: str) -> bool:
    """Whether this core occurs only in validation; depends on nothing but the four words."""
    digest = blake2b("|".join((plot, trait, place, topic)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_EVERY == 0


@cache
def _cores(split: str) -> tuple[tuple[tuple[int, int, int], ...], ...]:
    """For each plot the (trait, place, topic) positions that belong to the split."""
    wanted = split == "validation"
    return tuple(
        tuple(
            (t, p, x)
            for t, trait in enumerate(plot.traits)
            for p, place in enumerate(plot.places)
            for x, topic in enumerate(plot.topics)
            if held_out(plot.name, trait.word, place.name, topic.noun) == wanted
        )
        for plot in PLOTS
    )


def capacity(split: str) -> int:
    """How many different stories a split has; every index below it is valid."""
    return min(len(cores) for cores in _cores(split)) * _PAIRS * len(PLOTS)


def mix(*parts: int) -> int:
    """One 64-bit key from whole numbers, the same on every machine and version of Python."""
    state = 0x243F6A8885A308D3
    for part in parts:
        state = ((state ^ part) * 0x9E3779B97F4A7C15) & _MASK
        state ^= state >> 29
        state = (state * 0xBF58476D1CE4E5B9) & _MASK
        state ^= state >> 32
    return state


def permute(index: int, size: int, key: int) -> int:
    """The place of index in a permutation of range(size) chosen by key: a Feistel network with cycle walking.

    The network permutes range(4^half) ⊇ range(size); whoever lands outside walks on until inside, which keeps
    it one-to-one (Black and Rogaway, 2002) and takes fewer than four steps on average.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = index >> half, index & low
        for turn in range(4):
            left, right = right, left ^ (mix(key, turn, right) & low)
        index = left << half | right
        if index < size:
            return index


@cache
def _plot_order(key: int) -> tuple[int, ...]:
    order = list(range(len(PLOTS)))
    Random(key).shuffle(order)
    return tuple(order)


def combination(seed: int, split: str, index: int) -> tuple[Plot, Combination]:
    """The plot and combination of one story; ValueError: unknown split; IndexError: past its capacity."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: must be one of {', '.join(SPLITS)}")
    if not 0 <= index < capacity(split):
        raise IndexError(f"index={index}: the {split} split has stories 0 to {capacity(split) - 1}")
    key = mix(seed, SPLITS.index(split))
    round_, place_in_round = divmod(index, len(PLOTS))
    # 256 orders are plenty, and few enough to keep.
    which = _plot_order(mix(key, mix(key, round_) % 256))[place_in_round]
    plot, cores = PLOTS[which], _cores(split)[which]
    core, pair = divmod(permute(round_, len(cores) * _PAIRS, mix(key, which)), _PAIRS)
    trait, place, topic = cores[core]
    hero, friend = divmod(pair, len(NAMES) - 1)
    friend += friend >= hero  # skips the hero's own name
    return plot, Combination(
        plot.name, plot.traits[trait], plot.places[place], plot.topics[topic], NAMES[hero], NAMES[friend]
    )
