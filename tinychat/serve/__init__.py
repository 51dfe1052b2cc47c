"""Checkpoints behind the OpenAI API, and a page to talk to them."""
