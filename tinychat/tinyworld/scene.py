"""A story's structure: characters, place, objects, and events linked from cause to effect; and the stage they
form on.

A plot's plan (see `plots`) fills a `Scene` with events whose kinds depend on traits and attributes. The
renderer then chooses a phrasing for every event. The finished `Story` keeps the structure beside the text, so
that whatever the text says (who did what, why, how many were left) can be computed without reading it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from tinychat.tinyworld.grammar import Slots, article, number
from tinychat.tinyworld.lexicon.people import (
    FAMILY,
    JOBS,
    PRONOUNS,
    TRAITS,
    Grownup,
    Job,
    Name,
    Trait,
)
from tinychat.tinyworld.lexicon.places import Place, Weather
from tinychat.tinyworld.lexicon.things import COLOURS, Item

T = TypeVar("T")


class Character(NamedTuple):
    """Somebody in the story; trait and job are "" where the story gives none."""

    name: str
    gender: str
    role: str  # hero, friend or grown-up
    trait: str
    job: str


class Event(NamedTuple):
    """Something that happens; `because` is the position of the event that caused it, or None."""

    kind: str
    act: int  # the paragraph it belongs to, from 0
    actor: str  # a character's name, or "" for nature and chance
    because: int | None
    facts: dict[str, int | str]  # what the text states: numbers and words by slot name


class Combination(NamedTuple):
    """What makes a story the only one of its kind; every part can be read back from the text."""

    plot: str
    trait: Trait
    place: Place
    topic: Any  # the row of the lexicon that the plot turns on: a thing, an animal, a danger ...
    hero: Name
    friend: Name


@dataclass(frozen=True)
class Story:
    """One story: its structure and its text."""

    combination: Combination
    weather: Weather | None  # None indoors
    characters: tuple[Character, ...]  # hero, friend, then a grown-up where there is one
    objects: tuple[Item, ...]
    events: tuple[Event, ...]
    moral: str
    text: str


class Scene:
    """Where a plan lets things happen: the cast, the random choices, and the events so far."""

    def __init__(self, combination: Combination, weather: Weather | None, uniform: Callable[[], float]) -> None:
        self.uniform = uniform
        self.combination = combination
        self.trait, self.place, self.topic = combination.trait, combination.place, combination.topic
        self.weather = weather
        self.hero, self.friend = combination.hero.word, combination.friend.word
        self.characters: list[Character] = []
        self.objects: list[Item] = []
        self.events: list[Event] = []
        self.act = 0
        self.slots = Slots(place=self.place.name, at_place=self.place.at, ground=self.place.ground)
        self._cast_children()

    def _cast_children(self) -> None:
        hero, friend = self.combination.hero, self.combination.friend
        friend_trait = self.pick(TRAITS)
        he, fhe = PRONOUNS[hero.gender], PRONOUNS[friend.gender]
        self.slots.update(
            hero=hero.word,
            he=he.he,
            him=he.him,
            his=he.his,
            himself=he.himself,
            child=he.child,
            trait=self.trait.word,
            a_trait=article(self.trait.word),
            friend=friend.word,
            fhe=fhe.he,
            fhim=fhe.him,
            fhis=fhe.his,
            fhimself=fhe.himself,
            ftrait=friend_trait.word,
            fopposite=friend_trait.opposite,
        )
        self.characters.append(Character(hero.word, hero.gender, "hero", self.trait.word, ""))
        self.characters.append(Character(friend.word, friend.gender, "friend", friend_trait.word, ""))

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, all equally likely."""
        return options[int(self.uniform() * len(options))]

    def chance(self) -> bool:
        """True half of the time."""
        return self.uniform() < 0.5

    def between(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(self.uniform() * (high - low + 1))

    def happen(self, kind: str, actor: str = "", because: int | None = None, **facts: int | str) -> int:
        """Add an event to the current act and its facts to the slots; returns its position, for `because`."""
        self.events.append(Event(kind, self.act, actor, because, facts))
        for name, value in facts.items():
            self.slots[name] = number(value) if isinstance(value, int) else value
        return len(self.events) - 1

    def next_act(self) -> None:
        """Start a new paragraph."""
        self.act += 1

    def own(self, noun: str, material: str, sizes: Sequence[str], slot: str = "item") -> Item:
        """Bring an object in: {a_item} is its full description with the article, {item} the short one."""
        item = Item(noun, self.pick(COLOURS), self.pick(sizes), material)
        self.objects.append(item)
        self.slots[slot] = f"{item.colour} {noun}"
        self.slots["a_" + slot] = article(item.phrase)
        self.slots[slot + "_size"] = item.size
        self.slots["noun"] = noun
        return item

    def enter_family(self) -> str:
        """Bring in a relative of the hero; returns what the story calls them."""
        return self._enter(self.pick(FAMILY), "")

    def enter_worker(self, job: Job) -> str:
        """Bring in a grown-up with this job; returns what the story calls them."""
        gender = "m" if job.noun.endswith("man") else self.pick(("m", "f"))
        self.slots["doing"] = job.doing
        return self._enter(Grownup(article(job.noun), f"the {job.noun}", gender), job.noun)

    def enter_mender(self, material: str) -> str:
        """Bring in the grown-up whose work it is to mend this material."""
        return self.enter_worker(next(job for job in JOBS if job.mends == material))

    def _enter(self, grownup: Grownup, job: str) -> str:
        pronouns = PRONOUNS[grownup.gender]
        self.slots.update(
            an_elder=grownup.first, elder=grownup.later, ehe=pronouns.he, ehim=pronouns.him, ehis=pronouns.his
        )
        self.characters.append(Character(grownup.later, grownup.gender, "grown-up", "", job))
        return grownup.later
