"""Conversations to batches with masks."""
