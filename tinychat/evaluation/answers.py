"""Whether a reply is the expected answer, by the kind of answer a task asks for; and ROUGE-L (Lin 2004), the
longest common subsequence of words of a reply and a reference."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from tinychat.config.plugins import VERIFIERS
from tinychat.errors import UserError
from tinychat.evaluation.math_answers import same_number
from tinychat.runtime import user_code

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


UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = dict(zip("twenty thirty forty fifty sixty seventy eighty ninety".split(), range(20, 100, 10), strict=True))
WORDS = {word: value for value, word in enumerate(UNITS)} | TENS

MEANT = frozenset("%#@&/\\")  # punctuation that belongs to an answer
NUMBER = re.compile(
    rf"""
    (?<![a-z0-9_])
    (?: (?P<minus> (?<![)\]]) - | \b (?:minus|negative) \s+ ) | \+ )?
    (?: (?P<digits> \d{{1,3}} (?:,\d{{3}})+ (?!\d) | \d+ ) (?P<decimals> \.\d+ )?
      | (?P<tens> {"|".join(TENS)} ) (?: [ -] (?P<ones> {"|".join(UNITS[1:10])} ) )? \b
      | (?P<word> {"|".join(sorted(UNITS, key=len, reverse=True))} ) \b
    )
    """,
    re.VERBOSE,
)
ITEM_END = re.compile(r"[,;、\n]|\band\b")
ITEM_NUMBER = re.compile(r"^\s*\d+[.)]\s+")
FIRST_WORD = re.compile(r"[^\W_]+")


def is_correct(kind: str, reply: str, expected: str) -> bool:
    """Whether the reply answers as expected. kind:

    exact: equal but for blanks; case and punctuation count. word: equal after normalise(). number: the last number in
    the reply, in digits or English words, has the value of the (last) one expected. yes_no: the first words are equal.
    list: the same items in the same order. math: the number that the reply states as its answer, as same_number. Or one
    of the user's (data.verifiers), by its name.
    Raises UserError for another kind, and for what the user's raises or gives.
    """
    return VERIFIERS.get(kind, "answer")(reply, expected)


def normalise(text: str) -> str:
    """Unicode NFKC, case folded, runs of blanks as one space, without punctuation and quotes around it.

    Articles stay, as do a minus sign before a digit and signs like % that change what is said.
    """
    words = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    start, end = 0, len(words)
    while start < end and _outer(words[start], words[start + 1 : start + 2]):
        start += 1
    while start < end and _outer(words[end - 1], ""):
        end -= 1
    return words[start:end]


def _outer(character: str, following: str) -> bool:
    if character in MEANT or (character == "-" and following.isdigit()):
        return False
    return character.isspace() or character == "`" or unicodedata.category(character).startswith("P")


def last_number(text: str) -> Decimal | None:
    """The last number in a text: 7, -7, 1,234.5, seven, minus seven, twenty-one. None without one.

    A hyphen is a minus sign only where no letter, digit or bracket stands before it.
    """
    plain = unicodedata.normalize("NFKC", text).replace("\N{MINUS SIGN}", "-").casefold()
    *_, found = None, *NUMBER.finditer(plain)
    if found is None:
        return None
    if found["digits"]:
        value = Decimal(found["digits"].replace(",", "") + (found["decimals"] or ""))
    elif found["tens"]:
        value = Decimal(TENS[found["tens"]] + (WORDS[found["ones"]] if found["ones"] else 0))
    else:
        value = Decimal(WORDS[found["word"]])
    return -value if found["minus"] else value


def list_items(text: str) -> list[str]:
    """Items between commas, semicolons, "and" and line ends, normalised, without numbering."""
    parts = ITEM_END.split(unicodedata.normalize("NFKC", text).casefold())
    return [item for part in parts if (item := normalise(ITEM_NUMBER.sub("", part)))]


def _to_the_letter(reply: str, expected: str) -> bool:
    return _blanks(reply) == _blanks(expected)


def _blanks(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _same(reply: str, expected: str) -> bool:
    return normalise(reply) == normalise(expected)


def _same_number(reply: str, expected: str) -> bool:
    wanted = last_number(expected)
    return wanted is not None and last_number(reply) == wanted


def _same_first_word(reply: str, expected: str) -> bool:
    first, wanted = FIRST_WORD.search(normalise(reply)), FIRST_WORD.search(normalise(expected))
    return first is not None and wanted is not None and first[0] == wanted[0]


def _same_items(reply: str, expected: str) -> bool:
    return list_items(reply) == list_items(expected)


Check = Callable[[str, str], bool]  # reply, expected
CHECKS: dict[str, Check] = {
    "exact": _to_the_letter,
    "number": _same_number,
    "word": _same,
    "yes_no": _same_first_word,
    "list": _same_items,
    "math": same_number,
}


def adopt(found: Any, address: str) -> Check:
    """A function (reply, expected) -> bool of the user's as another kind. Raises UserError for what is none."""
    if not callable(found) or isinstance(found, type):
        raise UserError("is no function; a verifier is a function (reply, expected) -> True or False")

    def check(reply: str, expected: str) -> bool:
        where = f"data.verifiers: {address}"
        try:
            with user_code.running():
                verdict = found(reply, expected)
                right = bool(verdict) if verdict in (True, False) else None
        except user_code.UserCodeError as error:
            raise UserError(f"{where}: {error}, for the reply {reply[:80]!r}") from error
        if right is None:
            raise UserError(f"{where}: gave {repr(verdict)[:80]} where True or False is needed")
        return right

    return check
