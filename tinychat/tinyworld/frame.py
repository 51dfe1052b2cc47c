"""How every story begins and ends: the meeting, the weather and its effects, the view; the moral."""

from tinychat.tinyworld.grammar import compile_phrase
from tinychat.tinyworld.lexicon.places import DAYS
from tinychat.tinyworld.lexicon.things import LARGE_SIZES
from tinychat.tinyworld.scene import Scene

_SOURCES: dict[str, tuple[str, ...]] = {
    # The hero's name, trait and the place come first in every opening: the text must tell its combination.
    "meet_together": (
        "{hero} was {a_trait} {child}. One {day}, {he} [went|walked|set off|hurried|strolled] to {place} "
        "with {his} [|best |old |dear ]friend {friend}.",
        "[Once upon a time|One {day}], {a_trait} {child} [named|called] {hero} was {at_place} with {his} "
        "[|best |good ]friend {friend}.",
        "There was once {a_trait} {child} whose name was {hero}. {He} had a "
        "[friend|neighbour|classmate|cousin] called {friend}, who was {ftrait} and [not at "
        "all|never|anything but] {fopposite}. One {day} the two of them [met|were together|spent some time] "
        "{at_place}.",
        "[Everybody|The whole street|Each of the neighbours] knew {hero} as {a_trait} {child}. One {day}, "
        "{he} [met|waited for|ran into] {his} friend {friend} {at_place}.",
        "{hero} and {friend} [lived next door to each other|had been friends since they were babies|sat side "
        "by side at school]. {hero} was {trait}, and {friend} was {ftrait}. One {day} they [were|met|had "
        "arranged to meet] {at_place}.",
        "{At_place}, one {day}, {a_trait} {child} [named|by the name of] {hero} [was talking to|sat next "
        "to|stood beside] {his} friend {friend}.",
    ),
    "meet_alone": (
        "{hero} was {a_trait} {child}. One {day}, {he} [went|walked|set off|strolled] to {place} [alone|all "
        "by {himself}|on {his} own].",
        "[Once upon a time|One {day}], {a_trait} {child} [named|called] {hero} was {at_place}.",
        "There was once {a_trait} {child} whose name was {hero}. One {day}, {he} [had something to do|wanted "
        "to spend some time|was to be found] {at_place}.",
        "[Everybody|The whole street|Each of the neighbours] knew {hero} as {a_trait} {child}. One {day}, "
        "{he} [was|found {himself}|was busy] {at_place}.",
        "{At_place}, one {day}, [there was|you could have met] {a_trait} {child} [named|by the name of] {hero}.",
    ),
    "weather": (
        "The weather was {weather}.",
        "It was {weather} [that day|outside|from the first light on].",
        "[Outside|That day] it was {weather}[|, as so often|, and the air smelled fresh].",
    ),
    "wind": (
        "The wind [tugged at {hero}'s hair|blew in every direction|made the leaves dance|whistled a little song].",
    ),
    "dress": (
        "[So|That was why] {hero} wore {a_coat}.",
        "To keep warm, {hero} had put on {a_coat}.",
        '"{Coat_word} on!" {hero}\'s [mother|father] had said, so {hero} wore {a_coat}.',
    ),
    "sight": ("{sight}",),
    "moral": (
        "[From that day on|After that|Ever since], {hero} knew that {moral}.",
        "{hero} had learned that {moral}.",
        "[That evening|That night|In the evening], {hero} thought about it: {moral}.",
        "[And so|In the end|That day] {hero} and {friend} [found out|understood|saw] that {moral}.",
        "{hero} never forgot that {moral}.",
        "If you ask {hero} today, {he} will tell you that {moral}.",
    ),
}
FRAME = {kind: tuple(compile_phrase(source) for source in sources) for kind, sources in _SOURCES.items()}


def open_scene(scene: Scene, together: bool) -> None:
    """Let the characters meet, and let the weather have its effect: cold needs a coat."""
    scene.happen("meet_together" if together else "meet_alone", scene.hero, day=scene.pick(DAYS))
    if scene.weather is None or not (scene.weather.cold or scene.weather.windy):
        if scene.weather is not None and scene.chance():
            scene.happen("weather", weather=scene.weather.word)
        elif scene.chance():
            scene.happen("sight", sight=scene.pick(scene.place.sights))
    else:
        weather = scene.happen("weather", weather=scene.weather.word)
        if scene.weather.cold:
            coat = scene.pick(("coat", "jacket", "jumper", "cloak"))
            scene.own(coat, "wool", LARGE_SIZES[:2], slot="coat")
            scene.happen("dress", scene.hero, because=weather, coat_word=coat)
        else:
            scene.happen("wind", because=weather)
    scene.next_act()


def close_scene(scene: Scene, moral: str) -> None:
    """End with the moral, which follows from all that happened."""
    scene.happen("moral", scene.hero, because=len(scene.events) - 1, moral=moral)
