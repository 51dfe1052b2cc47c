"""Tasks of lm-eval without lm-eval: the model that it is given, the sets of tinychat's own, what a command may say."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.chat_models import babbler
from tests.conftest import Command
from tinychat.config import words
from tinychat.evaluation.harness import SHIPPED, HarnessModel, TaskFigure, metric_name
from tinychat.runtime.world import World
from tinychat.stages.tasks import bounds
from tinychat.text.chat_template import encode_chats, encode_prompts, set_template
from tinychat.text.tokenizer import encode_documents
from tinychat.tracking.vocabulary import check_names, goal_of, headlines_of, label_of, meaning_of

CPU = World(0, 0, 1, torch.device("cpu"))


def harness(batch_size: int = 8, length: int = 2048, template: str | None = None) -> HarnessModel:
    model, tokenizer = babbler()
    if template:
        set_template(tokenizer, template)
    return HarnessModel(model.eval(), tokenizer, length, CPU, torch.float32, batch_size, batch_size, seed=1)


def requests(*texts: tuple[str, ...]) -> list[Any]:
    return [SimpleNamespace(args=text, repeats=1) for text in texts]


def by_hand(ids: list[int], told: int) -> tuple[float, bool]:
    """Of the last `told` tokens."""
    model, _ = babbler()
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)[-told - 1 : -1]
    wanted = torch.tensor(ids[-told:])
    return float(logprobs.gather(1, wanted[:, None]).sum()), bool((logprobs.argmax(1) == wanted).all())


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_continuation_has_the_probability_of_its_tokens_after_what_begins_a_text(batch_size: int) -> None:
    asked, tokenizer = harness(batch_size), babbler()[1]
    texts = [("the cat", " sat on the mat"), ("", "the dog"), ("the dog and ", "the cat"), ("the mat, the mat", " 🎉")]
    for (context, follows), found in zip(texts, asked.loglikelihood(requests(*texts)), strict=True):
        whole, before = (
            encode_documents(tokenizer, [text])[0] for text in (context + follows, context.rstrip() or " ")
        )
        told = len(whole) - (len(before) if context else 0)
        score, greedy = by_hand([tokenizer.eos_token_id, *whole], told)
        assert found == (pytest.approx(score, abs=1e-4), greedy)
    ids = [tokenizer.eos_token_id]
    with torch.no_grad():
        for _ in range(3):
            ids.append(int(babbler()[0](input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert asked._score_batch([(ids[:1], ids[1:])])[0][1]


def test_a_text_that_spells_a_special_token_is_text() -> None:
    asked, tokenizer = harness(), babbler()[1]
    before, follows = asked._pair("the cat", " sat <|endoftext|> on")
    assert before[0] == tokenizer.eos_token_id and tokenizer.eos_token_id not in [*before[1:], *follows]


def test_a_question_in_the_template_and_its_answers_have_the_tokens_of_the_conversation() -> None:
    asked, tokenizer = harness(template="instruct"), babbler()[1]
    set_template(tokenizer, "instruct")
    question = [{"role": "user", "content": "the cat <|endoftext|> sat?"}]
    text = asked.apply_chat_template(question)
    (prompt,), (chat,) = (
        encode_prompts(tokenizer, [question]),
        encode_chats(tokenizer, [[*question, {"role": "assistant", "content": "the dog"}]]),
    )
    (reply,) = asked._as_replies([(question, "the dog")])
    assert asked._asked[text].ids == prompt and prompt.count(tokenizer.eos_token_id) == 0
    assert [*prompt, *reply] == chat.ids[: len(prompt) + len(reply)].tolist()
    score, _ = by_hand([*prompt, *reply], len(reply))
    assert asked.loglikelihood(requests((text, "the dog")))[0][0] == pytest.approx(score, abs=1e-4)
    begun = asked.apply_chat_template([*question, {"role": "assistant", "content": "the"}], add_generation_prompt=False)
    given = asked._asked[begun]
    assert given.ids[len(prompt) :] == asked._as_replies([(question, "the")])[0]
    assert asked._after(given, reply) == (given.ids, reply[len(given.ids) - len(prompt) :])


def test_what_is_longer_than_the_context_loses_its_beginning_and_is_counted() -> None:
    asked, tokenizer = harness(length=8), babbler()[1]
    found = asked.loglikelihood(requests(("the cat and the dog sat on the mat " * 3, "the dog"), ("the", " cat")))
    whole = encode_documents(tokenizer, ["the cat and the dog sat on the mat " * 3 + "the dog"])[0]
    told = len(whole) - len(encode_documents(tokenizer, [("the cat and the dog sat on the mat " * 3).rstrip()])[0])
    assert found[0][0] == pytest.approx(by_hand(whole[-9:], told)[0], abs=1e-4) and len(asked.cut) == 1


def test_minimal_pairs_are_the_same_for_ever_and_none_contradicts_another() -> None:
    pairs = load(SHIPPED / "grammar" / "pairs.py")
    found = {name: pairs.chosen(name) for name in pairs.PARADIGMS}
    assert {len(own) for own in found.values()} == {pairs.PAIRS} and len(found) == 12
    right, wrong = ([pair[side] for own in found.values() for pair in own] for side in (0, 1))
    assert len(set(right)) == len(right) and not set(right) & set(wrong)
    assert all(text[0].isupper() and text[-1] in ".?" and "  " not in text for text in [*right, *wrong])
    every = "\n".join(f"{good}\t{bad}" for own in found.values() for good, bad in own)
    assert hashlib.sha256(every.encode()).hexdigest()[:16] == "3486c5b99cd6b8de"
    named = {re.search(r"paradigm: (\w+)", path.read_text())[1] for path in SHIPPED.glob("grammar/[a-z]*.yaml")}  # type: ignore[index]
    listed = set(re.findall(r"- grammar_(\w+)", (SHIPPED / "grammar.yaml").read_text()))
    assert named == listed == set(found)


def test_every_ending_of_the_story_cloze_is_right_as_often_as_wrong() -> None:
    items = load(SHIPPED / "stories" / "stories.py").items()
    assert len(items) == 200 and len({item["story"] for item in items}) == 200
    right = Counter(item["endings"][item["right"]] for item in items)
    wrong = Counter(item["endings"][1 - item["right"]] for item in items)
    assert right == wrong and Counter(item["right"] for item in items) == {0: 100, 1: 100}


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_figures_of_tasks_are_metrics() -> None:
    name = f"eval/task/gsm8k/{metric_name('exact_match.strict-match')}"
    check_names([name, f"{name}_stderr", f"eval/task/x/{metric_name('pass@8')}"])
    assert meaning_of(f"{name}_stderr").startswith("standard error of") and meaning_of("eval/nothing") == ""
    assert goal_of("eval/task/wikitext/word_perplexity") == "minimize" and goal_of(name) == "maximize"
    assert label_of("eval/task/grammar/acc") == ("grammar: right", "share")
    for wrong in ("eval/task/acc", "eval/tasks/x/acc", "eval/task/a/b/c"):
        with pytest.raises(ValueError, match=wrong):
            check_names([wrong])


def test_the_first_figures_are_those_of_whole_tasks() -> None:
    names = ["grammar", "grammar_case", "grammar_verb_form", "story_cloze", "checked_answers"]
    metrics = [f"eval/task/{name}/acc{end}" for name in names for end in ("", "_stderr")]
    found = [name.split("/")[2] for name in headlines_of("eval", metrics)]
    assert found == ["grammar", "story_cloze", "checked_answers", "grammar_case"]


def test_bounds_of_a_share_stay_shares() -> None:
    def of(value: float, stderr: float | None, rows: int = 100) -> tuple[float | None, float | None]:
        return bounds(TaskFigure("a", "acc", value, stderr, rows, 0, ""))

    error = 0.017145
    assert of(0.97, math.sqrt(0.97 * 0.03 / 99)) == pytest.approx((0.9155, 0.9897), abs=1e-4)  # Wilson's
    assert of(0.0, 0.0) == pytest.approx((0.0, 0.0370), abs=1e-4)
    assert of(0.97, 1.01 * error) == pytest.approx((0.97 - 1.96 * 1.01 * error, 0.97 + 1.96 * 1.01 * error), abs=1e-5)
    assert of(12.0, 0.5) == pytest.approx((11.02, 12.98), abs=1e-3)
    assert of(12.0, None) == (None, None)


def test_tasks_may_be_said_alone(tmp_path: Path) -> None:
    assert words.ready(["stage=eval", "tasks=[grammar,a.yaml]"], tmp_path)[1] == "stage.tasks=[grammar,a.yaml]"


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_without_lm_eval_the_command_that_installs_it_is_named(train: Command, tmp_path: Path) -> None:
    done = train("stage=eval", "tasks=[grammar]")
    line = r"error: stage\.tasks needs lm_eval: pip install \S+ ?\S*\[lm_eval\]'?; or stage\.tasks=\[\] measures .*\n"
    assert done.returncode == 1 and re.fullmatch(line, done.stderr) and not list(tmp_path.iterdir())
    assert "stage.task_rows=3: of tasks; name some" in train("stage=eval", "stage.task_rows=3").stderr
