"""Conversations to text: Jinja chat templates, and where in the text the replies are.

What is special in the rendered text is the template's own: a content that spells a special token is disarmed
before, and gets its characters back after the text has been cut (tinychat.text.chat_template does that).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from transformers import PreTrainedTokenizerFast

from tinychat.errors import UserError
from tinychat.text import TEMPLATES
from tinychat.text.template_process import Failed, Filled, Job, Message, Span, fill

INSTEAD = f"use template={' or template='.join(TEMPLATES)}"
MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
FIRST_PRIVATE, LAST_PRIVATE = 0xF0000, 0xFFFFD  # Unicode's plane 15, which means nothing in public
DEFAULT = "default"  # of several named templates the one for conversations
TELLS_NONE = (
    "has no {% generation %} marks, and its replies do not begin where its prompts end or do not end with a special "
    f"token, so that none can be told apart; {INSTEAD}"
)
BATCH = 256  # conversations that are filled in at once
MARKED = "\uf8ff"  # an input by which a template shows whether it writes inputs; for private use, so in none by chance
_reads: dict[str, bool] = {}  # templates that were asked


class Refused(UserError):
    """A conversation that the template or the tokenizer cannot write; others may do."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text. Where a content spells a special token, its first character is a stand-in."""

    text: str
    replies: list[Span]  # each with its end token; none in a prompt
    stand_ins: dict[int, int]  # for str.translate: stand-in -> the character it stands for


def template_of(tokenizer: PreTrainedTokenizerFast) -> str:
    """Its chat template, of several the default one. Raises UserError where there is none."""
    templates = tokenizer.chat_template
    if not templates:
        raise UserError(f"the tokenizer has no chat template: this checkpoint has not learned to chat; {INSTEAD}")
    if isinstance(templates, str):
        return templates
    if DEFAULT not in templates:
        raise UserError(
            f"chat template: {_name(tokenizer)} has {', '.join(templates)}, and none named {DEFAULT}; {INSTEAD}, or "
            f"name one of them {DEFAULT} in its tokenizer_config.json"
        )
    return templates[DEFAULT]


def _name(tokenizer: PreTrainedTokenizerFast) -> str:
    return f"the tokenizer {tokenizer.name_or_path}" if tokenizer.name_or_path else "the tokenizer"


def special_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Token -> id, the longest first: of two that begin alike it is the longer one that a text spells."""
    special = [(token.content, index) for index, token in tokenizer.added_tokens_decoder.items() if token.special]
    return dict(sorted(special, key=lambda item: -len(item[0])))


def render(
    tokenizer: PreTrainedTokenizerFast, conversations: Iterable[list[Message]], prompts: bool
) -> Iterator[Rendered | Refused]:
    """Whole conversations, or (`prompts`) such as a reply is to follow; in place of one that the template refuses, or
    whose replies cannot be told apart, the reason. Raises UserError for a template that is of no use at all."""
    template, special = template_of(tokenizer), special_tokens(tokenizer)
    any_special = "|".join(map(re.escape, special)) or "(?!)"
    spelled, ends = re.compile(f"(?={any_special})"), re.compile(any_special)
    marked = prompts or MARKS.search(template) is not None
    remaining = _with_inputs_said(tokenizer, template, conversations)
    while batch := [disarm(one, spelled) for one in islice(remaining, BATCH)]:
        jobs = [[(messages, prompts), *([] if marked else _prompts_in(messages))] for messages, _ in batch]
        filled = _fill(tokenizer, template, [job for its in jobs for job in its])
        for (messages, stand_ins), its in zip(batch, jobs, strict=True):
            found = list(islice(filled, len(its)))
            texts = [one for one in found if isinstance(one, Filled)]
            if len(texts) < len(found):
                roles = ", ".join(message["role"] for message in messages)
                why = next(one.why for one in found if isinstance(one, Failed))
                yield Refused(f"{_chat_template(tokenizer)} refuses a conversation of the roles {roles}: {why}")
                continue
            whole, *before = texts
            spans = whole.spans if marked else _spans(whole.text, [one.text for one in before], messages, ends)
            yield (
                Refused(f"{_chat_template(tokenizer)} {TELLS_NONE}")
                if spans is None
                else Rendered(whole.text, spans, stand_ins)
            )


def _with_inputs_said(
    tokenizer: PreTrainedTokenizerFast, template: str, conversations: Iterable[list[Message]]
) -> Iterator[list[Message]]:
    """The conversations, with a user's input on a line after the content where the template knows of no inputs (those
    of other programs mostly do not), and would leave it out."""
    for messages in conversations:
        if any(message.get("input") for message in messages) and not _reads_inputs(tokenizer, template):
            messages = [_said_in_content(message) for message in messages]
        yield messages


def _reads_inputs(tokenizer: PreTrainedTokenizerFast, template: str) -> bool:
    if template not in _reads:
        asked = [{"role": "user", "content": "Hello", "input": MARKED}]
        (found,) = fill(template, tokenizer.special_tokens_map, [(asked, True)])
        _reads[template] = isinstance(found, Filled) and MARKED in found.text
    return _reads[template]


def _said_in_content(message: Message) -> Message:
    if not message.get("input"):
        return message
    said = (message["content"].strip(), message["input"].strip())
    rest = {key: value for key, value in message.items() if key != "input"}
    return rest | {"content": "\n".join(part for part in said if part)}


def _chat_template(tokenizer: PreTrainedTokenizerFast) -> str:
    return f"chat template: that of {_name(tokenizer)}"


def _fill(tokenizer: PreTrainedTokenizerFast, template: str, jobs: list[Job]) -> Iterator[Filled | Failed]:
    for one in fill(template, tokenizer.special_tokens_map, jobs):
        if isinstance(one, Failed) and one.always:
            raise UserError(f"{_chat_template(tokenizer)} {one.why}; {INSTEAD}")
        yield one


def disarm(messages: list[Message], spelled: re.Pattern[str]) -> tuple[list[Message], dict[int, int]]:
    """Put a private character that the conversation does not use for the first one of every special token
    spelled in it. Lengths stay as they are. Returns the messages and the way back."""
    values = [value for message in messages for value in message.values()]
    if not any(map(spelled.search, values)):
        return messages, {}
    used = set("".join(values))
    free = (chr(code) for code in range(FIRST_PRIVATE, LAST_PRIVATE + 1) if chr(code) not in used)
    stand_in: dict[str, str] = {}

    def disarmed(value: str) -> str:
        characters = list(value)
        for match in spelled.finditer(value):
            first = value[match.start()]
            if first not in stand_in:
                stand_in[first] = next(free)
            characters[match.start()] = stand_in[first]
        return "".join(characters)

    safe = [{key: disarmed(value) for key, value in message.items()} for message in messages]
    return safe, {ord(private): ord(first) for first, private in stand_in.items()}


def _prompts_in(messages: list[Message]) -> list[Job]:
    """The conversation up to each of its replies."""
    return [(messages[:index], True) for index, message in enumerate(messages) if message["role"] == "assistant"]


def _spans(text: str, prompts: list[str], messages: list[Message], ends: re.Pattern[str]) -> list[Span] | None:
    """The replies in the text of a template without marks: one runs from where the prompt for it ends to the end of
    the first special token after that. None where what lies in between is not the reply."""
    replies = [message["content"] for message in messages if message["role"] == "assistant"]
    spans = []
    for prompt, reply in zip(prompts, replies, strict=True):
        end = ends.search(text, len(prompt)) if text.startswith(prompt) else None
        if end is None or not _is_reply(text[len(prompt) : end.start()].strip(), reply.strip()):
            return None
        spans.append((len(prompt), end.end()))
    return spans


def _is_reply(found: str, reply: str) -> bool:
    """Templates of reasoning models write empty thoughts before a reply, or leave its thoughts out."""
    return found.endswith(reply) or (found != "" and reply.endswith(found))
