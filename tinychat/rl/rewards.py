"""What a reply is worth: a weighted sum of parts, each of one of KINDS: a reward model, an exact judge of the data's,
the prompt's own answer, or code of the user's.

Every rank scores its share of the replies, then all have all scores. Another kind is a class here, in KINDS, and a YAML
file in conf/reward/. Nothing at the top loads torch: the parent process asks here what a kind needs.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinychat.config.plugins import VERIFIERS, reward_kind, reward_models
from tinychat.config.schema import RewardConfig, RewardPart
from tinychat.config.stages import ScoreRange
from tinychat.errors import UserError
from tinychat.evaluation.answers import REFERENCES, credit, matches, pattern_problem
from tinychat.evaluation.refusals import refuses
from tinychat.rl.reward_kind import Kind, Options, Place
from tinychat.rl.weighing import Weighing
from tinychat.runtime import user_code
from tinychat.runtime.user_code import UserCodeError

if TYPE_CHECKING:
    import torch

    from tinychat.data.preferences.prompts import PromptRow
    from tinychat.models.one_base import OneBase
    from tinychat.models.scorer import Scorer
    from tinychat.runtime.world import World

SPREAD = "spread"  # in notes: standard deviation of an ensemble's scores
log = logging.getLogger("tinychat")


class ModelReward(Kind):
    takes_model = reads_tokens = True

    def __init__(self, part: RewardPart, place: Place) -> None:
        """Raises UserError for a reward model of another tokenizer or chat template."""
        super().__init__(part, place)
        self.scorers = [self._opened(path, place) for path in place.checkpoints]

    def _opened(self, path: str, place: Place) -> Scorer:
        from tinychat.models.scorer import Scorer

        found = Scorer(path, place.world.device, place.dtype, place.batch_size, place.base)
        found.check_tokenizer(place.tokenizer, f"{place.key}.path={path}")
        found.check_template(place.tokenizer, "the policy", place.any_template)
        if found.score_range == ScoreRange.raw.value:
            log.warning(
                "%s: the scores of %s are its raw output, with the mean and spread that training left it: the weight "
                "of the KL penalty means another thing with every such model. One of stage.score_range=standard has "
                "mean 0 and standard deviation 1",
                *(place.key, path),
            )
        return found

    def check_length(self, length: int) -> None:
        most = min(scorer.context_length for scorer in self.scorers)
        if most < length:
            raise UserError(
                f"{self.key}: this reward model reads {most} tokens at most, prompt and reply may have {length}; set "
                f"stage.context_length={most}"
            )

    def score(self, rows: Sequence[PromptRow], replies: list[str], sequences: list[list[int]]) -> list[float]:
        return self.scorers[0].score_ids(sequences)


@dataclass(frozen=True)
class EnsembleOptions(Options):
    paths: tuple[str, ...] = ()  # folders of the members
    combine: str = "pessimistic"  # mean | min | pessimistic (mean minus `deviations` standard deviations)
    deviations: float = 1.0


COMBINED = ("mean", "min", "pessimistic")


class EnsembleReward(ModelReward):
    """Several reward models of one score_range. Where they disagree, as on replies unlike all that they learnt from,
    `min` and `pessimistic` score lower: a policy gains little where it deceives one of them (Coste et al. 2024)."""

    takes = EnsembleOptions

    @classmethod
    def models(cls, part: RewardPart) -> dict[str, str]:
        return {str(place): path for place, path in enumerate(part.options.get("paths", ()))}

    @classmethod
    def problems(cls, key: str, part: RewardPart) -> Iterator[str]:
        own = {**vars(EnsembleOptions()), **part.options}
        paths, combine, deviations = own["paths"], own["combine"], own["deviations"]
        if not isinstance(paths, Sequence) or isinstance(paths, str) or len(paths) < 2:
            yield f"{key}.options.paths={paths}: at least two folders of reward models; reward=model takes one"
            return
        yield from super().problems(key, part)
        if combine not in COMBINED:
            yield f"{key}.options.combine={combine}: one of {', '.join(COMBINED)}"
        if isinstance(deviations, (int, float)) and deviations < 0:
            yield f"{key}.options.deviations={deviations}: how many standard deviations are taken off, 0 or more"
        if part.path is not None:
            yield f"{key}.path={part.path}: an ensemble has its folders in {key}.options.paths; set path to null"

    def __init__(self, part: RewardPart, place: Place) -> None:
        """Raises UserError as ModelReward, and for members whose scores are on no common scale."""
        super().__init__(part, place)
        ranges = {scorer.path: scorer.score_range for scorer in self.scorers}
        if len(set(ranges.values())) > 1 or ScoreRange.raw.value in ranges.values():
            said = ", ".join(f"{path} {kind}" for path, kind in ranges.items())
            raise UserError(
                f"{place.key}.options.paths: scores are combined on one scale (standard: mean 0 and standard deviation "
                f"1 on training replies; or unit), and these are {said}; train all with the same stage.score_range"
            )

    def score(self, rows: Sequence[PromptRow], replies: list[str], sequences: list[list[int]]) -> list[float]:
        import torch

        each = torch.tensor([scorer.score_ids(sequences) for scorer in self.scorers])
        mean, std = each.mean(0), each.std(0, unbiased=False)
        self.notes = {SPREAD: std.tolist()}
        combined = {"mean": mean, "min": each.amin(0), "pessimistic": mean - self._options.deviations * std}
        return combined[self._options.combine].tolist()


class TextReward(Kind):
    """A reward model or judge of any kind, which reads prompt and reply as text: in its own tokens and template,
    whatever the policy's. A reply that was cut reads there as one that ended."""

    takes_model = True

    def __init__(self, part: RewardPart, place: Place) -> None:
        """Raises UserError for what scores no replies."""
        from tinychat.models.scorer import open_scorer

        super().__init__(part, place)
        (path,) = place.checkpoints
        self._scorer = open_scorer(path, place.world.device, place.dtype, place.batch_size)

    def score(self, rows: Sequence[PromptRow], replies: list[str], sequences: list[list[int]]) -> list[float | None]:
        """None where its template cannot write a reply, or its context has no room for it."""
        from tinychat.text.chat_render import Refused

        texts = self._scorer.encode([row.messages for row in rows], replies)
        fits = [not isinstance(text, Refused) and len(text) <= self._scorer.context_length for text in texts]
        scores = iter(self._scorer.score_ids(list(itertools.compress(texts, fits))))
        return [next(scores) if fit else None for fit in fits]


class OracleReward(Kind):
    needs_oracle = True

    def check_rows(self, rows: Sequence[PromptRow]) -> None:
        if bad := next((row for row in rows if row.request is None), None):
            raise UserError(f"{self.key}: the oracle knows tinyworld's requests alone, not {bad.place}")

    def score(self, rows: Sequence[PromptRow], replies: list[str], sequences: list[list[int]]) -> list[float]:
        return gold_rewards(rows, replies) or []


@dataclass(frozen=True)
class VerifierOptions(Options):
    right: float = 1.0  # score of a reply that is right
    wrong: float = 0.0  # and of one that is not
    partial: bool = False  # whether an answer that is right in part, as a list may be, scores between the two
    answer: str | None = None  # kind of answer of all prompts, whatever their own; None: their own


class VerifierReward(Kind):
    needs_answers = True
    takes = VerifierOptions

    @classmethod
    def problems(cls, key: str, part: RewardPart) -> Iterator[str]:
        yield from super().problems(key, part)
        if isinstance(kind := part.options.get("answer"), str):
            try:
                VERIFIERS.named(kind, f"{key}.options.answer")
            except UserError as error:
                yield str(error)

    def check_rows(self, rows: Sequence[PromptRow]) -> None:
        from tinychat.data.preferences.prompts import check_answers

        check_answers(rows, self.key, self._options.answer)
        for row in rows:
            kind = self._options.answer or row.answer
            what, serves = REFERENCES.get(kind, ("", lambda _text: True))
            if not serves(row.reference):
                raise UserError(
                    f"{self.key}: {row.place} has the reference {row.reference[-80:]!r}, which is not {what}: what the "
                    f"answer {kind} is checked against; mend the row, or give it another kind of answer"
                )

    def score(self, rows: Sequence[PromptRow], replies: list[str], sequences: list[list[int]]) -> list[float]:
        own = self._options
        found = []
        for row, reply in zip(rows, replies, strict=True):
            share = credit(own.answer or row.answer, reply, row.reference)
            found.append(own.wrong + (own.right - own.wrong) * (share if own.partial else float(share == 1)))
        return found


@dataclass(frozen=True)
class FormatOptions(Options):
    tags: tuple[str, ...] = ("think", "answer")  # each once, opened and closed, in this order, and filled
    right: float = 1.0
    wrong: float = 0.0
    partial: bool = False  # whether each tag that is in its place counts, and not all together


class FormatReward(Kind):
    """Whether a reply has its tags: <think>...</think><answer>...</answer>, with nothing but blanks outside."""

    takes = FormatOptions

    def score(self, rows: Sequence[PromptRow], replies: list[str], sequences: list[list[int]]) -> list[float]:
        own = self._options
        shares = [tags_in_place(reply, own.tags) for reply in replies]
        return [own.wrong + (own.right - own.wrong) * (share if own.partial else float(share == 1)) for share in shares]


def tags_in_place(reply: str, tags: Sequence[str]) -> float:
    """The share of tags that stand once each, opened and closed around something, after those before them; 1 only where
    nothing but blanks is outside of them."""
    at, good, outside = 0, 0, []
    for tag in tags:
        opened, closed = f"<{tag}>", f"</{tag}>"
        start, end = reply.find(opened, at), reply.find(closed, at)
        once = reply.count(opened) == reply.count(closed) == 1
        if once and at <= start < end and reply[start + len(opened) : end].strip():
            outside.append(reply[at:start])
            at, good = end + len(closed), good + 1
    whole = good == len(tags) and not "".join([*outside, reply[at:]]).strip()
    return 1.0 if whole else good / (len(tags) + 1)


@dataclass(frozen=True)
class RegexOptions(Options):
    pattern: str = ""  # that the answer has to hold
    right: float = 1.0
    wrong: float = 0.0


class RegexReward(Kind):
    """Whether a pattern is found in the answer, whatever was asked."""

    takes = RegexOptions

    @classmethod
    def problems(cls, key: str, part: RewardPart) -> Iterator[str]:
        yield from super().problems(key, part)
        pattern = part.options.get("pattern")
        if not pattern or not isinstance(pattern, str):
            yield f"{key}.options.pattern={pattern}: a regular expression that right answers hold"
        elif wrong := pattern_problem(pattern):
            yield f"{key}.options.pattern={pattern}: no regular expression: {wrong}"

    def score(self, rows: Sequence[PromptRow], replies: list[str], sequences: list[list[int]]) -> list[float]:
        own = self._options
        return [own.right if matches(reply, own.pattern) else own.wrong for reply in replies]


@dataclass(frozen=True)
class RefusalOptions(Options):
    refused: float = -1.0
    answered: float = 0.0


class RefusalReward(Kind):
    """Whether a reply refuses what was asked, by the rules of tinychat.evaluation.refusals."""

    takes = RefusalOptions

    def score(self, rows: Sequence[PromptRow], replies: list[str], sequences: list[list[int]]) -> list[float]:
        own = self._options
        return [own.refused if refuses(reply) else own.answered for reply in replies]


class PythonReward(Kind):
    """A function score(prompts, replies) -> numbers of the user's, or a class whose objects are called so, made once
    with the part's options; prompts as text, the last user message."""

    takes_code = True

    @classmethod
    def problems(cls, key: str, part: RewardPart) -> Iterator[str]:
        try:
            _users(key, part)
        except UserError as error:
            yield str(error)

    def __init__(self, part: RewardPart, place: Place) -> None:
        super().__init__(part, place)
        self.key = f"{place.key}.path={part.path}"
        found = _users(place.key, part)
        if isinstance(found, type):
            try:
                with user_code.running("when it is made"):
                    self._score = found(**part.options)
            except UserCodeError as error:
                raise UserError(f"{self.key}: {error}") from error
        else:
            self._score = functools.partial(found, **part.options)

    def score(self, rows: Sequence[PromptRow], replies: list[str], sequences: list[list[int]]) -> list[float | None]:
        try:
            given = self._ask(rows, replies)
        except UserCodeError as error:
            raise UserError(self._raised(rows, replies, error)) from error
        if len(given) != len(replies):
            raise UserError(f"{self.key}: gave {len(given)} scores for {len(replies)} replies; one for each is needed")
        return [None if value is None else self._number(value) for value in given]

    def _ask(self, rows: Sequence[PromptRow], replies: list[str]) -> list[Any]:
        with user_code.running():
            return list(self._score([row.messages[-1]["content"] for row in rows], list(replies)))

    def _number(self, value: Any) -> float:
        try:
            return float(value)
        except Exception:  # a tensor of several numbers, an integer beyond floats, a word
            raise UserError(f"{self.key}: gave {repr(value)[:80]} where a number is needed") from None

    def _raised(self, rows: Sequence[PromptRow], replies: list[str], error: UserCodeError) -> str:
        """Which reply it fails on, found by giving it one at a time."""
        for row, reply in zip(rows, replies, strict=True):
            try:
                self._ask([row], [reply])
            except UserCodeError as alone:
                return f"{self.key}: {alone}, for the reply {reply[:80]!r} to {row.place}"
        return f"{self.key}: {error}, for {len(replies)} replies together, not for one alone"


def _users(key: str, part: RewardPart) -> Any:
    """The function or class of the user's. Raises UserError."""
    if not part.path or ":" not in part.path:
        raise UserError(f"{key}.path={part.path}: a function or class of yours, as FILE.py:NAME")
    try:
        found = user_code.named(part.path)
    except UserCodeError as error:
        raise UserError(f"{key}.path={part.path}: {error}") from error
    if isinstance(found, type) and not any("__call__" in vars(one) for one in found.__mro__):
        raise UserError(f"{key}.path={part.path}: the class has no method __call__(self, prompts, replies)")
    if not callable(found):
        raise UserError(f"{key}.path={part.path}: is a {type(found).__name__}, neither a function nor a class")
    return found


KINDS: dict[str, type[Kind]] = {
    "model": ModelReward,
    "ensemble": EnsembleReward,
    "text_model": TextReward,
    "oracle": OracleReward,
    "verifier": VerifierReward,
    "format": FormatReward,
    "regex": RegexReward,
    "refusal": RefusalReward,
    "python": PythonReward,
}


class Rewards:
    """The configured reward."""

    def __init__(
        self,
        config: RewardConfig,
        parents: dict[str, str | None],
        tokenizer: Any,
        world: World,
        dtype: torch.dtype,
        batch_size: int,
        base: OneBase | None = None,
    ):
        """base: of the policy, on which reward models that are adapters of it are computed.

        Raises UserError for a reward model of another tokenizer or chat template, and for code of the user's that
        cannot be found."""
        self.weighing = Weighing(config)
        self._world = world
        self._parts: dict[str, Kind] = {}
        for name, part in config.parts.items():
            kind = reward_kind(name, part)
            paths = tuple(str(parents[f"reward.{one}"]) for one in reward_models(config) if one.split(".")[0] == name)
            place = Place(f"reward.parts.{name}", paths, tokenizer, config.any_template, world, dtype, batch_size, base)
            self._parts[name] = kind(part, place)

    @property
    def scorers(self) -> dict[str, Scorer]:
        """The reward models, by their parts; of an ensemble NAME.0, NAME.1, ..."""
        parts = {name: part.scorers for name, part in self._parts.items() if isinstance(part, ModelReward)}
        return {
            f"{name}.{place}" if len(own) > 1 else name: scorer
            for name, own in parts.items()
            for place, scorer in enumerate(own)
        }

    def check_rows(self, rows: Sequence[PromptRow]) -> None:
        """Raise UserError where prompts lack what a part needs."""
        for name, part in self._parts.items():
            part.check_rows([row for row in rows if self.weighing.asks(name, row.kind)])

    def check_lengths(self, length: int) -> None:
        """Raise UserError where a reward model cannot read prompt and reply of `length` tokens."""
        for part in self._parts.values():
            part.check_length(length)

    def score(
        self, rows: Sequence[PromptRow], replies: list[str], sequences: list[list[int]], held_out: bool = False
    ) -> tuple[torch.Tensor, dict[str, list[float]]]:
        """The reward (N,) fp32 of N replies, N a multiple of the ranks, and the scores of each part before its weight:
        NaN where the part has none to give, which is then no part of the reward (known_rewards), and 0 for prompts of a
        kind that it does not score. A part's notes follow as "NAME WORD"; they are no part of the reward.
        held_out: with the multiplier that the job began with, so that rewards of several evaluations compare.

        Raises UserError for a function that fails, or whose scores are too few or not finite; it names the reply.
        """
        share = len(rows) // self._world.size
        own = slice(self._world.rank * share, (self._world.rank + 1) * share)
        found: dict[str, list[float]] = {}
        problem = ""
        scores: dict[str, list[float]] = {}
        try:
            for name, part in self._parts.items():
                scores[name] = self._asked(name, part, rows[own], replies[own], sequences[own])
            for name, part in self._parts.items():
                asked = self._asks(name, rows[own])
                scores |= {f"{name} {word}": _spread(values, asked) for word, values in part.notes.items()}
        except UserError as error:  # told to all ranks: none may be left waiting
            problem = str(error)
        every = self._world.gather_objects((problem, scores))
        if trouble := next((trouble for trouble, _ in every if trouble), ""):
            raise UserError(trouble)
        for name in dict.fromkeys(name for _, more in every for name in more):
            # A rank without a prompt of the part's kinds has no notes of it.
            found[name] = [value for _, more in every for value in more.get(name, [0.0] * share)]
        return self.weighing.total(found, held_out), found

    def _asks(self, name: str, rows: Sequence[PromptRow]) -> list[bool]:
        """Of each prompt, whether a part scores its replies."""
        return [self.weighing.asks(name, row.kind) for row in rows]

    def _asked(
        self, name: str, part: Kind, rows: Sequence[PromptRow], replies: list[str], sequences: list[list[int]]
    ) -> list[float]:
        """A part's scores, NaN where it has none, 0 for prompts that are not its own."""
        asked = self._asks(name, rows)
        own, theirs = list(itertools.compress(rows, asked)), list(itertools.compress(replies, asked))
        part.notes = {}
        given = part.score(own, theirs, list(itertools.compress(sequences, asked))) if own else []
        _check_finite(name, given, own, theirs)
        return _spread([math.nan if score is None else score for score in given], asked)


def _spread(values: Sequence[float], there: Sequence[bool]) -> list[float]:
    """The values in the places that are there, 0 in the others."""
    coming = iter(values)
    return [next(coming) if yes else 0.0 for yes in there]


def known_rewards(parts: Mapping[str, Sequence[float]]) -> list[bool]:
    """Of each reply, whether every part of the reward gave a score; parts: as Rewards.score says them."""
    return [not any(map(math.isnan, scores)) for scores in zip(*parts.values(), strict=True)]


def gold_rewards(rows: Sequence[PromptRow], replies: Sequence[str]) -> list[float] | None:
    """The exact reward of each reply, from -1 to 1; None where a prompt knows no judge."""
    if any(row.request is None for row in rows):
        return None
    return [row.request.judge(reply).reward for row, reply in zip(rows, replies, strict=True) if row.request]


def _check_finite(name: str, scores: Sequence[float | None], rows: Sequence[PromptRow], replies: list[str]) -> None:
    if len(scores) != len(replies):
        raise UserError(f"reward.parts.{name}: {len(scores)} scores for {len(replies)} replies")
    for score, row, reply in zip(scores, rows, replies, strict=True):
        if score is not None and not math.isfinite(score):
            raise UserError(f"reward.parts.{name}: the score is {score} for the reply {reply[:80]!r} to {row.place}")
