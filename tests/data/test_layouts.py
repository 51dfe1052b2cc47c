"""Every layout of docs/data.md, by rows as their publishers write them: what is read out of one, and what is said of a
row that is broken."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY, write_rows
from tests.data.preferences.test_sources import config
from tinychat.config.schema import OnBadRow, ToolCalls
from tinychat.data.chats.sources import chat_source
from tinychat.data.documents.sources import text_source
from tinychat.data.preferences.prompts import prompt_files
from tinychat.data.preferences.sources import preference_source
from tinychat.errors import UserError

Row = dict[str, Any]
FIND: dict[str, Any] = {
    "documents": text_source,
    "conversations": chat_source,
    "preferences": preference_source,
    "prompts": prompt_files,
}


def said(*texts: str, first: str = "user") -> list[Row]:
    """Messages of user and assistant in turn."""
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)]


def share(*turns: tuple[str, str]) -> list[Row]:
    return [{"from": who, "value": text} for who, text in turns]


S = {"role": "system", "content": "Be kind."}
HI = said("Hello", "Hi")
TRANSCRIPT = "\n\nHuman: Hello\n\nAssistant: {}"
PKU = {"prompt": "Hello", "response_0": "No", "response_1": "Hi", "safer_response_id": 1}
PKU_NEW = {
    **PKU,
    "prompt_source": "x",
    "response_0_source": "A",
    "response_1_source": "B",
    "is_response_0_safe": False,
    "is_response_1_safe": True,
    "response_0_harm_category": {"Violence": True},
    "response_1_harm_category": {"Violence": False},
    "response_0_severity_level": 2,
    "response_1_severity_level": 0,
    "better_response_id": 0,
    "response_0_sha256": "aa",
    "response_1_sha256": "bb",
}
ULTRA = {
    "source": "x",
    "instruction": "Hello",
    "models": ["a", "b", "c"],
    "completions": [
        {"response": "Hm", "overall_score": 5.0, "model": "a"},
        {"response": "No", "overall_score": 1.5, "model": "b"},
        {"response": "Hi", "overall_score": 8.5, "model": "c"},
    ],
}
BINARIZED = {
    "prompt": "Hello",
    "prompt_id": "1",
    "chosen": HI,
    "rejected": said("Hello", "No"),
    "messages": HI,
    "score_chosen": 8.5,
    "score_rejected": 5.0,
}
PAIR = ("Hello", "Hi", "No")

# The layout's name in docs/data.md; data=; a row; what is read: a text, messages, or (prompt, chosen, rejected); a
# broken row; what is said of it.
LAYOUTS: list[tuple[str, str, Row, Any, Any, str]] = [
    ("text column", "text", {"text": "Hello"}, "Hello", {"text": 7}, "text is 7, not a string"),
    (
        "MiniMind SFT",
        "minimind_sft",
        {"conversations": HI},
        HI,
        {"conversations": said("Hello")},
        "no message of the assistant",
    ),
    (
        "MiniMind DPO",
        "minimind_dpo",
        {"chosen": HI, "rejected": said("Hello", "No")},
        PAIR,
        {"chosen": HI, "rejected": HI},
        "chosen and rejected are the same text",
    ),
    (
        "ShareGPT",
        "chat",
        {"id": "1", "conversations": share(("system", "Be kind."), ("human", "Hello"), ("gpt", "Hi"))},
        [S, *HI],
        {"conversations": share(("human", "Hello"), ("alien", "Hi"))},
        'message 2 has the unknown role "alien"',
    ),
    (
        "OpenAI messages",
        "chat",
        {"messages": [{**S, "role": "developer"}, *HI]},
        [S, *HI],
        {"messages": [*said("Hello"), {"role": "assistant", "content": None}]},
        "the content of message 2 (assistant) is null, not a string",
    ),
    (
        "OpenAI messages",
        "chat",
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
                HI[1],
            ]
        },
        said("Hel\nlo", "Hi"),
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, HI[1]]},
        'the content of message 1 (user) has a part that is no text: {"type": "image_url"',
    ),
    (
        "Alpaca",
        "alpaca",
        {"instruction": "Hello", "input": "x", "output": "Hi", "text": "Below is ..."},
        [{**HI[0], "input": "x"}, HI[1]],
        {"instruction": "Hello", "input": "", "output": ""},
        "empty reply (output)",
    ),
    (
        "GSM8K",
        "gsm8k",
        {"question": "2 + 3?", "answer": "2 + 3 = <<2+3=5>>5\n#### 5"},
        said("2 + 3?", "2 + 3 = <<2+3=5>>5\n#### 5"),
        {"question": "2 + 3?"},
        "no column 'answer'; it has question",
    ),
    (
        "prompt and completion",
        "chat",
        {"prompt": "Hello", "completion": "Hi"},
        HI,
        {"prompt": "Hello", "completion": 3},
        "completion is 3, not a string",
    ),
    (
        "prompt and completion",
        "chat",
        {"prompt": said("Hello"), "completion": said("Hi", first="assistant")},
        HI,
        {"prompt": said("Hello"), "completion": said("Hi")},
        "not one message of the assistant",
    ),
    (
        "HH",
        "hh_rlhf",
        {"chosen": TRANSCRIPT.format("Hi"), "rejected": TRANSCRIPT.format("No")},
        PAIR,
        {"chosen": TRANSCRIPT.format("Hi"), "rejected": "No"},
        'does not begin with "\\n\\nHuman:"',
    ),
    ("PKU-SafeRLHF", "pku_saferlhf", PKU, PAIR, {**PKU, "safer_response_id": 2}, "neither 0 nor 1"),
    ("PKU-SafeRLHF", "pku_saferlhf", PKU_NEW, PAIR, {**PKU_NEW, "response_1_severity_level": 7}, "not 0 (none) to 3"),
    (
        "UltraFeedback",
        "preference",
        ULTRA,
        PAIR,
        {**ULTRA, "completions": [{"response": text, "overall_score": 3} for text in ("a", "b")]},
        "all 2 completions have the score 3: none is preferred",
    ),
    (
        "UltraFeedback",
        "preference",
        {
            **ULTRA,
            "completions": json.dumps(
                [{**one, "overall_score": str(one["overall_score"])} for one in ULTRA["completions"]]
            ),
        },
        PAIR,
        {**ULTRA, "completions": [{"response": "a", "overall_score": "good"}]},
        'score of a completion is "good", not a number',
    ),
    (
        "UltraFeedback binarized",
        "preference",
        BINARIZED,
        PAIR,
        {**BINARIZED, "score_chosen": 4},
        "score_chosen is 4, below score_rejected, 5",
    ),
    (
        "prompt, chosen, rejected",
        "preference",
        {"prompt": "Hello", "chosen": "Hi", "rejected": "No"},
        PAIR,
        {"prompt": "Hello", "chosen": "Hi"},
        "no preference in the columns prompt, chosen",
    ),
    (
        "prompts",
        "prompts",
        {"prompt": "Hello", "reference": "Hi", "answer": "exact"},
        said("Hello"),
        {"prompt": " "},
        "empty prompt (prompt)",
    ),
]


def kind_of(source: str) -> str:
    pairs = ("minimind_dpo", "hh_rlhf", "pku_saferlhf", "preference")
    return {"text": "documents", "prompts": "prompts"}.get(
        source, "preferences" if source in pairs else "conversations"
    )


def plain(row: Any) -> Any:
    if isinstance(row, str):
        return row
    if hasattr(row, "chosen"):
        return row.prompt[0]["content"], row.chosen, row.rejected
    return row.messages


@pytest.mark.parametrize(("name", "source", "row", "expected", "broken", "why"), LAYOUTS)
def test_layout(
    tmp_path: Path, name: str, source: str, row: Row, expected: Any, broken: Any, why: str, caplog: Any
) -> None:
    """One good row is read; a broken one is told with its file and line, or counted."""
    path, held_out = write_rows(tmp_path / "a.jsonl", [row, broken]), write_rows(tmp_path / "b.jsonl", [{"text": "v"}])

    def rows(**changes: Any) -> Any:
        settings = config(path, source=source, name=source, val_path=str(held_out), **changes)
        found = FIND[kind_of(source)](settings, "train")
        if hasattr(found, "validation"):
            found.validation = None
        return found, [plain(one) for one in (found.documents() if source == "text" else found.rows())]

    with pytest.raises(UserError) as caught:
        rows()
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)
    found, read = rows(on_bad_row=OnBadRow.skip)
    assert read == [expected]
    assert (found.meter.bad if source == "text" else found.n_bad) == 1


def test_the_page_has_every_layout() -> None:
    page = (REPOSITORY / "docs/data.md").read_text()
    table = page[page.index("## Layouts") :]
    named = re.findall(r"^\| \*\*(.+?)\*\*", table, flags=re.M)
    assert {name for name, *_ in LAYOUTS} <= set(named)


CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
WITH_CALLS = [
    *said("Is it warm?"),
    {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "20 degrees"},
    {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "sunny"}]},
    {"role": "assistant", "content": "It is."},
]
CALLED = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>'
GIVEN = "<tool_response>\n{}\n</tool_response>"
SHOWN = said("Is it warm?", f"{CALLED}\n{CALLED}", f"{GIVEN.format('20 degrees')}\n{GIVEN.format('sunny')}", "It is.")


def chats(tmp_path: Path, row: Row, how: ToolCalls = ToolCalls.text) -> list[Row]:
    path, held_out = write_rows(tmp_path / "a.jsonl", [row]), write_rows(tmp_path / "b.jsonl", [{"messages": HI}])
    found = chat_source(config(path, source="chat", val_path=str(held_out), tool_calls=how), "train")
    ((one),) = found.rows()
    return one.messages


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ({"messages": WITH_CALLS}, SHOWN),
        ({"messages": json.dumps(WITH_CALLS)}, SHOWN),
        (
            {
                "conversations": share(
                    ("human", "Is it warm?"),
                    ("function_call", '{"name": "weather", "arguments": {"city": "Bern"}}'),
                    ("observation", "20 degrees"),
                    ("gpt", "It is."),
                )
            },
            said("Is it warm?", CALLED, GIVEN.format("20 degrees"), "It is."),
        ),
        # Hermes' own rows have the marks already; MiniMind's calls are JSON
        (
            {"conversations": share(("human", "?"), ("gpt", CALLED), ("tool", GIVEN.format("1")), ("gpt", "One."))},
            said("?", CALLED, GIVEN.format("1"), "One."),
        ),
        (
            {"messages": [*said("?"), {"role": "assistant", "content": "So:", "tool_calls": json.dumps([CALL])}]},
            said("?", f"So:\n{CALLED}"),
        ),
        ({"messages": HI}, HI),
        ({"prompt": "Hello", "response": "Hi"}, HI),
    ],
)
def test_tool_calls_as_text(tmp_path: Path, row: Row, shown: list[Row]) -> None:
    assert chats(tmp_path, row) == shown


@pytest.mark.parametrize(
    ("row", "before"),
    [
        ({"messages": [S, *HI], "tools": [{"name": "weather"}]}, "Be kind.\n\n"),
        ({"messages": HI, "tools": json.dumps([{"name": "weather"}])}, ""),
        ({"messages": HI, "system": "Be kind.", "tools": [{"name": "weather"}]}, "Be kind.\n\n"),
        ({"conversations": [{**S, "tools": json.dumps([{"name": "weather"}])}, *HI]}, "Be kind.\n\n"),
    ],
)
def test_the_list_of_tools_goes_into_the_system_message(tmp_path: Path, row: Row, before: str) -> None:
    system, *rest = chats(tmp_path, row)
    assert system["role"] == "system"
    assert system["content"].startswith(f"{before}# Tools\n")
    assert '<tools>\n{"name": "weather"}\n</tools>' in system["content"]
    assert rest == HI


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        (WITH_CALLS, "message 2 calls a tool; to show calls and results as text: data.tool_calls=text"),
        (share(("human", "a"), ("observation", "b")), "message 2 has the role observation, of a tool; to show"),
    ],
)
def test_tool_calls_are_refused_by_default(tmp_path: Path, messages: list[Row], why: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"a.jsonl, line 1: {why}")):
        chats(tmp_path, {"messages": messages}, ToolCalls.refuse)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"messages": [*said("?"), {"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "calls a tool without a name"),
        (
            {"messages": [*said("?"), {"role": "function_call", "content": "go"}]},
            "message 2 calls a tool without a name",
        ),
        ({"messages": HI, "tools": "weather"}, 'tools is "weather", not a list of tools'),
    ],
)
def test_calls_that_cannot_be_told(tmp_path: Path, row: Row, why: str) -> None:
    with pytest.raises(UserError, match=re.escape(why)):
        chats(tmp_path, row)


def test_pairs_with_calls(tmp_path: Path) -> None:
    sides = {"chosen": WITH_CALLS, "rejected": [*WITH_CALLS[:-1], {"role": "assistant", "content": "No."}]}
    path = write_rows(tmp_path / "a.jsonl", [{**sides, "tools": [{"name": "weather"}]}])
    settings = config(path, val_path=str(path), tool_calls=ToolCalls.text)
    (row,) = preference_source(settings, "validation").rows()
    assert row.prompt[0]["role"] == "system"
    assert row.prompt[1:] == SHOWN[:-1]
    assert (row.chosen, row.rejected) == ("It is.", "No.")
    other = preference_source(config(path, val_path=str(path)), "validation")
    assert preference_source(settings, "validation").fingerprint() != other.fingerprint()
