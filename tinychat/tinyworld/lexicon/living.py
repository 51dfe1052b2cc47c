"""Who and what lives in tinyworld: names, pronouns, traits, grown-ups and their work; animals, plants, things to
eat."""

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


class Animal(NamedTuple):
    """A wild or tame animal: its sound, its food, its way of moving, and whether two hands can lift it."""

    noun: str
    sound: str
    eats: str
    moves: str
    liftable: bool
    climbs: bool = False  # may be found stuck high up


class Snack(NamedTuple):
    """Something to eat that can be counted out."""

    noun: str
    plural: str
    taste: str


class Dish(NamedTuple):
    """Something to make: the step that decides, the ingredient that is missing, what can stand in for it."""

    noun: str
    step: str
    missing: str
    substitute: str
    smell: str


class Plant(NamedTuple):
    """Something to grow from seeds."""

    noun: str
    plural: str
    result: str


ANIMALS = (
    Animal("kitten", "mewed", "a saucer of milk", "tiptoed", True, climbs=True),
    Animal("puppy", "whimpered", "a crust of pie", "bounced", True),
    Animal("hedgehog", "snuffled", "a few beetles", "shuffled", True),
    Animal("squirrel", "chattered", "a handful of hazelnuts", "scampered", True, climbs=True),
    Animal("duckling", "peeped", "some pondweed", "waddled", True),
    Animal("rabbit", "squeaked", "a carrot top", "hopped", True),
    Animal("owl", "hooted", "a fat worm", "flapped", True, climbs=True),
    Animal("sparrow", "cheeped", "a pinch of crumbs", "fluttered", True, climbs=True),
    Animal("tortoise", "hissed", "a lettuce leaf", "plodded", True),
    Animal("lamb", "bleated", "a bottle of warm milk", "skipped", False),
    Animal("pony", "whinnied", "a bunch of oats", "trotted", False),
    Animal("calf", "mooed", "a bucket of bran", "stumbled", False),
    Animal("donkey", "brayed", "a juicy turnip", "trotted", False),
    Animal("goat", "bleated", "a cabbage stalk", "leapt", False),
    Animal("piglet", "grunted", "some apple peel", "galloped", True),
    Animal("foal", "nickered", "a wisp of sweet grass", "wobbled", False),
)

SNACKS = (
    Snack("biscuit", "biscuits", "crunchy"),
    Snack("apple", "apples", "juicy"),
    Snack("pancake", "pancakes", "fluffy"),
    Snack("sandwich", "sandwiches", "cheesy"),
    Snack("plum", "plums", "sweet"),
    Snack("strawberry", "strawberries", "ripe"),
    Snack("muffin", "muffins", "warm"),
    Snack("dumpling", "dumplings", "steaming"),
    Snack("cherry", "cherries", "sour"),
    Snack("pretzel", "pretzels", "salty"),
    Snack("waffle", "waffles", "sticky"),
    Snack("date", "dates", "chewy"),
    Snack("walnut", "walnuts", "fresh"),
    Snack("sausage roll", "sausage rolls", "spicy"),
)

DISHES = (
    Dish("carrot cake", "grate the carrots", "butter", "sunflower oil", "cinnamon"),
    Dish("tomato soup", "peel the tomatoes", "cream", "a boiled potato", "basil"),
    Dish("apple pie", "roll out the dough", "sugar", "honey", "cloves"),
    Dish("fruit salad", "slice the bananas", "lemon juice", "orange juice", "mint"),
    Dish("pizza", "knead the dough", "cheese", "mushrooms and olives", "oregano"),
    Dish("gingerbread", "press out the shapes", "treacle", "maple syrup", "ginger"),
    Dish("porridge", "stir the oats", "milk", "water and a ripe pear", "nutmeg"),
    Dish("vegetable stew", "chop the onions", "beans", "lentils", "garlic"),
    Dish("rice pudding", "rinse the rice", "vanilla", "raisins", "warm milk"),
    Dish("omelette", "beat the eggs", "ham", "spinach", "chives"),
    Dish("cornbread", "sift the flour", "eggs", "a mashed banana", "toasted corn"),
    Dish("berry jam", "crush the berries", "sugar", "apple syrup", "raspberries"),
)

PLANTS = (
    Plant("sunflower", "sunflowers", "faces as round as plates"),
    Plant("radish", "radishes", "crisp red roots"),
    Plant("pea", "peas", "plump pods"),
    Plant("tulip", "tulips", "cups of every colour"),
    Plant("lettuce", "lettuces", "curly heads"),
    Plant("poppy", "poppies", "petals like silk"),
    Plant("carrot", "carrots", "long sweet roots"),
    Plant("marigold", "marigolds", "flowers like small suns"),
    Plant("cucumber", "cucumbers", "fruits as long as a foot"),
    Plant("daffodil", "daffodils", "bright trumpets"),
    Plant("onion", "onions", "shiny bulbs"),
    Plant("melon", "melons", "heavy striped globes"),
)
