"""A reply's thought and its answer, told apart, and what it states as its answer.

Marks say where an answer is: what follows `</think>`, what stands in `<answer>...</answer>` (the form of DeepSeek-R1),
after `####` (GSM8K's) or in LaTeX's `\\boxed{...}`. Without any the last line is the answer, and what is before it the
thought.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

THINK, THOUGHT = "<think>", "</think>"
HASHES = "####"
TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
# "The answer is 7", "Answer: 7", and the same in Chinese; up to the end of its sentence.
CUE = re.compile(
    r"(?:\banswer\b\s*(?:is|was|=|:)(?:\s*:)?|答案\s*(?:应该是|应为|是|为|:)|(?<!回)答\s*:)", re.IGNORECASE
)
SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|(?<=[。！？；\n])|\n")


class Parts(NamedTuple):
    """The two parts of a reply, without the marks and blanks around them."""

    thought: str  # "": none
    answer: str  # "": it never came to one


def split_reply(reply: str, by_line: bool = True) -> Parts:
    """The thought and the answer of a reply. A thought that was begun and not ended leaves no answer. by_line: whether
    the last line alone is the answer of a reply without marks; else all of it is."""
    before, mark, rest = reply.rpartition(THOUGHT)
    if not mark and THINK in reply:
        return Parts(reply.replace(THINK, "").strip(), "")
    thought = [before.replace(THINK, "").strip()]
    if found := list(TAGGED.finditer(rest)):
        thought.append(rest[: found[0].start()].strip())
        rest = found[-1][1]
    elif HASHES in rest:
        said, _, rest = rest.rpartition(HASHES)
        thought.append(said.strip())
    elif by_line and not mark:
        said, _, rest = rest.strip().rpartition("\n")
        thought.append(said.strip())
    return Parts("\n".join(filter(None, thought)), rest.strip())


def stated(reply: str) -> tuple[list[str], bool]:
    """What the reply states as its answer, each time it does: one that hedges states several things. And whether it
    says that this is its answer (by a mark, or "the answer is"); else it is the last line. Questions state nothing, as
    where a reply repeats what it was asked. [] where there is no answer."""
    before, mark, rest = reply.rpartition(THOUGHT)
    if not mark and THINK in before + rest:
        return [], False
    found = [match[1] for match in TAGGED.finditer(rest)]
    found += [part.strip().partition("\n")[0] for part in TAGGED.sub("", rest).split(HASHES)[1:]]
    found += [part for part in boxed(TAGGED.sub("", rest.partition(HASHES)[0])) if part.strip()]
    if not found:
        sentences = [part for part in _sentences(rest) if not _asks(part)]
        found = [part[list(CUE.finditer(_plain(part)))[-1].end() :] for part in sentences if CUE.search(_plain(part))]
        if not found:
            lines = [line for line in "\n".join(sentences).split("\n") if line.strip()]
            last = [part for part in _sentences(rest.strip().rpartition("\n")[2]) if not _asks(part)]
            return ([" ".join(last)] if last else lines[-1:]), False
    return [part.strip() for part in found], True


def boxed(text: str) -> Iterator[str]:
    """What stands in each outermost \\boxed{...}; of one that never closes the mark
    alone, which is no answer."""
    at = 0
    while found := BOXED.search(text, at):
        depth, at = 1, found.end()
        while at < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        yield found[0] if depth else text[found.end() : at - 1]


def _plain(text: str) -> str:
    """With one kind of colon, the same length."""
    return text.replace("：", ":")


def _sentences(text: str) -> list[str]:
    return [part.strip() for part in SENTENCE_END.split(text) if part.strip()]


def _asks(sentence: str) -> bool:
    return sentence.rstrip("\"'”’»)）*_ ").endswith(("?", "？"))
