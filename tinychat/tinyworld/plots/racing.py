"""Plots about going too fast or astray: a race, a lost way."""

from tinychat.tinyworld.grammar import counted
from tinychat.tinyworld.lexicon.people import JOBS, Job
from tinychat.tinyworld.lexicon.places import OUTDOORS
from tinychat.tinyworld.lexicon.things import BELONGINGS, SMALL_SIZES, Thing
from tinychat.tinyworld.plots.plot import Plot
from tinychat.tinyworld.scene import Scene


def plan_race(scene: Scene) -> None:
    """Haste ties no laces and falls; steady running wins; kindness matters more than the prize."""
    thing: Thing = scene.topic
    scene.own(thing.noun, thing.material, SMALL_SIZES)
    laps = scene.between(2, 6)
    prize = scene.happen("prize", scene.hero, laps=laps)
    lead = scene.between(1, laps - 1)
    if scene.trait.hasty:
        start = scene.happen("fast_start", scene.hero, because=prize)
        scene.next_act()
        scene.happen(
            "lead",
            scene.hero,
            because=start,
            lead=lead,
            rest=laps - lead,
            lead_laps=counted(lead, "lap", "laps"),
            rest_laps=counted(laps - lead, "lap", "laps"),
        )
        fall = scene.happen("lace", scene.hero, because=start)
        scene.happen("friend_wins", scene.friend, because=fall)
    else:
        start = scene.happen("tie_laces", scene.hero, because=prize)
        scene.next_act()
        behind = scene.happen(
            "behind",
            scene.friend,
            because=start,
            lead=lead,
            rest=laps - lead,
            lead_laps=counted(lead, "lap", "laps"),
            rest_laps=counted(laps - lead, "lap", "laps"),
        )
        scene.happen("tired", scene.friend, because=behind)
        fall = scene.happen("hero_wins", scene.hero, because=start)
    scene.next_act()
    if scene.trait.hasty:
        scene.happen("good_loser", scene.hero, because=fall)
    else:
        scene.happen("share_prize" if scene.trait.giving else "good_winner", scene.hero, because=fall, use=thing.use)


RACE = Plot(
    name="a race",
    plan=plan_race,
    topics=BELONGINGS,
    places=OUTDOORS,
    morals=(
        "slow and steady feet arrive first",
        "a race is won before the start by those who prepare",
        "losing with a smile is a kind of winning",
        "a rival can be a friend",
    ),
    phrases={
        "prize": (
            "There was a race that day, {laps} laps long, and the prize was {a_item}.",
            '"{Laps} laps," the [referee|judge|starter] announced. "The winner gets {a_item}!"',
        ),
        "fast_start": (
            "{hero} [did not check {his} shoes|left a lace untied]. {He} shot off like [an arrow|a rocket].",
            '"Tie your laces," said {friend}, but {hero} [had no time for that|was already running].',
        ),
        "tie_laces": (
            "{hero} [tied both laces with a double knot|stretched {his} legs first] and [set off|started] at "
            "an easy pace.",
            "Before the start {hero} [drank some water|looked at the track] and made two tight knots in {his} laces.",
        ),
        "lead": (
            "After {lead_laps}, {he} was far in front, with {rest_laps} to go.",
            "{He} led for {lead_laps}, while {friend} [saved {fhis} strength|ran calmly behind]. It was "
            "still {rest_laps} to the flag.",
        ),
        "lace": (
            "Then {he} trod on the loose lace and [tumbled|crashed] onto the {ground}.",
            "But the lace caught under {his} heel, and down {he} went[ with a thud|].",
        ),
        "friend_wins": (
            "{friend} [overtook {him}|ran past] and [crossed the line|reached the flag] first.",
            "{friend} asked if {he} was hurt, and [only then|when {he} shook {his} head] ran on and won.",
        ),
        "behind": (
            "{friend} was [faster|quicker] and led after {lead_laps}, with {rest_laps} to go.",
            "For {lead_laps} {friend} was ahead, and some people [clapped|laughed at {hero}]. There was "
            "still time in {rest_laps}.",
        ),
        "tired": (
            "But {friend} had started too fast and [ran out of breath|got a stitch in {fhis} side].",
            "Little by little {friend}'s legs grew [heavy|tired] as lead.",
        ),
        "hero_wins": (
            "{hero} kept the same pace, drew level, and won by [a nose|two steps|an arm's length].",
            "On the last bend {hero} [passed {friend}|took the lead], and {he} [touched the flag|tore the "
            "ribbon] first.",
        ),
        "good_loser": (
            '"[Well run|You earned it]," {hero} [panted|said] and [shook {friend}\'s hand|brushed off the '
            "dust]. That evening {he} practised tying knots.",
            "{hero} limped over the line, [grinned|rubbed {his} knee] and was the first to congratulate {friend}.",
        ),
        "share_prize": (
            '"We can {use} together," said {hero}, and {friend} [cheered up|put an arm round {him}].',
            "{hero} gave the {item} to {friend} for the first day, and both of them [were happy|laughed].",
        ),
        "good_winner": (
            '{hero} lifted the {item} high. "You ran [really|very] well too," {he} told {friend}.',
            "{friend} clapped for {hero}, who [held|showed around] the {item} with a proud smile.",
        ),
    },
)


def plan_lost_way(scene: Scene) -> None:
    """Haste or wonder leads astray; staying put and the right grown-up lead back."""
    job: Job = scene.topic
    away = scene.happen(
        "ran_ahead" if scene.trait.hasty else "lingered",
        scene.hero,
        lure=scene.pick(
            (
                "a blue butterfly",
                "the smell of pancakes",
                "a street organ",
                "a clown on stilts",
                "a trail of ants",
                "a shiny beetle",
                "a parade",
            )
        ),
    )
    lost = scene.happen("lost", scene.hero, because=away)
    scene.next_act()
    helper = scene.enter_worker(job)
    wait = scene.happen(
        "walk_up" if scene.trait.bold else "wait",
        scene.hero,
        because=lost,
        spot=scene.pick(scene.place.spots),
    )
    ask = scene.happen("helper", helper, because=wait)
    search = scene.happen("friend_search", scene.friend, because=lost)
    scene.next_act()
    found = scene.happen("reunion", scene.friend, because=search)
    scene.happen("sign", scene.hero, because=found)
    scene.happen("thank_helper", scene.hero, because=ask)


LOST_WAY = Plot(
    name="a lost way",
    plan=plan_lost_way,
    topics=JOBS,
    morals=(
        "whoever is lost should stay in one place",
        "most people are happy to show the way",
        "asking is quicker than wandering about",
        "friends should agree on a meeting point",
    ),
    phrases={
        "ran_ahead": (
            '"[Catch me|I will be first]!" {hero} called and ran off after {lure}, round one corner and the next.',
            "{hero} could not wait. {He} followed {lure} and [never looked back|was soon out of sight].",
        ),
        "lingered": (
            "{hero} stopped to look at {lure}, and {friend} walked on without [noticing|turning round].",
            "{hero} was so charmed by {lure} that {he} [stood still|forgot everything], and {friend} went ahead.",
        ),
        "lost": (
            "When {he} looked up, {friend} was gone and [nothing looked familiar|every path looked the same].",
            '"{friend}?" {he} [called|shouted]. No answer came. {hero} [was lost|did not know the way back].',
        ),
        "walk_up": (
            "{He} [was not afraid|kept {his} chin up] and walked up to {an_elder}, who was {doing}.",
            '"I had better ask," {he} decided. {Spot} stood {an_elder}, {doing}.',
        ),
        "wait": (
            "{He} remembered to stay where {he} was and sat down {spot}, until {an_elder} came by, {doing}.",
            "{He} waited {spot}, [close to tears|hugging {his} knees]. There {an_elder} was {doing} and noticed {him}.",
        ),
        "helper": (
            '"[Do not worry|Cheer up]," said {elder}. "Tell me your name, and we will [wait together|find '
            'your friend]."',
            "{Elder} [gave {him} a biscuit|offered {him} a seat] and asked [whom {he} had come with|where {he} lived].",
        ),
        "friend_search": (
            "{friend} had turned back meanwhile and was [asking everyone|calling {hero}'s name].",
            "Meanwhile {friend} had noticed and was retracing {fhis} steps.",
        ),
        "reunion": (
            '"[There you are|At last]!" cried {friend}, [out of breath|and hugged {him}].',
            "Soon {friend} came running and [threw {fhis} arms round {hero}|nearly knocked {him} over].",
        ),
        "sign": (
            "They agreed on a place to meet, should they ever be parted again.",
            "From then on they [held hands in crowds|looked back at every corner].",
        ),
        "thank_helper": (
            "{hero} [waved to|thanked] {elder}, who went back to work.",
            "{hero} drew a picture of {elder} and [brought it round|gave it to {ehim}] the next day.",
        ),
    },
)
