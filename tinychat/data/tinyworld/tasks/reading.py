"""Questions on a short story: whose, who, what, where, which colour, which size."""

from functools import partial

from tinychat.data.tinyworld.grammar import Slots, article
from tinychat.data.tinyworld.lexicon.things import LARGE_SIZES, SMALL_SIZES
from tinychat.data.tinyworld.tasks.draw import Draft, Draw, Recipe, Teller, Wording, one, wordings
from tinychat.data.tinyworld.tasks.words import AT_PLACES, COLOUR, THINGS

_SIZES = SMALL_SIZES + LARGE_SIZES
_OWNING = wordings(
    "{hero} has {a_first}. {friend} has {a_second}.",
    "{hero} has {a_first} and {friend} has {a_second}.",
    "{hero} and {friend} meet. {hero} brings {a_first}, {friend} brings {a_second}.",
    "{hero} carries {a_first}, and {friend} carries {a_second}.",
    "Today {hero} got {a_first}. {friend} got {a_second}.",
)
_COLOUR = wordings(
    "{material} [What|Which] colour is the {thing}?",
    "{material} Tell me the colour of the {thing}.",
    "[What|Which] colour is the {thing}?",
    "[What|Which] colour is {owner}'s {thing}?",
    "Name the colour of the {thing}[| in the story].",
    "Which colour does the {thing} have? {material}",
)
_SIZE = wordings(
    "{material} [What|Which] size is the {thing}?",
    "{material} How big or small is the {thing}?",
    "[What|Which] size is the {thing}?",
    "[What|Which] size is {owner}'s {thing}?",
    "Name the size of the {thing}[| in the story].",
    "How big or small is the {thing}? {material}",
)
_OWNER = wordings(
    "{material} Who has the {clue}?",
    "{material} Whose is the {clue}?",
    "Who has the {clue}?",
    "Whose is the {clue}?",
    "Name the child with the {clue}.",
    "To whom does the {clue} belong? {material}",
)


def own(core: Draw, tell: Teller, asked: str) -> Draft:
    """Core: two things, their colours (or sizes), and which of the two is asked about."""
    things = core.sample(THINGS, 2)
    looks = core.sample(_SIZES if asked == "size" else COLOUR.members, 2)
    which = core.below(2)
    slots = tell.cast(
        a_first=f"{article(looks[0])} {things[0]}",
        a_second=f"{article(looks[1])} {things[1]}",
        thing=things[which],
        clue=f"{looks[which]} one" if asked == "owner by colour" else things[which],
    )
    slots["owner"] = slots["friend" if which else "hero"]
    if asked in ("colour", "size"):
        return _on_story(tell, _COLOUR if asked == "colour" else _SIZE, slots, looks[which], _OWNING)
    return _on_story(tell, _OWNER, slots, slots["owner"], _OWNING)


def _on_story(
    tell: Teller, questions: tuple[Wording, ...], slots: Slots, reply: str, story: tuple[Wording, ...]
) -> Draft:
    return one("word", tell.ask(questions, slots, reply, tell.say(story, slots)))


_BEING = wordings(
    "{hero} is {first}. {friend} is {second}.",
    "{hero} is {first} and {friend} is {second}.",
    "{hero} plays {first}. {friend} sits {second}.",
    "{hero} waits {first}, but {friend} is still {second}.",
    "This morning {hero} was {first}, while {friend} was {second}.",
)
_WHERE = wordings(
    "{material} Where is {who}?",
    "{material} In which place is {who}?",
    "Where is {who}?",
    "Where can one find {who}?",
    "Where is {who}? {material}",
    "Name the place where {who} is.",
)
_WHO_IS = wordings(
    "{material} Who is {where}?",
    "{material} Name the child {where}.",
    "Who is {where}?",
    "Which child is {where}?",
    "Who is {where}? {material}",
)


def find(core: Draw, tell: Teller, asked: str) -> Draft:
    """Core: two places and which of the two is asked about, or whose child."""
    places, which = core.sample(AT_PLACES, 2), core.below(2)
    slots = tell.cast(first=places[0], second=places[1], where=places[which])
    slots["who"] = slots["friend" if which else "hero"]
    story = tell.say(_BEING, slots)
    if asked == "where":
        return one("exact", tell.ask(_WHERE, slots, places[which], story))
    return one("word", tell.ask(_WHO_IS, slots, slots["who"], story))


_DEEDS = ("found", "lost", "hid", "painted", "mended", "bought", "sold", "dropped", "borrowed", "washed")
_DOING = wordings(
    "{hero} {did} {a_first}. {friend} {did_too} {a_second}.",
    "{hero} {did} {a_first} and {friend} {did_too} {a_second}.",
    "{hero} {did} {a_first}, but {friend} {did_too} {a_second}.",
    "On Monday {hero} {did} {a_first}. On Tuesday {friend} {did_too} {a_second}.",
    "While {hero} {did} {a_first}, {friend} {did_too} {a_second}.",
)
_WHO_DID = wordings(
    "{material} Who {deed} something?",
    "{material} Name the child who {deed} something.",
    "Who {deed} {a_thing}?",
    "Which child {deed} {a_thing}?",
    "Who {deed} something? {material}",
)
_WHAT = wordings(
    "{material} What was it that {who} {deed}?",
    "{material} Name the thing that {who} {deed}.",
    "What was it that {who} {deed}?",
    "{material} Which thing was it that {who} {deed}?",
    "Name the thing that {who} {deed}[| in the story].",
)


def do(core: Draw, tell: Teller, asked: str) -> Draft:
    """Core: two deeds, two things, and which of the two is asked about."""
    deeds, things, which = core.sample(_DEEDS, 2), core.sample(THINGS, 2), core.below(2)
    slots = tell.cast(
        did=deeds[0],
        did_too=deeds[1],
        deed=deeds[which],
        a_first=article(things[0]),
        a_second=article(things[1]),
        a_thing=article(things[which]),
    )
    slots["who"] = slots["friend" if which else "hero"]
    if asked == "who":
        return _on_story(tell, _WHO_DID, slots, slots["who"], _DOING)
    return _on_story(tell, _WHAT, slots, things[which], _DOING)


FAMILIES = {
    "story colour": (Recipe(partial(own, asked="colour")),),
    "story size": (Recipe(partial(own, asked="size")),),
    "story owner": (Recipe(partial(own, asked="owner")), Recipe(partial(own, asked="owner by colour"))),
    "story place": (Recipe(partial(find, asked="where"), 2), Recipe(partial(find, asked="who"))),
    "story deed": (Recipe(partial(do, asked="who")), Recipe(partial(do, asked="what"))),
}
