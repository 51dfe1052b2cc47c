"""Plots about belongings: lost and found, broken and mended; and collections, in which counted things add up."""

from tinychat.tinyworld.grammar import article, counted
from tinychat.tinyworld.lexicon.things import (
    BELONGINGS,
    COLLECTABLES,
    COLOURS,
    MATERIALS,
    OUTDOORS,
    SMALL_SIZES,
    Collectable,
    Thing,
)
from tinychat.tinyworld.scene import Plot, Scene


def plan_lost(scene: Scene) -> None:
    """How it got lost decides how it is kept from being lost again."""
    thing: Thing = scene.topic
    scene.own(thing.noun, thing.material, SMALL_SIZES)
    own = scene.happen("own", scene.hero, use=thing.use)
    windy = scene.weather is not None and scene.weather.windy
    if thing.pocket:
        way, cure = "hole", "sew"
    elif windy and thing.material in ("paper", "cloth"):
        way, cure = "gust", "tie"
    elif scene.trait.hasty:
        way, cure = "left", "check"
    else:
        way, cure = "distracted", "label"
    cause = scene.happen(way, scene.hero if way in ("left", "distracted") else "", because=own)
    missing = scene.happen("missing", scene.hero, because=cause)
    scene.next_act()
    search = scene.happen("search_bold" if scene.trait.bold else "search_shy", scene.hero, because=missing)
    first, second = scene.pick(((0, 1), (1, 2), (2, 0), (1, 0), (2, 1), (0, 2)))
    wrong = scene.happen(
        "wrong_spot",
        scene.friend,
        because=search,
        wrong=scene.place.spots[first],
        bycatch=scene.pick(
            (
                "an old glove",
                "a rusty spoon",
                "a striped sock",
                "a broken umbrella",
                "an empty bottle",
                "a lost mitten",
            )
        ),
    )
    found = scene.happen("found", scene.friend, because=wrong, spot=scene.place.spots[second])
    scene.next_act()
    scene.happen(cure, scene.hero, because=cause)
    scene.happen("thanks", scene.hero, because=found)


LOST = Plot(
    name="lost and found",
    plan=plan_lost,
    topics=BELONGINGS,
    morals=(
        "four eyes see more than two",
        "a calm search finds more than tears",
        "good friends look where you forgot to",
        "what is lost can often be found again",
    ),
    phrases={
        "own": (
            "{hero} had brought {a_item} and [wanted to|was going to|could not wait to] {use}.",
            "In one hand {hero} held {a_item}. {He} [wanted to|hoped to] {use}.",
            "{hero} owned {a_item}, a present from {his} [aunt|uncle|godmother|grandfather], and "
            "[meant|planned] to {use}.",
        ),
        "hole": (
            "But there was a hole in {his} pocket, and the {item} [slipped out|fell through it] without a sound.",
            "{He} put it into {his} pocket. Nobody had noticed the hole there, so the {item} soon [dropped "
            "out|was gone].",
        ),
        "gust": (
            "Then a [strong|sudden|fierce] gust [snatched|tore] the {item} away[| and carried it off].",
            "All at once the wind [lifted|grabbed] the {item} and [whirled|blew] it out of sight.",
        ),
        "left": (
            "{He} was in such a hurry to [climb|explore|play tag] that {he} [put it down anywhere|left it "
            "lying about].",
            "But {he} ran after {friend} at once and did not look where {he} [dropped|left] the {item}.",
        ),
        "distracted": (
            "While {he} was [tying a shoelace|helping {friend} up|listening to {friend}], {he} laid the "
            "{item} aside and forgot it.",
            "Then a [squirrel|marching band|juggler|balloon] came past, {he} turned to look, and the {item} "
            "stayed behind.",
        ),
        "missing": (
            '[A little later|After a while|Soon] {he} looked for it. "Oh no, my {noun} is gone!" {he} '
            "[cried|wailed|gasped].",
            'When {he} wanted it again, it was [gone|nowhere to be seen]. "Where is my {noun}?" {he} '
            "[asked|called out].",
        ),
        "search_bold": (
            '"I will [search every corner|turn over every leaf]," said {hero}, [rolling up {his} sleeves|and '
            "started at once]. {friend} came along.",
            '"It cannot be far," {hero} [said firmly|declared]. "You take the left side, {friend}, and I '
            'take the right."',
        ),
        "search_shy": (
            "{hero} [hardly dared to ask|swallowed hard|had tears in {his} eyes], but {friend} "
            '[understood|took {his} hand]. "We will look together," {fhe} said.',
            '"Would you help me?" {hero} asked [in a low voice|softly]. "[Of course|Gladly|Naturally]!" said {friend}.',
        ),
        "wrong_spot": (
            "First {friend} looked {wrong}, but there was only {bycatch}.",
            "{friend} [peered|felt about|searched] {wrong} and [came back with|found nothing but] {bycatch}.",
        ),
        "found": (
            'Then {fhe} tried {spot}. "[Here it is|Look|I have it]!" There lay the {item}.',
            "At last {fhe} [bent down|knelt] {spot}, and there, on the {ground}, was the {item}.",
        ),
        "sew": (
            "{hero} [laughed with relief|beamed], and at home {he} asked for a needle and sewed up the hole.",
            "That same day the hole in the pocket was [mended|stitched up] with [blue|strong|double] thread.",
        ),
        "tie": (
            "{hero} tied a long string to it, so that no wind could [take it|steal it] again.",
            "From then on the {noun} had a cord, and the cord was wound round {his} wrist.",
        ),
        "check": (
            "{hero} promised to look back every time before {he} [ran off|left a place].",
            '"Next time I will stop and [look around|think] first," {hero} [promised|said, blushing].',
        ),
        "label": (
            "{hero} wrote {his} name on a label and [tied|stuck] it to the {noun}.",
            'Then {he} made a little tag for it that said: "This belongs to {hero}."',
        ),
        "thanks": (
            "{He} [hugged|thanked] {friend}, and the two of them [shared a pear|skipped home|took turns with it].",
            '"What would I do without you?" {he} [said|asked] and [gave {friend} a hug|shook {fhis} hand].',
        ),
    },
)


def plan_broken(scene: Scene) -> None:
    """The material decides how it breaks, who can mend it and with what."""
    thing: Thing = scene.topic
    material = MATERIALS[thing.material]
    scene.own(thing.noun, thing.material, SMALL_SIZES)
    own = scene.happen("own", scene.hero, use=thing.use)
    cause = scene.happen("rush" if scene.trait.hasty else scene.pick(("slip", "bump")), scene.hero, because=own)
    broken = scene.happen("broken", because=cause, breaks=material.breaks, damage=material.damage)
    sad = scene.happen("blame" if scene.trait.hasty else "sad", scene.hero, because=broken)
    scene.next_act()
    mender = scene.enter_mender(thing.material)
    advice = scene.happen("advice", scene.friend, because=sad, stuff=material.word)
    ask = scene.happen("ask_bold" if scene.trait.bold else "ask_shy", scene.hero, because=advice)
    mend = scene.happen("mend", mender, because=ask, mend=material.mend)
    scene.next_act()
    if not scene.trait.giving:
        scene.happen("as_new", scene.hero, because=mend)
        return
    scene.happen(
        "pay",
        scene.hero,
        because=mend,
        chore=scene.pick(
            (
                "swept the floor",
                "carried in the firewood",
                "washed the window",
                "sorted a drawer of screws",
                "watered the geraniums",
                "ran an errand",
            )
        ),
    )


BROKEN = Plot(
    name="broken and mended",
    plan=plan_broken,
    topics=tuple(thing for thing in BELONGINGS if thing.noun != "teddy bear"),
    morals=(
        "what is broken can often be mended",
        "a scar can make a thing dearer",
        "skilled hands deserve respect",
        "asking for help is the first step of a repair",
    ),
    phrases={
        "own": (
            "{hero} was proud of {his} {item}, which was {item_size} and made of {stuff}. {He} [wanted "
            "to|was about to] {use}.",
            "{hero} was carrying {a_item} made of {stuff}. {He} [wanted to|was eager to] {use}.",
            "{friend} admired the {noun} that {hero} had with {him}: it was {a_item}, made of {stuff}.",
        ),
        "rush": (
            "But {he} [raced ahead|ran too fast|jumped about] and [stumbled|tripped over a root|missed a step].",
            "{He} would not slow down, [spun around|hopped on one leg], and [fell flat|lost {his} balance].",
        ),
        "slip": (
            "But {his} fingers were [damp|cold|sticky], and it slipped from {his} hand.",
            "A fly landed on {his} nose, {he} sneezed, and the {noun} [fell|flew out of {his} hands].",
        ),
        "bump": (
            "Then a [big dog|running child|man with a parcel] bumped into {him}, and {he} let go.",
            "Just then somebody pushed past, and the {noun} was knocked [down|out of {his} grip].",
        ),
        "broken": (
            "[Oh no|Oh dear|What bad luck]! It hit the {ground} and {breaks}. Now it had {damage}.",
            "It {breaks} on the {ground}, and {damage} was left[| for all to see].",
        ),
        "blame": (
            '"It is my own fault," {hero} [muttered|admitted]. "Why could I not [wait|walk slowly]?"',
            "{hero} stamped {his} foot, but {he} knew that {his} own hurry had done it.",
        ),
        "sad": (
            "{hero} [sat down and sobbed|stared at it with wet eyes|could not say a word].",
            'A tear [rolled down {his} cheek|dripped onto the {ground}]. "It was my favourite," {he} whispered.',
        ),
        "advice": (
            '"Do not [worry|give up]," said {friend}. "It is {stuff}, and {an_elder} knows all about {stuff}."',
            '"I know {an_elder} who works with {stuff} every day," {friend} [remembered|said]. "Come along!"',
        ),
        "ask_bold": (
            'They found {elder} {doing}. "Can you [mend|save] my {noun}?" {hero} asked straight away.',
            "{hero} knocked [loudly|three times]. {Elder} was {doing} but put everything down to listen.",
        ),
        "ask_shy": (
            "They found {elder} {doing}. {hero} only held out the {noun}, [too sad|too shy] to explain.",
            "{Elder} was {doing}. {hero} waited [politely|quietly] until {ehe} looked up and saw the damage.",
        ),
        "mend": (
            "{Elder} took {mend} and [set to work|worked patiently|worked until it was done].",
            '"That needs {mend}," said {elder}, and {ehe} [let them watch|showed them each step].',
        ),
        "pay": (
            '"[What do I owe you|How can I thank you]?" asked {hero}. {He} {chore} in return, and {friend} helped.',
            "As payment, {hero} {chore}[ with great care|, and {friend} lent a hand].",
        ),
        "as_new": (
            "The {noun} was [whole|as good as new], with just a thin line [to remember it by|that told the tale].",
            "When {he} got the {noun} back, {he} could {use} [after all|at last].",
        ),
    },
)


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
