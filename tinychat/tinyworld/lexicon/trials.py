"""What tests a character: dangers with a safe choice, fears with a remedy, skills that take practice."""

from typing import NamedTuple


class Danger(NamedTuple):
    """A risk: who approaches it how, the harm it causes and why, the safe alternative."""

    noun: str
    tempt: str  # completes "wanted to"
    warning: str  # a full sentence, spoken
    act: str  # what the rash child did, past tense
    harm: str  # what came of it, a clause about "{he}"
    safe: str  # what one does instead, past tense


class Fear(NamedTuple):
    """Something frightening met on the way: its sign, what it really was, and what helps."""

    noun: str
    sign: str
    truth: str
    remedy: str


class Skill(NamedTuple):
    """Something learned by practice: how one fails at it, and the tip that helps."""

    noun: str  # completes "learn"
    doing: str
    failure: str
    tip: str  # completes "you must"


DANGERS = (
    Danger(
        "muddy swamp",
        "walk straight through the muddy swamp",
        "That muddy swamp has swallowed many boots!",
        "marched into the mud",
        "{he} sank to {his} knees and lost a boot",
        "found a way around it on dry stones",
    ),
    Danger(
        "hot pan",
        "touch the hot pan on the camp stove",
        "That hot pan will burn you!",
        "reached out for the handle",
        "{he} burned {his} thumb and had to hold it under cold water",
        "waited until it had cooled and used a thick glove",
    ),
    Danger(
        "wasps' nest",
        "poke the wasps' nest with a stick",
        "Leave that wasps' nest in peace!",
        "gave it a quick poke",
        "an angry wasp stung {him} on the ear",
        "watched from far away through a spyglass",
    ),
    Danger(
        "busy road",
        "run across the busy road to fetch a ball",
        "That busy road is full of fast cars!",
        "dashed off the pavement",
        "a van braked hard, and {he} fell and scraped {his} knees",
        "walked to the crossing and waited for the green light",
    ),
    Danger(
        "strange berries",
        "taste the strange berries on a bush",
        "Those strange berries may be poison!",
        "swallowed a couple of them",
        "{his} stomach hurt the whole evening",
        "picked blackberries that everybody knew",
    ),
    Danger(
        "rotten ladder",
        "climb the rotten ladder",
        "That rotten ladder will never hold!",
        "put a foot on the third rung",
        "the rung broke and {he} bruised {his} elbow",
        "asked for a firm stool and climbed on that",
    ),
    Danger(
        "unknown dog",
        "hug the unknown dog tied to a post",
        "That unknown dog does not trust you yet!",
        "threw both arms around its neck",
        "the frightened dog snapped and nipped {his} sleeve",
        "asked its owner first and let it sniff a flat hand",
    ),
    Danger(
        "box of matches",
        "play with a box of matches",
        "A box of matches is not a toy!",
        "struck one after another",
        "a spark burned a hole in {his} trousers",
        "gave it to a grown-up and switched on a torch",
    ),
    Danger(
        "deep pool",
        "jump into the deep pool alone",
        "Nobody jumps into the deep pool alone!",
        "leapt straight in",
        "{he} swallowed a lot of water and had to be pulled out",
        "splashed about in the shallow end with a float",
    ),
    Danger(
        "sharp knife",
        "carve a stick with the sharp knife",
        "That sharp knife can slip!",
        "cut as fast as possible",
        "the blade slipped and {he} cut {his} finger",
        "rubbed the bark off with rough sandpaper",
    ),
    Danger(
        "old well",
        "lean over the old well",
        "Nobody knows how deep the old well is!",
        "bent far over the edge",
        "{his} cap fell in, and {he} only just kept {his} balance",
        "dropped a stone from a safe distance and listened",
    ),
    Danger(
        "loose wire",
        "pull at a loose wire on the wall",
        "A loose wire can give you a shock!",
        "grabbed the end of it",
        "a shock made {his} whole arm tingle",
        "told an electrician and kept well away",
    ),
)

FEARS = (
    Fear(
        "dark tunnel",
        "It was as black as ink inside, and something dripped",
        "only water falling from the roof",
        "hummed a tune with each step",
    ),
    Fear(
        "hollow tree",
        "Two yellow eyes seemed to blink inside",
        "nothing but wet leaves that caught the light",
        "counted slowly backwards from a hundred",
    ),
    Fear(
        "barking dog",
        "It showed its teeth behind the fence",
        "a guard that was bored and wanted company",
        "stood still and spoke in a low voice",
    ),
    Fear(
        "creaking door",
        "It groaned all by itself",
        "a hinge that needed a drop of oil",
        "took three deep breaths",
    ),
    Fear(
        "scarecrow",
        "It waved its ragged arms",
        "just straw in an old jacket",
        "walked around it in a wide circle",
    ),
    Fear(
        "rope bridge",
        "It swayed with every breath of air",
        "tied with knots as thick as an arm",
        "held on tightly and looked straight ahead",
    ),
    Fear(
        "hairy spider",
        "It sat there on its long, crooked legs",
        "a shy thing that was spinning its home",
        "watched it from one step nearer each time",
    ),
    Fear(
        "shadow on the wall",
        "It had horns and long claws",
        "the shape of a coat on a hook",
        "moved a lamp to see what changed",
    ),
    Fear(
        "steep staircase",
        "It went down and down without an end",
        "no longer than the stairs at home",
        "kept one hand on the rail",
    ),
    Fear(
        "strange noise",
        "It went tap, tap, tap and then stopped",
        "a twig knocking on a pane of glass",
        "listened until the beat of it was clear",
    ),
    Fear(
        "empty house",
        "Its windows stared like blind eyes",
        "a home that was waiting for a new family",
        "went nearer, one step at a time",
    ),
    Fear(
        "lonely lane",
        "Not a single lamp was burning there",
        "a path that everybody used by day",
        "named all the houses out loud",
    ),
)

SKILLS = (
    Skill("to ride a bicycle", "wobbled along", "toppled over", "look far ahead, not at the wheel"),
    Skill("to juggle", "threw the balls up", "dropped them all", "throw every ball equally high"),
    Skill("to whistle", "pursed both lips", "blew nothing but air", "curl your tongue a little"),
    Skill("to skate", "pushed off", "sat down with a bump", "keep your knees bent"),
    Skill("to tie a bow", "crossed the laces", "ended up with a knot", "make the first loop small"),
    Skill("to play the guitar", "plucked the strings", "hit the wrong note", "move one finger at a time"),
    Skill("to knit", "looped the wool", "lost a stitch", "hold the needles loosely"),
    Skill("to walk on stilts", "climbed up", "fell off sideways", "never stop moving your feet"),
    Skill("to do a handstand", "kicked upwards", "tipped over", "keep your arms straight"),
    Skill("to play chess", "moved a pawn", "lost the queen", "guess the next move before you make yours"),
    Skill("to write in cursive", "dipped the pen", "made an inky blot", "let the pen glide without pressing"),
    Skill("to skip with a rope", "swung the rope", "got tangled up", "jump just before it touches the ground"),
)
