"""How a task is drawn: choices read from a number, wordings chosen and filled, and the draft they end in;
and the words that tasks are made of, all known from the stories.

A recipe is a function that makes one sort of task. It reads all that matters from two numbers, by way of two
`Draw`s: the core (what decides the answer, and the split) and the dressing (names, wording). Different numbers
give different choices, so a recipe that puts every choice into its text never makes the same text twice.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from math import comb
from typing import NamedTuple, TypeVar

from tinychat.tinyworld.grammar import Phrase, Slots, capital, compile_phrase, expand
from tinychat.tinyworld.lexicon.living import NAMES, PRONOUNS, SNACKS, TRAITS
from tinychat.tinyworld.lexicon.things import COLLECTABLES, PLACES


class Kind(NamedTuple):
    """A kind that every reader gives a word to without doubt; no word belongs to two."""

    word: str
    plural: str
    members: tuple[str, ...]


# A list of words reads better in lines. The animals begin with twelve different letters, for sorting.
# fmt: off
ANIMAL = Kind("animal", "animals", (
    "calf", "donkey", "foal", "goat", "hedgehog", "kitten", "lamb", "owl", "puppy", "rabbit", "squirrel", "tortoise",
))
FOOD = Kind("food", "foods", (
    "apple", "biscuit", "cherry", "dumpling", "muffin", "pancake", "plum", "pretzel", "sandwich", "strawberry",
    "waffle", "walnut",
))
COLOUR = Kind("colour", "colours", (
    "red", "blue", "green", "yellow", "purple", "pink", "brown", "white", "black", "grey", "golden", "silver",
))
JOB = Kind("job", "jobs", (
    "baker", "blacksmith", "carpenter", "farmer", "gardener", "nurse", "painter", "potter", "sailor", "shepherd",
    "tailor", "teacher",
))
PLACE = Kind("place", "places", (
    "park", "beach", "forest", "hill", "farm", "garden", "river", "meadow", "orchard", "market", "library", "museum",
))
# What one child can own.
THINGS = (
    "kite", "lantern", "boat", "whistle", "flute", "robot", "compass", "key", "bell", "scarf", "puppet", "purse",
    "mug", "vase", "sword", "drum", "backpack", "scrapbook",
)
HEAVY = ("pumpkin", "chest", "sofa", "drum", "log", "armchair", "mirror", "cupboard", "telescope")
LIGHT = (
    "marble", "shell", "button", "sticker", "pebble", "feather", "stamp", "bead", "chestnut", "coin", "badge",
    "postcard", "crayon",
)
PETS = ("Biscuit", "Pepper", "Smoky", "Button", "Whiskers", "Patch", "Velvet", "Tango", "Pebble", "Bramble")
WEEK = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
# fmt: on
KINDS = (ANIMAL, FOOD, COLOUR, JOB, PLACE)
WORDS = tuple(word for kind in KINDS for word in kind.members)
SIZES = ("tiny", "small", "big", "huge")  # in rising order
COUNTED = tuple(
    [thing.plural for thing in COLLECTABLES if " " not in thing.noun]
    + [snack.plural for snack in SNACKS if snack.noun in FOOD.members]
)
AT_PLACES = tuple(place.at for place in PLACES)
# Every trait and every opposite with its opposite; where a word is both, the two rows say the same.
OPPOSITES = {trait.opposite: trait.word for trait in TRAITS} | {trait.word: trait.opposite for trait in TRAITS}


T = TypeVar("T")


class Draw:
    """Choices read from a whole number, digit by digit in mixed radix.

    Which digits are read may depend on earlier ones, as long as the product of their radices, `size`, does not:
    then the codes 0 to size - 1 and the choices correspond one to one.
    """

    __slots__ = ("code", "size")

    def __init__(self, code: int) -> None:
        self.code = code
        self.size = 1

    def below(self, n: int) -> int:
        """A number from 0 to n - 1."""
        self.size *= n
        self.code, digit = divmod(self.code, n)
        return digit

    def flip(self) -> bool:
        """True or False."""
        return self.below(2) == 1

    def pick(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[self.below(len(options))]

    def sample(self, options: Sequence[T], k: int) -> list[T]:
        """k different options in any order; each order is another choice."""
        rest = list(options)
        return [rest.pop(self.below(len(rest))) for _ in range(k)]

    def subset(self, n: int, k: int) -> tuple[int, ...]:
        """k different numbers below n, in rising order."""
        return _subsets(n, k)[self.below(comb(n, k))]


_KNOWN: dict[tuple[int, int], list[tuple[int, ...]]] = {}


def _subsets(n: int, k: int) -> list[tuple[int, ...]]:
    if (n, k) not in _KNOWN:
        _KNOWN[n, k] = list(combinations(range(n), k))
    return _KNOWN[n, k]


class Wording(NamedTuple):
    """One way to put something; whether it holds the {material} or leaves it to the input field."""

    phrase: Phrase
    inline: bool


def wordings(*sources: str) -> tuple[Wording, ...]:
    """Compile phrases (see `grammar`) that say the same in different words."""
    return tuple(Wording(compile_phrase(source), "{material}" in source) for source in sources)


class Turn(NamedTuple):
    """What the user says, with the input field ("" for none), and the reply."""

    content: str
    input: str
    reply: str


class Draft(NamedTuple):
    """A task without its number: the kind of its answer, its turns, and a system message ("" for none)."""

    answer: str
    turns: tuple[Turn, ...]
    system: str = ""


class Teller:
    """Puts a task into words: the dressing decides names and wording, `uniform` the small choices in brackets."""

    def __init__(self, dressing: Draw, uniform: Callable[[], float]) -> None:
        self.dressing = dressing
        self.uniform = uniform

    def cast(self, **slots: str) -> Slots:
        """Slots with two different children as {hero} and {friend}, and their pronouns."""
        hero, friend = self.dressing.sample(NAMES, 2)
        he, fhe = PRONOUNS[hero.gender], PRONOUNS[friend.gender]
        return Slots(
            slots, hero=hero.word, he=he.he, him=he.him, his=he.his, friend=friend.word, fhe=fhe.he, fhis=fhe.his
        )

    def asker(self, **slots: str) -> Slots:
        """Slots with one child as {hero}, and the pronouns."""
        hero = self.dressing.pick(NAMES)
        he = PRONOUNS[hero.gender]
        return Slots(slots, hero=hero.word, he=he.he, him=he.him, his=he.his)

    def plain(self, **slots: str) -> Slots:
        """Slots without anybody."""
        return Slots(slots)

    def say(self, ways: Sequence[Wording], slots: Slots) -> str:
        """One of the wordings, filled."""
        return self._fill(self.dressing.pick(ways), slots)

    def ask(self, ways: Sequence[Wording], slots: Slots, reply: str, material: str = "") -> Turn:
        """A turn in one of the wordings; the material is put where the wording wants it, or else is the input."""
        way = self.dressing.pick(ways)
        if material:
            slots["material"] = material
        return Turn(self._fill(way, slots), "" if way.inline else material, reply)

    def _fill(self, way: Wording, slots: Slots) -> str:
        parts: list[str] = []
        expand(way.phrase, self.uniform, parts)
        return capital("".join(parts).format_map(slots))


def one(answer: str, turn: Turn) -> Draft:
    """The draft of a task with a single turn."""
    return Draft(answer, (turn,))


def listed(words: Sequence[str]) -> str:
    """A list of single words: with blanks alone between them, as a row is learnt to be copied much sooner than a list
    with a comma after each word."""
    return " ".join(words)


class Recipe(NamedTuple):
    """One sort of task of a family, and how often it has its turn compared with the family's other recipes."""

    make: Callable[[Draw, Teller], Draft]
    weight: int = 1
