"""Plots about plans and practice: cooking with something missing, learning a skill, a day out spoiled."""

from tinychat.tinyworld.lexicon.living import DISHES, Dish
from tinychat.tinyworld.lexicon.places import FAIR_WEATHERS, OUTDOORS, SPOILERS, Spoiler
from tinychat.tinyworld.lexicon.things import BELONGINGS, SMALL_SIZES
from tinychat.tinyworld.lexicon.trials import SKILLS, Skill
from tinychat.tinyworld.plots.plot import Plot, places, traits_without
from tinychat.tinyworld.scene import Scene


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
