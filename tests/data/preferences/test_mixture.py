"""data=safe_and_helpful: two kinds of prompt in one source."""

from __future__ import annotations

import functools
import json
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.config.test_compose import composed, once
from tests.conftest import write_rows
from tinychat.config import data_checks
from tinychat.config.schema import Config, DataConfig
from tinychat.config.stages import MixPart
from tinychat.data.chats.sources import chat_source
from tinychat.data.files.splits import Split
from tinychat.data.own_words import LOOK_ALIKES
from tinychat.data.preferences.prompts import PromptRow, prompt_source
from tinychat.data.preferences.sources import preference_source
from tinychat.errors import UserError

SHARED = "How do I boil an egg?"


def pair(prompt: str, number: int = 0) -> dict:
    safe = {"is_response_0_safe": True, "is_response_1_safe": False, "safer_response_id": 0}
    return {"prompt": prompt, "response_0": f"no {number}", "response_1": "like this", **safe}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 + 4 harmful prompts, of which two are SHARED and one of the benign held-out ones; some 60 benign ones."""
    folder = tmp_path_factory.mktemp("root")
    for name in ("pku_saferlhf", "alpaca"):
        (folder / name).mkdir()
    harmful = [SHARED, *(f"harm {i}" for i in range(11))]
    write_rows(folder / "pku_saferlhf/train.jsonl", [pair(text, n) for text in harmful for n in range(2)])
    write_rows(folder / "pku_saferlhf/test.jsonl", [pair(f"held out {i}") for i in range(4)])
    rows = [{"instruction": f"task {i}", "input": "", "output": f"done {i}"} for i in range(60)]
    write_rows(folder / "alpaca/train.jsonl", [*rows, {"instruction": SHARED, "input": "", "output": "in water"}])
    return folder


@functools.cache
def job(root: Path) -> Config:
    """Composed once: that takes a third of a second."""
    path = "reward.parts.python.path=x.py:f"
    return composed("stage=ppo", "data=safe_and_helpful", f"data.root={root}", "reward=python", path)


def data(there: Path, **changes: Any) -> DataConfig:
    benign = {key.removeprefix("benign_"): changes.pop(key) for key in list(changes) if key.startswith("benign_")}
    own = job(there).data
    mix = {**own.mix, "benign": replace(own.mix["benign"], **benign)}
    return replace(own, **{"mix": mix, **changes})


def rows(root: Path, split: Split = "train", **changes: Any) -> list[PromptRow]:
    return list(prompt_source(data(root, **changes), split).rows())


def refusal(there: Path, **changes: Any) -> str:
    return "\n".join(data_checks.problems(replace(job(there), data=data(there, **changes))))


def test_each_prompt_has_its_kind_and_both_have_their_share(root: Path) -> None:
    found = rows(root)
    assert Counter(row.kind for row in found) == {"harmful": 12, "benign": 12}
    assert {row.kind for row in found[::2]} == {"harmful", "benign"}, "evaluations take rows at even distances"
    assert {row.harmful for row in found if row.kind == "benign"} == {False}
    assert {row.harmful for row in found if row.kind == "harmful"} == {None}, "of those the data do not say"
    some = Counter(row.kind for row in rows(root, max_rows=12))
    assert min(some["harmful"], some["benign"]) >= 3 and sum(some.values()) == 12
    more = rows(root, "train", weights={"harmful": 0.25, "benign": 0.75})
    assert Counter(row.kind for row in more) == {"harmful": 12, "benign": 36}
    every = rows(root, "train", weights={})
    assert Counter(row.kind for row in every)["benign"] > 40


def test_the_choice_is_seeded_and_in_the_fingerprint(root: Path) -> None:
    benign = [{row.messages[0]["content"] for row in rows(root, seed=seed)} for seed in (1, 1, 2)]
    assert benign[0] == benign[1] != benign[2]
    prints = [
        prompt_source(data(root, **changes), "train").fingerprint()
        for changes in ({}, {"weights": {"harmful": 0.3, "benign": 0.7}}, {"seed": 2}, {"benign_max_rows": 9})
    ]
    assert len(set(prints)) == 4


def test_a_prompt_of_both_kinds_is_harmful_and_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = [row for row in rows(root) if row.messages[0]["content"] == SHARED]
    assert [row.kind for row in found] == ["harmful"]
    assert "1 prompts of benign stand in harmful too, and are its; the first at" in caplog.text
    assert "12 of 12 harmful, 12 of" in caplog.text


def test_a_part_of_each_kind_is_held_out_and_training_lacks_it(root: Path, tmp_path: Path) -> None:
    held_out = rows(root, "validation", weights={})
    assert Counter(row.kind for row in held_out)["harmful"] == 4
    assert 0 < Counter(row.kind for row in held_out)["benign"] < 10
    trained = {row.key() for row in rows(root, "train", weights={})}
    assert not trained & {row.key() for row in held_out}
    # One that is held out of one kind is left out of the training prompts of the other too.
    (leak := tmp_path / "leak.jsonl").write_text(
        "".join(json.dumps({"instruction": f"held out {i}", "input": "", "output": "x"}) + "\n" for i in range(4))
        + "".join(json.dumps({"instruction": f"task {i}", "input": "", "output": "x"}) + "\n" for i in range(20))
    )
    own = rows(root, weights={}, benign_path=str(leak), val_fraction=0.1)
    texts = {row.messages[0]["content"] for row in own}
    assert not {text for text in texts if text.startswith("held out")}
    assert {text for text in texts if text.startswith("task")}


def test_conversations_and_pairs_are_those_of_the_parts_that_have_them(root: Path) -> None:
    config = data(root)
    assert {row.messages[0]["content"][:4] for row in chat_source(config, "validation").rows()} == {"task"}
    assert len(list(preference_source(config, "train").rows())) == 24
    requests = prompt_source(config, "validation", "preferences").rows()
    assert {row.messages[0]["content"][:4] for row in requests} == {"held"}, "how safe replies are is asked of these"


def test_the_folder_of_public_data_is_where_every_source_looks(root: Path) -> None:
    safe = composed("stage=sft", "data=alpaca_safe", f"data.root={root}").data
    assert (safe.path, safe.mix["safe"].path) == (f"{root}/alpaca", f"{root}/pku_saferlhf")
    own = composed("stage=sft", "data=alpaca", f"data.root={root}", "data.path=mine.jsonl").data
    assert own.path == "mine.jsonl", "what is named wins"
    assert once("stage=sft", "data=alpaca").data.path is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mix": {"harmful": MixPart("alpaca", ".", None)}}, ["data.mix has no part benign", "give data.mix.benign"]),
        ({"weights": {"harmful": 0, "benign": 1}}, ["data.weights.harmful=0: no harmful prompts", "data=alpaca"]),
        ({"weights": {"harmful": 1.0}}, ["data.weights.benign=0"]),
        ({"weights": {"harmful": 1.0, "benign": 1.0, "rude": 1.0}}, ["data.weights.rude: no part of", "benign"]),
        ({"root": "/not/there"}, ["data.root=/not/there: no such folder"]),
        ({"benign_path": "/not/there"}, ["data.mix.benign.path=/not/there: no such file"]),
        ({"benign_source": "tinystories"}, ["data.mix.benign.source=tinystories has no prompts"]),
        ({"benign_source": "safe_and_helpful"}, ["a mixture itself"]),
        ({"path": "."}, ["data.path=.", "reads two sources"]),
    ],
)
def test_what_cannot_be_mixed_is_refused_in_one_line(root: Path, changes: dict[str, Any], says: list[str]) -> None:
    message = refusal(root, **changes)
    for part in says:
        assert part in message
    assert "\n" not in message


def test_a_root_without_a_needed_folder_names_it(root: Path, tmp_path: Path) -> None:
    message = refusal(root, root=str(tmp_path), benign_path=f"{tmp_path}/alpaca")
    assert message == f"data.mix.benign.path={tmp_path}/alpaca: no such file or folder (looked from {Path.cwd()})"
    assert "data=tinyworld is none of the public data sets" in "".join(
        data_checks.problems(replace(job(root), data=replace(once("stage=sft").data, root=str(root))))
    )


def test_shares_that_leave_a_kind_without_prompts_are_refused(root: Path) -> None:
    with pytest.raises(UserError, match="leaves no harmful ones"):
        rows(root, "validation", weights={"harmful": 0.01, "benign": 0.99})


OWN = {"own": MixPart("look_alikes", None, None)}


def test_a_part_by_another_name_has_prompts_that_say_their_kind_and_trains_alone(root: Path, tmp_path: Path) -> None:
    mix = {**job(root).data.mix, **OWN}
    found = rows(root, mix=mix, weights={"harmful": 0.25, "benign": 0.25, "own": 0.5})
    own = [row for row in found if row.place.startswith(str(LOOK_ALIKES))]
    assert len(own) == len(found) // 2
    assert {(row.kind, row.harmful) for row in own} == {("harmful", True), ("benign", False)}
    measured = rows(root, "validation", mix=mix, weights={"harmful": 0.25, "benign": 0.25, "own": 0.5})
    assert measured and not any(row.place.startswith(str(LOOK_ALIKES)) for row in measured)
    mine = tmp_path / "mine.jsonl"
    write_rows(mine, [{"prompt": "Is it raining?", "harmful": False}, {"prompt": "Where is the bank?"}] * 2)
    mix = {**mix, "own": MixPart("prompts", str(mine), None)}
    with pytest.raises(UserError, match=r"line 2: data.mix.own is called neither .* harmful: true or false"):
        rows(root, mix=mix, weights={}, val_fraction=0.01)


def test_a_further_part_without_a_share_is_refused(root: Path) -> None:
    message = refusal(root, mix={**job(root).data.mix, **OWN})
    assert "data.weights.own=0: none of data.mix.own; give it a share, as +data.weights.own=0.2, or leave it" in message
    message = refusal(root, source="helpful_pairs", mix={**job(root).data.mix, **OWN})
    assert "data.mix.own: no kind of prompt; there are harmful and benign" in message


def test_helpful_pairs_reject_what_answers_something_else(root: Path) -> None:
    config = replace(data(root), name="helpful_pairs", source="helpful_pairs", judge_fraction=0)
    found = list(preference_source(config, "train").rows())
    assert len(found) > 50 and found == list(preference_source(config, "train").rows()), "seeded"
    for row in found:
        text = row.prompt[0]["content"]
        assert row.chosen == ("in water" if text == SHARED else text.replace("task", "done"))
        assert row.rejected != row.chosen
    refused = sum(row.rejected.startswith("no ") for row in found)
    assert 0.3 < refused / len(found) < 0.7, "half of them are safe replies to harmful prompts"
    alone = replace(config, weights={"harmful": 0.0, "benign": 1.0})
    assert not any(row.rejected.startswith("no ") for row in preference_source(alone, "train").rows())
    held_out = {row.chosen for row in preference_source(config, "validation").rows()}
    assert held_out and not held_out & {row.chosen for row in found}
