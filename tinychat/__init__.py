"""tinychat: the ChatGPT recipe from scratch, at a size one person can train."""

import os

__version__ = "0.1.0"

# How often a thread looks for more work before it sleeps, read by libgomp when torch loads it. Its own 300,000 are some
# milliseconds: where other processes share the cores, a thread that looks keeps the core from the one it waits for, and
# training falls to a fraction of its share. These are microseconds, enough for the gap between two parallel operations
# (benchmarks/waiting.py). What the user has set stays.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "1000"
