"""Conversations to tokens, which of the tokens are trained, and replies back to text.

A chat template is Jinja text kept in the tokenizer (`tokenizer.chat_template`), so that every tool that loads
the checkpoint formats a conversation as training did. A content never becomes a special token: one that spells
`<|im_end|>` gets the tokens of those letters, as in tinychat.text.tokenizer.encode_documents. That is the one
difference to `tokenizer.apply_chat_template`, which by default reads special tokens out of contents.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from rich.text import Text
from transformers import PreTrainedTokenizerFast

from tinychat.config.plugins import OWN_TEMPLATE
from tinychat.errors import UserError
from tinychat.runtime.run_files import at_home
from tinychat.runtime.terminal import as_text
from tinychat.text import CHAT_END, CHAT_START, TEMPLATES
from tinychat.text.chat_render import INSTEAD, Message, Refused, Rendered, render, special_tokens, template_of
from tinychat.text.template_process import shipped
from tinychat.text.tokenizer import decode_exactly, encoded_texts

BATCH = 2048  # conversations per call of the tokenizer: bounds the memory that its encodings take
NOTHING_TRAINED = f"no token would be trained: the chat template marks no reply in it; {INSTEAD}"
Found = TypeVar("Found")
Encoded = tuple[Rendered, list[int], np.ndarray]  # a conversation as text, ids (T) and their offsets in it (T, 2)
# Of each tokenizer: what decides, and the token that ends a reply, which every reply asks for.
_ENDS: WeakKeyDictionary[PreTrainedTokenizerFast, tuple[Any, int]] = WeakKeyDictionary()
PROBE = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
# Control characters would act on the terminal; their pictures do not.


@dataclass(frozen=True)
class EncodedChat:
    """The T tokens of one conversation."""

    ids: np.ndarray  # (T,) int32
    trained: np.ndarray  # (T,) bool: the token is a target (replies and their end tokens, nothing else)
    prompt_length: int  # tokens before the last reply; T where there is no reply


def set_template(tokenizer: PreTrainedTokenizerFast, name: str, path: str | None = None) -> None:
    """Give the tokenizer one of TEMPLATES, or the one in a file of the user's; OWN_TEMPLATE keeps what it has. Raises
    UserError for a name or a tokenizer with which that does not work."""
    if name == OWN_TEMPLATE:
        template_of(tokenizer)
        return
    text = read_template(path) if path else shipped(name) if name in TEMPLATES else None
    if text is None:
        raise UserError(f"template.name={name}: unknown; one of {', '.join((*TEMPLATES, OWN_TEMPLATE))}")
    known = special_tokens(tokenizer)
    # instruct.jinja names the first alone, to tell it from a token that begins a text; it does not write it.
    writes_them = CHAT_START in text and CHAT_END in text
    if writes_them and (missing := [token for token in (CHAT_START, CHAT_END) if token not in known]):
        raise UserError(
            f"template={name}: the tokenizer has no special token {' and no '.join(missing)}; use "
            "template=instruct, or a model with tokenizer=bpe or tokenizer=gpt2, which hold them"
        )
    tokenizer.chat_template = text
    if path:
        try:
            end_token_id(tokenizer)
        except UserError as error:
            raise UserError(f"template.path={path}: {error}") from None


def read_template(path: str) -> str:
    """The text of a template file. Raises UserError."""
    try:
        text = at_home(path).read_text("utf-8").rstrip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"template.path={path}: cannot be read ({error})") from None
    if not text.strip():
        raise UserError(f"template.path={path}: the file is empty")
    return text


def template_name(tokenizer: PreTrainedTokenizerFast) -> str:
    """For a message: which of TEMPLATES the tokenizer has, else how its own begins."""
    own = (tokenizer.chat_template or "").strip()
    for name in TEMPLATES:
        if own == shipped(name).strip():
            return name
    return f"{' '.join(own.split())[:60]}..." if own else "none"


def encode_chats(tokenizer: PreTrainedTokenizerFast, conversations: list[list[Message]]) -> list[EncodedChat]:
    """Tokens of whole conversations, each ending with a reply. Raises UserError for a conversation or a
    template that cannot be used."""
    return list(none_refused(try_chats(tokenizer, conversations)))


def try_chats(
    tokenizer: PreTrainedTokenizerFast, conversations: list[list[Message]]
) -> Iterator[EncodedChat | Refused]:
    """The same, with the reason in place of a conversation that cannot be used. Raises UserError for a template that
    is of no use for any."""
    for found in _encode(tokenizer, conversations, prompts=False):
        yield found if isinstance(found, Refused) else _with_replies(*found)


def _with_replies(rendered: Rendered, ids: list[int], offsets: np.ndarray) -> EncodedChat:
    trained: np.ndarray = np.zeros(len(ids), dtype=bool)
    prompt_length = len(ids)
    for start, end in rendered.replies:
        reply = (offsets[:, 0] < end) & (offsets[:, 1] > start)
        trained |= reply
        prompt_length = int(reply.argmax())
    return EncodedChat(np.array(ids, dtype=np.int32), trained, prompt_length)


def encode_prompts(tokenizer: PreTrainedTokenizerFast, conversations: list[list[Message]]) -> list[list[int]]:
    """Tokens of conversations that a reply is to follow. With TEMPLATES and a byte-level tokenizer these are
    the first `prompt_length` tokens of the conversation with its reply."""
    return list(none_refused(try_prompts(tokenizer, conversations)))


def try_prompts(
    tokenizer: PreTrainedTokenizerFast, conversations: list[list[Message]]
) -> Iterator[list[int] | Refused]:
    """The same, with the reason in place of a conversation that cannot be used, as try_chats."""
    for found in _encode(tokenizer, conversations, prompts=True):
        yield found if isinstance(found, Refused) else found[1]


def none_refused(found: Iterable[Found | Refused]) -> Iterator[Found]:
    """What was found, all of it. Raises the first reason why one could not be used."""
    for one in found:
        if isinstance(one, Refused):
            raise one
        yield one


def end_token_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The token that ends a reply. Raises UserError where the template trains none."""
    decides = (tokenizer.chat_template, tokenizer.eos_token)
    before, end = _ENDS.get(tokenizer, (None, 0))
    if before != decides:
        end = _find_end(tokenizer)
        _ENDS[tokenizer] = decides, end
    return end


def end_ids(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """The tokens that end a generated reply, ascending: the template's and the end of text. Raises UserError as
    end_token_id."""
    return tuple(sorted({end_token_id(tokenizer), tokenizer.eos_token_id}))


def _find_end(tokenizer: PreTrainedTokenizerFast) -> int:
    (encoded,) = encode_chats(tokenizer, [PROBE])
    special = set(special_tokens(tokenizer).values())
    ends = [token for token in encoded.ids[encoded.trained].tolist() if token in special]
    if not ends:
        raise UserError(f"chat template: marks no special token as the end of a reply; {INSTEAD}")
    return ends[-1]


def reply_text(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    """The text of a generated reply: up to its end token (or the end of text), without outer blanks. Other
    special tokens stay visible."""
    ends = end_ids(tokenizer)
    length = next((index for index, token in enumerate(ids) if token in ends), len(ids))
    return decode_exactly(tokenizer, ids[:length]).strip()


def check_trained(tokenizer: PreTrainedTokenizerFast, encoded: EncodedChat, place: str) -> None:
    """Raise UserError when nothing in a whole (uncut) conversation is trained, or a reply's end token is not.
    `place` names the conversation in the message."""
    if not encoded.trained.any():
        raise UserError(f"{place}: {NOTHING_TRAINED}")
    end = end_token_id(tokenizer)
    for start, stop in _runs(encoded.trained):
        if encoded.trained[start] and end not in encoded.ids[start:stop]:
            raise UserError(
                f"{place}: {tokenizer.convert_ids_to_tokens(end)}, which ends a reply, would not be trained, and "
                f"the model would never stop; {INSTEAD}"
            )


def coloured_example(tokenizer: PreTrainedTokenizerFast, encoded: EncodedChat, brackets: bool = False) -> Text:
    """The conversation for a terminal: trained tokens green and bold, the rest dim, ↵ where a line ends. brackets:
    trained ones also between ⟦ and ⟧."""
    text = Text()
    for start, stop in _runs(encoded.trained):
        piece = decode_exactly(tokenizer, encoded.ids[start:stop].tolist())
        if brackets and encoded.trained[start]:
            piece = f"⟦{piece}⟧"
        text.append(as_text(piece).replace("\n", "↵\n"), style="bold green" if encoded.trained[start] else "dim")
    return text


def _runs(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """[start, stop) of each stretch of equal values."""
    changes: list[int] = np.flatnonzero(values[1:] != values[:-1]).tolist()
    return pairwise([0, *(index + 1 for index in changes), len(values)])


def _encode(
    tokenizer: PreTrainedTokenizerFast, conversations: list[list[Message]], prompts: bool
) -> Iterator[Encoded | Refused]:
    """Each conversation as text, its ids (T) and their character offsets (T, 2). One call of the tokenizer for
    BATCH conversations, but for those that spell special tokens."""
    remaining = render(tokenizer, conversations, prompts)
    while batch := list(islice(remaining, BATCH)):
        plain = [one for one in batch if isinstance(one, Rendered) and not one.stand_ins]
        try:
            ordinary = iter(_tokenize(tokenizer, [one.text for one in plain], literal=False))
        except UserError:  # one of them: each by itself, to know which
            ordinary = None
        for one in batch:
            if isinstance(one, Refused):
                yield one
                continue
            try:
                if one.stand_ins:
                    ids, offsets = _encode_disarmed(tokenizer, one)
                elif ordinary is not None:
                    ids, offsets = next(ordinary)
                else:
                    ((ids, offsets),) = _tokenize(tokenizer, [one.text], literal=False)
            except UserError as error:
                yield Refused(str(error))
                continue
            yield (one, ids, offsets) if ids else Refused(f"the tokenizer gives no tokens for {one.text[:40]!a}")


def _encode_disarmed(tokenizer: PreTrainedTokenizerFast, rendered: Rendered) -> tuple[list[int], np.ndarray]:
    """Cut the text at its special tokens, all of them the template's; encode what lies between literally, with
    its own characters again. Tokenizers cut there too, so these are the tokens the whole text would have (but
    SentencePiece's may begin each piece with a blank)."""
    special = list(special_tokens(tokenizer).values())
    blanks = r"\s*"  # some special tokens swallow those beside them
    kinds = [tokenizer.added_tokens_decoder[index] for index in special]
    groups = [f"({blanks * kind.lstrip}{re.escape(kind.content)}{blanks * kind.rstrip})" for kind in kinds]
    cuts = list(re.finditer("|".join(groups), rendered.text))
    starts, ends = [0, *(cut.end() for cut in cuts)], [*(cut.start() for cut in cuts), len(rendered.text)]
    pieces = [rendered.text[start:end].translate(rendered.stand_ins) for start, end in zip(starts, ends, strict=True)]
    ids: list[int] = []
    offsets: list[np.ndarray] = []
    for start, (piece_ids, piece_offsets), cut in zip(
        starts, _tokenize(tokenizer, pieces, literal=True), [*cuts, None], strict=True
    ):
        ids += piece_ids
        offsets.append(piece_offsets + start)
        if cut:
            ids.append(special[(cut.lastindex or 0) - 1])
            offsets.append(np.array([cut.span()]))
    return ids, np.concatenate(offsets)


def _tokenize(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], literal: bool
) -> list[tuple[list[int], np.ndarray]]:
    """ids and offsets of each text; `literal`: no special token is read out of it."""
    if not texts:
        return []
    encoded = encoded_texts(tokenizer, texts, split_special_tokens=literal, return_offsets_mapping=True)
    return [
        (ids, np.array(offsets, dtype=np.int64).reshape(-1, 2))
        for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]
