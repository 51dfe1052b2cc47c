"""Conversations to text: Jinja chat templates, and where in the text the replies are.

What is special in the rendered text is the template's own: a content that spells a special token is disarmed
before, and gets its characters back after the text has been cut (tinychat.text.chat_template does that).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import jinja2
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from tinychat.errors import UserError

Message = dict[str, str]  # role, content, and on a user message optionally input
Span = tuple[int, int]  # [start, end) in characters

TEMPLATES = ("instruct", "chatml")
INSTEAD = f"use template={' or template='.join(TEMPLATES)}"
MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
FIRST_PRIVATE, LAST_PRIVATE = 0xF0000, 0xFFFFD  # Unicode's plane 15, which means nothing in public


@dataclass(frozen=True)
class Rendered:
    """A conversation as text. Where a content spells a special token, its first character is a stand-in."""

    text: str
    replies: list[Span]  # each with its end token; none in a prompt
    stand_ins: dict[int, int]  # for str.translate: stand-in -> the character it stands for


def template_of(tokenizer: PreTrainedTokenizerFast) -> str:
    """Its chat template. Raises UserError where there is none."""
    if not tokenizer.chat_template:
        raise UserError(f"the tokenizer has no chat template: this checkpoint has not learned to chat; {INSTEAD}")
    return tokenizer.get_chat_template()


def special_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Token -> id, the longest first: of two that begin alike it is the longer one that a text spells."""
    special = [(token.content, index) for index, token in tokenizer.added_tokens_decoder.items() if token.special]
    return dict(sorted(special, key=lambda item: -len(item[0])))


def render(
    tokenizer: PreTrainedTokenizerFast, conversations: Iterable[list[Message]], prompts: bool
) -> Iterator[Rendered]:
    """Whole conversations, or (`prompts`) such as a reply is to follow. Raises UserError for a template that
    refuses one, and for a template whose replies cannot be told apart."""
    template, special = template_of(tokenizer), special_tokens(tokenizer)
    any_special = "|".join(map(re.escape, special)) or "(?!)"
    spelled, ends = re.compile(f"(?={any_special})"), re.compile(any_special)
    for conversation in conversations:
        messages, stand_ins = disarm(conversation, spelled)
        if prompts or MARKS.search(template):
            text, replies = _fill(tokenizer, template, messages, prompts)
        else:
            text, replies = _fill_unmarked(tokenizer, template, messages, ends)
        yield Rendered(text, replies, stand_ins)


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


def _fill(
    tokenizer: PreTrainedTokenizerFast, template: str, messages: list[Message], prompt: bool
) -> tuple[str, list[Span]]:
    """The text, and the spans between the template's generation marks."""
    try:
        texts, spans = render_jinja_template(
            conversations=[messages],
            chat_template=template,
            return_assistant_tokens_mask=not prompt,
            add_generation_prompt=prompt,
            **tokenizer.special_tokens_map,
        )
    except jinja2.TemplateError as error:
        roles, reason = ", ".join(message["role"] for message in messages), " ".join(str(error).split())
        raise UserError(f"chat template: refuses a conversation of the roles {roles}: {reason}") from None
    return texts[0], [] if prompt else spans[0]


def _fill_unmarked(
    tokenizer: PreTrainedTokenizerFast, template: str, messages: list[Message], ends: re.Pattern[str]
) -> tuple[str, list[Span]]:
    """The same for a template without marks: a reply runs from where the prompt for it ends to the end of the
    first special token after that. Raises UserError where what lies in between is not the reply."""
    text, _ = _fill(tokenizer, template, messages, prompt=False)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt, _ = _fill(tokenizer, template, messages[:index], prompt=True)
        end = ends.search(text, len(prompt)) if text.startswith(prompt) else None
        if end is None or not _is_reply(text[len(prompt) : end.start()].strip(), message["content"].strip()):
            raise UserError(
                "chat template: has no {% generation %} marks, and its replies do not begin where its prompts end "
                f"or do not end with a special token, so that none can be told apart; {INSTEAD}"
            )
        spans.append((len(prompt), end.end()))
    return text, spans


def _is_reply(found: str, reply: str) -> bool:
    """Templates of reasoning models write empty thoughts before a reply, or leave its thoughts out."""
    return found.endswith(reply) or (found != "" and reply.endswith(found))
