"""What a sample of rows is as tokens, which of these are trained, and in which languages they are written.

torch and transformers load here.
"""

from __future__ import annotations

import importlib.util
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from tinychat.chat.session import find
from tinychat.config.schema import TokenizerConfig, TokenizerKind
from tinychat.data.chats.rows import ChatRow
from tinychat.data.chats.tokens import without_untrained
from tinychat.data.corpus.cleaning import language_of
from tinychat.data.preferences.rows import PreferenceRow
from tinychat.errors import UserError, install_command, no_such
from tinychat.inspect.layouts import texts_of
from tinychat.runs import folders, trial
from tinychat.runtime.run_files import at_home
from tinychat.text import TEMPLATES
from tinychat.text.chat_render import Refused
from tinychat.text.chat_template import EncodedChat, set_template, try_chats, try_prompts
from tinychat.text.tokenizer import (
    MIN_VOCAB_SIZE,
    encode_documents,
    load_saved_tokenizer,
    load_tokenizer,
    train_bpe,
)

LANGUAGE_ROWS = 500  # of the sample
LANGUAGE_CHARACTERS = 1000  # of each
SHORTEST = 20  # characters: the language of less is a guess
DEFAULT_TEMPLATE = "instruct"
# What of a letter's Unicode name tells its script.
SCRIPTS = {"CJK": "Chinese characters", "HIRAGANA": "Japanese", "KATAKANA": "Japanese", "HANGUL": "Korean"}


@dataclass(frozen=True)
class Measure:
    """A tokenizer and where it came from; `bytes`: there was none, so a token is a byte and lengths are characters."""

    tokenizer: PreTrainedTokenizerFast
    name: str
    bytes: bool

    @property
    def unit(self) -> str:
        return "characters" if self.bytes else "tokens"


def measure_of(spec: str | None, template: str | None, outputs: Path) -> Measure:
    """The tokenizer that is named: gpt2, a folder, a checkpoint or run as tinychat.chat takes them; None: the newest
    run's, and where there is none that of single bytes. template: a name or a file; None: the tokenizer's own, else
    instruct. Raises UserError."""
    folder = _newest(outputs) if spec is None else None
    if spec == "gpt2":
        config = TokenizerConfig(name="gpt2", kind=TokenizerKind.gpt2, path=None)
        found = Measure(load_tokenizer(config), "gpt2", False)
    elif spec is not None:
        place = find(spec, outputs)
        found = Measure(load_saved_tokenizer(place), place, False)
    elif folder is not None:
        found = Measure(load_saved_tokenizer(str(folder)), f"{folder}, of the newest run", False)
    else:
        found = Measure(train_bpe(["a"], MIN_VOCAB_SIZE, progress=False), "none", True)
    if template is not None:
        is_file = template not in TEMPLATES
        if is_file and not at_home(template).exists():
            raise no_such("--template", template, "chat template", TEMPLATES, "; or one of yours: FILE.jinja")
        set_template(found.tokenizer, "jinja" if is_file else template, template if is_file else None)
    elif not found.tokenizer.chat_template:
        set_template(found.tokenizer, DEFAULT_TEMPLATE)
    return found


def _newest(outputs: Path) -> Path | None:
    """The checkpoint of the newest finished run with a tokenizer."""
    experiments = [path.name for path in outputs.iterdir() if path.is_dir()] if outputs.is_dir() else []
    runs = [
        run
        for name in experiments
        for run in folders.matching_runs(outputs, name, lambda _: True, finished=True, skip=trial.of_search)
    ]
    for run in sorted(runs, key=lambda run: folders.order_of(run)[1:], reverse=True):
        try:
            checkpoint = folders.resolve_checkpoint(str(run))
        except UserError:
            continue
        if (checkpoint / "tokenizer.json").is_file():
            return checkpoint
    return None


def lengths_of(measure: Measure, sample: Sequence[Any]) -> np.ndarray:
    """(n,) of the rows that the template can write: tokens of a conversation or prompt in the template, of the longer
    side of a pair, of a document with its end; or characters, without a template."""
    if not sample:
        return np.zeros(0)
    if isinstance(sample[0], tuple):
        texts, scales = zip(*sample, strict=True)
        if measure.bytes:
            return np.array([len(text) * scale for text, scale in sample])
        sizes = [len(ids) for ids in encode_documents(measure.tokenizer, list(texts))]
        return np.array([size * scale + 1 for size, scale in zip(sizes, scales, strict=True)])
    if measure.bytes:
        return np.array([_characters(row) for row in sample])
    encoded = [_encoded(measure.tokenizer, row) for row in sample]
    return np.array([max(len(side.ids) for side in sides) for sides in encoded if sides])


def _characters(row: Any) -> int:
    parts = texts_of(row)
    if not isinstance(row, PreferenceRow):
        return sum(len(text) for _, text in parts)
    return sum(len(text) for _, text in parts[:-2]) + max(len(text) for _, text in parts[-2:])


def samples_of(measure: Measure, sample: Sequence[Any], count: int) -> list[list[tuple[str, EncodedChat | Refused]]]:
    """`count` rows at even distances, each as (what it is, its tokens and which are trained) for every sequence that
    a training makes of it."""
    places = sorted({len(sample) * index // count for index in range(count)}) if sample else []
    return [_named(measure.tokenizer, sample[place]) for place in places]


def _named(tokenizer: PreTrainedTokenizerFast, row: Any) -> list[tuple[str, EncodedChat | Refused]]:
    if isinstance(row, tuple):
        ids = [*encode_documents(tokenizer, [row[0]])[0], tokenizer.eos_token_id]
        return [("document", EncodedChat(np.array(ids, np.int32), np.ones(len(ids), bool), 0))]
    if isinstance(row, PreferenceRow):
        sides = (_last_reply(side) for side in try_chats(tokenizer, list(row.conversations())))
        return list(zip(("chosen", "rejected"), sides, strict=True))
    if isinstance(row, ChatRow):
        (encoded,) = try_chats(tokenizer, [row.messages])
        return [("conversation", encoded if isinstance(encoded, Refused) else without_untrained(row, encoded))]
    (ids_or_refused,) = try_prompts(tokenizer, [row.messages])
    if isinstance(ids_or_refused, Refused):
        return [("prompt", ids_or_refused)]
    nothing: np.ndarray = np.zeros(len(ids_or_refused), bool)
    return [("prompt", EncodedChat(np.array(ids_or_refused, np.int32), nothing, len(ids_or_refused)))]


def _last_reply(side: EncodedChat | Refused) -> EncodedChat | Refused:
    """A side of a pair: earlier replies are its prompt's."""
    if isinstance(side, Refused):
        return side
    return replace(side, trained=side.trained & (np.arange(len(side.ids)) >= side.prompt_length))


def _encoded(tokenizer: PreTrainedTokenizerFast, row: Any) -> list[EncodedChat]:
    """Its sequences; none where the template refuses one of them."""
    found = [encoded for _, encoded in _named(tokenizer, row)]
    sides = [one for one in found if not isinstance(one, Refused)]
    return sides if len(sides) == len(found) else []


def languages_of(sample: Sequence[Any]) -> tuple[dict[str, float], str]:
    """Shares of rows by language (ISO 639-1), the most frequent first, and how they were told apart: by py3langid, or
    where it is not installed by script."""
    texts = []
    for row in sample[:: max(1, len(sample) // LANGUAGE_ROWS)]:
        parts = [row[0]] if isinstance(row, tuple) else [text for _, text in texts_of(row)]
        text = "\n".join(parts)[:LANGUAGE_CHARACTERS]
        if len(text.strip()) >= SHORTEST or any(ord(letter) > 0x2E80 for letter in text):
            texts.append(text)
    if importlib.util.find_spec("py3langid"):
        counts = Counter(language_of(text)[0] for text in texts)
        how = "by py3langid"
    else:
        counts = Counter(map(_script, texts))
        how = f"by script; by language with py3langid: {install_command('corpus')}"
    return {name: count / len(texts) for name, count in counts.most_common()}, f"{how}, {len(texts)} rows"


def _script(text: str) -> str:
    """The script that most letters are of; what has kana is Japanese."""
    counts = Counter(
        unicodedata.name(letter, "?").replace("-", " ").split()[0] for letter in text[:200] if letter.isalpha()
    )
    if not counts:
        return "no letters"
    if counts["HIRAGANA"] + counts["KATAKANA"] > 0.1 * counts.total():
        return "Japanese"
    most = counts.most_common(1)[0][0]
    return SCRIPTS.get(most, most.capitalize())
