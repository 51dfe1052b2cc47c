"""Chat templates filled in: those of this package here, any other in a process of its own.

A template that came with a tokenizer is a program somebody else wrote. Jinja's sandbox keeps it from the machine, but
not from repeating a text for ever, so the process is bounded: the kernel ends it after SECONDS of processor time for
one conversation, and refuses it more than MEMORY beyond what it began with.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from tinychat.runtime.limited import Died, LimitedProcess, serve
from tinychat.text import TEMPLATES

SECONDS = 5.0  # of processor time, for one conversation
MEMORY = 1 << 29  # bytes
# A text is at most so long: what templates write of their own, all of the template for each message, and contents that
# are written several times or with escapes.
FREE_CHARACTERS = 1 << 16
TIMES_CONTENT = 16

_USELESS: dict[str, Failed] = {}  # templates that failed whatever the conversation, which need no second try
Message = dict[str, str]  # role, content, and on a user message optionally input
Span = tuple[int, int]  # [start, end) in characters
Job = tuple[list[Message], bool]  # a conversation, and whether a reply is to follow


@dataclass(frozen=True)
class Filled:
    """A conversation in a template."""

    text: str
    spans: list[Span]  # between the template's generation marks; none in a prompt


@dataclass(frozen=True)
class Failed:
    """Why there is no text. `always`: whatever the conversation, so that no other one need be tried."""

    why: str
    always: bool


@functools.cache
def shipped(name: str) -> str:
    """The text of one of TEMPLATES."""
    return TEMPLATES[name].read_text("utf-8").rstrip()


def fill(template: str, special: dict[str, Any], jobs: list[Job]) -> list[Filled | Failed]:
    """Each job's conversation in the template; after a failure that is `always`, nothing more. special: the
    tokenizer's special tokens by their names, which templates may use."""
    if template in map(shipped, TEMPLATES):
        return [_fill_one(template, special, *job) for job in jobs]
    if template in _USELESS:
        return [_USELESS[template]]
    answers = LimitedProcess.of(__name__).ask([template, special], jobs, SECONDS, MEMORY)
    found = [_told(answer) for answer in answers]
    if found and isinstance(last := found[-1], Failed) and last.always:
        _USELESS[template] = last
    return found


def _fill_one(template: str, special: dict[str, Any], messages: list[Message], prompt: bool) -> Filled | Failed:
    try:
        texts, spans = render_jinja_template(
            conversations=[messages],
            chat_template=template,
            return_assistant_tokens_mask=not prompt,
            add_generation_prompt=prompt,
            **special,
        )
    except jinja2.TemplateSyntaxError as error:
        return Failed(f"is no valid Jinja (line {error.lineno}): {_one_line(error)}", always=True)
    except MemoryError:
        return Failed("needs far more memory than a conversation does", always=True)
    except jinja2.TemplateError as error:
        return Failed(_one_line(error), always=False)
    except Exception as error:  # whatever the template's arithmetic, calls and recursion come to
        return Failed(f"{type(error).__name__}: {_one_line(error)}", always=False)
    most = FREE_CHARACTERS + len(template) * (1 + len(messages))
    most += TIMES_CONTENT * sum(len(value) for message in messages for value in message.values())
    if len(texts[0]) > most:
        return Failed(f"writes {len(texts[0]):,} characters where a conversation needs at most {most:,}", always=True)
    return Filled(texts[0], [] if prompt else spans[0]) if texts[0] else Failed("it writes no text", always=False)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _told(answer: Any) -> Filled | Failed:
    if isinstance(answer, Died):
        return _died(answer)
    if "why" in answer:
        return Failed(**answer)
    return Filled(answer["text"], [(start, end) for start, end in answer["spans"]])


def _died(end: Died) -> Failed:
    if end.too_slow:
        return Failed(f"takes more than {SECONDS:g} s for a conversation", always=True)
    return Failed(f"ended the process that fills it in ({end.how}): too deeply nested, or too large", always=True)


def _answer(common: Any, job: Any) -> tuple[Any, bool]:
    found = _fill_one(*common, *job)
    return vars(found), not (isinstance(found, Failed) and found.always)


if __name__ == "__main__":
    serve(_answer)
