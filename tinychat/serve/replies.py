"""Tokens as they come to the text that a client gets: whole characters, nothing of a text that stops the reply, and
beside it what each token is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinychat.models.generation.running import Drawn, Row

STOP, LENGTH = "stop", "length"


@dataclass(frozen=True)
class Told:
    """A token as a client is told of it."""

    text: str
    bytes: tuple[int, ...]
    logprob: float | None  # None: the first token of a prompt
    likeliest: tuple[tuple[str, tuple[int, ...], float], ...]  # text, bytes, log-probability
    offset: int = 0  # of its text in the whole


@dataclass(frozen=True)
class Piece:
    """What came of one reply since the last piece."""

    index: int  # of the reply in its request
    text: str = ""
    told: tuple[Told, ...] = ()
    tokens: int = 0  # generated up to now
    finish: str | None = None  # stop | length with the last piece


class Words:
    """The tokens of a tokenizer, one by one: text and bytes."""

    def __init__(self, tokenizer: Any):
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        by_bytes = "ByteLevel" in repr(getattr(backend, "decoder", None))
        self._bytes = {char: byte for byte, char in bytes_to_unicode().items()} if by_bytes else {}
        self.of = lru_cache(maxsize=65536)(self._of)

    def _of(self, token: int) -> tuple[str, tuple[int, ...]]:
        from tinychat.text.tokenizer import decode_exactly

        text = decode_exactly(self._tokenizer, [token])
        piece = self._tokenizer.convert_ids_to_tokens(token) or ""
        if text != piece and self._bytes and all(char in self._bytes for char in piece):
            return text, tuple(self._bytes[char] for char in piece)
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return text, (int(piece[3:5], 16),)
        return text, tuple(text.encode("utf-8", "replace"))

    def told(self, token: int, logprob: float | None, likeliest: Sequence[tuple[int, float]], offset: int = 0) -> Told:
        others = tuple((*self.of(other), value) for other, value in likeliest)
        return Told(*self.of(token), logprob, others, offset)


@dataclass(eq=False)
class Reply:
    """One reply on its way: `add` its tokens, and get the pieces."""

    index: int
    row: Row
    ends: frozenset[int]  # tokens that end it
    most: int  # tokens
    stops: tuple[str, ...]
    words: Words
    decoder: Any  # tinychat.models.generation.generate.IncrementalText
    strip: bool  # without the blanks around it, as chat and generate show replies
    tell_end: bool  # its end token is told as the others are
    finished: bool = False
    _held: str = ""  # what may be the beginning of a text that stops it, or blanks at its end
    _waiting: list[tuple[int, Told]] = field(default_factory=list)  # tokens whose text is held, and where it begins
    _begun: bool = False
    _sent: int = 0  # characters

    def add(self, drawn: Drawn) -> Piece | None:
        """The piece that can be told with this token; None for none."""
        ended = drawn.token in self.ends
        text = self.decoder.rest() if ended else self.decoder.add(drawn.token)
        count = len(self.row.response)
        finish = STOP if ended else LENGTH if count >= self.most else None
        if finish == LENGTH:
            text += self.decoder.rest()
        if self.strip and not self._begun:
            text = text.lstrip()
        self._begun = self._begun or bool(text)
        if drawn.logprob is not None and (self.tell_end or not ended):
            begins = len(self._held)
            told = self.words.told(drawn.token, drawn.logprob, drawn.likeliest, self._sent + begins)
            self._waiting.append((begins, told))
        held = self._held + text
        places = [place for stop in self.stops if (place := held.find(stop)) >= 0]
        if places:
            held, finish = held[: min(places)], STOP
            self._waiting = [(begins, told) for begins, told in self._waiting if begins < len(held)]
        self.finished = finish is not None
        kept = 0 if finish else self._unsure(held)
        out = held[: len(held) - kept]
        if self.strip and finish:
            out = out.rstrip()
        self._held = held[len(out) :]
        told_now = [told for begins, told in self._waiting if finish or not kept or begins < len(out)]
        self._waiting = [(begins - len(out), told) for begins, told in self._waiting[len(told_now) :]]
        self._sent += len(out)
        if not (out or told_now or finish):
            return None
        return Piece(self.index, out, tuple(told_now), count, finish)

    def _unsure(self, text: str) -> int:
        """How many characters at its end may be the beginning of a stop text, or of the blanks that end a reply."""
        blanks = len(text) - len(text.rstrip()) if self.strip else 0
        longest = max(
            (
                size
                for stop in self.stops
                for size in range(1, min(len(stop), len(text) + 1))
                if text.endswith(stop[:size])
            ),
            default=0,
        )
        return max(blanks, longest)
