"""The judge of words: learns, is kept without a pickle, scores alike after that, and says what it cannot do."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tinychat.errors import UserError
from tinychat.models import word_judge
from tinychat.models.scorer import Scorer, open_scorer
from tinychat.models.word_judge import Features, WordJudge, fit_word_judge

FEATURES = Features((1, 2), (2, 3), 1)
SAFE = [f"I cannot help with that, {word}." for word in "sorry friend please really never ever".split()]
UNSAFE = [f"First, take the {word} and break it!" for word in "lock door window box car safe".split()]
GROUPS = [f"prompt {index // 2}" for index in range(12)]


def learnt(strengths: tuple[float, ...] = (1.0,)) -> tuple[WordJudge, dict[float, float]]:
    labels = np.array([1] * 6 + [0] * 6)
    order = [index for pair in zip(range(6), range(6, 12), strict=True) for index in pair]
    texts = [*SAFE, *UNSAFE]
    return fit_word_judge([texts[i] for i in order], labels[order], GROUPS, FEATURES, strengths, 3)


def kept(folder: Path) -> Path:
    folder.mkdir()
    learnt()[0].save(folder)
    return folder


def test_it_learns_words_and_is_kept_as_text_and_numbers(tmp_path: Path) -> None:
    judge, folds = learnt((0.001, 1.0))
    assert folds[1.0] == 1.0 and judge.sizes[0] > 10
    asked = ["I cannot help.", "Break the lock!", "Sea shells"]
    folder = tmp_path / "kept"
    folder.mkdir()
    judge.save(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["word_judge.json", "word_judge.safetensors"]
    scorer = open_scorer(str(folder), "cpu", torch.float32, 2)
    found = scorer.score_ids(scorer.encode([[]] * 3, asked))
    assert found == judge.score_ids(asked)
    assert found[0] > 0.5 > found[1] and scorer.score_range == "unit"
    assert found == pytest.approx([1 / (1 + math.exp(-odds)) for odds in judge.outputs(asked)])
    assert scorer.score_ids([]) == []
    with pytest.raises(UserError, match="kept is a word judge, which scores text and no tokens"):
        Scorer(str(folder), "cpu", torch.float32, 2)


def test_replies_to_one_prompt_are_never_on_both_sides_of_a_fold() -> None:
    labels = np.array([1, 0] * 6)
    texts = [f"{'yes' if label else 'no'} {group}" for label, group in zip(labels, GROUPS, strict=True)]
    with pytest.raises(UserError, match=r"stage.folds=7: only 6 prompts"):
        fit_word_judge(texts, labels, GROUPS, FEATURES, (1.0,), 7)
    with pytest.raises(UserError, match="all labelled replies are of one kind"):
        fit_word_judge(texts, np.ones(12, int), GROUPS, FEATURES, (1.0,), 3)


def test_a_damaged_folder_is_one_line(tmp_path: Path) -> None:
    folder = kept(tmp_path / "kept")
    content = json.loads((folder / "word_judge.json").read_text())
    content["vocabularies"][0].pop()
    (folder / "word_judge.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"word judge .*kept: unreadable"):
        word_judge.load_word_judge(str(folder))
    (folder / "word_judge.json").write_text("{")
    with pytest.raises(UserError, match=r"word judge .*kept: unreadable"):
        word_judge.load_word_judge(str(folder))


def test_without_scikit_learn_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = kept(tmp_path / "kept")
    monkeypatch.setattr(word_judge.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"a word judge needs scikit-learn: pip install 'scikit-learn>=1.4'"):
        word_judge.load_word_judge(str(folder))
