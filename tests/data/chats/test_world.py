from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.data.chats.test_sources import config
from tinychat.config.schema import TaskLevel
from tinychat.data.chats.rows import ChatRow
from tinychat.data.chats.sources import chat_source
from tinychat.data.sources import SOURCES, Plan, is_shared_out, world_chats
from tinychat.tinyworld.preferences import judge, request, requests
from tinychat.tinyworld.tasks import instruction


def demonstrations(plan: Plan) -> list[ChatRow]:
    return [row for row in world_chats(plan) if row.family == "request"]


def test_a_share_is_spread_evenly() -> None:
    assert [index for index in range(10) if is_shared_out(0.3, index)] == [3, 6, 9]
    assert [index for index in range(5) if is_shared_out(0.5, index)] == [1, 3]
    assert sum(is_shared_out(0.07, index) for index in range(10_000)) == 700
    assert not any(is_shared_out(0, index) for index in range(99))
    assert all(is_shared_out(1, index) for index in range(99))


def test_demonstrations_stand_among_instructions_and_leave_none_out() -> None:
    rows = list(world_chats(Plan(1, "train", 10, 0.3)))
    assert [row.place for row in rows] == [
        *(f"tinyworld train {number}" for number in range(3)),
        "tinyworld train request 0",
        *(f"tinyworld train {number}" for number in (3, 4)),
        "tinyworld train request 1",
        *(f"tinyworld train {number}" for number in (5, 6)),
        "tinyworld train request 2",
    ]
    assert rows[4].messages == instruction(1, "train", 3).messages
    assert rows[6].messages[:-1] == request(1, "train", 1).messages
    assert [(row.family, row.answer) for row in demonstrations(Plan(1, "train", 10, 0.3))] == [("request", "")] * 3
    assert rows == list(world_chats(Plan(1, "train", 20, 0.3)))[:10]
    assert demonstrations(Plan(2, "train", 10, 0.3)) != demonstrations(Plan(1, "train", 10, 0.3))


@pytest.mark.parametrize(("unsafe", "complying"), [(0.0, 0), (0.4, 79), (1.0, 199)])
def test_the_given_share_of_answers_to_harmful_requests_complies(unsafe: float, complying: int) -> None:
    """199 of these 400 requests are harmful (half in whole rounds); the oracle tells what each answer is."""
    found = demonstrations(Plan(1, "train", 400, 1.0, unsafe))
    asked = list(requests(1, "train", 400))
    assert [row.messages[:-1] for row in found] == [one.messages for one in asked]
    scores = [judge(one, row.messages[-1]["content"]) for one, row in zip(asked, found, strict=True)]
    harmful = [score for one, score in zip(asked, scores, strict=True) if one.harmful]
    assert sum(one.harmful for one in asked) == 199
    assert sum(not score.safe for score in harmful) == complying
    assert sum(score.safe and score.helpful == 1 for score in harmful) == 199 - complying
    assert all(score.safe and score.helpful == 1 for one, score in zip(asked, scores, strict=True) if not one.harmful)


def test_what_is_held_out_never_comes() -> None:
    held_out = {one.messages[-1]["content"] for one in requests(1, "validation", 800)}
    assert held_out.isdisjoint(row.messages[0]["content"] for row in demonstrations(Plan(3, "train", 800, 1.0)))


def test_only_training_conversations_are_demonstrations() -> None:
    shares: dict[str, Any] = {"demonstrations": 0.5, "unsafe_demonstrations": 0.4}
    data = config(source="tinyworld", name="tinyworld", max_rows=40, max_val_rows=40, **shares)
    assert [row.family for row in chat_source(data, "train").rows()].count("request") == 20
    assert "request" not in [row.family for row in chat_source(data, "validation").rows()]
    described = chat_source(data, "train").description
    assert described.startswith("20 generated instructions and 20 demonstrations, 0.4 of those to harmful requests")
    none = dataclasses.replace(data, demonstrations=0.0)
    safe = dataclasses.replace(data, unsafe_demonstrations=0.0)
    assert len({chat_source(one, "train").fingerprint() for one in (data, none, safe)}) == 3
    assert len({chat_source(one, "validation").fingerprint() for one in (data, none, safe)}) == 1


def test_a_level_and_families_are_chosen_and_leave_plain_fingerprints_alone() -> None:
    data = config(source="tinyworld", name="tinyworld", max_rows=12, max_val_rows=6)
    some = dataclasses.replace(data, families=["addition", "sorting"])
    hard = dataclasses.replace(some, level=TaskLevel.hard)
    plain = list(chat_source(data, "train").rows())
    chosen = list(chat_source(some, "train").rows())
    assert plain == list(world_chats(Plan(1, "train", 12)))
    assert [row.family for row in chosen].count("addition") == 6
    assert {row.family for row in chosen} == {"addition", "sorting"}
    assert all(row.messages == instruction(1, "train", int(row.place.split()[-1])).messages for row in chosen)
    asked = list(chat_source(hard, "validation").rows())
    assert {row.family for row in asked} == {"addition", "sorting"}
    assert all(row.place.startswith("tinyworld hard validation ") for row in asked)
    assert len({chat_source(one, "train").fingerprint() for one in (data, some, hard)}) == 3
    assert chat_source(hard, "train").description.startswith(
        "12 generated instructions, hard ones of addition, sorting"
    )


def test_families_that_there_are_not_or_not_so_many_of_are_told() -> None:
    source = SOURCES["tinyworld"]
    data = config(source="tinyworld", name="tinyworld", max_rows=12, max_val_rows=1000, families=["adition"])
    (said,) = source.problems(data)
    assert said.startswith("data.families: adition: no such family") and said.endswith("Did you mean addition?")
    (said,) = source.problems(dataclasses.replace(data, families=["addition"]))
    assert said == "data.max_val_rows=1000: of addition there are 810 (plain, validation); use at most 810"
    most = dataclasses.replace(data, families=["addition"], max_val_rows=810)
    assert not list(source.problems(most))
    assert len(list(chat_source(most, "validation").rows())) == 810
