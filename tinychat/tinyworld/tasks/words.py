"""The words that tasks are made of: kinds of words, things to own and to count, all known from the stories."""

from typing import NamedTuple

from tinychat.tinyworld.lexicon.living import SNACKS
from tinychat.tinyworld.lexicon.people import TRAITS
from tinychat.tinyworld.lexicon.places import PLACES
from tinychat.tinyworld.lexicon.things import COLLECTABLES


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
