"""How much replies repeat: each other's words, and their own.

Both count over words, punctuation marks and characters of scripts without blanks, so that a row of exclamation marks is
seen too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from tinychat.evaluation.answers import SINGLE

TOKEN = re.compile(rf"[{SINGLE}]|[^\W_{SINGLE}]+|\S")
LONGEST_PHRASE = 32  # tokens of a phrase that is looked for


def tokens(text: str) -> list[str]:
    return TOKEN.findall(text.lower())


def distinct_2(replies: Sequence[str]) -> float | None:
    """Different bigrams / all bigrams of all replies together (Li et al. 2016, section 5.1, who divide by the words):
    1 where none comes twice. Of more text it is less, so compare replies to the same prompts. None without a bigram."""
    bigrams = [pair for reply in replies for pair in pairwise(tokens(reply))]
    return len(set(bigrams)) / len(bigrams) if bigrams else None


def longest_run(reply: str) -> int:
    """Tokens of the longest stretch of a reply that one phrase of up to LONGEST_PHRASE tokens fills, said at least
    twice without a break; the last time may be cut off. 0 where nothing is said twice in a row."""
    said = tokens(reply)
    longest = 0
    for period in range(1, min(LONGEST_PHRASE, len(said) // 2) + 1):
        equal = 0  # tokens in a row that stand `period` earlier too
        for place in range(period, len(said)):
            equal = equal + 1 if said[place] == said[place - period] else 0
            if equal >= period:
                longest = max(longest, equal + period)
    return longest
