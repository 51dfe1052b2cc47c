"""Each rule leaves out what it is for, in English and in Chinese, and nothing else."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.config.test_compose import composed
from tinychat.data.corpus import cleaning, filters
from tinychat.data.corpus.cleaning import Cleaner
from tinychat.data.corpus.words import ngram_hashes, normalised, words_of

STORY = (
    "Once upon a time there was a small fox who lived beside the river with her brother. Every morning they walked to "
    "the old bridge and looked for berries. One day the bridge was gone, and nobody knew who had taken it away. The "
    "fox asked an owl, and the owl said that a storm had carried it down to the lake. So they built another one."
)
ZH = (
    "从前有一只小狐狸住在河边的森林里，它和哥哥每天早晨都要走到旧桥那边去找浆果。有一天，桥不见了，谁也不知道是谁把它拿走的。"
    "小狐狸去问猫头鹰，猫头鹰说昨天夜里的暴风雨把桥冲到了湖里。于是兄妹俩砍来木头，花了三天时间又造了一座新的桥。"
    "从那以后，森林里的动物们都可以安全地过河了，大家为他们举办了一场热闹的聚会。"
)
WU = "用单词“satisfied”造一个句子，再用“flavor”造一个。"  # as which py3langid takes it


def cleaned(text: str, *settings: str, languages: tuple[str, ...] = ()) -> Any:
    return Cleaner(composed("stage=corpus", *settings).stage, None)(text, languages)


@pytest.fixture(scope="module")
def clean() -> Cleaner:
    return Cleaner(composed("stage=corpus").stage, None)


LINES = "\n".join(f"A line that says number {n} of the list and that it is about the river." for n in range(9))


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("length.max_characters", "word " * 200_001),
        ("c4.lorem_ipsum", f"{STORY} Lorem ipsum dolor sit amet."),
        ("c4.braces", f"{STORY} function run() {{ return 1; }}"),
        ("c4.min_sentences", "The fox and the owl " * 20),
        ("gopher.min_words", "The fox is here. It sees the owl. That is all."),
        ("gopher.min_words", "狐狸来了。它看见了猫头鹰。没有别的。"),
        ("gopher.mean_word_length", "a b c d e f. " * 40),
        ("gopher.max_symbols_per_word", f"{STORY} {'#fox ' * 20}"),
        ("gopher.max_symbols_per_word", ZH + "……好……吧……" * 20),
        ("gopher.max_bullet_lines", "\n".join(f"- {line}" for line in LINES.split("\n"))),
        ("gopher.max_ellipsis_lines", LINES.replace("river.", "river...")),
        ("gopher.min_alphabetic_words", " ".join(f"{n}{n + 7}." for n in range(100, 200)) + " the river and that"),
        ("gopher.min_stop_words", " ".join(f"{a}{b}ing." for a in "bcdfghjklm" for b in "ond ust elt ard int".split())),
        ("repetition.duplicate_lines", f"{STORY}\n" + "The same line comes again here.\n" * 9),
        ("repetition.top_ngrams.2", f"{STORY} {'cheap watches. ' * 20}"),
        ("repetition.top_ngrams.2", ZH + "优惠券。" * 60),
        ("repetition.duplicate_ngrams.5", f"{STORY} {STORY[:200]}"),
        ("repetition.duplicate_ngrams.5", ZH + ZH[:80]),
    ],
)  # fmt: skip
def test_a_rule_leaves_out_what_it_is_for(rule: str, text: str, clean: Cleaner) -> None:
    found = clean(text, ())
    assert found.rule == rule, found.why
    assert found.why and not found.digest


@pytest.mark.parametrize("text", [STORY, ZH, f"{STORY}\n\n{ZH}"])
def test_a_sound_text_stays_as_it_is(text: str, clean: Cleaner) -> None:
    found = clean(text, ("en", "zh"))
    assert (found.rule, found.text, found.taken_out) == ("", text, {}), found.why
    assert found.language in ("en", "zh") and found.signature is not None


def test_languages_are_told_apart_and_chinese_with_latin_words_is_chinese(clean: Cleaner) -> None:
    assert clean(STORY, ("zh",)).rule == "language"
    assert clean(ZH, ("en",)).rule == "language"
    assert cleaning._identifier().classify(WU)[0] == "wuu"
    found = cleaned(WU, "stage.gopher.use=false", "stage.c4.use=false", languages=("zh",))
    assert (found.rule, found.language) == ("", "zh")


def test_normalising_makes_one_text_of_many_spellings() -> None:
    decomposed, composed_ = "cafe\u0301", "café"
    text = f"\ufeff{decomposed}\r\nnext\u2028last\x00\x07 \r"
    assert normalised(text, "NFC", True, True) == f"{composed_}\nnext\nlast"
    assert normalised(f"{decomposed}\r\n\x07a", None, False, False) == f"{decomposed}\r\n\x07a"
    assert normalised("ＡＢ①", "NFKC", True, True) == "AB1"
    family = "👩‍👩‍👧"  # of joiners
    assert normalised(family, "NFC", True, True) == family


def test_c4_takes_lines_out_and_says_so() -> None:
    rules = composed("stage=corpus", "stage.c4.terminal_punctuation=true", "stage.c4.min_words_per_line=3").stage.c4
    taken = Counter[str]()
    text = f"{STORY}\nHome | About\nPlease enable Javascript here.\nWe use cookies to be nice.\nNo.\nIt is so [12]."
    assert filters.c4(text, rules, taken) == f"{STORY}\nIt is so ."
    assert sorted(taken.values()) == [1, 1, 1, 1, 1], taken
    assert filters.c4(f"{ZH}\n首页 关于", rules, taken) == ZH, "a Chinese full stop ends a line too"


def test_personal_data_are_masked_and_other_numbers_stay() -> None:
    taken = Counter[str]()
    text = (
        "Ask jane.doe+x@mail.example.co.uk or +44 20 7946 0958, (555) 123-4567, 13812345678. Host 8.8.8.8; 身份证"
        " 11010519491231002X 电话 010-12345678。"
    )
    masked = filters.masked(text, ("email", "phone", "ip", "china_id"), taken)
    assert masked == "Ask <EMAIL> or <PHONE>, <PHONE>, <PHONE>. Host <IP>; 身份证 <ID> 电话 <PHONE>。"
    plain = (
        "From 1914-1918 to 2020-2021, version 1.2.3.4567, at 192.168.0.1, 3.14159265358, 100,000,000 people, "
        "ISBN 978-3-16-148410-0, 110105194912310021 and 1 2 3 4 5 6 7 8 9 10 11, 12:30 - 13:45, $1,299.00, a@b."
    )
    assert filters.masked(plain, ("email", "phone", "ip", "china_id"), taken) == plain
    assert taken == {"email masked": 1, "phone masked": 4, "ip masked": 1, "china_id masked": 1}
    found = cleaned(f"{STORY} Write to me@example.com.", "stage.personal.found=drop")
    assert found.rule == "personal.email"
    assert cleaned(f"{STORY} Write to me@example.com.", "stage.personal.found=keep").text.endswith("me@example.com.")


def test_a_blocklist_takes_words_whole_and_chinese_anywhere() -> None:
    listed = filters.Blocklist(["cock", "very bad", "赌博"])
    assert listed("The peacock is badly very.", words_of("The peacock is badly very.")) is None
    for text in ("A Cock crows.", "It was Very bad.", "他喜欢赌博游戏"):
        assert (listed(text, words_of(text)) or ("",))[0] == "blocklist", text


def test_ngrams_are_told_apart_by_their_order() -> None:
    hashes = words_of("a b c a c b a b c").hashes
    found = ngram_hashes(hashes, 3).tolist()
    assert found[0] == found[6] and len(set(found)) == 6
    assert len(ngram_hashes(hashes, 10)) == 0 and len(ngram_hashes(hashes, 9)) == 1
