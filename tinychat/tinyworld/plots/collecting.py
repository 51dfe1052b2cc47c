"""Plots about collections, in which counted things add up: a trade, two heaps counted together."""

from tinychat.tinyworld.grammar import article, counted
from tinychat.tinyworld.lexicon.places import OUTDOORS
from tinychat.tinyworld.lexicon.things import (
    COLLECTABLES,
    COLOURS,
    Collectable,
)
from tinychat.tinyworld.plots.plot import Plot
from tinychat.tinyworld.scene import Scene


def plan_trading(scene: Scene) -> None:
    """A swap changes both collections; the counts before, during and after agree."""
    mine: Collectable = scene.topic
    theirs: Collectable = scene.pick([thing for thing in COLLECTABLES if thing.noun != mine.noun])
    had, gave, got = scene.between(6, 15), scene.between(2, 4), scene.between(2, 6)
    have = scene.happen(
        "have",
        scene.hero,
        had=had,
        mine=mine.plural,
        praise=mine.small,
        jar=mine.container,
        a_jar=article(mine.container),
    )
    want = scene.happen("want", scene.hero, theirs=theirs.plural, praise2=theirs.small)
    scene.next_act()
    if scene.trait.hasty:
        bad = scene.happen("hasty_offer", scene.hero, because=want, offer=had)
        offer = scene.happen("fair_friend", scene.friend, because=bad, gave=gave, got=got)
    else:
        offer = scene.happen("offer" if scene.trait.bold else "shy_offer", scene.hero, because=want, gave=gave, got=got)
    swap = scene.happen("swap", scene.hero, because=offer, left=had - gave)
    scene.next_act()
    scene.happen(
        "content",
        scene.friend,
        because=swap,
        because_of=scene.pick(
            (
                "had looked for one like that for ages",
                "could now finish a whole set",
                "had never owned any before",
                "wanted them for a present",
            )
        ),
    )
    scene.happen("store", scene.hero, because=have, all=had - gave + got)


TRADING = Plot(
    name="trading",
    plan=plan_trading,
    topics=COLLECTABLES,
    morals=(
        "a good trade makes both sides happy",
        "one should count before one swaps",
        "what is plenty for you can be rare for others",
        "a fair bargain keeps its friends",
    ),
    phrases={
        "have": (
            "{hero} owned {had} {praise} {mine}, which {he} kept in {a_jar}.",
            "{hero} had brought {a_jar} with {had} {praise} {mine} in it.",
            "{hero} collected {mine}. There were {had} of them in {his} {jar}, all of them {praise}.",
        ),
        "want": (
            "{friend}, however, had {theirs}, so {praise2} that {hero} [could not look away|wished for some].",
            "{friend} had {theirs} instead. They were {praise2}, and {hero} [liked them at once|wanted a few].",
        ),
        "hasty_offer": (
            '"I will give you all {offer} of mine for just one of yours!" {hero} [burst out|called].',
            '"Take everything I have, all {offer}!" said {hero}, without thinking.',
        ),
        "fair_friend": (
            '"That would not be fair," {friend} [answered|replied]. "Give me {gave} {mine}, and you get '
            '{got} {theirs}."',
            '{friend} shook {fhis} head. "Slowly! {Gave} {mine} for {got} {theirs} is enough."',
        ),
        "offer": (
            '"I [offer|will give] you {gave} {mine} for {got} {theirs}," {hero} [proposed|suggested]. '
            "{friend} [thought it over|nodded].",
            '"Shall we trade?" asked {hero}. "{Gave} of my {mine} for {got} of your {theirs}?" "[Done|Agreed]!"',
        ),
        "shy_offer": (
            "{hero} laid {gave} {mine} on the {ground} and [pointed at the {theirs}|waited]. {friend} "
            "[understood|smiled] and put {got} {theirs} beside them.",
            '"Would you perhaps take {gave} {mine} for {got} {theirs}?" {hero} asked [timidly|softly]. "I '
            'would," said {friend}.',
        ),
        "swap": (
            "They shook hands, and {hero} [kept|was left with] {left} {mine}.",
            "So it was done. {hero} counted {left} {mine} that were [left|still {his} own].",
        ),
        "content": (
            "{friend} was [pleased|overjoyed], for {fhe} {because_of}.",
            '"Thank you," said {friend}, who {because_of}.',
        ),
        "store": (
            "In {his} {jar} {hero} now had {all} pieces, {left} old ones and {got} new ones.",
            "{Left} {mine} and {got} {theirs}: that made {all} treasures in the {jar}.",
        ),
    },
)


def plan_collecting(scene: Scene) -> None:
    """Two heaps are counted together; a helper, a hole in the bag or a gift changes the sum."""
    kind: Collectable = scene.topic
    first, second = scene.between(2, 9), scene.between(2, 9)
    total = first + second
    start = scene.happen(
        "start",
        scene.hero,
        things=kind.plural,
        praise=kind.small,
        jar=kind.container,
        a_jar=article(kind.container),
    )
    one = scene.happen("first_heap", scene.hero, because=start, first=first, spot=scene.pick(scene.place.spots))
    two = scene.happen("second_heap", scene.friend, because=start, second=second)
    scene.next_act()
    total_event = scene.happen("total", scene.hero, because=two, total=total)
    if scene.trait.hasty:
        lost = scene.between(1, 3)
        rest = scene.happen(
            "spill",
            scene.hero,
            because=total_event,
            lost=lost,
            rest=total - lost,
            lost_things=counted(lost, kind.noun, kind.plural),
        )
    elif scene.trait.giving:
        elder = scene.enter_family()
        gift = scene.between(1, 3)
        rest = scene.happen(
            "gift",
            scene.hero,
            because=total_event,
            gift=gift,
            rest=total - gift,
            gift_things=counted(gift, kind.noun, kind.plural),
            to=elder,
        )
    else:
        more = scene.between(1, 3)
        rest = scene.happen(
            "late_find",
            scene.friend,
            because=one,
            more=more,
            rest=total + more,
            more_things=counted(more, kind.noun, kind.plural),
        )
    scene.next_act()
    colour, other = scene.pick(COLOURS), scene.pick(("striped", "spotted", "plain", "broken", "rare"))
    scene.happen("display", scene.hero, because=rest, shade=colour, sort=other)


COLLECTING = Plot(
    name="collecting",
    plan=plan_collecting,
    topics=tuple(thing for thing in COLLECTABLES if thing.lies_about),
    places=OUTDOORS,
    morals=(
        "small finds grow into a big treasure",
        "counting twice is better than guessing",
        "two collectors find more than one",
        "the search is half of the fun",
    ),
    phrases={
        "start": (
            "The two of them were looking for {things}, the more {praise} the better.",
            '"Today we will fill this {jar} with {things}," said {hero}. They looked for {praise} ones.',
            "{hero} wanted to collect {things} for {a_jar} at home, and only {praise} ones.",
        ),
        "first_heap": (
            "{hero} [searched|looked] {spot} and found {first}[ of them|, one after the other].",
            "After an hour {hero} had {first}, [found|picked up] mostly {spot}.",
        ),
        "second_heap": (
            "{friend} [came back with|brought] {second} more[|, all in {fhis} cap|, wrapped in a handkerchief].",
            "{friend} was on the other side and [gathered|picked up] {second}.",
        ),
        "total": (
            '"{First} and {second} make {total}," {hero} counted[ aloud| on {his} fingers|].',
            "Together they had {total} {things}. {hero} counted them [twice|with {friend}'s help] to be sure.",
        ),
        "spill": (
            "But {he} swung the {jar} so wildly that {lost_things} flew [away|into the nettles|down a "
            "crack]. Now there were only {rest}.",
            "Then {he} ran, tripped, and lost {lost_things} [for good|on the way]. That left {rest}.",
        ),
        "gift": (
            "{hero} gave {gift_things} to {elder}, who [loved them|had always wanted some], and kept {rest}.",
            "On the way they met {elder}, and {hero} [made {ehim} a present of|gave {ehim}] {gift_things}. "
            "That left {rest}.",
        ),
        "late_find": (
            "Then {friend} [felt in {fhis} sleeve|looked down] and found {more_things} more. Now there were {rest}.",
            '"Wait!" {friend} [called|cried]. {More_things} had [stuck to {fhis} boot|been in {fhis} hood]. '
            "That made {rest}.",
        ),
        "display": (
            "At home they laid them in rows, the {shade} ones on top and the {sort} ones below.",
            "They sorted them: {shade} ones to the left, {sort} ones to the right, and the {jar} [was "
            "full|looked splendid].",
        ),
    },
)
