"""The reward: parts, weights, and functions of the user's that go wrong."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.chat_models import babbler
from tests.config.test_compose import composed, once
from tests.conftest import write_rows
from tests.models.test_word_judge import SAFE, UNSAFE, kept
from tests.reward_models import reward_model, score_texts
from tinychat.config.plugins import reward_models
from tinychat.config.schema import RewardConfig, RewardPart
from tinychat.config.stages import ScoreRange
from tinychat.data.look import look
from tinychat.data.preferences.prompts import PromptRow, prompt_source
from tinychat.errors import UserError
from tinychat.models.scorer import Scorer
from tinychat.rl.rewards import KINDS, Rewards, gold_rewards, known_rewards
from tinychat.runtime import user_code
from tinychat.runtime.world import World
from tinychat.text.chat_template import set_template
from tinychat.text.tokenizer import train_bpe
from tinychat.tinyworld import preferences

ALONE = World(0, 0, 1, torch.device("cpu"))


def row(number: int, answer: str = "", reference: str = "") -> PromptRow:
    return PromptRow([{"role": "user", "content": f"q{number}"}], f"row {number}", answer=answer, reference=reference)


def rewards(world: World = ALONE, **parts: RewardPart) -> Rewards:
    return Rewards(RewardConfig("test", parts, False, False, None, None), {}, None, world, torch.float32, 4)


def python(tmp_path: Path, code: str, weight: float = 1.0, name: str = "score") -> RewardPart:
    (tmp_path / "mine.py").write_text(code)
    return RewardPart("python", weight, f"{tmp_path / 'mine.py'}:{name}")


def test_parts_are_weighted_and_added(tmp_path: Path) -> None:
    mine = python(
        tmp_path, "def score(prompts, replies): return [len(p) + len(r) for p, r in zip(prompts, replies)]", 0.5
    )
    right = RewardPart("verifier", 2.0, None)
    rows = [row(1, "number", "7"), row(2, "number", "8")]
    total, parts = rewards(mine=mine, right=right).score(rows, ["7", "The answer is 9"], [[1], [1]])
    assert parts == {"mine": [3.0, 17.0], "right": [1.0, 0.0]}
    assert total.tolist() == [0.5 * 3 + 2.0, 0.5 * 17]


def test_right_and_wrong_replies_have_the_scores_that_the_options_say() -> None:
    rows, replies = [row(1, "number", "7"), row(2, "number", "8")], ["7", "9"]
    part = RewardPart("verifier", 2.0, None, {"right": 1, "wrong": -0.5})
    total, parts = rewards(right=part).score(rows, replies, [[1], [1]])
    assert parts == {"right": [1.0, -0.5]}
    assert total.tolist() == [2.0, -1.0]


def test_an_answer_that_is_right_in_part_scores_between_the_two_where_that_is_wanted() -> None:
    rows, replies = [row(1, "list", "ant, bee, cat, dog")] * 3, ["ant, bee, cat, dog", "ant, cat, dog", "fly"]
    options = {"right": 1.0, "wrong": -1.0}
    part = rewards(right=RewardPart("verifier", 1.0, None, options | {"partial": True}))
    assert part.score(rows, replies, [[1]] * 3)[1] == {"right": [1.0, 0.5, -1.0]}
    whole = rewards(right=RewardPart("verifier", 1.0, None, options))
    assert whole.score(rows, replies, [[1]] * 3)[1] == {"right": [1.0, -1.0, -1.0]}


FORMS = {
    "<think>a</think><answer>b</answer>": 1.0,
    " <think>a</think>\n<answer>b</answer>\n": 1.0,
    "<think>a</think> so <answer>b</answer>": 2 / 3,  # something outside
    "<think>a</think><answer>b</answer> done": 2 / 3,
    "<think>a</think>b": 1 / 3,
    "<answer>b</answer><think>a</think>": 1 / 3,  # another order
    "<think>a</think><think>a</think><answer>b</answer>": 1 / 3,  # twice
    "<think>a</think><answer>b</answer><answer>b</answer>": 1 / 3,
    "<think> </think><answer>b</answer>": 1 / 3,  # nothing in it
    "<think>a<answer>b</answer>": 1 / 3,
    "</think>a<think><answer>b</answer>": 1 / 3,
    "<think><answer>b</answer></think>": 1 / 3,
    "<think>a</think><answer>b": 1 / 3,
    "<Think>a</Think>b": 0.0,
    "": 0.0,
    "<think>" * 5_000: 0.0,
    "<think>a</think>" * 5_000: 0.0,
}


def test_a_form_has_its_tags_once_and_in_order() -> None:
    rows, replies, every = [row(1)] * len(FORMS), list(FORMS), [[1]] * len(FORMS)
    part = RewardPart("format", 1.0, None, {"tags": ["think", "answer"], "partial": True})
    assert rewards(form=part).score(rows, replies, every)[1]["form"] == pytest.approx(list(FORMS.values()))
    part.options["partial"] = False
    assert rewards(form=part).score(rows, replies, every)[1]["form"] == [1.0, 1.0, *[0.0] * (len(FORMS) - 2)]


def test_a_pattern_is_sought_in_the_answer() -> None:
    part = RewardPart("regex", 1.0, None, {"pattern": "^[a-z]+$", "wrong": -0.5})
    total, _ = rewards(small=part).score([row(1)] * 3, ["abc", "<think>A</think>abc", "Abc"], [[1]] * 3)
    assert total.tolist() == [1.0, 1.0, -0.5]


def test_a_refusal_of_a_benign_prompt_costs_and_one_of_harm_does_not() -> None:
    rows = [replace(row(1), kind=kind) for kind in ("benign", "harmful", "benign")]
    part = RewardPart("refusal", 2.0, None, {"answered": 0.25}, ["benign"])
    replies = ["I can't help with that.", "I can't help with that.", "Of course: pull the loose end."]
    total, _ = rewards(answered=part).score(rows, replies, [[1]] * 3)
    assert total.tolist() == [-2.0, 0.0, 0.5]


def test_a_missing_reward_is_no_number_and_no_part_of_the_sum(tmp_path: Path) -> None:
    mine = python(tmp_path, "def score(prompts, replies): return [None if r == 'x' else 1 for r in replies]", 2.0)
    right = RewardPart("verifier", 1.0, None)
    rows = [row(1, "word", "x"), row(2, "word", "y")]
    total, parts = rewards(mine=mine, right=right).score(rows, ["x", "y"], [[1], [1]])
    assert total.tolist() == [1.0, 3.0]
    assert math.isnan(parts["mine"][0])
    assert known_rewards(parts) == [False, True]


def test_a_reference_that_its_kind_of_answer_cannot_use_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinychat.evaluation.math_answers.has_math_verify", lambda: False)
    part = rewards(right=RewardPart("verifier", 1.0, None))
    part.check_rows([row(1, "math", "7"), row(2, "logic", "不一定"), row(3, "choice", "B"), row(4, "regex", "a+")])
    for kind, reference, what in (
        ("math", "blue", "one number"),
        ("logic", "blue", "yes, no or unknown"),
        ("choice", "blue", "letters from A to J"),
        ("regex", "(", "a regular expression"),
    ):
        with pytest.raises(UserError, match=f"row 9 has the reference '.{{1,4}}', which is not {what}"):
            part.check_rows([row(9, kind, reference)])
    every = rewards(right=RewardPart("verifier", 1.0, None, {"answer": "math"}))
    every.check_rows([row(1, "", "7")])
    assert every.score([row(1, "word", "7")], ["seven"], [[1]])[1] == {"right": [1.0]}


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("verifier", {"rigth": 1.0}, r"reward.parts.mine.options.rigth=1.0: no such option; .*Did you mean right\?"),
        ("verifier", {"right": "much"}, "reward.parts.mine.options.right=much: a number, such as 1 or -0.5"),
        ("verifier", {"wrong": float("nan")}, "reward.parts.mine.options.wrong=nan: a number"),
        ("verifier", {"partial": 1}, "options.partial=1: true or false"),
        ("verifier", {"answer": "mth"}, "options.answer=mth: no such kind of answer; .*Did you mean math"),
        ("verifier", {"answer": "evil.py:f"}, "options.answer=evil.py:f: no such kind of answer"),
        ("format", {"tags": []}, r"options.tags=\[\]: different names, as \[think, answer\]"),
        ("format", {"tags": ["a", "a"]}, "different names"),
        ("regex", {"pattern": "("}, r"options.pattern=\(: no regular expression: missing \)"),
        ("regex", {}, "options.pattern=None: a regular expression"),
        ("refusal", {"refuse": -1.0}, "options.refuse=-1.0: no such option; .*Did you mean refused"),
        ("oracle", {"right": 1.0}, "no such option; a part of kind oracle has none"),
        ("ensemble", {}, r"options.paths=\(\): at least two folders of reward models; reward=model takes one"),
        ("ensemble", {"paths": ["a"]}, r"options.paths=\['a'\]: at least two folders"),
        ("ensemble", {"paths": ["a", "a"]}, "different names"),
        ("ensemble", {"paths": ["a", "b"], "combine": "max"}, "options.combine=max: one of mean, min, pessimistic"),
        ("ensemble", {"paths": ["a", "b"], "deviations": -1}, "options.deviations=-1: how many"),
    ],
)
def test_options_that_a_kind_does_not_take_are_told(kind: str, options: dict, says: str) -> None:
    (said,) = KINDS[kind].problems("reward.parts.mine", RewardPart(kind, 1.0, None, options))
    assert re.search(says, said)


@pytest.mark.parametrize("score_range", [ScoreRange.raw, ScoreRange.standard])
def test_a_reward_model_is_taken_in_its_own_template_and_with_a_word_for_raw_scores(
    score_range: ScoreRange, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = reward_model(tmp_path / "rm", score_range)
    part = RewardPart("model", 1.0, None)
    policy = babbler()[1]
    set_template(policy, "instruct")

    def taken(insist: bool) -> Rewards:
        config = RewardConfig("test", {"mine": part}, insist, False, None, None)
        return Rewards(config, {"reward.mine": str(path)}, policy, ALONE, torch.float32, 4)

    taken(insist=False)
    assert ("reward.parts.mine: the scores of" in caplog.text) == (score_range is ScoreRange.raw)
    set_template(policy, "chatml")
    with pytest.raises(
        UserError, match=r"in the chat template instruct, while the policy writes in chatml.*any_template"
    ):
        taken(insist=False)
    taken(insist=True)


def test_a_reward_model_of_another_tokenizer_reads_texts(tmp_path: Path) -> None:
    """In its own tokens and template; what its template cannot write, or its context not hold, has no score."""
    path = reward_model(tmp_path / "rm")
    policy = train_bpe(["another text altogether"] * 20, 300, progress=False)
    set_template(policy, "chatml")

    def made(kind: str, at: Path) -> Rewards:
        config = RewardConfig("test", {"mine": RewardPart(kind, 1.0, None)}, False, False, None, None)
        return Rewards(config, {"reward.mine": str(at)}, policy, ALONE, torch.float32, 4)

    with pytest.raises(UserError, match=r"its tokenizer is another one.*or let this one read texts: reward=text_model"):
        made("model", path)
    found = made("text_model", path)
    rows, replies = [row(1), row(2), row(3)], ["the cat sat", "a dog", "mat " * 200]
    _, parts = found.score(rows, replies, [[0], [0], [0]])
    scorer = Scorer(str(path), "cpu", torch.float32, 4)
    expected = score_texts(scorer, [row.messages for row in rows[:2]], replies[:2])
    assert parts["mine"][:2] == pytest.approx(expected) and parts["mine"][0] != parts["mine"][1]
    assert known_rewards(parts) == [True, True, False]
    assert not found.scorers, "the policy's tokens are nothing that it reads"
    _, told = made("text_model", kept(tmp_path / "words")).score(rows[:2], [SAFE[0], UNSAFE[0]], [[0], [0]])
    assert told["mine"][0] > 0.5 > told["mine"][1]


def test_only_a_reward_model_of_the_policys_tokens_starts_a_value_function() -> None:
    config = once("stage=ppo", "reward=model").reward
    parts = {"texts": RewardPart("text_model", 1.0, "A"), "tokens": RewardPart("model", 1.0, "B")}
    config = replace(config, parts=parts)
    assert reward_models(config) == {"texts": "A", "tokens": "B"}
    assert reward_models(config, reads_tokens=True) == {"tokens": "B"}


def test_an_ensemble_scores_lower_where_its_members_disagree(tmp_path: Path) -> None:
    paths = [str(reward_model(tmp_path / f"rm{seed}", seed=seed)) for seed in (1, 2, 3)]
    policy = babbler()[1]
    set_template(policy, "instruct")
    rows, sequences = [row(1), row(2)], [[7, 8, 9], [10, 11]]

    def scores(paths: list[str], **options: object) -> tuple[Rewards, list[float], dict[str, list[float]]]:
        part = RewardPart("ensemble", 2.0, None, {"paths": paths, **options})
        parents = {f"reward.mine.{place}": path for place, path in enumerate(paths)}
        config = RewardConfig("test", {"mine": part}, False, False, None, None)
        made = Rewards(config, parents, policy, ALONE, torch.float32, 4)
        total, parts = made.score(rows, ["x", "y"], sequences)
        return made, total.tolist(), parts

    made, total, parts = scores(paths, combine="pessimistic", deviations=1.5)
    assert list(made.scorers) == ["mine.0", "mine.1", "mine.2"]
    each = np.array([scorer.score_ids(sequences) for scorer in made.scorers.values()])
    assert (each.std(0) > 0.01).all()
    assert total == pytest.approx(2 * (each.mean(0) - 1.5 * each.std(0)), abs=1e-5)
    assert parts["mine spread"] == pytest.approx(each.std(0), abs=1e-5)
    assert scores(paths, combine="mean")[1] == pytest.approx(2 * each.mean(0), abs=1e-5)
    assert scores(paths, combine="min")[1] == pytest.approx(2 * each.min(0), abs=1e-5)
    raw = str(reward_model(tmp_path / "raw", ScoreRange.raw))
    with pytest.raises(UserError, match=r"mine.options.paths: scores are combined on one scale .* train all with"):
        scores([paths[0], raw])


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("def score(prompts, replies): return [1.0]", "gave 1 scores for 2 replies"),
        ("def score(prompts, replies): return [1.0, float('nan')]", r"the score is nan for the reply 'bad' to row 2"),
        ("def score(prompts, replies): return [1.0, 'x']", "gave 'x' where a number is needed"),
        (
            "def score(prompts, replies):\n    if 'bad' in replies: raise ValueError('oh\\nno')\n    return [0.0]",
            r"ValueError: oh no \(.*mine.py, line 2\), for the reply 'bad' to row 2",
        ),
        ("import nothing_like_it", "ModuleNotFoundError while it is loaded"),
        ("def other(prompts, replies): return []", "has no 'score'; it has other"),
    ],
)
def test_a_function_that_fails_is_one_line_that_names_the_sample(tmp_path: Path, code: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        rewards(mine=python(tmp_path, code)).score([row(1), row(2)], ["good", "bad"], [[1], [1]])
    assert "\n" not in str(caught.value)
    assert "mine" in str(caught.value)


CLASS = """
class Short:
    made = 0
    def __init__(self, aim=2):
        type(self).made, self.aim = type(self).made + 1, aim
    def __call__(self, prompts, replies):
        return [self.aim - len(reply) + 100 * self.made for reply in replies]
class Silent:
    pass
"""


def test_a_class_is_made_once_with_its_options_and_then_called(tmp_path: Path) -> None:
    part = python(tmp_path, CLASS, name="Short")
    part.options = {"aim": 5}
    own = rewards(short=part)
    for _ in range(2):
        assert own.score([row(1), row(2)], ["cat", "horse"], [[1], [1]])[1] == {"short": [102.0, 100.0]}


def test_code_in_a_package_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "liking").mkdir()
    (tmp_path / "liking" / "__init__.py").write_text("")
    (tmp_path / "liking" / "short.py").write_text(CLASS)
    monkeypatch.chdir(tmp_path)
    own = rewards(short=RewardPart("python", 1.0, "liking.short:Short"))
    assert own.score([row(1)], ["cat"], [[1]])[1] == {"short": [99.0]}
    assert {path.name for path in user_code.sources("liking.short:Short")} == {"__init__.py", "short.py"}


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("Silent", {}, r"mine.py:Silent: the class has no method __call__\(self, prompts, replies\)"),
        ("Short", {"size": 1}, r"TypeError when it is made: .* unexpected keyword argument 'size'"),
        ("CLASS", {}, r"mine.py has no 'CLASS'; it has Short, Silent"),
    ],
)
def test_a_class_that_is_no_reward_is_one_line(tmp_path: Path, name: str, options: dict, says: str) -> None:
    part = python(tmp_path, CLASS, name=name)
    part.options = options
    with pytest.raises(UserError, match=says):
        rewards(short=part)


def test_prompts_that_a_part_cannot_judge_are_refused() -> None:
    with pytest.raises(UserError, match="row 2 has none"):
        rewards(right=RewardPart("verifier", 1.0, None)).check_rows([row(1, "number", "7"), row(2)])
    with pytest.raises(UserError, match="tinyworld's requests alone, not row 1"):
        rewards(oracle=RewardPart("oracle", 1.0, None)).check_rows([row(1)])


def test_the_oracle_is_tinyworlds() -> None:
    from tests.data.preferences.test_sources import config

    data = config(source="tinyworld", name="tinyworld", max_rows=12)
    rows = list(itertools.islice(prompt_source(data, "train").rows(), 6))
    replies = ["No.", "I cannot help with that.", "", "Yes, steal it!", "Give it back.", "Ask somebody."]
    wanted = [preferences.judge(part.request, reply).reward for part, reply in zip(rows, replies, strict=True)]
    total, parts = rewards(oracle=RewardPart("oracle", 1.0, None)).score(rows, replies, [[1]] * 6)
    assert total.tolist() == pytest.approx(wanted)
    assert gold_rewards(rows, replies) == pytest.approx(wanted)
    assert len(set(wanted)) > 1
    assert gold_rewards([row(1)], ["x"]) is None
    assert parts["oracle"] == pytest.approx(wanted)


def test_rows_need_no_kind_of_answer_where_the_reward_names_one(tmp_path: Path) -> None:
    """Before a job begins, as in it; what has no reference cannot be checked by any kind."""
    write_rows(tmp_path / "train.jsonl", [{"prompt": "Two and one?", "reference": "3"}])
    write_rows(tmp_path / "validation.jsonl", [{"prompt": "Two and two?", "reference": "4"}])
    words = ("stage=rlvr", "data=prompts", f"data.path={tmp_path}")
    with pytest.raises(UserError, match=r"train.jsonl, line 1 has the right reply alone, not how another is checked"):
        look(composed(*words), "prompts")
    named = composed(*words, "reward.parts.verifier.options.answer=number")
    look(named, "prompts")
    write_rows(tmp_path / "validation.jsonl", [{"prompt": "Open?"}])
    with pytest.raises(UserError, match=r"validation.jsonl, line 1 has none"):
        look(named, "prompts")
