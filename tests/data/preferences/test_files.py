from __future__ import annotations

from typing import Any

import pytest

from tests.data.preferences.test_sources import config
from tinychat.config.schema import Preference
from tinychat.data.chats.rows import BadRow
from tinychat.data.files.row_sources import choose
from tinychat.data.preferences.rows import (
    PreferenceRow,
    paired_row,
    preference_row,
    read_preferences,
    transcript,
)
from tinychat.data.sources import SOURCES

U, A = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}
S = {"role": "system", "content": "Be kind."}
NO = {"role": "assistant", "content": "No"}
PKU = {
    "prompt": "Hello",
    "response_0": "Hi",
    "response_1": "No",
    "is_response_0_safe": True,
    "is_response_1_safe": False,
    "better_response_id": 1,
    "safer_response_id": 0,
}
DIALOGUE = "\n\nHuman: Hello\n\nAssistant: Hi\n\nHuman: More?\n\nAssistant:"


def read(row: Any, source: str = "preference", preference: Preference = Preference.safer) -> Any:
    (found,) = read_preferences([("f, line 7", row)], SOURCES[source].reader(config(preference=preference)))
    return found


def taken(row: Any, source: str = "preference", preference: Preference = Preference.safer) -> PreferenceRow:
    found = read(row, source, preference)
    assert isinstance(found, PreferenceRow), found
    return found


def bad(row: Any, source: str = "preference", preference: Preference = Preference.safer) -> str:
    found = read(row, source, preference)
    assert isinstance(found, BadRow), found
    assert str(found).startswith("f, line 7: ")
    assert "\n" not in str(found)
    return found.why


def test_pku() -> None:
    row = taken(PKU, "pku_saferlhf")
    assert row == PreferenceRow([U], "Hi", "No", "f, line 7", chosen_safe=True, rejected_safe=False)
    other = taken(PKU, "pku_saferlhf", Preference.better)
    assert (other.chosen, other.rejected, other.chosen_safe, other.rejected_safe) == ("No", "Hi", False, True)


def test_pku_out_of_csv_and_with_newer_columns() -> None:
    """Texts instead of numbers; the kinds of harm of the hub's newest revision."""
    as_text = {key: str(value) for key, value in PKU.items()}
    assert taken(as_text, "pku_saferlhf") == taken(PKU, "pku_saferlhf")
    newer = {
        **PKU,
        "response_0_harm_category": {"Violence": False, "Drugs": False},
        "response_1_harm_category": {"Violence": False, "Drugs": True, "Privacy Violation": True},
        "response_0_severity_level": 0,
        "response_1_severity_level": 2,
    }
    row = taken(newer, "pku_saferlhf")
    assert (row.category, row.chosen_severity, row.rejected_severity) == ("Drugs", 0, 2)
    other = taken(newer, "pku_saferlhf", Preference.better)
    assert (other.category, other.chosen_severity, other.rejected_severity) == ("Drugs", 2, 0)
    assert "response_1_severity_level is 7" in bad({**newer, "response_1_severity_level": 7}, "pku_saferlhf")


def test_pku_without_labels() -> None:
    def lacking(*columns: str, **changes: Any) -> dict[str, Any]:
        return {key: value for key, value in {**PKU, **changes}.items() if key not in columns}

    why = bad(lacking("better_response_id"), "pku_saferlhf", Preference.better)
    assert why.startswith("no column 'better_response_id' (the more helpful reply), which data.preference=better takes")
    assert why.endswith("; it has safer_response_id: data.preference=safer")
    why = bad(lacking("safer_response_id", "better_response_id"), "pku_saferlhf")
    assert why == "no column 'safer_response_id' (the safer reply), which data.preference=safer takes"
    for value in (None, 2, -1, "", "left", [0], 0.5):
        assert "safer_response_id" in bad({**PKU, "safer_response_id": value}, "pku_saferlhf")
    assert "neither true nor false" in bad({**PKU, "is_response_1_safe": None}, "pku_saferlhf")
    row = taken(lacking("is_response_0_safe", "is_response_1_safe"), "pku_saferlhf")
    assert (row.chosen_safe, row.rejected_safe) == (None, None)
    assert bad(lacking("response_1"), "pku_saferlhf").startswith("no column 'response_1'; it has prompt, ")


def test_hh() -> None:
    row = taken({"chosen": f"{DIALOGUE} Yes.", "rejected": f"{DIALOGUE} No.\n"}, "hh_rlhf")
    assert row.prompt == [U, A, {"role": "user", "content": "More?"}]
    assert (row.chosen, row.rejected) == ("Yes.", "No.")
    assert row.conversations()[1][-1] == {"role": "assistant", "content": "No."}


def test_transcript_splits_at_paragraphs_only() -> None:
    said = 'He wrote "Human: no".\nAssistant: nor this\n\nBut a new paragraph.'
    assert transcript(f"\n\nHuman: {said}\n\nAssistant:Hi", "chosen", "p") == [{**U, "content": said}, A]
    assert transcript("Human: Hello\n\nAssistant: Hi", "chosen", "p") == [U, A]  # outer blanks lost


@pytest.mark.parametrize(
    ("chosen", "rejected", "why"),
    [
        (
            f"{DIALOGUE} a",
            f"{DIALOGUE.replace('More', 'Mare')} b",
            "must share all but their last message, and part at",
        ),
        (f"{DIALOGUE} a", "\n\nHuman: Hello\n\nAssistant: Hi", "and part at message 2 (of 4 and 2)"),
        (f"{DIALOGUE} a", f"{DIALOGUE} a ", "chosen and rejected are the same text"),
        (f"{DIALOGUE} a", f"{DIALOGUE} ", "rejected: empty reply (message 4)"),
        (DIALOGUE, f"{DIALOGUE} a", "chosen: empty reply (message 4)"),
        (f"{DIALOGUE} a\n\nHuman: b", f"{DIALOGUE} c", "chosen: message 5, the last, is the user's: it has no reply"),
        ("\n\nHuman: a\n\nHuman: b\n\nAssistant: c", f"{DIALOGUE} c", "chosen: roles out of order"),
        ("\n\nAssistant: c", f"{DIALOGUE} c", "chosen: roles out of order"),
        ("Hello", f"{DIALOGUE} c", 'chosen is "Hello", which does not begin with "\\n\\nHuman:"'),
        ("Well.\n\nHuman: a\n\nAssistant: c", f"{DIALOGUE} c", "does not begin with"),
        (None, f"{DIALOGUE} c", "chosen is null, not a transcript"),
    ],
)
def test_hh_rows_that_cannot_be_used(chosen: Any, rejected: Any, why: str) -> None:
    assert why in bad({"chosen": chosen, "rejected": rejected}, "hh_rlhf")


def test_minimind() -> None:
    row = taken({"chosen": [S, U, A], "rejected": [S, U, NO]}, "minimind_dpo")
    assert row == PreferenceRow([S, U], "Hi", "No", "f, line 7")
    assert "part at message 1 " in bad({"chosen": [S, U, A], "rejected": [U, NO]}, "minimind_dpo")
    assert "same text" in bad({"chosen": [U, A], "rejected": [U, A]}, "minimind_dpo")
    assert bad({"chosen": [U, A], "rejected": "No"}, "minimind_dpo") == 'rejected is "No", not a list of messages'
    assert bad({"chosen": [U, A]}, "minimind_dpo") == "no column 'rejected'; it has chosen"
    assert bad([1], "minimind_dpo") == "[1] is not an object"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hello", "chosen": "Hi", "rejected": "No"},
        {"prompt": [U], "chosen": "Hi", "rejected": "No"},
        {"prompt": '[{"role": "user", "content": "Hello"}]', "chosen": "Hi", "rejected": "No"},  # of a csv
        {"prompt": [U], "chosen": [A], "rejected": [NO]},
        {"prompt": "Hello", "chosen": [U, A], "rejected": [U, NO]},
        {"chosen": [U, A], "rejected": [U, NO]},
        {"chosen": "\n\nHuman: Hello\n\nAssistant: Hi", "rejected": "\n\nHuman: Hello\n\nAssistant: No"},
    ],
)
def test_own_layouts(row: dict[str, Any]) -> None:
    assert taken(row) == PreferenceRow([U], "Hi", "No", "f, line 7")


@pytest.mark.parametrize(
    "row",
    [
        {"system": "Be kind.", "prompt": "Hello", "chosen": "Hi", "rejected": "No"},
        {"system": "Be kind.", "question": "Hello", "chosen": "Hi", "rejected": "No"},
        {"system_prompt": "Be kind.", "chosen": [U, A], "rejected": [U, NO]},
        {"system": "Be kind.", "prompt": "Hello", "chosen": [U, A], "rejected": [U, NO]},
        {
            "system": "Be kind.",
            "chosen": "\n\nHuman: Hello\n\nAssistant: Hi",
            "rejected": "Human: Hello\n\nAssistant: No",
        },
        # LLaMA-Factory's
        {
            "conversations": [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "Hello"}],
            "chosen": {"from": "gpt", "value": "Hi"},
            "rejected": {"from": "gpt", "value": "No"},
        },
    ],
)
def test_what_stands_before_the_prompt_is_used(row: dict[str, Any]) -> None:
    found = taken(row)
    assert found == PreferenceRow([S, U], "Hi", "No", "f, line 7")
    assert set(found.unused) <= {"prompt"}  # beside whole conversations


def test_earlier_turns_and_second_fields_are_used() -> None:
    row = {"prompt": "More?", "chosen": "Hi", "rejected": "No", "history": [["Hello", "Hi"]], "input": "x"}
    assert taken(row).prompt == [U, A, {"role": "user", "content": "More?", "input": "x"}]
    assert taken({**PKU, "system": "Be kind."}, "pku_saferlhf").prompt == [S, U]
    assert taken({"system": "Be kind.", "chosen": [U, A], "rejected": [U, NO]}, "minimind_dpo").prompt == [S, U]
    assert (
        taken({"system": "Be kind.", "chosen": f"{DIALOGUE} a", "rejected": f"{DIALOGUE} b"}, "hh_rlhf").prompt[0] == S
    )


def test_what_is_not_used_of_a_preference_is_named() -> None:
    row = {"prompt": "Hello", "chosen": "Hi", "rejected": "No", "margin": 2.0, "id": None}
    assert taken(row).unused == ("margin",)
    assert taken({**PKU, "prompt_source": "x"}, "pku_saferlhf").unused == ("prompt_source",)
    named = {"chosen": [U, {**A, "name": "x"}], "rejected": [U, {**NO, "reasoning_content": "Well."}]}
    assert set(taken(named).unused) == {"name of messages", "reasoning_content of messages"}


def test_own_labels() -> None:
    row = {"prompt": "Hello", "chosen": "Hi", "rejected": "No", "category": " drugs ", "harmful": "true"}
    found = taken({**row, "chosen_safe": 1, "rejected_safe": False})
    assert (found.category, found.harmful, found.chosen_safe, found.rejected_safe) == ("drugs", True, True, False)
    empty = taken({**row, "category": None, "harmful": "", "chosen_safe": None})
    assert (empty.category, empty.harmful, empty.chosen_safe, empty.rejected_safe) == ("", None, None, None)
    assert bad({**row, "chosen_safe": "perhaps"}) == 'chosen_safe is "perhaps", neither true nor false'
    assert bad({**row, "category": 3}) == "category is 3, not a string"


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (
            {"text": "a"},
            "no preference in the columns text; known are prompt (a text or messages), chosen and rejected",
        ),
        ({"chosen": "a", "rejected": "b"}, "no column 'prompt'; it has chosen, rejected"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "empty user message (message 1)"),
        ({"prompt": None, "chosen": "a", "rejected": "b"}, "the content of message 1 (user) is null, not a string"),
        (
            {"prompt": [], "chosen": "a", "rejected": "b"},
            "roles out of order: message 1, the assistant's, is the first",
        ),
        ({"prompt": [U, A], "chosen": "a", "rejected": "b"}, "roles out of order: message 3"),
        ({"prompt": "p", "chosen": "a", "rejected": " a\n"}, "chosen and rejected are the same text"),
        ({"prompt": "p", "chosen": "", "rejected": "a"}, "empty reply (chosen)"),
        ({"prompt": "p", "chosen": "a", "rejected": " "}, "empty reply (rejected)"),
        ({"prompt": "p", "chosen": 3, "rejected": "a"}, "chosen is 3, not a string"),
        ({"prompt": "p", "chosen": "a", "rejected": None}, "rejected is null, not a string"),
        ({"prompt": "p", "chosen": "a", "rejected": "\ud83d"}, "rejected has half a surrogate pair"),
        ({"prompt": "p", "chosen": [A], "rejected": "No"}, 'chosen is [{"role": "assistant", "content": "Hi"}], not'),
    ],
)
def test_own_rows_that_cannot_be_used(row: dict[str, Any], why: str) -> None:
    assert bad(row).startswith(why)


def test_key_is_the_first_user_message() -> None:
    one = preference_row([S, {**U, "content": " Hello"}], "a", "b", "p")
    longer = paired_row([U, A, {**U, "content": "more"}, A], [U, A, {**U, "content": "more"}, NO], "p")
    assert one.key() == longer.key()
    assert preference_row([{**U, "input": "x"}], "a", "b", "p").key() != one.key()


def test_choice_does_not_depend_on_which_reply_was_chosen() -> None:
    rows = [preference_row([{**U, "content": f"{i}"}], "a", "b", "p") for i in range(50)]
    turned = [preference_row(row.prompt, "b", "a", "p") for row in reversed(rows)]
    chosen = [row.key() for row in choose(rows, 10, seed=1)]
    assert len(chosen) == 10
    assert chosen == [row.key() for row in reversed(choose(turned, 10, seed=1))]
    assert set(chosen) < {row.key() for row in choose(rows, 20, seed=1)}
    assert chosen != [row.key() for row in choose(rows, 10, seed=2)]
