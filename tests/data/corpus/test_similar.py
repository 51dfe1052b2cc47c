"""Near duplicates are found and others are not; evaluation texts are recognised wherever they stand."""

from __future__ import annotations

import random

import numpy as np

from tests.config.test_compose import composed
from tests.data.corpus.test_filters import STORY, ZH
from tinychat.data.corpus.similar import Contamination, NearDuplicates, Signatures
from tinychat.data.corpus.words import words_of


def words(rng: random.Random, count: int) -> list[str]:
    return ["".join(rng.choices("abcdefghij", k=5)) for _ in range(count)]


def test_signatures_estimate_the_similarity_of_shingles() -> None:
    rules = composed("stage=corpus", "stage.near.num_perm=1024").stage.near
    rng, make = random.Random(0), Signatures(rules)
    text = words(rng, 400)
    other = [*text[:300], *words(rng, 100)]  # 296 of 396 shingles each: 296 / 496
    estimate = (make.of(words_of(" ".join(text))) == make.of(words_of(" ".join(other)))).mean()
    assert abs(estimate - 296 / 496) < 0.06  # four standard deviations of 1,024 hash functions


def test_near_duplicates_are_found_and_others_are_not() -> None:
    rules = composed("stage=corpus").stage.near
    rng, make, index = random.Random(1), Signatures(rules), NearDuplicates(rules)
    texts = [words(rng, 150) for _ in range(200)]
    for text in texts:
        signature = make.of(words_of(" ".join(text)))
        assert index.like(signature) is None
        index.add(signature)
    found = 0
    for number, text in enumerate(texts):
        changed = list(text)
        changed[rng.randrange(10, 140)] = "changed"  # 5 of 146 shingles: 0.93
        like = index.like(make.of(words_of(" ".join(changed))))
        found += like is not None and like[0] == number
    assert found >= 198
    half = [*texts[0][:75], *words(rng, 75)]
    assert index.like(make.of(words_of(" ".join(half)))) is None
    for text, changed in ((STORY, STORY.replace("an owl", "the owl")), (ZH, ZH.replace("昨天", "前天"))):
        index.add(make.of(words_of(text)))
        assert index.like(make.of(words_of(changed))) is not None


def test_the_index_holds_documents_in_little_memory() -> None:
    rules = composed("stage=corpus").stage.near
    index, rng = NearDuplicates(rules), np.random.default_rng(0)
    for _ in range(1500):
        index.add(rng.integers(0, 2**32, rules.num_perm, dtype=np.uint32))
    assert len(index) == 1500
    twice = rng.integers(0, 2**32, rules.num_perm, dtype=np.uint32)
    index.add(twice)
    index.add(twice)
    assert index.like(twice) == (1500, 1.0), "of equal ones the first"


def test_evaluation_texts_are_recognised_wherever_they_stand() -> None:
    held = Contamination(composed("stage=corpus").stage.decontaminate)
    question = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."
    held.add("gsm8k", question)
    held.add("gsm8k", "What is it?")
    held.add("short", "Name the third word: tailor squirrel forest grey pretzel.")
    held.add("zh", "请问小明昨天在学校门口的书店里一共买了多少本故事书？")
    held.ready()
    assert held.too_short == {"gsm8k": 1}
    assert held.found_in(words_of(f"{STORY} NATALIA sold clips, to 48 of her friends in April and then she!")) == (
        "gsm8k", "natalia sold clips to 48 of her friends in april and then she",
    )  # fmt: skip
    for name, text in (
        ("short", f"{STORY} Name the third word: tailor squirrel forest grey pretzel"),
        ("zh", f"{ZH}小明昨天在学校门口的书店里一共买了多少本故事书"),
    ):
        assert (held.found_in(words_of(text)) or ("",))[0] == name
    for text in (STORY, ZH, "", "Natalia sold clips to 48 of her friends in May"):
        assert held.found_in(words_of(text)) is None
