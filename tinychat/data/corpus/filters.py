"""Why a document is left out, or what is taken out of it: each rule a function of its text, after the papers.

A rule returns None for a document that stays, else what it found, as the end of a sentence. What counts words counts
characters where no spaces part them (tinychat.data.corpus.words).
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from tinychat.config.corpus_stage import C4Rules, CodeRules, GopherRules, LengthRules, RepetitionRules
from tinychat.data.corpus.words import SPACELESS, Words, ngram_hashes, words_of

Why = tuple[str, str]  # (rule, what it found)

_BULLETS = ("-", "*", "•", "‣", "▶", "●", "○", "■", "□", "▪", "◦", "·", "–")
_ELLIPSES = ("...", "…", "。。。")
_ELLIPSIS = re.compile(r"\.{3,}|…+|。{3,}")
_PARAGRAPHS = re.compile(r"\n\s*\n")
# A full stop of Chinese ends a sentence whatever follows (a digit, a Latin letter, an opening quotation mark); one of
# other languages before a space or such a script (3.14, example.com); an ellipsis at the end of a line alone.
_CLOSING = "[\"'”’」』)）》】]*"
_SENTENCE_END = re.compile(
    f"[。！？]+[。！？!?…]*{_CLOSING}|[.!?]+{_CLOSING}(?=\\s|$|[{SPACELESS}])|…+{_CLOSING}(?=\\s|$)"
)
_GENERATED = re.compile(
    r"auto-?\s?generated|automatically generated|generated (?:by|from|code|file)|do not (?:edit|modify)|自动生成",
    re.IGNORECASE,
)
_FIRST_LINES = 5
_TERMINAL = (".", "!", "?", '"', "'", "”", "’", "。", "！", "？", "…", "」", "』", "；", "：", ":", "）", ")")
_POLICIES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
    "使用条款",
    "隐私政策",
    "隐私权政策",
    "cookie 政策",
    "使用cookie",
    "使用 cookie",
)
_CITATION = re.compile(r"\[\d+\]|\[edit\]|\[citation needed\]")


def length(text: str, rules: LengthRules) -> Why | None:
    if len(text) < rules.min_characters:
        return "length.min_characters", f"{len(text)} characters, fewer than {rules.min_characters}"
    if rules.max_characters is not None and len(text) > rules.max_characters:
        return "length.max_characters", f"{len(text):,} characters, more than {rules.max_characters:,}"
    return None


def gopher(text: str, words: Words, language: str, rules: GopherRules) -> Why | None:
    """Quality rules of Rae et al. 2021, A.1.1."""
    count = words.count
    if count < rules.min_words or not count:
        return "gopher.min_words", f"{count:.0f} words, fewer than {rules.min_words}"
    if count > rules.max_words:
        return "gopher.max_words", f"{count:,.0f} words, more than {rules.max_words:,}"
    mean = None if words.spaceless else words.mean_length
    if mean is not None and not rules.min_mean_word_length <= mean <= rules.max_mean_word_length:
        bounds = f"{rules.min_mean_word_length:g} to {rules.max_mean_word_length:g}"
        return "gopher.mean_word_length", f"words of {mean:.1f} characters on average, not {bounds}"
    marks = max(text.count("#"), len(_ELLIPSIS.findall(text)))
    if marks > rules.max_symbols_per_word * count:
        return "gopher.max_symbols_per_word", f"{marks} symbols (# or ellipses) among {count:.0f} words"
    lines = [line.strip() for line in text.split("\n") if not line.isspace() and line]
    bullets = sum(line.startswith(_BULLETS) for line in lines)
    if bullets > rules.max_bullet_lines * len(lines):
        return "gopher.max_bullet_lines", f"{bullets} of {len(lines)} lines begin with a bullet"
    ellipses = sum(line.endswith(_ELLIPSES) for line in lines)
    if ellipses > rules.max_ellipsis_lines * len(lines):
        return "gopher.max_ellipsis_lines", f"{ellipses} of {len(lines)} lines end with an ellipsis"
    tokens = words.units if words.spaceless else text.split()
    alphabetic = sum(1 for token in tokens if token.isalpha() or any(map(str.isalpha, token)))
    if alphabetic < rules.min_alphabetic_words * len(tokens):
        return "gopher.min_alphabetic_words", f"{alphabetic} of {len(tokens)} words have a letter"
    if (stop := rules.stop_words.get(language)) is not None:
        known = len(set(stop).intersection(words.units))
        if known < rules.min_stop_words:
            return "gopher.min_stop_words", f"{known} different stop words of {language}"
    return None


def repetition(text: str, words: Words, rules: RepetitionRules) -> Why | None:
    """Repetition rules of Rae et al. 2021, table A1."""
    if "\n" in text:
        for parts, what in ((text.split("\n"), "line"), (_PARAGRAPHS.split(text), "paragraph")):
            if found := _repeated_parts([part.strip() for part in parts if part.strip()], what, rules):
                return found
    total = int(words.lengths.sum())
    ends = np.concatenate([[0], np.cumsum(words.lengths)])
    for n, most in rules.top_ngrams.items():
        if found := _top_ngram(words, n, most, rules.top_ngram_times, ends, total):
            return found
    for n, most in sorted(rules.duplicate_ngrams.items()):
        share = _duplicate_share(words, words.span(n), ends, total)
        if share > most:
            return f"repetition.duplicate_ngrams.{n}", f"{share:.0%} of its characters are in repeated {n}-grams"
        if not share:
            break  # a longer one that is repeated would hold a shorter one
    return None


def _repeated_parts(parts: list[str], what: str, rules: RepetitionRules) -> Why | None:
    again = len(parts) - len(set(parts))
    if not again:
        return None
    if again > getattr(rules, f"duplicate_{what}s") * len(parts):
        return f"repetition.duplicate_{what}s", f"{again} of {len(parts)} {what}s came before"
    count = Counter(parts)
    characters = sum(len(part) * (times - 1) for part, times in count.items())
    total = sum(map(len, parts))
    if characters > getattr(rules, f"duplicate_{what}_characters") * total:
        share = f"{characters / total:.0%} of its characters are in {what}s that came before"
        return f"repetition.duplicate_{what}_characters", share
    return None


def _top_ngram(words: Words, n: int, most: float, least: int, ends: np.ndarray, total: int) -> Why | None:
    """least: times that an n-gram comes, to be a repetition."""
    span = words.span(n)
    grams = ngram_hashes(words.hashes, span)
    longest, often = int((ends[span:] - ends[:-span]).max(initial=0)), _most_frequent(grams)
    if often < least or often * longest <= most * total:  # of nearly all documents: nothing more is looked at
        return None
    _, first, times = np.unique(grams, return_index=True, return_counts=True)
    times = np.where(times >= least, times, 0)
    characters = times * (ends[first + span] - ends[first])
    best = int(characters.argmax())
    if characters[best] <= most * total:
        return None
    gram = ("" if words.spaceless else " ").join(words.units[first[best] : first[best] + span])
    share = min(1.0, float(characters[best]) / total)  # of one that overlaps itself a character counts twice
    return f"repetition.top_ngrams.{n}", f"{gram!r} {times[best]} times, {share:.0%} of its characters"


def _most_frequent(grams: np.ndarray) -> int:
    """How often the most frequent of some hashes comes; 0 where each comes once."""
    if len(grams) < 2:
        return 0
    ordered = np.sort(grams)
    begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1], [True]]))
    times = int(np.diff(begins).max())
    return times if times > 1 else 0


def _duplicate_share(words: Words, span: int, ends: np.ndarray, total: int) -> float:
    """The share of characters in n-grams that came before, each character counted once."""
    grams = ngram_hashes(words.hashes, span)
    if not _most_frequent(grams):
        return 0.0
    _, first = np.unique(grams, return_index=True)
    again: np.ndarray = np.ones(len(grams), bool)
    again[first] = False
    covered: np.ndarray = np.zeros(len(words.units) + 1, np.int64)
    starts = again.nonzero()[0]
    np.add.at(covered, starts, 1)
    np.add.at(covered, starts + span, -1)
    return float(words.lengths[np.cumsum(covered)[:-1] > 0].sum()) / total


def c4(text: str, rules: C4Rules, taken_out: Counter[str]) -> str | Why:
    """The text without the lines that C4 takes out (Raffel et al. 2020, 2.2), which are counted; or why all of it is
    left out."""
    small = text.lower()
    if rules.lorem_ipsum and "lorem ipsum" in small:
        return "c4.lorem_ipsum", "has 'lorem ipsum'"
    if rules.braces and ("{" in text or "}" in text):
        return "c4.braces", "has a brace, as code has"
    if rules.citations and "[" in text:
        text, count = _CITATION.subn("", text)
        taken_out["citation marks"] += count
    javascript = rules.javascript and "javascript" in small
    policies = rules.policies and any(policy in small for policy in _POLICIES)
    longest = rules.max_word_length is not None and len(text) > rules.max_word_length
    if javascript or policies or longest or rules.terminal_punctuation or rules.min_words_per_line:
        kept: list[str] = []
        for line in text.split("\n"):
            why = _bad_line(line, rules) if line.strip() else None
            if why is None:
                kept.append(line)
            else:
                taken_out[why] += 1
        text = "\n".join(kept).strip()
        if not text:
            return "c4.lines", "no line is left"
    if rules.min_sentences:
        sentences = sum(map(_sentences, text.split("\n")))
        if sentences < rules.min_sentences:
            return "c4.min_sentences", f"{sentences} sentences, fewer than {rules.min_sentences}"
    return text


def _sentences(line: str) -> int:
    """Of a line, which is one at least where it has a word: as C4's own code counts."""
    ends = list(_SENTENCE_END.finditer(line))
    rest = line[ends[-1].end() :] if ends else line
    return len(ends) + any(map(str.isalnum, rest))


def code(text: str, rules: CodeRules) -> Why | None:
    """Rules for files of programs (Chen et al. 2021, 3.1)."""
    lines = text.split("\n")
    if rules.generated and (found := _GENERATED.search("\n".join(lines[:_FIRST_LINES]))):
        return "code.generated", f"says {found.group()!r} in its first lines"
    longest, mean = max(map(len, lines)), sum(map(len, lines)) / len(lines)
    if longest > rules.max_line_length:
        return "code.max_line_length", f"a line of {longest:,} characters, more than {rules.max_line_length:,}"
    if mean > rules.max_mean_line_length:
        return "code.max_mean_line_length", f"lines of {mean:.0f} characters on average"
    shown = [character for character in text if not character.isspace()]
    share = sum(map(str.isalnum, shown)) / len(shown)
    if share < rules.min_alphanumeric:
        return "code.min_alphanumeric", f"{share:.0%} of its characters are letters or digits"
    return None


def _bad_line(line: str, rules: C4Rules) -> str | None:
    small = line.lower()
    if rules.javascript and "javascript" in small:
        return "lines on javascript"
    if rules.policies and any(policy in small for policy in _POLICIES):
        return "lines on cookies, terms or privacy"
    if rules.terminal_punctuation and not line.rstrip().endswith(_TERMINAL):
        return "lines without punctuation at their end"
    if rules.max_word_length is not None and len(line) > rules.max_word_length:
        words = words_of(line)
        if not words.spaceless and max(map(len, line.split()), default=0) > rules.max_word_length:
            return f"lines with a word of over {rules.max_word_length} characters"
    if rules.min_words_per_line and words_of(line).count < rules.min_words_per_line:
        return f"lines of fewer than {rules.min_words_per_line} words"
    return None


class Blocklist:
    """Words and phrases that no document may have. A word counts as a whole, in small letters or large ones; a phrase,
    and what is written without spaces, wherever it stands."""

    def __init__(self, entries: Iterable[str]) -> None:
        words, phrases = set(), []
        for entry in entries:
            units = words_of(entry)
            if len(units.units) == 1 and not units.spaceless and units.units[0] == entry.lower():
                words.add(entry.lower())
            else:
                phrases.append(re.escape(entry.lower()))
        self._words = frozenset(words)
        # The longest first, so that what is shown is as much as possible.
        self._phrases = re.compile("|".join(sorted(phrases, key=len, reverse=True))) if phrases else None

    def __call__(self, text: str, words: Words) -> Why | None:
        if self._words and (found := self._words.intersection(words.units)):
            return "blocklist", f"has {min(found)!r}"
        if self._phrases and (match := self._phrases.search(text.lower())):
            return "blocklist", f"has {match.group()!r}"
        return None


_EMAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.)+[A-Za-z]{2,24}(?![A-Za-z0-9])")
# A Chinese mobile number (1, then 3 to 9, eleven digits), one with the code of a country, one of North America. Digits
# alone are no telephone number: a year range or a price would be one.
_PHONE = re.compile(
    r"(?<![\w.+-])(?:"
    r"(?:\+?86[- ]?)?1[3-9]\d[- ]?\d{4}[- ]?\d{4}"
    r"|\+\d{1,3}(?:[-. ]?\(?\d{2,4}\)?){2,5}"
    r"|(?:1[-. ])?(?:\(\d{3}\) ?|\d{3}[-.])\d{3}[-.]\d{4}"
    r"|0\d{2,3}-\d{7,8}"
    r")(?![\w-]|\.\d)",
    re.ASCII,
)
_IP = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\d)", re.ASCII)
_CHINA_ID = re.compile(
    r"(?<!\w)[1-9]\d{5}(?:18|19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?!\w)", re.ASCII
)


def _is_public(address: str) -> bool:
    """As FineWeb has it: an address of a private network is nobody's; a version number is none with a part over 255."""
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _is_china_id(number: str) -> bool:
    """By its check digit (GB 11643-1999)."""
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return "10X98765432"[sum(int(digit) * weight for digit, weight in zip(number, weights, strict=False)) % 11] == (
        number[-1].upper()
    )


def _is_phone(number: str) -> bool:
    return 10 <= sum(map(str.isdigit, number)) <= 15


# Kind -> pattern, what a match must be beside, mask. A number that is an identity number is no telephone number, so
# that one comes first.
_PERSONAL: dict[str, tuple[re.Pattern[str], Callable[[str], bool] | None, str]] = {
    "email": (_EMAIL, None, "<EMAIL>"),
    "china_id": (_CHINA_ID, _is_china_id, "<ID>"),
    "phone": (_PHONE, _is_phone, "<PHONE>"),
    "ip": (_IP, _is_public, "<IP>"),
}


def personal(text: str, kinds: Iterable[str]) -> Iterator[tuple[str, re.Match[str]]]:
    """(kind, match) of everything that looks like personal data."""
    wanted = set(kinds)
    for kind, (pattern, is_one, _) in _PERSONAL.items():
        if kind in wanted and _may_have(kind, text):
            yield from ((kind, match) for match in pattern.finditer(text) if is_one is None or is_one(match.group()))


def masked(text: str, kinds: Iterable[str], taken_out: Counter[str]) -> str:
    """The text with <EMAIL>, <PHONE>, <IP> and <ID> in place of what `personal` finds, which is counted."""
    wanted = set(kinds)
    for kind, (pattern, is_one, mask) in _PERSONAL.items():
        if kind not in wanted or not _may_have(kind, text):
            continue

        def put(match: re.Match[str], kind: str = kind, is_one: object = is_one, mask: str = mask) -> str:
            if callable(is_one) and not is_one(match.group()):
                return match.group()
            taken_out[f"{kind} masked"] += 1
            return mask

        text = pattern.sub(put, text)
    return text


_DIGITS = re.compile(r"\d[\d .()-]{5,}\d", re.ASCII)


def _may_have(kind: str, text: str) -> bool:
    """Quick: the patterns are slow, and most texts have none."""
    return "@" in text if kind == "email" else _DIGITS.search(text) is not None
