"""Whether a reply is the expected answer, by the kind of answer a task asks for; and ROUGE-L (Lin 2004), the
longest common subsequence of words of a reply and a reference."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from tinychat.config.plugins import VERIFIERS
from tinychat.errors import UserError, install_command
from tinychat.evaluation import math_answers
from tinychat.evaluation.final_answer import split_reply
from tinychat.evaluation.verdicts import letters, same_choice, same_verdict, verdict
from tinychat.runtime import limited, user_code

log = logging.getLogger("tinychat")
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

PATTERN_SECONDS = 1.0  # that a regular expression may search: some backtrack for ever

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
    """Whether the reply answers as expected; kind as `credit` has it. Raises UserError as that does."""
    return credit(kind, reply, expected) == 1


def credit(kind: str, reply: str, expected: str) -> float:
    """How much of what is expected the reply answers, from 0 to 1: most kinds know 0 and 1 alone. kind:

    exact: equal but for blanks; case and punctuation count. word: equal after normalise(). number: the last number in
    the reply, in digits or English words, has the value of the (last) one expected. yes_no: the first words are equal.
    list: the same items in the same order, in part where some are; set: in any order. stated: the words expected, alone
    or at the end of a first sentence that says so. math: the number or expression that the reply
    states as its answer (math_answers). logic: yes, no or unknown, and choice: letters of options (verdicts). regex:
    what is expected is a pattern, which the answer has to hold. Or one of the user's (data.verifiers), by its name. A
    reply's thought is not part of its answer (final_answer).
    Raises UserError for another kind, and for what the user's raises or gives.
    """
    check = VERIFIERS.named(kind, "answer")
    if kind in WHOLE:
        reply, expected = (split_reply(text, by_line=False).answer for text in (reply, expected))
    return float(check(reply, expected))


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


def _same_items(reply: str, expected: str) -> float:
    """The share of the longer list that stands in the same order in both."""
    ours, theirs = list_items(reply), list_items(expected)
    longer = max(len(ours), len(theirs))
    return common_subsequence(ours, theirs) / longer if longer else 1.0


ARTICLE = re.compile(r"^(?:an?|the) ")
CLAUSE = re.compile(r"[.!?](?=\s|$)|[,;(]|\s[-–—]\s")
HEADS = "sentence|sentiment|statement|text|category|class|type|language|resource|article|noun|item|phrase|tense"


def states(reply: str, expected: str) -> bool:
    """Whether the first sentence of the reply is what is expected, or ends with it after words that say so: "Good",
    "The sentiment is positive", "It can be classified as a positive sentence.". Articles and case do not count. One
    that denies it, or names another beside it, does not state it."""
    wanted = ARTICLE.sub("", normalise(expected))
    lines = [line for line in reply.splitlines() if normalise(line)]
    if len(lines) > 1 and lines[0].rstrip().endswith(":"):
        lines = lines[1:]
    first = re.split(r"[.!?](?=\s|$)", lines[0])[0] if lines else ""
    if wanted in (ARTICLE.sub("", normalise(part)) for part in (lines[0] if lines else "", CLAUSE.split(first)[0])):
        return bool(wanted)
    said = " ".join(re.sub(r"[\"'“”‘’`*]", " ", unicodedata.normalize("NFKC", first).casefold()).split())
    end = rf"(?:\b(?:is|are|was|be|being|as|of)|[:=]) (?:an? |the )?{re.escape(wanted)}(?: (?:{HEADS}))?[\s.]*$"
    return bool(wanted) and re.search(end, said) is not None


def _same_set(reply: str, expected: str) -> float:
    """The share of the items of both lists that stands in both, in any order; words before the list do not count."""
    ours, theirs = ({ARTICLE.sub("", item) for item in list_items(_listed(text))} for text in (reply, expected))
    return len(ours & theirs) / len(ours | theirs) if ours | theirs else 1.0


def _listed(text: str) -> str:
    """A text without what introduces its list."""
    return re.sub(r"^[^\n:,]*?(?::|\b(?:are|is|include)\b)\s+", "", text.strip(), count=1)


def matches(reply: str, pattern: str) -> bool:
    """Whether the pattern is found in the reply's answer. A search that takes longer finds nothing, and is told."""
    import regex

    try:
        return regex.search(pattern, split_reply(reply, by_line=False).answer, timeout=PATTERN_SECONDS) is not None
    except TimeoutError:
        log.warning("the pattern %r takes more than %g s on %r: no match", pattern[:80], PATTERN_SECONDS, reply[:80])
        return False


def pattern_problem(pattern: str) -> str:
    """What is wrong with a regular expression; "" for nothing."""
    import regex

    try:
        regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        return str(error)
    return ""


Check = Callable[[str, str], float]  # (reply, expected) -> from 0 (or False) to 1 (or True)
CHECKS: dict[str, Check] = {
    "exact": _to_the_letter,
    "number": _same_number,
    "word": _same,
    "yes_no": _same_first_word,
    "list": _same_items,
    "set": _same_set,
    "stated": states,
    "math": math_answers.same_answer,
    "logic": same_verdict,
    "choice": same_choice,
    "regex": matches,
}
# Kinds that read all of an answer, whose thought goes before them; the others find what is stated.
WHOLE = frozenset(("exact", "number", "word", "yes_no", "list", "set", "stated"))
# Kinds that cannot use every reference -> what one has to be, and whether a text is.
REFERENCES: dict[str, tuple[str, Callable[[str], bool]]] = {
    "math": (f"one number (for others: {install_command('math')})", math_answers.serves),
    "logic": ("yes, no or unknown", lambda text: verdict(text) is not None),
    "choice": ("letters from A to J", lambda text: bool(letters(text))),
    "regex": ("a regular expression", lambda text: pattern_problem(text) == ""),
}


IN_A_ROW = 3  # replies that a user's function is too slow or too greedy for, one after the other: it is the function


class UsersCheck:
    """A function (reply, expected) of the user's as a kind of answer; called in a process of its own."""

    def __init__(self, address: str, seconds: float, memory: float) -> None:
        """seconds: of processor time, for one reply. memory: bytes beyond what the loaded code takes."""
        self._address, self._seconds, self._memory = address, seconds, memory
        self._beyond = self._in_a_row = 0

    def __call__(self, reply: str, expected: str) -> float:
        """From 0 to 1. A reply that it takes too long for is wrong, and told; IN_A_ROW of them end the job."""
        where = f"data.verifiers: {self._address}"
        try:
            verdict = limited.call(self._address, [reply, expected], self._seconds, self._memory)
        except user_code.UserCodeError as error:
            raise UserError(f"{where}: {error}, for the reply {reply[:80]!r}") from error
        except limited.OutOfBounds as error:
            self._beyond, self._in_a_row = self._beyond + 1, self._in_a_row + 1
            if self._in_a_row == IN_A_ROW:
                more = "raise data.verifier_seconds or data.verifier_memory_mb, or mend it"
                raise UserError(
                    f"{where}: {error}, for {IN_A_ROW} replies in a row, the last {reply[:80]!r}; {more}"
                ) from error
            log.warning(
                "%s: %s, for the reply %r: counted as wrong (%d so far)", where, error, reply[:80], self._beyond
            )
            return 0.0
        self._in_a_row = 0
        if isinstance(verdict, list) or not 0 <= verdict <= 1:
            given = verdict[0] if isinstance(verdict, list) else repr(verdict)
            raise UserError(f"{where}: gave {given} where True or False is needed, or a share from 0 to 1")
        return float(verdict)


def adopt(found: Any, address: str, seconds: float, memory: float) -> Check:
    """A function of the user's as another kind. Raises UserError for what is none."""
    if not callable(found) or isinstance(found, type):
        raise UserError("is no function; a verifier is a function (reply, expected) -> True or False")
    return UsersCheck(address, seconds, memory)
