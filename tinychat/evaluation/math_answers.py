"""Whether a reply states the number that is expected: integers, decimals, fractions, percentages, with or without
units, in digits, LaTeX, English or Chinese words. Exact arithmetic; what is no number is never compared as one.

Other references, such as \\sqrt{2} or x + 1, are for math-verify (the extra `math`), which asks sympy. It is not asked
about numbers: it takes the first of two answers, reads "3 1/2" as 1 and no words, and needs milliseconds, not
microseconds. It runs within bounds, as 9^{9^{9^9}} would take for ever.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

from tinychat.errors import install_command
from tinychat.evaluation.final_answer import stated
from tinychat.runtime import limited
from tinychat.runtime.run_files import tell_once

log = logging.getLogger("tinychat")
EXPRESSION_SECONDS, EXPRESSION_MEMORY = 5.0, 1e9  # for comparing two expressions

MOST_DIGITS = 400  # of a numeral, and of an exponent's value: more are no answer
MOST_NESTING = 20  # fractions in fractions
TOLERANCE = Fraction(1, 10**6)  # relative, of what is no integer: a third may be written 0.333333


class Value(NamedTuple):
    """A number as it is written."""

    number: Fraction
    percent: bool = False
    unit: str = ""  # a key of UNITS; "": none that is known


def _units() -> dict[str, tuple[str, Fraction]]:
    """Names of units -> what they measure, and how much of its first unit they are."""
    scales = {
        "length": "m metre metres meter meters 米:1 km kilometre kilometres kilometer kilometers 千米 公里:1000 "
        "cm centimetre centimetres centimeter centimeters 厘米:1/100 mm millimetre millimetres millimeter millimeters "
        "毫米:1/1000",
        "mass": "kg kilogram kilograms 千克 公斤:1 g gram grams 克:1/1000",
        "time": "s sec secs second seconds 秒:1 min mins minute minutes 分钟:60 h hr hrs hour hours 小时:3600 "
        "day days 天:86400",
        "volume": "l litre litres liter liters 升:1 ml millilitre millilitres milliliter milliliters 毫升:1/1000",
        "dollars": "$ dollar dollars usd 美元:1 ¢ cent cents 美分:1/100",
        "yuan": "¥ yuan rmb 元 块:1",
        "euros": "€ euro euros:1",
        "pounds": "£:1",
    }
    found: dict[str, tuple[str, Fraction]] = {}
    for measure, groups in scales.items():
        for names, factor in re.findall(r"([^:]+):(\S+)\s*", groups):
            found |= {name: (measure, Fraction(factor)) for name in names.split()}
    return found


UNITS = _units()
_CHINESE_UNITS = sorted((name for name in UNITS if not name.isascii() and name not in "¢¥€£"), key=len, reverse=True)

ONES = {
    word: number
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen".split()
    )
}
TENS = dict(zip("twenty thirty forty fifty sixty seventy eighty ninety".split(), range(20, 100, 10), strict=True))
SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_WORD = "|".join(sorted((*ONES, *TENS, *SCALES), key=len, reverse=True))

DIGITS = {character: number for number, character in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
TIMES = {"十": 10, "百": 100, "千": 1000, "万": 10**4, "亿": 10**8}
_CHINESE = "[零〇一二两三四五六七八九十百千万亿点]"

_INTEGER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.\d+)?|\.\d+)"
NUMBER = re.compile(
    rf"""
    (?P<minus> (?<![\w)\].]) [-−]\s* | \b(?:minus|negative)\s+ | 负 )?
    (?P<money> [$€£¥] \s* )?
    (?:
        (?<![\w^.]) (?P<whole> \d+ ) \s+ (?P<over> \d+ ) \s* / \s* (?P<under> \d+ )
      | (?<![a-z_^.\d]) (?P<top> {_DECIMAL} ) \s* / \s* (?P<bottom> {_DECIMAL} )
      | (?<![a-z_^.\d]) (?P<mantissa> {_DECIMAL} ) (?: e | \s* (?: [*×x] | \\times | \\cdot ) \s* 10 \s* \^ \s* \{{? )
        (?P<exponent> [+-]? \d+ ) \}}? (?![\w])
      | (?<![\w^.]) 10 \s* \^ \s* \{{? (?P<power> [+-]? \d+ ) \}}? (?![\w])
      | (?<![a-z_^.\d]) (?P<plain> {_DECIMAL} ) (?P<myriad> [万亿] )?
      | \b (?P<words> (?:{_WORD}) (?: (?:\s+and\s+|[\s-]+) (?:{_WORD}) )* ) \b
      | (?P<hundredths> 百分之 (?:{_CHINESE}+ | {_DECIMAL}) )
      | (?P<below> {_CHINESE}+ ) 分之 (?P<above> {_CHINESE}+ )
      | (?P<chinese> {_CHINESE}+ ) (?! [共些样起定直般旦切] | 分(?![之钟]) )
    )
    (?P<percent> \s* (?: % | per\s?cent\b ) )?
    (?: \s* (?P<unit> {"|".join(map(re.escape, _CHINESE_UNITS))} | [a-z]+ | ¢ ) )?
    """,
    re.VERBOSE,
)
FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
# LaTeX and Markdown that say nothing about a value.
SILENT = re.compile(
    r"\\[,!;:() \[\]]|\\(?:left|right|displaystyle|quad)(?![a-z])|\*\*|`|\$(?![\d.\s-])|\\\$(?!\s*[\d.])"
)
WRAPPED = re.compile(r"\\(?:text|mathrm|mathbf|textbf|boxed|fbox|mbox)\s*\{([^{}]*)\}")
HEDGE = re.compile(r"\bor\b|\beither\b|或|还是")
OPERATOR = re.compile(r"\s*(?:[-+*/×÷^]|plus|minus|times|\\times|\\cdot|\\div|加|减|乘|除以)\s*")
# Variables, functions and powers: what holds them is no number, or one that is to be worked out.
SYMBOL = re.compile(
    r"\\[a-z]|[π√∞]|(?<![a-z])[xyzn](?![a-z])|\d(?![mgshlek])[a-z](?![a-z])|[a-z)]\s*[-+*/×÷]\s*\(?\d"
    r"|(?<!m)(?<!ft)(?<!in)(?<!10)(?<!10\s)\^"
)
NEGATED = re.compile(r"\b(?:not|isn't|never)\b|不是|不为|并非")


def is_number(text: str) -> bool:
    """Whether what a text states is one number."""
    said, _ = stated(text)
    return len(said) == 1 and value_of(said[0], strict=True) is not None


def serves(reference: str) -> bool:
    """Whether replies can be checked against it: one number, or any expression where math-verify is there."""
    return is_number(reference) or (has_math_verify() and bool(stated(reference)[0]))


def has_math_verify() -> bool:
    return importlib.util.find_spec("math_verify") is not None


def same_answer(reply: str, expected: str) -> bool:
    """Whether the reply states the number or expression that is expected, each time that it states any."""
    if is_number(expected):
        return same_number(reply, expected)
    said, (wanted, *_) = stated(reply)[0], [*stated(expected)[0], ""]
    if not has_math_verify():
        tell_once(
            f"an expected answer, {wanted[:80]!r}, is no number: replies are compared with it letter by letter; "
            f"{install_command('math')} compares expressions"
        )
        return bool(said) and all("".join(text.split()) == "".join(wanted.split()) for text in said)
    try:
        address = f"{__name__}:equal_expressions"
        return bool(said) and all(
            limited.call(address, [text, wanted], EXPRESSION_SECONDS, EXPRESSION_MEMORY) is True for text in said
        )
    except limited.OutOfBounds as error:
        log.warning("comparing %r with the expected %r %s: counted as wrong", reply[-80:], wanted[:80], error)
        return False


def equal_expressions(said: str, wanted: str) -> bool:
    """By math-verify, without its own limit of time, which is a signal. Called within bounds alone."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it says at each call that its limit is off
    first, second = (
        parse(rf"\boxed{{{text.strip().strip('$').rstrip('.')}}}", parsing_timeout=None) for text in (wanted, said)
    )
    return bool(first and second) and bool(verify(first, second, timeout_seconds=None))


def same_number(reply: str, expected: str) -> bool:
    """Whether the reply states the one number that `expected` does, each time that it states any. A percentage is a
    hundredth of its number, or that number where the other has no sign for percent; units that are known must agree,
    one that is missing is not missed."""
    wanted, _ = stated(expected)
    value = value_of(wanted[0], strict=True) if len(wanted) == 1 else None
    said, marked = stated(reply)
    if value is None or not said:
        return False
    found = [value_of(text, strict=marked) for text in said]
    return all(one is not None and same_value(one, value) for one in found)


def same_value(one: Value, other: Value) -> bool:
    first, second = one.number, other.number
    if one.unit and other.unit:
        (measure, factor), (its_measure, its_factor) = UNITS[one.unit], UNITS[other.unit]
        if measure != its_measure:
            return False
        first, second = first * factor, second * its_factor
    if one.percent != other.percent:
        percentage, plain = (first, second) if one.percent else (second, first)
        return _close(percentage / 100, plain) or _close(percentage, plain)
    return _close(first, second)


def _close(one: Fraction, other: Fraction) -> bool:
    rounded = 1 not in (one.denominator, other.denominator)
    return one == other or (rounded and abs(one - other) <= TOLERANCE * max(abs(one), abs(other)))


def value_of(text: str, strict: bool) -> Value | None:
    """The value that a statement comes to: what stands behind its last equals sign. strict: there is one number alone;
    else the last one counts, unless it is one of two that the statement leaves open."""
    plain = _cleaned(text)
    if plain is None:
        return None
    for sign in ("=", "≈", "\\approx"):
        plain = plain.rpartition(sign)[2]
    found = list(NUMBER.finditer(plain))
    rest = NUMBER.sub(lambda match: "1" if "^" in match[0] else match[0], plain)  # powers of ten are numbers
    if NEGATED.search(plain) or SYMBOL.search(rest):
        return None
    values = [_value(match) for match in found]
    if not values or None in values:
        return None
    last = values[-1]
    if len(found) > 1 and OPERATOR.fullmatch(plain[found[-2].end() : found[-1].start()] + (found[-1]["minus"] or "")):
        return None  # 3 + 4 is for others to work out
    hedged = len(values) > 1 and HEDGE.search(plain)
    if (strict or hedged) and any(not same_value(value, last) for value in values if value and last):
        return None
    return last


def _cleaned(text: str) -> str | None:
    """Small letters, plain signs, fractions as a/b; None where fractions nest too deeply or divide by zero."""
    plain = unicodedata.normalize("NFKC", text).replace("\N{MINUS SIGN}", "-").replace("\\%", "%").casefold()
    plain = SILENT.sub("", plain.replace("\\$", "$").replace("^\\circ", "").replace("{,}", ","))
    for _ in range(MOST_NESTING):
        again = WRAPPED.sub(r" \1", plain)
        found = FRACTION.search(again)
        if found is None:
            if again == plain:
                return plain.strip().rstrip(".,;。")
            plain = again
            continue
        above, below = (value_of(part, strict=True) for part in (found[1] or found[2], found[3] or found[4]))
        if above is None or below is None or not below.number:
            return None
        whole = " " if re.search(r"\d\s*$", again[: found.start()]) else ""
        plain = f"{again[: found.start()]}{whole}{above.number / below.number}{again[found.end() :]}"
    return None


def _value(match: re.Match[str]) -> Value | None:
    try:
        number = _number(match)
    except (ValueError, ZeroDivisionError):
        return None
    if number is None:
        return None
    percent = bool(match["percent"] or match["hundredths"])
    unit = match["money"].strip() if match["money"] else (match["unit"] or "")
    return Value(-number if match["minus"] else number, percent, unit if unit in UNITS else "")


def _number(match: re.Match[str]) -> Fraction | None:
    if len(match[0]) > MOST_DIGITS:
        return None
    if match["whole"]:
        return int(match["whole"]) + Fraction(int(match["over"]), int(match["under"]))
    if match["top"]:
        return _decimal(match["top"]) / _decimal(match["bottom"])
    if match["mantissa"]:
        exponent = int(match["exponent"])
        return _decimal(match["mantissa"]) * Fraction(10) ** exponent if abs(exponent) <= MOST_DIGITS else None
    if match["power"]:
        return Fraction(10) ** int(match["power"]) if abs(int(match["power"])) <= MOST_DIGITS else None
    if match["plain"]:
        return _decimal(match["plain"]) * TIMES.get(match["myriad"] or "", 1)
    if match["words"]:
        return _english(match["words"])
    if match["hundredths"]:
        digits = match["hundredths"].removeprefix("百分之")
        return _chinese(digits) if digits[0] in DIGITS or digits[0] in TIMES else _decimal(digits)
    if match["below"]:
        above, below = _chinese(match["above"]), _chinese(match["below"])
        return above / below if above is not None and below else None
    return _chinese(match["chinese"])


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


def _english(text: str) -> Fraction | None:
    """twenty-one, two hundred and five, three thousand; None for words that make no number."""
    total = group = 0
    for word in re.findall(r"[a-z]+", text):
        if word in SCALES:
            if word == "hundred":
                group = max(group, 1) * 100
            else:
                total, group = total + max(group, 1) * SCALES[word], 0
        elif word != "and":
            group += ONES[word] if word in ONES else TENS[word]
    return Fraction(total + group)


def _chinese(text: str) -> Fraction | None:
    """十二, 一百零五, 三点五, 二〇二六; None for characters that make no number."""
    whole, point, digits = text.partition("点")
    if point and (not digits or any(character not in DIGITS for character in digits)):
        return None
    fraction = Fraction(int("".join(str(DIGITS[c]) for c in digits) or "0"), 10 ** len(digits))
    if whole and all(character in DIGITS for character in whole):
        return Fraction(int("".join(str(DIGITS[c]) for c in whole))) + fraction
    total = section = digit = 0
    for index, character in enumerate(whole):
        if character in DIGITS:
            digit = DIGITS[character]
        elif character in "十百千":
            if not digit and not (character == "十" and index == 0):
                return None
            section, digit = section + (digit or 1) * TIMES[character], 0
        else:
            if not section + digit:
                return None
            total, section, digit = (total + section + digit) * TIMES[character], 0, 0
    return Fraction(total + section + digit) + fraction if whole else None
