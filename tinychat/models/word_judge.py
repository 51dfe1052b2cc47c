"""A judge of another kind than a language model: TF-IDF of the reply's words and of characters inside words, and
logistic regression on them (scikit-learn). It errs on other replies than a transformer does.

A checkpoint folder holds numbers and text alone, no pickle: word_judge.json has the settings and both vocabularies,
word_judge.safetensors the inverse document frequencies, the coefficients and the intercept.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from tinychat.config.stages import ScoreRange
from tinychat.errors import UserError
from tinychat.runs import folders

SETTINGS, WEIGHTS = "word_judge.json", "word_judge.safetensors"
VERSION = 1
STEPS = 2000  # of the solver, at most; it ends by itself before


def need_scikit_learn(key: str) -> None:
    """Raise UserError where it is missing; key: the setting that asks for a word judge."""
    if importlib.util.find_spec("sklearn") is None:
        raise UserError(f"{key}: a word judge needs scikit-learn: pip install 'scikit-learn>=1.4'")


def is_word_judge(path: str) -> bool:
    return (Path(path) / SETTINGS).is_file()


@dataclass(frozen=True)
class Features:
    """What is counted in a reply."""

    words: tuple[int, int]  # shortest and longest n-gram of words
    characters: tuple[int, int]  # and of characters inside words
    min_replies: int  # that an n-gram has to be in

    def vectorizers(self) -> list[Any]:
        """Untrained, of words and of characters."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        common = {"sublinear_tf": True, "min_df": self.min_replies, "dtype": np.float64}
        return [
            TfidfVectorizer(analyzer="word", token_pattern=r"(?u)\w+|[^\w\s]", ngram_range=self.words, **common),
            TfidfVectorizer(analyzer="char_wb", ngram_range=self.characters, **common),
        ]


class WordJudge:
    """The probability that a reply is safe, by its text alone. In use it is as models.scorer.Scorer: `encode`, then
    `score_ids`."""

    score_range = ScoreRange.unit.value
    context_length = sys.maxsize  # it reads replies of any length

    def __init__(self, path: str, features: Features, parts: list[Any], coefficients: np.ndarray, intercept: float):
        self.path, self.batch_size = path, 1024
        self._features, self._parts = features, parts
        self._coefficients, self._intercept = coefficients, intercept

    def encode(self, prompts: Sequence[Any], replies: Sequence[str]) -> list[str]:
        return list(replies)

    def score_ids(self, sequences: Sequence[str]) -> list[float]:
        """The probability that each reply of `encode` is safe."""
        return (1 / (1 + np.exp(-self.outputs(sequences)))).tolist()

    def outputs(self, texts: Sequence[str]) -> np.ndarray:
        """Log-odds (N,) that each reply is safe."""
        from scipy.sparse import hstack

        if not len(texts):
            return np.zeros(0)
        return hstack([part.transform(texts) for part in self._parts]).tocsr() @ self._coefficients + self._intercept

    @property
    def sizes(self) -> list[int]:
        """N-grams of words and of characters that it knows."""
        return [len(part.vocabulary_) for part in self._parts]

    def save(self, folder: Path) -> None:
        vocabularies = [sorted(part.vocabulary_, key=part.vocabulary_.__getitem__) for part in self._parts]
        content = {"version": VERSION, "features": asdict(self._features), "vocabularies": vocabularies}
        (folder / SETTINGS).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        numbers = {f"idf.{index}": np.asarray(part.idf_, np.float64) for index, part in enumerate(self._parts)}
        save_file(
            numbers | {"coefficients": self._coefficients, "intercept": np.array([self._intercept])},
            folder / WEIGHTS,
        )


def fit_word_judge(
    replies: Sequence[str],
    safe: np.ndarray,
    groups: Sequence[str],
    features: Features,
    strengths: Sequence[float],
    folds: int,
) -> tuple[WordJudge, dict[float, float]]:
    """Learn from replies and whether each is safe (N,).

    strengths: C of the logistic regression, the inverse of its penalty, of which cross-validation takes the best by
    mean log-likelihood; replies of one group (a prompt) are never on both sides. Returns the judge and the accuracy of
    each strength on held-out folds. Raises UserError for replies of one kind alone, and for fewer groups than folds.
    """
    need_scikit_learn("stage=word_judge")
    from scipy.sparse import hstack
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    if len(set(safe.tolist())) < 2:
        raise UserError("all labelled replies are of one kind, safe or unsafe; a judge learns from both")
    if len(set(groups)) < folds:
        raise UserError(f"stage.folds={folds}: only {len(set(groups))} prompts have labelled replies")

    def fitted(rows: np.ndarray) -> tuple[list[Any], Any]:
        parts = features.vectorizers()
        return parts, hstack([part.fit_transform([replies[row] for row in rows]) for part in parts]).tocsr()

    def regression(strength: float, counts: Any, rows: np.ndarray) -> Any:
        return LogisticRegression(C=strength, max_iter=STEPS).fit(counts, safe[rows])

    loss = dict.fromkeys(strengths, 0.0)
    right = dict.fromkeys(strengths, 0)
    for rows, held_out in GroupKFold(folds).split(replies, safe, groups):
        parts, counts = fitted(rows)
        others = hstack([part.transform([replies[row] for row in held_out]) for part in parts]).tocsr()
        for strength in strengths:
            odds = regression(strength, counts, rows).decision_function(others)
            sign = np.where(safe[held_out] == 1, odds, -odds)
            loss[strength] += float(np.logaddexp(0, -sign).sum())
            right[strength] += int((sign > 0).sum())
    every = np.arange(len(replies))
    parts, counts = fitted(every)
    model = regression(min(loss, key=loss.__getitem__), counts, every)
    found = WordJudge("", features, parts, model.coef_[0], float(model.intercept_[0]))
    return found, {strength: count / len(replies) for strength, count in right.items()}


def load_word_judge(path: str) -> WordJudge:
    """Raises UserError for a folder that holds none, or one that is damaged."""
    need_scikit_learn(path)
    folder = Path(path)
    folders.verify_contents(folder)
    try:
        content = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        numbers = load_file(folder / WEIGHTS)
        own = content["features"]
        features = Features(tuple(own["words"]), tuple(own["characters"]), own["min_replies"])
        parts = features.vectorizers()
        for index, (part, vocabulary) in enumerate(zip(parts, content["vocabularies"], strict=True)):
            part.set_params(vocabulary={text: place for place, text in enumerate(vocabulary)})
            part.idf_ = numbers[f"idf.{index}"]
        coefficients = numbers["coefficients"]
        if content["version"] != VERSION or len(coefficients) != sum(len(part.vocabulary_) for part in parts):
            raise ValueError(f"version {content['version']} with {len(coefficients)} coefficients")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"word judge {folder}: unreadable ({' '.join(str(error).split())[:200]})") from None
    return WordJudge(path, features, parts, coefficients, float(numbers["intercept"][0]))
