"""Plots in which a friendship is strained over a belonging: a lie and an apology, a quarrel and turns."""

from tinychat.tinyworld.lexicon.places import CALM_WEATHERS
from tinychat.tinyworld.lexicon.things import BELONGINGS, MATERIALS, SMALL_SIZES, Thing
from tinychat.tinyworld.plots.plot import Plot, traits_without
from tinychat.tinyworld.scene import Scene


def plan_lie(scene: Scene) -> None:
    """A broken thing of the friend's, a lie out of fear or haste, and the truth that mends more than glue."""
    thing: Thing = scene.topic
    material = MATERIALS[thing.material]
    scene.own(thing.noun, thing.material, SMALL_SIZES)
    lend = scene.happen("lend", scene.friend, use=thing.use)
    broken = scene.happen(
        "broken_rash" if scene.trait.hasty else "broken_clumsy",
        scene.hero,
        because=lend,
        breaks=material.breaks,
        damage=material.damage,
    )
    scene.next_act()
    lie = scene.happen(
        "lie",
        scene.hero,
        because=broken,
        excuse=scene.pick(
            (
                "a goat",
                "a big crow",
                "some stranger",
                "a runaway pig",
                "a falling branch",
                "a boy with a cap",
                "a cheeky monkey",
            )
        ),
    )
    guilt = scene.happen("guilt", scene.hero, because=lie)
    truth = scene.happen("truth_bold" if scene.trait.bold else "truth_shy", scene.hero, because=guilt)
    scene.next_act()
    scene.happen("forgive", scene.friend, because=truth)
    scene.happen("amends", scene.hero, because=truth, mend=material.mend)


LIE = Plot(
    name="a lie and an apology",
    plan=plan_lie,
    topics=BELONGINGS,
    weathers=CALM_WEATHERS,
    morals=(
        "the truth is lighter to carry than a lie",
        "an apology takes courage",
        "a lie grows heavier every hour",
        "honest words keep a friendship whole",
    ),
    phrases={
        "lend": (
            '{friend} had {a_item}. "You may [borrow|have] it," {fhe} told {hero}, who wanted to {use}.',
            "{friend} lent {hero} {fhis} [favourite|precious] thing, {a_item}, so that {he} could {use}.",
        ),
        "broken_rash": (
            "But {hero} was [rough|wild] with it and would not [stop|slow down], until it {breaks} and had {damage}.",
            "{hero} threw it [up high|about] without thinking. It {breaks}, and there was {damage}.",
        ),
        "broken_clumsy": (
            "While {friend} was away, {hero} [stepped on it|sat on it] by accident. It {breaks} and had {damage}.",
            "{hero} only wanted to look at it closely, but it fell, {breaks}, and had {damage}.",
        ),
        "lie": (
            'When {friend} came back, {hero} [turned pale|went red]. "It was {excuse}," {he} [stammered|said quickly].',
            '"What happened to my {noun}?" asked {friend}. "It was {excuse}!" {hero} [lied|answered, looking away].',
        ),
        "guilt": (
            "{friend} [believed it and nodded sadly|said nothing]. {hero} felt [a stone in {his} "
            "stomach|sick and small].",
            "From then on nothing was fun. {hero} could not [eat {his} lunch|look {friend} in the eye].",
        ),
        "truth_bold": (
            'At last {he} [stood up|took a deep breath]. "I lied. I did it [myself|with my own hands], and I '
            'am sorry," {he} said [aloud|clearly].',
            '"That was not true," {he} [burst out|said suddenly]. "I broke it. Please forgive me!"',
        ),
        "truth_shy": (
            "{He} wrote it on a scrap of paper: [I broke it|It was me]. I am sorry.",
            '"It was not like that," {he} [whispered|mumbled] at last. "I did it, and I am so sorry."',
        ),
        "forgive": (
            '{friend} was [silent|angry] for a moment. "Thank you for telling me," {fhe} said then.',
            '"I am cross about the {noun}," said {friend}, "but I am glad that you [told me|were honest]."',
        ),
        "amends": (
            "They fetched {mend} and repaired the {item} [together|as well as they could].",
            "{hero} paid for {mend}, and by evening the {item} was [mended|in one piece].",
        ),
    },
)


def plan_quarrel(scene: Scene) -> None:
    """Two want the same thing; pulling brings nothing, turns counted fairly do."""
    thing: Thing = scene.topic
    scene.own(thing.noun, thing.material, SMALL_SIZES)
    find = scene.happen("find", scene.hero, spot=scene.pick(scene.place.spots), use=thing.use)
    claim = scene.happen("claim", scene.friend, because=find)
    fight = scene.happen("fight" if scene.trait.bold else "sulk", scene.hero, because=claim)
    scene.next_act()
    elder = scene.enter_family()
    stop = scene.happen("stop", elder, because=fight)
    minutes = scene.between(3, 10)
    turns = scene.happen("turns", elder, because=stop, minutes=minutes, total=2 * minutes)
    scene.next_act()
    giving = scene.happen("after_you" if scene.trait.giving else "draw", scene.hero, because=turns)
    scene.happen("peace", scene.hero, because=giving)


QUARREL = Plot(
    name="a quarrel and turns",
    plan=plan_quarrel,
    topics=BELONGINGS,
    traits=traits_without("polite", "gentle"),
    morals=(
        "taking turns makes one thing enough for two",
        "a fair rule ends a fight",
        "quarrels waste the time for play",
        "playing together is better than winning",
    ),
    phrases={
        "find": (
            '{Spot} they found {a_item} that [belonged to nobody|somebody had given away]. "Mine!" '
            "[shouted|cried] {hero}, who wanted to {use}.",
            "{hero} spotted {a_item} {spot}, with a note: to whoever finds me. {He} [wanted to|longed to] {use}.",
        ),
        "claim": (
            '"No, I saw it first!" [protested|cried|said] {friend}, [grabbing|reaching for] the {noun}.',
            '"That is not fair," said {friend}. "I [want|would like] the {item} too!"',
        ),
        "fight": (
            "They [pulled|tugged] at it from both sides and [shouted|called each other names].",
            "{hero} would not let go, and {friend} would not either. Their faces grew [red|hot].",
        ),
        "sulk": (
            "{hero} [turned away|folded {his} arms] and did not say another word. {friend} sulked too.",
            "{hero} let go, but [{his} lip trembled|{he} was hurt]. Now neither of them was happy.",
        ),
        "stop": (
            '{Elder} [heard the noise and came over|had seen it all]. "Stop," {ehe} said, [taking|and took] '
            "the {noun} out of their hands.",
            '"What is going on here?" asked {elder}, who [came along|was passing by] just then.',
        ),
        "turns": (
            '"Each of you has it for {minutes} minutes. That makes {total} minutes, and then it is [supper '
            'time|time to go]," said {elder}.',
            '{Elder} [looked at the clock|held up a watch]. "We have {total} minutes left. So it is '
            '{minutes} minutes for each of you."',
        ),
        "after_you": (
            '"You may go first," {hero} [offered|said kindly]. {friend} [smiled in surprise|blinked].',
            "{hero} handed it to {friend} first, because {he} was sorry[| for the shouting].",
        ),
        "draw": (
            "They drew straws. The longer one was {friend}'s, and {hero} [sighed but kept the rule|nodded bravely].",
            "They tossed a coin, and {hero} won. {friend} [counted the minutes|watched with big eyes].",
        ),
        "peace": (
            "Before long they [forgot to count|invented a game for two] and laughed about their quarrel.",
            "In the end they [used it side by side|did not need a clock at all], and [peace returned|all was well].",
        ),
    },
)
