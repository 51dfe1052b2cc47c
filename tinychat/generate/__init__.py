"""Replies of a checkpoint to many prompts, for scripts."""
