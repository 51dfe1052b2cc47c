"""Tokenizers: trained (a byte-level BPE, by the `tokenizers` library), loaded, used to encode documents, told apart.

Every tokenizer from here has an end-of-text token and a padding token that is another one. `bpe` and `gpt2`
tokenizers also hold the chat tokens, so that a model's vocabulary need not grow when it learns to chat.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import AutoTokenizer, BatchEncoding, GPT2Tokenizer, PreTrainedTokenizerFast

from tinychat.config.schema import TokenizerConfig, TokenizerKind
from tinychat.errors import UserError, install_command
from tinychat.runs import folders
from tinychat.runtime import gguf, hub
from tinychat.runtime.hub import GPT2_PACKAGE
from tinychat.runtime.run_files import at_home
from tinychat.text import CHAT_END, CHAT_START, END_OF_TEXT, PAD, RESERVED

MIN_VOCAB_SIZE = 256 + len(RESERVED)
# Letters and digits without a break, or neither, that are longer are trained on in pieces of so many characters. Each
# merge goes through its whole piece, so that time grows with the square of a piece's length: 1.8 MB of Chinese took
# 4 s in pieces of 64 or 256 characters, 5 s in pieces of 1,024, and as one piece a tenth of it took a minute.
LONGEST_PIECE = 256
_RUN = re.compile(rf"[^\W_]{{{LONGEST_PIECE + 1},}}|[\W_]{{{LONGEST_PIECE + 1},}}")
log = logging.getLogger(__name__)


def train_bpe(texts: Iterable[str], vocab_size: int, progress: bool) -> PreTrainedTokenizerFast:
    """Train on `texts`, read once. The special tokens take the first ids, the 256 bytes the next ones.

    `vocab_size` counts both; less text than it takes gives fewer entries. The same texts in the same order
    give the same tokenizer. Text without breaks is cut (LONGEST_PIECE), which a warning tells. Raises UserError for a
    vocabulary without room for the bytes, and where there is no text.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise UserError(
            f"tokenizer.vocab_size={vocab_size}: must be at least {MIN_VOCAB_SIZE} "
            f"(256 bytes and {len(RESERVED)} special tokens)"
        )
    characters = n_cut = 0

    def counted() -> Iterator[str]:
        nonlocal characters, n_cut
        for text in texts:
            characters += len(text)
            start = 0
            for run in _RUN.finditer(text):
                n_cut += 1
                for stop in range(run.start() + LONGEST_PIECE, run.end(), LONGEST_PIECE):
                    yield text[start:stop]
                    start = stop
            yield text[start:]

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(RESERVED),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=progress,
    )
    backend.train_from_iterator(counted(), trainer)
    if n_cut:
        log.warning(
            "%s stretches of text without a break (such as Chinese without punctuation) are longer than %d characters: "
            "trained on in pieces of that length",
            *(f"{n_cut:,}", LONGEST_PIECE),
        )
    if characters == 0:
        raise UserError("no text to train a tokenizer on: the training documents are empty; check data.path")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        extra_special_tokens=[CHAT_START, CHAT_END],
        clean_up_tokenization_spaces=False,
    )


GPT2_HUB_ID = "openai-community/gpt2"
VOCABULARY, MERGES = "vocab.json", "merges.txt"
# A folder that AutoTokenizer can load holds one of these.
SAVED = ("tokenizer.json", "tokenizer_config.json")
# What published tokenizers call their padding; and tokens that some hold and no text of theirs needs: StarCoder's and
# SmolLM's mark a notebook's empty output.
PAD_NAMES = (PAD, "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<empty_output>")


def load_tokenizer(
    config: TokenizerConfig, path: str | None = None, context_length: int | None = None
) -> PreTrainedTokenizerFast:
    """The configured tokenizer. `path`, where given, stands for config.path.

    `context_length` (tokens) becomes model_max_length, which saved tokenizers carry along; None keeps the
    tokenizer's own. Raises UserError where there is none, or a broken one.
    """
    path = path or config.path
    if config.kind is TokenizerKind.gpt2:
        tokenizer = load_gpt2(path)
    elif path is None:
        how = (
            "train one: python -m tinychat.train stage=tokenizer"
            if config.kind is TokenizerKind.bpe
            else "give a folder or hub id: tokenizer.path=FOLDER"
        )
        raise UserError(f"tokenizer.path=null: tokenizer={config.name} has no folder to load; {how}")
    else:
        tokenizer = load_saved_tokenizer(path)
        if config.kind is TokenizerKind.bpe:
            _reserve_chat_tokens(tokenizer)
    if context_length is not None:
        tokenizer.model_max_length = context_length
    return tokenizer


def load_saved_tokenizer(path: str) -> PreTrainedTokenizerFast:
    """The tokenizer saved in a folder (a checkpoint too), or of a GGUF file or a hub repository.

    Raises UserError where there is none, for one that cannot be loaded, and for one that was changed since tinychat
    wrote it.
    """
    folder = gguf.folder_of(path) if gguf.is_gguf(path) else at_home(path)
    if not folder.exists() and hub.is_hub_id(path):
        folder = hub.repository_folder(path, hub.TOKENIZER_FILES, "give a folder with a saved tokenizer")
    folders.verify_contents(folder, lambda name: "/" not in name and not name.endswith(".safetensors"))
    _check_folder(folder)
    if not any((folder / name).is_file() for name in SAVED):
        tokenizer = _from_bpe_files(folder / VOCABULARY, folder / MERGES)
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        except BaseException as error:  # transformers and tokenizers raise nearly anything on a malformed file
            if not _is_library_error(error):
                raise
            raise UserError(f"tokenizer {folder}: cannot be loaded: {_one_line(error)}") from None
    if not tokenizer.is_fast:
        raise UserError(
            f"tokenizer {folder}: has no tokenizer.json that the tokenizers library reads; convert it first"
        )
    separate_padding(tokenizer, str(folder))
    return tokenizer


def load_gpt2(path: str | None) -> PreTrainedTokenizerFast:
    """GPT-2's tokenizer and the reserved tokens: from a folder, else the `gpt2` extra's package, else the
    hub."""
    if path is not None:
        tokenizer = load_saved_tokenizer(path)
        _reserve_chat_tokens(tokenizer)
        return tokenizer
    package = importlib.util.find_spec(GPT2_PACKAGE)
    if package and package.submodule_search_locations:
        data = Path(package.submodule_search_locations[0]) / "data"
        return _from_bpe_files(data / "encoder.json", data / "vocab.bpe")
    instead = (
        "tokenizer=gpt2 takes tokenizer.path=FOLDER with vocab.json and merges.txt, "
        f"or {install_command('gpt2')}, or the hub"
    )
    folder = hub.repository_folder(GPT2_HUB_ID, (VOCABULARY, MERGES), instead)
    return _from_bpe_files(folder / VOCABULARY, folder / MERGES)


def encode_documents(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, on all cores. No special token is added, and none is read out of the text:
    a document that spells `<|endoftext|>` gets the tokens of those letters."""
    return encoded_texts(tokenizer, texts, split_special_tokens=True)["input_ids"] if texts else []


def encoded_texts(tokenizer: PreTrainedTokenizerFast, texts: list[str], **options: bool) -> BatchEncoding:
    """The texts' ids and what `options` ask for beside them, on all cores; no special token is added. Raises
    UserError, showing a text, for one that is no Unicode or that the tokenizer fails on."""
    try:
        return tokenizer(
            texts,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
            **options,
        )
    except BaseException as error:
        if not _is_library_error(error):
            raise
        for text in texts:
            _check_unicode(text)
        which = f", as {texts[0][:40]!a}" if len(texts) == 1 else ""
        raise UserError(
            f"tokenizer {tokenizer.name_or_path}: fails on a text{which}: {_one_line(error)}; use another one"
        ) from None


def _is_library_error(error: BaseException) -> bool:
    """What tokenizers raises; a panic of its Rust code, as of a pattern that never ends, is a BaseException alone."""
    return type(error).__name__ == "PanicException" or (
        isinstance(error, Exception) and not isinstance(error, MemoryError)
    )


def text_beginning(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """What stands before a text, in training, evaluation and generation alike; never empty: the tokens that the
    tokenizer itself puts there (Llama's `<s>`), else the end of text, which stands between documents."""
    probe = tokenizer("a", return_special_tokens_mask=True, verbose=False)
    ids, special = probe["input_ids"], probe["special_tokens_mask"]
    if 0 in special[1:] and special[0]:
        return ids[: special.index(0)]
    return [tokenizer.eos_token_id]


def vocabulary_size(tokenizer: PreTrainedTokenizerFast) -> int:
    """Rows that a model needs for it: the largest id and one. That is more than `len(tokenizer)`, its number of
    tokens, where ids have holes."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """A hash of all that decides which ids a text gets, the same before saving and after loading."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    # Left by whatever the tokenizer was last called with; encode_documents uses neither.
    state.pop("truncation", None)
    state.pop("padding", None)
    state["special"] = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]


def _from_bpe_files(vocabulary: Path, merges: Path) -> PreTrainedTokenizerFast:
    """GPT-2's two original files as a tokenizer with the reserved tokens."""
    try:
        vocab, rules = BPE.read_file(str(vocabulary), str(merges))
        return GPT2Tokenizer(
            vocab=vocab,
            merges=rules,
            pad_token=PAD,
            extra_special_tokens=[CHAT_START, CHAT_END],
            clean_up_tokenization_spaces=False,
        )
    except BaseException as error:
        if not _is_library_error(error):
            raise
        raise UserError(f"tokenizer {vocabulary.parent}: cannot be loaded: {_one_line(error)}") from None


def _check_folder(folder: Path) -> None:
    """One-line errors for what AutoTokenizer reports as a page of traceback."""
    if not folder.exists():
        raise UserError(f"tokenizer {folder}: no such folder")
    if folder.is_file():
        raise UserError(f"tokenizer {folder}: is a file; give the folder it is in")
    both = (folder / VOCABULARY).is_file() and (folder / MERGES).is_file()
    if not both and not any((folder / name).is_file() for name in SAVED):
        raise UserError(f"tokenizer {folder}: holds neither tokenizer.json nor vocab.json with merges.txt")
    for name in (*SAVED, VOCABULARY, "special_tokens_map.json", "added_tokens.json"):
        if (folder / name).is_file():
            try:
                json.loads((folder / name).read_text(encoding="utf-8"))
            except ValueError as error:
                raise UserError(f"tokenizer {folder / name}: broken JSON ({error}); save it again") from None


def separate_padding(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """Give it a padding token other than its end of text: one of its own where it has one that its chat template does
    not write, else `<|pad|>`. The end of text stays as it is. `name` names it in a message."""
    if tokenizer.eos_token is None:
        if END_OF_TEXT not in tokenizer.get_vocab():
            raise UserError(f"tokenizer {name}: has no end-of-text token; set eos_token in tokenizer_config.json")
        tokenizer.eos_token = END_OF_TEXT
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        known, writes = tokenizer.get_vocab(), str(tokenizer.chat_template or "")
        own = [name for name in PAD_NAMES if name in known and name != tokenizer.eos_token and name not in writes]
        was_end = tokenizer.pad_token is not None
        _add_special(tokenizer, name, {"pad_token": own[0] if own else PAD})
        if was_end:
            _tell_parted(name, tokenizer.pad_token, tokenizer.eos_token)


@functools.cache
def _tell_parted(name: str, padding: str, end: str) -> None:
    """Once in a process, which may load a tokenizer several times."""
    log.info(
        "tokenizer %s: its padding was its end of text, so that no reply would learn to end: %s pads, %s ends",
        name,
        padding,
        end,
    )


def _add_special(tokenizer: PreTrainedTokenizerFast, name: str, tokens: dict[str, Any]) -> None:
    """As add_special_tokens, beside the extra ones that there are. Raises UserError where a new token would have the id
    of another: the library counts on from the number of entries, which another may have where ids have holes."""
    before = tokenizer.get_vocab()
    taken = {index: token for token, index in before.items()}
    tokenizer.add_special_tokens(tokens, replace_extra_special_tokens=False)
    for token, index in tokenizer.get_vocab().items():
        if token not in before and index in taken:
            raise UserError(
                f"tokenizer {name}: its ids have holes, so that {token}, which it lacks, would get id {index}, that of "
                f"{taken[index]!r}; add {token} with an id of its own to added_tokens in its tokenizer.json"
            )


def _reserve_chat_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    missing = [token for token in (CHAT_START, CHAT_END) if token not in tokenizer.all_special_tokens]
    if missing:
        _add_special(tokenizer, tokenizer.name_or_path, {"extra_special_tokens": missing})


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        around = ascii(text[max(0, error.start - 20) : error.start + 20])
        raise UserError(
            f"text with half of a surrogate pair, which is no Unicode: {around}; repair that document"
        ) from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def decode_exactly(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    """The tokens' text as it is: special tokens kept, spaces not tidied."""
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
