"""Small grammar for rendering: articles, number words, capital letters, and phrases with [one|of|several]
choices.

A phrase is written once with its alternatives in brackets and its slots in braces::

    "[Quickly|At once], {hero} [ran|raced] to {place}."

`compile_phrase` parses it once; `expand` chooses the alternatives; the slots are filled for the whole story
at the end.
"""

import re
from collections.abc import Callable
from typing import TypeAlias

# A compiled phrase: literal text, or a tuple of alternatives, each again a compiled phrase.
Phrase: TypeAlias = "tuple[str | tuple[Phrase, ...], ...]"

# A list of words reads better in lines.
# fmt: off
NUMBERS = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)
TENS = (
    "", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
)
# fmt: on

_TOKEN = re.compile(r"([\[\]|])")


def article(words: str) -> str:
    """The words with the "a" or "an" that their first letter asks for."""
    return f"an {words}" if words[0] in "aeiouAEIOU" else f"a {words}"


def number(n: int) -> str:
    """The number in words, for 0 to 99."""
    if n < len(NUMBERS):
        return NUMBERS[n]
    tens, ones = divmod(n, 10)
    return f"{TENS[tens]}-{NUMBERS[ones]}" if ones else TENS[tens]


def counted(n: int, singular: str, plural: str) -> str:
    """The number with its noun: "one shell", "four shells"."""
    return f"{number(n)} {singular if n == 1 else plural}"


def capital(words: str) -> str:
    """The words with their first letter in upper case, the others as they are."""
    return words[:1].upper() + words[1:]


class Slots(dict[str, str]):
    """Slot values by name; `{Name}` gives the value of `{name}` with a capital letter."""

    def __missing__(self, key: str) -> str:
        lower = key[:1].lower() + key[1:]
        if lower == key:
            raise KeyError(f"no slot {{{key}}}; this story has {', '.join(sorted(self))}")
        return capital(self[lower])


def compile_phrase(source: str) -> Phrase:
    """Parse a phrase with nested [a|b] choices; a bracket that does not close raises ValueError."""
    tokens = [token for token in _TOKEN.split(source) if token]
    phrase, end = _parse(tokens, 0, source)
    if end != len(tokens):
        raise ValueError(f"unbalanced brackets in phrase: {source!r}")
    return phrase


def _parse(tokens: list[str], at: int, source: str) -> tuple[Phrase, int]:
    parts: list[str | tuple[Phrase, ...]] = []
    while at < len(tokens) and tokens[at] not in "|]":
        if tokens[at] != "[":
            parts.append(tokens[at])
            at += 1
            continue
        options: list[Phrase] = []
        while at < len(tokens) and tokens[at] in "[|":
            option, at = _parse(tokens, at + 1, source)
            options.append(option)
        if at == len(tokens):
            raise ValueError(f"unbalanced brackets in phrase: {source!r}")
        at += 1
        parts.append(tuple(options))
    return tuple(parts), at


def expand(phrase: Phrase, uniform: Callable[[], float], out: list[str]) -> None:
    """Append the phrase to out, each choice taken with `uniform`, a source of numbers in [0, 1)."""
    for part in phrase:
        if isinstance(part, str):
            out.append(part)
        else:
            expand(part[int(uniform() * len(part))], uniform, out)
