"""Dialogues: a second question that leans on the first and its answer, small talk around a task, and questions on what
lies outside the small world, which nobody there can answer.

What people say to an assistant is the same few lines again and again, so small talk is a table of lines and replies.
Each conversation holds a task too, before the line or after it: its core is the task's, and no conversation comes
twice though the lines do. Sums in digits are a small table, seen whole in training: what is held
out is which two follow each other.
"""

from functools import partial

from tinychat.tinyworld.grammar import number
from tinychat.tinyworld.tasks.draw import (
    COUNTED,
    OPPOSITES,
    WORDS,
    Draft,
    Draw,
    Recipe,
    Teller,
    Turn,
    listed,
    one,
    wordings,
)
from tinychat.tinyworld.tasks.reading import ASK_OPPOSITE
from tinychat.tinyworld.tasks.writing import ASK_COPY

# Two addends, then what goes away or is added; each step is in the tables of the families of sums and differences.
_GOES = tuple((a, b, c) for a in range(2, 9) for b in range(2, 9) for c in range(2, 9) if 1 <= a + b - c <= 9)
_COMES = tuple((a, b, c) for a in range(2, 9) for b in range(2, 9) for c in range(2, 10) if a + b <= 9)
_GETS = wordings(
    "{hero} has {a} {things} and gets {b} more from {friend}. How many does {he} have now?",
    "{hero} has {a} {things}. {friend} brings {him} {b} more. How many is that?",
    "{hero} found {a} {things} and then {b} more with {friend}. How many did {he} find in all?",
    "{hero} had {a} {things}, then {friend} gave {him} {b}. How many does {he} have?",
    "{hero} takes {a} {things} from {friend} and finds {b} more. How many does {he} have?",
)
_THEN_GOES = wordings(
    "And how many are left if {he} gives {c} away?",
    "Then {he} loses {c}. How many are left?",
    "Now {c} of them get lost. How many remain?",
    "And without {c} of them?",
    "{He} gives {c} back. How many does {he} have now?",
)
_THEN_COMES = wordings(
    "And how many are there if {he} gets {c} more?",
    "Then {he} finds {c} more. How many does {he} have now?",
    "Now {c} more come. How many is that?",
    "And with {c} more?",
    "{friend} adds {c}. How many does {he} have then?",
)


def count_on(core: Draw, tell: Teller, goes: bool) -> Draft:
    """Core: the three numbers and what is counted."""
    a, b, c = core.pick(_GOES if goes else _COMES)
    slots = tell.cast(things=core.pick(COUNTED), a=number(a), b=number(b), c=number(c))
    asked = tell.ask(_GETS, slots, number(a + b))
    return Draft(
        "number", (asked, tell.ask(_THEN_GOES if goes else _THEN_COMES, slots, number(a + b + (-c if goes else c))))
    )


_NTH = wordings(
    "Which word is the {nth} one: {material}?",
    "Name the {nth} word: {material}.",
    "What is the {nth} word?",
    "The list is {material}. What is the {nth} word?",
)
_THEN = {
    "after": wordings(
        "And which word comes after it?", "Which one follows it?", "And the next one?", "What comes right after that?"
    ),
    "before": wordings(
        "And which word comes before it?",
        "Which one stands before it?",
        "And the one before?",
        "What comes right before that?",
    ),
    "last": wordings(
        "And the last one?", "And which word is last?", "Name the last one too.", "What about the last one?"
    ),
    "first": wordings(
        "And the first one?", "And which word is first?", "Name the first one too.", "What about the first one?"
    ),
}


def pick_on(core: Draw, tell: Teller, start: int, then: str) -> Draft:
    """Core: four words in their order."""
    words = core.sample(WORDS, 4)
    last = {"after": start + 1, "before": start - 1, "last": 3, "first": 0}[then]
    slots = tell.plain(nth=("first", "second", "third", "last")[start])
    asked = tell.ask(_NTH, slots, words[start], listed(words))
    return Draft("word", (asked, tell.ask(_THEN[then], slots, words[last])))


def _pick_on(*steps: tuple[int, str]) -> tuple[Recipe, ...]:
    return tuple(Recipe(partial(pick_on, start=start, then=then)) for start, then in steps)


_DIALOGUES = {"follow-up list": _pick_on((0, "after"), (1, "after"), (0, "last"), (1, "last"), (3, "first"))}
HARD_FAMILIES = {
    "follow-up count": (Recipe(partial(count_on, goes=True)), Recipe(partial(count_on, goes=False))),
    "follow-up list": _pick_on((0, "after"), (1, "after"), (1, "before"), (3, "before")),
}


_HELLO = "Hello! What can I do for you?"
_NAME = "I am tinychat, a small language model."
_SKILLS = "I can add, sort and copy words, and answer questions about stories."
# What is said, and the reply; as people type it, so with small letters and without marks too.
LINES: dict[str, tuple[tuple[str, str], ...]] = {
    "greeting": (
        *((line, _HELLO) for line in ("Hello!", "Hello", "hello", "Hi!", "Hi", "hi", "Hey!", "Hi there!")),
        ("Good morning!", "Good morning! What can I do for you?"),
        ("Good morning", "Good morning! What can I do for you?"),
        ("Good evening!", "Good evening! What can I do for you?"),
    ),
    "asking how": tuple(
        (line, "I am well, thank you. And you?")
        for line in ("How are you?", "How are you today?", "how are you", "How are you doing?", "Hello, how are you?")
    ),
    "asking who": tuple(
        (line, _NAME)
        for line in (
            "Who are you?", "What are you?", "who are you", "who are you?", "What is your name?", "what is your name",
            "What are you called?", "Are you a robot?", "Are you a person?", "Hello! Who are you?",
        )
    ),
    "asking what for": tuple(
        (line, _SKILLS)
        for line in (
            "What can you do?", "what can you do", "What can I ask you?", "How can you help me?", "What do you know?",
            "Help!", "help", "Can you help me?", "Hi! What can you do?",
        )
    ),
    "thanks": tuple(
        (line, "You are welcome!")
        for line in ("Thank you!", "Thank you.", "Thanks!", "thanks", "thank you", "Thank you very much!")
    ),
    "praise": tuple(
        (line, "Thank you!") for line in ("Well done!", "Great!", "That is right.", "You are nice.", "good")
    ),
    "leaving": (
        *((line, "Goodbye!") for line in ("Goodbye!", "Goodbye", "Bye!", "bye", "See you.", "I must go now.")),
        ("Good night!", "Good night!"),
        ("Good night", "Good night!"),
    ),
}  # fmt: skip
SUM_WAYS = (
    "What is {a} + {b}?", "what is {a}+{b}", "{a} + {b}", "{a}+{b}", "{a} + {b} = ?", "{a}+{b}=", "{a} and {b}?",
)  # fmt: skip
_BEFORE = tuple(LINES)
_AFTER = ("thanks", "leaving", "praise", "asking who", "asking what for", "asking how")
_LISTS, _WORDS = "copying", "opposites"


def _task(core: Draw, tell: Teller, sort: str) -> Turn:
    """A short task to talk around."""
    if sort == _LISTS:
        words = listed(core.sample(WORDS, 3))
        return tell.ask(ASK_COPY, tell.plain(), words, words)
    word = core.pick(tuple(sorted(OPPOSITES)))
    return tell.ask(ASK_OPPOSITE, tell.plain(word=word), OPPOSITES[word])


def _line(tell: Teller, kind: str) -> Turn:
    said, reply = tell.dressing.pick(LINES[kind])
    return Turn(said, "", reply)


def before(core: Draw, tell: Teller, kind: str, sort: str) -> Draft:
    """A line, then a task. Core: the task's."""
    line = _line(tell, kind)
    return Draft("exact", (line, _task(core, tell, sort)))


def after(core: Draw, tell: Teller, kind: str, sort: str) -> Draft:
    """A task, then a line, whose reply is checked. Core: the task's."""
    task = _task(core, tell, sort)
    return Draft("exact", (task, _line(tell, kind)))


def sums(core: Draw, tell: Teller) -> Draft:
    """Two sums in digits, one after the other. Core: the four numbers; every sum of two occurs in training."""
    turns = []
    for _ in range(2):
        a, b = core.below(9) + 1, core.below(9) + 1
        turns.append(Turn(tell.dressing.pick(SUM_WAYS).format(a=a, b=b), "", str(a + b)))
    return Draft("number", tuple(turns))


# What the stories do not have. fmt keeps a list of words in lines.
# fmt: off
_LANDS = (
    "France", "Germany", "China", "Japan", "India", "Brazil", "Canada", "Mexico", "Egypt", "Kenya", "Spain", "Italy",
    "Russia", "Norway", "Chile", "Turkey", "England", "America", "Africa", "Europe",
)
_CITIES = (
    "Paris", "London", "Berlin", "Tokyo", "New York", "Rome", "Moscow", "Beijing", "Madrid", "Cairo", "Sydney",
)
_SIGHTS = (
    "Mount Everest", "the Eiffel Tower", "the Sahara", "the Nile", "the North Pole", "the Great Wall",
    "the White House", "the Amazon", "the Statue of Liberty", "Silicon Valley",
)
_PEOPLE = (
    "Albert Einstein", "Isaac Newton", "Marie Curie", "Charles Darwin", "William Shakespeare", "Mozart", "Beethoven",
    "Napoleon", "Julius Caesar", "Abraham Lincoln", "Barack Obama", "Leonardo da Vinci", "Picasso", "Alan Turing",
    "Elvis Presley", "Gandhi", "Plato", "Karl Marx",
)
_THINGS = (
    "the computer", "the internet", "the telephone", "electricity", "the aeroplane", "the steam engine", "democracy",
    "the atom bomb", "the printing press", "penicillin", "the car", "television", "money", "chess", "football", "paper",
)
_SUBJECTS = (
    "quantum physics", "gravity", "photosynthesis", "machine learning", "the economy", "the stock market", "evolution",
    "philosophy", "algebra", "chemistry", "the universe", "black holes", "climate change", "the Roman Empire",
    "the second world war", "Python", "software", "DNA", "politics", "the speed of light", "neural networks",
)
_IDLE = (
    "What is the meaning of life?", "What time is it?", "What day is it today?", "What is the weather like?",
    "Will it rain tomorrow?", "Is it going to snow?", "What is in the news?", "Which film is the best?",
    "What is your favourite song?", "What should I wear today?", "Which team won the match?", "What does gold cost?",
)
_WORKS = ("a poem", "a song", "an email", "a letter", "a novel", "a report", "an essay", "a joke", "a program")
# fmt: on
# The word that a question begins with settles the reply, so that no reply fits all.
_OUTSIDE: dict[str, tuple[str, tuple[tuple[str, tuple[str, ...]], ...]]] = {
    "what": (
        "I do not know that.",
        (
            ("What is the capital of {x}?", _LANDS),
            ("What language do they speak in {x}?", _LANDS),
            ("What is {x}?", _SUBJECTS),
            ("What is the population of {x}?", _LANDS + _CITIES),
            ("Which river flows through {x}?", _CITIES),
            ("{x}", _IDLE),
            ("Explain {x}.", _SUBJECTS),
            ("Tell me about {x}.", _SUBJECTS + _PEOPLE + _LANDS),
            ("What did {x} do?", _PEOPLE),
        ),
    ),
    "who": (
        "I do not know who that is.",
        (
            ("Who is {x}?", _PEOPLE),
            ("Who was {x}?", _PEOPLE),
            ("Who invented {x}?", _THINGS),
            ("Who is the president of {x}?", _LANDS),
            ("Who built {x}?", _CITIES + _SIGHTS),
        ),
    ),
    "where": (
        "I do not know where that is.",
        (
            ("Where is {x}?", _LANDS + _CITIES + _SIGHTS),
            ("Where was {x} born?", _PEOPLE),
            ("Where was {x} invented?", _THINGS),
            ("Where did {x} live?", _PEOPLE),
        ),
    ),
    "when": (
        "I do not know when that was.",
        (
            ("When was {x} born?", _PEOPLE),
            ("When was {x} invented?", _THINGS),
            ("When was {x} founded?", _CITIES),
            ("In which year did {x} die?", _PEOPLE),
        ),
    ),
    "how": (
        "I do not know how that works.",
        (
            ("How does {x} work?", _THINGS + _SUBJECTS),
            ("How do I learn {x}?", _SUBJECTS),
            ("How do you make {x}?", _THINGS),
            ("How was {x} discovered?", _SUBJECTS),
        ),
    ),
    "do": (
        "I have not learned to do that.",
        (
            *((f"Write {work} about {{x}}.", _SUBJECTS + _SIGHTS) for work in _WORKS),
            ("Write {x} for me.", _WORKS),
            ("Tell me {x}.", _WORKS),
            ("Translate this into the language of {x}.", _LANDS),
            ("Draw {x}.", _SIGHTS + _PEOPLE),
            ("Book a flight to {x}.", _LANDS + _CITIES),
        ),
    ),
}
_LEAD = ("", "Hello! ", "Please tell me: ", "I want to know: ", "A question: ", "Hi. ", "And now: ")
_TAIL = ("", " Thank you.", " Please answer.", " I am curious.", " Do you know?", " Tell me.", " Thanks!")


def outside(core: Draw, tell: Teller, word: str) -> Draft:
    """Core: the question, of things that no story has."""
    reply, asked = _OUTSIDE[word]
    question = core.pick([way.format(x=x) for way, topics in asked for x in topics])
    lead, tail = tell.dressing.pick(_LEAD), tell.dressing.pick(_TAIL)
    return one("exact", Turn(lead + question + tail, "", reply))


_TALK = {
    "small talk": (
        *(Recipe(partial(before, kind=kind, sort=sort)) for kind in _BEFORE for sort in (_LISTS, _WORDS)),
        *(Recipe(partial(after, kind=kind, sort=sort)) for kind in _AFTER for sort in (_LISTS, _WORDS)),
    ),
    "sums": (Recipe(sums),),
    "outside": tuple(Recipe(partial(outside, word=word)) for word in _OUTSIDE),
}
FAMILIES = {**_DIALOGUES, **_TALK}
