"""What a plot is: where it can play, what it can turn on, how its events follow, and how each can be told."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tinychat.tinyworld.grammar import Phrase, compile_phrase
from tinychat.tinyworld.lexicon.living import TRAITS, Trait
from tinychat.tinyworld.lexicon.things import PLACES, WEATHERS, Place, Weather
from tinychat.tinyworld.scene import Scene


@dataclass(frozen=True)
class Plot:
    """A plot. `plan` lets the events happen; `phrases` has the ways to tell each kind of event.

    Every moral belongs to one plot alone, so that a text tells its plot; each is a clause without slots.
    """

    name: str
    plan: Callable[[Scene], None]
    phrases: dict[str, tuple[str, ...]]
    morals: tuple[str, ...]
    topics: tuple[Any, ...]
    places: tuple[Place, ...] = PLACES
    traits: tuple[Trait, ...] = TRAITS
    weathers: tuple[Weather, ...] = WEATHERS
    together: bool = True  # whether the friend is there from the start
    compiled: dict[str, tuple[Phrase, ...]] = field(init=False)

    def __post_init__(self) -> None:
        compiled = {kind: tuple(compile_phrase(source) for source in sources) for kind, sources in self.phrases.items()}
        object.__setattr__(self, "compiled", compiled)


def places(*names: str) -> tuple[Place, ...]:
    """The places with these names; a name that is not in the lexicon raises KeyError."""
    by_name = {place.name: place for place in PLACES}
    return tuple(by_name[name] for name in names)


def traits_without(*words: str) -> tuple[Trait, ...]:
    """All traits but these, which would contradict a plot."""
    return tuple(trait for trait in TRAITS if trait.word not in words)
