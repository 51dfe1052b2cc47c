"""Places with their details, weather, times of day; objects: what they are made of, how heavy they are, what one
does with them; colours, sizes, materials."""

from typing import NamedTuple


class Place(NamedTuple):
    """A place: "in the park" is `at`, "the park" is `name`; things hide at spots."""

    name: str
    prep: str
    outdoors: bool
    ground: str
    spots: tuple[str, ...]
    sights: tuple[str, ...]

    @property
    def at(self) -> str:
        """The place with its preposition."""
        return f"{self.prep} {self.name}"


class Weather(NamedTuple):
    """The weather of a dry day out of doors; the flags are causes that plots build on."""

    word: str
    cold: bool = False
    windy: bool = False


class Spoiler(NamedTuple):
    """Weather that ends a plan: how it comes, what it does, and what the children do instead indoors."""

    noun: str
    comes: str
    effect: str
    shelter: str
    instead: str


# A place in three lines: itself, its spots, its sights.
# fmt: off
PLACES = (
    Place("the park", "in", True, "grass",
          ("behind a bench", "beside the fountain", "under the slide"),
          ("Ducks paddled slowly across the water.", "An old man was feeding the pigeons.")),
    Place("the beach", "at", True, "sand",
          ("behind a dune", "beside a rock pool", "under a heap of seaweed"),
          ("Gulls screamed above the waves.", "Foam ran up the shore and slid back again.")),
    Place("the forest", "in", True, "moss",
          ("behind a fallen trunk", "beside a mushroom", "under a pile of leaves"),
          ("A woodpecker tapped somewhere high up.", "Twigs crackled under every step.")),
    Place("the hill", "on", True, "heather",
          ("behind a boulder", "beside a crooked signpost", "under a thorn bush"),
          ("Far below, the roofs looked like matchboxes.", "A hawk circled without moving its wings.")),
    Place("the farm", "on", True, "straw",
          ("behind the tractor", "beside the water trough", "under the hay wagon"),
          ("Hens scratched about in the yard.", "A rooster was crowing on the gate.")),
    Place("the garden", "in", True, "soil",
          ("behind the tool shed", "beside the rose bed", "under a wheelbarrow"),
          ("Bees hummed among the flowers.", "Beans were climbing up their poles.")),
    Place("the river", "by", True, "gravel",
          ("behind a willow", "beside the ferry landing", "under the stone bridge"),
          ("A barge drifted past without a sound.", "The current carried twigs and bubbles along.")),
    Place("the meadow", "in", True, "clover",
          ("behind a molehill", "beside a clump of thistles", "under a gate"),
          ("Grasshoppers chirped all around.", "Butterflies danced from blossom to blossom.")),
    Place("the playground", "on", True, "rubber",
          ("behind the swings", "beside the seesaw", "under the climbing frame"),
          ("Somebody had drawn a whale in chalk.", "The roundabout creaked as it turned.")),
    Place("the orchard", "in", True, "turf",
          ("behind a ladder", "beside a beehive", "under a plum tree"),
          ("Finches quarrelled among the leaves.", "Somebody had left baskets between the trees.")),
    Place("the harbour", "at", True, "planks",
          ("behind a barrel", "beside an anchor", "under an upturned dinghy"),
          ("Masts swayed and ropes tapped.", "A fishing crew was unloading crates of herring.")),
    Place("the market", "at", True, "cobbles",
          ("behind a flower stall", "beside the weighing scales", "under a cart"),
          ("Traders shouted their prices.", "It smelled of cheese, fish and fresh herbs.")),
    Place("the village square", "on", True, "paving",
          ("behind the statue", "beside the pump", "under a stone arch"),
          ("Swallows nested under the church roof.", "A brass band was practising a march.")),
    Place("the lake", "by", True, "mud",
          ("behind the reeds", "beside the jetty", "under an upside-down canoe"),
          ("Dragonflies hovered over the lilies.", "The water lay as smooth as glass.")),
    Place("the campsite", "at", True, "earth",
          ("behind a tent", "beside the fire ring", "under a picnic table"),
          ("Washing flapped on a line between two pines.", "Smoke rose from a pan of sausages.")),
    Place("the schoolyard", "in", True, "asphalt",
          ("behind the bicycle rack", "beside the drinking tap", "under the oak"),
          ("The doors flew open and children poured out.", "Children were skipping and counting aloud.")),
    Place("the vineyard", "in", True, "chalk",
          ("behind a stone wall", "beside a grape basket", "under the trellis"),
          ("Rows of vines ran down the slope.", "A lizard slipped into a crack.")),
    Place("the kitchen", "in", False, "tiles",
          ("behind the bread bin", "beside the oven", "under the sink"),
          ("A kettle whistled on the stove.", "Copper pans hung in a neat row.")),
    Place("the library", "in", False, "carpet",
          ("behind an atlas", "beside the globe", "under a reading desk"),
          ("Nobody spoke above a whisper.", "Shelves rose all the way to the ceiling.")),
    Place("the attic", "in", False, "floorboards",
          ("behind a trunk", "beside the chimney", "under a dusty quilt"),
          ("Dust floated in the light of the little window.", "Cobwebs hung from every beam.")),
    Place("the museum", "at", False, "marble",
          ("behind a suit of armour", "beside a totem pole", "under a showcase"),
          ("The bones of a dinosaur filled the hall.", "A guard yawned beside a painting.")),
    Place("the barn", "in", False, "hay",
          ("behind a milk churn", "beside the cow stall", "under a horse blanket"),
          ("Swallows darted in and out of the roof.", "A mare snorted and stamped.")),
    Place("the train station", "at", False, "stone",
          ("behind a vending machine", "beside the ticket desk", "under a row of seats"),
          ("A loudspeaker crackled and named a platform.", "Travellers dragged their suitcases about.")),
    Place("the workshop", "in", False, "sawdust",
          ("behind a vice", "beside the paint tins", "under the workbench"),
          ("Saws and chisels hung on the wall.", "It smelled of oil and shavings.")),
    Place("the classroom", "in", False, "linoleum",
          ("behind the blackboard", "beside the aquarium", "under the piano"),
          ("Maps and drawings covered the walls.", "A hamster was running in its wheel.")),
    Place("the town hall", "in", False, "parquet",
          ("behind a curtain", "beside the stage", "under the staircase"),
          ("Voices echoed under the high ceiling.", "Flags of many lands hung from the balcony.")),
)
# fmt: on
OUTDOORS = tuple(place for place in PLACES if place.outdoors)

WEATHERS = (
    Weather("sunny"),
    Weather("bright"),
    Weather("warm"),
    Weather("mild"),
    Weather("cloudy"),
    Weather("windy", windy=True),
    Weather("breezy", windy=True),
    Weather("chilly", cold=True),
    Weather("frosty", cold=True),
    Weather("icy cold", cold=True, windy=True),
)
FAIR_WEATHERS = tuple(weather for weather in WEATHERS if not (weather.cold or weather.windy))
CALM_WEATHERS = tuple(weather for weather in WEATHERS if not weather.windy)

SPOILERS = (
    Spoiler(
        "rain",
        "Dark clouds rolled in and fat raindrops began to fall",
        "everything was soaked",
        "under a wide porch",
        "built a den out of blankets and cushions",
    ),
    Spoiler(
        "thunderstorm",
        "Thunder growled and lightning flashed across the sky",
        "it was not safe to stay outside",
        "inside a sturdy cabin",
        "told ghost stories by the light of a torch",
    ),
    Spoiler(
        "fog",
        "A thick grey fog crept over the ground",
        "they could hardly see their own feet",
        "to a house with lit windows",
        "played cards at the table",
    ),
    Spoiler(
        "hail",
        "Hailstones as big as peas came clattering down",
        "their heads and hands were stinging",
        "into a garage",
        "drummed along with the noise on empty tins",
    ),
    Spoiler(
        "gale",
        "The wind grew into a howling gale",
        "they could hardly stand upright",
        "behind a thick wall and then indoors",
        "put on a puppet show with old socks",
    ),
    Spoiler(
        "snow",
        "The air turned freezing and thick snowflakes whirled about",
        "their fingers were numb",
        "into a heated room",
        "drank cocoa and painted a mural",
    ),
)

DAYS = (
    "morning",
    "afternoon",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "spring morning",
    "autumn afternoon",
)


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
