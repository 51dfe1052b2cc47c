"""One seed for everything random in a rank."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (all devices). Every rank gets the same seed: models must begin equal."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_rank(seed: int, rank: int) -> None:
    """Once the models are equal: let every rank draw its own dropout masks."""
    torch.manual_seed(int(np.random.SeedSequence([seed % 2**64, rank]).generate_state(1, np.uint64)[0]))
