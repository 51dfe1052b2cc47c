"""Answers that are one of few: yes, no or unknown, and the letters of choices. Each is read where it is said as the
answer, not wherever its word stands; a reply that says two of them is right for none.
"""

from __future__ import annotations

import re
import unicodedata

from tinychat.evaluation.final_answer import split_reply, stated

# English: a whole clause, after words that lead to it and before a short reason.
SAID = {
    "unknown": r"unknown|uncertain|unsure|undetermined|undecidable|maybe|perhaps|possibly"
    r"|not (?:necessarily|certain|sure|clear|known|determined|enough information)"
    r"|(?:it )?(?:cannot|can not|can't) (?:be )?(?:tell|told|know|known|say|said|determined?|decided?|inferred)"
    r"|(?:we|i|you|one) (?:do not|don't|cannot|can't|can not) (?:know|tell|say)"
    r"|impossible to (?:tell|say|know|determine)",
    "no": r"no|nope|false|incorrect|wrong|untrue|not (?:true|correct|right|yes)",
    "yes": r"yes|yeah|yep|true|correct|right|indeed|certainly|definitely|of course|not (?:false|wrong|incorrect)",
}
_LEADS = (
    r"(?:(?:so|thus|therefore|hence|then|well|and|but|finally|in short|the (?:final )?answer(?: is)?|my answer is"
    r"|answer|it is|it's|that is|that's|this is|the statement is|the claim is|it must be|i think|i would say|i say)"
    r"[\s:]+)*"
)
_TAIL = r"(?:\s+(?:it|that|this|he|she|they|there|we|i|you|because|since|as|for|sir|indeed|from)\b.*)?"
ENGLISH = re.compile(rf"{_LEADS}(?:{'|'.join(f'(?P<{name}>{words})' for name, words in SAID.items())}){_TAIL}")
# Chinese: the beginning of a clause, the longest words first: 不一定 is neither 不 nor 是.
CHINESE_SAID = {
    "unknown": "不一定 不确定 不能确定 不能判断 不能得知 不清楚 不知道 不好说 说不准 未必 未知 无法确定 无法判断 "
    "无法得知 无法知道 无从得知 也许 或许 可能 信息不足",
    "no": "不是的 不是 不对 不正确 不成立 不可能 不行 否 并非 并不是 没有 错误 错的 错 假的 假 不",
    "yes": "是的 是 对的 对 正确 没错 不错 成立 真的 真 当然",
}
_CHINESE_WORDS = {word: name for name, words in CHINESE_SAID.items() for word in words.split()}
CHINESE = re.compile(
    r"(?:所以|因此|那么|于是|综上|结论|最终|答案|判断|我认为|我觉得|应该|这|那|它|为|:|：|\s)*"
    rf"(?P<word>{'|'.join(sorted(_CHINESE_WORDS, key=len, reverse=True))})(?P<rest>.*)"
)
ALONE = frozenset("不 错 真 假 否".split())  # that begin many other words
ASKS = re.compile(r"是不是|是否|对不对|能不能|会不会")
GOES_ON = re.compile(r"[于比面着方了付待手称立]")  # 对于, 对比, ...: 对 is no answer there
CLAUSE_END = re.compile(r"[.,;:!。，、；！\n—]|\s-\s")
_WORD = r"\b(?:yes|no|true|false|maybe|unknown|uncertain)\b"
# Between two verdicts a clause ends.
BETWEEN = re.compile(
    rf"({_WORD})(?:\s*/\s*|\s+and\s+|\s+or\s+|\s+but\s+|\s+)(?={_WORD})"
    r"|(?<=[是对否定])(?:也|和|或者|或|又|还|与|/)(?=不?是|不?对|否|不一定)"
)
WRAPPED = re.compile(r"\\(?:text|mathrm|mathbf|textbf|boxed)\s*\{([^{}]*)\}")
MARKS = "\"'“”‘’「」*_`()（）[]{}<>$\\ "

MOST_LETTERS = "ABCDEFGHIJ"
# Options' letters: not the first of a word, nor the article of "A dog" or the I of "I think".
LETTERS = re.compile(
    rf"(?<![A-Za-z0-9'])(?![AI]\s+(?!because|since|(?:is|as|and|or)\b)[a-z])[{MOST_LETTERS}]{{1,10}}(?![A-Za-z0-9'])"
)
OPENS = re.compile(rf"[\s*_>-]*[(（]?([{MOST_LETTERS}])[)）.:：、．]")


def verdict(text: str) -> str | None:
    """yes, no or unknown, as a text says it; None where it says none of them, or two."""
    found: set[str] = set()
    said, marked = stated(text)
    # Without a mark every line counts: a short answer stands before its reason, and a chain of thought before it.
    parts = said if marked else _statements(split_reply(text, by_line=False).answer)
    for part in parts:
        plain = unicodedata.normalize("NFKC", WRAPPED.sub(r"\1", part)).casefold().replace("’", "'")
        for clause in CLAUSE_END.split(BETWEEN.sub(r"\1.", plain)):
            if name := _clause(clause.strip(MARKS)):
                found.add(name)
    return found.pop() if len(found) == 1 else None


def same_verdict(reply: str, expected: str) -> bool:
    """Whether both say yes, both no, or both that it cannot be known."""
    wanted = verdict(expected)
    return wanted is not None and verdict(reply) == wanted


def _statements(text: str) -> list[str]:
    """Sentences but for questions, which state nothing."""
    sentences = re.split(r"(?<=[.!?。！？\n])", text)
    return [part for part in sentences if not part.rstrip(MARKS + "\n").endswith(("?", "？"))]


def _clause(clause: str) -> str | None:
    if match := ENGLISH.fullmatch(clause):
        return match.lastgroup
    match = CHINESE.fullmatch(clause)
    if match is None or ASKS.search(clause):
        return None
    word, rest = match["word"], match["rest"]
    if (word in ALONE and rest) or (word == "对" and GOES_ON.match(rest)):
        return None
    return _CHINESE_WORDS[word]


def letters(text: str) -> frozenset[str]:
    """The letters of the options that a text chooses; none where it repeats the options, one a line."""
    said, marked = stated(text)
    lines = [line for line in split_reply(text, by_line=False).answer.split("\n") if line.strip()]
    if not marked:
        opened = {match[1] for line in lines if (match := OPENS.match(line))}
        if len(opened) > 1:
            return frozenset()
        said = next(([line] for line in reversed(lines) if _letters(line)), [])
        if not said or any(part.rstrip(MARKS).endswith(("?", "？")) for part in said):
            return frozenset()
    chosen = {_letters(part) for part in said}
    return chosen.pop() if len(chosen) == 1 else frozenset()


def _letters(statement: str) -> frozenset[str]:
    plain = unicodedata.normalize("NFKC", WRAPPED.sub(r"\1", statement)).strip()
    alone = plain.strip(MARKS + ".,:;。")
    if len(alone) == 1 and alone.upper() in MOST_LETTERS:
        return frozenset(alone.upper())
    named = [match[0] for match in LETTERS.finditer(plain)]
    return frozenset("".join(one for one in named if len(set(one)) == len(one)))


def same_choice(reply: str, expected: str) -> bool:
    """Whether the reply chooses the same letters, A to J, in any order."""
    wanted = letters(expected)
    return bool(wanted) and letters(reply) == wanted
