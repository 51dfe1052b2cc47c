"""Instructions of Alpaca whose reply can be checked: a short reference, and only one answer that is right.

A filter of rules over instruction, input and output, written for tatsu-lab/alpaca's wording and no other. It prefers
leaving a row out to taking one that has several right answers. Kinds, and how a reply is checked against the reference
(tinychat.evaluation.answers): yes_no, true and false too (logic); classification, one of the labels that the
instruction names (stated); arithmetic (number); word, one word or name that the instruction determines (stated); order,
items sorted by number or alphabet (list); items, what is found in a text, in any order (set). docs/honesty.md has
counts, and how often the filter is right.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator

from tinychat.data.chats.rows import BadRow, ChatRow

log = logging.getLogger(__name__)

# The answer of each kind, as a name in tinychat.evaluation.answers.CHECKS.
ANSWERS = {
    "yes_no": "logic",
    "classification": "stated",
    "arithmetic": "number",
    "word": "stated",
    "order": "list",
    "items": "set",
}
LONGEST = 12  # words of a reference


def _any_of(phrases: str) -> re.Pattern[str]:
    """Whether one of the phrases is said, expressions with ; between them."""
    return re.compile(rf"\b(?:{'|'.join(phrase.strip() for phrase in ' '.join(phrases.split()).split(';'))})\b", re.I)


NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?")
MAKES = re.compile(r"(?:build|design|write|create|generate|compose|construct|develop)\b", re.I)
YES_NO = re.compile(r"(?:yes|no|true|false)\b", re.I)
ASKS_YES_NO = _any_of(
    r"""^(?:is|are|does|do|did|can|was|were|has|have|will|should); (?:if|whether|that) .*; yes or no; true or false;
    false or true; true\b.{0,12}\bfalse"""
)
ASKS_LABEL = _any_of(
    r"""classif\w+; categori[sz]\w+; label; either; one of the following; (?:determine|identify) (?:if|whether); decide;
    output (?:should be )?(?:either )?["'\d]\w*; identify the (?:type|sentiment|tone)"""
)
OPTIONS = _any_of("options?; choices; categor(?:y|ies); classes")
SEVERAL = _any_of("items; words; sentences; animals; objects; elements; following (?:foods|list)")
ASKS_NUMBER = _any_of(
    r"""calculate; compute; solve; evaluate; add; sum; subtract; multipl\w+; divide\w*; average; mean; median; mode;
    perimeter; area; volume; result; equation; how (?:many|much); difference; convert; missing number; expression;
    total; percentage; factorial; number of; simplify; remainder; product of; \d ?[-+*/x×÷] ?\d;
    (?:smallest|largest|biggest|greatest|maximum|minimum|lowest|highest|first|second|third|fourth|fifth)
    (?:\w+ ){0,2}(?:number|element|value)"""
)
NO_NUMBER = _any_of(  # it is made up, rounded, no number, or depends on what is not said
    r"""program; code; function; query; sql; predict\w*; estimate\w*; random\w*; approximate\w*; circle; circumference;
    sphere; pi; compound interest; square root; angle; output [01] for; binary; fraction; days between; syllables;
    forecast\w*; story; sentence; string; script; algorithm; pool; cylinder; currency; euros?; years needed"""
)
ASKS_WORD = _any_of(
    r"""^(?:what|which|who|where|when|in which|in what|whose)(?! (?:is|are) (?:the best|your|some|a good));
    capital (?:city )?of; (?:author|poet|playwright|composer|inventor|director|painter|president) (?:of|behind|who);
    past tense; plural; singular; past participle; infinitive; gerund; comparative form; correctly spelled; misspel\w+;
    most frequent; spelling (?:error|mistake); unscramble; compound word; odd one out; part of speech;
    (?:identify|find|name|extract|detect|select|pick) the (?:\w+ )?(?:subject|object|verb|noun|adjective|adverb|pronoun|
    preposition|city|country|author|language|tense|word|keyword|capital|chart);
    (?:french|spanish|german|italian|latin) (?:word|equivalent|translation) (?:for|of)""".replace("|\n    ", "|")
)
OPEN = _any_of(
    r"""synonyms?; antonyms?; opposite; rhym\w+; suggest\w*; generate; create; come up; give; invent; describ\w+; best;
    examples?; random; favou?rite; slogan; titles?; another; similar; new; catchy; propose; imagine; replace; rewrite;
    paraphrase; think of; recommend; compose; write; design; construct; appropriate; suitable; emotions?; mood;
    metaphor; theme; tone; topic; summar\w+; weather; might; could; would you; adhesive; method; a word;
    name (?:a|an|one|two|three|\d+)"""
)
ASKS_ORDER = _any_of("sort; arrange; rearrange; order; reorder; put; alphabeti[sz]e; rank")
ALPHABET = re.compile(r"\balphabet", re.I)
BY_NUMBER = _any_of("ascending; descending; (?:smallest|largest|lowest|highest|greatest|least|biggest) to; numerical")
NOT_TEXT = re.compile(r"https?:|<img|\[image|\.(?:jpg|png)\b", re.I)
FROM_TEXT = _any_of(
    r"""(?:identify|find|list|extract|pick out|underline|name|highlight|select|what are) (?:\w+ ){0,4}?(?:nouns|verbs|
    adjectives|adverbs|pronouns|prepositions|conjunctions|names|numbers|people|places|cities|countries|dates|vowels|
    duplicates|key ?words|colors|ingredients|fruits|animals)(?: \w+){0,3}? (?:in|from|used|of|present|mentioned|
    contained|within|below|that appear)""".replace("|\n    ", "|")
)
ITEM = re.compile(r"[,;\n]|\band\b")
QUOTES = " \t\"'“”‘’`.!?:*()[]{}-"


def checked(rows: Iterator[ChatRow | BadRow], name: str) -> Iterator[ChatRow | BadRow]:
    """The conversations whose reply can be checked, each with its kind as family; the others are counted, and told."""
    kinds: Counter[str] = Counter()
    seen = 0
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        seen += 1
        if (found := checkable(row)) is not None:
            kinds[found.family] += 1
            yield found
    counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    log.info("%s: %s of %s conversations can be checked: %s", name, f"{kinds.total():,}", f"{seen:,}", counts or "none")


def checkable(row: ChatRow) -> ChatRow | None:
    """The row of one turn as it is checked, its kind as its family; None where its reply cannot be."""
    if len(row.messages) != 2:
        return None
    asked, reply = row.messages
    kind = kind_of(asked["content"], asked.get("input", ""), reply["content"])
    return None if kind is None else ChatRow(row.messages, row.place, kind, ANSWERS[kind], unused=row.unused)


def kind_of(instruction: str, given: str, reference: str) -> str | None:
    """The kind of a row; None where its reply cannot be checked. given: the instruction's input, or ""."""
    said, reference = instruction.strip(), reference.strip()
    n_words = len(reference.split())
    if not 0 < n_words <= LONGEST or "<" in reference or MAKES.match(said) or NOT_TEXT.search(said + given):
        return None
    if YES_NO.match(reference) and ASKS_YES_NO.search(said) and not OPEN.search(said):
        return "yes_no"
    label = _plain(reference)
    asked = f" {_plain(said)} {_plain(given) if OPTIONS.search(given) else ''} "
    one = n_words <= 3 and not re.search("[,:]", reference) and not SEVERAL.search(said)
    if one and ASKS_LABEL.search(said) and label and f" {label} " in asked and _plain(given) != label:
        return "classification"
    if _is_order(said, given, reference):
        return "order"
    if ASKS_NUMBER.search(said) and _is_number(said, given, reference, n_words):
        return "arithmetic"
    if FROM_TEXT.search(said) and not ASKS_ORDER.search(said) and _is_found(said, given, reference):
        return "items"
    if n_words <= 2 and ASKS_WORD.search(said) and not OPEN.search(said) and re.fullmatch(r"[^\d,:;/=|]+", reference):
        return "word"
    return None


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[\"'“”‘’`.!?:*()\[\]{},]", " ", text.casefold()).split())


def _is_number(said: str, given: str, reference: str, n_words: int) -> bool:
    """Whether the reference is one exact number that follows from numbers."""
    found = NUMBER.findall(reference)
    if len(found) != 1 or n_words > 10 or NO_NUMBER.search(said) or NO_NUMBER.search(reference):
        return False
    _, _, decimals = found[0].partition(".")
    given_numbers = NUMBER.findall(f"{said} {given}")
    return len(decimals) <= 2 and len(given_numbers) >= (1 if re.search(r"(?i)convert|number of", said) else 2)


def _items(text: str) -> list[str]:
    text = re.sub(r"(?m)^\s*\d+[.)]\s+", "", text.casefold())
    return [item for part in ITEM.split(text) if (item := part.strip(QUOTES))]


def _is_order(said: str, given: str, reference: str) -> bool:
    """Whether the reference has the items that are given, sorted by alphabet or number."""
    if not ASKS_ORDER.search(said):
        return False
    items = _items(reference)
    source = _items(given or said.rpartition(":")[2])
    if len(items) < 2 or sorted(items) != sorted(source):
        return False
    numbers = all(NUMBER.fullmatch(item) for item in items)
    return bool(ALPHABET.search(said)) or (numbers and bool(BY_NUMBER.search(said)))


def _is_found(said: str, given: str, reference: str) -> bool:
    """Whether the reference is a list of words of the text."""
    listed = re.sub(r"^[^\n:,]*?(?::|\b(?:are|is|include)\b)\s+", "", reference, count=1)
    items, text = _items(listed), f" {_plain(given or said)} "
    return 1 < len(items) <= 8 and all(f" {_plain(item)} " in text for item in items) and not OPEN.search(said)
