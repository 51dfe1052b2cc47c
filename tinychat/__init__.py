"""tinychat: the ChatGPT recipe from scratch, at a size one person can train."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinychat.api import Model, Run, load, run

__all__ = ["Model", "Run", "load", "run", "runs"]
__version__ = "0.1.0"

# How often a thread looks for more work before it sleeps, read by libgomp when torch loads it. Its own 300,000 are some
# milliseconds: where other processes share the cores, a thread that looks keeps the core from the one it waits for, and
# training falls to a fraction of its share. These are microseconds, enough for the gap between two parallel operations
# (benchmarks/waiting.py). What the user has set stays.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "1000"


def __getattr__(name: str) -> Any:
    """What is for notebooks and scripts (docs/python.md), imported when it is asked for."""
    import importlib

    if name == "runs":  # the package itself, which can be called
        return importlib.import_module("tinychat.runs")
    if name in __all__:
        return getattr(importlib.import_module("tinychat.api"), name)
    raise AttributeError(f"module 'tinychat' has no attribute {name!r}")
