"""The checkpoints of the command line: language models that reply, reward models that score."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinychat.chat.session import examples, find, short_names
from tinychat.errors import UserError
from tinychat.runtime.run_files import at_home
from tinychat.serve.replies import Reply, Told, Words
from tinychat.serve.requests import MOST_TOLD, ApiError, Asked

if TYPE_CHECKING:
    from tinychat.models.generation.running import Drawn, RunningBatch
    from tinychat.models.scorer import AnyScorer


# Parameters below which one thread decodes as fast as several (a step of mini with 32 rows: 3.6 ms with one or two) and
# is not ten times slower where other processes want the cores.
SMALL = 10_000_000
# Below which one thread is enough for a single reply: a step reads every weight once, in some eighty parallel parts,
# and for each a second thread is woken. A token of gpt6x512 (20.5 M): at best 8.5 ms with one thread, 9.5 with two.
LIGHT = 50_000_000


class Language:
    """A checkpoint that replies (kind "chat": its tokenizer has a chat template) or continues texts (kind "text")."""

    def __init__(self, name: str, model: Any, tokenizer: Any, dtype: Any = None):
        """dtype: of the matrix products; None: the weights'."""
        from tinychat.models.generation.running import RunningBatch
        from tinychat.models.vocabulary import vocabulary

        self.name, self.tokenizer = name, tokenizer
        self.kind = "chat" if tokenizer.chat_template else "text"
        self.vocabulary = vocabulary(tokenizer)
        self.batch: RunningBatch = RunningBatch(model, int(tokenizer.pad_token_id or 0), self.vocabulary, dtype)
        self.context = self.batch.context
        self.examples = examples(Path(tokenizer.name_or_path)) if self.kind == "chat" else []
        self.words = Words(tokenizer)
        self._model = model
        self._light = sum(p.numel() for p in model.parameters()) < LIGHT
        self._longest = max(map(len, tokenizer.get_vocab()), default=1)  # characters of a token
        self._encoding = threading.Lock()
        self._chat_ends = self._ends_of_chats() if self.kind == "chat" else frozenset()
        self._text_ends = frozenset({tokenizer.eos_token_id} - {None})

    def _ends_of_chats(self) -> frozenset[int]:
        from tinychat.text.chat_template import end_ids

        try:
            return frozenset(end_ids(self.tokenizer))
        except UserError:  # a published template that training could not use may still be talked through
            return frozenset({self.tokenizer.eos_token_id} - {None})

    def step(self) -> list[Drawn]:
        """The next token of every reply."""
        import torch

        before = torch.get_num_threads()
        if self._light and len(self.batch.rows) == 1:
            torch.set_num_threads(1)  # takes less than a microsecond
        try:
            return self.batch.step()
        finally:
            torch.set_num_threads(before)

    def about(self) -> dict[str, Any]:
        """What /v1/models says beside the API's own fields."""
        return {"kind": self.kind, "context_length": self.context, "examples": self.examples}

    def encode(self, asked: Asked) -> list[list[int]]:
        """Token ids of each prompt. Raises ApiError for what cannot be answered."""
        if asked.chat and self.kind != "chat":
            raise ApiError(
                f"model {self.name} has no chat template, it continues texts: ask /v1/completions", "messages"
            )
        room = self.context - (0 if asked.echo and asked.max_tokens == 0 else 1)
        found = []
        for prompt in asked.prompts:
            with self._encoding:  # tokenizers are not for several threads
                ids = self._encode(prompt, asked.chat, room)
            if not ids:
                raise ApiError("prompt: has no tokens; a model needs one to start from", "prompt")
            if len(ids) > room:
                raise self._too_long(f"{len(ids):,} tokens", asked.chat)
            found.append(ids)
        return found

    def _encode(self, prompt: Any, chat: bool, room: int) -> list[int]:
        from tinychat.models.generation.generate import prompt_ids
        from tinychat.text.chat_render import Refused
        from tinychat.text.chat_template import try_prompts

        if not chat and isinstance(prompt, list):
            known = self.vocabulary.size or 0
            if wrong := [token for token in prompt if not 0 <= token < known or token in self.vocabulary.holes]:
                raise ApiError(f"prompt: {wrong[0]} is no token of {self.name}, which has {known:,}", "prompt")
            return prompt
        # What cannot fit is not tokenised: that would take its time.
        characters = sum(len(message["content"]) for message in prompt) if chat else len(prompt)
        if chat and len(prompt) > room:
            raise self._too_long(f"{len(prompt):,} messages", chat)
        if characters > room * self._longest:
            raise self._too_long(f"{characters:,} characters", chat)
        try:
            if not chat:
                return prompt_ids(self.tokenizer, prompt)
            (ids,) = try_prompts(self.tokenizer, [prompt])
        except UserError as error:
            raise ApiError(str(error), "messages" if chat else "prompt") from None
        if isinstance(ids, Refused):
            raise ApiError(str(ids), "messages")
        return ids

    def _too_long(self, found: str, chat: bool) -> ApiError:
        return ApiError(
            f"the {'messages have' if chat else 'prompt has'} {found}; {self.name} sees {self.context:,} tokens at "
            "once, the reply's among them: shorten it",
            "messages" if chat else "prompt",
            code="context_length_exceeded",
        )

    def replies(self, asked: Asked, prompts: Sequence[list[int]], most_tokens: int) -> list[Reply]:
        """n replies to each prompt. Each has draws of its own, those of tinychat.generate with the same seed, the
        prompt at the same place and the same number of the sample. Raises ApiError for too much to tell."""
        import numpy as np

        from tinychat.models.generation.decode import Filter, chance
        from tinychat.models.generation.generate import IncrementalText
        from tinychat.models.generation.running import Row

        wanted = Filter(top_k=asked.top_k, top_p=asked.top_p, repetition_penalty=asked.repetition_penalty)
        seed = int(np.random.SeedSequence().generate_state(1, np.uint64)[0]) if asked.seed is None else asked.seed
        most = most_tokens if asked.max_tokens is None else asked.max_tokens
        tokens = sum(asked.n * min(most, self.context - len(prompt)) for prompt in prompts)
        tokens += asked.echo * sum(map(len, prompts))
        if asked.alternatives is not None and tokens * (1 + asked.alternatives) > MOST_TOLD:
            raise ApiError(
                f"{tokens:,} tokens with {asked.alternatives} alternatives: an answer has at most {MOST_TOLD:,} "
                "log-probabilities; lower max_tokens, n or the alternatives",
                "top_logprobs" if asked.chat else "logprobs",
            )
        found: list[Reply] = []
        for place, prompt in enumerate(prompts):
            for sample in range(asked.n):
                draws = chance(seed, place, sample)
                row = Row(prompt, draws.random, asked.temperature, wanted, asked.alternatives)
                found.append(
                    Reply(
                        index=len(found),
                        row=row,
                        ends=self._chat_ends if asked.chat else self._text_ends,
                        most=min(most, self.context - len(prompt)),
                        stops=asked.stop,
                        words=self.words,
                        decoder=IncrementalText(self.tokenizer, prompt),
                        strip=asked.chat,
                        tell_end=not asked.chat,
                    )
                )
        return found

    def echoed(self, given: Any, ids: list[int], alternatives: int | None) -> tuple[str, list[Told]]:
        """A prompt as it was given, and its tokens as told where `alternatives` is not None: of a text without what
        stands before every text, which nobody sent."""
        from tinychat.models.logprobs import likeliest
        from tinychat.text.tokenizer import decode_exactly

        own = len(ids) - len(self._own_ids(given)) if isinstance(given, str) else 0
        text = given if isinstance(given, str) else decode_exactly(self.tokenizer, ids)
        if alternatives is None:
            return text, []
        told, offset = [], 0
        known: list[tuple[float | None, list[tuple[int, float]]]] = [(None, [])]
        known += likeliest(self._model, ids, self.vocabulary, alternatives)
        for token, (logprob, others) in list(zip(ids, known, strict=True))[own:]:
            told.append(self.words.told(token, logprob, others, offset))
            offset += len(told[-1].text)
        return text, told

    def _own_ids(self, text: str) -> list[int]:
        """Of the text alone."""
        from tinychat.text.tokenizer import encoded_texts

        with self._encoding:
            return encoded_texts(self.tokenizer, [text])["input_ids"][0]


class Reward:
    """A checkpoint that scores replies."""

    kind = "reward"

    def __init__(self, name: str, scorer: AnyScorer):
        self.name, self.scorer = name, scorer
        self.context = scorer.context_length if scorer.context_length < sys.maxsize else None  # None: any length

    def about(self) -> dict[str, Any]:
        return {"kind": self.kind, "context_length": self.context, "score_range": self.scorer.score_range}

    def score(self, body: dict[str, Any]) -> dict[str, Any]:
        """The score of a row as tinychat.score reads it. Raises ApiError."""
        from tinychat import score

        try:
            row = score.row_of("the body", body)
            (scores,) = score.scores_of(self.scorer, [row])
        except UserError as error:
            raise ApiError(str(error).removesuffix("; mend or remove this row")) from None
        done = score.result(dataclasses.replace(row, content={}), scores)
        return {"object": "score", "model": self.name, **done, "score_range": self.scorer.score_range}


Served = Language | Reward


def open_all(args: argparse.Namespace) -> list[Served]:
    """Every checkpoint, in the order of the command line. Raises UserError."""
    import torch

    from tinychat.chat.__main__ import load
    from tinychat.models.custom import load_classes
    from tinychat.models.reward import is_reward
    from tinychat.models.word_judge import is_word_judge
    from tinychat.score import load as load_scorer

    if args.model_code:
        load_classes(args.model_code, f"--model-code {args.model_code}")
    outputs = at_home(args.outputs)
    paths = [find(checkpoint, outputs) for checkpoint in args.checkpoints]
    rewards = [is_word_judge(path) or is_reward(path) for path in paths]
    if all(rewards):
        raise UserError(
            f"{args.checkpoints[0]} is a reward model, which scores replies and writes none; name a model to talk to "
            f"before it: python -m tinychat.serve latest {' '.join(args.checkpoints)}"
        )
    dtype = torch.bfloat16 if args.precision == "bf16" else None
    served: list[Served] = []
    largest = 0
    for path, name, scores in zip(paths, short_names(paths), rewards, strict=True):
        if scores:
            served.append(Reward(name, load_scorer(path, args.device, batch_size=8)))
        else:
            model, tokenizer = load(path, args.device, args.outputs)
            served.append(Language(name, model, tokenizer, dtype))
            largest = max(largest, sum(p.numel() for p in model.parameters()))
    if largest < SMALL:
        torch.set_num_threads(1)
    return served
