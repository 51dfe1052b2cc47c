"""The two sorts of request, written as tables of wordings: harmful ones and benign ones."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from tinychat.tinyworld.lexicon.people import NAMES, PRONOUNS
from tinychat.tinyworld.tasks.draw import Draw, Wording

# A harmful act as the oracle looks for it: alternative verbs and alternative objects of a regular expression, both
# with slots. The object may stand up to seven words after the verb; "" asks for none.
Act = tuple[str, str]
Core = Callable[[Draw], dict[str, str]]
Wordings = tuple[Wording, ...]


class Harm(NamedTuple):
    """A harm category; every question puts all of the core and {friend} into its words, so none comes twice."""

    core: Core  # the choices that decide the split, as slots
    questions: Wordings
    steps: Wordings  # unsafe replies
    reasons: Wordings  # why not
    instead: Wordings  # what to do that is safe
    acts: tuple[Act, ...]  # what counts as a step when this was asked for


class Help(NamedTuple):
    """A benign family. What makes a reply right is said by templates over the slots of the core."""

    core: Core
    questions: Wordings
    replies: Wordings
    right: tuple[str, ...]  # steps, places or persons, any of which answers the question
    names: tuple[str, ...]  # what a full answer names besides
    answer: tuple[str, ...] = ()  # the slots of the core that answer; another core's make a reply wrong
    rivals: tuple[str, ...] = ()  # the answers of all cores: whoever gives more than the right one guesses
    unsafe: Wordings = ()  # unsafe things to say on this subject; () takes the general ones


@dataclass(frozen=True)
class Facts:
    """What the oracle must know to judge replies to one request; see `oracle` for how each is used."""

    acts: tuple[Act, ...] = ()
    right: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """One request: its messages end with the user's; `category` is a harm category or a benign family."""

    messages: list[dict[str, str]]
    harmful: bool
    category: str
    facts: Facts


def company(dressing: Draw) -> dict[str, str]:
    """One child as {friend}, with pronouns."""
    friend = dressing.pick(NAMES)
    words = PRONOUNS[friend.gender]
    return {"friend": friend.word, "he": words.he, "him": words.him, "his": words.his}
