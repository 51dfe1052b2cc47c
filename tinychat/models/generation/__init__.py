"""Batched decoding for rollouts, streaming for chat."""
