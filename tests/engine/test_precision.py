"""precision=auto: bf16 where the processor multiplies it and the library that does may use those instructions."""

from __future__ import annotations

import pytest
import torch

from tinychat.config.schema import Precision
from tinychat.engine.base import cpu_has_bf16, resolve_precision


@pytest.mark.parametrize(
    ("most", "has"),
    [
        ("", True), ("ALL", True), ("AVX512_CORE_AMX", True), ("avx512_core_bf16", True),
        ("AVX512_CORE_VNNI", False), ("AVX512_CORE", False), ("AVX2", False),
    ],
)  # fmt: skip
def test_instructions_that_onednn_may_not_use_do_not_count(
    most: str, has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", most)
    assert cpu_has_bf16() is has
    wanted = torch.bfloat16 if has else torch.float32
    assert resolve_precision(Precision.auto, torch.device("cpu")) == wanted
