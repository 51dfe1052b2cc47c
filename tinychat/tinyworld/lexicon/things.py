"""Objects: what they are made of, how heavy they are, what one does with them; colours, sizes, materials."""

from typing import NamedTuple


class Material(NamedTuple):
    """What a thing is made of: how it fails, and what mends it."""

    word: str
    breaks: str
    damage: str
    mend: str


class Thing(NamedTuple):
    """Something to own: `use` completes "wanted to ..."; a heavy thing cannot be carried by one child."""

    noun: str
    material: str
    use: str
    heavy: bool = False
    pocket: bool = False  # small enough to fall out of a pocket


class Collectable(NamedTuple):
    """Something that comes in numbers."""

    noun: str
    plural: str
    small: str  # the adjective that fits when it is praised
    container: str
    lies_about: bool = True  # may be found on the ground


class Item(NamedTuple):
    """One object of a story with the attributes that its text states."""

    noun: str
    colour: str
    size: str
    material: str

    @property
    def phrase(self) -> str:
        """The full description: "small red kite"."""
        return f"{self.size} {self.colour} {self.noun}"


# A list of words reads better in lines.
# fmt: off
COLOURS = (
    "red", "blue", "green", "yellow", "orange", "purple", "pink", "brown", "white", "black", "grey",
    "silver", "golden", "violet", "turquoise",
)
# fmt: on
SMALL_SIZES = ("small", "little", "tiny")
LARGE_SIZES = ("big", "large", "huge")

MATERIALS = {
    material.word: material
    for material in (
        Material("wood", "snapped", "a splintered edge", "glue and two thin nails"),
        Material("cloth", "tore", "a long rip", "a needle and strong thread"),
        Material("clay", "cracked", "a chipped corner", "special glue and a fine brush"),
        Material("metal", "bent", "an ugly dent", "a little hammer and some pliers"),
        Material("paper", "ripped", "a ragged hole", "sticky tape and a strip of card"),
    )
}

BELONGINGS = (
    Thing("kite", "paper", "let it climb into the sky"),
    Thing("lantern", "paper", "light it in the evening"),
    Thing("scrapbook", "paper", "fill its last pages"),
    Thing("boat", "wood", "sail it on a puddle"),
    Thing("whistle", "metal", "blow it as loudly as possible", pocket=True),
    Thing("flute", "wood", "play a new tune on it"),
    Thing("robot", "metal", "make it march about"),
    Thing("compass", "metal", "find out where north was", pocket=True),
    Thing("key", "metal", "open a secret box with it", pocket=True),
    Thing("bell", "metal", "ring it at dinner time", pocket=True),
    Thing("scarf", "cloth", "dress up as a pirate with it"),
    Thing("teddy bear", "cloth", "hold a tea party for it"),
    Thing("backpack", "cloth", "pack it for a journey"),
    Thing("puppet", "cloth", "make it sing a silly song"),
    Thing("purse", "cloth", "count the coins in it", pocket=True),
    Thing("money box", "clay", "see how much was inside"),
    Thing("mug", "clay", "drink hot milk from it"),
    Thing("vase", "clay", "put tulips in it"),
    Thing("spinning top", "wood", "see how long it would spin"),
    Thing("sword", "wood", "play knights and dragons with it"),
    Thing("yo-yo", "wood", "practise a difficult trick with it", pocket=True),
)

LOADS = (
    Thing("pumpkin", "", "cook soup with it", heavy=True),
    Thing("chest", "wood", "keep treasures in it", heavy=True),
    Thing("sofa", "cloth", "put it by the fireplace", heavy=True),
    Thing("drum", "metal", "play it in the parade", heavy=True),
    Thing("log", "wood", "burn it in the winter", heavy=True),
    Thing("armchair", "cloth", "give it to a neighbour", heavy=True),
    Thing("mirror", "metal", "hang it on a wall", heavy=True),
    Thing("sack of potatoes", "cloth", "bring it to the cook", heavy=True),
    Thing("cupboard", "wood", "store games in it", heavy=True),
    Thing("crate of lemonade", "wood", "serve it at a party", heavy=True),
    Thing("rocking horse", "wood", "give it to a baby cousin", heavy=True),
    Thing("telescope", "metal", "look at the moon through it", heavy=True),
)

COLLECTABLES = (
    Collectable("marble", "marbles", "shiny", "jar"),
    Collectable("shell", "shells", "pretty", "bucket"),
    Collectable("button", "buttons", "round", "tin"),
    Collectable("sticker", "stickers", "sparkling", "album", lies_about=False),
    Collectable("pebble", "pebbles", "smooth", "pouch"),
    Collectable("feather", "feathers", "soft", "box"),
    Collectable("stamp", "stamps", "foreign", "folder", lies_about=False),
    Collectable("bead", "beads", "glittering", "bowl"),
    Collectable("chestnut", "chestnuts", "polished", "basket"),
    Collectable("coin", "coins", "ancient", "wallet"),
    Collectable("badge", "badges", "handsome", "case", lies_about=False),
    Collectable("postcard", "postcards", "colourful", "envelope", lies_about=False),
    Collectable("crayon", "crayons", "waxy", "pencil case", lies_about=False),
    Collectable("pine cone", "pine cones", "prickly", "bag"),
)
