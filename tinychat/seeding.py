"""One seed for everything random in a rank."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (all devices). Every rank gets the same seed: models must begin equal.

    What has to differ between ranks (dropout, sampling) derives its own seed from this and the rank.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
