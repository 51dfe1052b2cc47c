"""What clients get: the objects of the OpenAI API."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from tinychat.serve.replies import Piece, Told
from tinychat.serve.requests import Asked
from tinychat.serve.served import Served

STARTED = int(time.time())


def model(served: Served) -> dict[str, Any]:
    own = {"id": served.name, "object": "model", "created": STARTED, "owned_by": "tinychat"}
    return {**own, **served.about()}


class Form:
    """The answer to one request."""

    def __init__(self, name: str, asked: Asked, prompts: Sequence[Sequence[int]], echoes: Sequence[Any] | None):
        """echoes: text and tokens (served.Language.echoed) of each prompt, where they come before the replies."""
        self.asked = asked
        self._echoes = echoes
        self._prompt_tokens = sum(map(len, prompts))
        kind = "chat.completion" if asked.chat else "text_completion"
        prefix = "chatcmpl" if asked.chat else "cmpl"
        self._head = {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": name}

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        return {
            **self._head,
            "choices": [self._choice(piece) for piece in pieces],
            "usage": self._usage(sum(piece.tokens for piece in pieces)),
        }

    def opening(self, index: int) -> dict[str, Any]:
        """The first chunk of a chat's reply."""
        delta = {"role": "assistant", "content": ""}
        return self._chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])

    def chunk(self, piece: Piece) -> dict[str, Any]:
        if not self.asked.chat:
            return self._chunk([self._text_choice(piece)])
        delta = {"content": piece.text} if piece.text else {}
        own = {"index": piece.index, "delta": delta, "logprobs": self._logprobs(piece)}
        return self._chunk([{**own, "finish_reason": piece.finish}])

    def usage_chunk(self, tokens: int) -> dict[str, Any]:
        return {**self._chunk([]), "usage": self._usage(tokens)}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.asked.chat else "text_completion"
        return {**self._head, "object": kind, "choices": choices} | ({"usage": None} if self.asked.tell_usage else {})

    def _usage(self, tokens: int) -> dict[str, int]:
        total = self._prompt_tokens + tokens
        return {"prompt_tokens": self._prompt_tokens, "completion_tokens": tokens, "total_tokens": total}

    def _choice(self, piece: Piece) -> dict[str, Any]:
        if not self.asked.chat:
            return self._text_choice(piece)
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        own = {"index": piece.index, "message": message, "logprobs": self._logprobs(piece)}
        return {**own, "finish_reason": piece.finish}

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        if self.asked.alternatives is None:
            return None

        def entry(text: str, raw: tuple[int, ...], logprob: float | None) -> dict[str, Any]:
            return {"token": text, "logprob": logprob, "bytes": list(raw)}

        content = [
            {**entry(one.text, one.bytes, one.logprob), "top_logprobs": [entry(*other) for other in one.likeliest]}
            for one in piece.told
        ]
        return {"content": content, "refusal": None}

    def _text_choice(self, piece: Piece) -> dict[str, Any]:
        text, told = piece.text, list(piece.told)
        if self._echoes is not None:
            before, known = self._echoes[piece.index // self.asked.n]
            text, told = before + text, [*known, *(_shifted(one, len(before)) for one in told)]
        logprobs = None if self.asked.alternatives is None else _text_logprobs(told)
        return {"index": piece.index, "text": text, "logprobs": logprobs, "finish_reason": piece.finish}


def _shifted(told: Told, by: int) -> Told:
    return Told(told.text, told.bytes, told.logprob, told.likeliest, told.offset + by)


def _text_logprobs(told: Sequence[Told]) -> dict[str, Any]:
    """Tokens that are written alike are one entry beside a token, that of the likelier."""
    likeliest: list[dict[str, float] | None] = []
    for one in told:
        own: dict[str, float] = {}
        for text, _, logprob in one.likeliest:
            own.setdefault(text, logprob)
        likeliest.append(None if one.logprob is None else own)
    return {
        "tokens": [one.text for one in told],
        "token_logprobs": [one.logprob for one in told],
        "top_logprobs": likeliest,
        "text_offset": [one.offset for one in told],
    }
