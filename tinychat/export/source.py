"""What is exported: a policy, a reward model or a policy's value function, as a folder that transformers loads."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification

from tinychat.config.stages import Pooling
from tinychat.errors import UserError
from tinychat.models import reward
from tinychat.models.actor_critic import VALUE_FOLDER, VALUE_HEAD_FILE
from tinychat.models.adapters import is_adapter_folder, merge_adapter
from tinychat.models.checkpoints import load_config, load_model, merge_checkpoint
from tinychat.models.load import CONFIG, model_folder, read_model, write_weights
from tinychat.models.word_judge import is_word_judge
from tinychat.runs import folders
from tinychat.runtime import hub, manifest
from tinychat.runtime.run_files import read_json
from tinychat.text.tokenizer import load_saved_tokenizer


class Part(Enum):
    """What of a checkpoint is meant."""

    policy = "policy"  # continues texts
    reward = "reward"  # scores a prompt with its reply
    value = "value"  # the value function that PPO learnt beside its policy


@dataclass(frozen=True)
class Source:
    """A checkpoint, and which part of it is exported."""

    path: str  # a folder, GGUF file or hub id, as tinychat.models.checkpoints reads it
    folder: Path  # where it lies
    part: Part
    run: Path | None  # the run folder it belongs to
    lineage: dict[str, Any]

    @property
    def name(self) -> str:
        """ppo-mini-tinyworld, or what its folder is called."""
        own = self.run.parent.name if self.run else Path(self.path).name.removesuffix(".gguf")
        return f"{own}-value" if self.part is Part.value else own

    @property
    def licence(self) -> str | None:
        """What the file that its base came from says; None: nothing."""
        said = self.lineage.get("gguf")
        return str(said["license"]) if isinstance(said, dict) and said.get("license") else None

    @property
    def tokenizer(self) -> Any:
        return load_saved_tokenizer(self.path)


def open_source(path: str, value: bool) -> Source:
    """What a checkpoint holds; value: its value function is meant. Raises UserError for what cannot be exported to any
    program."""
    folder = model_folder(path)
    if is_word_judge(str(folder)):
        raise UserError(
            f"{path} is a word judge (counts of words), which no other program loads; python -m tinychat.score"
        )
    run = folder.parent.parent if folder.parent.name == folders.CHECKPOINTS else None
    lineage = folders.read_json(folder / folders.LINEAGE) or {}
    kind = (read_json(folder / CONFIG) or {}).get("model_type")
    if kind and kind not in CONFIG_MAPPING:
        raise UserError(
            f"{path}: its architecture {kind!r} is code of your own (model=custom), without which no program loads it; "
            "models of transformers' architectures are exported"
        )
    if value:
        if not (folder / VALUE_FOLDER).is_dir():
            raise UserError(f"--part value: {path} holds no value function; a checkpoint of stage=ppo does")
        return Source(path, folder, Part.value, run, lineage)
    part = Part.reward if reward.is_reward(path) else Part.policy
    if part is Part.reward:
        _check_pooling(path, folder)
    return Source(path, folder, part, run, lineage)


def _check_pooling(path: str, folder: Path) -> None:
    found = reward.reward_settings(folder) if is_adapter_folder(folder) else reward.settings(load_config(path))
    if (pooling := found["pooling"]) != Pooling.last.value:
        raise UserError(
            f"{path}: its head reads the mean of all tokens (stage.pooling={pooling}), transformers' "
            "classifiers read the last one alone; train it with stage.pooling=last to export it, or score with "
            "python -m tinychat.score"
        )


def load_part(source: Source) -> Any:
    """The part as a plain transformers model, fp32, an adapter merged; in evaluation mode, on the CPU."""
    if source.part is Part.value:
        return _load_value(source)
    load = reward.load_reward_model if source.part is Part.reward else load_model
    model = load(source.path)
    return (merge_adapter(model) if is_adapter_folder(source.folder) else model).eval()


def _load_value(source: Source) -> Any:
    """The value function as a classifier: its output on the last token is the value of what has been said so far."""
    own = source.folder / VALUE_FOLDER
    if is_adapter_folder(own):  # a second one on the policy's base
        model = merge_adapter(reward.load_reward_model(str(own)))
    elif not (own / VALUE_HEAD_FILE).is_file():
        model = read_model(str(own), AutoModelForSequenceClassification)
    else:
        policy = load_model(source.path)
        model = reward.as_classifier(merge_adapter(policy) if is_adapter_folder(source.folder) else policy)
        with torch.no_grad():
            model.score.weight.copy_(load_file(own / VALUE_HEAD_FILE)["weight"])
    if hasattr(model.config, reward.SETTINGS):  # of the reward model that it began as
        delattr(model.config, reward.SETTINGS)
    return model.eval()


def write_folder(source: Source, out: Path) -> None:
    """The part's files for transformers, in a new folder: weights, configuration, tokenizer with chat template. Raises
    UserError."""
    if source.part is not Part.value and is_adapter_folder(source.folder):
        load = reward.load_reward_model if source.part is Part.reward else load_model
        merge_checkpoint(source.path, out, load)
        for name in (manifest.MANIFEST, folders.LINEAGE):  # of folders here, with paths of this machine
            (out / name).unlink(missing_ok=True)
    elif source.part is Part.value:
        out.mkdir(parents=True)
        model = _load_value(source)
        write_weights(model, dict(model.named_parameters()), out)
        source.tokenizer.save_pretrained(out)
    else:
        folders.verify_contents(source.folder)
        out.mkdir(parents=True)
        for pattern in {*hub.MODEL_FILES, *hub.TOKENIZER_FILES}:
            for file in source.folder.glob(pattern):
                shutil.copyfile(file, out / file.name)
    if source.part is not Part.policy:
        _finish_classifier(out / CONFIG, int(source.tokenizer.pad_token_id))


def _finish_classifier(file: Path, pad: int) -> None:
    """What transformers needs to find the last token of a padded row, and not to squeeze the output into 0 to 1."""
    config = json.loads(file.read_text(encoding="utf-8"))
    config |= {"pad_token_id": pad, "problem_type": "regression"}
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
