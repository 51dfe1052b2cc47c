"""The typed configuration of stage=corpus: where documents come from, what is left out of them, and how alike two may
be. Defaults, and where they come from, are in conf/stage/corpus.yaml; what each rule does is in docs/corpus.md."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, cast

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tinychat.config.stages import StageSettings
from tinychat.errors import UserError

PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")  # of a source: its chunks are named after it


class OnPersonalData(Enum):
    """What becomes of a document in which personal data are found."""

    mask = "mask"  # they are replaced, as by <EMAIL>
    drop = "drop"  # it is left out
    keep = "keep"  # nothing is looked for


@dataclass
class CorpusSource:
    """Documents of one source."""

    source: str = MISSING  # as data.source: text, tinystories, tinyworld, or a class of yours
    path: str | None = None  # as data.path
    text_column: str | None = None  # as data.text_column; null: that
    max_docs: int | None = None  # documents read at most; null: all
    weight: float | None = None  # share of the tokens of a pretraining, beside the others'; null: as many as there are
    languages: list[str] = field(default_factory=list)  # of documents kept, instead of stage.language.allowed
    rules: dict[str, Any] = field(default_factory=dict)  # of DocumentRules, in place of the stage's: {c4: {use: false}}
    options: dict[str, Any] = field(default_factory=dict)  # as data.options


@dataclass
class EvaluationSet:
    """Data whose held-out texts must not be trained on."""

    source: str = MISSING  # as data.source, with documents, conversations, preferences or prompts
    path: str | None = None  # its files, of which every row counts; null: the source's own validation split
    text_column: str | None = None  # of documents; null: data.text_column
    max_rows: int | None = None  # rows taken at most; null: all
    options: dict[str, Any] = field(default_factory=dict)  # as data.options


@dataclass
class NormaliseRules:
    unicode: str | None = MISSING  # NFC, NFKC, NFD or NFKD; null: as it is
    line_ends: bool = MISSING  # every line end becomes \n
    control_characters: bool = MISSING  # are taken out, but for tabs and line ends


@dataclass
class LengthRules:
    min_characters: int = MISSING
    max_characters: int | None = MISSING  # null: no limit


@dataclass
class LanguageRules:
    identify: bool = MISSING  # py3langid names the language of each document; false: every one is `und`
    allowed: list[str] = MISSING  # codes as en and zh; []: all
    min_probability: float = MISSING  # of the language named, 0 to 1
    sample: int = MISSING  # characters looked at, of the beginning


@dataclass
class GopherRules:
    """Quality (Rae et al. 2021, A.1.1)."""

    use: bool = MISSING
    min_words: int = MISSING
    max_words: int = MISSING
    min_mean_word_length: float = MISSING  # characters; of languages with spaces
    max_mean_word_length: float = MISSING
    max_symbols_per_word: float = MISSING  # of #, and of ellipses
    max_bullet_lines: float = MISSING  # share of lines
    max_ellipsis_lines: float = MISSING  # share of lines that end with an ellipsis
    min_alphabetic_words: float = MISSING  # share of words with a letter
    min_stop_words: int = MISSING  # different ones
    stop_words: dict[str, list[str]] = MISSING  # language -> words; other languages are not asked


@dataclass
class RepetitionRules:
    """Repetition (Rae et al. 2021, table A1). Shares that must not be exceeded."""

    use: bool = MISSING
    duplicate_lines: float = MISSING  # of lines
    duplicate_paragraphs: float = MISSING  # of paragraphs
    duplicate_line_characters: float = MISSING
    duplicate_paragraph_characters: float = MISSING
    top_ngrams: dict[int, float] = MISSING  # words -> characters in the most frequent n-gram
    top_ngram_times: int = MISSING  # what comes less often is no repetition
    duplicate_ngrams: dict[int, float] = MISSING  # words -> characters in n-grams that came before


@dataclass
class C4Rules:
    """Rules of C4 (Raffel et al. 2020, 2.2)."""

    use: bool = MISSING
    terminal_punctuation: bool = MISSING  # lines that end with none are taken out
    min_words_per_line: int = MISSING  # lines with fewer are taken out; 0: none
    min_sentences: int = MISSING  # of a document; 0: any
    max_word_length: int | None = MISSING  # lines with a longer word are taken out; languages with spaces; null: none
    javascript: bool = MISSING  # lines that mention it are taken out
    policies: bool = MISSING  # lines about cookies, terms and privacy policies are taken out
    citations: bool = MISSING  # marks such as [1] and [edit] are taken out
    lorem_ipsum: bool = MISSING  # documents with it are left out
    braces: bool = MISSING  # documents with { or } are left out: most are code


@dataclass
class CodeRules:
    """What is left out of files of programs (Chen et al. 2021, 3.1)."""

    use: bool = MISSING
    max_mean_line_length: float = MISSING  # characters
    max_line_length: int = MISSING
    min_alphanumeric: float = MISSING  # share of the characters, white space left out
    generated: bool = MISSING  # files whose first lines say that a program wrote them are left out


@dataclass
class PersonalRules:
    found: OnPersonalData = MISSING
    kinds: list[str] = MISSING  # of PERSONAL


PERSONAL = ("email", "phone", "ip", "china_id")


@dataclass
class NearRules:
    """Near duplicates by MinHash (Broder 1997) and locality-sensitive hashing."""

    use: bool = MISSING
    threshold: float = MISSING  # Jaccard similarity of shingles from which on two documents are the same
    num_perm: int = MISSING  # hash functions of a signature: 4 bytes each for every document kept
    shingle: int = MISSING  # words; of languages without spaces 1.5 times as many characters


@dataclass
class DecontaminationRules:
    """Documents that share an n-gram with evaluation data are left out (Brown et al. 2020, appendix C)."""

    sets: dict[str, EvaluationSet] = field(default_factory=dict)  # by names of your own
    ngram: int = MISSING  # words; a shorter text counts as a whole
    min_ngram: int = MISSING  # words that a shorter text has at least, to count
    ngram_characters: int = MISSING  # the same of languages without spaces, in characters
    min_ngram_characters: int = MISSING


@dataclass
class DocumentRules:
    """What becomes of one document, whatever came before it."""

    normalise: NormaliseRules = MISSING
    length: LengthRules = MISSING
    language: LanguageRules = MISSING
    gopher: GopherRules = MISSING
    repetition: RepetitionRules = MISSING
    c4: C4Rules = MISSING
    code: CodeRules = MISSING
    blocklist: str | None = MISSING  # a file with a word or phrase a line; documents with one are left out
    personal: PersonalRules = MISSING
    function: str | None = MISSING  # FILE.py:NAME of yours: (text, language) -> whether it stays, or a text instead


@dataclass
class CorpusRules(DocumentRules, StageSettings):
    """What becomes of documents."""

    sources: dict[str, CorpusSource] = field(default_factory=dict)  # by names of yours; {}: the documents of data=
    exact: bool = MISSING  # leave out documents that came before, letter for letter
    near: NearRules = MISSING
    decontaminate: DecontaminationRules = MISSING
    chunk_mb: float = MISSING  # megabytes of text in a chunk: what is held in memory, and what a kill costs
    workers: int | None = MISSING  # processes beside this one that filter; 0: none, this one does; null: the cores

    def problems(self, ranks: int) -> Iterator[str]:
        if ranks > 1:
            yield f"launch.nproc={ranks}: a corpus is made by one process with helpers; use stage.workers={ranks}"
        for name, source in self.sources.items():
            yield from _source_problems(f"stage.sources.{name}", name, source)
        weights = {name: source.weight for name, source in self.sources.items()}
        yield from weight_problems("stage.sources", weights)
        yield from _rule_problems("stage", self)
        for name in self.sources:
            try:
                own = self.rules_of(name)
            except UserError as error:
                yield str(error)
                continue
            # What is wrong with the common rules was said of those.
            common = set(_rule_problems(f"stage.sources.{name}.rules", self))
            yield from (line for line in _rule_problems(f"stage.sources.{name}.rules", own) if line not in common)
        yield from _limits(self)

    def rules_of(self, source: str) -> DocumentRules:
        """Those for the documents of a source: the stage's, with its own in their place, key by key. Raises UserError
        for a rule that there is not, and a value that it cannot have."""
        common = {one.name: getattr(self, one.name) for one in fields(DocumentRules)}
        if (own := self.sources.get(source)) is None:
            return DocumentRules(**common)
        key = f"stage.sources.{source}.rules"
        if unknown := next((name for name in own.rules if name not in common), None):
            raise UserError(f"{key}.{unknown}: no rule of one source; there are {', '.join(common)}")
        language = own.rules.get("language")
        if isinstance(language, dict) and "allowed" in language:
            raise UserError(f"{key}.language.allowed: say stage.sources.{source}.languages=[...]")
        allowed = own.languages or self.language.allowed
        try:
            merged = OmegaConf.merge(
                OmegaConf.structured(DocumentRules(**common)), {"language": {"allowed": allowed}}, own.rules
            )
        except (OmegaConfBaseException, ValueError) as error:
            where = getattr(error, "full_key", None)
            raise UserError(f"{key}{f'.{where}' if where else ''}: {str(error).splitlines()[0]}") from None
        return cast(DocumentRules, OmegaConf.to_object(merged))

    def key_of(self, source: str, rule: str) -> str:
        """Where a rule is said that holds for a source: `gopher.min_words` -> `stage.gopher.min_words`."""
        own = self.sources.get(source)
        if own is not None and rule == "language" and own.languages:
            return f"stage.sources.{source}.languages"
        return (
            f"stage.sources.{source}.rules.{rule}" if own and rule.partition(".")[0] in own.rules else f"stage.{rule}"
        )


@dataclass
class CorpusStage(CorpusRules):
    """Collect, filter, deduplicate and decontaminate documents, and write them as chunks."""

    name: str = MISSING


def weight_problems(key: str, weights: dict[str, float | None]) -> Iterator[str]:
    """A line for weights of which no mixture can be made."""
    given = {name: weight for name, weight in weights.items() if weight is not None}
    shown = ", ".join(f"{name}: {weight:g}" for name, weight in given.items())
    if given and len(given) < len(weights):
        missing = next(name for name, weight in weights.items() if weight is None)
        yield f"{key}: {missing} has no weight, others have ({shown}); give each of them one, or none"
    elif any(weight < 0 for weight in given.values()):
        yield f"{key}: weights {shown}: none may be negative"
    elif given and not sum(given.values()):
        yield f"{key}: the weights sum to 0 ({shown}); give at least one above 0, or none of them"


def _source_problems(key: str, name: str, source: CorpusSource) -> Iterator[str]:
    if not PLAIN_NAME.fullmatch(name):
        yield f"{key}: a source's name is of letters, digits, - and _, at most 64"
    if source.max_docs is not None and source.max_docs < 1:
        yield f"{key}.max_docs={source.max_docs}: at least 1, or null for all"


def _limits(stage: CorpusRules) -> Iterator[str]:
    near, clean = stage.near, stage.decontaminate
    if not 0.2 <= near.threshold <= 1:
        yield f"stage.near.threshold={near.threshold:g}: a similarity from 0.2 to 1, such as 0.8"
    if not 16 <= near.num_perm <= 1024:
        yield f"stage.near.num_perm={near.num_perm}: from 16 to 1024, such as 128"
    for key, group in (("ngram", clean.ngram), ("ngram_characters", clean.ngram_characters), ("shingle", near.shingle)):
        if group < 1:
            where = "near" if key == "shingle" else "decontaminate"
            yield f"stage.{where}.{key}={group}: at least 1"
    if not 0 < stage.chunk_mb <= 1024:
        yield f"stage.chunk_mb={stage.chunk_mb:g}: above 0 and at most 1024 megabytes"
    if stage.workers is not None and stage.workers < 0:
        yield f"stage.workers={stage.workers}: 0 or more processes, or null"


def _rule_problems(key: str, rules: DocumentRules) -> Iterator[str]:
    """key: where they are said, stage or stage.sources.NAME.rules."""
    if rules.normalise.unicode not in (None, "NFC", "NFKC", "NFD", "NFKD"):
        yield f"{key}.normalise.unicode={rules.normalise.unicode}: NFC, NFKC, NFD, NFKD or null"
    if unknown := sorted(set(rules.personal.kinds) - set(PERSONAL)):
        yield f"{key}.personal.kinds: {unknown[0]} is none; there are {', '.join(PERSONAL)}"
    length = rules.length
    if length.max_characters is not None and length.max_characters < max(1, length.min_characters):
        yield (
            f"{key}.length.max_characters={length.max_characters}: less than {key}.length.min_characters="
            f"{length.min_characters}; raise the one or lower the other"
        )
    if (most := rules.gopher.max_words) < (least := rules.gopher.min_words):
        yield f"{key}.gopher.max_words={most}: less than {key}.gopher.min_words={least}"
    for name in ("max_mean_line_length", "max_line_length"):
        if (value := getattr(rules.code, name)) <= 0:
            yield f"{key}.code.{name}={value:g}: characters, above 0"
    shares = {
        "language.min_probability": rules.language.min_probability,
        "code.min_alphanumeric": rules.code.min_alphanumeric,
    }
    groups: dict[str, GopherRules | RepetitionRules] = {"gopher": rules.gopher, "repetition": rules.repetition}
    for group, own in groups.items():
        for one in fields(own):
            name, value = f"{group}.{one.name}", getattr(own, one.name)
            if isinstance(value, dict):
                shares |= {f"{name}.{n}": share for n, share in value.items() if isinstance(share, float)}
            elif isinstance(value, float) and "length" not in one.name and "per_word" not in one.name:
                shares[name] = value
    for name, value in shares.items():
        if not 0 <= value <= 1:
            yield f"{key}.{name}={value:g}: a share, from 0 to 1"
    for name in ("top_ngrams", "duplicate_ngrams"):
        if wrong := [n for n in getattr(rules.repetition, name) if n < 1]:
            yield f"{key}.repetition.{name}: {wrong[0]} words; at least 1"
