"""The scorer: texts to scores as in training, whatever the batch."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from tests.reward_models import LORA, language_model, reward_model, score_texts, started, write
from tinychat.config.stages import ScoreRange
from tinychat.data.preferences.rows import preference_row
from tinychat.data.preferences.tokens import encode_pairs
from tinychat.errors import UserError
from tinychat.models.reward import load_reward_model, raw_scores
from tinychat.models.scorer import Scorer
from tinychat.text.chat_template import set_template
from tinychat.text.tokenizer import train_bpe

PROMPTS = [[{"role": "user", "content": text}] for text in ("the cat", "sat on", "a much longer dog on the mat", "x")]
REPLIES = ["the dog sat", "cat", "the mat and the cat", ""]


def scorer(path: Path, batch_size: int = 2, dtype: torch.dtype = torch.float32) -> Scorer:
    return Scorer(str(path), "cpu", dtype, batch_size)


def test_scores_are_the_normalised_output_on_the_end_of_each_reply(tmp_path: Path) -> None:
    path = reward_model(tmp_path / "rm")
    found = scorer(path)
    scores = score_texts(found, PROMPTS, REPLIES)
    model = load_reward_model(str(path))
    for ids, score in zip(found.encode(PROMPTS, REPLIES), scores, strict=True):
        raw = raw_scores(model, torch.tensor([ids]), torch.ones(1, len(ids)))
        assert score == pytest.approx((raw.item() - 0.25) / 2.0, abs=1e-5)
    assert len(set(scores)) == 4
    assert score_texts(found, [], []) == [] and found.score_range == "standard"


def test_sequences_are_those_of_the_preference_cache(tmp_path: Path) -> None:
    found = scorer(reward_model(tmp_path / "rm"))
    row = preference_row(PROMPTS[0], "the dog", "the mat", "row 1")
    ((_, sides, _),) = encode_pairs(found.tokenizer, [row], 64)
    assert found.encode([PROMPTS[0]] * 2, ["the dog", "the mat"]) == [side.ids.tolist() for side in sides]


def test_the_batch_does_not_matter(tmp_path: Path) -> None:
    path = reward_model(tmp_path / "rm")
    alone = score_texts(scorer(path, 1), PROMPTS, REPLIES)
    assert score_texts(scorer(path, 3), PROMPTS, REPLIES) == pytest.approx(alone, abs=1e-5)
    assert score_texts(scorer(path, 3, torch.bfloat16), PROMPTS, REPLIES) == pytest.approx(alone, abs=0.1)


def test_a_judge_gives_probabilities_and_an_adapter_scores_too(tmp_path: Path) -> None:
    for peft in ({}, {"peft": LORA}):
        folder = tmp_path / str(len(peft))
        scores = score_texts(scorer(reward_model(folder / "rm", ScoreRange.unit, **peft)), PROMPTS, REPLIES)
        assert all(0 < score < 1 for score in scores)


def test_a_reward_model_of_another_template_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = reward_model(tmp_path / "rm")
    model, policy = scorer(path), copy.deepcopy(scorer(path).tokenizer)
    policy.chat_template += "{# other words, the same tokens #}"
    model.check_template(policy, "the policy", insist=False)
    assert not caplog.messages
    for template, name in (
        ("chatml", "chatml"),
        (f"{{{{ bos_token }}}}{policy.chat_template}", r"\{\{ bos_token \}\}.*"),
    ):
        policy.chat_template = template
        if template == name:
            set_template(policy, template)
        with pytest.raises(
            UserError, match=rf"rm: trained in the chat template instruct, while the policy writes in {name}"
        ):
            model.check_template(policy, "the policy", insist=False)
        model.check_template(policy, "the policy", insist=True)
        assert "trained in the chat template instruct" in caplog.text
        caplog.clear()


def test_what_cannot_be_scored_is_said_in_one_line(tmp_path: Path) -> None:
    found = scorer(reward_model(tmp_path / "rm"))
    with pytest.raises(UserError, match=r"sequence 2 has 65 tokens; it takes 1 to 64"):
        found.score_ids([[5, 6], [5] * 65])
    with pytest.raises(UserError, match=r"sequence 1 has 0 tokens"):
        found.score_ids([[]])
    found.check_tokenizer(found.tokenizer, "the policy")
    with pytest.raises(UserError, match="its tokenizer is another one than that of the policy POLICY"):
        found.check_tokenizer(train_bpe(["another text altogether"] * 20, 300, progress=False), "the policy POLICY")
    with pytest.raises(UserError, match="is a language model, not a reward model"):
        scorer(language_model(tmp_path / "lm"))
    untold = write(started(language_model(tmp_path / "base")), tmp_path / "untold", template=None)
    with pytest.raises(UserError, match="brings no chat template"):
        scorer(untold)
