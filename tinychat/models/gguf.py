"""A GGUF file, llama.cpp's single-file model, as a full checkpoint: weights in fp32, tokenizer, chat template, lineage.

transformers reads and dequantises it. Checked and mended here is what it passes over in silence: tensors that it knows
no place for, scaled rotary positions, pre-tokenizers that it takes for GPT-2's, padding that is the end of text.

    python -m tinychat.models.gguf FILE FOLDER

is what tinychat.runtime.gguf runs; its one line on standard output is the error.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tinychat.errors import UserError
from tinychat.models.build import grow_vocabulary
from tinychat.models.load import check_finite, check_loaded, one_line, other_than_parameters, quiet, write_weights
from tinychat.runs import folders
from tinychat.runs.parents import versions
from tinychat.runtime import manifest
from tinychat.runtime.run_files import said_of
from tinychat.runtime.terminal import say
from tinychat.text.tokenizer import separate_padding, vocabulary_size

ARCHITECTURES = ("gpt2", "llama", "qwen2", "qwen3")
NAME = "gguf"  # of what lineage.json says about the file
# llama.cpp's names of pre-tokenizers of byte-level vocabularies: GPT-2's, which is what transformers takes for every
# name that it does not know, and that after each digit by itself (llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE_*).
LIKE_GPT2 = ("gpt-2", "mpt", "olmo", "jais")
SINGLE_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell")
BYTE_LEVEL, SENTENCE_PIECE = "gpt2", "llama"  # tokenizer.ggml.model
# How the vocabularies of Qwen2 and of Llama 3 split text; as their tokenizer.json has it.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PATTERNS = {"qwen2": rf"{_WORDS}|\p{{N}}|{_REST}", "llama-bpe": rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}"}
NO_WEIGHTS = ("rope_freqs.weight",)  # tensors that scale rotary positions
INSTEAD = "give the model's original folder, as model=pretrained model.path=FOLDER"


def convert(file: Path, out: Path) -> None:
    """Write the model of a GGUF file as a full checkpoint; `out` appears whole or not at all, in place of what is
    there. Raises UserError for a file that is none, is cut short, or that would become another model."""
    began = time.monotonic()
    header = _Header(file)
    say(f"{file.name}: {header.describe()}; converting it, once, into {out}")
    with quiet():
        model = _read_weights(file, header)
        tokenizer = _read_tokenizer(file, header)
    before = tokenizer.pad_token
    separate_padding(tokenizer, str(file))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        grow_vocabulary(model, vocabulary_size(tokenizer))  # where no token of its own could be the padding
    for settings in (model.config, model.generation_config):
        settings.pad_token_id = tokenizer.pad_token_id
    padding = str(tokenizer.pad_token) + (f" in place of {before}" if before != tokenizer.pad_token else "")
    facts = {**header.facts(), "padding": padding, "end": tokenizer.eos_token}
    _write(model, tokenizer, facts, out)
    say(f"{file.name}: padding is {padding}, {tokenizer.eos_token} ends a text; {time.monotonic() - began:.0f} s")


class _Header:
    """What a GGUF file says of itself before its weights. Raises UserError for what cannot be converted."""

    def __init__(self, file: Path) -> None:
        import gguf

        self.file, self.bytes = file, file.stat().st_size
        try:
            reader = gguf.GGUFReader(file)
            self._fields = reader.fields
            self.tensors = {tensor.name: tensor for tensor in reader.tensors}
            end = max((tensor.data_offset + tensor.n_bytes for tensor in reader.tensors), default=0)
            self.architecture = str(self.get("general.architecture"))
        except Exception as error:  # numpy's, struct's and its own, as the bytes have it
            raise UserError(
                f"model {file}: cut short or no GGUF file ({self.bytes:,} bytes; {one_line(error)}); copy it again"
            ) from None
        if end > self.bytes:
            raise UserError(f"model {file}: cut short: {self.bytes:,} bytes of {end:,}; copy it again")
        if self.architecture not in ARCHITECTURES:
            raise UserError(
                f"model {file}: its architecture {self.architecture!r} is none of {', '.join(ARCHITECTURES)}; {INSTEAD}"
            )
        self._check_positions()
        self._check_vocabulary()

    def get(self, key: str) -> Any:
        """A value of its metadata, None where there is none."""
        return self._fields[key].contents() if key in self._fields else None

    def _check_positions(self) -> None:
        scaling = self.get(f"{self.architecture}.rope.scaling.type")
        scaled = next((name for name in NO_WEIGHTS if name in self.tensors), None) or (
            f"rope.scaling.type={scaling}" if scaling not in (None, "none") else None
        )
        if scaled:
            raise UserError(
                f"model {self.file}: its rotary positions are scaled ({scaled}), which transformers does not read out "
                f"of a GGUF file; {INSTEAD}"
            )

    def _check_vocabulary(self) -> None:
        tokens, kind = self.get("tokenizer.ggml.tokens"), self.get("tokenizer.ggml.model")
        if not tokens or "token_embd.weight" not in self.tensors:
            lacks = "tokens (tokenizer.ggml.tokens)" if not tokens else "embedding (token_embd.weight)"
            raise UserError(f"model {self.file}: holds no {lacks}; take the whole model's file")
        if kind not in (BYTE_LEVEL, SENTENCE_PIECE):
            raise UserError(
                f"model {self.file}: its kind of tokenizer {kind!r} is neither {BYTE_LEVEL!r} (bytes) nor "
                f"{SENTENCE_PIECE!r} (SentencePiece); {INSTEAD}"
            )
        self.rows = int(self.tensors["token_embd.weight"].shape[-1])
        if self.rows != len(tokens):
            raise UserError(
                f"model {self.file}: its tokenizer has {len(tokens):,} tokens, its embedding {self.rows:,} rows: they "
                "belong to different models; take the file that was made with the model's own tokenizer"
            )
        for key in ("bos", "eos", "unknown", "padding"):
            index = self.get(f"tokenizer.ggml.{key}_token_id")
            if index is not None and not 0 <= index < len(tokens):
                raise UserError(f"model {self.file}: its {key} token is {index}, of {len(tokens):,} tokens")

    def weights(self) -> int:
        """How many numbers its tensors hold."""
        return sum(int(tensor.n_elements) for tensor in self.tensors.values())

    def types(self) -> dict[str, int]:
        """Tensors by how they are stored, the commonest first."""
        return dict(Counter(tensor.tensor_type.name for tensor in self.tensors.values()).most_common())

    def describe(self) -> str:
        types = ", ".join(f"{count} {name}" for name, count in self.types().items())
        return f"{self.architecture}, {self.weights() / 1e6:.1f} M weights in {self.bytes / 1e6:,.0f} MB ({types})"

    def facts(self) -> dict[str, Any]:
        """What lineage.json says of the file."""
        known = {name: self.get(f"general.{name}") for name in ("architecture", "name", "license")}
        known = {name: value for name, value in known.items() if value is not None}
        return {
            "file": str(self.file.resolve()),
            "bytes": self.bytes,
            "checksum": manifest.checksum(self.file),
            **known,
            "types": self.types(),
        }


def _read_weights(file: Path, header: _Header) -> Any:
    """The model in fp32: what the file's numbers mean is no bf16 number, and few of them a fp16 one."""
    try:
        config = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name, trust_remote_code=False)
        # transformers leaves the defaults of the class
        if width := header.get(f"{header.architecture}.attention.key_length"):
            config.head_dim = int(width)
        if header.architecture == "gpt2":
            config.n_positions = int(header.get("gpt2.context_length"))
            config.n_inner = int(header.get("gpt2.feed_forward_length"))
        model, found = AutoModelForCausalLM.from_pretrained(
            str(file.parent),
            config=config,
            gguf_file=file.name,
            dtype=torch.float32,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # reported below, with the names
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises nearly anything
        raise UserError(f"model {file}: cannot be converted: {type(error).__name__}: {one_line(error)}") from None
    check_loaded(file, found)
    made = sum(p.numel() for p in model.parameters())
    if made != header.weights():
        raise UserError(
            f"model {file}: holds {header.weights():,} weights, {header.architecture} of its sizes has {made:,}: some "
            f"have no place in transformers' model; {INSTEAD}"
        )
    check_finite(model, f"model {file}")
    model.config.__dict__.pop("quantization_config", None)  # what it was stored as; it is full now
    return model


def _read_tokenizer(file: Path, header: _Header) -> PreTrainedTokenizerFast:
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    except BaseException as error:  # tokenizers may panic, which is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise UserError(
            f"model {file}: its tokenizer cannot be converted: {type(error).__name__}: {one_line(Exception(error))}"
        ) from None
    if vocabulary_size(tokenizer) != header.rows:
        raise UserError(
            f"model {file}: its {header.rows:,} tokens make a tokenizer of {vocabulary_size(tokenizer):,}; {INSTEAD}"
        )
    tokenizer.model_max_length = int(header.get(f"{header.architecture}.context_length"))
    if header.get("tokenizer.ggml.model") == BYTE_LEVEL:
        return _with_split(tokenizer, file, header.get("tokenizer.ggml.pre"))
    return tokenizer


def splits() -> dict[str, pre_tokenizers.PreTokenizer]:
    """Ways to split text before a byte-level BPE merges, by llama.cpp's names of them (tokenizer.ggml.pre)."""
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    found = {
        "gpt-2": words,
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words]),
    }
    for name, pattern in _PATTERNS.items():
        found[name] = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), plain])
    return found


def _with_split(tokenizer: PreTrainedTokenizerFast, file: Path, name: str | None) -> PreTrainedTokenizerFast:
    """The tokenizer that splits text as the vocabulary's merges were learnt, where transformers goes by the
    architecture. Raises UserError for a way that is not known: other splits give other tokens, which the model has not
    seen."""
    backend, found = tokenizer.backend_tokenizer, tokenizer
    kind = "gpt-2" if name in LIKE_GPT2 else "smollm" if name in SINGLE_DIGITS else str(name)
    known = splits().get(kind)
    if known is None:
        if isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
            raise UserError(f"model {file}: how its tokenizer splits text ({name}) is not known here; {INSTEAD}")
        return tokenizer
    backend.pre_tokenizer = known
    backend.normalizer = normalizers.NFC() if kind == "qwen2" else None
    if (
        type(tokenizer) is not PreTrainedTokenizerFast
    ):  # an architecture's own, which splits in its way when it is loaded
        found = PreTrainedTokenizerFast(
            tokenizer_object=backend, clean_up_tokenization_spaces=False, **tokenizer.special_tokens_map
        )
        found.chat_template, found.model_max_length = tokenizer.chat_template, tokenizer.model_max_length
    return found


def _write(model: Any, tokenizer: PreTrainedTokenizerFast, facts: dict[str, Any], out: Path) -> None:
    temporary = out.with_name(f".saving-{out.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        weights = {name: p.detach() for name, p in model.named_parameters()}
        write_weights(model, weights | other_than_parameters(model), temporary)
        tokenizer.save_pretrained(temporary)
        lineage = {
            "parents": {},
            "data": {},
            NAME: facts,
            "versions": versions(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        (temporary / folders.LINEAGE).write_text(json.dumps(lineage, indent=1), encoding="utf-8")
        manifest.write_manifest(temporary, None)
        shutil.rmtree(out, ignore_errors=True)
        os.replace(temporary, out)
    except (OSError, SafetensorError) as error:
        raise UserError(f"could not write {out}: {said_of(error)}; paths.cache=FOLDER takes another place") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def main() -> None:
    """Exit status: 0 done, 1 an error that was explained."""
    file, out = map(Path, sys.argv[1:])
    try:
        convert(file, out)
    except UserError as error:
        print(error)
        sys.exit(1)


if __name__ == "__main__":
    main()
