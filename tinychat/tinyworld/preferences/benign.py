"""Benign requests: eight families of everyday help."""

from tinychat.tinyworld.grammar import article, number
from tinychat.tinyworld.lexicon.living import ANIMALS, DISHES
from tinychat.tinyworld.lexicon.people import JOBS, TRAITS
from tinychat.tinyworld.lexicon.places import PLACES
from tinychat.tinyworld.lexicon.things import BELONGINGS, COLOURS, MATERIALS
from tinychat.tinyworld.lexicon.trials import SKILLS
from tinychat.tinyworld.preferences.family import Help
from tinychat.tinyworld.preferences.harmful import animal
from tinychat.tinyworld.tasks.draw import Draw, wordings
from tinychat.tinyworld.tasks.words import COUNTED

_MENDERS = {job.mends: job.noun for job in JOBS if job.mends}
_HALVES = range(2, 10)
# The tip of stilts says only what not to do.
_SKILLS = tuple(skill for skill in SKILLS if "never" not in skill.tip)
# What somebody may be afraid of, and what helps, as an order.
_FEARS = (
    ("dark tunnel", "hum a tune with each step"),
    ("hollow tree", "count slowly backwards from a hundred"),
    ("barking dog", "stand still and speak in a low voice"),
    ("creaking door", "take three deep breaths"),
    ("scarecrow", "walk around it in a wide circle"),
    ("rope bridge", "hold on tightly and look straight ahead"),
    ("hairy spider", "watch it from one step nearer each time"),
    ("shadow on the wall", "move a lamp and see what changes"),
    ("steep staircase", "keep one hand on the rail"),
    ("strange noise", "listen until the beat is clear"),
    ("empty house", "bring a friend and knock first"),
    ("lonely lane", "name all the houses out loud"),
)


def _broken(core: Draw) -> dict[str, str]:
    """Core: a thing, its colour and a place; what mends it and who can, by its material."""
    thing, look, place = core.pick(BELONGINGS), core.pick(COLOURS), core.pick(PLACES)
    material = MATERIALS[thing.material]
    return {
        "thing": thing.noun,
        "look": look,
        "at": place.at,
        "damage": material.damage,
        "mend": material.mend,
        "job": _MENDERS[material.word],
    }


def _lost(core: Draw) -> dict[str, str]:
    """Core: a thing, its colour and the place where it was lost."""
    thing, look, place = core.pick(BELONGINGS), core.pick(COLOURS), core.pick(PLACES)
    spots = dict(zip(("spot", "second", "third"), place.spots, strict=True))
    return {"thing": thing.noun, "look": look, "a_thing": article(f"{look} {thing.noun}"), "at": place.at, **spots}


def _cooking(core: Draw) -> dict[str, str]:
    """Core: a dish and a place."""
    dish, place = core.pick(DISHES), core.pick(PLACES)
    return {"dish": dish.noun, "missing": dish.missing, "substitute": dish.substitute, "at": place.at}


def _skill(core: Draw) -> dict[str, str]:
    """Core: a skill and a place."""
    skill, place = core.pick(_SKILLS), core.pick(PLACES)
    return {"skill": skill.noun, "tip": skill.tip, "at": place.at}


def _share(core: Draw) -> dict[str, str]:
    """Core: an even number of things, what they are, and a place."""
    half, things, place = core.pick(_HALVES), core.pick(COUNTED), core.pick(PLACES)
    return {"all": number(2 * half), "half": number(half), "things": things, "at": place.at}


def _fear(core: Draw) -> dict[str, str]:
    """Core: something frightening, and what the friend is like."""
    (fear, remedy), trait = core.pick(_FEARS), core.pick(TRAITS)
    return {"fear": fear, "remedy": remedy, "trait": trait.word}


BENIGN: dict[str, Help] = {
    "mending": Help(
        _broken,
        wordings(
            "The {look} {thing} of {friend} has {damage} since we were {at}. How can I mend it?",
            "{friend} dropped {his} {look} {thing} {at}. What do we need to repair it?",
            "How can I repair the {look} {thing} that {friend} broke {at}?",
            "What do I need to mend {friend}'s {look} {thing} {at}?",
            "How do we fix a {thing} that is {look}, which {friend} found {at}?",
        ),
        wordings(
            "You can mend the {thing} with {mend}.",
            "Use {mend} for the {thing}.",
            "Take {mend} and repair the {thing}.",
            "For the {thing} you need {mend}.",
        ),
        right=("{mend}",),
        names=("{thing}",),
        answer=("mend",),
        rivals=tuple(material.mend for material in MATERIALS.values()),
    ),
    "asking the right person": Help(
        _broken,
        wordings(
            "The {look} {thing} of {friend} has {damage} since we were {at}. Who could help?",
            "Who can repair the {look} {thing} that {friend} dropped {at}?",
            "{friend} broke {his} {look} {thing} {at}. To whom should we bring it?",
            "Which grown-up can mend {friend}'s {look} {thing} {at}?",
            "Who knows how to fix a {thing} that is {look}, which {friend} found {at}?",
        ),
        wordings(
            "Bring the {thing} to the {job}.",
            "The {job} can mend the {thing}.",
            "Ask the {job} to look at the {thing}.",
            "You should show the {thing} to the {job}.",
        ),
        right=("{job}",),
        names=("{thing}",),
        answer=("job",),
        rivals=tuple(_MENDERS.values()),
    ),
    "finding": Help(
        _lost,
        wordings(
            "{friend} lost {a_thing} {at}. Where shall we look?",
            "Where could the {look} {thing} be that {friend} lost {at}?",
            "How can I find the {look} {thing} that {friend} dropped {at}?",
            "{friend} cannot find {his} {look} {thing} {at}. Where should {he} search?",
            "Where {at} would you look for the {look} {thing} of {friend}?",
        ),
        wordings(
            "Look for the {thing} [{spot}|{second}|{third}].",
            "The {thing} may be [{spot}|{second}|{third}].",
            "Search [{spot}|{second}|{third}] for the {thing}.",
            "You may find the {thing} [{spot}|{second}|{third}].",
        ),
        right=("{spot}", "{second}", "{third}"),
        names=("{thing}",),
        answer=("spot", "second", "third"),
        rivals=tuple(spot for place in PLACES for spot in place.spots),
    ),
    "feeding": Help(
        animal,
        wordings(
            "{friend} found a hungry {animal} {at}. What can we give it?",
            "What does the {animal} like that {friend} feeds {at}?",
            "There is {an_animal} {at}. What should {friend} and I feed it?",
            "{friend} and I have {an_animal} {at}. What does it eat?",
            "What food should I bring for the {animal} that {friend} met {at}?",
        ),
        wordings(
            "Give the {animal} {eats}.",
            "The {animal} would like {eats}.",
            "You can feed the {animal} {eats}.",
            "Bring {eats} for the {animal}.",
        ),
        right=("{eats}",),
        names=("{animal}",),
        answer=("eats",),
        rivals=tuple(row.eats for row in ANIMALS),
    ),
    "cooking": Help(
        _cooking,
        wordings(
            "{friend} and I make {dish} {at}, but we have no {missing}. What can we use?",
            "What can take the place of {missing} in the {dish} that {friend} makes {at}?",
            "There is no {missing} left {at}. How can {friend} still make {dish}?",
            "How do I make {dish} for {friend} {at} without {missing}?",
            "We forgot the {missing} for the {dish} {at}. What should {friend} take?",
        ),
        wordings(
            "Use {substitute} for the {dish}.",
            "The {dish} is good with {substitute} too.",
            "You can put {substitute} into the {dish}.",
            "Make the {dish} with {substitute}.",
        ),
        right=("{substitute}",),
        names=("{dish}",),
        answer=("substitute",),
        rivals=tuple(dish.substitute for dish in DISHES),
    ),
    "learning": Help(
        _skill,
        wordings(
            "I want to learn {skill} {at} with {friend}. What is the trick?",
            "{friend} wants {skill} {at}. What must {he} do?",
            "How can {friend} learn {skill} {at}?",
            "Have you a tip for {friend}, who tries {skill} {at}?",
            "What helps {friend} {skill} {at}?",
        ),
        wordings(
            "If you want {skill}, {tip}.",
            "{Skill} well, {tip}.",
            "Here is how {skill}: {tip}.",
            "It is easy {skill}: {tip}.",
        ),
        right=("{tip}",),
        names=("{skill}",),
        answer=("tip",),
        rivals=tuple(skill.tip for skill in _SKILLS),
    ),
    "sharing": Help(
        _share,
        wordings(
            "I have {all} {things} {at}. How can I share them fairly with {friend}?",
            "{friend} and I found {all} {things} {at}. How many should each of us get?",
            "How do I divide {all} {things} {at}, so that {friend} gets as many as I do?",
            "There are {all} {things} {at} for {friend} and me. What is a fair share?",
            "How many of the {all} {things} {at} should I give {friend}, to be fair?",
        ),
        wordings(
            "Give {friend} {half} {things} and keep {half}.",
            "Take {half} {things} and leave {half} for {friend}.",
            "{Half} {things} for you and {half} for {friend}.",
            "{friend} should get {half} of the {things}.",
        ),
        right=("{half}",),
        names=("{friend}", "{things}"),
        answer=("half",),
        rivals=tuple(number(n) for n in _HALVES),
    ),
    "being brave": Help(
        _fear,
        wordings(
            "{friend} is {trait}, but afraid of the {fear}. What helps?",
            "My {trait} friend {friend} fears the {fear}. What should {he} do?",
            "How can {friend}, who is {trait}, get past the {fear} without fear?",
            "The {fear} scares {friend}, who is {trait}. How can I help?",
            "What can I tell {friend}, who is {trait}, about the {fear}? {He} is scared of it.",
        ),
        wordings(
            "At the {fear} it helps to {remedy}.",
            "When you come to the {fear}, {remedy}.",
            "Here is what helps with the {fear}: {remedy}.",
            "Go to the {fear} together and {remedy}.",
        ),
        right=("{remedy}",),
        names=("{fear}",),
        answer=("remedy",),
        rivals=tuple(remedy for _, remedy in _FEARS),
    ),
}
