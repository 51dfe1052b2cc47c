"""Training a byte-level BPE tokenizer (the `tokenizers` library does the work).

Byte-level: the alphabet is the 256 bytes, so every text in every language has tokens, none is unknown, and
decoding gives the very bytes back. Words are cut by GPT-2's pattern (Radford et al. 2019, section 2.2).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tinychat.errors import UserError
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
