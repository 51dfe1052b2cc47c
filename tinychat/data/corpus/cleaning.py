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
    """The rules for the documents of a source, made once in each process."""

    def __init__(self, stage: CorpusRules, source: str, contamination: Contamination | None) -> None:
        self._rules, self._contamination = stage.rules_of(source), contamination
        self._signatures = Signatures(stage.near) if stage.near.use else None
        self._blocklist = read_blocklist(stage, source)
        self._function = read_function(stage, source)
        self._function_key = stage.key_of(source, "function")

    def all(self, texts: Sequence[str]) -> list[Cleaned]:
        return [self(text) for text in texts]

    def __call__(self, text: str) -> Cleaned:
        rules, form = self._rules, self._rules.normalise
        size, taken_out = len(text.encode()), Counter[str]()
        text = normalised(text, form.unicode, form.line_ends, form.control_characters)
        language, languages = UNKNOWN, rules.language.allowed

        def out(why: tuple[str, str]) -> Cleaned:
            return Cleaned(text[:EXCERPT], size, len(text), *why, language=language, taken_out=dict(taken_out))

        if not text:
            return out(("length.min_characters", "nothing is left of it"))
        if why := filters.length(text, rules.length):
            return out(why)
        if rules.c4.use:
            found = filters.c4(text, rules.c4, taken_out)
            if isinstance(found, tuple):
                return out(found)
            text = found
        if rules.code.use and (why := filters.code(text, rules.code)):
            return out(why)
        if rules.language.identify:
            language, probability = language_of(text[: rules.language.sample])
            if languages and language not in languages:
                return out(("language", f"{language} ({probability:.0%} sure), not {', '.join(languages)}"))
            if probability < rules.language.min_probability:
                sure = f"{probability:.0%} sure, not {rules.language.min_probability:.0%}"
                return out(("language.min_probability", f"{language}, but only {sure}"))
        words = words_of(text)
        if rules.gopher.use and (why := filters.gopher(text, words, language, rules.gopher)):
            return out(why)
        if rules.repetition.use and words.units and (why := filters.repetition(text, words, rules.repetition)):
            return out(why)
        if self._blocklist is not None and (why := self._blocklist(text, words)):
            return out(why)
        before = text
        if rules.personal.found is OnPersonalData.drop:
            if match := next(filters.personal(text, rules.personal.kinds), None):
                return out((f"personal.{match[0]}", f"has {match[1].group()!r}"))
        elif rules.personal.found is OnPersonalData.mask:
            text = filters.masked(text, rules.personal.kinds, taken_out)
        if self._function is not None:
            answer = self._asked(text, language)
            if answer is False or (isinstance(answer, str) and not answer.strip()):
                return out(("function", f"{rules.function} left it out"))
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
            raise UserError(
                f"{self._function_key}={self._rules.function}: gives {short(answer)}; True or False, or a text"
            )
        return answer


def read_function(stage: CorpusRules, source: str) -> Callable[[str, str], Any] | None:
    """What stage.function names, for a source. Raises UserError."""
    if not (address := stage.rules_of(source).function):
        return None
    key = f"{stage.key_of(source, 'function')}={address}"
    try:
        function = user_code.named(address)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    if not callable(function):
        raise UserError(f"{key}: is {short(function)}; a function of (text, language)")
    return function


def read_blocklist(stage: CorpusRules, source: str) -> filters.Blocklist | None:
    """The entries of a source's file: one a line, lines that begin with # left out. Raises UserError."""
    if not (path := stage.rules_of(source).blocklist):
        return None
    key = f"{stage.key_of(source, 'blocklist')}={path}"
    try:
        lines = at_home(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key}: cannot be read ({error})") from None
    entries = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not entries:
        raise UserError(f"{key}: no word in it; one on each line, or null")
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
