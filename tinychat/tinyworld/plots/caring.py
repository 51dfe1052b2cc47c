"""Plots about looking after others: an animal in need, seeds that grow."""

from tinychat.tinyworld.grammar import article
from tinychat.tinyworld.lexicon.living import ANIMALS, PLANTS, Animal, Plant
from tinychat.tinyworld.lexicon.people import JOBS
from tinychat.tinyworld.lexicon.places import OUTDOORS
from tinychat.tinyworld.lexicon.things import SMALL_SIZES
from tinychat.tinyworld.plots.plot import Plot, places, traits_without
from tinychat.tinyworld.scene import Scene

_RESCUERS = tuple(job for job in JOBS if job.noun in ("farmer", "shepherd", "builder", "blacksmith"))


def plan_animal(scene: Scene) -> None:
    """The animal's nature decides the trouble: climbers are stuck, heavy ones caught, small ones hungry."""
    animal: Animal = scene.topic
    hear = scene.happen(
        "hear",
        scene.hero,
        animal=animal.noun,
        an_animal=article(animal.noun),
        sound=animal.sound,
        spot=scene.pick(scene.place.spots),
    )
    trouble = "stuck_high" if animal.climbs else "hungry" if animal.liftable else "caught"
    need = scene.happen(trouble, because=hear)
    scene.next_act()
    if scene.trait.hasty:
        calm = scene.happen("frighten", scene.hero, because=need)
    else:
        calm = scene.happen("approach", scene.hero, because=need)
    if trouble == "stuck_high":
        rescue = scene.happen("ladder", scene.friend, because=calm)
    elif trouble == "caught":
        helper = scene.enter_worker(scene.pick(_RESCUERS))
        rescue = scene.happen("free", helper, because=calm)
    else:
        scene.own(scene.pick(("blanket", "towel", "shawl")), "cloth", SMALL_SIZES)
        rescue = scene.happen("wrap", scene.hero, because=calm)
    fed = scene.happen("feed", scene.friend, because=rescue, eats=animal.eats)
    scene.next_act()
    scene.happen("leave", animal.noun, because=fed, moves=animal.moves)
    scene.happen(
        "return",
        animal.noun,
        because=fed,
        pet=scene.pick(
            (
                "Biscuit",
                "Pepper",
                "Smoky",
                "Button",
                "Whiskers",
                "Patch",
                "Velvet",
                "Tango",
                "Pebble",
                "Bramble",
            )
        ),
    )


ANIMAL = Plot(
    name="an animal in need",
    plan=plan_animal,
    topics=ANIMALS,
    places=OUTDOORS,
    morals=(
        "kindness needs no language",
        "those who are small can help those who are smaller",
        "every creature deserves care",
        "a helped animal remembers",
    ),
    phrases={
        "hear": (
            "Suddenly they heard something: {spot} {an_animal} {sound} [sadly|pitifully|without stopping].",
            '"[Hush|Listen]," said {hero}. Something {sound}. {Spot} they discovered {an_animal}.',
            "{Spot}, {an_animal} {sound} so [miserably|faintly] that {hero} [came closer|stopped] at once.",
        ),
        "stuck_high": (
            "It had [climbed|got] on top of a high post and did not dare to come down.",
            "A [storm|dog] had driven it up onto a high ledge, and now it was stuck.",
        ),
        "caught": (
            "One of its legs was caught in [a wire fence|a tangle of rope], and it was far too heavy to lift.",
            "It had got its head between two bars and pulled [in vain|with all its strength].",
        ),
        "hungry": (
            "It was [thin and shivering|wet and hungry], and its mother was nowhere near.",
            "It had a [thorn in its foot|sore leg] and must have had nothing to eat for [hours|a day].",
        ),
        "frighten": (
            '{hero} rushed at it, and the {animal} shrank back in fear. "[Gently|Not so fast]!" said '
            "{friend}. {hero} nodded and [knelt down|tried again slowly].",
            "{hero} [clapped and called|made a grab for it], which only scared the {animal}. {He} was sorry "
            "and [lowered {his} voice|sat down quite still].",
        ),
        "approach": (
            "{hero} went nearer [on tiptoe|step by step] and spoke to the {animal} [softly|in a warm voice].",
            '"Nobody will hurt you," {hero} [murmured|told it], holding out {his} open hand.',
        ),
        "ladder": (
            "{friend} [fetched|borrowed] a ladder and held it, while {hero} climbed up and brought the {animal} down.",
            "{friend} stood on {hero}'s shoulders, [stretched|reached up], and lifted the {animal} down to safety.",
        ),
        "free": (
            "They ran for {an_elder}, who [came with a crowbar|brought strong pliers] and set the {animal} free.",
            '{friend} found {an_elder}. "Hold it still," said {elder}, and with one [push|pull] the {animal} was free.',
        ),
        "wrap": (
            "{hero} wrapped it in {a_item} and [warmed it in {his} arms|laid it in a box].",
            "In {his} bag {hero} had {a_item}, and soon the {animal} was [snug|warm] in it.",
        ),
        "feed": (
            "{friend} brought {eats}, and the {animal} [gobbled it all up|ate as if it were a feast].",
            "Then it got {eats} from {friend}, and its eyes grew [bright|clear] again.",
        ),
        "leave": (
            "When it was strong enough, it {moves} away, [looking back once|turning round once more].",
            "At last it {moves} [happily|proudly] around the two of them.",
        ),
        "return": (
            "The next day it came back, so they called it {pet}.",
            '"I will call you {pet}," said {hero}, and the {animal} [seemed to agree|pricked up its ears].',
        ),
    },
)


def plan_growing(scene: Scene) -> None:
    """Seeds sown, seeds lost, plants grown: the sum agrees; impatience costs some more."""
    plant: Plant = scene.topic
    sown = scene.between(8, 16)
    sow = scene.happen("sow", scene.hero, sown=sown, plant=plant.noun, plants=plant.plural)
    thief = scene.pick(("a blackbird", "a mouse", "a crow", "a slug", "a mole"))
    eaten = scene.between(2, 4)
    theft = scene.happen("theft", because=sow, thief=thief, eaten=eaten, rest=sown - eaten)
    scene.next_act()
    if scene.trait.hasty:
        wait = scene.happen("dig_up", scene.hero, because=theft, spoiled=2)
        scene.happen("learn_wait", scene.friend, because=wait)
        grown = sown - eaten - 2
    else:
        wait = scene.happen("wait_well", scene.hero, because=theft, weeks=scene.between(3, 9))
        scene.happen("scare", scene.friend, because=theft)
        grown = sown - eaten
    grow = scene.happen("grow", because=wait, grown=grown, result=plant.result)
    scene.next_act()
    scene.happen("harvest_give" if scene.trait.giving else "harvest", scene.hero, because=grow)


GROWING = Plot(
    name="seeds",
    plan=plan_growing,
    topics=PLANTS,
    places=places(
        "the garden",
        "the orchard",
        "the farm",
        "the schoolyard",
        "the park",
        "the meadow",
        "the vineyard",
        "the campsite",
        "the hill",
        "the playground",
        "the village square",
    ),
    traits=traits_without("lazy"),
    morals=(
        "patience is the best gardener",
        "nothing grows faster when you pull at it",
        "small seeds hold great things",
        "what you care for will flourish",
    ),
    phrases={
        "sow": (
            "They wanted to grow {plants}. {hero} pressed {sown} seeds into the soil, and {friend} watered them.",
            "{hero} had a packet of {plant} seeds, {sown} in all. They [dug|made] a row of holes and dropped "
            "one seed into each.",
        ),
        "theft": (
            "The same night {thief} [ate|stole] {eaten} of the seeds, so that {rest} were left.",
            "But {thief} came and [swallowed|carried off] {eaten} of the seeds. Now there were {rest}.",
        ),
        "dig_up": (
            'Every morning {hero} asked: "Why is [nothing there|it so slow]?" {He} dug up {spoiled} seeds to '
            "look, and those {spoiled} [dried out|died].",
            "{hero} could not wait and scratched {spoiled} of the seeds out of the ground. They [never "
            "grew|were spoiled].",
        ),
        "learn_wait": (
            '"They need [darkness and time|rest]," {friend} explained, [and hid the spade|smoothing the soil].',
            '"Plants do not like to be [woken|watched]," said {friend}. After that {hero} left them alone.',
        ),
        "wait_well": (
            "{hero} watered the bed and pulled out the weeds for {weeks} weeks, [never grumbling|day after day].",
            "For {weeks} weeks {he} [came every day|measured, watered and weeded], though there was little to see.",
        ),
        "scare": (
            "{friend} put up [a scarecrow|a net|rattling tins], and no more seeds were taken.",
            "{friend} hung up strips of [foil|tin] that kept the thieves away.",
        ),
        "grow": (
            "Then the {plants} came up, {grown} of them, with {result}.",
            "By the end {grown} [tall|fine|strong] {plant} plants stood there. They had {result}.",
        ),
        "harvest_give": (
            "{hero} gave half of them away, [door by door|to everyone who had a birthday].",
            "{hero} took the finest to [the hospital|a lonely neighbour], who was moved to tears.",
        ),
        "harvest": (
            "{hero} and {friend} [took a photograph|measured the tallest] and saved new seeds for next year.",
            "{hero} [stood in front of them, amazed|counted them again and again], and {friend} danced a jig.",
        ),
    },
)
