"""What one document becomes: normalised, filtered, masked, hashed. Runs in any number of processes, each document by
itself; what came before it matters only afterwards (tinychat.data.corpus.collect)."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash

from tinychat.config.corpus_stage import CorpusRules, OnPersonalData
from tinychat.data.corpus import filters
from tinychat.data.corpus.similar import Contamination, Signatures
from tinychat.data.corpus.words import normalised, words_of
from tinychat.data.files.tables import short
from tinychat.errors import UserError
from tinychat.runtime import user_code
from tinychat.runtime.run_files import at_home

EXCERPT = 240  # characters of a document that is left out
UNKNOWN = "und"  # a language that was not asked for, as ISO 639-2 has it
# py3langid takes short Chinese texts with Latin letters in them for Wu; of 423 Chinese ones in MiniMind's layout 14.
ALIASES = {"wuu": "zh"}


@dataclass
class Cleaned:
    """One document. Of one that is left out `text` is its beginning."""

    text: str
    size: int  # bytes of UTF-8 as it was read
    characters: int
    rule: str = ""  # that left it out; "": it stays
    why: str = ""
    language: str = UNKNOWN
    digest: bytes = b""  # of what stays
    signature: np.ndarray | None = None
    taken_out: dict[str, int] = field(default_factory=dict)  # what -> how often


class Cleaner:
    """The rules of a stage, made once in each process."""

    def __init__(self, stage: CorpusRules, contamination: Contamination | None) -> None:
        self._stage, self._contamination = stage, contamination
        self._signatures = Signatures(stage.near) if stage.near.use else None
        self._blocklist = read_blocklist(stage.blocklist) if stage.blocklist else None
        self._function = read_function(stage.function) if stage.function else None
        self._identifies = stage.language.identify

    def all(self, texts: Sequence[str], languages: Sequence[str]) -> list[Cleaned]:
        """languages: those allowed; []: every one."""
        return [self(text, languages) for text in texts]

    def __call__(self, text: str, languages: Sequence[str]) -> Cleaned:
        stage, rules = self._stage, self._stage.normalise
        size, taken_out = len(text.encode()), Counter[str]()
        text = normalised(text, rules.unicode, rules.line_ends, rules.control_characters)
        language = UNKNOWN

        def out(why: tuple[str, str]) -> Cleaned:
            return Cleaned(text[:EXCERPT], size, len(text), *why, language=language, taken_out=dict(taken_out))

        if not text:
            return out(("length.min_characters", "nothing is left of it"))
        if why := filters.length(text, stage.length):
            return out(why)
        if stage.c4.use:
            found = filters.c4(text, stage.c4, taken_out)
            if isinstance(found, tuple):
                return out(found)
            text = found
        if self._identifies:
            language, probability = language_of(text[: stage.language.sample])
            if languages and language not in languages:
                return out(("language", f"{language} ({probability:.0%} sure), not {', '.join(languages)}"))
            if probability < stage.language.min_probability:
                sure = f"{probability:.0%} sure, not {stage.language.min_probability:.0%}"
                return out(("language.min_probability", f"{language}, but only {sure}"))
        words = words_of(text)
        if stage.gopher.use and (why := filters.gopher(text, words, language, stage.gopher)):
            return out(why)
        if stage.repetition.use and words.units and (why := filters.repetition(text, words, stage.repetition)):
            return out(why)
        if self._blocklist is not None and (why := self._blocklist(text, words)):
            return out(why)
        before = text
        if stage.personal.found is OnPersonalData.drop:
            if match := next(filters.personal(text, stage.personal.kinds), None):
                return out((f"personal.{match[0]}", f"has {match[1].group()!r}"))
        elif stage.personal.found is OnPersonalData.mask:
            text = filters.masked(text, stage.personal.kinds, taken_out)
        if self._function is not None:
            answer = self._asked(text, language)
            if answer is False or (isinstance(answer, str) and not answer.strip()):
                return out(("function", f"{stage.function} left it out"))
            if isinstance(answer, str) and answer != text:
                text = answer.strip()
                taken_out["changed by stage.function"] += 1
        words = words if text is before else words_of(text)
        if self._contamination is not None and (shared := self._contamination.found_in(words)):
            return out((f"decontaminate.{shared[0]}", f"shares {short(shared[1])}"))
        return Cleaned(
            text,
            size,
            len(text),
            language=language,
            digest=xxhash.xxh3_128_digest(text.encode()),
            signature=self._signatures.of(words) if self._signatures else None,
            taken_out=dict(taken_out),
        )

    def _asked(self, text: str, language: str) -> bool | str:
        assert self._function is not None
        with user_code.running(f"on {short(text)}"):
            answer = self._function(text, language)
        if answer is None or not isinstance(answer, (bool, str)):
            raise UserError(f"stage.function={self._stage.function}: gives {short(answer)}; True or False, or a text")
        return answer


def read_function(address: str) -> Callable[[str, str], Any]:
    """What stage.function names. Raises UserError."""
    try:
        function = user_code.named(address)
    except UserError as error:
        raise UserError(f"stage.function={address}: {error}") from error
    if not callable(function):
        raise UserError(f"stage.function={address}: is {short(function)}; a function of (text, language)")
    return function


def read_blocklist(path: str) -> filters.Blocklist:
    """The entries of a file: one a line, lines that begin with # left out. Raises UserError."""
    try:
        lines = at_home(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"stage.blocklist={path}: cannot be read ({error})") from None
    entries = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not entries:
        raise UserError(f"stage.blocklist={path}: no word in it; one on each line, or stage.blocklist=null")
    return filters.Blocklist(entries)


def language_of(text: str) -> tuple[str, float]:
    """The code of its language (ISO 639), and how sure that is, 0 to 1. Needs py3langid."""
    named, probability = _identifier().classify(text)
    return ALIASES.get(named, named), float(probability)


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def check_languages(stage: CorpusRules) -> None:
    """Raise UserError for a language that py3langid does not know."""
    said = {"stage.language.allowed": stage.language.allowed}
    said |= {f"stage.sources.{name}.languages": source.languages for name, source in stage.sources.items()}
    if not any(said.values()):
        return
    known = set(_identifier().labels) - set(ALIASES)
    for key, codes in said.items():
        if unknown := [code for code in codes if code not in known]:
            raise UserError(f"{key}: {unknown[0]} is no language that py3langid names; codes of ISO 639, as en, zh, fr")
