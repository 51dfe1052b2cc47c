"""Who lives in tinyworld: names, pronouns, traits, grown-ups and their work."""

from typing import NamedTuple


class Pronouns(NamedTuple):
    """The words that stand for a person in a sentence."""

    he: str
    him: str
    his: str
    himself: str
    child: str


class Trait(NamedTuple):
    """What somebody is like; the flags decide which way a plot turns."""

    word: str
    opposite: str
    bold: bool = False  # dares to act alone
    hasty: bool = False  # acts before thinking
    giving: bool = False  # gives without being asked


class Name(NamedTuple):
    """A first name and the gender whose pronouns it takes."""

    word: str
    gender: str


class Grownup(NamedTuple):
    """An adult of the story: how a first and a later sentence call them ("a baker", then "the baker")."""

    first: str
    later: str
    gender: str


class Job(NamedTuple):
    """Somebody's work: what they were busy with when met, and the material they can mend ("" for none)."""

    noun: str
    doing: str
    mends: str = ""


PRONOUNS = {
    "m": Pronouns("he", "him", "his", "himself", "boy"),
    "f": Pronouns("she", "her", "her", "herself", "girl"),
}

# Left out on purpose: names that are also words at the start of a sentence (Will, May, Hope, Mark, Bill).
# A list of words reads better in lines.
# fmt: off
_BOYS = (
    "Tom", "Ben", "Sam", "Max", "Leo", "Finn", "Jack", "Noah", "Adam", "Oscar", "Hugo", "Milo", "Theo",
    "Omar", "Ravi", "Kenji", "Pedro", "Luca", "Jonah", "Felix", "Henry", "Arthur", "Toby", "Jacob",
    "Ethan", "Caleb", "Diego", "Ivan", "Anton", "Bruno", "Emil", "Otto", "Amir", "Yusuf", "Kofi", "Samir",
    "Tariq", "Nico", "Dylan", "Owen", "George", "Walter", "Simon", "Peter", "Daniel",
)
_GIRLS = (
    "Mia", "Lily", "Anna", "Ella", "Zoe", "Nora", "Ruby", "Lucy", "Emma", "Clara", "Alice", "Sofia",
    "Maya", "Leila", "Aisha", "Yuki", "Mei", "Priya", "Rosa", "Carmen", "Ines", "Greta", "Freya",
    "Ingrid", "Hanna", "Elena", "Daisy", "Poppy", "Molly", "Sally", "Jane", "Kate", "Amy", "Eva", "Ada",
    "Nina", "Tessa", "Wendy", "Fatima", "Zara", "Amara", "Stella", "Julia", "Martha", "Bella",
)
# fmt: on
NAMES = tuple([Name(word, "m") for word in _BOYS] + [Name(word, "f") for word in _GIRLS])

TRAITS = (
    Trait("brave", "fearful", bold=True),
    Trait("strong", "weak", bold=True),
    Trait("clever", "foolish", bold=True),
    Trait("cheerful", "gloomy", bold=True, giving=True),
    Trait("friendly", "unfriendly", bold=True, giving=True),
    Trait("kind", "mean", giving=True),
    Trait("generous", "selfish", giving=True),
    Trait("gentle", "rough", giving=True),
    Trait("polite", "rude", giving=True),
    Trait("careful", "careless"),
    Trait("patient", "impatient"),
    Trait("shy", "bold"),
    Trait("timid", "daring"),
    Trait("thoughtful", "thoughtless", giving=True),
    Trait("lazy", "hard-working"),
    Trait("stubborn", "easy-going", bold=True),
    Trait("proud", "humble", bold=True, hasty=True),
    Trait("impatient", "patient", bold=True, hasty=True),
    Trait("careless", "careful", hasty=True),
    Trait("forgetful", "attentive", hasty=True),
    Trait("restless", "calm", bold=True, hasty=True),
    Trait("noisy", "silent", bold=True, hasty=True),
)

FAMILY = (
    Grownup("Grandma", "Grandma", "f"),
    Grownup("Grandpa", "Grandpa", "m"),
    Grownup("Mum", "Mum", "f"),
    Grownup("Dad", "Dad", "m"),
    Grownup("Aunt Nell", "Aunt Nell", "f"),
    Grownup("Uncle Gus", "Uncle Gus", "m"),
)

JOBS = (
    Job("carpenter", "sawing a long plank", mends="wood"),
    Job("tailor", "measuring a roll of velvet", mends="cloth"),
    Job("potter", "shaping a wet lump of clay", mends="clay"),
    Job("blacksmith", "heating an iron bar", mends="metal"),
    Job("bookbinder", "stitching loose pages together", mends="paper"),
    Job("baker", "carrying a tray of warm rolls"),
    Job("farmer", "loading sacks of barley"),
    Job("gardener", "clipping a hedge"),
    Job("nurse", "hurrying home from the hospital"),
    Job("teacher", "correcting a pile of spelling tests"),
    Job("sailor", "coiling a thick rope"),
    Job("fisherman", "untangling a net"),
    Job("painter", "mixing bright paint in a bucket"),
    Job("firefighter", "polishing a brass helmet"),
    Job("bus driver", "drinking tea from a flask"),
    Job("beekeeper", "labelling jars of honey"),
    Job("shepherd", "whistling to a clever sheepdog"),
    Job("musician", "tuning an old violin"),
    Job("builder", "stacking heavy bricks"),
    Job("postman", "sorting letters and parcels"),
)
