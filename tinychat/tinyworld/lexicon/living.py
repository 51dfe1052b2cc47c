"""Animals, things to eat, and plants."""

from typing import NamedTuple


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
