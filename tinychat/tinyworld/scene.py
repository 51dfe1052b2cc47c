"""A story's structure: characters, place, objects, and events linked from cause to effect; the stage they form on; and
what a plot is.

A plot (see `plots`) says where it can play, what it can turn on, how its events follow, and how each can be told. Its
plan fills a `Scene` with events whose kinds depend on traits and attributes. The renderer then chooses a phrasing for
every event. The finished `Story` keeps the structure beside the text, so that whatever the text says (who did what,
why, how many were left) can be computed without reading it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from tinychat.tinyworld.grammar import Phrase, Slots, article, compile_phrase, number
from tinychat.tinyworld.lexicon.living import (
    FAMILY,
    JOBS,
    PRONOUNS,
    TRAITS,
    Grownup,
    Job,
    Name,
    Trait,
)
from tinychat.tinyworld.lexicon.things import COLOURS, DAYS, LARGE_SIZES, PLACES, WEATHERS, Item, Place, Weather

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


_SOURCES: dict[str, tuple[str, ...]] = {
    # The hero's name, trait and the place come first in every opening: the text must tell its combination.
    "meet_together": (
        "{hero} was {a_trait} {child}. One {day}, {he} [went|walked|set off|hurried|strolled] to {place} "
        "with {his} [|best |old |dear ]friend {friend}.",
        "[Once upon a time|One {day}], {a_trait} {child} [named|called] {hero} was {at_place} with {his} "
        "[|best |good ]friend {friend}.",
        "There was once {a_trait} {child} whose name was {hero}. {He} had a "
        "[friend|neighbour|classmate|cousin] called {friend}, who was {ftrait} and [not at "
        "all|never|anything but] {fopposite}. One {day} the two of them [met|were together|spent some time] "
        "{at_place}.",
        "[Everybody|The whole street|Each of the neighbours] knew {hero} as {a_trait} {child}. One {day}, "
        "{he} [met|waited for|ran into] {his} friend {friend} {at_place}.",
        "{hero} and {friend} [lived next door to each other|had been friends since they were babies|sat side "
        "by side at school]. {hero} was {trait}, and {friend} was {ftrait}. One {day} they [were|met|had "
        "arranged to meet] {at_place}.",
        "{At_place}, one {day}, {a_trait} {child} [named|by the name of] {hero} [was talking to|sat next "
        "to|stood beside] {his} friend {friend}.",
    ),
    "meet_alone": (
        "{hero} was {a_trait} {child}. One {day}, {he} [went|walked|set off|strolled] to {place} [alone|all "
        "by {himself}|on {his} own].",
        "[Once upon a time|One {day}], {a_trait} {child} [named|called] {hero} was {at_place}.",
        "There was once {a_trait} {child} whose name was {hero}. One {day}, {he} [had something to do|wanted "
        "to spend some time|was to be found] {at_place}.",
        "[Everybody|The whole street|Each of the neighbours] knew {hero} as {a_trait} {child}. One {day}, "
        "{he} [was|found {himself}|was busy] {at_place}.",
        "{At_place}, one {day}, [there was|you could have met] {a_trait} {child} [named|by the name of] {hero}.",
    ),
    "weather": (
        "The weather was {weather}.",
        "It was {weather} [that day|outside|from the first light on].",
        "[Outside|That day] it was {weather}[|, as so often|, and the air smelled fresh].",
    ),
    "wind": (
        "The wind [tugged at {hero}'s hair|blew in every direction|made the leaves dance|whistled a little song].",
    ),
    "dress": (
        "[So|That was why] {hero} wore {a_coat}.",
        "To keep warm, {hero} had put on {a_coat}.",
        '"{Coat_word} on!" {hero}\'s [mother|father] had said, so {hero} wore {a_coat}.',
    ),
    "sight": ("{sight}",),
    "moral": (
        "[From that day on|After that|Ever since], {hero} knew that {moral}.",
        "{hero} had learned that {moral}.",
        "[That evening|That night|In the evening], {hero} thought about it: {moral}.",
        "[And so|In the end|That day] {hero} and {friend} [found out|understood|saw] that {moral}.",
        "{hero} never forgot that {moral}.",
        "If you ask {hero} today, {he} will tell you that {moral}.",
    ),
}
FRAME = {kind: tuple(compile_phrase(source) for source in sources) for kind, sources in _SOURCES.items()}


def open_scene(scene: Scene, together: bool) -> None:
    """Let the characters meet, and let the weather have its effect: cold needs a coat."""
    scene.happen("meet_together" if together else "meet_alone", scene.hero, day=scene.pick(DAYS))
    if scene.weather is None or not (scene.weather.cold or scene.weather.windy):
        if scene.weather is not None and scene.chance():
            scene.happen("weather", weather=scene.weather.word)
        elif scene.chance():
            scene.happen("sight", sight=scene.pick(scene.place.sights))
    else:
        weather = scene.happen("weather", weather=scene.weather.word)
        if scene.weather.cold:
            coat = scene.pick(("coat", "jacket", "jumper", "cloak"))
            scene.own(coat, "wool", LARGE_SIZES[:2], slot="coat")
            scene.happen("dress", scene.hero, because=weather, coat_word=coat)
        else:
            scene.happen("wind", because=weather)
    scene.next_act()


def close_scene(scene: Scene, moral: str) -> None:
    """End with the moral, which follows from all that happened."""
    scene.happen("moral", scene.hero, because=len(scene.events) - 1, moral=moral)


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
