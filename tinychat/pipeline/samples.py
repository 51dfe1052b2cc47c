"""What the policies of a pipeline say to the same prompts, greedily, side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinychat.runs import folders
from tinychat.runtime import run_files

FILE = "samples.json"


def write_samples(folder: Path, policies: Mapping[str, Path], prompts: Sequence[str], max_new_tokens: int) -> None:
    """samples.json: {"policies": {name: checkpoint}, "samples": [{"prompt": text, NAME: reply, ...}]}.

    policies: name -> run folder, the first ones perhaps without a chat template: they get the last one's. Raises
    UserError for a checkpoint that cannot be read.
    """
    from tinychat.text.tokenizer import load_saved_tokenizer

    checkpoints = {name: folders.resolve_checkpoint(str(run)) for name, run in policies.items()}
    template = load_saved_tokenizer(str(list(checkpoints.values())[-1])).chat_template
    replies = {name: _replies(path, template, prompts, max_new_tokens) for name, path in checkpoints.items()}
    samples = [
        {"prompt": prompt} | {name: said[index] for name, said in replies.items()}
        for index, prompt in enumerate(prompts)
    ]
    content = {"policies": {name: str(path) for name, path in checkpoints.items()}, "samples": samples}
    folders.write_text_atomic(folder / FILE, json.dumps(content, indent=1, ensure_ascii=False))


def read_samples(folder: Path) -> dict[str, Any]:
    """What write_samples has written; {} where there is none, or (said once) none that can be used."""

    def read() -> dict[str, Any] | None:
        found = run_files.read_json(folder / FILE, {"policies": dict, "samples": list})
        names = ("prompt", *(found or {}).get("policies", {}))
        if not all(isinstance(row, dict) and row.keys() >= set(names) for row in (found or {}).get("samples", [])):
            raise run_files.Unreadable(f"{folder / FILE}: samples is no list of replies to prompts")
        return found

    return run_files.if_readable(read) or {}


def _replies(checkpoint: Path, template: str | None, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
    import torch

    from tinychat.models.generation.decode import DecodeOptions, decode
    from tinychat.models.generation.generate import prompt_ids
    from tinychat.models.load import load_model
    from tinychat.models.vocabulary import vocabulary
    from tinychat.text.chat_template import encode_prompts, end_token_id, reply_text
    from tinychat.text.tokenizer import load_saved_tokenizer

    tokenizer = load_saved_tokenizer(str(checkpoint))
    tokenizer.chat_template = tokenizer.chat_template or template
    model = load_model(str(checkpoint)).to("cuda" if torch.cuda.is_available() else "cpu").eval()
    ends = tuple({tokenizer.eos_token_id, end_token_id(tokenizer)}) if tokenizer.chat_template else ()
    if tokenizer.chat_template:
        ids = encode_prompts(tokenizer, [[{"role": "user", "content": prompt}] for prompt in prompts])
    else:  # a pipeline that ends with pretraining: the prompts as texts that go on
        ids, ends = [prompt_ids(tokenizer, prompt) for prompt in prompts], (tokenizer.eos_token_id,)
    room = model.config.max_position_embeddings
    fits = [index for index, prompt in enumerate(ids) if 0 < len(prompt) < room]
    options = DecodeOptions(max_new_tokens, ends, temperature=0.0, vocabulary=vocabulary(tokenizer))
    done = decode(model, [ids[index] for index in fits], options, tokenizer.pad_token_id or 0, len(prompts))
    said = dict(zip(fits, done.responses, strict=True))
    if not tokenizer.chat_template:
        return [tokenizer.decode(said.get(index, []), skip_special_tokens=True).strip() for index in range(len(ids))]
    return [reply_text(tokenizer, said.get(index, [])) for index in range(len(ids))]
