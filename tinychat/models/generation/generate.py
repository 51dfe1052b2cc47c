"""Continuing text with a model: transformers' generate, seeded, within the context, streamed character by
character.

The keys and values of a dialogue are kept from one turn to the next, so that only new tokens are computed.

torch's global random state is the same afterwards as before, so that samples taken during training do not
change it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import (
    Cache,
    DynamicCache,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from tinychat.errors import UserError
from tinychat.models.adapters import is_adapter
from tinychat.models.generation.sampling import SamplingOptions
from tinychat.models.kernels.kv_cache import CACHE
from tinychat.models.vocabulary import vocabulary
from tinychat.text.tokenizer import decode_exactly, encoded_texts, text_beginning


class KeptCache:
    """The key-value cache of the last generation and the tokens it stands for.

    A generation calls begin() with its prompt, computes what the cache lacks, and calls end(). One that broke off
    in between leaves nothing to reuse, as its layers may hold different tokens.
    """

    def __init__(self, config: PreTrainedConfig):
        self._config = config
        self.clear()

    def clear(self) -> None:
        """Forget everything and free the memory."""
        self._cache: Cache | None = None
        self._ids: list[int] = []

    def begin(self, prompt: list[int]) -> Cache:
        """The cache, cut back to the tokens it has in common with the beginning of `prompt` (T >= 1 tokens).

        At most T - 1 of them: the last token must be computed for the scores of the next one.
        """
        common = 0
        for ours, wanted in zip(self._ids, prompt[:-1], strict=False):
            if ours != wanted:
                break
            common += 1
        cache = self._cut(common)
        self.clear()
        self._cache = cache or DynamicCache(config=self._config)
        return self._cache

    def end(self, ids: list[int]) -> None:
        """Say which tokens were generated from: the prompt and what followed. The last was perhaps not computed."""
        assert self._cache is not None
        self._ids = ids[: self._cache.get_seq_length()]

    def _cut(self, length: int) -> Cache | None:
        """The cache with its first tokens alone; None where there are none, or its layers cannot be cut."""
        if self._cache is None or length == 0:
            return None
        if length < len(self._ids):
            try:
                self._cache.crop(length - len(self._ids))
            except RuntimeError:  # a sliding window or a recurrent state has forgotten what was before
                return None
        return self._cache


# Generation settings that a checkpoint may bring without a word: which tokens are special, what an option here stands
# for, and what changes no token.
OWN_SETTINGS = {"bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "transformers_version"}
OWN_SETTINGS |= {"do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "max_length", "max_new_tokens"}
OWN_SETTINGS |= {"_from_model_config", "use_cache", "output_attentions", "output_hidden_states", "output_scores"}
OWN_SETTINGS |= {"output_logits", "return_dict_in_generate", "trust_remote_code"}
log = logging.getLogger("tinychat")
UNFINISHED = "\ufffd"  # what decoding gives for the first bytes of a character whose other bytes are yet to come
OVERLAP = 6  # tokens before a new one that decide how it decodes (leading spaces, split characters)


def fit_to_context(prompt_tokens: int, max_new_tokens: int, context: int) -> tuple[int, int]:
    """(prompt tokens kept, new tokens) so that both fit into `context` tokens.

    New tokens are given up first, down to half of the context; then the prompt's beginning is.
    """
    new = min(max_new_tokens, max(context - prompt_tokens, context // 2))
    return min(prompt_tokens, context - new), new


def continue_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: list[str], options: SamplingOptions
) -> list[str]:
    """The text that follows each prompt (without the prompt), all prompts in one left-padded batch.

    It ends at an end of text, after max_new_tokens, or where the context is full. An empty prompt starts a
    new text.
    """
    if not prompts:
        return []
    encoded = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    kept, new = fit_to_context(max(map(len, encoded)), options.max_new_tokens, model.config.max_position_embeddings)
    encoded = [ids[-kept:] for ids in encoded]
    padded = tokenizer.pad({"input_ids": encoded}, padding_side="left", return_tensors="pt")
    # A pretrained model may have no row for its tokenizer's added padding token; masked, any token serves.
    input_ids = padded["input_ids"].masked_fill(padded["attention_mask"] == 0, _pad_id(model, tokenizer))
    output = _generate(
        model, tokenizer, input_ids, padded["attention_mask"], dataclasses.replace(options, max_new_tokens=new)
    )
    texts = []
    for ids, row in zip(encoded, output[:, input_ids.shape[1] :].tolist(), strict=True):
        decoder = IncrementalText(tokenizer, ids)
        texts.append("".join([decoder.add(token) for token in row]) + decoder.rest())
    return texts


def stream_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt: str, options: SamplingOptions
) -> Iterator[str]:
    """The same continuation of one prompt, in pieces as they are generated; see stream_ids."""
    ids = prompt_ids(tokenizer, prompt)
    kept, new = fit_to_context(len(ids), options.max_new_tokens, model.config.max_position_embeddings)
    return stream_ids(model, tokenizer, ids[-kept:], dataclasses.replace(options, max_new_tokens=new))


def stream_ids(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    ids: list[int],
    options: SamplingOptions,
    cache: KeptCache | None = None,
    end_ids: tuple[int, ...] = (),
    generated: list[int] | None = None,
) -> Iterator[str]:
    """The text that follows the tokens `ids`, in pieces as they are generated; it must fit into the context.

    `cache` spares computing what it holds of the same beginning, and holds all of it afterwards. `end_ids` end
    the text beside the end of text. The new tokens are appended to `generated`, the one that ended the text too.

    Closing the iterator (or an exception in the loop that reads it, Ctrl-C included) stops the generation, and
    leaves `cache` and `generated` as they are after the last whole token.
    """
    generated = [] if generated is None else generated
    input_ids = torch.tensor([ids])
    pieces: queue.Queue[str | BaseException | None] = queue.Queue()
    stop = threading.Event()
    streamer = _QueueStreamer(IncrementalText(tokenizer, ids), pieces, generated)

    def work() -> None:
        try:
            past = cache.begin(ids) if cache is not None else None
            _generate(model, tokenizer, input_ids, torch.ones_like(input_ids), options, end_ids, streamer, stop, past)
            if cache is not None:
                cache.end([*ids, *generated])
        except BaseException as error:
            pieces.put(error)  # raised again in the thread that reads
        finally:
            pieces.put(None)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        while (piece := pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            if piece:
                yield piece
    finally:
        stop.set()
        while worker.is_alive():  # a second Ctrl-C must not leave it at work on the cache; it stops after one token
            with contextlib.suppress(KeyboardInterrupt):
                worker.join()


def prompt_ids(tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[int]:
    """Token ids of a prompt as the beginning of a text, after what stands there in training (text_beginning). A
    prompt may spell special tokens."""
    before = text_beginning(tokenizer)
    (ids,) = encoded_texts(tokenizer, [prompt])["input_ids"]
    return ids if ids[: len(before)] == before else [*before, *ids]


def reply_after(
    tokenizer: PreTrainedTokenizerFast, before: list[int], ids: list[int], ends: Sequence[int], stops: Sequence[str]
) -> tuple[str, bool]:
    """The text of generated tokens without those that end it, up to the first of `stops`; and whether one of those
    was there. before: tokens that it goes on from, of which some decide how it decodes; [] where a template ends."""
    shown, near = [token for token in ids if token not in ends], before[-OVERLAP:]
    text = decode_exactly(tokenizer, near + shown)[len(decode_exactly(tokenizer, near)) :]
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places, default=len(text))], bool(places)


def stopped_by(tokenizer: PreTrainedTokenizerFast, stops: Sequence[str]) -> Callable[[list[int]], bool]:
    """Whether tokens end with, or hold near their end, one of the texts that stop a reply: a Filter's `stopped`."""
    # A token is a byte or more; those before may hold the rest of a character.
    window = max(len(stop.encode()) for stop in stops) + 4

    def stopped(response: list[int]) -> bool:
        text = decode_exactly(tokenizer, response[-window:])
        return any(stop in text for stop in stops)

    return stopped


class IncrementalText:
    """Decodes tokens one at a time, each character as soon as all its bytes are there; special tokens are
    left out.

    Tokens are decoded together with the few before them, as a token's text depends on those (after Hugging
    Face's text-generation-inference). `prefix` are the tokens of the prompt.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, prefix: list[int]):
        self._tokenizer = tokenizer
        self._ids = prefix[-OVERLAP:]
        self._start, self._done = 0, len(self._ids)

    def add(self, token: int) -> str:
        """The text that is complete with this token, often "" in the middle of a character."""
        self._ids.append(token)
        text = self._new_text()
        if not text or text.endswith(UNFINISHED):
            return ""
        self._start, self._done = self._done, len(self._ids)
        return text

    def rest(self) -> str:
        """What is left when no token follows, half characters as U+FFFD."""
        text = self._new_text()
        self._start = self._done = len(self._ids)
        return text

    def _new_text(self) -> str:
        before = self._decode(self._ids[self._start : self._done])
        return self._decode(self._ids[self._start :])[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class _QueueStreamer(BaseStreamer):
    """Receives tokens from generate, keeps them and puts their text into a queue. The first call carries the
    prompt."""

    def __init__(self, text: IncrementalText, pieces: queue.Queue, tokens: list[int]):
        self._text, self._pieces, self._tokens, self._prompt_seen = text, pieces, tokens, False

    def put(self, value: torch.Tensor) -> None:
        if self._prompt_seen:
            for token in value.flatten().tolist():
                self._tokens.append(token)
                self._pieces.put(self._text.add(token))
        self._prompt_seen = True

    def end(self) -> None:
        self._pieces.put(self._text.rest())


class _StopWhenSet(StoppingCriteria):
    def __init__(self, event: threading.Event):
        self._event = event

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._event.is_set(), device=input_ids.device)


def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    options: SamplingOptions,
    end_ids: tuple[int, ...] = (),
    streamer: BaseStreamer | None = None,
    stop: threading.Event | None = None,
    past: Cache | None = None,
) -> torch.Tensor:
    """input_ids [B, T] left-padded -> [B, T + new]; the model's mode is kept. `past` holds the keys and values of
    the first of the T tokens, and of all that were computed afterwards."""
    was_training = model.training
    wanted = _generation_config(model, tokenizer, options, end_ids)
    _tell_unused(model)
    model.eval()
    try:
        with torch.no_grad(), _without_own_settings(model), seeded(options.seed, model.device):
            return model.generate(
                input_ids.to(model.device),
                attention_mask=attention_mask.to(model.device),
                generation_config=wanted,
                streamer=streamer,
                **({} if past is None else {CACHE: past}),
                stopping_criteria=StoppingCriteriaList([_StopWhenSet(stop)] if stop else []),
            )
    finally:
        model.train(was_training)


@contextlib.contextmanager
def _without_own_settings(model: PreTrainedModel) -> Iterator[None]:
    """What an option leaves open, transformers takes from the model: beams, penalties and bounds that nobody asked
    for. Inside there are none."""
    parts = [model, model.get_base_model()] if is_adapter(model) else [model]
    brought = [part.generation_config for part in parts]
    try:
        for part in parts:
            part.generation_config = GenerationConfig()
        yield
    finally:
        for part, own in zip(parts, brought, strict=True):
            part.generation_config = own


def _tell_unused(model: PreTrainedModel) -> None:
    """Warn, once a model, of settings in its generation_config.json that change which tokens are drawn."""
    brought = model.generation_config
    if getattr(model, "_told_unused", None) is brought:
        return
    model._told_unused = brought
    found = {key: value for key, value in brought.to_diff_dict().items() if key not in OWN_SETTINGS}
    if found:
        said = ", ".join(f"{key}={value!r}" for key, value in sorted(found.items()))
        log.warning("%s: its generation settings are not used beside the options given: %.300s", _name(model), said)


def _name(model: PreTrainedModel) -> str:
    return model.name_or_path or "the model"


def _generation_config(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, options: SamplingOptions, end_ids: tuple[int, ...]
) -> GenerationConfig:
    """Every option is set here, so that none is taken from what a published model brings along."""
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if odd := [end for end in ends if not isinstance(end, int)]:
        raise UserError(
            f"{_name(model)}: eos_token_id in generation_config.json holds {odd[0]!r}, which is no token's number"
        )
    all_ends = {*end_ids, tokenizer.eos_token_id, *ends} - {None}
    known, rows = vocabulary(tokenizer), model.get_input_embeddings().weight.shape[0]
    no_token = [*known.holes, *range(known.size or 0, rows)]
    sampling = {"temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p}
    return GenerationConfig(
        max_new_tokens=options.max_new_tokens,
        do_sample=not options.greedy,
        repetition_penalty=options.repetition_penalty,
        eos_token_id=sorted(all_ends),
        pad_token_id=_pad_id(model, tokenizer),
        suppress_tokens=no_token or None,
        **({} if options.greedy else sampling),
    )


def _pad_id(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> int:
    rows = model.get_input_embeddings().weight.shape[0]
    return tokenizer.pad_token_id if tokenizer.pad_token_id < rows else tokenizer.eos_token_id


@contextlib.contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Random numbers from `seed` (None: an unpredictable one), and the global state as it was afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        if seed is None:
            torch.seed()
        else:
            torch.manual_seed(seed)
        yield
