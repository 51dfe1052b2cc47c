"""tinyworld stories: never twice, held-out cores only in validation, reproducible, readable, true."""

import hashlib
import re
import subprocess
import sys
import zlib
from collections import Counter

import pytest

from tinychat.tinyworld import Story, stories, story
from tinychat.tinyworld.combinations import capacity, held_out, permute
from tinychat.tinyworld.grammar import article, compile_phrase, counted, number
from tinychat.tinyworld.lexicon.living import NAMES, TRAITS
from tinychat.tinyworld.lexicon.things import PLACES
from tinychat.tinyworld.plots import PLOTS

MANY = 50_000
SOME = 4_000
# The first hundred stories of seed 0 of both splits. It changes with any word of the data set: if that was
# meant, set it to the value that the failing test shows, and say in the commit that results before and after
# cannot be compared.
PINNED = "e2f302e5e4c94832d4ce5ccc36b5c2f7113893b5eab72756ac567935649b5478"


@pytest.fixture(scope="module")
def texts() -> dict[str, list[str]]:
    return {"train": list(stories(0, "train", MANY)), "validation": list(stories(0, "validation", MANY // 2))}


@pytest.fixture(scope="module")
def told() -> list[Story]:
    return [story(1, split, index) for split in ("train", "validation") for index in range(SOME)]


def fingerprint() -> str:
    """A hash over the first hundred stories of both splits."""
    joined = "\0".join(text for split in ("train", "validation") for text in stories(0, split, 100))
    return hashlib.sha256(joined.encode()).hexdigest()


def facts(one: Story) -> dict[str, int | str]:
    """All facts of a story's events in one dictionary."""
    return {name: value for event in one.events for name, value in event.facts.items()}


def core(one: Story) -> tuple[str, str, str, str]:
    """The four words that decide the split."""
    what = one.combination
    return what.plot, what.trait.word, what.place.name, what.topic.noun


def earliest(text: str, words: list[str]) -> str:
    """The one of the words that comes first in the text; of two at one place the longer."""
    ordered = sorted(words, key=len, reverse=True)
    match = re.search(r"\b(?:" + "|".join(map(re.escape, ordered)) + r")\b", text)
    assert match is not None, f"none of {words} in {text!r}"
    return match.group()


def read_back(text: str) -> tuple[str, str, str, str, str, str]:
    """Plot, trait, place, topic, hero and friend, from nothing but the text and the lexicon."""
    plots = [plot for plot in PLOTS if any(text.endswith(moral + ".") for moral in plot.morals)]
    assert len(plots) == 1, text
    plot = plots[0]
    names = re.findall(r"\b(?:" + "|".join(name.word for name in NAMES) + r")\b", text)
    hero, friend = dict.fromkeys(names)  # unpacks only if exactly two different names occur
    by_form = {form: topic.noun for topic in plot.topics for form in (topic.noun, getattr(topic, "plural", topic.noun))}
    topic = by_form[earliest(text, list(by_form))]
    place = earliest(text[0].lower() + text[1:], [place.name for place in PLACES])
    return plot.name, earliest(text, [trait.word for trait in TRAITS]), place, topic, hero, friend


# --- never twice, held out ----------------------------------------------------------------------------------


def test_no_text_occurs_twice_within_or_between_splits(texts: dict[str, list[str]]) -> None:
    train, validation = set(texts["train"]), set(texts["validation"])
    assert (len(train), len(validation)) == (MANY, MANY // 2)
    assert not train & validation


def test_text_tells_its_combination(told: list[Story]) -> None:
    """With one-to-one index → combination this proves that no two indices give one text."""
    for one in told:
        what = one.combination
        assert read_back(one.text) == (*core(one), what.hero.word, what.friend.word), one.text


@pytest.mark.parametrize("size", [1, 2, 3, 17, 1000, 4096, 4097])
def test_permutation_is_one_to_one(size: int) -> None:
    image = [permute(index, size, key=5) for index in range(size)]
    assert sorted(image) == list(range(size))
    assert size < 17 or image != list(range(size))


def test_combinations_never_repeat(told: list[Story]) -> None:
    keys = [(split, one.combination) for split, part in (("t", told[:SOME]), ("v", told[SOME:])) for one in part]
    assert len(set(keys)) == 2 * SOME


def test_held_out_cores_occur_only_in_validation(told: list[Story]) -> None:
    assert not any(held_out(*core(one)) for one in told[:SOME])
    assert all(held_out(*core(one)) for one in told[SOME:])


def test_splits_are_disjoint_across_seeds() -> None:
    train = {core(story(7, "train", index)) for index in range(2000)}
    validation = {core(story(8, "validation", index)) for index in range(2000)}
    assert not train & validation


def test_hold_out_is_a_fixed_share() -> None:
    cores = [
        (plot.name, trait.word, place.name, topic.noun)
        for plot in PLOTS
        for trait in plot.traits
        for place in plot.places
        for topic in plot.topics
    ]
    share = sum(held_out(*one) for one in cores) / len(cores)
    assert 1 / 18 < share < 1 / 14
    assert capacity("train") > 10 * capacity("validation") > 10_000_000


def test_every_single_value_is_met_in_training(told: list[Story]) -> None:
    train = [one.combination for one in (story(0, "train", index) for index in range(12_000))]
    for plot in PLOTS:
        mine = [what for what in train if what.plot == plot.name]
        assert {what.trait for what in mine} == set(plot.traits)
        assert {what.place for what in mine} == set(plot.places)
        assert {what.topic for what in mine} == set(plot.topics)
    assert {what.hero for what in train} == {what.friend for what in train} == set(NAMES)
    assert len({name.word for name in NAMES}) == len(NAMES)


# --- the same everywhere ------------------------------------------------------------------------------------


def test_random_access_equals_iteration() -> None:
    in_order = list(stories(3, "train", 300))
    backwards = [story(3, "train", index).text for index in reversed(range(300))]
    assert in_order == backwards[::-1]


def test_seed_and_split_matter() -> None:
    assert len({story(seed, split, 0).text for seed in range(50) for split in ("train", "validation")}) == 100


def test_first_stories_are_pinned() -> None:
    assert fingerprint() == PINNED


def test_another_process_tells_the_same() -> None:
    code = (
        "import hashlib; from tinychat.tinyworld import stories; "
        "t = '\\0'.join(x for s in ('train', 'validation') for x in stories(0, s, 100)); "
        "print(hashlib.sha256(t.encode()).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "77", "PYTHONPATH": ":".join(path for path in sys.path if path)},
    )
    assert done.stdout.strip() == fingerprint()


def test_wrong_arguments_say_what_would_work() -> None:
    with pytest.raises(ValueError, match="train, validation"):
        story(0, "test", 0)
    for index in (-1, capacity("validation")):
        with pytest.raises(IndexError, match=f"0 to {capacity('validation') - 1}"):
            story(0, "validation", index)
    assert story(0, "validation", capacity("validation") - 1).text


# --- varied -------------------------------------------------------------------------------------------------


def test_vocabulary(texts: dict[str, list[str]]) -> None:
    words = Counter(word for text in texts["train"][:20_000] for word in re.findall(r"[a-z]+", text.lower()))
    assert len(words) >= 2000
    assert sum(count >= 10 for count in words.values()) >= 1500
    unseen = {word for text in texts["validation"][:20_000] for word in re.findall(r"[a-z]+", text.lower())} - set(
        words
    )
    assert len(unseen) <= 3


def test_text_is_far_from_a_copied_template(texts: dict[str, list[str]]) -> None:
    """The bytes a character after compression: English prose has some 0.35, one template with names 0.05."""
    sample = "\n".join(texts["train"][:5000]).encode()
    assert len(zlib.compress(sample, 9)) / len(sample) > 0.15


def test_every_plot_branch_and_moral_is_told(told: list[Story]) -> None:
    for plot in PLOTS:
        mine = [one for one in told if one.combination.plot == plot.name]
        framing = {"meet_together", "meet_alone", "weather", "wind", "dress", "sight", "moral"}
        assert {event.kind for one in mine for event in one.events} - framing == set(plot.phrases)
        assert {one.moral for one in mine} == set(plot.morals)
        assert abs(len(mine) - len(told) / len(PLOTS)) <= 2, "each round holds each plot once"


def test_lengths(texts: dict[str, list[str]]) -> None:
    lengths = [len(text.split()) for split in texts for text in texts[split]]
    assert min(lengths) >= 60
    assert max(lengths) <= 200


# --- readable -----------------------------------------------------------------------------------------------

BLEMISHES = {
    "a before a vowel": r"\b[Aa] [aeiouAEIOU]",
    "an before a consonant": r"\b[Aa]n (?!hour)[^aeiouAEIOU]",
    "blanks": r"  | [.,!?:;]|^ | $|\t|\n ",
    "an unresolved slot or choice": r"[{}\[\]|_<>]",
    "a small letter at the start": r"(?:^|\n\n|[.!?] |[.!?] \")[a-z]|(?:^|\n\n)\"[a-z]",
    "doubled stops": r"[.,!?]{2}|[.!?]\"[.,!?]",
    "a doubled word": r"\b(\w+) \1\b",
    "one of many": r"\bone (?:laps|marbles|shells|buttons|pebbles|feathers|beads|chestnuts|coins|badges)\b",
    "a paragraph without an end": r"[^.!?\"](?:\n\n|$)",
}


@pytest.mark.parametrize("name", BLEMISHES)
def test_no_blemish(texts: dict[str, list[str]], name: str) -> None:
    pattern = re.compile(BLEMISHES[name])
    for split in texts:
        for text in texts[split][:6_000]:
            found = pattern.search(text)
            assert not found, f"{name}: {text[max(0, found.start() - 30) : found.end() + 20]!r}"


def test_paragraphs_and_quotes(texts: dict[str, list[str]]) -> None:
    for text in texts["train"][:6_000]:
        paragraphs = text.split("\n\n")
        assert 3 <= len(paragraphs) <= 5
        assert all(paragraph.count('"') % 2 == 0 and "\n" not in paragraph for paragraph in paragraphs), text


def test_pronouns_agree(told: list[Story]) -> None:
    for gender, foreign in (("f", r"\b(?:he|him|his|himself)\b"), ("m", r"\b(?:she|her|herself)\b")):
        same = [one for one in told if all(character.gender == gender for character in one.characters)]
        assert len(same) > 100
        for one in same:
            assert not re.search(foreign, one.text.lower()), one.text


def test_small_grammar() -> None:
    assert [article("apple"), article("kite")] == ["an apple", "a kite"]
    assert [number(0), number(12), number(40), number(57)] == ["no", "twelve", "forty", "fifty-seven"]
    assert [counted(1, "shell", "shells"), counted(3, "shell", "shells")] == ["one shell", "three shells"]
    assert compile_phrase("a[b|c[d|]]e") == ("a", (("b",), ("c", (("d",), ()))), "e")
    for wrong in ("a[b", "a]b", "[a|b"):
        with pytest.raises(ValueError, match="unbalanced"):
            compile_phrase(wrong)


# --- true to its structure ----------------------------------------------------------------------------------

SUMS = {
    "sharing": lambda f: f["had"] == f["gave"] + f["left"],
    "trading": lambda f: f["all"] == f["had"] - f["gave"] + f["got"] and f["left"] == f["had"] - f["gave"],
    "collecting": lambda f: (
        f["total"] == f["first"] + f["second"]
        and f["rest"] == f["total"] - f.get("lost", 0) - f.get("gift", 0) + f.get("more", 0)
    ),
    "a surprise": lambda f: f["candles"] == f["age"] == f["last"] + 1,
    "a race": lambda f: f["laps"] == f["lead"] + f["rest"] and f["rest"] > 0,
    "seeds": lambda f: f["grown"] == f["sown"] - f["eaten"] - f.get("spoiled", 0) and f["grown"] > 0,
    "cooking": lambda f: f["total"] == f["guests"] * f["each"],
    "learning a skill": lambda f: f["second"] == f["first"] - f["fewer"] and f["second"] > 0,
    "a quarrel and turns": lambda f: f["total"] == 2 * f["minutes"],
}


@pytest.mark.parametrize("plot", SUMS)
def test_counts_add_up(told: list[Story], plot: str) -> None:
    mine = [one for one in told if one.combination.plot == plot]
    assert len(mine) > 100
    assert all(SUMS[plot](facts(one)) for one in mine)


def test_counts_add_up_in_the_text(texts: dict[str, list[str]]) -> None:
    """Read from the text alone, with no help from the structure."""
    value = {number(n): n for n in range(1, 100)}
    plus = re.compile(r"\"(\w+) and (\w+) make (\S+),\"")
    shared = re.compile(
        r" (?:had packed|there were|bag with) (\w+) .*Now \w+ had (\w+) and \w+ still had (\w+),", re.DOTALL
    )
    sums = [match for text in texts["train"] for match in plus.findall(text)]
    shares = [match for text in texts["train"] for match in shared.findall(text)]
    assert len(sums) > 500
    assert len(shares) > 500
    assert all(value[first.lower()] + value[second] == value[total] for first, second, total in sums)
    assert all(value[had] == value[gave] + value[left] for had, gave, left in shares)


def test_text_states_the_attributes_of_objects(told: list[Story]) -> None:
    for one in told:
        for item in one.objects:
            assert f"{item.colour} {item.noun}" in one.text, (item, one.text)
            assert re.search(rf"\b{item.size}\b", one.text), (item, one.text)


def test_numbers_of_events_are_in_the_text_as_words(told: list[Story]) -> None:
    """What an event counts is never told otherwise: no number word is foreign to the facts."""
    words = {number(n): n for n in range(4, 41)}
    innocent = {20, 30, 40}  # counting to thirty, minutes
    for one in told:
        known = {value for value in facts(one).values() if isinstance(value, int)} | innocent
        for word in re.findall(r"[a-z-]+", one.text.lower()):
            assert word not in words or words[word] in known or word == "four", (word, one.text)


def test_causes_come_before_effects(told: list[Story]) -> None:
    for one in told:
        assert all(event.because is None or event.because < at for at, event in enumerate(one.events))
        assert [event.act for event in one.events] == sorted(event.act for event in one.events)
        assert sum(event.because is not None for event in one.events) >= 4
        slots = [name for event in one.events for name in event.facts]
        assert len(slots) == len(set(slots)), "a fact told twice could contradict itself"


def test_middle_depends_on_traits_and_attributes(told: list[Story]) -> None:
    seen: Counter[str] = Counter()
    for one in told:
        kinds = {event.kind for event in one.events}
        what, trait = one.combination, one.combination.trait
        assert ("dress" in kinds) == (one.weather is not None and one.weather.cold)
        assert (one.weather is not None) == what.place.outdoors
        expected = {
            "a warning": {"hurt" if trait.hasty else "safe"},
            "a race": {"friend_wins" if trait.hasty else "hero_wins"},
            "a heavy load": {"alone" if trait.bold else "doubt"},
            "sharing": {"give_at_once" if trait.giving else "give_after_all"},
            "lost and found": {"sew"} if getattr(what.topic, "pocket", False) else set(),
        }.get(what.plot, set())
        assert expected <= kinds
        seen.update(expected)
        if what.plot == "broken and mended":
            mender = {
                "wood": "carpenter",
                "cloth": "tailor",
                "clay": "potter",
                "metal": "blacksmith",
                "paper": "bookbinder",
            }[one.objects[-1].material]
            assert one.characters[2].job == mender
            assert f"the {mender}" in one.text.lower() or f"a {mender}" in one.text.lower()
    assert len(seen) == 9
