"""Plots about giving: a shared meal whose portions add up, a surprise for a birthday."""

from tinychat.tinyworld.lexicon.living import SNACKS, Snack
from tinychat.tinyworld.lexicon.things import (
    BELONGINGS,
    SMALL_SIZES,
    Thing,
)
from tinychat.tinyworld.plots.plot import Plot
from tinychat.tinyworld.scene import Scene


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
