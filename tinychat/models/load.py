"""Full models in files: read from checkpoints, other people's folders and hub repositories, and written as transformers
reads them.

Only safetensors are read: pickled weights can run code when they are opened. Weights that are missing or left
over are errors here; transformers would fill them with random numbers and go on. What may be an adapter is opened by
tinychat.models.checkpoints.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.utils import logging as hf_logging

from tinychat.config.shapes import ADDRESS
from tinychat.errors import UserError
from tinychat.models.quantized import prepare_quantized, quantization_config
from tinychat.runs import folders
from tinychat.runtime import gguf, hub
from tinychat.runtime.run_files import at_home, cannot

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DROPOUTS = ("attn_pdrop", "resid_pdrop", "embd_pdrop", "attention_dropout", "dropout")
SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size", "max_position_embeddings")
MOST_LAYERS = 4096  # more would go on for minutes, in a model that nobody has
SHOWN = 3  # weights named in a message


def write_weights(model: Any, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """config.json, generation_config.json and model.safetensors of a full model, as transformers lays them out. Not
    model.save_pretrained: that imports DeepSpeed wherever it is installed."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    tied = list(getattr(model, "_tied_weights_keys", None) or [])
    save_torch_state_dict(weights, str(folder), shared_tensors_to_discard=tied)


def other_than_parameters(model: Any) -> dict[str, torch.Tensor]:
    """The part of a model's state_dict that is no parameter."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {name: value for name, value in model.state_dict().items() if name not in parameters}


def no_language_model(path: str) -> UserError:
    return UserError(
        f"{path} is a reward model, not a language model; it scores replies: python -m tinychat.score {path} FILE"
    )


def read_language_model(path: str, dropout: float | None = None, quantize: bool = False) -> Any:
    """What checkpoints.load_model says, of a full checkpoint."""
    if is_classifier(read_config(model_folder(path))):
        raise no_language_model(path)
    return read_model(path, AutoModelForCausalLM, dropout, quantize)


def is_classifier(config: PreTrainedConfig) -> bool:
    """Whether a configuration belongs to a *ForSequenceClassification, as reward models are."""
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or ())


def read_model(path: str, kind: Any, dropout: float | None = None, quantize: bool = False) -> Any:
    """The model in a full checkpoint, as checkpoints.load_model says; `kind`: one of transformers' Auto classes."""
    folder = model_folder(path)
    config = read_config(folder)
    weight_files(folder)
    folders.verify_contents(folder)
    _check_generation_settings(folder)
    if dropout is not None:
        for key in DROPOUTS:
            if hasattr(config, key):
                setattr(config, key, dropout)
    quantized = {"quantization_config": quantization_config(config), "device_map": {"": "cpu"}} if quantize else {}
    try:
        with quiet():
            model, found = kind.from_pretrained(
                str(folder),
                config=config,
                dtype=torch.float32,
                attn_implementation=attention_of(kind, config),
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # reported below, with the names
                output_loading_info=True,
                **quantized,
            )
    except Exception as error:  # transformers raises nearly anything on a malformed folder
        raise UserError(f"model {folder}: cannot be loaded: {one_line(error)}") from None
    check_loaded(folder, found)
    check_finite(model, f"model {folder}")
    if quantize:
        prepare_quantized(model)
    model.name_or_path = address_of(path)  # adapters name it
    return model


def attention_of(kind: Any, config: PreTrainedConfig) -> str | None:
    """The attention that a model of one of transformers' Auto classes begins with: scaled-dot-product where it knows
    it; None: its own."""
    model = kind._model_mapping.get(type(config), None)
    return "sdpa" if getattr(model, "_supports_sdpa", True) else None


def _check_generation_settings(folder: Path) -> None:
    """transformers goes on without a generation_config.json that it cannot read."""
    file = folder / "generation_config.json"
    if not file.is_file():
        return
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"model {file}: broken JSON ({one_line(error)}); repair or remove it") from None
    if not isinstance(found, dict):
        raise UserError(f"model {file}: holds no JSON object; repair or remove it")


def check_finite(model: Any, what: str) -> None:
    """Raise UserError where a weight of the model is nan or infinite: nothing that it computes means anything."""
    for name, p in model.named_parameters():
        if p.is_floating_point() and not p.is_meta and not bool(torch.isfinite(p).all()):
            raise UserError(
                f"{what}: {name} holds numbers that are not finite (nan or inf), so the model computes nothing; the "
                "training that wrote it went astray: take an earlier checkpoint"
            )


def address_of(path: str) -> str:
    """A path, GGUF file or hub id, from whatever folder one works in."""
    if gguf.is_gguf(path):
        return gguf.address_of(path)
    return str(at_home(path).resolve()) if at_home(path).exists() else path


def model_folder(path: str) -> Path:
    """The local folder of a path, GGUF file (converted) or hub id."""
    if gguf.is_gguf(path):
        return gguf.folder_of(path)
    folder = at_home(path)
    if not folder.exists() and hub.is_hub_id(path):
        return hub.repository_folder(path, hub.MODEL_FILES, "give a folder with config.json and model.safetensors")
    if not folder.is_dir():
        raise UserError(f"model {path}: {'is a file; give its folder' if folder.exists() else 'no such folder'}")
    return folder


def read_config(folder: Path) -> PreTrainedConfig:
    """The transformers configuration in a full model's folder. A language model can be built from it. Raises UserError
    where there is none, or none that makes a model."""
    file = folder / CONFIG
    if not file.is_file():
        raise UserError(f"model {folder}: holds no {CONFIG}; give a folder written by save_pretrained")
    folders.verify_contents(folder, lambda name: name == CONFIG)
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"model {file}: broken JSON ({error})") from None
    if isinstance(said, dict) and (kind := said.get("model_type")) and kind not in CONFIG_MAPPING:
        raise UserError(f"model {file}: {_unknown(folder, str(kind))}")
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # unknown architectures, values out of range, code of its own
        raise UserError(f"model {file}: {one_line(error)}") from None
    stat = file.stat()
    if problem := _why_no_model(str(file), (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)):
        raise UserError(f"model {file}: {problem}")
    return config


def _unknown(folder: Path, kind: str) -> str:
    """What to do about an architecture that transformers does not know: the code of a custom model is run where the
    command names it, never because a checkpoint does."""
    trained = ((folders.read_json(folder / folders.LINEAGE) or {}).get("config") or {}).get("model") or {}
    own = isinstance(trained, dict) and trained.get("arch") == "custom"
    address = str(trained.get("path")) if own else ADDRESS
    return (
        f"its architecture {kind!r} is none of transformers'; if it is a model of your own, name its code: "
        f"tinychat.train ... model=custom model.path={address}, other programs --model-code {address}"
    )


@functools.lru_cache(maxsize=64)
def _why_no_model(file: str, state: tuple[int, int, int]) -> str | None:
    """What is wrong with the values in a config.json that transformers takes, found by building the model without its
    weights; None for nothing. state: of the file, which tells it from what it was before."""
    config = AutoConfig.from_pretrained(str(Path(file).parent), trust_remote_code=False)
    for name in SIZES:
        value = getattr(config, name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            return f"{name} is {value!r}, where a model has a whole number above 0"
    if config.num_hidden_layers > MOST_LAYERS:
        return f"num_hidden_layers is {config.num_hidden_layers:,}; a model has at most {MOST_LAYERS:,}"
    if not isinstance(config.architectures or [], list):
        return f"architectures is {config.architectures!r}, not a list of names"
    try:
        with quiet(), torch.device("meta"):
            AutoModelForCausalLM.from_config(config)
    except Exception as error:  # transformers and torch raise nearly anything on values that do not fit together
        said = one_line(error).partition(" Model type should be one of")[0]  # some two hundred names
        return f"its values make no language model: {type(error).__name__}: {said}"
    return None


def weight_files(folder: Path) -> list[Path]:
    """The folder's safetensors files. Raises UserError unless they are there and whole; reads only their headers."""
    if (folder / INDEX).is_file():
        try:
            names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"model {folder / INDEX}: broken index ({one_line(error)})") from None
    else:
        names = [WEIGHTS]
    for name in names:
        check_safetensors(folder, name)
    return [folder / name for name in names]


def check_safetensors(folder: Path, name: str) -> None:
    """Raise UserError unless the folder holds this safetensors file, whole."""
    file = folder / name
    if not file.is_file():
        others = sorted(p.name for p in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt*"))
        pickles = f"; {others[0]} is not read, as pickles can run code" if others else ""
        raise UserError(f"model {folder}: holds no {name}{pickles}")
    try:
        file.open("rb").close()  # safetensors calls a file that may not be read one that is not there
    except OSError as error:
        raise UserError(f"model {file}: {cannot(error)}") from None
    try:
        with safe_open(str(file), framework="pt"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"model {file}: cut short or no safetensors file ({file.stat().st_size:,} bytes; "
            f"{one_line(error)}); copy it again or take an earlier checkpoint"
        ) from None


def check_loaded(folder: Path, found: dict) -> None:
    """Raise UserError unless transformers' loading info tells of all weights and no others."""
    for kind, problem in (
        ("mismatched_keys", "weights of another shape than config.json says"),
        ("missing_keys", "weights missing"),
        ("unexpected_keys", "weights that the model does not have"),
    ):
        names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in found.get(kind) or ())
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            raise UserError(f"model {folder}: {problem}: {', '.join(names[:SHOWN])}{more}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bars and remarks; its table of problems becomes one line in check_loaded."""
    verbosity, bar = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bar:
            hf_logging.enable_progress_bar()


def one_line(error: Exception) -> str:
    """An exception's message without line ends, 300 characters at most."""
    return " ".join(str(error).split())[:300] or type(error).__name__


class WeightsInFile:
    """Weights of a frozen model on a CPU that lie in their file while nobody reads them: what reads them maps the file
    anew. Weights that are not those of the file, bit for bit (merged, resized, of several files), stay in memory, and
    so do all where an open file cannot be opened again by its number (Windows): the file itself may be gone by then.
    """

    def __init__(self, model: Any, folder: Path):
        self._weights: dict[str, torch.nn.Parameter] = {}
        self._asleep = False
        file = folder / WEIGHTS
        if not (file.is_file() and Path("/dev/fd").is_dir()):
            return
        self._opened = file.open("rb")
        own = dict(model.named_parameters())
        with self._tensors() as found:
            names = own.keys() & set(found.keys())
            self._weights = {name: own[name] for name in names if _equal(own[name], found.get_tensor(name))}

    def _tensors(self) -> Any:
        return safe_open(f"/dev/fd/{self._opened.fileno()}", framework="pt")

    def rest(self) -> None:
        """Let go of them; the model must not be called until `wake`."""
        for weight in self._weights.values():
            weight.data = weight.data.new_empty(0)
        self._asleep = bool(self._weights)

    def wake(self) -> None:
        if self._asleep:
            with self._tensors() as found:
                for name, weight in self._weights.items():
                    weight.data = found.get_tensor(name)
            self._asleep = False


def _equal(weight: torch.Tensor, other: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == other.dtype and torch.equal(weight, other)
