"""Plots about going too fast or astray (a race, a lost way), and about plans and practice: cooking with something
missing, learning a skill, a day out spoiled."""

from tinychat.tinyworld.grammar import counted
from tinychat.tinyworld.lexicon.living import DISHES, JOBS, Dish, Job
from tinychat.tinyworld.lexicon.things import BELONGINGS, FAIR_WEATHERS, OUTDOORS, SMALL_SIZES, SPOILERS, Spoiler, Thing
from tinychat.tinyworld.lexicon.trials import SKILLS, Skill
from tinychat.tinyworld.scene import Plot, Scene, places, traits_without


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


def plan_cooking(scene: Scene) -> None:
    """One ingredient is missing and something else must do; portions for the guests are multiplied."""
    dish: Dish = scene.topic
    guests, each = scene.between(2, 5), scene.between(2, 4)
    elder = scene.enter_family()
    plan = scene.happen("plan", scene.hero, dish=dish.noun, guests=guests, each=each, total=guests * each)
    step = scene.happen("step_rash" if scene.trait.hasty else "step", scene.hero, because=plan, step=dish.step)
    scene.next_act()
    missing = scene.happen("missing", scene.friend, because=step, missing=dish.missing)
    idea = scene.happen(
        "idea_bold" if scene.trait.bold else "idea_elder",
        scene.hero if scene.trait.bold else elder,
        because=missing,
        substitute=dish.substitute,
    )
    cook = scene.happen("cook", scene.hero, because=idea, minutes=scene.pick((15, 20, 25, 30, 40)), smell=dish.smell)
    scene.next_act()
    serve = scene.happen("serve", scene.hero, because=cook)
    scene.happen("praise", elder, because=serve)


COOKING = Plot(
    name="cooking",
    plan=plan_cooking,
    topics=DISHES,
    places=places(
        "the kitchen",
        "the campsite",
        "the farm",
        "the town hall",
        "the classroom",
        "the harbour",
        "the village square",
        "the beach",
        "the schoolyard",
        "the market",
    ),
    morals=(
        "a missing thing can lead to a new idea",
        "cooks who improvise never go hungry",
        "a recipe is only a beginning",
        "work done together has the best flavour",
    ),
    phrases={
        "plan": (
            'They were going to make {dish} for {guests} guests, with {each} helpings for each. "That makes '
            '{total}," {hero} [calculated|worked out].',
            '"{Guests} guests are coming," said {elder}, "and everyone eats {each} helpings of {dish}. So we '
            'need {total}."',
            "{Elder} had invited {guests} people to taste {dish}. {Each} helpings each: that was {total} in all.",
        ),
        "step_rash": (
            "{hero} [tied on|grabbed] an apron and began to {step} so [wildly|fast] that half of it landed "
            "on the {ground}.",
            '"I know how it goes!" {hero} hurried to {step}, [made a terrible mess|knocked over a jug], and '
            "had to begin again.",
        ),
        "step": (
            "{hero} [washed {his} hands|rolled up {his} sleeves] and began to {step}, while {friend} set out "
            "the bowls.",
            "First they had to {step}. {hero} did it [slowly and well|as {elder} had shown {him}].",
        ),
        "missing": (
            '"[Oh no|Wait]," said {friend}, "there is no {missing} left!"',
            "{friend} opened the [tin|cupboard|bag] for the {missing}, but it was empty.",
        ),
        "idea_bold": (
            '"Then we will use {substitute}," {hero} [decided|suggested]. "Why not?"',
            '{hero} [looked around|snapped {his} fingers] and saw {substitute}. "That will do!"',
        ),
        "idea_elder": (
            '"When I was young, we took {substitute} instead," {elder} [remembered|told them].',
            '{Elder} [smiled|winked] and handed them {substitute}. "Try this."',
        ),
        "cook": (
            "After {minutes} minutes it smelled of {smell}, and [everybody's mouth watered|the neighbours "
            "came to ask].",
            "It had to [cook|stand] for {minutes} minutes. A smell of {smell} [filled the air|spread everywhere].",
        ),
        "serve": (
            "They [served|shared out] all {total} helpings, {each} for every guest.",
            "Each of the {guests} guests had {each} helpings, and not one of the {total} was left over.",
        ),
        "praise": (
            '"This is the best {dish} I have ever [eaten|tasted]," said {elder}.',
            "{Elder} asked for the recipe, and {friend} [laughed|wrote it down].",
        ),
    },
)


def plan_skill(scene: Scene) -> None:
    """Failures get fewer day by day; hasty learners give up for a while, and a tip turns things round."""
    skill: Skill = scene.topic
    first = scene.between(7, 15)
    fewer = scene.between(2, 5)
    wish = scene.happen("wish", scene.hero, skill=skill.noun)
    fail = scene.happen("fail", scene.hero, because=wish, doing=skill.doing, failure=skill.failure, first=first)
    scene.next_act()
    give_up = scene.happen("give_up" if scene.trait.hasty else "try_again", scene.hero, because=fail)
    tip = scene.happen("tip", scene.friend, because=give_up, tip=skill.tip)
    better = scene.happen("better", scene.hero, because=tip, fewer=fewer, second=first - fewer)
    scene.next_act()
    done = scene.happen("done", scene.hero, because=better, days=scene.between(4, 12))
    scene.happen("teach" if scene.trait.giving else "show", scene.hero, because=done)


SKILL = Plot(
    name="learning a skill",
    plan=plan_skill,
    topics=SKILLS,
    morals=(
        "practice turns mistakes into skill",
        "every master once began with mistakes",
        "giving up is the only way to fail for good",
        "one good tip can save a hundred tries",
    ),
    phrases={
        "wish": (
            "{hero} wanted to learn {skill}, because {friend} could do it so [well|easily].",
            '"I want to learn {skill}," {hero} [announced|said]. "Will you show me?" {friend} [agreed|nodded].',
        ),
        "fail": (
            "{He} {doing} and {failure}, not once but {first} times on that first day.",
            "On the first day {he} {doing} again and again. {First} times {he} {failure}.",
        ),
        "give_up": (
            '"[This is stupid|I hate it]!" {hero} [shouted|grumbled] and sulked until the evening.',
            "{hero} kicked a pebble and swore {he} would never try again. But [by night|an hour later] {he} was sorry.",
        ),
        "try_again": (
            "{hero} [bit {his} lip|spat into {his} hands] and started once more.",
            '"[Again|Once more]," {hero} said to {himself}[, and wiped {his} forehead|].',
        ),
        "tip": (
            '"I will tell you the trick," said {friend}. "You must {tip}."',
            'Then {friend} [noticed what was wrong|gave {him} some advice]. "Try to {tip}," {fhe} said.',
        ),
        "better": (
            "The next day it went wrong only {second} times, {fewer} fewer than before.",
            "On the second day {he} counted {second} mistakes, which was {fewer} fewer.",
        ),
        "done": (
            "After {days} days {he} could do it [without thinking|as if {he} had never done anything else].",
            "It took {days} days [of practice|in all]. Then, all of a sudden, it [worked|was easy].",
        ),
        "teach": (
            "The first thing {he} did was to teach [a little girl|a small boy|two children] [next door|from "
            "{his} street].",
            'When a smaller child asked how to do it, {hero} said: "[Come|Sit down], I will show you."',
        ),
        "show": (
            "{hero} showed it to the whole [class|family|neighbourhood], and {friend} [cheered|clapped] the loudest.",
            '"Look, {friend}!" {he} [cried|called], and did it [three times in a row|with closed eyes].',
        ),
    },
)


def plan_weather(scene: Scene) -> None:
    """Weather ends a plan; who will not turn back in time gets it worse; indoors a better plan is found."""
    spoiler: Spoiler = scene.topic
    thing = scene.pick([thing for thing in BELONGINGS if not thing.pocket])
    scene.own(thing.noun, thing.material, SMALL_SIZES)
    plan = scene.happen(
        "plan",
        scene.hero,
        use=thing.use,
        treat=scene.pick(
            (
                "cold noodles",
                "egg rolls",
                "a cake tin",
                "grapes and crackers",
                "roast chicken",
                "a thermos of broth",
            )
        ),
    )
    turn = scene.happen("turn", comes=spoiler.comes, spoiler=spoiler.noun)
    effect = scene.happen("effect", because=turn, effect=spoiler.effect)
    scene.next_act()
    if scene.trait.bold:
        stay = scene.happen("stay", scene.hero, because=plan)
        leave = scene.happen("pull_away", scene.friend, because=stay, shelter=spoiler.shelter)
    else:
        leave = scene.happen("leave", scene.hero, because=effect, shelter=spoiler.shelter)
    if thing.material == "paper":
        scene.happen("protect", scene.hero, because=effect)
    scene.next_act()
    instead = scene.happen("instead", scene.friend, because=leave, instead=spoiler.instead)
    scene.happen("content", scene.hero, because=instead)


WEATHER = Plot(
    name="weather spoils a plan",
    plan=plan_weather,
    topics=SPOILERS,
    places=OUTDOORS,
    weathers=FAIR_WEATHERS,
    traits=traits_without("lazy"),
    morals=(
        "a spoiled plan makes room for a new one",
        "nobody can argue with the sky",
        "good company matters more than good weather",
        "one should always have a second plan",
    ),
    phrases={
        "plan": (
            "They had {treat} for a picnic, and {hero} had brought {a_item}. Later {he} wanted to {use}.",
            '"First we eat, then we play," said {hero}, unpacking {treat} and {a_item}. {He} wanted to {use}.',
        ),
        "turn": (
            "{Comes}.",
            "[Nobody had expected it|Then everything changed]. {Comes}.",
        ),
        "effect": (
            "[Soon|In no time|Within minutes] {effect}.",
            "[So much for the plan|There was nothing to be done]: before long {effect}.",
        ),
        "stay": (
            '"[It will pass|I am staying]," {hero} [insisted|said and did not move].',
            "{hero} [shook a fist at the sky|refused to pack up], because {he} had looked forward to it so much.",
        ),
        "pull_away": (
            '"[Do not be silly|Be sensible]!" said {friend}, took {his} arm, and pulled {him} {shelter}.',
            "In the end {friend} persuaded {him}, and the two of them fled {shelter}.",
        ),
        "leave": (
            '"[Quick|Come on], we must go," said {hero}, and they ran {shelter}.',
            "{hero} packed everything up at once, and they [hurried|dashed] {shelter}.",
        ),
        "protect": (
            "Because the {noun} was made of paper, {hero} [hid it under {his} shirt|wrapped it in oilcloth].",
            "Paper does not like bad weather, so {hero} kept the {noun} dry under {his} [jacket|pullover].",
        ),
        "instead": (
            '"I have an idea," said {friend}, and until the {spoiler} was over, they {instead}.',
            "There they [dried their hair|rubbed their hands], and while the {spoiler} lasted, they {instead}.",
        ),
        "content": (
            '"This is [nearly better|nicer] than our plan," {hero} [admitted|said with a full mouth].',
            "It went on outside, but [{hero} did not mind|nobody looked out] any more.",
        ),
    },
)
