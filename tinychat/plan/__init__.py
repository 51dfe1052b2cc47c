"""Memory and time of a job without running it."""
