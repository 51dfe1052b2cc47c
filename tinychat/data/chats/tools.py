"""Conversations with tools as plain ones: calls, results and the list of tools become text.

The form is that of Hermes and of Qwen's chat template: the tools stand in the system message between <tools> marks, a
call in the assistant's message between <tool_call> marks, its result in a user message between <tool_response> marks.
So every chat template can write it, and what is trained are the calls and the replies.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from tinychat.config.schema import DataConfig, ToolCalls
from tinychat.data.chats.files import HISTORY, LISTS, SYSTEMS, TEXTS, as_list, listed
from tinychat.data.chats.rows import CALL_ROLES, CALLS, RESULT_ROLES, ROLES, BadRow, is_empty, parts_as_text
from tinychat.data.files.tables import Unreadable, short

Row = dict[str, Any]
TOOLS = "tools"  # a column, or a key of the system message: what may be called
COLUMNS = (*LISTS, *TEXTS, HISTORY, "completion", "chosen", "rejected")  # that messages may stand in
SYSTEM = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


class _Wrong(Exception):
    """What is no call or no list of tools, as the end of a sentence."""


def with_tools(rows: Iterable[tuple[str, Any]], how: ToolCalls) -> Iterator[tuple[str, Any]]:
    """Rows with their places, with `how` = text as shown_as_text gives them; else as they are, so that those with
    calls are refused where they are read."""
    return ((place, shown_as_text(row)) for place, row in rows) if how is ToolCalls.text else iter(rows)


def as_text(config: DataConfig) -> list[str]:
    """What a fingerprint says of it: nothing where rows with calls are refused."""
    return ["tool calls as text"] if config.tool_calls is ToolCalls.text else []


def shown_as_text(row: Any) -> Any:
    """A row whose messages call tools, with text in the calls' place; Unreadable where they cannot be told; any other
    row as it is."""
    if not isinstance(row, dict):
        return row
    found = {name: messages for name in COLUMNS if (messages := _messages(row.get(name), name)) is not None}
    if not found:
        return row
    try:
        changed = {name: [*_plain(messages)] for name, messages in found.items()}
        tools = row.get(TOOLS)
        if not is_empty(tools):
            before = next((row[name] for name in SYSTEMS if not is_empty(row.get(name))), None)
            first = next((its for name, its in changed.items() if name != HISTORY and its), None)
            if isinstance(first, list) and _is_system(first[0]) and before is None:
                for messages in changed.values():  # both sides of a pair
                    if messages and _is_system(messages[0]):
                        messages[0] = {**messages[0], "content": _system(messages[0].get("content"), tools)}
            else:
                changed |= {SYSTEMS[0]: _system(before, tools)}  # type: ignore[dict-item]
            changed |= {TOOLS: []}
    except _Wrong as wrong:
        return Unreadable(str(wrong))
    return {**row, **changed}


def _messages(value: Any, name: str) -> list[Any] | None:
    """The messages of a column; None for another column."""
    value = as_list(value)
    if isinstance(value, dict) and ("role" in value or "from" in value):
        value = [value]
    if not isinstance(value, (list, dict)) or is_empty(value):
        return None
    try:
        messages = listed(value, "", name)
    except BadRow:
        return None
    return messages if all(isinstance(message, dict) for message in messages) else None


def _is_system(message: Any) -> bool:
    role = message.get("role") if isinstance(message, dict) else None
    return isinstance(role, str) and ROLES.get(role) == "system"


def _plain(messages: list[Row]) -> Iterator[Row]:
    results: list[str] = []  # one after the other: of calls made at once, one message
    for number, message in enumerate(messages, start=1):
        role = message.get("role")
        if isinstance(role, str) and role in RESULT_ROLES:
            results.append(_marked("tool_response", _text(message.get("content"))))
            continue
        if results:
            yield {"role": "user", "content": "\n".join(results)}
            results = []
        yield _said(message, number)
    if results:
        yield {"role": "user", "content": "\n".join(results)}


def _said(message: Row, number: int) -> Row:
    """One message that is no result."""
    role = message.get("role")
    if _is_system(message) and not is_empty(message.get(TOOLS)):  # MiniMind's
        return {**message, "content": _system(message.get("content"), message[TOOLS]), TOOLS: None}
    if isinstance(role, str) and role in CALL_ROLES:  # LLaMA-Factory's
        return {**message, "role": "assistant", "content": _calls(message.get("content"), number)}
    calls = [message[key] for key in CALLS if not is_empty(message.get(key))]
    if not calls:
        return message
    said = "" if is_empty(message.get("content")) else parts_as_text(message["content"])
    if not isinstance(said, str):
        raise _Wrong(f"the content of message {number} is {short(said)}, not a string")
    content = "\n".join([*([said] if said else []), *(_calls(one, number) for one in calls)])
    return {**message, "content": content, **dict.fromkeys(CALLS)}


def _calls(value: Any, number: int) -> str:
    """OpenAI's {"function": {"name", "arguments"}}, the same without its outer object, a list of those, or the JSON of
    either."""
    if isinstance(value, str) and "<tool_call>" in value:
        return value
    value = _from_json(value)
    marked = []
    for call in value if isinstance(value, list) else [value]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise _Wrong(f"message {number} calls a tool without a name: {short(call)}")
        arguments = _from_json(function.get("arguments"))
        said = {"name": function["name"], "arguments": {} if is_empty(arguments) else arguments}
        marked.append(_marked("tool_call", json.dumps(said, ensure_ascii=False)))
    return "\n".join(marked)


def _system(before: Any, tools: Any) -> str:
    before, tools = parts_as_text(before), _from_json(tools)
    if not isinstance(tools, list):
        raise _Wrong(f"{TOOLS} is {short(tools)}, not a list of tools")
    lines = "\n".join(tool if isinstance(tool, str) else json.dumps(tool, ensure_ascii=False) for tool in tools)
    written = SYSTEM.format(tools=lines)
    return f"{before}\n\n{written}" if isinstance(before, str) and before.strip() else written


def _marked(mark: str, text: str) -> str:
    return text if f"<{mark}>" in text else f"<{mark}>\n{text}\n</{mark}>"


def _text(content: Any) -> str:
    """What a tool gave: a text, parts of text, or anything else as JSON."""
    content = parts_as_text(content)
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)


def _from_json(value: Any) -> Any:
    """What a text is the JSON of; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
