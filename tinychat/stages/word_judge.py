"""stage=word_judge: a judge that is no transformer, for a second opinion on safety (tinychat.models.word_judge)."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tinychat.config.schema import Config
from tinychat.config.specs import spec_of
from tinychat.config.stages import RewardLoss
from tinychat.data.preferences.rows import PreferenceRow
from tinychat.data.preferences.sources import preference_source
from tinychat.errors import UserError
from tinychat.evaluation import harm_rules
from tinychat.evaluation.held_out import UNKNOWN, PairScores, preference_metrics, reply_calibration
from tinychat.models.word_judge import Features, WordJudge, fit_word_judge
from tinychat.runs import folders, parents
from tinychat.runtime import manifest
from tinychat.runtime.console import format_eval
from tinychat.stages import Context, StageResult
from tinychat.stages.reward import write_pair_tables

log = logging.getLogger("tinychat")


def run(config: Config, context: Context) -> StageResult:
    if not context.world.is_main:  # a launcher of several ranks, as a recipe has it for all its stages: one makes it
        return StageResult()
    stage, part = config.stage, spec_of(config).part
    sources = {split: preference_source(config.data, split) for split in ("train", "validation")}  # type: ignore[arg-type]
    train, held_out = list(sources["train"].rows(part)), list(sources["validation"].rows())
    safe = labels_of(train)
    known = np.flatnonzero(safe.ravel() != UNKNOWN)
    if not len(known) or not (labels_of(held_out) != UNKNOWN).any():
        raise UserError(
            f"stage={stage.name}: no reply of data={config.data.name} has a safety label, which it learns and is "
            "measured by; use data=pku_saferlhf or tinyworld"
        )
    if missing := safe.size - len(known):
        log.warning("%d of %d replies have no safety label and do not count", missing, safe.size)
    texts, prompts = texts_of(train), [row.key() for row in train for _ in range(2)]
    features = Features(tuple(stage.words), tuple(stage.characters), stage.min_replies)
    judge, folds = fit_word_judge(
        [texts[index] for index in known],
        safe.ravel()[known],
        [prompts[index] for index in known],
        features,
        stage.strengths,
        stage.folds,
    )
    words, characters = judge.sizes
    log.info(
        "learnt from %d replies: %s n-grams of words, %s of characters", len(known), f"{words:,}", f"{characters:,}"
    )
    for strength, accuracy in folds.items():
        log.info("C=%g: %.1f %% of replies right in cross-validation", strength, 100 * accuracy)

    data = {
        "train": {"fingerprint": sources["train"].fingerprint(Path(config.paths.cache), part), "pairs": len(train)},
        "validation": {
            "fingerprint": sources["validation"].fingerprint(Path(config.paths.cache)),
            "pairs": len(held_out),
        },
    }
    folder = save(judge, data, context)
    metrics = measure(judge, held_out, context)
    context.log(0, metrics)
    log.info(format_eval(0, metrics))
    facts = {"training replies": len(known), "training replies without a label": missing, "scores": judge.score_range}
    facts |= {"n-grams of words": words, "n-grams of characters": characters}
    facts |= {f"accuracy in cross-validation, C={strength:g}": round(value, 4) for strength, value in folds.items()}
    return StageResult(metrics, "eval/loss", folder, facts=facts)


def texts_of(rows: Sequence[PreferenceRow]) -> list[str]:
    """Both replies of each, the chosen one first."""
    return [reply for row in rows for reply in (row.chosen, row.rejected)]


def labels_of(rows: Sequence[PreferenceRow]) -> np.ndarray:
    """(N, 2): 1 safe, 0 unsafe, UNKNOWN; of chosen and rejected replies."""
    labels = [[row.chosen_safe, row.rejected_safe] for row in rows]
    return np.array([[UNKNOWN if one is None else int(one) for one in pair] for pair in labels]).reshape(-1, 2)


def save(judge: WordJudge, data: dict[str, dict[str, object]], context: Context) -> Path:
    """The judge as a folder that appears whole or not at all."""
    folder, temporary = context.run_dir / "word_judge", context.run_dir / ".saving-word_judge"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    judge.save(temporary)
    origin = parents.describe(context.run_dir, context.parents, data)
    for place in (temporary, context.run_dir):
        folders.write_text_atomic(place / folders.LINEAGE, json.dumps(origin, indent=1))
    manifest.write_manifest(temporary, score=None)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    return folder


def measure(judge: WordJudge, rows: Sequence[PreferenceRow], context: Context) -> dict[str, float]:
    """As HeldOutPairs measures a judge that is a transformer; writes the same tables."""
    numbers = dict.fromkeys(row.category for row in rows if row.category)
    categories = list(numbers)
    category = np.array([categories.index(row.category) if row.category else UNKNOWN for row in rows])
    found = PairScores(judge.outputs(texts_of(rows)).reshape(-1, 2), labels_of(rows), category)
    known = found.safe != UNKNOWN
    scores, labels = found.scores[known], found.safe[known]
    bins, error = reply_calibration(scores, labels)

    def by_rules(pair: int) -> str:
        row = rows[pair]
        asked = "\n".join(message["content"] for message in row.prompt if message["role"] == "user")
        return harm_rules.category(asked, f"{row.chosen}\n{row.rejected}")

    write_pair_tables(found, categories, by_rules, bins, RewardLoss.pointwise, context)
    loss = np.logaddexp(0, np.where(labels == 1, -scores, scores)).mean()
    return {"eval/loss": float(loss), **preference_metrics(found), "eval/reward_ece": error}
