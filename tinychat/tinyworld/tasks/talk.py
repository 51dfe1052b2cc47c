"""Small talk around a task, and questions on what lies outside the small world, which nobody there can answer.

What people say to an assistant is the same few lines again and again, so small talk is a table of lines and replies.
Each conversation holds a task too, before the line or after it: its core is the task's, and no conversation comes
twice though the lines do. Sums in digits are a small table, seen whole in training: what is held
out is which two follow each other.
"""

from functools import partial

from tinychat.tinyworld.tasks.draw import Draft, Draw, Recipe, Teller, Turn, listed, one
from tinychat.tinyworld.tasks.reasoning import ASK_OPPOSITE
from tinychat.tinyworld.tasks.words import OPPOSITES, WORDS
from tinychat.tinyworld.tasks.writing import ASK_COPY

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


FAMILIES = {
    "small talk": (
        *(Recipe(partial(before, kind=kind, sort=sort)) for kind in _BEFORE for sort in (_LISTS, _WORDS)),
        *(Recipe(partial(after, kind=kind, sort=sort)) for kind in _AFTER for sort in (_LISTS, _WORDS)),
    ),
    "sums": (Recipe(sums),),
    "outside": tuple(Recipe(partial(outside, word=word)) for word in _OUTSIDE),
}
