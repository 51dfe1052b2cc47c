"""Rollouts on disk, as tinychat.rl.rollout writes them: what a policy replied at a step, and the numbers of each token.

    RUN/rollouts/step-000016.jsonl       the replies that a step learnt from
    RUN/rollouts/held-out-000016.jsonl   replies to held-out prompts, the same prompts at every evaluation; 0: the start

Imports no torch and no transformers: a run is looked at while others train.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinychat.errors import UserError
from tinychat.runs import folders, parents
from tinychat.runtime.run_files import NUMBER, Unreadable, read_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FOLDER = "rollouts"
MOST_BYTES = 1 << 31  # of a file: 2,048 replies of 4,096 tokens have 1 GB
Numbers = dict[str, list[float]]

# What a token may be looked at by: how it comes from what a file has, and what it means. NaN is not coloured.
COLUMNS: dict[str, tuple[tuple[str, ...], Callable[..., float], str]] = {
    "logprob": (("logprobs",), lambda x: x, "log-probability under the policy (nats)"),
    "kl": (("logprobs", "ref_logprobs"), lambda own, ref: own - ref, "log-probability gained since the start (nats)"),
    "advantage": (("advantages",), lambda x: x, "advantage, as the update took it"),
    "value": (("values",), lambda x: x, "what the value function expected before the token"),
    "entropy": (("entropy",), lambda x: x, "entropy of the policy before the token (nats)"),
    "reward": (("rewards",), lambda x: x, "reward of the token: the KL penalty, and at the end the score"),
}
ORDERS = ("reward", "advantage", "kl", "length")  # what replies may be sorted by; the parts of the reward too


@dataclass(frozen=True)
class Reply:
    """One reply, and what was measured of it."""

    number: int  # in its file, from 1
    place: str  # of its prompt in the data
    prompt: tuple[int, ...]
    response: tuple[int, ...]
    ended: bool  # by an end token
    score: float  # the reward with penalties for its length; NaN where a part of it is missing
    kind: str  # of its prompt, where prompts have kinds
    parts: dict[str, float]  # of the reward, each before its weight
    numbers: Numbers  # column of COLUMNS -> a number for each token of the response

    def of(self, order: str) -> float:
        """What it is sorted by: the score, the mean advantage of its tokens, the sum of their KL (nats), how many they
        are, or a part of the reward. NaN where that was not measured."""
        if order == "reward":
            return self.score
        if order == "length":
            return len(self.response)
        if order in self.parts:
            return self.parts[order]
        numbers = self.numbers.get(order)
        if numbers is None:
            return math.nan
        return sum(numbers) if order == "kl" else sum(numbers) / max(1, len(numbers))


@dataclass(frozen=True)
class Rollout:
    """The replies of a step."""

    step: int
    held_out: bool
    path: Path
    replies: list[Reply]

    @cached_property
    def columns(self) -> list[str]:
        """Those of COLUMNS that the stage has."""
        return [name for name in COLUMNS if any(name in reply.numbers for reply in self.replies)]

    @cached_property
    def orders(self) -> list[str]:
        parts = dict.fromkeys(name for reply in self.replies for name in reply.parts)
        return [name for name in ORDERS if name not in COLUMNS or name in {"reward", *self.columns}] + list(parts)

    def sorted_by(self, order: str) -> list[Reply]:
        """The highest first, those without a number last; equal ones as they stand in the file."""
        return sorted(self.replies, key=lambda reply: -x if not math.isnan(x := reply.of(order)) else math.inf)

    def distinct(self, order: str) -> list[tuple[Reply, int]]:
        """The same without repetition: replies to a prompt that are equal, as in a group of GRPO, and equally good
        stand once, with how often they came."""
        found: dict[tuple[Any, ...], list[Reply]] = {}
        for reply in self.sorted_by(order):
            found.setdefault((reply.prompt, reply.response, str(reply.score)), []).append(reply)
        return [(same[0], len(same)) for same in found.values()]

    def mean(self, order: str) -> float:
        """Over the replies that have it; NaN where none has."""
        known = [x for reply in self.replies if not math.isnan(x := reply.of(order))]
        return sum(known) / len(known) if known else math.nan


def path_of(run_dir: Path, step: int, held_out: bool = False) -> Path:
    return run_dir / FOLDER / f"{'held-out' if held_out else 'step'}-{step:06d}.jsonl"


def steps_of(run_dir: Path, held_out: bool = False) -> list[int]:
    """The steps that have a file, in order."""
    pattern = re.compile(rf"{'held-out' if held_out else 'step'}-(\d{{6,}})\.jsonl")
    try:
        names = os.listdir(run_dir / FOLDER)
    except OSError:
        return []
    return sorted(int(match.group(1)) for name in names if (match := pattern.fullmatch(name)))


def read(run_dir: Path, step: int, held_out: bool = False) -> Rollout:
    """Raises Unreadable, with the line, for a file that is missing, damaged or none of tinychat's."""
    path = path_of(run_dir, step, held_out)
    text = read_text(path, MOST_BYTES)
    if text is None:
        raise Unreadable(f"{path}: is missing")
    lines = text.splitlines()
    if not lines or not isinstance(_parsed(path, 1, lines[0]), dict):
        raise Unreadable(f"{path}: is empty or no rollout")
    replies = [_reply(path, number, _parsed(path, number + 1, line)) for number, line in enumerate(lines[1:], 1)]
    if not replies:
        raise Unreadable(f"{path}: holds no replies, so it is cut short")
    return Rollout(step, held_out, path, replies)


def numbered(number: int, run_dir: Path, first: Rollout) -> tuple[int, ...]:
    """The prompt with that number among the held-out ones, without these among those of a step. Raises
    UserError."""
    held_out = steps_of(run_dir, held_out=True)
    rollout = read(run_dir, held_out[0], True) if held_out else first
    if not 1 <= number <= len(rollout.replies):
        raise UserError(f"--prompt {number}: {rollout.path.name} has prompts 1 to {len(rollout.replies)}")
    return rollout.replies[number - 1].prompt


def _parsed(path: Path, line: int, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{path}, line {line}: cut short or no JSON ({error})") from None


def _reply(path: Path, number: int, found: Any) -> Reply:
    def bad(what: str) -> Unreadable:
        return Unreadable(f"{path}, line {number + 1}: {what}; no reply as tinychat writes it")

    def numbers(name: str, kinds: tuple[type, ...] = (*NUMBER, type(None))) -> list[Any]:
        values = found[name]
        if not isinstance(values, list) or not all(type(value) in kinds for value in values):
            raise bad(f"{name} is no list of numbers")
        return values

    if not isinstance(found, dict) or not {"prompt", "response", "score"} <= found.keys():
        raise bad("prompt, response or score is missing")
    prompt, response = numbers("prompt", (int,)), numbers("response", (int,))
    score, parts = found["score"], found.get("parts", {})
    if type(score) not in (*NUMBER, type(None)) or not isinstance(parts, dict):
        raise bad("score or parts is no number")
    columns: Numbers = {}
    for name, (needs, of, _) in COLUMNS.items():
        if all(need in found for need in needs):
            lists = [numbers(need) for need in needs]
            if any(len(values) != len(response) for values in lists):
                raise bad(f"{needs[-1]} has another length than the response")
            columns[name] = [of(*map(_float, values)) for values in zip(*lists, strict=True)]
    return Reply(
        number=number,
        place=str(found.get("place", "")),
        prompt=tuple(prompt),
        response=tuple(response),
        ended=found.get("ended") is True,
        score=_float(score),
        kind=str(found.get("kind", "")),
        parts={str(name): _float(value) for name, value in parts.items() if type(value) in (*NUMBER, type(None))},
        numbers=columns,
    )


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)


def ranges(steps: Sequence[int]) -> str:
    """1 to 16; 0, 10 and 16"""
    found: list[list[int]] = []
    for step in steps:
        if found and step == found[-1][-1] + 1:
            found[-1] = [found[-1][0], step]
        else:
            found.append([step])
    told = [" to ".join(map(str, part)) for part in found]
    return told[0] if len(told) == 1 else f"{', '.join(told[:-1])} and {told[-1]}" if told else "none"


class Words:
    """Token ids as text, by the tokenizer of a run; without one each id as ⟨512⟩."""

    def __init__(self, tokenizer: Tokenizer | None):
        self.tokenizer = tokenizer

    def text(self, ids: Sequence[int]) -> str:
        """Special tokens are part of it."""
        if self.tokenizer is None:
            return "".join(self.pieces(ids))
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """What each token adds to the text. A character of several tokens stands with the last of them, "" with the
        others."""
        if self.tokenizer is None:
            return [f"⟨{token}⟩" for token in ids]
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=False)
        try:
            found = [stream.step(self.tokenizer, token) or "" for token in ids]
        except Exception:  # tokenizers raises no other class where a text is not that of its beginning with more
            return [self.text([token]) for token in ids]
        if found:  # a reply may end within a character
            found[-1] += self.text(ids)[len("".join(found)) :]
        return found

    def prompts(self, prompts: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], str]:
        """The text of each, without what a chat template puts before and after all of them, where they are several."""
        texts = {prompt: self.text(prompt) for prompt in dict.fromkeys(prompts)}
        if len(texts) < 2:
            return texts
        before = _common_start(list(texts.values()))
        before = before[: 1 + max(before.rfind(end) for end in "\n:>]")]  # to the end of a line or a mark
        rest = [text[len(before) :] for text in texts.values()]
        after = _common_start([text[::-1] for text in rest])[::-1]
        begins = [place for begin in "\n<[" if (place := after.find(begin)) >= 0]
        after = after[min(begins) :] if begins else ""
        return {prompt: text[len(before) : len(text) - len(after)].strip() or text for prompt, text in texts.items()}


def _common_start(texts: Sequence[str]) -> str:
    """What all of them begin with: as the first and the last in their order do."""
    first, last = min(texts), max(texts)
    size = next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:size]


def words_of(run_dir: Path) -> Words:
    """By the tokenizer of the newest checkpoint of a run that has one, else of the policy that it began from. Raises
    UserError for one that was damaged."""
    begun = parents.told(run_dir).get("init_from")
    for folder in _tokenizers(run_dir, begun):
        file = folder / "tokenizer.json"
        if not file.is_file():
            continue
        folders.verify_contents(folder, lambda name: name == "tokenizer.json")
        from tokenizers import Tokenizer  # not by way of transformers, which takes seconds to import

        try:
            return Words(Tokenizer.from_file(str(file)))
        except Exception as error:  # tokenizers raises no other class
            raise UserError(f"{file}: cannot be read as a tokenizer ({' '.join(str(error).split())[:160]})") from None
    return Words(None)


def _tokenizers(run_dir: Path, begun: str | None) -> Iterator[Path]:
    yield from reversed(folders.list_checkpoints(run_dir))
    if begun is not None:
        yield Path(begun)
