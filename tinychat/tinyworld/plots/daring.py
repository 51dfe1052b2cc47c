"""Plots about courage and caution: a fear overcome, a warning."""

from tinychat.tinyworld.grammar import article
from tinychat.tinyworld.lexicon.places import OUTDOORS
from tinychat.tinyworld.lexicon.trials import DANGERS, FEARS, Danger, Fear
from tinychat.tinyworld.plots.plot import Plot, traits_without
from tinychat.tinyworld.scene import Scene


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
