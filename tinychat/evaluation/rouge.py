"""ROUGE-L (Lin 2004): the longest common subsequence of words of a reply and a reference.

Own code, as the rouge-score package keeps ASCII letters and digits alone: a Chinese reply has no words for it. On such
text the two agree (without its stemmer).
"""

from __future__ import annotations

import re

# Scripts written without blanks: each character is a word. Japanese kana, Chinese characters, Korean syllables.
SINGLE = (
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003134f"
)
WORD = re.compile(rf"[{SINGLE}]|[^\W_{SINGLE}]+")


def rouge_l(reply: str, reference: str) -> float:
    """F1 of the longest common subsequence, 0 to 1; 0 where one has no words."""
    ours, theirs = words(reply), words(reference)
    common = common_subsequence(ours, theirs)
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def common_subsequence(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence, all of `first` in one step per word of `second` (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    everywhere = (1 << len(first)) - 1
    unmatched = everywhere
    for word in second:
        hits = unmatched & places.get(word, 0)
        unmatched = ((unmatched + hits) | (unmatched - hits)) & everywhere
    return len(first) - unmatched.bit_count()
