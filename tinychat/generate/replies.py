"""A checkpoint that replies to prompts, a reward model that scores the replies, and the lines made of both. torch is
imported where it is first needed, so that the program can refuse a wrong option before."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tinychat.chat.session import find
from tinychat.errors import UserError
from tinychat.generate.prompts import Prompt
from tinychat.models.generation.sampling import SamplingOptions
from tinychat.runtime.run_files import at_home

if TYPE_CHECKING:
    import argparse

    from tinychat.models.scorer import AnyScorer

CHUNKS = 8  # batches generated before their lines are written: enough to put prompts of like length together
DIGITS = 4  # of a score; those behind depend on which replies are scored together
UNSCORED = float("-inf")  # in place of null where replies are compared


@dataclass(frozen=True)
class Wanted:
    """The replies asked for. Raises UserError for a value that cannot work."""

    sampling: SamplingOptions
    samples: int = 1  # lines for each prompt
    draws: int = 1  # replies generated for each, of which the best are kept
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UserError(f"-n {self.samples}: must be at least 1")
        if self.draws < self.samples:
            raise UserError(f"--best-of {self.draws}: must be at least -n {self.samples}, the replies that are kept")
        if self.sampling.greedy and self.draws > 1:
            raise UserError("--greedy gives the same reply each time: leave out -n and --best-of, or --greedy")
        if "" in self.stop:
            raise UserError("--stop '': is in every text; give one that ends a reply")


@dataclass
class Totals:
    """What was done, for the line at the end and for who runs it as a part of something."""

    prompts: int = 0
    replies: int = 0
    tokens: int = 0
    cut: int = 0  # replies that did not end
    unscored: int = 0  # lines with a score of null
    scoring: float = 0.0  # seconds
    scores: list[float] = field(default_factory=list)  # of all replies that have one
    kept: list[float] = field(default_factory=list)  # of those of the lines

    def figures(self) -> dict[str, float]:
        """Means, by the names of tinychat.tracking.vocabulary."""
        means = {"eval/reward": self.scores, "eval/kept_reward": self.kept}
        return {name: sum(scores) / len(scores) for name, scores in means.items() if scores}


class Generator:
    """A checkpoint that replies."""

    def __init__(self, args: argparse.Namespace, wanted: Wanted):
        """Raises UserError for what cannot be opened, and for a checkpoint without the template that chats need."""
        path = find(args.checkpoint, at_home(args.outputs))
        import torch

        from tinychat.config.schema import Device, Precision
        from tinychat.engine.base import resolve_precision
        from tinychat.models.checkpoints import load_model
        from tinychat.models.custom import load_classes
        from tinychat.models.vocabulary import vocabulary
        from tinychat.runtime.world import join_world
        from tinychat.text.chat_template import end_ids
        from tinychat.text.tokenizer import load_saved_tokenizer

        if args.model_code:
            load_classes(args.model_code, f"--model-code {args.model_code}")
        self.wanted, self.raw, self.batch_size = wanted, args.raw, args.batch_size
        self.device = join_world(Device(args.device), timeout_minutes=1).device
        dtype = resolve_precision(Precision(args.precision), self.device)
        self.dtype = dtype
        adapter = at_home(args.adapter) if args.adapter else None
        brings = adapter is not None and (adapter / "tokenizer.json").is_file()
        self.tokenizer = load_saved_tokenizer(str(adapter) if brings else path)
        if not self.raw and not self.tokenizer.chat_template:
            raise UserError(
                f"{path}: its tokenizer brings no chat template, so it was not trained to reply; --raw continues texts"
            )
        self.model = load_model(path, adapter=str(adapter) if adapter else None).to(self.device)
        self.context = int(self.model.config.max_position_embeddings)
        self._arithmetic = None if dtype is torch.float32 else dtype
        self._ends = (self.tokenizer.eos_token_id,) if self.raw else end_ids(self.tokenizer)
        self._vocabulary = vocabulary(self.tokenizer)

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Tokens of each. Raises UserError, naming the row, for one that the template refuses and one that leaves no
        room for a reply."""
        from tinychat.models.generation.generate import prompt_ids
        from tinychat.text.chat_render import Refused
        from tinychat.text.chat_template import try_prompts

        found: list[list[int]] = []
        if self.raw:
            found = [prompt_ids(self.tokenizer, prompt.messages[0]["content"]) for prompt in prompts]
        else:
            encoded = try_prompts(self.tokenizer, [prompt.messages for prompt in prompts])
            for prompt, ids in zip(prompts, encoded, strict=True):
                if isinstance(ids, Refused):
                    raise UserError(f"{prompt.place}: {ids}; mend or remove this row")
                found.append(ids)
        for prompt, ids in zip(prompts, found, strict=True):
            if len(ids) >= self.context:
                raise UserError(
                    f"{prompt.place}: the prompt has {len(ids):,} tokens, which leaves no room for a reply in the "
                    f"model's context of {self.context:,}; shorten or remove this row"
                )
        most = self.wanted.sampling.max_new_tokens
        if tight := sum(len(ids) + most > self.context for ids in found):
            print(
                f"note: {tight:,} of {len(found):,} prompts leave less than --max-new-tokens {most} of the model's "
                f"context of {self.context:,} tokens",
                file=sys.stderr,
            )
        return found

    def replies(self, prompts: Sequence[list[int]], first: int) -> list[list[tuple[str, str, int]]]:
        """For each prompt its (text, finish, tokens), Wanted.draws of them. first: place of the first prompt among
        all."""
        from tinychat.models.generation.decode import DecodeOptions, Filter, decode, own_draws
        from tinychat.models.generation.generate import stopped_by

        sampling, group = self.wanted.sampling, self.wanted.draws
        options = DecodeOptions(
            max_new_tokens=sampling.max_new_tokens,
            end_ids=self._ends,
            temperature=0.0 if sampling.greedy else sampling.temperature,
            vocabulary=self._vocabulary,
            group=group,
            filter=Filter(
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                repetition_penalty=sampling.repetition_penalty,
                stopped=stopped_by(self.tokenizer, self.wanted.stop) if self.wanted.stop else None,
            ),
        )
        draws = own_draws(len(prompts), first, options, int(sampling.seed or 0))
        pad = int(self.tokenizer.pad_token_id or 0)
        done = decode(self.model, list(prompts), options, pad, self.batch_size, self._arithmetic, draws)
        texts = [
            self._text(prompts[index // group], response, ended)
            for index, (response, ended) in enumerate(zip(done.responses, done.ended, strict=True))
        ]
        return [texts[start : start + group] for start in range(0, len(texts), group)]

    def _text(self, prompt: list[int], response: list[int], ended: bool) -> tuple[str, str, int]:
        from tinychat.models.generation.generate import reply_after

        before = prompt if self.raw else []
        text, stopped = reply_after(self.tokenizer, before, response, self._ends, self.wanted.stop)
        finish = "stop" if ended or stopped else "length"
        return (text if self.raw else text.strip()), finish, len(response)


def load_scorer(args: argparse.Namespace, generator: Generator) -> AnyScorer:
    """The reward model of the command. It reads replies as text, in its own tokens and template, as tinychat.score
    does. Raises UserError."""
    from tinychat.models.scorer import open_scorer

    return open_scorer(find(args.reward, at_home(args.outputs)), generator.device, generator.dtype, args.batch_size)


def scores_of(scorer: AnyScorer, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float | None]:
    """The score of each reply; None for an empty one, and one that is too long for the reward model. Raises UserError,
    naming the row, for a prompt that the reward model's template refuses."""
    from tinychat.text.chat_render import Refused

    pairs = [(id(prompt), text) for prompt, text in zip(prompts, texts, strict=True)]
    # Each different reply to a prompt once: equal ones are equally good, whatever rounding does.
    first = {pair: index for index, pair in reversed(list(enumerate(pairs)))}
    asked = sorted(index for (_, text), index in first.items() if text.strip())
    encoded = {}
    found = scorer.encode([prompts[index].messages for index in asked], [texts[index] for index in asked])
    for index, ids in zip(asked, found, strict=True):
        if isinstance(ids, Refused):
            raise UserError(f"{prompts[index].place}: the reward model's {ids}")
        if len(ids) <= scorer.context_length:
            encoded[pairs[index]] = ids
    scores = scorer.score_ids(list(encoded.values()))
    known = {pair: round(score, DIGITS) for pair, score in zip(encoded, scores, strict=True)}
    return [known.get(pair) for pair in pairs]


def lines_of(
    prompts: Sequence[Prompt],
    replies: Sequence[Sequence[tuple[str, str, int]]],
    scorer: AnyScorer | None,
    wanted: Wanted,
) -> Iterator[dict[str, Any]]:
    """The lines of some prompts, in their order; of each prompt's replies the best, the first of equal ones before."""
    flat = [text for own in replies for text, _, _ in own]
    every = scores_of(scorer, [prompt for prompt in prompts for _ in range(wanted.draws)], flat) if scorer else []
    for index, (prompt, own) in enumerate(zip(prompts, replies, strict=True)):
        scores = every[index * wanted.draws : (index + 1) * wanted.draws]
        kept = list(range(wanted.draws))
        if wanted.draws > wanted.samples:
            worth = [UNSCORED if score is None else score for score in scores]
            kept.sort(key=lambda place: -worth[place])
        for place in kept[: wanted.samples]:
            text, finish, tokens = own[place]
            line = dict(prompt.head)
            if wanted.draws > 1:
                line["sample"] = place
            line |= {"response": text, "finish": finish, "tokens": tokens}
            if scores:
                line["score"] = scores[place]
            if wanted.draws > wanted.samples:
                line["scores"] = scores
            yield line


def answer(
    generator: Generator,
    scorer: AnyScorer | None,
    prompts: Sequence[Prompt],
    ids: Sequence[list[int]],
    first: int,
    write: Callable[[str], None],
) -> Totals:
    """Write the lines of prompts[first:], of which `ids` are the tokens, whole prompts at a time; say on a terminal how
    far it is."""
    wanted, totals = generator.wanted, Totals()
    size = max(1, CHUNKS * generator.batch_size // generator.wanted.draws)
    for start in range(first, len(prompts), size):
        chunk = prompts[start : start + size]
        replies = generator.replies(ids[start : start + size], start)
        begin = time.monotonic()
        lines = list(lines_of(chunk, replies, scorer, wanted))
        totals.scoring += time.monotonic() - begin if scorer else 0.0
        write("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines))
        totals.unscored += sum(line.get("score", 0) is None for line in lines)
        totals.kept += [line["score"] for line in lines if line.get("score") is not None]
        scores = (score for line in lines for score in line.get("scores", [line.get("score")]))
        totals.scores += [score for score in scores if score is not None]
        totals.prompts += len(chunk)
        for _, finish, tokens in (reply for own in replies for reply in own):
            totals.replies, totals.tokens = totals.replies + 1, totals.tokens + tokens
            totals.cut += finish == "length"
        if sys.stderr.isatty():
            done = start + len(chunk)
            print(f"\r{done:,} of {len(prompts):,} prompts", end="", file=sys.stderr, flush=True)
    return totals
