"""tinyworld instructions: answers agree with a second solver that reads the text; held out, never twice, the same."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable
from itertools import pairwise
from random import Random

import pytest

from tinychat.tinyworld.grammar import number
from tinychat.tinyworld.lexicon import chinese
from tinychat.tinyworld.lexicon.living import ANIMALS, JOBS, NAMES, SNACKS, TRAITS
from tinychat.tinyworld.lexicon.things import BELONGINGS, COLLECTABLES, COLOURS, LOADS, PLACES
from tinychat.tinyworld.tasks import FAMILIES, LEVELS, Task, _cycles, capacity, instruction, instructions
from tinychat.tinyworld.tasks.draw import Draw, Teller

TRAIN, VALIDATION = 50_000, 3_000
# The first 480 tasks of seed 0 of both splits. It changes with any word of the tasks: if that was meant, set it to
# the value that the failing test shows, and say in the commit that results before and after cannot be compared.
PINNED = "d35abe4be2b7d1a869c87ecaf46ff4db9dd9e937c0a2f3607b3f50aa893162d8"


# Each family of each level, which is a test's `level` and `family`.
EVERY = pytest.mark.parametrize(("level", "family"), [(level, name) for level in LEVELS for name in FAMILIES[level]])


@pytest.fixture(scope="module")
def levels() -> dict[str, dict[str, list[Task]]]:
    return {
        level: {
            "train": list(instructions(0, "train", count, level)),
            "validation": list(instructions(5, "validation", VALIDATION, level)),
        }
        for level, count in (("plain", TRAIN), ("hard", TRAIN // 2), ("bilingual", TRAIN // 5))
    }


@pytest.fixture(scope="module")
def tasks(levels: dict[str, dict[str, list[Task]]]) -> dict[str, list[Task]]:
    return levels["plain"]


def key(task: Task) -> str:
    return repr(task.messages)


# --- a second solver: from the text and the lexicon alone ----------------------------------------------------

VALUE = {number(n): n for n in range(1, 41)}
NAME = "(" + "|".join(name.word for name in NAMES) + ")"
THING = "(" + "|".join(thing.noun for thing in (*BELONGINGS, *LOADS)) + ")"
AT = "(" + "|".join(place.at for place in PLACES) + ")"
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
KIND = {
    **{animal.noun: "animal" for animal in ANIMALS},
    **{snack.noun: "food" for snack in SNACKS},
    **dict.fromkeys(COLOURS, "colour"),
    **{job.noun: "job" for job in JOBS},
    **{place.name.removeprefix("the "): "place" for place in PLACES},
}
OPPOSITE = {pair[n]: pair[1 - n] for trait in TRAITS for pair in [(trait.word, trait.opposite)] for n in (0, 1)}
SIZE = {"tiny": 1, "small": 2, "little": 2, "big": 3, "large": 3, "huge": 4}

Solved = tuple[str, Hashable]  # the answer, and the core: what must not be in both splits


def asked(task: Task) -> list[str]:
    """The user's words, a text a turn: content and input together."""
    return [f"{m['content']} {m.get('input', '')}".strip() for m in task.messages if m["role"] == "user"]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+(?:-[a-z]+)*", text.lower())


def numbers(text: str) -> list[int]:
    """The numbers above one; "the two" of a question is none, and "one" may be a pronoun."""
    return [VALUE[word] for word in words(re.sub(r"[Tt]he two\b", "", text)) if VALUE.get(word, 1) > 1]


def counted(text: str) -> str:
    plurals = {row.plural for row in (*COLLECTABLES, *SNACKS)}
    return next(word for word in words(text) if word in plurals)


def listed(text: str, known: object) -> list[str]:
    """The words of the list in the text: known words with blanks between them."""
    one = "(?:" + "|".join(sorted(known, key=len, reverse=True)) + ")"  # type: ignore[call-overload]
    runs = re.findall(rf"\b{one}(?: {one})+\b", text)
    assert len(runs) == 1, text
    return runs[0].split(" ")


def kind_asked(text: str) -> str | None:
    found = re.search(r"\b(animal|food|colour|job|place)s\b", text)
    return found and found[1]


def addition(text: str) -> Solved:
    a, b = numbers(text)
    return number(a + b), (min(a, b), max(a, b), counted(text))


def subtraction(text: str) -> Solved:
    gave, had = sorted(numbers(text))
    return number(had - gave), (had, gave, counted(text))


def comparing(text: str) -> Solved:
    which = re.search(r"\b(more|fewer|bigger|smaller|heavier|lighter)\b", text)
    assert which
    if which[1] in ("heavier", "lighter"):
        heavy = next(row.noun for row in LOADS if re.search(rf"\b{row.noun}\b", text))
        light = next(row.noun for row in COLLECTABLES if re.search(rf"\b{row.noun}\b", text))
        return heavy if which[1] == "heavier" else light, (heavy, light, which[1])
    a, b = sorted(numbers(text))
    more = which[1] in ("bigger", "more")
    return number(b if more else a), (a, b, more, counted(text))


def comparing_children(text: str) -> Solved:
    which = re.search(r"\b(older|younger|more|fewer)\b", text)
    assert which
    people = list(zip(numbers(text), re.findall(rf"\b{NAME}\b", text), strict=False))
    choose = max if which[1] in ("older", "more") else min
    (a, _), (b, _) = sorted(people)
    return choose(people)[1], (a, b, which[1], counted(text) if which[1] in ("more", "fewer") else "")


def sequences(text: str) -> Solved:
    days = [day for day in DAYS if day in text]
    if days:
        step = 1 if "day after" in text else -1
        assert ("day before" in text) == (step == -1)
        where = re.search(AT, text)
        assert where
        return DAYS[(DAYS.index(days[0]) + step) % 7], (days[0], step, where[1])
    row = [VALUE[word] for word in listed(text, VALUE)]
    assert len({b - a for a, b in pairwise(row)}) == 1
    return number(2 * row[-1] - row[-2]), (counted(text), *row)


def counting(text: str) -> Solved:
    shown, kind = listed(text, KIND), kind_asked(text)
    return number(sum(kind in (None, KIND[word]) for word in shown)), (kind, *shown)


def sorting(text: str) -> Solved:
    backwards = "biggest" in text
    if "alphabet" in text or "from a to z" in text:
        shown = listed(text, KIND)
        return " ".join(sorted(shown)), frozenset(shown)
    sized = re.findall(rf"an? ({'|'.join(SIZE)}) {THING}", text)
    if sized:
        ranked = sorted(sized, key=lambda one: SIZE[one[0]], reverse=backwards)
        return " ".join(thing for _, thing in ranked), (backwards, frozenset(sized))
    values = [VALUE[word] for word in listed(text, VALUE)]
    return " ".join(map(number, sorted(values, reverse=backwards))), (backwards, frozenset(values))


def reversing(text: str) -> Solved:
    shown = listed(text, KIND)
    return " ".join(reversed(shown)), tuple(shown)


def nth(text: str, shown: list[str]) -> int:
    place = next(word for word in ("first", "second", "third", "last") if f" {word} " in text)
    return len(shown) - 1 if place == "last" else ("first", "second", "third").index(place)


def picking(text: str) -> Solved:
    shown = listed(text, KIND)
    return shown[nth(text, shown)], (nth(text, shown), *shown)


def filtering(text: str) -> Solved:
    shown, kind = listed(text, KIND), kind_asked(text)
    return " ".join(word for word in shown if KIND[word] == kind), (kind, *shown)


def odd_one_out(text: str) -> Solved:
    shown = listed(text, KIND)
    kinds = Counter(KIND[word] for word in shown)
    return next(word for word in shown if kinds[KIND[word]] == 1), tuple(shown)


def kinds(text: str) -> Solved:
    word = next(word for word in words(text) if word in KIND)
    offered = re.findall(r"\ban? (animal|food|colour|job|place)\b", text)
    assert len(offered) == 3
    assert KIND[word] in offered
    return KIND[word], (word, *offered)


def owned(text: str) -> tuple[list[tuple[str, str, str]], str]:
    """Who has what: (name, colour or size, thing) in the story's order; and the question, the rest of the text."""
    fact = rf"{NAME} (?:has|brings|carries|got) an? (\w+) {THING}"
    return re.findall(fact, text), re.sub(fact, "", text)


def story(text: str) -> tuple[str, str, str, str, str, str]:
    """(child, size, colour, thing, place) of a story of one child; and the question, the rest of the text."""
    first = rf"(?:This morning )?{NAME} (?:has|is|plays|got|sits) [^.?]*\.(?: S?[Hh]e (?:has|is)[^.]*\.)?"
    question = r"^Name the (?:thing that|place where) \w+ (?:has|is)\. "  # looks like the story's beginning
    found = re.search(first, re.sub(question, "", text))
    assert found
    told = found[0]
    what, where = re.search(rf"\ban? (\w+) (\w+) {THING}", told), re.search(AT, told)
    assert what
    assert where
    assert what[1] in SIZE
    assert KIND[what[2]] == "colour"
    assert len(set(re.findall(rf"\b{NAME}\b", text))) == 1, "one child, so that a word of its sort is the answer"
    return found[1], what[1], what[2], what[3], where[1], text.replace(told, "")


def one_story(aspect: str) -> Callable[[str], Solved]:
    def solve(text: str) -> Solved:
        child, size, colour, thing, place, question = story(text)
        by = {"colour": colour, "size": size}
        if aspect in by:
            return by[aspect], (size, colour, thing, place)
        if aspect == "owner":
            asks_who = re.search(r"[Ww]ho|Name the child", question) is not None
            return child if asks_who else thing, (asks_who, size, colour, thing, place)
        asks_where = "here" in question or "lace" in question
        assert (place in question) is not asks_where
        return place if asks_where else child, (asks_where, size, colour, thing, place)

    return solve


def one_deed(text: str) -> Solved:
    done = re.search(rf"\b(\w+) an? {THING}(?: {AT})?\.", text)
    place = re.search(AT, text)
    assert done
    assert place
    (child,) = set(re.findall(rf"\b{NAME}\b", text))
    asks_who = re.search(r"\bWho\b|[Cc]hild", text) is not None
    return child if asks_who else done[2], (asks_who, done[1], done[2], place[1])


def one_follow_up(task: Task) -> Solved:
    first, second = asked(task)
    child, size, colour, thing, place, question = story(first)

    def answer(words_asked: str) -> str:
        if "colour" in words_asked:
            return colour
        if re.search(r"\bsize|How big", words_asked):
            return size
        return child if re.search(r"[Ww]ho|child", words_asked) else thing

    reply = answer(question)
    assert task.messages[1]["content"] == reply
    return answer(second), (reply == child, reply, answer(second), size, colour, thing, place)


def story_look(text: str) -> Solved:
    facts, question = owned(text)
    thing = re.search(THING, question)
    assert thing
    assert len(facts) == 2
    return next(look for _, look, noun in facts if noun == thing[1]), (thing[1], *(fact[1:] for fact in facts))


def story_owner(text: str) -> Solved:
    facts, question = owned(text)
    clue = next(word for word in words(question) if any(word in fact for fact in facts))
    return next(name for name, *what in facts if clue in what), (clue, *(fact[1:] for fact in facts))


def story_place(text: str) -> Solved:
    fact = rf"{NAME} (?:is still|is|plays|sits|waits|was) {AT}"
    facts, question = re.findall(fact, text), re.sub(fact, "", text)
    assert len(facts) == 2
    which = next(n for n, (name, where) in enumerate(facts) if name in question or where in question)
    by_place = facts[which][1] in question
    return facts[which][0 if by_place else 1], (which, by_place, *(where for _, where in facts))


def story_deed(text: str) -> Solved:
    fact = rf"{NAME} (\w+) an? {THING}"
    facts, question = re.findall(fact, text), re.sub(fact, "", text)
    assert len(facts) == 2
    who, deed, thing = next(one for one in facts if re.search(rf"\b{one[1]}\b", question))
    by_name = who in question
    return thing if by_name else who, (deed, by_name, *(one[1:] for one in facts))


def syllogism(text: str) -> Solved:
    rule = re.search(r"(Every|No) (\w+) is ([\w-]+)\. (\w+) is (?:an? )?([\w-]+)\.", text)
    claim = re.search(r"that ([A-Z]\w+) is (an? |not )?([\w-]+)\?", text)
    assert rule
    assert claim
    assert rule[4] == claim[1]
    said = "No" if claim[2] == "not " else "Every"
    follows = rule[1] == said and rule[5] == rule[2] and claim[3] == rule[3]
    return "yes" if follows else "no", (rule[1], rule[2], rule[3], rule[5], claim[2], claim[3])


def opposites(text: str) -> Solved:
    found = [word for word in words(text) if word in OPPOSITE]
    job = [word for word in words(text) if KIND.get(word) == "job"]
    return " ".join(OPPOSITE[word] for word in found), (*found, *job)


def material(task: Task) -> str:
    """What is to be copied: the input, or what follows the colon."""
    user = next(m for m in task.messages if m["role"] == "user")
    return user.get("input") or user["content"].partition(": ")[2]


def copying(task: Task) -> Solved:
    text = material(task)
    return text, re.findall(r"\ban? (\w+ \w+ \w+)", text)[0] if text.endswith(".") else text


def repeating(task: Task) -> Solved:
    content = task.messages[0]["content"]
    times = next(n for n, how in ((2, "twice"), (3, "three times"), (4, "four times")) if how in content)
    inside = re.search(r"^(?:Say the words|Write) (.+) (?:twice|\w+ times)\.$", content)
    text = material(task) or (inside[1] if inside else "")
    return " ".join([text] * times), (times, text)


def form(task: Task) -> Solved:
    (text,) = asked(task)
    if re.search(r"commas|\band\b", re.sub(r"big and|and the", "", text)) and not re.search(rf"\b{NAME}\b", text):
        shown = listed(text, KIND)
        return (", " if "commas" in text else " and ").join(shown), tuple(shown)
    order = " ".join(m["content"] for m in task.messages if m["role"] in ("system", "user"))
    item = re.search(rf"({'|'.join(SIZE)}) (\w+) {THING}", text)
    assert item
    size, colour, thing = item.groups()
    look = colour if "colour" in text else size
    how = next(word for word in ("capital", "brackets", "sentence", "quotation") if word in order)
    answers = {"capital": look.upper(), "brackets": f"({look})", "sentence": f"The {thing} is {look}."}
    return answers.get(how, f'"{look}"'), (size, colour, thing, "colour" in text, how)


def follow_up_count(task: Task) -> Solved:
    first, second = asked(task)
    a, b = numbers(first)
    (c,) = numbers(second)
    assert task.messages[1]["content"] == number(a + b)
    goes = re.search(r"left|remain|without|back", second) is not None
    return number(a + b - c if goes else a + b + c), (a, b, c, goes, counted(first))


def follow_up_story(task: Task) -> Solved:
    first, second = asked(task)
    facts, question = owned(first)
    about = next(fact for fact in facts if re.search(rf"\b{fact[2]}\b", question))
    colour_first = "colour" in question
    assert task.messages[1]["content"] == about[1 if colour_first else 0]
    core = (about[2], second.split()[-1] in question, *(fact[1:] for fact in facts))
    if "colour" in second:
        return about[1], ("colour", *core)
    if re.search(r"[Ww]ho|child", second):
        return about[0], ("who", *core)
    other = next(fact for fact in facts if re.search(rf"\b{fact[2]}\b", second))
    assert other != about
    return other[1 if colour_first else 0], ("other", colour_first, *core)


def follow_up_list(task: Task) -> Solved:
    first, second = asked(task)
    shown = listed(first, KIND)
    start = nth(first, shown)
    assert task.messages[1]["content"] == shown[start]
    step = 1 if re.search(r"after|follows|next", second) else -1 if "before" in second else 0
    at = start + step if step else 0 if "first" in second else 3
    return shown[at], (start, step, at, *shown)


def small_talk(task: Task) -> Solved:
    """The line's reply is another reader's: by its words. The core is that of the task around it."""
    texts = asked(task)
    at = next(n for n, text in enumerate(texts) if not re.search(r"opposite|[Rr]epeat|Copy|Say|Write", text))
    line, other = texts[at].lower(), texts[1 - at]
    tasks = [m["content"] for m in task.messages if m["role"] == "assistant"]
    greets = next((day for day in ("morning", "evening") if day in line), None)
    if "how are you" in line or "well?" in line:
        reply = "I am well, thank you. And you?"
    elif re.search(r"who|name|called|what are you\b|robot|person", line):
        reply = "I am tinychat, a small language model."
    elif re.search(r"what can|help|know", line):
        reply = "I can add, sort and copy words, and answer questions about stories."
    elif "thank" in line:
        reply = "You are welcome!"
    elif re.search(r"bye|see you|must go", line):
        reply = "Goodbye!"
    elif "night" in line:
        reply = "Good night!"
    elif greets:
        reply = f"Good {greets}! What can I do for you?"
    else:
        reply = "Hello! What can I do for you?" if re.search(r"hello|^hi|hey", line) else "Thank you!"
    assert tasks[at] == reply, texts
    answer, core = opposites(other) if "opposite" in other else (" ".join(listed(other, KIND)),) * 2
    assert tasks[1 - at] == answer
    return tasks[-1], core


def sums(task: Task) -> Solved:
    pairs = [tuple(map(int, re.findall(r"\d", text))) for text in asked(task)]
    assert task.messages[1]["content"] == str(sum(pairs[0]))
    return str(sum(pairs[1])), tuple(pairs)


def outside(text: str) -> Solved:
    """The reply by the word that asks; the core is the question without what stands around it."""
    question = re.sub(r"^(?:Hello!|Hi\.|Please tell me:|I want to know:|A question:|And now:) ", "", text)
    question = re.sub(
        r"(?<=[.?]) (?:Thank you|Please answer|I am curious|Do you know|Tell me|Thanks)[.?!]$", "", question
    )
    word = question.split()[0]
    if re.match(r"Write|Tell me an? |Translate|Draw|Book", question):
        return "I have not learned to do that.", question
    known = {"Who": "who that is", "Where": "where that is", "When": "when that was", "In": "when that was"}
    return f"I do not know {known.get(word, 'how that works' if word == 'How' else 'that')}.", question


def on_text(solve: Callable[[str], Solved]) -> Callable[[Task], Solved]:
    return lambda task: solve(asked(task)[-1])


SOLVERS: dict[str, Callable[[Task], Solved]] = {
    "addition": on_text(addition),
    "comparing": on_text(comparing),
    "counting": on_text(counting),
    "sorting": on_text(sorting),
    "reversing": on_text(reversing),
    "picking": on_text(picking),
    "kinds": on_text(kinds),
    "story colour": on_text(one_story("colour")),
    "story size": on_text(one_story("size")),
    "story owner": on_text(one_story("owner")),
    "story place": on_text(one_story("place")),
    "story deed": on_text(one_deed),
    "syllogism": on_text(syllogism),
    "opposites": lambda task: (opposites(asked(task)[-1])[0], opposites(" ".join(asked(task)))[1]),
    "copying": copying,
    "repeating": repeating,
    "format": form,
    "follow-up story": one_follow_up,
    "follow-up list": follow_up_list,
    "small talk": small_talk,
    "sums": sums,
    "outside": on_text(outside),
}
HARD_SOLVERS: dict[str, Callable[[Task], Solved]] = {
    "story colour": on_text(story_look),
    "story size": on_text(story_look),
    "story owner": on_text(story_owner),
    "story place": on_text(story_place),
    "story deed": on_text(story_deed),
    "addition": on_text(addition),
    "subtraction": on_text(subtraction),
    "comparing": on_text(comparing_children),
    "sequences": on_text(sequences),
    "counting": on_text(counting),
    "sorting": on_text(sorting),
    "filtering": on_text(filtering),
    "odd one out": on_text(odd_one_out),
    "syllogism": on_text(syllogism),
    "follow-up count": follow_up_count,
    "follow-up story": follow_up_story,
    "follow-up list": follow_up_list,
}

# Chinese: words, numbers and people are told by the lexicon alone
ZH_VALUE = {digit: n for n, digit in enumerate(chinese.DIGITS)}
ZH_WORD = "|".join((*chinese.WORDS, *chinese.THINGS))
ZH_NUMBER = "|".join(reversed(chinese.DIGITS))
ZH_LIST = rf"(?:{ZH_WORD}|{ZH_NUMBER})(?: (?:{ZH_WORD}|{ZH_NUMBER}))+"


def zh_numbers(text: str) -> list[int]:
    return [ZH_VALUE[found] for found in re.findall(ZH_NUMBER, text)]


def zh_list(text: str) -> list[str]:
    (found,) = re.findall(ZH_LIST, text)
    return found.split()


def zh_sum(text: str) -> Solved:
    (thing,) = set(re.findall(ZH_WORD, text))
    a, b = zh_numbers(re.sub(r"在一起|一共", "", text))
    (who,) = re.findall("|".join(chinese.NAMES), text)
    return chinese.DIGITS[a + b], (min(a, b), max(a, b), thing, who)


def zh_compare(text: str) -> Solved:
    (thing,) = set(re.findall(ZH_WORD, text))
    bigger = "大" in text
    a, b = zh_numbers(text)
    return chinese.DIGITS[(max if bigger else min)(a, b)], (min(a, b), max(a, b), thing, bigger)


def zh_count(text: str) -> Solved:
    return chinese.DIGITS[len(zh_list(text))], tuple(zh_list(text))


def zh_pick(text: str) -> Solved:
    (nth,) = re.findall(rf"第({ZH_NUMBER})个", text)
    return zh_list(text)[ZH_VALUE[nth] - 1], (*zh_list(text), nth)


def zh_turn(text: str) -> Solved:
    return " ".join(reversed(zh_list(text))), tuple(zh_list(text))


def zh_sort(text: str) -> Solved:
    found, rising = zh_list(text), "从小到大" in text
    return " ".join(sorted(found, key=ZH_VALUE.__getitem__, reverse=not rising)), (*found, rising)


ENGLISH = ("addition", "comparing", "counting", "picking", "reversing", "sorting")
CHINESE = {"加法": zh_sum, "比较": zh_compare, "数数": zh_count, "挑选": zh_pick, "倒转": zh_turn, "排序": zh_sort}
BILINGUAL = {name: SOLVERS[name] for name in ENGLISH} | {name: on_text(solver) for name, solver in CHINESE.items()}
ALL_SOLVERS = {"plain": SOLVERS, "hard": HARD_SOLVERS, "bilingual": BILINGUAL}


def test_every_family_has_a_solver() -> None:
    assert tuple(ALL_SOLVERS) == LEVELS
    assert all(set(ALL_SOLVERS[level]) == set(FAMILIES[level]) for level in LEVELS)
    assert len(FAMILIES["plain"]) >= 14


@EVERY
def test_second_solver_agrees_and_splits_share_no_core(
    levels: dict[str, dict[str, list[Task]]], level: str, family: str
) -> None:
    cores: dict[str, set[Hashable]] = {}
    tasks = levels[level]
    for split in tasks:
        mine = [task for task in tasks[split] if task.family == family][:1_500]
        assert len(mine) >= 120
        solved = [ALL_SOLVERS[level][family](task) for task in mine]
        wrong = [
            (answer, task.messages)
            for task, (answer, _) in zip(mine, solved, strict=True)
            if answer != task.messages[-1]["content"]
        ]
        assert not wrong
        cores[split] = {core for _, core in solved}
    assert not cores["train"] & cores["validation"]


# --- never twice, the same everywhere ------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "count"), [("plain", TRAIN), ("bilingual", TRAIN // 5)])
def test_no_conversation_twice(levels: dict[str, dict[str, list[Task]]], level: str, count: int) -> None:
    train, validation = ({key(task) for task in levels[level][split]} for split in ("train", "validation"))
    assert (len(train), len(validation)) == (count, VALIDATION)
    assert not train & validation


def test_families_take_turns(tasks: dict[str, list[Task]]) -> None:
    round_ = len(FAMILIES["plain"])
    for part in tasks.values():
        counts = Counter(task.family for task in part)
        assert max(counts.values()) - min(counts.values()) <= 1
        assert part[0].family != part[round_].family or part[1].family != part[round_ + 1].family


def test_recipes_read_their_numbers_without_gaps() -> None:
    """Whatever is drawn, the radices multiply to the same size: so numbers and choices correspond one to one."""
    random = Random(0)
    for turn in {turn for level in LEVELS for cycle in _cycles(level) for turn in cycle}:
        for _ in range(50):
            core, dressing = Draw(random.randrange(turn.cores)), Draw(random.randrange(turn.dressings))
            turn.recipe.make(core, Teller(dressing, random.random))
            assert (core.size, core.code, dressing.size, dressing.code) == (turn.cores, 0, turn.dressings, 0)


def test_random_access_equals_iteration() -> None:
    in_order = list(instructions(3, "train", 300))
    assert in_order == [instruction(3, "train", index) for index in reversed(range(300))][::-1]
    assert in_order[12].place == "tinyworld train 12"


def test_seed_and_split_matter() -> None:
    assert len({key(instruction(seed, split, 0)) for seed in range(50) for split in ("train", "validation")}) == 100


def test_first_tasks_are_pinned() -> None:
    joined = "\0".join(
        repr((task.family, task.answer, task.messages))
        for split in ("train", "validation")
        for task in instructions(0, split, 480)
    )
    assert hashlib.sha256(joined.encode()).hexdigest() == PINNED


def test_wrong_arguments_say_what_would_work() -> None:
    assert capacity("train") > 200_000
    assert capacity("validation") > 10_000
    with pytest.raises(ValueError, match="train, validation"):
        instruction(0, "test", 0)
    with pytest.raises(ValueError, match="plain, hard, bilingual"):
        instruction(0, "train", 0, "easy")
    for index in (-1, capacity("validation")):
        with pytest.raises(IndexError, match=f"0 to {capacity('validation') - 1}"):
            instruction(0, "validation", index)
    assert instruction(0, "validation", capacity("validation") - 1).messages


# --- balanced, varied, readable ------------------------------------------------------------------------------


@EVERY
def test_no_answer_can_be_guessed(levels: dict[str, dict[str, list[Task]]], level: str, family: str) -> None:
    tasks = levels[level]
    for split in tasks:
        mine = [task for task in tasks[split] if task.family == family]
        answers = Counter(task.messages[-1]["content"] for task in mine)
        if mine[0].answer == "yes_no":
            assert set(answers) == {"yes", "no"}
            assert 0.4 < answers["yes"] / len(mine) < 0.6
        else:
            # Where four answers take turns, a quarter and a little.
            assert max(answers.values()) / len(mine) <= 0.26 + (0.04 if split == "validation" else 0)


@EVERY
def test_wordings_vary(levels: dict[str, dict[str, list[Task]]], level: str, family: str) -> None:
    """With all words of the lexicon struck out, at least five ways to put the task are left."""
    tasks = levels[level]
    known = {*KIND, *VALUE, *OPPOSITE, *SIZE, *(name.word.lower() for name in NAMES)}
    of_lexicon = "|".join((*chinese.NAMES, ZH_WORD, ZH_NUMBER, "[大小 ]"))
    ways = {
        re.sub(of_lexicon, "", task.messages[-2]["content"])
        if family in CHINESE
        else " ".join(word for word in words(task.messages[-2]["content"]) if word not in known)
        for task in tasks["train"]
        if task.family == family
    }
    assert len(ways) >= 5 or family == "sums"  # of signs and digits
    with_input = [task for task in tasks["train"] if task.family == family and "input" in task.messages[0]]
    assert with_input or family in (
        "opposites",
        "follow-up count",
        "format",
        "comparing",
        "outside",
        "sums",
        "加法",
        "比较",
    )


BLEMISHES = {
    "a before a vowel": r"\b[Aa] [aeiouAEIOU]",
    "an before a consonant": r"\b[Aa]n [^aeiouAEIOU]",
    "blanks": r"  | [.,!?:;]|^ | $|\t|\n",
    "an unresolved slot or choice": r"[{}\[\]|_<>]",
    "a small letter at the start": r"[.!?] [a-z]|^[a-z]",
    "doubled stops": r"[.,!?:]{2}",
    "a doubled word": r"\b(\w+) \1\b",
    "one of many": r"\b[Oo]ne (?:" + "|".join(row.plural for row in (*COLLECTABLES, *SNACKS)) + r")\b",
    "no end": r"[^.?!\":a-zA-Z]$",
}


@pytest.mark.parametrize("name", BLEMISHES)
def test_no_blemish(levels: dict[str, dict[str, list[Task]]], name: str) -> None:
    pattern = re.compile(BLEMISHES[name])
    for task in (*levels["plain"]["train"][:12_000], *levels["hard"]["train"][:6_000]):
        if task.family in ("small talk", "sums"):  # as people type it
            continue
        for message in task.messages[:-1]:
            if message["role"] != "assistant":
                assert not pattern.search(message["content"]), message["content"]


def test_messages_are_well_formed_and_short(tasks: dict[str, list[Task]]) -> None:
    kinds_of = defaultdict(set)
    for split in tasks:
        for task in tasks[split]:
            roles = [m["role"] for m in task.messages if m["role"] != "system"]
            assert roles == ["user", "assistant"] * (len(roles) // 2)
            assert all(set(m) <= {"role", "content", "input"} and all(m.values()) for m in task.messages)
            assert len(task.messages[-1]["content"].split()) <= 12
            assert sum(len(m["content"].split()) for m in task.messages) <= 60
            kinds_of[task.answer].add(task.family)
    assert set(kinds_of) == {"number", "word", "yes_no", "list", "exact"}
