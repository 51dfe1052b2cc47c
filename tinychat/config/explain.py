"""What was wrong and what would have worked: Hydra's messages as one line, and what a slip may have meant."""

from __future__ import annotations

import difflib
import functools
import re
import typing
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf.errors import MissingMandatoryValue

from tinychat.config.schema import DATA, Config
from tinychat.config.specs import SPECS
from tinychat.errors import UserError

# What other programs call a key, and its name here: the first that there is.
_ELSEWHERE = {
    "learning_rate": ("lr",),
    "num_steps": ("max_steps",),
    "steps": ("max_steps",),
    "max_iters": ("max_steps",),
    "iters": ("max_steps",),
    "iterations": ("max_steps",),
    "epochs": ("epochs", "max_steps"),
    "num_epochs": ("epochs", "max_steps"),
    "num_train_epochs": ("epochs", "max_steps"),
    "warmup": ("warmup_steps",),
    "warmup_ratio": ("warmup_steps",),
    "batch": ("batch_size",),
    "bs": ("batch_size",),
    "global_batch_size": ("batch_size",),
    "train_batch_size": ("batch_size",),
    "device_batch_size": ("micro_batch_size",),
    "per_device_train_batch_size": ("micro_batch_size",),
    "train_micro_batch_size_per_gpu": ("micro_batch_size",),
    "gradient_accumulation_steps": ("micro_batch_size",),
    "grad_accum_steps": ("micro_batch_size",),
    "max_grad_norm": ("grad_clip",),
    "gradient_checkpointing": ("activation_checkpointing",),
    "eval_steps": ("eval_every",),
    "eval_interval": ("eval_every",),
    "logging_steps": ("log_every",),
    "log_interval": ("log_every",),
    "save_steps": ("checkpoint.every",),
    "save_every": ("checkpoint.every",),
    "save_total_limit": ("checkpoint.keep_last",),
    "lr_scheduler": ("schedule",),
    "lr_scheduler_type": ("schedule",),
    "block_size": ("context_length",),
    "seq_len": ("context_length",),
    "max_length": ("context_length",),
    "max_seq_length": ("context_length",),
    "max_seq_len": ("context_length",),
    "layers": ("n_layer",),
    "num_layers": ("n_layer",),
    "num_hidden_layers": ("n_layer",),
    "hidden_size": ("n_embd",),
    "d_model": ("n_embd",),
    "dim": ("n_embd",),
    "heads": ("n_head",),
    "num_heads": ("n_head",),
    "num_attention_heads": ("n_head",),
    "output_dir": ("paths.outputs",),
    "out_dir": ("paths.outputs",),
    "output": ("paths.outputs",),
    "dataset": ("data",),
    "data_path": ("data.path",),
    "checkpoint_path": ("init_from",),
    "model_name_or_path": ("model.path",),
    "from_checkpoint": ("init_from",),
    "kl_coef": ("beta",),
    "clip_range": ("clip_high",),
    "cliprange": ("clip_high",),
    "max_new_tokens": ("response_length", "generate_tokens"),
    "dtype": ("precision",),
    "bf16": ("precision",),
    "fp16": ("precision",),
    "gpus": ("launch.nproc",),
    "num_gpus": ("launch.nproc",),
    "nproc_per_node": ("launch.nproc",),
    "experiment": ("experiment_name",),
    "name": ("run_name",),
    "rank": ("r",),
    "lora_r": ("r",),
    "lora_alpha": ("alpha",),
    "resume_from_checkpoint": ("resume",),
}


def explain(error: BaseException) -> str:
    """Hydra's and OmegaConf's messages as one line: what was wrong, and what would have worked."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    lines = [line.strip() for part in chain for line in str(part).splitlines()]
    key = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("full_key:")), "")
    if isinstance(chain[-1], MissingMandatoryValue) and key:
        return f"{key} has no default: give {key}=VALUE"
    noise = ("full_key:", "object_type=", "reference_type=", "Config search path:", "provider=", "To append to your")
    wanted = dict.fromkeys(line for line in lines if line and not line.startswith(noise))
    text = re.sub(r"\s+", " ", re.sub(r"(?<![.:?])\n(?=[A-Z])", ". ", "\n".join(wanted)))
    if absent := re.search(r"because '(\w+)\.(\w+)' is None", text):
        text += f"; {absent[1]}={absent[2]} has it"
    if "Available options in" in text:
        text += "." + _nearest_option(text)
    if "Did you mean" in text:  # Hydra has found it
        return text if not key or key in text else f"{key}: {text}"
    if wrong := re.search(r"Invalid value '([^']+)', expected one of \[(.*)\]", text):
        near_value = difflib.get_close_matches(wrong[1], wrong[2].split(", "), n=1)
        text += f". Did you mean {near_value[0]}?" if near_value else ""
    if slip := re.search(r"Could not override '([^']+)'. Key '[^']+' (?:is )?not in '(\w+)'", text):
        keys = known_keys(next((name for name, spec in SPECS.items() if spec.settings.__name__ == slip[2]), None))
        near = nearest_key(slip[1], keys)
        text += f". Did you mean {near}?" if near else "; --cfg job shows all keys"
    if new := re.search(r"Could not override '([^']+)'. Key '[^']+' is not in struct", text):
        text += f"; names of your own are added with a plus: '+{new[1]}=...'"
    own = re.search(r"merging override \+?([\w.]+)\.(\w+)=.*dict is not a subclass", text)
    if own:
        text = f"{own[1]}.{own[2]}: names of your own are given all at once: '+{own[1]}={{{own[2]}: {{...}}}}'"
    return text if not key or key in text else f"{key}: {text}"


def _nearest_option(text: str) -> str:
    match = re.search(r"Could not find '([^']+)/([^'/]+)'.*Available options in '[^']+': (.*)", text)
    if not match:
        return ""
    near = difflib.get_close_matches(match.group(2), match.group(3).rstrip(".").split(), n=1, cutoff=0.4)
    return f" Did you mean {match.group(1)}={near[0]}?" if near else ""


def did_you_mean(word: str, folder: Path) -> str:
    """`. Did you mean ...?` for a word that is no setting: the option of a group in `folder` (conf/) that it names, or
    KEY[=VALUE] of the nearest key; "" where nothing is near."""
    name, equals, value = word.partition("=")
    options = [f"{path.parent.name}={path.stem}" for path in sorted(folder.glob("*/*.yaml"))]
    if not equals:
        named = [option for option in options if option.partition("=")[2] == name]
        if named:
            return f". Did you mean {' or '.join(named)}?"
    near = nearest_key(name, known_keys())
    if near is None and not equals:
        close = difflib.get_close_matches(name, [option.partition("=")[2] for option in options], n=1, cutoff=0.75)
        near = next((option for option in options if close and option.endswith(f"={close[0]}")), None)
        return f". Did you mean {near}?" if near else ""
    return f". Did you mean {near}={value or 'VALUE'}?" if near else ""


def check_tuned(words: Iterable[str], folder: Path) -> None:
    """Raise UserError for a tuned= that conf/ (`folder`) has no file for: Hydra passes over an optional group's missing
    option, also where it was named."""
    known = {path.stem for path in (folder / "tuned").glob("*.yaml")}
    for word in words:
        key, _, value = word.partition("=")
        for name in value.split(",") if key == "tuned" else ():
            if name not in known | {"null", ""} and re.fullmatch(r"\w+", name):
                near = difflib.get_close_matches(name, known, n=1)
                hint = f" Did you mean tuned={near[0]}?" if near else ""
                raise UserError(f"{word}: there are {', '.join(sorted(known))}.{hint}")


def check_taken(words: Iterable[str], folder: Path, users: Path | None) -> None:
    """Raise UserError for a file of the user's conf/ that is named as one of tinychat's, which would be taken."""
    for word in words:
        group, _, names = word.partition("=")
        for name in names.strip("[]").split(",") if users and re.fullmatch(r"\w+", group) else ():
            file = Path(group) / f"{name}.yaml"
            if re.fullmatch(r"\w+", name) and (folder / file).is_file() and (Path(str(users)) / file).is_file():
                raise UserError(f"{users}/{file}: the name {name} is taken by tinychat's own {group}={name}; rename it")


def nearest_key(key: str, keys: Iterable[str]) -> str | None:
    """Which of `keys` a key that does not exist may have meant: one with the same last part, what other programs call
    so, or the one that is written most alike."""
    keys = list(keys)
    plain = key.lstrip("+~").partition("@")[0]
    prefix, _, leaf = plain.rpartition(".")
    for name in (leaf, *_ELSEWHERE.get(leaf.lower(), ())):
        same = [other for other in keys if other == name or other.rpartition(".")[2] == name]
        inside = [other for other in same if prefix and other.startswith(f"{prefix}.")]
        if same:
            return (inside or sorted(same, key=lambda other: (not other.startswith("stage."), len(other))))[0]
    # By the last parts, in the same group first; then as a whole, as the part before the point may be the slip.
    groups = {other.rpartition(".")[2]: other for other in keys if prefix and other.startswith(f"{prefix}.")}
    leaves = {other.rpartition(".")[2]: other for other in keys}
    whole = {key: key for key in keys}
    for known, word, cutoff in ((groups, leaf, 0.6), (whole, plain, 0.8), (leaves, leaf, 0.7)):
        if near := difflib.get_close_matches(word, known, n=1, cutoff=cutoff):
            return known[near[0]]
    return None


@functools.cache
def known_keys(stage: str | None = None) -> tuple[str, ...]:
    """Every key of a job, as `stage.lr`; of one stage, or of all."""
    specs = [SPECS[stage]] if stage else list(SPECS.values())
    own = [f"stage.{field.name}" for spec in specs for field in fields(spec.settings) if field.name != "name"]
    own += [f"data.{field.name}" for settings in DATA.values() for field in fields(settings)]
    return tuple(dict.fromkeys([*_keys_of(Config), *own]))


def _keys_of(node: Any, prefix: str = "") -> list[str]:
    found: list[str] = []
    hints = typing.get_type_hints(node)
    for field in fields(node):
        kinds = typing.get_args(hints[field.name]) or (hints[field.name],)
        nested = next((kind for kind in kinds if is_dataclass(kind)), None)
        if typing.get_origin(hints[field.name]) is dict:  # names of the user's own
            nested = None
        found.append(f"{prefix}{field.name}")
        found += _keys_of(nested, f"{prefix}{field.name}.") if nested else []
    return found
