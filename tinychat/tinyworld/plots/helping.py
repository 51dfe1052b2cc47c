"""Plots about giving and looking after others: a shared meal whose portions add up, a surprise, a heavy load, an
animal in need, seeds that grow."""

from tinychat.tinyworld.grammar import article
from tinychat.tinyworld.lexicon.living import ANIMALS, JOBS, PLANTS, SNACKS, Animal, Plant, Snack
from tinychat.tinyworld.lexicon.things import (
    BELONGINGS,
    LARGE_SIZES,
    LOADS,
    OUTDOORS,
    SMALL_SIZES,
    Thing,
)
from tinychat.tinyworld.scene import Plot, Scene, places, traits_without


def plan_sharing(scene: Scene) -> None:
    """Who gives without being asked shares at once; others only when they see the hungry friend."""
    snack: Snack = scene.topic
    had = scene.between(4, 14)
    gave = scene.between(2, had - 2)
    have = scene.happen("have", scene.hero, had=had, snacks=snack.plural, taste=snack.taste)
    nothing = scene.happen(scene.pick(("forgot_lunch", "lost_lunch")), scene.friend)
    hungry = scene.happen("hungry", scene.friend, because=nothing)
    scene.next_act()
    if scene.trait.giving:
        give = scene.happen("give_at_once", scene.hero, because=hungry, gave=gave)
    else:
        scene.happen("keep", scene.hero, because=have)
        look = scene.happen("look", scene.hero, because=hungry)
        give = scene.happen("give_after_all", scene.hero, because=look, gave=gave)
    left = had - gave
    rest = scene.happen(
        "left",
        scene.hero,
        because=give,
        left=left,
        compare="fewer than" if left < gave else "more than" if left > gave else "as many as",
    )
    scene.next_act()
    scene.happen(
        "return",
        scene.friend,
        because=rest,
        drink=scene.pick(
            (
                "a flask of cold cider",
                "a bottle of elderflower juice",
                "a can of iced tea",
                "a jug of buttermilk",
                "a carton of mango juice",
            )
        ),
    )


SHARING = Plot(
    name="sharing",
    plan=plan_sharing,
    topics=SNACKS,
    morals=(
        "shared food tastes twice as good",
        "half of a meal can be a whole joy",
        "nobody should eat while a friend is hungry",
        "those who share are never poor",
    ),
    phrases={
        "have": (
            "{hero} had a bag with {had} {taste} {snacks} in it[|, still fresh from home].",
            "For lunch {hero} had packed {had} {snacks}. They were [wonderfully|really|rather] {taste}.",
            "In {hero}'s [basket|box|paper bag] there were {had} {taste} {snacks}.",
        ),
        "forgot_lunch": (
            "{friend} had left {fhis} lunch on the [bus|hall table|doorstep].",
            "But {friend} had overslept and [packed nothing|forgotten {fhis} lunch] at all.",
        ),
        "lost_lunch": (
            "But a [gull|fox|stray dog] had run away with {friend}'s lunch.",
            "{friend}'s lunch had [fallen into a puddle|been squashed flat under a football].",
        ),
        "hungry": (
            "{Fhis} stomach [growled|rumbled like a drum].",
            '"I am so hungry that I could eat [a horse|my hat|a tablecloth]," {fhe} [sighed|groaned].',
        ),
        "give_at_once": (
            '"[Help yourself|Here, take some]!" said {hero}, and counted {gave} {snacks} into {friend}\'s hands.',
            "{hero} did not [wait|hesitate] to be asked. {He} [handed|gave] {friend} {gave} of the {snacks}.",
        ),
        "keep": (
            "{hero} [turned {his} back and took a bite|began to eat alone]. After all, the {snacks} were {his}.",
            '"They are mine," thought {hero}, [chewing|hiding the bag behind {him}].',
        ),
        "look": (
            "Then {he} saw {friend}'s [sad|hungry] eyes, and the food [stuck in {his} throat|lost its taste].",
            "But {friend} [tried to smile|looked at the {ground}], and {hero} [felt ashamed|stopped eating].",
        ),
        "give_after_all": (
            '"[Wait|Listen], I have enough," {he} said [at last|in the end] and gave {friend} {gave} {snacks}.',
            '{He} put {gave} {snacks} into {friend}\'s lap. "I should have done that [before|sooner]."',
        ),
        "left": (
            "That left {left} for {hero}, {compare} {friend} had.",
            "Now {friend} had {gave} and {hero} still had {left}, {compare} {fhe} did.",
        ),
        "return": (
            "{friend} had {drink}, and they passed it [back and forth|round].",
            '"Then you must try this," said {friend}, who had {drink}[| in {fhis} rucksack]. They drank by turns.',
        ),
    },
)


def plan_surprise(scene: Scene) -> None:
    """A present that must stay hidden, a secret nearly given away, the right number of candles."""
    thing: Thing = scene.topic
    scene.own(thing.noun, thing.material, SMALL_SIZES)
    age = scene.between(5, 12)
    birthday = scene.happen("birthday", scene.friend, age=age, last=age - 1)
    present = scene.happen("present", scene.hero, because=birthday, use=thing.use)
    hide = scene.happen("hide", scene.hero, because=present, spot=scene.pick(scene.place.spots))
    scene.next_act()
    elder = scene.enter_family()
    arrive = scene.happen("arrive", scene.friend, because=birthday)
    if scene.trait.hasty:
        near = scene.happen("blurt", scene.hero, because=arrive)
        rescue = scene.happen("cover", elder, because=near)
    else:
        rescue = scene.happen("distract", scene.hero, because=arrive)
    scene.next_act()
    reveal = scene.happen("reveal", scene.hero, because=hide)
    scene.happen("joy", scene.friend, because=reveal)
    scene.happen("cake", elder, because=rescue, candles=age)


SURPRISE = Plot(
    name="a surprise",
    plan=plan_surprise,
    topics=BELONGINGS,
    together=False,
    morals=(
        "a secret can be a present too",
        "the best surprises need a little patience",
        "giving is as exciting as getting",
        "a happy face is worth all the trouble",
    ),
    phrases={
        "birthday": (
            "It was {his} friend {friend}'s birthday: yesterday {friend} had been {last}, today {fhe} was {age}.",
            "{His} friend {friend} was turning {age} [that day|today], no longer {last}.",
        ),
        "present": (
            "{hero} had [bought|found|made] {a_item} for {fhim}, because {friend} had always wanted to {use}.",
            'The present was {a_item}. "With that {fhe} can {use}," {hero} thought [happily|with a grin].',
        ),
        "hide": (
            "{He} hid the {noun} {spot} and covered it with [a towel|newspaper|old rags].",
            "So that nobody would see it too soon, {he} pushed it {spot}.",
        ),
        "arrive": (
            'But {friend} came [early|an hour too soon]. "What are you doing here?" {fhe} asked.',
            'Suddenly {friend} [stood there|came round the corner]. "Why are you smiling like that?"',
        ),
        "blurt": (
            '"I have a {noun}, I mean, a cold!" {hero} [blurted out|said and turned red].',
            "{hero} could hardly keep still and [pointed|looked] straight at the hiding place.",
        ),
        "cover": (
            '"Help me fetch some chairs, {friend}," {elder} said [quickly|with a wink], and led {fhim} away.',
            "Luckily {elder} [dropped a spoon|began to cough], and {friend} [turned round|looked the other way].",
        ),
        "distract": (
            '"Close your eyes and count to [fifty|thirty|a hundred]," said {hero}, [calmly|keeping a straight face].',
            '{hero} [did not bat an eyelid|stayed calm]. "Let us [race to the gate|look for {elder}] first," '
            "{he} said.",
        ),
        "reveal": (
            '"[Happy birthday|Surprise]!" {hero} [shouted|sang] and pulled the {item} from its hiding place.',
            "Then everyone jumped up, and {hero} [held out|unwrapped] the {item}.",
        ),
        "joy": (
            "{friend} [clapped {fhis} hands|was speechless|hugged everyone in reach].",
            '"For me? It is [perfect|lovely]!" [whispered|cried] {friend}.',
        ),
        "cake": (
            "{Elder} brought a cake with {candles} candles, one for every year.",
            "There was a cake from {elder} as well. {friend} blew out all {candles} candles in one breath.",
        ),
    },
)


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
