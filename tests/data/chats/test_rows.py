from __future__ import annotations

import json
from typing import Any

import pytest

from tinychat.data.chats.files import COLUMNS, find_layout, read_chats
from tinychat.data.chats.rows import BadRow, ChatRow, chat_row

U, A = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}
S = {"role": "system", "content": "Be kind."}


def refused(messages: list[Any]) -> str:
    with pytest.raises(BadRow) as caught:
        chat_row(messages, "a.jsonl, line 7")
    message = str(caught.value)
    assert message.startswith("a.jsonl, line 7: ")
    assert "data.on_bad_row=skip" in message
    assert "\n" not in message
    return message.removeprefix("a.jsonl, line 7: ").split(";")[0]


def taken(row: dict[str, Any]) -> list[dict[str, str]]:
    ((_, found),) = read_chats([("f, line 1", row)], None)
    assert isinstance(found, ChatRow), found
    return found.messages


def bad(row: Any) -> str:
    ((_, found),) = read_chats([("f, line 1", row)], None)
    assert isinstance(found, BadRow)
    return found.why


def test_conversations_stay_as_they_stand() -> None:
    messages = [S, {**U, "content": " Hello\n"}, A, {**U, "input": "x"}, A]
    assert chat_row(messages, "p", "sums", "number") == ChatRow(messages, "p", "sums", "number")


def test_roles_by_other_names_and_needless_keys() -> None:
    row = chat_row(
        [{"role": "human", "content": "a", "input": None, "name": "Ann"}, {"role": "gpt", "content": "b"}], "p"
    )
    assert row.messages == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert chat_row([{**S, "content": " "}, {**U, "input": " "}, A], "p").messages == [U, A]


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([], "no messages"),
        ([S], "no message of the assistant"),
        ([U], "no message of the assistant"),
        ([U, A, U], "message 3, the last, is the user's: it has no reply"),
        ([A, U, A], "roles out of order: message 1, the assistant's, is the first"),
        ([U, U, A], "roles out of order: message 2, the user's, follows the user's"),
        ([U, A, A], "roles out of order: message 3, the assistant's, follows the assistant's"),
        ([S, A], "roles out of order: message 2, the assistant's, follows the system's"),
        ([U, A, S, U, A], "roles out of order: message 3, the system's, follows the assistant's"),
        ([{**U, "content": " \n"}, A], "empty user message (message 1)"),
        ([U, {**A, "content": ""}], "empty reply (message 2)"),
        ([U, {**A, "content": 12}], "the content of message 2 (assistant) is 12, not a string"),
        ([U, {**A, "content": None}], "the content of message 2 (assistant) is null, not a string"),
        ([U, {**A, "content": "\ud83d"}], "the content of message 2 (assistant) has half a surrogate pair (\\ud83d)"),
        ([{**U, "input": ["x"]}, A], 'the input of message 1 is ["x"], not a string'),
        ([U, {"role": "assistant", "text": "b"}], "message 2 has no 'content'"),
        ([U, {"content": "b"}], "message 2 has no 'role'"),
        ([U, "Hi"], 'message 2 is "Hi", not {"role": ..., "content": ...}'),
    ],
)
def test_what_is_no_conversation(messages: list[Any], why: str) -> None:
    assert refused(messages).startswith(why)


def test_unknown_role_lists_the_known() -> None:
    with pytest.raises(
        BadRow, match=r'message 2 has the unknown role "tool\\nx"; the roles are system, developer, user, human'
    ):
        chat_row([U, {"role": "tool\nx", "content": "b"}], "p")


def test_prompt_is_the_first_user_message_and_its_input() -> None:
    assert chat_row([S, U, A, {**U, "content": "more"}, A], "p").key() == chat_row([U, A], "p").key()
    assert chat_row([{**U, "input": "x"}, A], "p").key() != chat_row([U, A], "p").key()
    assert chat_row([{**U, "content": "Hello "}, A], "p").key() == chat_row([U, A], "p").key()


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [U, A]},
        {"id": 3, "conversations": [U, A]},
        {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]},
        {"messages": '[{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]'},  # of a csv
        *({user: "Hello", reply: "Hi", second or "other": ""} for user, reply, second in COLUMNS),
        {"system": "", "prompt": "Hello", "response": "Hi"},
        {"system": None, "messages": [U, A]},
    ],
)
def test_layouts(row: dict[str, Any]) -> None:
    assert taken(row) == [U, A]


def test_second_field_and_system_column() -> None:
    want = [{"role": "user", "content": "Hello", "input": "x"}, A]
    assert taken({"instruction": "Hello", "input": "x", "output": "Hi"}) == want
    assert taken({"instruction": "Hello", "context": "x", "response": "Hi"}) == want
    assert taken({"system": "Be kind.", "instruction": "Hello", "input": "x", "output": "Hi"}) == [S, *want]
    # a question's context is no second field, and is named in no layout
    assert find_layout({"question": "a", "context": "b", "answer": "c"}, "").describe() == (
        "one turn a row, user from question, assistant from answer"
    )


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"text": "a", "id": 1}, "no conversation in the columns text, id; known are messages, conversations, "),
        ({}, "no conversation in the columns none"),
        ([1], "[1] is not an object"),
        ({"messages": "Hello"}, 'messages is "Hello", not a list of messages'),
        ({"messages": {"role": "user"}}, 'messages is {"role": "user"}, not a list of messages'),
        ({"prompt": "a", "response": " "}, "empty reply (response)"),
        ({"prompt": "", "response": "b"}, "empty user message (prompt)"),
        ({"prompt": "a", "response": 7}, "response is 7, not a string"),
        ({"system": 1, "prompt": "a", "response": "b"}, "the content of message 1 (system) is 1, not a string"),
    ],
)
def test_rows_that_cannot_be_read(row: Any, why: str) -> None:
    assert bad(row).startswith(why)


def test_layout_is_that_of_the_first_row_that_has_one() -> None:
    rows = [{"x": 1}, {"prompt": "Hello", "response": "Hi"}, {"messages": [U, A]}, {"prompt": "c", "response": "d"}]
    found = [row for _, row in read_chats(((f"f, line {n}", row) for n, row in enumerate(rows, 1)), None)]
    assert [type(row) for row in found] == [BadRow, ChatRow, BadRow, ChatRow]
    assert str(found[2]).startswith("f, line 3: no column 'prompt'; it has messages")


def unused(row: dict[str, Any]) -> list[str]:
    ((_, found),) = read_chats([("f, line 1", row)], None)
    assert isinstance(found, ChatRow), found
    return sorted(found.unused)


def test_earlier_turns_in_a_column_of_their_own() -> None:
    row = {"instruction": "More?", "input": "", "output": "Yes.", "system": "Be kind."}
    more = [{"role": "user", "content": "More?"}, {"role": "assistant", "content": "Yes."}]
    for history in ([["Hello", "Hi"]], json.dumps([["Hello", "Hi"]]), [U, A]):
        assert taken({**row, "history": history}) == [S, U, A, *more]
    assert taken({"messages": more, "history": [["Hello", "Hi"]]}) == [U, A, *more]
    for nothing in ([], None, "", "[]"):
        assert taken({**row, "history": nothing}) == [S, *more]
    for wrong in ("Hello", {"turn": 1}, [["Hello"]], [U, ["Hello", "Hi"]]):
        assert bad({**row, "history": wrong}).startswith("history is ")
    assert "empty user message (message 2)" in bad({**row, "history": [["", "Hi"]]})


def test_columns_by_other_names_are_used() -> None:
    assert taken({"system_prompt": "Be kind.", "prompt": "Hello", "response": "Hi"}) == [S, U, A]
    want = [{**U, "input": "x"}, A]
    assert taken({"prompt": "Hello", "input": "x", "response": "Hi"}) == want
    assert taken({"instruction": "Hello", "input": "x", "response": "Hi"}) == want
    assert taken({"instruction": "Hello", "context": "x", "output": "Hi"}) == want
    assert taken({"prompt": [S, U], "completion": [A]}) == [S, U, A]  # TRL's
    assert taken({"prompt": [U], "completion": "Hi"}) == [U, A]
    assert taken({"messages": {"role": ["user", "assistant"], "content": ["Hello", "Hi"]}}) == [U, A]
    assert "differ in length" in bad({"messages": {"role": ["user"], "content": ["Hello", "Hi"]}})


def test_a_column_that_the_first_row_lacks_is_used_in_later_ones() -> None:
    rows = [{"instruction": "Hello", "output": "Hi"}, {"instruction": "Hello", "output": "Hi", "input": "x"}]
    found = [row for _, row in read_chats((("p", row) for row in rows), None)]
    assert [row.messages[0].get("input") for row in found if isinstance(row, ChatRow)] == [None, "x"]


def test_what_is_not_used_is_named() -> None:
    row = {"prompt": "Hello", "response": "Hi"}
    assert unused({**row, "system": "Be kind.", "history": [["a", "b"]], "input": "x"}) == []
    assert unused({**row, "notes": "n", "images": ["a.png"], "id": 0, "url": None, "tags": [], "more": " "}) == [
        "id",
        "images",
        "notes",
    ]
    assert unused({"question": "a", "context": "b", "answer": "c"}) == ["context"]
    assert unused({"instruction": "a", "input": "b", "context": "c", "output": "d"}) == ["context"]
    messages = [{**U, "name": "Ann"}, {**A, "tool_calls": [], "reasoning_content": "Well."}]
    assert unused({"prompt": "a", "messages": messages}) == [
        "name of messages",
        "prompt",
        "reasoning_content of messages",
    ]


def test_weights_of_messages() -> None:
    def row(*weights: Any, key: str = "weight") -> ChatRow:
        messages = [{**message, key: weight} for message, weight in zip([U, A, U, A], weights, strict=True)]
        ((_, found),) = read_chats([("f, line 1", {"messages": messages})], None)
        if isinstance(found, BadRow):
            raise found
        return found

    assert row(None, 1, None, 1).untrained == row(0, 1.0, 0, True).untrained == ()
    assert row(None, 0, None, 1).untrained == (1,)
    for key in ("train", "loss"):
        assert row(False, True, False, False, key=key).untrained == (3,)
    assert row(1, 1, None, 1).unused == ("weight of the user's messages",)
    with pytest.raises(BadRow, match=r"weight of message 4 is 0\.5, neither 0 \(not learnt from\) nor 1"):
        row(None, 0, None, 0.5)
    with pytest.raises(BadRow, match="no reply is learnt from"):
        row(None, 0, None, 0)
