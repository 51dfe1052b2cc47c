"""Foreign text on a terminal: control characters are shown, never obeyed. Every place that prints such text asks here.

Data, prompts, replies and file names are other people's; an escape sequence in one would colour, clear or rename the
terminal, hide a line, or type an answer.
"""

from __future__ import annotations

import sys
import unicodedata

from tinychat.runtime.passwords import masked

# Pictures for the controls of ASCII but line end and tab, codes for those of Latin-1, and for what turns the direction
# of writing, under which a line reads otherwise than it is.
_SHOWN = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {127: "\u2421"}
_SHOWN |= {code: f"\\x{code:02x}" for code in range(0x80, 0xA0)}
_SHOWN |= {code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def as_text(text: str) -> str:
    """`text` with its control characters shown; line ends and tabs stay, as does every printable letter."""
    return text.translate(_SHOWN)


def is_plain(text: str) -> bool:
    """Whether nothing in `text`, line ends and tabs among it, would act on a terminal or end a line."""
    breaks = ("Cc", "Cs", "Zl", "Zp")
    return as_text(text) == text and not any(unicodedata.category(letter) in breaks for letter in text)


def say(line: str) -> None:
    """A line on standard error, its controls shown and its passwords hidden."""
    print(as_text(masked(line)), file=sys.stderr, flush=True)


def error_line(message: object) -> str:
    """What a program ends with, for sys.exit."""
    return f"error: {as_text(masked(str(message)))}"
