"""What lessons share: words to draw from, lines to choose from, and how something is looked up again."""

from random import Random

from tinychat.tinyworld.lexicon.living import NAMES
from tinychat.tinyworld.tasks.draw import KINDS, OPPOSITES

PEOPLE = tuple(name.word for name in NAMES)
TRAITS = tuple(OPPOSITES)
KIND_OF = {word: kind for kind in KINDS for word in kind.members}
# Between what is looked for and what is found there may be many words or none.
_BETWEEN = (
    ":",
    ":",
    ", as we know:",
    ", as it says above:",
    "? That is easy:",
    "? Look again and read:",
    "? Now think of what was told and say it:",
    ", so that nobody forgets it, once more:",
)


def listed(words: list[str]) -> str:
    """As in instructions: with blanks alone between the words."""
    return " ".join(words)


def some(chance: Random, lines: list[str], least: int) -> list[str]:
    """At least that many of the lines, in any order."""
    return chance.sample(lines, chance.randint(min(least, len(lines)), len(lines)))


def recalled(chance: Random, ways: list[tuple[str, str]], least: int = 1, most: int = 3) -> str:
    """Some of the pairs (what is looked for, what is found), as sentences."""
    chosen = chance.sample(ways, chance.randint(least, min(most, len(ways))))
    return " ".join(f"{asked}{chance.choice(_BETWEEN)} {found}." for asked, found in chosen)
