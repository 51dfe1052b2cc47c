"""Chat templates filled in: those of this package here, any other in a process of its own.

A template that came with a tokenizer is a program somebody else wrote. Jinja's sandbox keeps it from the machine, but
not from repeating a text for ever, so the process is bounded: the kernel ends it after SECONDS of processor time for
one conversation, and refuses it more than MEMORY beyond what it began with.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from tinychat.runtime import process
from tinychat.text import TEMPLATES

SECONDS = 5.0  # of processor time, for one conversation
MEMORY = 1 << 29  # bytes; and BYTES_PER_CHARACTER more for each one of the request
BYTES_PER_CHARACTER = 64
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
    found = _Process.current().fill(template, special, jobs)
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


class _Process:
    """The process at the other end of two pipes: a line of JSON with the jobs goes in, a line for each comes out."""

    _now: _Process | None = None
    _lock = threading.Lock()

    def __init__(self) -> None:
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self._owner = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    @classmethod
    def current(cls) -> _Process:
        """The one of this process; a new one where it has ended, or belongs to the process this was forked from."""
        now = cls._now
        if now is None or now._owner != os.getpid() or now._process.poll() is not None:
            cls._now = now = cls()
            atexit.register(now.end)
        return now

    def fill(self, template: str, special: dict[str, Any], jobs: list[Job]) -> list[Filled | Failed]:
        request = json.dumps([template, special, jobs, SECONDS, MEMORY], default=str).encode() + b"\n"
        with self._lock:
            try:
                return list(self._answers(request, len(jobs)))
            except BaseException:  # such as Ctrl-C: what it still has to say is nobody's answer any more
                self.end()
                raise

    def _answers(self, request: bytes, count: int) -> Iterator[Filled | Failed]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(request)
            self._process.stdin.flush()
        for _ in range(count):
            line = self._process.stdout.readline()
            if not line.endswith(b"\n"):
                yield self._died()
                return
            answer = json.loads(line)
            if "why" in answer:
                yield Failed(**answer)
                if answer["always"]:
                    return
            else:
                yield Filled(answer["text"], [(start, end) for start, end in answer["spans"]])

    def _died(self) -> Failed:
        status = self._process.wait()
        if status == -signal.SIGPROF:
            return Failed(f"takes more than {SECONDS:g} s for a conversation", always=True)
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        return Failed(f"ended the process that fills it in ({how}): too deeply nested, or too large", always=True)

    def end(self) -> None:
        if self._owner == os.getpid() and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """What the process does until nobody asks any more."""
    begins_with = _memory()
    for request in requests:
        template, special, jobs, seconds, memory = json.loads(request)
        _bound_memory(begins_with + memory + BYTES_PER_CHARACTER * len(request))
        for messages, prompt in jobs:
            signal.setitimer(signal.ITIMER_PROF, seconds)  # nobody handles SIGPROF: the kernel ends the process
            answer = _fill_one(template, special, messages, prompt)
            signal.setitimer(signal.ITIMER_PROF, 0)
            answers.write(json.dumps(vars(answer)).encode() + b"\n")
            if isinstance(answer, Failed) and answer.always:
                break
        answers.flush()


def _memory() -> int:
    """Bytes of this process's address space; 0 where there is no Linux to say so."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[0]) * resource.getpagesize() if pages.exists() else 0


def _bound_memory(most: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    if sys.platform == "linux":  # others do not keep to it
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))


if __name__ == "__main__":
    process.end_with_parent(signal.SIGKILL)
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the parent's to act on, which may want an answer yet
        signal.signal(stop, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with contextlib.suppress(BrokenPipeError):
        _serve(sys.stdin.buffer, sys.stdout.buffer)
