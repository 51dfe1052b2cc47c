"""Plots about courage and caution (a fear overcome, a warning), and a friendship strained over a belonging (a lie
and an apology, a quarrel and turns)."""

from tinychat.tinyworld.grammar import article
from tinychat.tinyworld.lexicon.things import BELONGINGS, CALM_WEATHERS, MATERIALS, OUTDOORS, SMALL_SIZES, Thing
from tinychat.tinyworld.lexicon.trials import DANGERS, FEARS, Danger, Fear
from tinychat.tinyworld.scene import Plot, Scene, traits_without


def plan_fear(scene: Scene) -> None:
    """The remedy answers the fear; who is not bold needs a hand to hold as well."""
    fear: Fear = scene.topic
    meet = scene.happen("meet_fear", scene.hero, a_fear=article(fear.noun), sign=fear.sign)
    afraid = scene.happen("freeze" if not scene.trait.bold else "hide_fear", scene.hero, because=meet)
    scene.next_act()
    tip = scene.happen(
        "own_fear",
        scene.friend,
        because=afraid,
        other=scene.pick(("thunder", "the dark", "dentists", "lifts", "geese", "swimming", "ghosts")),
    )
    support = scene.happen("hand" if not scene.trait.bold else "side", scene.friend, because=tip)
    remedy = scene.happen("remedy", scene.hero, because=support, remedy=fear.remedy)
    truth = scene.happen("truth", scene.hero, because=remedy, truth=fear.truth)
    scene.next_act()
    scene.happen("pride", scene.hero, because=truth)


FEAR = Plot(
    name="afraid and then brave",
    plan=plan_fear,
    topics=FEARS,
    traits=traits_without("brave"),
    morals=(
        "courage means going on although your knees shake",
        "a fear shrinks when you walk towards it",
        "it is no shame to be afraid",
        "things look smaller once you know them",
    ),
    phrases={
        "meet_fear": (
            "On their way they came to {a_fear}. {Sign}.",
            "There was only one way home, and it led past {a_fear}. {Sign}.",
            '"Look, {a_fear}," said {friend}. {Sign}.',
        ),
        "freeze": (
            "{hero} [froze|stopped dead]. {His} heart [pounded|hammered|beat like a drum].",
            '"I cannot go on," {hero} [whispered|breathed], and {his} hands were [damp|shaking].',
        ),
        "hide_fear": (
            '"I am not afraid at all," {hero} said [too loudly|quickly], but {his} voice [trembled|was thin].',
            "{hero} [laughed|pretended to yawn], but {he} had gone [pale|stiff] with fear.",
        ),
        "own_fear": (
            '"I am scared of {other}," {friend} [admitted|told {him}]. "Everyone is scared of something."',
            '{friend} did not laugh. "With me it is {other}," {fhe} [said|confessed] simply.',
        ),
        "hand": (
            "{Fhe} [took|squeezed] {hero}'s hand, and that helped a little.",
            'Then {fhe} said: "Hold on to [me|my sleeve], and we will go together."',
        ),
        "side": (
            "Then {fhe} stayed [close by|at {his} side] but let {hero} go first.",
            'Then {fhe} [promised|added]: "I will be right [behind|beside] you."',
        ),
        "remedy": (
            "So {hero} {remedy}, and [slowly|little by little] the fear grew weaker.",
            "{hero} {remedy}. [Strangely enough, it worked|That made it easier|It helped].",
        ),
        "truth": (
            "Now {he} [found out|could tell] what it was: {truth}.",
            "And what had seemed so terrible? It was {truth}.",
        ),
        "pride": (
            '"I did it!" {hero} [cheered|shouted], and {friend} [whistled|applauded].',
            "{hero} walked on with {his} head high, and the next day {he} [went there again|showed it to the others].",
            "{friend} drew a medal on a piece of card and [hung it round {his} neck|gave it to {hero}].",
        ),
    },
)


def plan_warning(scene: Scene) -> None:
    """A warning is heard: the hasty child ignores it and is harmed, the other takes the safe way."""
    danger: Danger = scene.topic
    elder = scene.enter_family()
    tempt = scene.happen("tempt", scene.hero, tempt=danger.tempt)
    warning = scene.happen("warning", elder, because=tempt, warning=danger.warning)
    scene.next_act()
    act = danger.act.format_map(scene.slots)
    harm = danger.harm.format_map(scene.slots)
    if scene.trait.hasty:
        ignore = scene.happen("ignore", scene.hero, because=warning, act=act)
        hurt = scene.happen("hurt", scene.hero, because=ignore, harm=harm)
        help_ = scene.happen("fetch_help", scene.friend, because=hurt)
        scene.next_act()
        scene.happen("regret", scene.hero, because=help_, safe=danger.safe)
    else:
        stop = scene.happen("stop" if scene.trait.bold else "obey", scene.hero, because=warning)
        safe = scene.happen("safe", scene.hero, because=stop, safe=danger.safe)
        scene.next_act()
        scene.happen("other_child", elder, because=safe, act=act)
        scene.happen("relief", scene.friend, because=safe)


WARNING = Plot(
    name="a warning",
    plan=plan_warning,
    topics=DANGERS,
    places=OUTDOORS,
    morals=(
        "a warning is a kind of gift",
        "it is wise to stop before the danger and not after it",
        "there is nearly always a safe way to have fun",
        "being careful is not the same as being afraid",
    ),
    phrases={
        "tempt": (
            "{hero} [wanted to|had the idea to|was tempted to] {tempt}[|, just for fun].",
            '"Watch me," said {hero}, who [wanted|was about] to {tempt}.',
            "They were [bored|looking for an adventure], and {hero} wanted to {tempt}.",
        ),
        "warning": (
            '"[Stop|No|Careful]! {Warning}" {elder} [called|warned].',
            '{Elder} [raised a hand|saw it and came closer]. "{Warning} [Somebody could get hurt|Please '
            'listen to me]."',
        ),
        "ignore": (
            "But {hero} [would not listen|only laughed|had stopped listening] and {act}.",
            '"[Nothing will happen|I know what I am doing]!" said {hero}, and {act}.',
        ),
        "hurt": (
            "It ended as {elder} had said: {harm}.",
            "[Only a moment later|In the blink of an eye] it happened: {harm}.",
        ),
        "fetch_help": (
            "{friend} ran for {elder}, who came with [a bandage and a blanket|a first aid box|dry clothes "
            "and plasters].",
            '"[Help|Come quickly]!" {friend} [shouted|screamed], and {elder} was there at once.',
        ),
        "regret": (
            '"I should have listened," {hero} [sobbed|said]. The next time {he} {safe}.',
            "{Elder} did not scold. But when they came there again, {hero} {safe}.",
        ),
        "stop": (
            '{hero} [frowned|wanted to argue], but then {he} [looked again|thought it over]. "You are '
            'right," {he} said.',
            '"Is it really that dangerous?" {hero} asked. {Elder} explained it, and {he} [nodded|gave up the plan].',
        ),
        "obey": (
            "{hero} [stepped back|stopped] at once, and {friend} [did the same|breathed out].",
            '"Then we will not do it," said {hero}, [glad to be told in time|taking {friend} by the arm].',
        ),
        "safe": (
            "Instead, {he} {safe}, and that was [fun too|even better].",
            "So {he} {safe}, and {friend} did [it too|likewise].",
        ),
        "other_child": (
            '"Last year a child {act}," {elder} [told them|said], "and had to stay in hospital for a week."',
            '"I once {act} as a child," {elder} [remembered|confessed]. "I still have the scar."',
        ),
        "relief": (
            "{friend} was [relieved|glad], because nobody had been hurt.",
            '"I like you better in one piece," {friend} [joked|said to {hero}].',
        ),
    },
)


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
