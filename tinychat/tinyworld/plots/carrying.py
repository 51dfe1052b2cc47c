"""The plot of the heavy load, where weight and size decide what helps."""

from tinychat.tinyworld.lexicon.things import LARGE_SIZES, LOADS, Thing
from tinychat.tinyworld.plots.plot import Plot
from tinychat.tinyworld.scene import Scene


def plan_load(scene: Scene) -> None:
    """Too heavy for one: a bold child tries alone first; a strong friend, wheels or rollers get it home."""
    thing: Thing = scene.topic
    item = scene.own(thing.noun, thing.material, LARGE_SIZES)
    task = scene.happen("task", scene.hero, use=thing.use, spot=scene.pick(scene.place.spots))
    if scene.trait.bold:
        stuck = scene.happen("alone", scene.hero, because=task)
    else:
        stuck = scene.happen("doubt", scene.hero, because=task)
    scene.next_act()
    offer = scene.happen("offer", scene.friend, because=stuck)
    strong = any(character.trait == "strong" for character in scene.characters)
    if strong:
        solve = scene.happen("lift", scene.friend, because=offer)
    elif item.size == "huge":
        solve = scene.happen("crowd", scene.friend, because=offer, people=scene.between(4, 9))
    else:
        solve = scene.happen(scene.pick(("wheels", "rollers", "sledge")), scene.friend, because=offer)
    pause = scene.happen("pause", scene.hero, because=solve, rests=scene.between(2, 6))
    scene.next_act()
    elder = scene.enter_family()
    scene.happen("arrive", elder, because=pause)
    scene.happen("joke", scene.friend, because=stuck)


LOAD = Plot(
    name="a heavy load",
    plan=plan_load,
    topics=LOADS,
    morals=(
        "many hands make a load light",
        "a good idea can be stronger than an arm",
        "no one has to carry everything alone",
        "it is clever to accept help",
    ),
    phrases={
        "task": (
            "{Spot} stood {a_item}. {hero} had to get it home, because {his} family wanted to {use}.",
            "{hero} had been given {a_item} and [wanted|planned] to {use}. But first it had to be carried home.",
            '"This {noun} is ours now," said {hero}, pointing to {a_item}. {He} wanted to {use}.',
        ),
        "alone": (
            '"I can do it alone," said {hero}. {He} [pushed|heaved|pulled] until {he} was [red|dizzy], but '
            "it did not move.",
            "{hero} spat into {his} hands and lifted. One end [rose a little|came up], then it [sank|dropped] back.",
        ),
        "doubt": (
            "{hero} walked round it [twice|with a frown]. It was [far|much] too heavy for one child.",
            '"I will never manage that," {hero} [sighed|said], for it was as heavy as [a cow|a stove].',
        ),
        "offer": (
            '"[Let me help|I am here too]," said {friend}. "We need [a plan|to be smart about this]."',
            '{friend} [scratched {fhis} head|looked at it from all sides]. "Two can do more than one," {fhe} said.',
        ),
        "lift": (
            "One of them was strong, the other had good ideas, and on the count of three they [lifted|raised] it.",
            "They [bent their knees|took one end each], and with so much strength between them the {noun} rose.",
        ),
        "crowd": (
            "It was huge, so {friend} called {people} children together, and all of them [pushed|hauled] at once.",
            "Something so huge needed a crowd. {friend} [whistled|ran about], and {people} helpers came and took hold.",
        ),
        "wheels": (
            "{friend} [fetched|borrowed] a cart with strong wheels, and they tipped the {noun} onto it.",
            "They laid it across two skateboards, [tied it with rope|made it fast], and it rolled.",
        ),
        "rollers": (
            "They pushed round poles under it, [one after another|like the builders of the pyramids], and it rolled.",
            "{friend} found some pipes. The {noun} slid over them [smoothly|as if by magic].",
        ),
        "sledge": (
            "They put an old rug beneath it and dragged it along[ like a sledge|].",
            "{friend} tied a rope around it, and they pulled it on a wide board.",
        ),
        "pause": (
            "They had to rest {rests} times [on the way|before they got there].",
            "After {rests} rests and a [lot of|great deal of] sweat they saw the front door.",
        ),
        "arrive": (
            '{Elder} stood at the door. "You brought that [all the way|here yourselves]?" {ehe} asked in '
            "[amazement|disbelief].",
            "At home {elder} [opened both doors|made room] and had [hot soup|cold lemon tea] ready for them.",
        ),
        "joke": (
            '"Next time we collect [feathers|soap bubbles|thistledown]," {friend} [joked|said, rubbing {fhis} back].',
            "{friend} showed {fhis} muscles, and everyone laughed.",
        ),
    },
)
