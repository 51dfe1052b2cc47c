"""Pairs and prompts to batches."""
